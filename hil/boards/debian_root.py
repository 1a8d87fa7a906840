"""The root file system of the stand-in for Raspberry Pi OS: Debian for arm64, configured as by its installer.

The packages' own scripts run, by QEMU's user-mode emulation: users, compiled Python, enabled services are
what Debian makes of them. What is set up on top is what Raspberry Pi OS has: cloud-init looks for its words
on the FAT partition (pi-gen, stage2/04-cloud-init).
"""

import os
import platform
import shutil
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path

from fl_protocol.errors import ConfigError, LichenError

__all__ = ["PACKAGES", "SETTINGS", "SUITE", "make_root", "mirror", "missing_programs", "run"]

SUITE = "bookworm"
ARCHITECTURE = "arm64"
PACKAGES = (
    *(
        "base-files",
        "base-passwd",
        "bash",
        "coreutils",
        "dash",
        "debianutils",
        "diffutils",
        "dpkg",
        "e2fsprogs",
    ),
    *("findutils", "grep", "gzip", "hostname", "init-system-helpers", "libc-bin", "login", "mawk", "mount"),
    *("ncurses-base", "netbase", "passwd", "perl-base", "sed", "sysvinit-utils", "tar", "util-linux"),
    *("cloud-init", "dbus", "iproute2", "kmod", "openssl", "python3", "systemd-sysv", "udev", "xz-utils"),
    *("qemu-guest-agent", "systemd-resolved"),
)
"""What Debian needs to be one, what the first boot uses of Raspberry Pi OS, a way in for tests."""
_LEFT_OUT = ("doc", "i18n", "info", "locale", "man")
_BUILD_TIMEOUT_S = 1800.0
_BINFMT = Path("/proc/sys/fs/binfmt_misc")
_REGISTRATIONS = (Path("/usr/lib/binfmt.d/qemu-aarch64.conf"),)

SETTINGS: Mapping[str, str] = {
    "etc/hostname": "raspberrypi\n",
    "etc/hosts": "127.0.0.1 localhost\n127.0.1.1 raspberrypi\n",
    "etc/machine-id": "",
    "etc/fstab": ("/dev/vda1 /boot/firmware vfat defaults 0 2\n/dev/vda2 / ext4 defaults,noatime 0 1\n"),
    "etc/cloud/cloud.cfg.d/99_raspberry-pi.cfg": (
        # The last / is needed by cloud-init before 23.4.
        "datasource_list: [NoCloud, None]\ndatasource:\n  NoCloud:\n    seedfrom: file:///boot/firmware/\n"
        # Without what this image has no programs or no users for: resizefs, ssh, locale.
        "cloud_init_modules: [migrator, seed_random, bootcmd, write-files, growpart, mounts, set_hostname,"
        " update_hostname, update_etc_hosts, users-groups]\nlocale: false\nusers: []\n"
    ),
    # It would say every question that it is asked.
    "etc/systemd/system/qemu-guest-agent.service.d/quiet.conf": "[Service]\nLogLevelMax=notice\n",
    # Debian's unit is content with its own folders; the words are on the FAT.
    "etc/systemd/system/cloud-init-local.service.d/card.conf": ("[Unit]\nRequiresMountsFor=/boot/firmware\n"),
    # All of the journal is the boot log that is kept.
    "etc/systemd/journald.conf.d/console.conf": (
        "[Journal]\nForwardToConsole=yes\nTTYPath=/dev/ttyAMA0\nMaxLevelConsole=info\n"
    ),
}
"""Files that are written into the root, by path."""
_MASKED = ("apt-daily.timer", "apt-daily-upgrade.timer", "dpkg-db-backup.timer", "e2scrub_all.timer")
_ENABLED = (
    "/lib/systemd/system/systemd-networkd.service",
    "/lib/systemd/system/systemd-networkd.socket",
)

_KERNEL = """set -e
cd {out}
export APT_CONFIG="$MMDEBSTRAP_APT_CONFIG"
kernel=$(apt-cache depends linux-image-cloud-{arch} |
  grep -o 'linux-image-[0-9][^ ]*-cloud-{arch}' | head -n 1)
apt-get --quiet download "$kernel" busybox-static
"""


def missing_programs(*names: str) -> list[str]:
    """Debian's packages that must be installed first; ``names`` are the programs that are looked for."""
    homes = {
        "debugfs": "e2fsprogs",
        "dpkg-deb": "dpkg",
        "mcopy": "mtools",
        "mke2fs": "e2fsprogs",
        "mkfs.vfat": "dosfstools",
        "mmdebstrap": "mmdebstrap",
        "qemu-aarch64-static": "qemu-user-static",
        "qemu-system-aarch64": "qemu-system-arm",
        "sfdisk": "fdisk",
    }
    return sorted({homes[name] for name in names if shutil.which(name, path=_path()) is None})


def make_root(folder: Path) -> None:
    """Fill ``folder/root``, and ``folder/packages`` with Debian's kernel and busybox.

    Raises:
        ConfigError: it takes root and Linux, or programs are missing.
        LichenError: a program failed, with what it said.
    """
    if not sys.platform.startswith("linux") or os.geteuid() != 0:
        raise ConfigError("the stand-in image takes Linux, and root's rights", hint="sudo make hil")
    missing = missing_programs("mmdebstrap", "dpkg-deb", "qemu-aarch64-static")
    if missing:
        raise ConfigError(
            "programs are missing that make the stand-in image", hint=f"apt-get install {' '.join(missing)}"
        )
    _emulate()
    root, packages = folder / "root", folder / "packages"
    packages.mkdir(parents=True, exist_ok=True)
    # What it mounts is seen by nobody else, and goes with it: it may be killed, and the folder then removed.
    words = ["unshare", "--mount", "--propagation=private"]
    words += ["mmdebstrap", "--quiet", "--mode=root", "--variant=custom", "--skip=check/qemu"]
    words += [f"--architectures={ARCHITECTURE}", f"--include={','.join(PACKAGES)}"]
    words += [f"--dpkgopt=path-exclude=/usr/share/{name}/*" for name in _LEFT_OUT]
    words += [f"--customize-hook={_KERNEL.format(out=packages, arch=ARCHITECTURE)}"]
    run([*words, SUITE, str(root), *mirror()], what="the root of the image cannot be made")
    for path, text in SETTINGS.items():
        target = root / path
        target.parent.mkdir(parents=True, exist_ok=True)
        target.unlink(missing_ok=True)
        target.write_text(text)
    (root / "boot" / "firmware").mkdir(parents=True, exist_ok=True)
    units = root / "etc/systemd/system"
    for name in _MASKED:
        (units / name).symlink_to("/dev/null")
    for home in _ENABLED:
        wants = units / ("sockets.target.wants" if home.endswith(".socket") else "multi-user.target.wants")
        wants.mkdir(exist_ok=True)
        (wants / Path(home).name).symlink_to(home)
    for package in packages.glob("*.deb"):
        run(["dpkg-deb", "-x", str(package), str(packages)], what=f"{package.name} cannot be unpacked")


def run(words: list[str], *, what: str, timeout_s: float = _BUILD_TIMEOUT_S) -> str:
    """Run a program; what it printed.

    Raises:
        LichenError: it failed, or took too long; ``what`` says what that means.
    """
    try:
        done = subprocess.run(
            words,
            capture_output=True,
            text=True,
            errors="replace",
            timeout=timeout_s,
            check=False,
            stdin=subprocess.DEVNULL,
            env={**os.environ, "PATH": _path(), "LC_ALL": "C.UTF-8"},
        )
    except subprocess.TimeoutExpired:
        raise LichenError(f"{what}: {words[0]} took longer than {timeout_s:.0f} s") from None
    if done.returncode:
        said = "\n".join((done.stderr or done.stdout).splitlines()[-12:])
        raise LichenError(f"{what}: {words[0]} ended with {done.returncode}", hint=said)
    return done.stdout


def _emulate() -> None:
    """Have the kernel run programs of the other processor through QEMU."""
    if platform.machine() in ("aarch64", "arm64") or (_BINFMT / "qemu-aarch64").exists():
        return
    if not (_BINFMT / "register").exists():
        run(["mount", "-t", "binfmt_misc", "none", str(_BINFMT)], what="there is no binfmt_misc here")
    if (_BINFMT / "qemu-aarch64").exists():
        return
    for registration in _REGISTRATIONS:
        if registration.exists():
            (_BINFMT / "register").write_text(registration.read_text())
            return
    raise ConfigError(
        "this kernel does not know how to run programs of arm64",
        hint="apt-get install qemu-user-static, then: systemctl restart systemd-binfmt",
    )


def mirror() -> list[str]:
    """Where this machine's own apt finds the suite; nothing where it does not know it."""
    words = ["apt-get", "indextargets", "--format", "$(REPO_URI)", "Created-By: Packages"]
    return run([*words, f"Codename: {SUITE}"], what="apt cannot be asked").split()[:1]


def _path() -> str:
    return f"{os.environ.get('PATH', '')}:/usr/sbin:/sbin"
