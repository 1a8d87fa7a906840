"""The content of what is published."""

import os

from broker_coordinator.publication.shelf import BlobShelf


def test_a_blob_is_found_by_hash_and_by_chunk(tmp_path):
    """Also by a shelf that was opened later."""
    content = os.urandom(150_000)
    ref = BlobShelf(tmp_path).put(content)
    shelf = BlobShelf(tmp_path)
    assert shelf.read(ref.sha256) == content
    chunks = [shelf.chunk(ref.address, ref.chunk_bytes, index) for index in range(4)]
    assert b"".join(chunks[:3]) == content
    assert chunks[3] is None
    assert shelf.chunk("a" * 26, ref.chunk_bytes, 0) is None


def test_a_damaged_blob_is_none(tmp_path):
    """It is removed, and can be put again."""
    shelf = BlobShelf(tmp_path)
    ref = shelf.put(b"weights")
    (tmp_path / ref.sha256.hex()).write_bytes(b"wrong")
    assert shelf.read(ref.sha256) is None
    shelf.put(b"weights")
    assert shelf.read(ref.sha256) == b"weights"


def test_a_chunk_that_no_disk_can_seek_to_is_none(tmp_path):
    """Devices name chunks by number: the largest is beyond every offset a file can have."""
    shelf = BlobShelf(tmp_path)
    ref = shelf.put(b"weights")
    for index in (1, 10**12, 10**15 - 1):
        assert shelf.chunk(ref.address, ref.chunk_bytes, index) is None


def test_a_blob_that_rotted_is_whole_after_the_next_put(tmp_path):
    """Of the right length, but of other bytes; and what a crash left is swept."""
    ref = BlobShelf(tmp_path).put(b"weights")
    (tmp_path / ref.sha256.hex()).write_bytes(b"wEights")
    (tmp_path / f".{ref.sha256.hex()}.0a1b2c3d.tmp").write_bytes(b"wei")
    shelf = BlobShelf(tmp_path)
    shelf.put(b"weights")
    assert shelf.read(ref.sha256) == b"weights"
    assert len(list(tmp_path.iterdir())) == 1


def test_only_what_is_needed_stays(tmp_path):
    """The rest goes from the disk too."""
    shelf = BlobShelf(tmp_path)
    old, new = shelf.put(b"old"), shelf.put(b"new")
    shelf.drop_all_but({new.address})
    assert (shelf.read(old.sha256), shelf.read(new.sha256)) == (None, b"new")
    assert len(list(tmp_path.iterdir())) == 1
