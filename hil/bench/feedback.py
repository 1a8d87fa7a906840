"""``python -m hil.bench.feedback``: what error feedback is worth on the digits, beside codecs of equal bytes.

Whole simulated fleets, in which devices keep what their updates leave out.
"""

import argparse
import statistics
import sys
import tempfile
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from hil.bench.markdown_table import table_rows
from hil.partition import partition
from hil.simulate.simulation import simulate
from models.runtime import TrainingArtifact
from models.zoo import digits
from models.zoo.mlp import digits_artifact

__all__ = ["CODECS", "feedback", "feedback_section", "figures", "main"]

CODECS = (
    "float32",
    "eden(bits=1)",
    "sparse(bits=1,keep=0.2)",
    "sparse(bits=1,feedback=0,keep=0.2)",
    "eden(bits=1,keep=0.25)",
    "sparse(bits=1,keep=0.04)",
    "sparse(bits=1,feedback=0,keep=0.04)",
    "sparse(bits=2,keep=0.05)",
)
_SCHEME = "dirichlet:0.3"
_LAST = 5
_HEAD = "| codec | bits an element | accuracy, last five | half-way |\n| --- | --- | --- | --- |\n"
_SECTION = """
## Error feedback

`make bench ARGS="--only feedback --row-seeds {seeds}"`: whole simulated fleets on the digits, an MLP of
{parameters:,} parameters, {devices} devices (Dirichlet 0.3), {versions} versions. Accuracy is the mean of the
last five versions, and that half-way: the median of {seeds} seeds, the lowest in brackets. Differences below
0.005 are noise.

{table}
"""


def feedback(seeds: int) -> dict[str, Any]:
    """The figures of the section ``feedback``, at this program's own defaults."""
    versions, devices, hidden = 40, 20, 256
    rows = list(figures(versions=versions, seeds=seeds, devices=devices, hidden=hidden))
    return {"versions": versions, "seeds": seeds, "devices": devices, "hidden": hidden, "rows": rows}


def feedback_section(found: Mapping[str, Any]) -> str:
    """The section of docs/benchmarks.md."""
    asked = {name: found[name] for name in ("versions", "seeds", "devices")}
    parameters = 75 * found["hidden"] + 10
    return _SECTION.format(**asked, parameters=parameters, table=_HEAD + table_rows(_cells(found["rows"])))


def _cells(rows: Iterable[Mapping[str, Any]]) -> Iterator[Sequence[str]]:
    for row in rows:
        last = f"{row['last']:.4f} ({row['last_min']:.4f})"
        yield [f"`{row['codec']}`", f"{row['bits']:.2f}", last, f"{row['half']:.4f}"]


def figures(
    *, versions: int, seeds: int, devices: int, hidden: int, codecs: tuple[str, ...] = CODECS
) -> Iterator[dict[str, Any]]:
    """A row for each codec: accuracy of the last five versions and half-way, bits an element."""
    with tempfile.TemporaryDirectory(prefix="lichen-feedback-") as folder:
        artifact = digits_artifact(Path(folder) / "digits", hidden=hidden)
        for codec in codecs:
            runs = [_run(artifact, codec, seed, versions, devices) for seed in range(seeds)]
            last, half, bits = zip(*runs, strict=True)
            yield {
                "codec": codec,
                "last": statistics.median(last),
                "last_min": min(last),
                "half": statistics.median(half),
                "bits": statistics.mean(bits),
            }


def _run(
    artifact: TrainingArtifact, codec: str, seed: int, versions: int, devices: int
) -> tuple[float, float, float]:
    held_out = digits.split(seed=0)[1]
    result = simulate(
        artifact,
        _devices,
        count=devices,
        versions=versions,
        seed=seed,
        codec=codec,
        plan={"epochs": 2, "batch_size": 16, "lr": 0.2},
        fleet={"buffer": {"size": max(2, devices // 2)}},
        evaluation=(held_out.x, held_out.y),
        runtimes=("numpy",),
    )
    accuracies = [row.accuracy or 0.0 for row in result.history]
    bits = 8 * result.payload_bytes / result.trainings / result.parameters
    return statistics.mean(accuracies[-_LAST:]), accuracies[len(accuracies) // 2], bits


def _devices(count: int, seed: int) -> Iterable[tuple[Any, Any]]:
    rows = digits.split(seed=0)[0]
    for share in partition(rows.y, count, scheme=_SCHEME, seed=seed):
        yield rows.x[share], rows.y[share]


def main(words: list[str] | None = None) -> int:
    """Print the table."""
    parser = argparse.ArgumentParser(prog="python -m hil.bench.feedback", description=__doc__)
    parser.add_argument("--versions", type=int, default=40)
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--devices", type=int, default=20)
    parser.add_argument("--hidden", type=int, default=256)
    options = parser.parse_args(words)
    sys.stdout.write(_HEAD)
    for row in figures(**vars(options)):
        sys.stdout.write(table_rows(_cells([row])) + "\n")
        sys.stdout.flush()
    return 0


if __name__ == "__main__":
    sys.exit(main())
