"""Codec specifications: what is read, what is refused, and with which words."""

import subprocess
import sys
from contextlib import suppress

import pytest
from hypothesis import given
from hypothesis import strategies as st

import fl_protocol.codec
from fl_protocol.codec import CodecSpec, codec_for
from fl_protocol.errors import CodecError


@pytest.mark.parametrize(
    ("text", "canonical"),
    [
        ("float32", "float32"),
        (" int8 ", "int8"),
        ("int8()", "int8"),
        ("eden", "eden(bits=1)"),
        ("eden( keep = 0.25 , bits = 1 )", "eden(bits=1,keep=0.25)"),
        ("eden(bits=1,keep=1)", "eden(bits=1)"),
        ("float16", "float16"),
        ("eden(bits=4,keep=0.5)", "eden(bits=4,keep=0.5)"),
        ("eden(keep=1e-2)", "eden(bits=1,keep=0.01)"),
        ("sparse", "sparse(bits=2,keep=0.05)"),
        ("sparse(feedback=1, keep=0.5, bits=8)", "sparse(bits=8,keep=0.5)"),
        ("sparse(feedback=0)", "sparse(bits=2,feedback=0,keep=0.05)"),
    ],
)
def test_a_codec_knows_its_canonical_specification(text, canonical):
    """However it is written, its spec prints one way, and that text names an equal codec."""
    codec = codec_for(text)
    assert str(codec.spec) == canonical
    assert codec_for(str(codec.spec)) == codec_for(codec.spec) == codec


@given(st.floats(min_value=1e-99, max_value=1, exclude_min=True))
def test_a_specification_survives_its_own_text(keep):
    """Every digit counts: a payload's length is computed from ``keep`` on both sides."""
    spec = CodecSpec(name="eden", options={"bits": 1.0, "keep": keep})
    assert CodecSpec.parse(str(spec)) == spec


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("eden(bits=9)", r"bits=9: eden knows bits=1, 2 and 4\n  hint: write eden\(bits=4\)"),
        ("eden(bits=1.5)", r"bits=1.5: eden knows bits=1, 2 and 4"),
        ("eden(bits=1,keep=0)", r"keep=0: eden keeps a share above 0 .*\n  hint: write keep=0.01"),
        ("eden(bits=1,keep=1.5)", r"keep=1.5: eden keeps a share .* at most 1\n  hint: write keep=1"),
        ("eden(block=64)", r"block=64: eden has only bits and keep"),
        ("int8(keep=0.5)", r"keep=0.5: int8 has no options\n  hint: write eden\(bits=1,keep=0.5\)"),
        ("float32(bits=16)", r"bits=16: float32 has no options"),
        ("edn(bits=1)", r"edn: no such codec; .*\n  hint: did you mean eden\?"),
        ("zzz", r"zzz: no such codec; there are eden, float16, float32, int8, sparse"),
        ("sparse(bits=9)", r"bits=9: sparse knows bits=1 to 8\n  hint: write sparse\(bits=8\)"),
        ("sparse(keep=0.6)", r"keep=0.6: sparse keeps .* at most 0.5\n  hint: write sparse\(keep=0.5\)"),
        ("sparse(keep=0)", r"keep=0: sparse keeps .*\n  hint: write sparse\(keep=0.01\)"),
        ("sparse(feedback=2)", r"feedback=2: it is on or off\n  hint: write feedback=0 or feedback=1"),
        ("sparse(block=64)", r"block=64: sparse has only bits and keep and feedback"),
        ("", "names no codec"),
        ("Eden", "names no codec"),
        ("eden(bits=1", "names no codec"),
        ("eden(bits)", "not of the form name=number"),
        ("eden(bits=nan)", "not of the form name=number"),
        ("eden(keep=-1)", "not of the form name=number"),
        ("eden(bits=1,bits=1)", "stands twice"),
        ("eden(keep=0." + "1" * 96 + ")", "names no codec"),
    ],
)
def test_what_cannot_be_is_refused_with_the_nearest_that_can(text, message):
    """A person who mistyped reads what to write instead."""
    with pytest.raises(CodecError, match=message):
        codec_for(text)


@given(st.text(max_size=120))
def test_arbitrary_text_is_refused_or_a_codec(text):
    """A specification comes from the wire too: nothing but CodecError."""
    with suppress(CodecError):
        codec_for(text)


def test_the_facade_lists_what_is_there():
    """Every public name resolves, and no other does."""
    for name in fl_protocol.codec.__all__:
        assert getattr(fl_protocol.codec, name) is not None
    with pytest.raises(AttributeError, match="no attribute 'nothing'"):
        _ = fl_protocol.codec.nothing


def test_specification_and_seed_cost_no_array_library():
    """The agent's supervisor names codecs and seeds, and stays small."""
    code = (
        "import sys; from fl_protocol.codec import CodecSpec, codec_seed, SEED_BYTES; "
        "CodecSpec.parse('eden(bits=1)'); codec_seed(bytes(16)); sys.exit('numpy' in sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", code], check=False, timeout=60).returncode == 0
