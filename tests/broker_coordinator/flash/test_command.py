"""``lichen fleet flash``, as it is typed: from a stock image to a card, and everything that it refuses."""

import gzip
import hashlib
import io
import json
import lzma
import os
import signal
import subprocess
import sys
import tarfile
from pathlib import Path

import pytest
import yaml
from click.testing import CliRunner

from broker_coordinator.flash.target import inspect_target
from broker_coordinator.fleet.command import fleet
from broker_coordinator.fleet.folder import FleetFolder, FleetPlan
from fl_protocol.errors import ConfigError, LichenError, StorageError

BOOKWORM = ("cmdline.txt", "config.txt", "start4.elf")
TRIXIE = (*BOOKWORM, "meta-data", "network-config", "user-data")
KEY = "ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAIJ0000000000000000000000000000000000000000000 you@here"


def stock(names):
    return {
        name: {
            "cmdline.txt": "console=tty1 root=PARTUUID=1-02 rootwait cgroup_disable=memory\n",
            "start4.elf": "x" * 70_000,
        }.get(name, "#\n")
        for name in names
    }


def run(*words):
    """What it printed; errors are raised as they are."""
    result = CliRunner().invoke(fleet, ["flash", *map(str, words)])
    if result.exception is not None and not isinstance(result.exception, SystemExit):
        raise result.exception
    assert result.exit_code == 0, result.output
    return result.output


@pytest.fixture
def barn(tmp_path):
    """The folder of a fleet."""
    return FleetFolder.create(tmp_path / "barn", FleetPlan(name="barn", hosts=("broker.example",)))


@pytest.fixture
def extras(tmp_path):
    """A Wi-Fi password, a public key, a payload with an install.sh."""
    (tmp_path / "password").write_text("correct horse\n")
    (tmp_path / "id.pub").write_text(f"{KEY}\n")
    script = b'#!/bin/sh\nset -eu\nmkdir -p "$2/opt"\necho "$@" >"$2/opt/installed"\n'
    with tarfile.open(tmp_path / "bundle.tar.xz", "w:xz") as archive:
        for name, content in (("install.sh", script), ("wheels", os.urandom(200_000))):
            member = tarfile.TarInfo(name)
            member.size = len(content)
            archive.addfile(member, io.BytesIO(content))
    return (
        *("--wifi", "Stall \N{HORSE FACE}: #1", "--wifi-password-file", tmp_path / "password"),
        *("--wifi-country", "DE", "--ssh-key", tmp_path / "id.pub", "--payload", tmp_path / "bundle.tar.xz"),
    )


@pytest.mark.parametrize("scheme", ["dos", "gpt"])
@pytest.mark.parametrize("bits", [16, 32])
@pytest.mark.parametrize("names", [BOOKWORM, TRIXIE], ids=["bookworm", "trixie"])
def test_a_card_is_the_image_with_another_fat(  # noqa: PLR0917
    tmp_path, barn, stock_image, fat, extras, scheme, bits, names
):
    """mtools reads every file back, fsck has nothing to mend, and outside the FAT no byte is another."""
    image, card = stock_image(scheme, bits, stock(names)), tmp_path / "card.img"
    said = json.loads(
        run("--image", image, "--device-id", "pi-07", "--out", card, "--fleet", barn.path, *extras, "--json")
    )
    mode = "cloud-init" if names is TRIXIE else "firstrun.sh"
    assert (said["device"], said["first_boot"], said["memory_limit"]) == ("pi-07", mode, True)
    assert said["sha256"] == hashlib.sha256(card.read_bytes()).hexdigest()
    assert card.stat().st_mode & 0o777 == 0o600
    disk = fat(card)
    disk.check(tmp_path)
    issued = barn.path / "devices" / "pi-07"
    for name in ("device.key", "device.pem", "ca.pem", "agent.toml"):
        assert disk.read(f"lichen/device/{name}") == (issued / name).read_bytes()
    assert disk.read("lichen/payload.tar.xz") == (tmp_path / "bundle.tar.xz").read_bytes()
    assert disk.read("start4.elf") == b"x" * 70_000
    assert set(disk.names()) >= {*names, "lichen"}
    words = disk.read("cmdline.txt").decode().split()
    assert words[:3] == ["console=tty1", "root=PARTUUID=1-02", "rootwait"]
    assert words[3:5] == ["cgroup_enable=memory", "cgroup_memory=1"]
    assert words[5:6] == ([] if names is TRIXIE else ["systemd.run=/boot/firstrun.sh"])
    for path in said["files"]:
        assert b"correct horse" not in disk.read(path)
    before, after = image.read_bytes(), card.read_bytes()
    end = (4 + (40 if bits == 32 else 24)) << 20
    assert (before[: 4 << 20], before[end:]) == (after[: 4 << 20], after[end:])


def test_compressed_images_give_the_same_card(tmp_path, barn, stock_image, fat):
    """By xz and by gzip; only the first boot's instance-id is another on every card."""
    raw = stock_image("dos", 16, stock(TRIXIE))
    (tmp_path / "a.img.xz").write_bytes(lzma.compress(raw.read_bytes(), preset=0))
    (tmp_path / "a.img.gz").write_bytes(gzip.compress(raw.read_bytes(), 1))
    seen = set()
    for name in ("a.img.xz", "a.img.gz"):
        card = tmp_path / f"{name}.card"
        run("--image", tmp_path / name, "--device-id", "pi-07", "--out", card, "--fleet", barn.path)
        assert card.stat().st_size == raw.stat().st_size
        fat(card).check(tmp_path)
        seen.add(yaml.safe_load(fat(card).read("meta-data"))["instance-id"])
    assert len(seen) == 2
    assert len(barn.registry.devices) == 1


def test_an_image_cut_short_is_no_card(tmp_path, barn, stock_image):
    """Compressed or not, whether its end or its middle is missing."""
    raw = stock_image("dos", 16, stock(TRIXIE)).read_bytes()
    packed = lzma.compress(raw, preset=0)
    for number, content in enumerate((raw[: 30 << 20], packed[: len(packed) // 2], packed[:-30])):
        (tmp_path / "cut.img").write_bytes(content)
        card = tmp_path / f"{number}.img"
        with pytest.raises(StorageError, match="cut off"):
            run("--image", tmp_path / "cut.img", "--device-id", "a", "--out", card, "--fleet", barn.path)
    assert not [*tmp_path.glob("?.img"), *tmp_path.glob(".*.tmp")]


def test_an_image_that_is_not_understood_is_named(tmp_path, barn, stock_image):
    """What it is instead, and what its partitions hold."""
    (tmp_path / "a.zip").write_bytes(b"PK\x03\x04".ljust(70_000, b"\0"))
    strange = stock_image("gpt", 32, {"EFI.txt": "x", "grub.cfg": "x"})
    for image, found in ((tmp_path / "a.zip", "zip archive"), (strange, r"FAT32 with EFI\.txt, grub\.cfg")):
        with pytest.raises(ConfigError, match=found):
            run("--image", image, "--device-id", "a", "--out", tmp_path / "c", "--fleet", barn.path)
    assert not barn.registry.devices


def test_a_dry_run_writes_nothing(tmp_path, barn, stock_image):
    """No card and no enrolment; it says what would be done."""
    image, card = stock_image("dos", 16, stock(BOOKWORM)), tmp_path / "card.img"
    words = ("--image", image, "--device-id", "pi-07", "--out", card, "--fleet", barn.path, "--dry-run")
    assert "first boot by firstrun.sh" in run(*words)
    assert json.loads(run(*words, "--json"))["card_bytes"] == (4 + 24 + 8) << 20
    assert not card.exists()
    assert not barn.registry.devices


def test_many_cards_from_one_list(tmp_path, barn, stock_image, fat):
    """Each has its own identity; a list with faults writes no card at all."""
    image = stock_image("dos", 16, stock(TRIXIE))
    (tmp_path / "cards").mkdir()
    (tmp_path / "d.csv").write_text(f"device,out\npi-1,\npi-2,{tmp_path / 'two.img'}\n")
    words = (
        "--image",
        image,
        "--many",
        tmp_path / "d.csv",
        "--out",
        tmp_path / "cards",
        "--fleet",
        barn.path,
    )
    assert [card["device"] for card in json.loads(run(*words, "--json"))] == ["pi-1", "pi-2"]
    for name, card in (("pi-1", tmp_path / "cards" / "pi-1.img"), ("pi-2", tmp_path / "two.img")):
        assert f'device = "{name}"'.encode() in fat(card).read("lichen/device/agent.toml")
    (tmp_path / "d.csv").write_text("device\npi-3\npi-3\n../x\n")
    with pytest.raises(ConfigError, match=r"(?s)line 3: pi-3 stands there twice.*line 4"):
        run(*words)
    assert "pi-3" not in barn.registry.devices


def test_a_revoked_device_gets_no_card(tmp_path, barn, stock_image):
    """Nor does a payload that is none, a card file that is there, or a key that is private."""
    image, card = stock_image("dos", 16, stock(TRIXIE)), tmp_path / "card.img"
    words = ("--image", image, "--device-id", "pi-07", "--out", card, "--fleet", barn.path)
    barn.enroll("pi-07")
    (tmp_path / "private").write_text("-----BEGIN OPENSSH PRIVATE KEY-----\n")
    for more, fault in (
        (("--payload", image), "no .tar.xz"),
        (("--ssh-key", tmp_path / "private"), "no public key"),
        (("--out", "/dev/no-such-card"), "there is no"),
        (("--out", image), "exists"),
    ):
        with pytest.raises(LichenError, match=fault):
            run(*words, *more)
    barn.revoke("pi-07")
    with pytest.raises(StorageError, match="was revoked"):
        run(*words)
    assert not card.exists()


def test_a_payload_too_large_for_the_fat_is_refused_before(tmp_path, barn, stock_image):
    """Nobody is enrolled for it, and nothing is written."""
    image = stock_image("dos", 16, stock(TRIXIE))
    (tmp_path / "big.tar.gz").write_bytes(b"\x1f\x8b" + bytes(24 << 20))
    with pytest.raises(StorageError, match="boot partition is too small"):
        run(
            *("--image", image, "--device-id", "a", "--out", tmp_path / "c.img", "--fleet", barn.path),
            *("--payload", tmp_path / "big.tar.gz"),
        )
    assert not barn.registry.devices


def test_the_disk_of_this_system_is_refused():
    """The real one, wherever the kernel says that it is."""
    with open("/proc/self/mountinfo") as mounts:
        roots = {line.split()[2] for line in mounts if line.split()[4] == "/"}
    disks = [f"/dev/{os.path.basename(os.path.realpath(f'/sys/dev/block/{number}'))}" for number in roots]
    disks = [disk for disk in disks if os.path.exists(disk)]
    if not disks:
        pytest.skip("the root of this machine is on no disk that is seen here")
    for disk in disks:
        with pytest.raises(StorageError, match=r"disk of this system|is a partition|is in use"):
            inspect_target(Path(disk))


KILLED = """
import os, signal, sys
from pathlib import Path
from broker_coordinator.flash import card as cards
from broker_coordinator.flash.first_boot import FirstBootPlan
from broker_coordinator.flash.identity import DeviceIdentity
from broker_coordinator.flash.image import CardImage
from broker_coordinator.flash.target import BlockDevice, CardTarget, open_target

image, out, stage, kind = sys.argv[1:]
count = 0

def progress(at, fraction):
    global count
    count += at == stage
    if count == 3:
        os.kill(os.getpid(), signal.SIGKILL)

plan, identity = FirstBootPlan(device="a"), DeviceIdentity(device="a", files={"device.key": b"k"})
if kind == "device":
    # A card as the kernel gives it: it has its size, and its old content, from the beginning.
    size = os.stat(out).st_size
    device = BlockDevice(name="sdx", size=size)
    target = CardTarget(os.open(out, os.O_RDWR), path=Path(out), part=None, device=device)
    cards.write_card(CardImage(Path(image)), target, plan=plan, identity=identity, progress=progress)
else:
    with open_target(Path(out)) as target:
        cards.write_card(CardImage(Path(image)), target, plan=plan, identity=identity, progress=progress)
"""


@pytest.mark.parametrize("kind", ["file", "device"])
@pytest.mark.parametrize("stage", ["write", "verify"])
def test_a_killed_writing_leaves_no_card(tmp_path, stock_image, fat, kind, stage):
    """A file has not got its name; a card, which was a good one before, has no partition table."""
    image, out = stock_image("dos", 16, stock(TRIXIE)), tmp_path / "card.img"
    if kind == "device":
        out.write_bytes(image.read_bytes() + bytes(1 << 20))
    for times in ("killed", "finished"):
        words = [sys.executable, "-c", KILLED, image, out, stage if times == "killed" else "never", kind]
        done = subprocess.run(list(map(str, words)), check=False)
        if times == "finished":
            assert done.returncode == 0
            fat(out).check(tmp_path)
            assert b"lichen-a-" in fat(out).read("meta-data")
            assert not [*tmp_path.glob(".card.img.*.tmp")]
            return
        assert done.returncode == -signal.SIGKILL
        assert kind == "device" or [*tmp_path.glob(".card.img.*.tmp")]
        if kind == "device":
            assert out.read_bytes()[:512] == bytes(512)
        else:
            assert not out.exists()
