"""The section ``codec`` of the benches: its figures are of the codecs, and its page names the slow ones."""

from fl_protocol.codec import codec_for
from fl_protocol.layout import TensorLayout
from hil.bench.codec import CODECS, CodecSpeed, codec_section, measured_codecs


def test_every_codec_is_measured_on_a_payload_of_its_length():
    """A small vector, once; times are positive and the payload is what the codec makes."""
    speeds = measured_codecs(rows=3, runs=1)
    layout = TensorLayout.of([("w", [3, 4000])])
    assert [speed.codec for speed in speeds] == list(CODECS)
    for speed in speeds:
        codec = codec_for(speed.codec)
        assert speed.payload_bytes <= codec.largest(layout)
        assert speed.payload_bytes == codec.largest(layout) or not codec.exact
        assert min(speed.copy_s, speed.encode_s, speed.accumulate_s) > 0


def test_the_page_says_which_codec_is_beyond_the_bound():
    """Twenty copies fit, more do not, in either direction."""
    figures = [
        {
            "codec": name,
            "parameters": 10,
            "payload_bytes": 5,
            "copy_s": 1.0,
            "encode_s": up,
            "accumulate_s": down,
        }
        for name, up, down in (("float32", 20.0, 20.0), ("int8", 20.5, 1.0), ("float16", 1.0, 21.0))
    ]
    assert CodecSpeed(**figures[0]).encode_copies == 20
    assert "Beyond it: `int8`, `float16`." in codec_section(figures)
    assert "Beyond" not in codec_section(figures[:1])
