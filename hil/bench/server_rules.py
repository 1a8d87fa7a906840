"""``python -m hil.bench.server_rules``: server optimizers and aggregators on the digits, with float32 and at
one bit, through the codec, the appraisal and the fold of a coordinator; no processes.
"""

import argparse
import json
import statistics
import sys
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from broker_coordinator.aggregation.fold import Fold
from broker_coordinator.aggregation.rules import FoldRules
from broker_coordinator.aggregation.version_state import VersionState
from broker_coordinator.compatibility import AGGREGATOR_OPTIONS, OPTIMIZER_OPTIONS, USUAL_LR
from fl_protocol.layout import TensorLayout
from fl_protocol.version import VersionId
from hil.bench.direct_fold import fold_delta
from hil.bench.markdown_table import table_rows
from hil.partition import partition
from models.zoo import digits

__all__ = ["figures", "main", "server_rules", "server_rules_section"]

Floats = NDArray[np.float32]
CODECS = ("float32", "eden(bits=1)")
HIDDEN = 32
LAYOUT = TensorLayout.of([("w1", (64, HIDDEN)), ("b1", (HIDDEN,)), ("w2", (HIDDEN, 10)), ("b2", (10,))])

_SECTION = """
## Server rules

`make bench ARGS="--only server_rules --row-seeds {seeds}"`: final accuracy on 360 held-out digits
of an MLP of 2,410 parameters, {devices} devices (Dirichlet 1.0), {versions} versions, each of one update of
every device; the median of {seeds} seeds, the lowest in brackets. Attackers send minus ten times their
update; norms are clipped as usual. The gap is what one bit costs. Through codec, appraisal and fold of a
coordinator, without processes.

{table}

`krum` takes one device's update for everybody's, and pays for it where devices differ, as they do here.
"""


def server_rules(seeds: int, versions: int = 40) -> dict[str, Any]:
    """The figures of the section ``server_rules``."""
    return {"versions": versions, "seeds": seeds, "rows": list(figures(versions=versions, seeds=seeds))}


def server_rules_section(found: Mapping[str, Any]) -> str:
    """The section of docs/benchmarks.md."""
    rows: Sequence[Mapping[str, Any]] = found["rows"]
    return _SECTION.format(
        seeds=found["seeds"],
        versions=found["versions"],
        devices=rows[0]["devices"],
        table=_table(rows),
    )


def figures(*, versions: int, seeds: int, devices: int = 10) -> Iterator[dict[str, Any]]:
    """A row for each optimizer, and for each aggregator with a tenth of attackers: final accuracies."""
    for optimizer in OPTIMIZER_OPTIONS:
        yield _row(optimizer, 0, versions, seeds, devices)
    for aggregator in AGGREGATOR_OPTIONS:
        if aggregator in ("mean", "median", "trimmed_mean", "krum"):
            yield _row(aggregator, devices // 10, versions, seeds, devices)


def _row(name: str, attackers: int, versions: int, seeds: int, devices: int) -> dict[str, Any]:
    row: dict[str, Any] = {"name": name, "attackers": attackers, "devices": devices}
    for codec in CODECS:
        runs = [_accuracy(_rules(name, codec), attackers, versions, seed, devices) for seed in range(seeds)]
        row[codec] = {"median": statistics.median(runs), "min": min(runs)}
    row["gap"] = row[CODECS[0]]["median"] - row[CODECS[1]]["median"]
    return row


def _rules(name: str, codec: str) -> FoldRules:
    if name in OPTIMIZER_OPTIONS:
        return FoldRules(
            layout=LAYOUT,
            codec=codec,
            max_examples=10_000,
            optimizer=name,
            server_lr=USUAL_LR[name],
            optimizer_options=OPTIMIZER_OPTIONS[name],
        )
    options = AGGREGATOR_OPTIONS[name]
    return FoldRules(
        layout=LAYOUT, codec=codec, max_examples=10_000, aggregator=name, aggregator_options=options
    )


def _accuracy(rules: FoldRules, attackers: int, versions: int, seed: int, devices: int) -> float:
    """Of the last version; every version is made from one update of each device."""
    train, held_out = digits.split(seed)
    shares = partition(train.y, devices, scheme="dirichlet:1.0", seed=seed)
    state = VersionState.initial(_initial(seed), fingerprint=LAYOUT.fingerprint)
    for _ in range(versions):
        base = VersionId(epoch=1, number=state.number, digest=state.digest()[:16])
        fold = Fold(rules, state)
        for device, rows in enumerate(shares):
            rng = np.random.default_rng((seed, state.number, device))
            delta = _trained(state.master, train.x[rows], train.y[rows], rng) - state.master
            if device < attackers:
                delta *= np.float32(-10)
            update_id = rng.bytes(16)
            fold_delta(
                fold,
                delta,
                rules=rules,
                state=state,
                base=base,
                device=device,
                update_id=update_id,
                sequence=device + 1,
                examples=len(rows),
            )
        state = fold.close()
    scores = _forward(state.master, held_out.x.reshape(len(held_out.x), -1))[1]
    return float((scores.argmax(axis=1) == held_out.y.ravel()).mean())


def _initial(seed: int) -> Floats:
    rng = np.random.default_rng(seed)
    parts = [
        rng.standard_normal(spec.shape) / 8 if len(spec.shape) > 1 else np.zeros(spec.shape)
        for spec in LAYOUT.tensors
    ]
    return np.concatenate([part.ravel() for part in parts]).astype(np.float32)


def _split(flat: Floats) -> list[Floats]:
    return [flat[start : start + spec.size].reshape(spec.shape) for spec, start in LAYOUT.offsets()]


def _forward(flat: Floats, x: Floats) -> tuple[Floats, Floats]:
    w1, b1, w2, b2 = _split(flat)
    hidden = np.maximum(x @ w1 + b1, 0)
    return hidden, hidden @ w2 + b2


def _trained(flat: Floats, x: Floats, y: NDArray[Any], rng: np.random.Generator) -> Floats:
    """Three passes of SGD in batches of 16 at 0.2."""
    flat = flat.copy()
    x, y = x.reshape(len(x), -1).astype(np.float32), y.ravel()
    w1, b1, w2, b2 = _split(flat)
    for _ in range(3):
        order = rng.permutation(len(x))
        for start in range(0, len(x), 16):
            rows = order[start : start + 16]
            hidden, scores = _forward(flat, x[rows])
            error = np.exp(scores - scores.max(axis=1, keepdims=True))
            error /= error.sum(axis=1, keepdims=True)
            error[np.arange(len(rows)), y[rows]] -= 1
            error *= np.float32(0.2 / len(rows))
            back = (error @ w2.T) * (hidden > 0)
            w2 -= hidden.T @ error
            b2 -= error.sum(axis=0)
            w1 -= x[rows].T @ back
            b1 -= back.sum(axis=0)
    return flat


def main(words: list[str] | None = None) -> int:
    """Print the table."""
    parser = argparse.ArgumentParser(prog="python -m hil.bench.server_rules", description=__doc__)
    parser.add_argument("--versions", type=int, default=40)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args(words)
    rows = list(figures(versions=options.versions, seeds=options.seeds))
    if options.json:
        sys.stdout.write(json.dumps(rows) + "\n")
        return 0
    sys.stdout.write(_table(rows) + "\n")
    return 0


def _table(rows: Sequence[Mapping[str, Any]]) -> str:
    head = "| rule | attackers | float32 | eden 1 bit | gap |\n| --- | --- | --- | --- | --- |\n"
    return head + table_rows(
        [
            row["name"],
            f"{row['attackers']} of {row['devices']}",
            *(f"{row[codec]['median']:.4f} ({row[codec]['min']:.4f})" for codec in CODECS),
            f"{row['gap']:+.4f}",
        ]
        for row in rows
    )


if __name__ == "__main__":
    sys.exit(main())
