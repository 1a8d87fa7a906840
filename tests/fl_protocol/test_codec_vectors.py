"""The frozen codec vectors: what was encoded once decodes to the same bits for ever."""

import base64
import hashlib
import json
from pathlib import Path

import numpy as np
import pytest

from fl_protocol.codec import codec_for, codec_seed, decode, decode_model, encode_model
from fl_protocol.codec.seed import stream_state
from fl_protocol.codec.streams import Stream
from fl_protocol.errors import CodecError
from fl_protocol.layout import TensorLayout

FOLDER = Path(__file__).parents[1] / "vectors" / "codec"
FILES = {path.stem: json.loads(path.read_text()) for path in sorted(FOLDER.glob("*.json"))}
MODEL = "int8 rows"


def cases(kind):
    """All cases of one kind, each with its codec."""
    return [
        pytest.param(content["codec"], case, id=f"{stem}-{case['name']}")
        for stem, content in FILES.items()
        for case in content.get(kind, ())
    ]


def layout_of(case):
    """The layout of a case."""
    return TensorLayout.of(case["layout"])


def decoded(codec, case):
    """The decoded flat vector of a case."""
    payload = base64.b64decode(case["payload"])
    if codec == MODEL:
        return decode_model(payload, layout_of(case))
    return decode(codec_for(codec), payload, layout_of(case), codec_seed(bytes.fromhex(case["update_id"])))


def input_of(case):
    """The vector that the case was encoded from, by the formula in ``make_codec_vectors.py``."""
    i = np.arange(layout_of(case).size, dtype=np.int64)
    values = ((40503 * i + 12345) % 251 - 125).astype(np.float32) / np.float32(64)
    return np.where(i % case["input_every"] == 0, values, np.float32(0))


def test_there_are_vectors_of_every_codec():
    """A folder that was moved would make the tests below pass with nothing in it."""
    assert set(FILES) >= {
        *("eden", "eden-2", "eden-4", "eden-2-keep-0.25", "eden-keep-0.25", "eden-keep-0.9"),
        *("float16", "float32", "int8", "model", "sparse", "sparse-1", "sparse-8", "stream"),
    }


@pytest.mark.parametrize(("codec", "case"), cases("cases"))
def test_a_frozen_payload_decodes_to_the_same_bits(codec, case):
    """On every machine, with every numpy and every BLAS."""
    octets = decoded(codec, case).astype("<f4").tobytes()
    assert octets[:32].hex() == case["decoded_first"]
    assert hashlib.sha256(octets).hexdigest() == case["decoded_sha256"]


@pytest.mark.parametrize(("codec", "case"), [c for c in cases("cases") if "input_every" in c.values[1]])
def test_a_frozen_input_encodes_to_the_same_payload(codec, case):
    """The inputs are whole multiples of 1/64, so that the encoder's sums are exact too."""
    layout, x = layout_of(case), input_of(case)
    if codec == MODEL:
        payload = encode_model(x, layout)
    else:
        payload = codec_for(codec).encode(x, layout, codec_seed(bytes.fromhex(case["update_id"])))
    assert base64.b64encode(payload).decode() == case["payload"]


@pytest.mark.parametrize(("codec", "case"), cases("refused"))
def test_a_frozen_refusal_is_refused(codec, case):
    """Wrong lengths and numbers out of bounds."""
    with pytest.raises(CodecError):
        decoded(codec, case)


@pytest.mark.parametrize("case", FILES["stream"]["streams"])
def test_a_frozen_stream_gives_the_same_words(case):
    """Seed, start and raw output of the random streams, in one draw or several."""
    seed, purpose = codec_seed(bytes.fromhex(case["update_id"])), case["purpose"].encode()
    state, increment = stream_state(seed, purpose)
    stream = Stream(seed, purpose)
    words = [*stream.words(2), *stream.words(3)]
    assert seed.hex() == case["seed"]
    assert [f"{state:032x}", f"{increment:032x}"] == [case["state"], case["increment"]]
    assert [f"{int(word):016x}" for word in words] == case["words"]
