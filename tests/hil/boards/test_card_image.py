"""The stand-in image, from a root of a few files: sfdisk, mtools, debugfs and the flasher are the judges."""

import json
import subprocess
import sys

import pytest

from broker_coordinator.flash.boot import FirstBoot, find_boot
from hil.boards.card_image import BOOT_FILES, BOOT_START, ROOT_START, lay_out, made_card_image
from hil.boards.debian_root import missing_programs
from hil.boards.flashed_card import FlashedCard
from hil.boards.site import Site

if lacking := missing_programs("debugfs", "mcopy", "mke2fs", "mkfs.vfat", "sfdisk"):
    pytest.skip(f"programs for the stand-in image are missing: {lacking}", allow_module_level=True)


@pytest.fixture
def image(tmp_path):
    """An image whose root has one file and one link."""
    root = tmp_path / "root"
    (root / "etc").mkdir(parents=True)
    (root / "etc" / "hostname").write_text("raspberrypi\n")
    (root / "sbin").symlink_to("usr/sbin")
    path = tmp_path / "stock.img"
    lay_out(path, root, room_mib=8)
    return path


def test_it_is_laid_out_as_an_image_that_cloud_init_personalises(image):
    """The flasher takes it for Raspberry Pi OS with cloud-init; each file of the FAT is there."""
    with image.open("rb") as file:

        def read(offset, length):
            file.seek(offset)
            return file.read(length)

        boot = find_boot(read)
    assert boot.first_boot is FirstBoot.CLOUD_INIT
    assert boot.partition.start == BOOT_START
    for name, text in BOOT_FILES.items():
        words = ["mcopy", "-n", "-i", f"{image}@@{BOOT_START}", f"::/{name}", "-"]
        assert subprocess.run(words, capture_output=True, check=True, timeout=30).stdout.decode() == text


def test_both_partitions_are_whole(image, tmp_path):
    """e2fsck finds nothing to mend in the second, at the place that the table gives it."""
    words = ["/sbin/sfdisk", "--json", str(image)]
    table = json.loads(subprocess.run(words, capture_output=True, check=True, timeout=30).stdout)
    second = table["partitiontable"]["partitions"][1]
    assert second["start"] * 512 == ROOT_START
    assert table["partitiontable"]["id"] == "0x6c696368"
    with image.open("rb") as file, (tmp_path / "root.ext4").open("wb") as out:
        file.seek(ROOT_START)
        out.write(file.read(second["size"] * 512))
    words = ["/sbin/e2fsck", "-fn", str(tmp_path / "root.ext4")]
    assert subprocess.run(words, capture_output=True, check=False, timeout=60).returncode == 0


@pytest.mark.mosquitto
def test_a_flashed_card_gives_back_its_command_line_and_its_files(image, tmp_path):
    """The kernel is told what the firmware of a Pi would tell it; a file of the root can be had."""
    site = Site(tmp_path / "site")
    credential = site.enroll("pi", broker="mqtts://10.0.2.100:8883", state="/var/lib/lichen")
    words = ["--image", str(image), "--device-id", "pi", "--out", str(tmp_path / "card.img")]
    words += ["--fleet", str(site.fleet), "--credential", str(credential)]
    flash = [sys.executable, "-m", "lichen", "fleet", "flash", *words]
    done = subprocess.run(flash, capture_output=True, text=True, check=False, timeout=120)
    assert done.returncode == 0, done.stderr
    card = FlashedCard(path=tmp_path / "card.img")
    words = card.cmdline.split()
    assert "root=PARTUUID=6c696368-02" in words
    assert words[-2:] == ["cgroup_enable=memory", "cgroup_memory=1"]
    assert card.copy_out("/etc/hostname", tmp_path / "name")
    assert (tmp_path / "name").read_text() == "raspberrypi\n"
    assert not card.copy_out("/etc/nothing", tmp_path / "nothing")


def test_an_image_that_is_not_made_is_not_had(tmp_path):
    """A cache without a whole image has none."""
    assert made_card_image(tmp_path) is None
