"""The FAT volume: what it writes, others read; what others damage, it refuses by name."""

import contextlib
import datetime
import random
import struct

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from broker_coordinator.flash.boot import find_boot
from broker_coordinator.flash.fat import FatVolume
from broker_coordinator.flash.fat_directory import entries, new_entries
from broker_coordinator.flash.overlay import Overlay
from broker_coordinator.flash.partitions import read_partitions
from fl_protocol.errors import ConfigError, LichenError, StorageError

WHEN = datetime.datetime(2026, 3, 1, 12, 30, 10)
START = 4 << 20
SIZES = {16: 24 << 20, 32: 40 << 20}


def reader(content):
    return lambda offset, length: bytes(content[offset : offset + length])


def written(card, content):
    """The image with all changes in place."""
    changed = bytearray(content)
    for offset, page in card.changes():
        changed[offset : offset + len(page)] = page
    return changed


@pytest.fixture(params=[16, 32])
def volume(request, stock_image):
    """An image, its overlay, and the volume in it."""
    content = stock_image("dos", request.param, {"config.txt": "a"}).read_bytes()
    card = Overlay(reader(content))
    return content, card, FatVolume(card, START, SIZES[request.param])


def test_files_of_all_kinds_of_names_and_sizes_are_read_by_mtools(tmp_path, volume, fat):
    """Long names, spaces, 8.3 and nearly so, an empty file; what is replaced gives its room back."""
    content, card, fs = volume
    shapes = random.Random(7)
    names = ["UPPER.TXT", "lower.txt", "user-data", "A name with spaces.and.dots", "x" * 120, "Grün.txt", "e"]
    files = {f"sub/{'deep/' * (n % 2)}{name}": shapes.randbytes(n * 3001) for n, name in enumerate(names)}
    for path in files:
        fs.write_file(path, b"first" * 5000, WHEN)
    for path, body in files.items():
        fs.write_file(path, body, WHEN)
    free = fs.free_bytes
    for path, body in files.items():
        fs.write_file(path, body, WHEN)
    assert fs.free_bytes == free
    fs.flush()
    image = tmp_path / "card.img"
    image.write_bytes(written(card, content))
    disk = fat(image)
    disk.check(tmp_path)
    for path, body in files.items():
        assert fs.read_file(path) == body
        if path.isascii():
            assert disk.read(path) == body
    assert fs.read_file("config.txt") == disk.read("config.txt") == b"a"
    assert "A name with spaces.and.dots" in fs.names("sub/deep") + fs.names("sub")


def test_a_folder_grows(tmp_path, volume, fat):
    """Hundreds of entries need more than one cluster, even of a folder that begins with garbage."""
    content, card, fs = volume
    names = [f"device number {n} of the list.pem" for n in range(300)]
    for name in names:
        fs.write_file(f"many/{name}", name.encode(), WHEN)
    fs.flush()
    image = tmp_path / "card.img"
    image.write_bytes(written(card, content))
    fat(image).check(tmp_path)
    assert set(fat(image).names("many")) >= set(names)
    assert fat(image).read(f"many/{names[-1]}") == names[-1].encode()


def test_a_full_volume_says_how_much_is_missing(volume):
    """And so does a root folder of FAT16, which cannot grow."""
    _, _, fs = volume
    with pytest.raises(StorageError, match=r"no room for big: .* bytes are needed"):
        fs.write_file("big", bytes(fs.free_bytes + 1), WHEN)
    fs.write_file("fits", bytes(fs.free_bytes), WHEN)
    assert fs.free_bytes == 0
    if fs.kind == "FAT16":
        with pytest.raises(StorageError, match="root folder"):
            _fill_root(fs)


def _fill_root(fs):
    for number in range(600):
        fs.write_file(f"empty file {number}", b"", WHEN)


@pytest.mark.parametrize("value", [0, 1, 2, 0x0FFFFFF7])
def test_a_chain_that_leads_nowhere_is_refused(stock_image, value):
    """Into free, reserved or bad clusters, or round in a circle."""
    content = bytearray(stock_image("dos", 32, {"config.txt": "a" * 2000}).read_bytes())
    reserved = struct.unpack_from("<H", content, START + 14)[0]
    fs = FatVolume(Overlay(reader(content)), START, SIZES[32])
    cluster = next(iter(entries(fs._directory(fs._root)))).cluster
    target = cluster if value == 2 else value
    struct.pack_into("<I", content, START + reserved * 512 + cluster * 4, target)
    fs = FatVolume(Overlay(reader(content)), START, SIZES[32])
    with pytest.raises(StorageError, match="damaged"):
        fs.read_file("config.txt")


@settings(max_examples=150)
@given(st.data())
def test_damaged_bytes_give_a_clear_error_or_none(stock_image, data):
    """Any bytes in tables, boot sector, FAT and root folder: an error of ours, or a card all the same."""
    scheme = data.draw(st.sampled_from(["dos", "gpt"]))
    image = stock_image(scheme, 32, {"cmdline.txt": "a b", "config.txt": "b"})
    with image.open("rb") as file:
        content = bytearray(file.read(START + (3 << 20)))
    root = START + 32 * 512 + 2 * struct.unpack_from("<I", content, START + 36)[0] * 512
    places = st.sampled_from([440, 510, 512, 1024, START, START + 512, START + 32 * 512, root])
    for _ in range(data.draw(st.integers(1, 4))):
        at = data.draw(places) + data.draw(st.integers(0, 96))
        piece = data.draw(st.binary(min_size=1, max_size=8))
        content[at : at + len(piece)] = piece
    with contextlib.suppress(LichenError):
        boot = find_boot(reader(content))
        card = Overlay(reader(content))
        fs = FatVolume(card, boot.partition.start, boot.partition.size)
        fs.read_file("cmdline.txt")
        fs.write_file("lichen/device/key", b"k" * 3000, WHEN)
        fs.flush()


@given(st.binary(max_size=600))
def test_any_first_bytes_are_no_table_or_one(start):
    """Nothing but our own errors, whatever is in the file."""
    for content in (start, start[:510].ljust(510, b"\0") + b"\x55\xaa" + start):
        with contextlib.suppress(ConfigError):
            assert read_partitions(reader(content)).partitions


@given(st.lists(st.text(min_size=1, max_size=40), min_size=1, max_size=8, unique=True))
def test_names_come_back(names):
    """Long names of any characters, each with a short one of its own."""
    names = [name for name in names if "\0" not in name and "\uffff" not in name and name.strip(". ")]
    names = [name for name in names if name.isprintable()]
    raw, shorts = b"", set()
    for name in names:
        raw += new_entries(name, shorts, attributes=0x20, cluster=5, size=1, when=WHEN)
        shorts = {entry.short for entry in entries(raw)}
    assert [entry.name for entry in entries(raw)] == names
    assert len(shorts) == len(names)
