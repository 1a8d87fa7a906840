"""Content-addressed blobs."""

import contextlib
import hashlib

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fl_protocol.blob import CHUNK_BYTES, INLINE_CHUNKS, BlobRef
from fl_protocol.errors import MessageError
from fl_protocol.fields import Fields, pack, unpack


def travelled(ref: BlobRef) -> BlobRef:
    """The reference after a journey."""
    return BlobRef.from_body(unpack(pack(ref.to_body()), limit=1 << 20))


@given(st.integers(0, 300_000), st.sampled_from([4096, 65_536, 122_880]))
def test_chunks_cover_the_blob_and_bear_its_hashes(size, chunk_bytes):
    """Each chunk is verified on its own, and together they are the whole."""
    content = bytes(size)
    ref = BlobRef.of(content, chunk_bytes=chunk_bytes)
    assert len(ref.chunks) == ref.chunk_count
    ranges = [ref.chunk_range(index) for index in range(ref.chunk_count)]
    assert ranges[0][0] == 0
    assert ranges[-1][1] == size
    for (start, end), sha256 in zip(ranges, ref.chunks, strict=True):
        assert hashlib.sha256(content[start:end]).digest() == sha256
    assert travelled(ref) == ref


def test_a_long_list_of_chunks_is_a_blob_of_its_own():
    """The reference in a manifest stays small, whatever the model's size."""
    ref = BlobRef.of(bytes((INLINE_CHUNKS + 1) * CHUNK_BYTES))
    slim, chunk_list = ref.listed()
    assert len(pack(slim.to_body())) < 200
    assert travelled(slim) == slim
    assert slim.chunk_count == INLINE_CHUNKS + 1
    assert slim.with_chunk_list(chunk_list) == ref
    for wrong in (b"", chunk_list[:-1], bytes(len(chunk_list))):
        with pytest.raises(MessageError):
            slim.with_chunk_list(wrong)
    short = BlobRef.of(bytes(INLINE_CHUNKS * CHUNK_BYTES))
    assert short.listed() == (short, None)


def test_a_chunk_list_of_another_length_is_refused_though_its_hash_fits():
    """A reference may contradict itself even where it is signed."""
    content = bytes(32)
    slim = BlobRef(sha256=bytes(32), size=3 * CHUNK_BYTES, chunk_list=BlobRef.of(content))
    with pytest.raises(MessageError, match="length"):
        slim.with_chunk_list(content)


@pytest.mark.parametrize(
    "change",
    [
        {"h": bytes(31)},
        {"s": -1},
        {"s": (1 << 31) + 1},
        {"b": 4095},
        {"b": 122_881},
        {"c": bytes(63)},
        {"c": bytes(96)},
        {"l": {"h": bytes(32), "s": 63, "b": 65_536}},
        {"l": {"h": bytes(32), "s": 64, "b": 65_536, "l": {"h": bytes(32), "s": 32, "b": 65_536}}},
    ],
)
def test_a_reference_that_contradicts_itself_is_refused(change):
    """Sizes, hashes, and lists of lists."""
    good = {"h": bytes(32), "s": 100_000, "b": 65_536, "c": bytes(64)}
    BlobRef.from_body(Fields(good))
    with pytest.raises(MessageError):
        BlobRef.from_body(Fields(good | change))


@given(st.dictionaries(st.sampled_from("hsbcl"), st.binary(max_size=70) | st.integers() | st.none()))
def test_any_map_is_read_or_refused(body):
    """In one way."""
    with contextlib.suppress(MessageError):
        BlobRef.from_body(Fields(body))
