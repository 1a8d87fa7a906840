"""The initial RAM disk: an archive that another program reads, and modules behind what they need."""

import shutil
import subprocess

import pytest

from fl_protocol.errors import ConfigError
from hil.boards.initial_ramdisk import archive, module_order


@pytest.mark.skipif(shutil.which("cpio") is None, reason="cpio is not installed")
def test_cpio_reads_the_archive(tmp_path):
    """Names, modes and contents come back, whatever their lengths."""
    files = {"init": b"#!/bin/sh\n", "bin/odd": b"x" * 4097, "empty": b""}
    content = archive(files, folders=("bin", "proc"))
    words = ["cpio", "--extract", "--make-directories", "--quiet"]
    subprocess.run(words, input=content, cwd=tmp_path, check=True, timeout=30)
    assert {name: (tmp_path / name).read_bytes() for name in files} == files
    assert (tmp_path / "init").stat().st_mode & 0o111
    assert (tmp_path / "proc").is_dir()


def test_a_module_comes_behind_what_it_needs(tmp_path):
    """Dependencies are followed, each module once; - and _ are the same; what is built in is left out."""
    for name, needs in (("virtio-net", b"net_failover"), ("net_failover", b"failover"), ("failover", b"")):
        (tmp_path / f"{name}.ko").write_bytes(b"ELF\0depends=" + needs + b"\0license=GPL\0")
    (tmp_path / "modules.builtin").write_text("kernel/drivers/virtio/virtio_mmio.ko\n")
    order = module_order(tmp_path, ("virtio_net", "virtio_mmio", "failover"))
    assert [path.stem for path in order] == ["failover", "net_failover", "virtio-net"]


def test_a_kernel_without_a_module_is_refused(tmp_path):
    """A machine that could not see its disk is not started."""
    with pytest.raises(ConfigError, match="no module virtio_blk"):
        module_order(tmp_path, ("virtio_blk",))
