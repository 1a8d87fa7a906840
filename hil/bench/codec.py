"""The bench ``codec``: encoding and decoding of ten million parameters, against a copy of them."""

import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from fl_protocol.codec import codec_for, codec_seed
from fl_protocol.layout import TensorLayout

__all__ = ["CODECS", "CodecSpeed", "codec", "codec_section", "measured_codecs"]

CODECS = (
    "float32",
    "float16",
    "int8",
    "eden(bits=1)",
    "eden(bits=2)",
    "eden(bits=4)",
    "eden(bits=1,keep=0.25)",
    "eden(bits=2,keep=0.25)",
    "sparse(bits=2,keep=0.05)",
)
_RUNS = 5
_MOST_COPIES = 20
_ROWS, _COLUMNS = 2500, 4000


@dataclass(frozen=True, slots=True, kw_only=True)
class CodecSpeed:
    """Medians over alternating runs, in CPU seconds: a float32 copy, encoding, decoding with accumulation."""

    codec: str
    parameters: int
    payload_bytes: int
    copy_s: float
    encode_s: float
    accumulate_s: float

    @property
    def encode_copies(self) -> float:
        """Encoding, in copies."""
        return self.encode_s / self.copy_s

    @property
    def accumulate_copies(self) -> float:
        """Checking, decoding and accumulating, in copies."""
        return self.accumulate_s / self.copy_s


_SECTION = """
## Codecs

`make bench ARGS="--only codec"`: {parameters:,} parameters, in copies of the float32 vector in the same
run, by CPU time of all threads; median of {runs} alternating runs. The copy goes to memory that is there: to
new memory it takes longer. Decoding includes the check of the payload and the addition to a sum.

| codec | payload, bytes | copy, ms | encode, copies | decode and add, copies |
| --- | --- | --- | --- | --- |
{rows}

Bound: <= 20 copies each.{beyond}
"""


def codec() -> list[dict[str, Any]]:
    """The figures of the section ``codec``."""
    return [asdict(speed) for speed in measured_codecs()]


def codec_section(figures: Sequence[Mapping[str, Any]]) -> str:
    """The section of docs/benchmarks.md, with the codecs that are beyond the bound."""
    speeds = [CodecSpeed(**row) for row in figures]
    rows = "\n".join(
        f"| `{speed.codec}` | {speed.payload_bytes:,} | {1000 * speed.copy_s:.1f} "
        f"| {speed.encode_copies:.1f} | {speed.accumulate_copies:.1f} |"
        for speed in speeds
    )
    slow = [
        speed.codec for speed in speeds if max(speed.encode_copies, speed.accumulate_copies) > _MOST_COPIES
    ]
    beyond = f" Beyond it: {', '.join(f'`{name}`' for name in slow)}." if slow else ""
    return _SECTION.format(parameters=speeds[0].parameters, runs=_RUNS, rows=rows, beyond=beyond)


def measured_codecs(
    codecs: Sequence[str] = CODECS, *, rows: int = _ROWS, runs: int = _RUNS
) -> list[CodecSpeed]:
    """Measure ``codecs`` on a layout of ``rows`` x 4000; each run copies, encodes and accumulates in turn."""
    layout = TensorLayout.of([("w", [rows, _COLUMNS])])
    delta = np.random.default_rng(0).standard_normal(layout.size, np.float32) * np.float32(1e-2)
    return [_speed(name, layout, delta, runs) for name in codecs]


def _speed(name: str, layout: TensorLayout, delta: npt.NDArray[np.float32], runs: int) -> CodecSpeed:
    into, total = np.zeros_like(delta), np.zeros_like(delta)
    coder, seed = codec_for(name), codec_seed(bytes(16))
    payload = coder.encode(delta, layout, seed)

    def accumulate() -> None:
        coder.check(payload, layout)
        for start, values in coder.pieces(payload, layout, seed):
            part = total[start : start + len(values)]
            np.add(part, values, out=part)

    copies, encodings, accumulations = [], [], []
    for _ in range(runs):
        copies.append(_seconds(lambda: np.copyto(into, delta)))
        encodings.append(_seconds(lambda: coder.encode(delta, layout, seed)))
        accumulations.append(_seconds(accumulate))
    return CodecSpeed(
        codec=name,
        parameters=layout.size,
        payload_bytes=len(payload),
        copy_s=statistics.median(copies),
        encode_s=statistics.median(encodings),
        accumulate_s=statistics.median(accumulations),
    )


def _seconds(work: Callable[[], object]) -> float:
    started = time.process_time()
    work()
    return time.process_time() - started
