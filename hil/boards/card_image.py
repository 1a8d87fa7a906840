"""A stand-in for the image of Raspberry Pi OS: what the flasher and the first boot see is laid out as there.

An MBR, a FAT32 partition with cmdline.txt, config.txt and cloud-init's three files, an ext4 root; made
without loop device or mount. It is kept in a cache folder under a hash of what goes into it, with the
kernel and the initial RAM disk that the emulator starts in place of a Pi's firmware.
"""

import contextlib
import hashlib
import os
import shutil
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from fl_protocol.errors import ConfigError, LichenError
from hil.boards.debian_root import RECIPE, make_root, missing_programs, run
from hil.boards.initial_ramdisk import INIT, MODULES, initial_ramdisk

__all__ = [
    "BOOT_FILES",
    "BOOT_START",
    "MAKERS",
    "ROOT_START",
    "CardImage",
    "cache_folder",
    "card_image",
    "lay_out",
    "made_card_image",
]

MIB = 1 << 20
BOOT_START, BOOT_MIB = MIB, 160
ROOT_START = BOOT_START + BOOT_MIB * MIB
ROOM_MIB = 400
"""Free on the root: a payload unpacked, the agent's state."""
MAKERS = ("dpkg-deb", "mcopy", "mke2fs", "mkfs.vfat", "mmdebstrap", "qemu-aarch64-static", "sfdisk")
"""Programs that make an image."""
_DISK_ID = "0x6c696368"
BOOT_FILES = {
    "cmdline.txt": (
        "console=ttyAMA0,115200 root=PARTUUID=6c696368-02 rootfstype=ext4 fsck.repair=yes rootwait"
        " net.ifnames=0 quiet\n"
    ),
    "config.txt": "arm_64bit=1\n",
    "meta-data": "dsmode: local\ninstance-id: rpios-image\n",
    "user-data": "#cloud-config\n",
    "network-config": ("version: 2\nethernets:\n  eth0:\n    dhcp4: true\n    optional: true\n"),
}
"""What the FAT partition of a fresh image holds (pi-gen, stage1/00-boot-files and stage2/04-cloud-init)."""


@dataclass(frozen=True, slots=True, kw_only=True)
class CardImage:
    """A stock image, and what stands for the firmware that boots it."""

    image: Path
    kernel: Path
    ramdisk: Path


def cache_folder() -> Path:
    """Where images are kept: ``$XDG_CACHE_HOME/lichen/boards``."""
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "lichen" / "boards"


def recipe_hash() -> str:
    """Of what goes into an image: its root, its first process, and the sizes of its partitions."""
    recipe = (RECIPE, MODULES, INIT, BOOT_FILES, BOOT_START, BOOT_MIB, ROOM_MIB)
    return hashlib.sha256(repr(recipe).encode()).hexdigest()[:16]


def made_card_image(folder: Path | None = None) -> CardImage | None:
    """The image, if it is in the cache."""
    home = (folder or cache_folder()) / recipe_hash()
    image = CardImage(image=home / "card.img", kernel=home / "kernel", ramdisk=home / "initrd.gz")
    return image if image.ramdisk.exists() else None


def card_image(
    folder: Path | None = None, *, say: Callable[[str], None] = lambda sentence: None
) -> CardImage:
    """The image from the cache; it is made where it is not there, which takes minutes and root's rights.

    Raises:
        ConfigError: programs or rights are missing.
        LichenError: a program failed, with what it said.
    """
    if there := made_card_image(folder):
        return there
    home = (folder or cache_folder()) / recipe_hash()
    missing = missing_programs(*MAKERS)
    if missing:
        raise ConfigError("programs are missing", hint=f"apt-get install {' '.join(missing)}")
    home.parent.mkdir(parents=True, exist_ok=True)
    work = Path(tempfile.mkdtemp(prefix=".new-", dir=home.parent))
    try:
        say("making the stand-in image: Debian's packages are configured by an emulated processor")
        make_root(work)
        new = work / "image"
        new.mkdir()
        lay_out(new / "card.img", work / "root")
        (kernel,) = (work / "packages" / "boot").glob("vmlinuz-*")
        shutil.copyfile(kernel, new / "kernel")
        packages = work / "packages"
        ramdisk = initial_ramdisk(packages / "bin/busybox", packages / "lib/modules", root="/dev/vda2")
        (new / "initrd.gz").write_bytes(ramdisk)
        # Another may have made the same meanwhile.
        with contextlib.suppress(OSError):
            os.replace(new, home)
    finally:
        shutil.rmtree(work, ignore_errors=True)
    there = made_card_image(folder)
    if there is None:
        raise LichenError(f"there is no image in {home}", hint="remove it, and try again")
    return there


def lay_out(image: Path, root: Path, *, room_mib: int = ROOM_MIB) -> None:
    """Write an image whose second partition holds ``root``, with ``room_mib`` MiB to spare.

    Raises:
        LichenError: a program failed.
    """
    content = sum(path.lstat().st_blocks * 512 for path in root.rglob("*"))
    root_mib = content // MIB + room_mib
    with image.open("xb") as file:
        file.truncate(ROOT_START + root_mib * MIB)
    table = (
        f"label: dos\nlabel-id: {_DISK_ID}\n"
        f"start={BOOT_START // 512}, size={BOOT_MIB * MIB // 512}, type=c\n"
        f"start={ROOT_START // 512}, size={root_mib * MIB // 512}, type=83\n"
    )
    with tempfile.TemporaryDirectory(dir=image.parent) as folder:
        words = ["sfdisk", "--quiet", str(image)]
        (Path(folder) / "table").write_text(table)
        run(["sh", "-c", f'exec "$@" <"{folder}/table"', "sh", *words], what="the card cannot be partitioned")
        words = ["mkfs.vfat", "-F", "32", "-s", "1", "-n", "bootfs", "--offset", str(BOOT_START // 512)]
        run([*words, str(image), str(BOOT_MIB * 1024)], what="the boot partition cannot be made")
        for name, text in BOOT_FILES.items():
            (Path(folder) / name).write_text(text)
        files = [str(Path(folder) / name) for name in BOOT_FILES]
        run(
            ["mcopy", "-i", f"{image}@@{BOOT_START}", *files, "::/"],
            what="the boot partition cannot be filled",
        )
    words = ["mke2fs", "-q", "-t", "ext4", "-L", "rootfs", "-d", str(root)]
    words += ["-E", f"offset={ROOT_START},no_copy_xattrs", str(image), f"{root_mib}M"]
    run(words, what="the root partition cannot be made")
