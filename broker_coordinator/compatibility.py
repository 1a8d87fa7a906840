"""What goes together: aggregators, optimizers, codecs and buffers, checked before anything starts.

Needs no array library. Each fault names the nearest value that would do.
"""

import math
from collections.abc import Iterator, Mapping

from fl_protocol.codec.spec import CodecSpec
from fl_protocol.errors import CodecError

__all__ = [
    "AGGREGATOR_OPTIONS",
    "OPTIMIZER_OPTIONS",
    "USUAL_LR",
    "beyond_retention",
    "given",
    "kind_rules",
    "together",
    "usable_codec",
]

AGGREGATOR_OPTIONS: Mapping[str, Mapping[str, float]] = {
    "mean": {},
    "trimmed_mean": {"trim": 0.2},
    "median": {},
    "krum": {"attackers": 1, "chosen": 1},
    "ca2fl": {"age": 20, "sum_bits": 64},
}
"""Aggregators of ours, with their options and what those are where nothing is said; ``sum_bits`` is nobody's
to set, and tells journals apart."""
_ADAPTIVE = {"beta1": 0.9, "beta2": 0.99, "tau": 1e-3}
OPTIMIZER_OPTIONS: Mapping[str, Mapping[str, float]] = {
    "sgd": {},
    "momentum": {"beta1": 0.9},
    "adagrad": {"beta1": 0.0, "tau": 1e-3},
    "adam": _ADAPTIVE,
    "yogi": _ADAPTIVE,
}
USUAL_LR: Mapping[str, float] = {"sgd": 1.0, "momentum": 1.0, "adagrad": 0.05, "adam": 0.02, "yogi": 0.02}
"""Adaptive steps are about ``lr`` in each parameter, whatever the updates' length."""

Rule = tuple[bool, str]
_EDEN_BITS = (1, 2, 4)


def given(**options: float | None) -> dict[str, float]:
    """The options that somebody has set."""
    return {name: value for name, value in options.items() if value is not None}


def kind_rules(
    key: str, kind: str, known: Mapping[str, Mapping[str, float]], options: Mapping[str, float]
) -> Iterator[Rule]:
    """Whether there is that kind, and takes those options. ``module:Class`` is one where ``key`` is kind."""
    users = key == "kind" and all(part for part in kind.partition(":"))
    names = ", ".join(known) + (" or module:Class" if key == "kind" else "")
    yield users or kind in known, f"{key} must be one of {names}, not {kind!r}"
    strange = [name for name in options if name not in known.get(kind, {})]
    takers = [other for other, theirs in known.items() if any(name in theirs for name in strange)]
    yield not strange, f"{', '.join(strange)} is nothing to {kind}: only to {' and '.join(takers)}"


def together(kind: str, options: Mapping[str, float], *, codec: str, size: int, least: int) -> Iterator[Rule]:
    """Whether an aggregator can do its work on such updates: ``size`` a version, ``least`` at a deadline."""
    if kind not in ("trimmed_mean", "median", "krum"):
        return
    spec = CodecSpec.parse(codec)
    if spec.name != "sparse" and spec.options.get("keep", 1.0) < 1:
        whole = CodecSpec(name=spec.name, options={**spec.options, "keep": 1.0})
        nearest = str(whole).replace(",keep=1", "").replace("(keep=1)", "")
        yield (
            False,
            f"[aggregator] {kind} and [update] codec {codec} do not go together: what is not kept decodes to"
            f" zeros, which win; nearest is codec = {nearest!r}",
        )
    yield (
        spec.name != "sparse",
        f"[aggregator] {kind} and [update] codec {codec} do not go together: most values decode to zeros,"
        " which win; nearest is codec = 'eden(bits=1)'",
    )
    if kind == "median":
        yield size >= 3, f"[aggregator] median needs [buffer] size = 3 at least, not {size}"
        yield size < 3 or least >= 3, _at_a_deadline("median", 3)
    if kind == "trimmed_mean" and options["trim"]:
        cut = int(options["trim"] * size + 1e-9)
        yield (
            cut > 0,
            f"[aggregator] trim = {options['trim']:g} of [buffer] size = {size} leaves nothing out; nearest"
            f" is trim = {_upwards(1 / size)} or size = {math.ceil(1 / options['trim'] - 1e-9)}"
            if size > 2
            else f"[aggregator] trimmed_mean needs [buffer] size = 3 at least, not {size}",
        )
        needed = math.ceil(1 / options["trim"] - 1e-9)
        yield (
            cut == 0 or least >= needed,
            _at_a_deadline(f"trimmed_mean with trim = {options['trim']:g}", needed),
        )
    if kind == "krum":
        yield from _krum(int(options["attackers"]), int(options["chosen"]), size, least)


def beyond_retention(kind: str, options: Mapping[str, float], *, versions: int) -> str:
    """What an aggregator keeps of payloads, where that is more than ``[retention] versions`` asks for, in
    words; empty if it is not."""
    called_upon = int(options.get("age", 0)) + 1
    if kind != "ca2fl" or called_upon <= versions:
        return ""
    return (
        f"[aggregator] age = {called_upon - 1} keeps the payloads of {called_upon} versions beside those of"
        f" [retention] versions = {versions}, whatever its bytes and days: a smaller age keeps fewer"
    )


def _krum(attackers: int, chosen: int, size: int, least: int) -> Iterator[Rule]:
    needed = 2 * attackers + 3
    fewer = f" or attackers = {(size - 3) // 2}" if size >= 3 else ""
    yield (
        size >= needed,
        f"[aggregator] krum with attackers = {attackers} needs {needed} updates, [buffer] size is {size};"
        f" nearest is size = {needed}{fewer}",
    )
    yield (
        size < needed or least >= needed,
        _at_a_deadline(f"krum with attackers = {attackers}", needed),
    )
    yield (
        size < needed or chosen <= size - attackers,
        f"[aggregator] chosen = {chosen} of [buffer] size = {size} takes attackers in; nearest is"
        f" chosen = {size - attackers}",
    )


def _at_a_deadline(rule: str, needed: int) -> str:
    return (
        f"[aggregator] {rule} needs {needed} updates at a deadline too; nearest is [buffer]"
        f" min_updates = {needed}, or flush_after_s = 0"
    )


def usable_codec(text: str) -> None:
    """Raise CodecError, with the nearest that is, if it names no codec that there is."""
    from fl_protocol.codec.registry import codec_for  # loads numpy

    try:
        codec_for(text)
    except CodecError as error:
        nearest = _nearest_eden(CodecSpec.parse(text))
        raise CodecError(str(error.args[0]), hint=f"nearest is {nearest}") if nearest else error from None


def _nearest_eden(spec: CodecSpec) -> str:
    from fl_protocol.codec.registry import codec_for

    if spec.name != "eden":
        return ""
    asked = spec.options.get("bits", 1.0)
    for bits in sorted(_EDEN_BITS, key=lambda bits: abs(bits - asked)):
        text = str(CodecSpec(name=spec.name, options={**spec.options, "bits": float(bits)}))
        try:
            codec_for(text)
        except CodecError:
            continue
        return text
    return ""


def _upwards(share: float) -> str:
    """In three digits, not below ``share``."""
    return f"{math.ceil(share * 1000 - 1e-9) / 1000:g}"
