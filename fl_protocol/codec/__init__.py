"""Codecs: how model updates travel up and published weights travel down.

Names are imported at first use, so that :class:`CodecSpec` and :func:`codec_seed` cost no array library.
"""

from importlib import import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from fl_protocol.codec.buffers import HIGHEST_BUFFER
    from fl_protocol.codec.model_codec import decode_model, encode_model, model_size
    from fl_protocol.codec.registry import codec_for
    from fl_protocol.codec.seed import SEED_BYTES, codec_seed
    from fl_protocol.codec.segments import SEGMENT_ELEMENTS
    from fl_protocol.codec.spec import CodecSpec
    from fl_protocol.codec.update_codec import Piece, UpdateCodec, decode

__all__ = [
    "HIGHEST_BUFFER",
    "SEED_BYTES",
    "SEGMENT_ELEMENTS",
    "CodecSpec",
    "Piece",
    "UpdateCodec",
    "codec_for",
    "codec_seed",
    "decode",
    "decode_model",
    "encode_model",
    "model_size",
]

_HOMES = {
    "HIGHEST_BUFFER": "buffers",
    "SEED_BYTES": "seed",
    "SEGMENT_ELEMENTS": "segments",
    "CodecSpec": "spec",
    "Piece": "update_codec",
    "UpdateCodec": "update_codec",
    "codec_for": "registry",
    "codec_seed": "seed",
    "decode": "update_codec",
    "decode_model": "model_codec",
    "encode_model": "model_codec",
    "model_size": "model_codec",
}


def __getattr__(name: str) -> object:
    home = _HOMES.get(name)
    if home is None:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{home}"), name)
