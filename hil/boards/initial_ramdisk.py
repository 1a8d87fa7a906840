"""The initial RAM disk of an emulated board: busybox and the few kernel modules that a virtual machine needs.

A Raspberry Pi has none; Debian's kernel has the drivers of virtual disks and networks as modules. The archive
is cpio's "newc" (Linux, Documentation/driver-api/early-userspace/buffer-format.rst), gzipped, the same bytes
for the same files.
"""

import gzip
import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

from fl_protocol.errors import ConfigError

__all__ = ["INIT", "MODULES", "archive", "initial_ramdisk", "module_order"]

MODULES = (
    *("virtio_mmio", "virtio_blk", "virtio_net", "virtio_console", "virtio_rng"),
    *("vfat", "nls_cp437", "nls_ascii", "nls_iso8859-1"),
)
_FILE, _FOLDER = 0o100755, 0o040755
_DEPENDS = re.compile(rb"\0depends=([^\0]*)\0")
INIT = """#!/bin/busybox sh
b=/bin/busybox
$b mount -t proc proc /proc
$b mount -t devtmpfs dev /dev
while read -r module; do $b insmod "/modules/$module" || echo "no $module"; done </order
n=0
while [ ! -b ROOT ] && [ $n -lt 300 ]; do $b sleep 0.1; n=$((n + 1)); done
# Read-only, as the kernel of a Pi mounts it: systemd checks it, then makes it writable.
$b mount -t ext4 -o ro ROOT /root || exec $b sh
$b mount --move /dev /root/dev
$b umount /proc
exec $b switch_root /root /sbin/init
"""
"""Its first process."""


def initial_ramdisk(busybox: Path, modules: Path, *, root: str) -> bytes:
    """``busybox`` is a static one of the board's processor, ``modules`` a kernel's folder of modules,
    ``root`` the device that holds the ext4 root, as ``/dev/vda2``.

    Raises:
        ConfigError: the kernel has neither such a module nor the driver built in.
    """
    order = module_order(modules, MODULES)
    files = {
        "bin/busybox": busybox.read_bytes(),
        "init": INIT.replace("ROOT", root).encode(),
        "order": "".join(f"{path.name}\n" for path in order).encode(),
        **{f"modules/{path.name}": path.read_bytes() for path in order},
    }
    return gzip.compress(archive(files, folders=("bin", "dev", "modules", "proc", "root")), 6, mtime=0)


def module_order(folder: Path, names: Sequence[str]) -> list[Path]:
    """The modules and all that they depend on, each behind what it needs.

    Raises:
        ConfigError: there is no such module.
    """
    there = {_plain(path.name.partition(".")[0]): path for path in folder.rglob("*.ko")}
    built_in = {
        _plain(Path(line).name.partition(".")[0])
        for listing in folder.rglob("modules.builtin")
        for line in listing.read_text().split()
    }
    order: list[Path] = []

    def add(name: str) -> None:
        path = there.get(_plain(name))
        if path is None:
            if _plain(name) in built_in:
                return
            raise ConfigError(
                f"the kernel in {folder} has no module {name}", hint="take another kernel package"
            )
        if path in order:
            return
        found = _DEPENDS.search(path.read_bytes())
        for needed in found[1].decode().split(",") if found and found[1] else ():
            add(needed)
        order.append(path)

    for name in names:
        add(name)
    return order


def archive(files: Mapping[str, bytes], *, folders: Sequence[str]) -> bytes:
    """A cpio archive of executable files and of folders, all of them root's."""
    entries = [(name, _FOLDER, b"") for name in folders]
    entries += [(name, _FILE, content) for name, content in files.items()]
    return b"".join(_entries([*entries, ("TRAILER!!!", 0, b"")]))


def _entries(entries: Sequence[tuple[str, int, bytes]]) -> Iterator[bytes]:
    for number, (name, mode, content) in enumerate(entries, 1):
        encoded = name.encode() + b"\0"
        links = 2 if mode == _FOLDER else 1
        fields = (number, mode, 0, 0, links, 0, len(content), 0, 0, 0, 0, len(encoded), 0)
        head = b"070701" + "".join(f"{field:08x}" for field in fields).encode() + encoded
        yield head + bytes(-len(head) % 4)
        yield content + bytes(-len(content) % 4)


def _plain(name: str) -> str:
    """The kernel takes - and _ for the same."""
    return name.replace("-", "_")
