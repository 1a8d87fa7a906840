"""The registry: from a codec's specification to the codec."""

import difflib
from functools import lru_cache

from fl_protocol.codec.buffers import WithBuffers
from fl_protocol.codec.eden import Eden
from fl_protocol.codec.float16 import Float16
from fl_protocol.codec.float32 import Float32
from fl_protocol.codec.int8 import Int8
from fl_protocol.codec.levels import LEVELS
from fl_protocol.codec.sparse import HIGHEST_BITS, HIGHEST_KEEP, Sparse
from fl_protocol.codec.spec import CodecSpec
from fl_protocol.codec.update_codec import UpdateCodec
from fl_protocol.errors import CodecError

__all__ = ["codec_for"]

_OPTIONS = {
    "eden": ("bits", "keep"),
    "float16": (),
    "float32": (),
    "int8": (),
    "sparse": ("bits", "keep", "feedback"),
}


def codec_for(spec: str | CodecSpec) -> UpdateCodec:
    """The codec that ``spec`` names, as ``float32``, ``float16``, ``int8``, ``eden(bits=2,keep=0.25)``,
    ``sparse(bits=1,keep=0.1)``.

    Raises:
        CodecError: not a specification, an unknown name or option, or a value that the codec does not
            have; the hint names the nearest valid one.
    """
    return _of_text(spec) if isinstance(spec, str) else _of_spec(spec)


@lru_cache(maxsize=64)
def _of_text(text: str) -> UpdateCodec:
    """Codecs hold no state: one serves all who ask for it by the same text."""
    return _of_spec(CodecSpec.parse(text))


def _of_spec(parsed: CodecSpec) -> UpdateCodec:
    known = _OPTIONS.get(parsed.name)
    if known is None:
        raise _unknown_name(parsed.name)
    for option, value in parsed.options.items():
        if option not in known:
            raise _unknown_option(parsed.name, option, value)
    if parsed.name == "float32":
        return WithBuffers(Float32())
    if parsed.name == "float16":
        return WithBuffers(Float16())
    if parsed.name == "int8":
        return WithBuffers(Int8())
    return WithBuffers(_eden(parsed) if parsed.name == "eden" else _sparse(parsed))


def _eden(spec: CodecSpec) -> Eden:
    bits = spec.options.get("bits", 1.0)
    if bits not in LEVELS:
        closest = min(LEVELS, key=lambda known: abs(known - bits))
        raise CodecError(f"bits={bits:g}: eden knows bits=1, 2 and 4", hint=f"write eden(bits={closest})")
    keep = spec.options.get("keep", 1.0)
    if not 0 < keep <= 1:
        nearest = "keep=1" if keep > 1 else "keep=0.01, or leave it out to keep all"
        raise CodecError(f"keep={keep:g}: eden keeps a share above 0 and at most 1", hint=f"write {nearest}")
    return Eden(bits=int(bits), keep=float(keep))


def _sparse(spec: CodecSpec) -> Sparse:
    usual = Sparse()
    bits = spec.options.get("bits", float(usual.bits))
    if bits not in range(1, HIGHEST_BITS + 1):
        nearest = min(range(1, HIGHEST_BITS + 1), key=lambda known: abs(known - bits))
        raise CodecError(
            f"bits={bits:g}: sparse knows bits=1 to {HIGHEST_BITS}", hint=f"write sparse(bits={nearest})"
        )
    keep = float(spec.options.get("keep", usual.keep))
    if not 0 < keep <= HIGHEST_KEEP:
        raise CodecError(
            f"keep={keep:g}: sparse keeps a share above 0 and at most {HIGHEST_KEEP}",
            hint=f"write sparse(keep={HIGHEST_KEEP if keep else 0.01}), or eden(bits=1) to send all elements",
        )
    feedback = spec.options.get("feedback", 1.0)
    if feedback not in (0, 1):
        raise CodecError(f"feedback={feedback:g}: it is on or off", hint="write feedback=0 or feedback=1")
    return Sparse(keep=keep, bits=int(bits), feedback=feedback == 1)


def _unknown_name(name: str) -> CodecError:
    close = difflib.get_close_matches(name, _OPTIONS, n=1, cutoff=0.4)
    hint = f"did you mean {close[0]}?" if close else "the default is eden(bits=1)"
    return CodecError(f"{name}: no such codec; there are {', '.join(_OPTIONS)}", hint=hint)


def _unknown_option(name: str, option: str, value: float) -> CodecError:
    options = _OPTIONS[name]
    has = f"has only {' and '.join(options)}" if options else "has no options"
    hint = f"write eden(bits=1,{option}={value:g})" if option in _OPTIONS["eden"] else f"write {name}"
    return CodecError(f"{option}={value:g}: {name} {has}", hint=hint)
