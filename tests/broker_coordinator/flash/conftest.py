"""Stand-ins for stock images, made with the usual tools; mtools and fsck.vfat are the judges."""

import shutil
import subprocess
from dataclasses import dataclass
from pathlib import Path

import pytest

TOOLS = {
    name: shutil.which(name) or shutil.which(name, path="/usr/sbin:/sbin")
    for name in ("mkfs.vfat", "fsck.vfat", "sfdisk", "mcopy", "mdir")
}
START = 4 << 20
CMDLINE = "console=serial0,115200 root=PARTUUID=5ed6e001-02 rootfstype=ext4 rootwait quiet"
BOOKWORM = {
    "cmdline.txt": f"{CMDLINE} init=/usr/lib/raspberrypi-sys-mods/firstboot\n",
    "config.txt": "arm_64bit=1\n",
    "start4.elf": "x" * 70_000,
}
TRIXIE = {
    "cmdline.txt": f"{CMDLINE} cgroup_disable=memory ds=nocloud;i=rpios-image\n",
    "config.txt": "arm_64bit=1\n",
    "user-data": "#cloud-config\n# stock\n",
    "meta-data": "instance-id: rpios-image\n",
    "network-config": "# nothing\n",
    "start4.elf": "x" * 70_000,
}


def tool(*words, **options):
    """Run one of the tools; what it printed."""
    command = [TOOLS[words[0]], *map(str, words[1:])]
    done = subprocess.run(command, capture_output=True, check=False, **options)
    assert done.returncode == 0, (command, done.stdout, done.stderr)
    return done.stdout


@dataclass(frozen=True)
class Fat:
    """The FAT partition of an image or card, as mtools sees it."""

    image: Path
    start: int = START

    @property
    def at(self):
        return f"{self.image}@@{self.start}"

    def read(self, path):
        return tool("mcopy", "-n", "-i", self.at, f"::/{path}", "-")

    def names(self, folder=""):
        listed = tool("mdir", "-b", "-i", self.at, f"::/{folder}").decode().splitlines()
        return sorted(line.rstrip("/").rpartition("/")[2] for line in listed)

    def check(self, tmp_path):
        """fsck.vfat finds nothing to mend."""
        part = tmp_path / "part.fat"
        with self.image.open("rb") as file:
            file.seek(self.start)
            part.write_bytes(file.read(int(tool("sfdisk", "-l", "-o", "size", "-b", "--bytes", self.image)
                                           .split(b"Size")[1].split()[0])))  # fmt: skip
        tool("fsck.vfat", "-n", part)


@pytest.fixture(scope="session")
def stock_image(tmp_path_factory):
    """Make one: ``stock_image("gpt", 32, TRIXIE)``; each is made once, and not to be changed."""
    if missing := [name for name, path in TOOLS.items() if path is None]:
        pytest.skip(f"{', '.join(missing)}: apt-get install dosfstools mtools fdisk")
    made = {}

    def make(scheme="dos", bits=32, content=BOOKWORM):
        key = (scheme, bits, *sorted(content))
        if key not in made:
            made[key] = _image(tmp_path_factory.mktemp("stock"), scheme, bits, content)
        return made[key]

    return make


def _image(folder, scheme, bits, content):
    image, megabytes = folder / "stock.img", 40 if bits == 32 else 24
    with image.open("wb") as file:
        file.truncate((4 + megabytes + 10) << 20)
    types = ("c", "83") if scheme == "dos" else ("U", "L")
    table = (
        f"label: {scheme}\nunit: sectors\nsector-size: 512\n"
        f"start={START // 512},size={megabytes * 2048},type={types[0]}\n"
        f"start={START // 512 + megabytes * 2048},size={8 * 2048},type={types[1]}\n"
    )
    tool("sfdisk", "-q", image, input=table.encode())
    size = ("-s", "1") if bits == 32 else ("-s", "4")
    tool("mkfs.vfat", "-F", bits, *size, "-n", "BOOTFS", f"--offset={START // 512}", image, megabytes * 1024)
    for name, text in content.items():
        (folder / name).write_text(text)
        tool("mcopy", "-i", f"{image}@@{START}", folder / name, f"::/{name}")
    with image.open("r+b") as file:
        file.seek(START + (megabytes << 20))
        file.write(bytes(range(256)) * 4096)
    return image


@pytest.fixture
def fat():
    """The FAT of a card: ``fat(path)``."""
    return Fat
