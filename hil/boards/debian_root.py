"""The root file system of the stand-in for Raspberry Pi OS: Debian for arm64, configured as by its installer.

The packages' own scripts run, by QEMU's user-mode emulation: users, compiled Python, enabled services are
what Debian makes of them. What is set up on top is what Raspberry Pi OS has: cloud-init looks for its words
on the FAT partition (pi-gen, stage2/04-cloud-init).
"""

import os
import platform
import shlex
import shutil
import sys
from collections.abc import Mapping
from pathlib import Path

from fl_protocol.errors import ConfigError, LichenError
from hil.boards import errand
from hil.boards.board import BoardFailure
from hil.boards.native_programs import (
    FOLDER,
    compile_python,
    remove_native_programs,
    stage_native_programs,
)

__all__ = [
    "LEFT_OUT",
    "PACKAGES",
    "PACKAGES_OF",
    "RECIPE",
    "SETTINGS",
    "SUITE",
    "make_root",
    "mirror",
    "missing_programs",
    "program_path",
    "run",
]

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
    *("qemu-guest-agent", "systemd-resolved", "usr-is-merged"),
)
"""What Debian needs to be one, what the first boot uses of Raspberry Pi OS, a way in for tests."""
LEFT_OUT = (
    *(
        "/usr/share/doc/*",
        "/usr/share/i18n/*",
        "/usr/share/info/*",
        "/usr/share/locale/*",
        "/usr/share/man/*",
    ),
    # A minute to hash, and the fleet has an authority of its own.
    "/usr/share/ca-certificates/mozilla/*",
)
_MERGED = ("bin", "lib", "sbin")
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

_SETUP = """set -e
for name in {merged}; do mkdir -p "$1/usr/$name"; ln -s "usr/$name" "$1/$name"; done
mkdir -p "$1/etc/dpkg/dpkg.cfg.d"
printf '%s\\n' {options} >"$1/etc/dpkg/dpkg.cfg.d/lichen-hil"
"""
_EXTRACT = """set -e
for name in {left_out}; do rm -rf "$1"$name; done
[ ! -d {native} ] || cp -R {native}/. "$1/"
"""
_CUSTOMIZE = """set -e
rm -f "$1/etc/dpkg/dpkg.cfg.d/lichen-hil"
cd {out}
export APT_CONFIG="$MMDEBSTRAP_APT_CONFIG"
kernel=$(apt-cache depends linux-image-cloud-{arch} |
  grep -o 'linux-image-[0-9][^ ]*-cloud-{arch}' | head -n 1)
apt-get --quiet download "$kernel" busybox-static
"""
"""Of the kernel's package and of busybox only files are wanted."""

RECIPE = (
    *(SUITE, ARCHITECTURE, PACKAGES, LEFT_OUT, dict(SETTINGS)),
    *(_MASKED, _ENABLED, _MERGED, _SETUP, _EXTRACT, _CUSTOMIZE),
)
"""All that makes a root what it is, but for the versions of Debian's packages."""

PACKAGES_OF = {
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
"""Where Debian has the programs that make an image, and run it."""


def program_path() -> str:
    """Where programs are looked for: also where root has them."""
    return f"{os.environ.get('PATH', '')}:/usr/sbin:/sbin"


def missing_programs(*names: str) -> list[str]:
    """Debian's packages that must be installed first; ``names`` are the programs that are looked for."""
    return sorted({PACKAGES_OF[name] for name in names if shutil.which(name, path=program_path()) is None})


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
    native = [] if _own_processor() else stage_native_programs(folder / "native")
    # What it mounts is seen by nobody else, and goes with it: it may be killed, and the folder then removed.
    words = ["unshare", "--mount", "--propagation=private"]
    words += ["mmdebstrap", "--quiet", "--mode=root", "--variant=custom", "--skip=check/qemu"]
    words += [f"--architectures={ARCHITECTURE}", f"--include={','.join(PACKAGES)}"]
    hooks = folder / "hooks"
    hooks.mkdir()
    for stage, text in _hooks(folder, packages).items():
        (hooks / stage).write_text(text)
        words.append(f'--{stage}-hook=sh "{hooks / stage}" "$1"')
    words += [SUITE, str(root), *mirror()]
    run(words, what="the root of the image cannot be made", path=f"{FOLDER}:{program_path()}")
    if native:
        remove_native_programs(root, native)
        compile_python(root)
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


def run(words: list[str], *, what: str, timeout_s: float = _BUILD_TIMEOUT_S, path: str = "") -> str:
    """Run a program; what it printed. ``path`` is another PATH than ours.

    Raises:
        LichenError: it failed, or took too long; ``what`` says what that means.
    """
    environment = {**os.environ, "PATH": path or program_path(), "LC_ALL": "C.UTF-8"}
    try:
        done = errand.run(words, within_s=timeout_s, environment=environment)
    except BoardFailure as error:
        raise LichenError(f"{what}: {error.args[0]}", hint=error.hint) from None
    if done.returncode:
        said = "\n".join((done.stderr or done.stdout).splitlines()[-12:])
        raise LichenError(f"{what}: {words[0]} ended with {done.returncode}", hint=said)
    return done.stdout


def _emulate() -> None:
    """Have the kernel run programs of the other processor through QEMU."""
    if _own_processor() or (_BINFMT / "qemu-aarch64").exists():
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


def _hooks(folder: Path, packages: Path) -> dict[str, str]:
    """Scripts for mmdebstrap, by stage; each gets the root."""
    options = ["force-unsafe-io", *(f"path-exclude={name}" for name in LEFT_OUT)]
    return {
        "setup": _SETUP.format(merged=" ".join(_MERGED), options=shlex.join(options)),
        "extract": _EXTRACT.format(left_out=" ".join(LEFT_OUT), native=folder / "native"),
        "customize": _CUSTOMIZE.format(out=packages, arch=ARCHITECTURE),
    }


def _own_processor() -> bool:
    return platform.machine() in ("aarch64", "arm64")
