"""Records of tensors: the same bytes for the same tensors, and nothing believed that a card has spoilt."""

import numpy as np
import pytest

from edge_agent.tensor_record import DTYPES, pack_record, unpack_record
from fl_protocol.errors import StorageError

TENSORS = {
    "b": np.arange(6, dtype=np.float32).reshape(2, 3),
    "a": np.array(7, np.int64),
    "empty": np.zeros((0, 4), np.float64),
}


def test_what_went_in_comes_out():
    """Names, dtypes, shapes, values and the note; read-only."""
    note, tensors = unpack_record(pack_record({"steps": 3, "id": b"x"}, TENSORS), "it")
    assert note == {"steps": 3, "id": b"x"}
    assert tensors.keys() == TENSORS.keys()
    for name, tensor in TENSORS.items():
        assert (tensors[name].dtype, tensors[name].shape) == (tensor.dtype, tensor.shape)
        assert np.array_equal(tensors[name], tensor)
        assert not tensors[name].flags.writeable


def test_the_same_tensors_give_the_same_bytes():
    """In whatever order they come and however they lie in memory."""
    other = {name: TENSORS[name] for name in sorted(TENSORS)} | {"b": np.asfortranarray(TENSORS["b"])}
    assert pack_record({}, other) == pack_record({}, TENSORS)


@pytest.mark.parametrize("dtype", DTYPES)
def test_every_dtype_that_is_allowed_comes_back(dtype):
    """Libraries keep step counters and random states in integers."""
    _, tensors = unpack_record(pack_record({}, {"t": np.ones(3, dtype)}), "it")
    assert tensors["t"].dtype == dtype


def test_objects_are_not_kept():
    """There is no pickle."""
    with pytest.raises(StorageError, match="object"):
        pack_record({}, {"t": np.array([{}], object)})


def test_any_flipped_bit_and_any_cut_is_noticed():
    """A flash card forgets in many ways."""
    whole = pack_record({"steps": 3}, TENSORS)
    for at in range(len(whole)):
        spoilt = bytearray(whole)
        spoilt[at] ^= 1 << at % 8
        with pytest.raises(StorageError, match="the state is damaged"):
            unpack_record(bytes(spoilt), "the state")
        with pytest.raises(StorageError):
            unpack_record(whole[:at], "the state")


@pytest.mark.parametrize("change", ["format", "too long", "too short", "negative", "dtype", "no map"])
def test_a_sealed_record_of_another_kind_is_refused(change):
    """Sound bytes that mean nothing here: a newer agent's, or somebody's who means no good."""
    import struct

    import msgpack

    from edge_agent.sealed import seal

    header = {"f": 1, "n": {}, "t": [["a", "float32", [2]]]}
    content = bytes(8)
    match change:
        case "format":
            header["f"] = 2
        case "too long":
            content = bytes(9)
        case "too short":
            content = bytes(7)
        case "negative":
            header["t"] = [["a", "float32", [-2]]]
        case "dtype":
            header["t"] = [["a", "object", [1]]]
        case "no map":
            header = []
    packed = msgpack.packb(header)
    with pytest.raises(StorageError, match="cannot be read"):
        unpack_record(seal(struct.pack("<I", len(packed)) + packed + content), "it")
