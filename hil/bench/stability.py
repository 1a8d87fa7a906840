"""``python -m hil.bench.stability``: does a fleet stay stable whatever its load, without tuning?

Sixty devices, each ready to train again at once (lognormal times), and buffers so small or large that the
offered load, devices over K, runs from half a buffer to twenty. Each cell is measured beside synchronous
rounds of the same K with as many folded updates. The codec, the appraisal and the fold are a coordinator's,
and so is the pacing (``FleetConfiguration``); time is a heap of events, no process is started.
"""

import argparse
import hashlib
import heapq
import json
import statistics
import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from broker_coordinator.aggregation.fold import Fold
from broker_coordinator.aggregation.rules import FoldRules
from broker_coordinator.aggregation.version_state import VersionState
from broker_coordinator.configuration import BufferTable, FleetConfiguration, SelectionTable
from broker_coordinator.storage.records import Lease
from fl_protocol.layout import TensorLayout
from fl_protocol.version import VersionId
from hil.bench.direct_fold import fold_delta
from hil.partition import partition
from models.zoo import digits

__all__ = ["Cell", "cell", "cells", "main", "row_of", "stability"]

Floats = NDArray[np.float32]
DEVICES = 60
LOADS = (0.5, 1.0, 2.0, 5.0, 10.0, 20.0)
SCHEMES = ("iid", "dirichlet:0.3")
UPDATES = 2400
EPOCHS, LR, BATCH = 5, 0.2, 8
SPREAD = 0.5
"""Sigma of the lognormal training times, whose median is a second."""
FLUSH_S = 10.0
HIDDEN = 32
LAYOUT = TensorLayout.of([("w1", (64, HIDDEN)), ("b1", (HIDDEN,)), ("w2", (HIDDEN, 10)), ("b2", (10,))])
FAR = 0.02
FALLEN = 0.015


@dataclass(frozen=True, slots=True, kw_only=True)
class Cell:
    """One run: accuracies on the held-out digits, of the last version, the best, and the last of rounds."""

    load: float
    scheme: str
    seed: int
    final: float
    best: float
    rounds: float
    versions: int
    staleness: float

    @property
    def fallen(self) -> float:
        """How far it ends below its best."""
        return self.best - self.final

    @property
    def behind(self) -> float:
        """How far it ends below the rounds; negative where it is ahead."""
        return self.rounds - self.final

    @property
    def holds(self) -> bool:
        """Whether it ends near its best, and near the rounds."""
        return self.fallen <= FALLEN and self.behind <= FAR


class _Server:
    """A coordinator's arithmetic without its disk: appraisal, fold, close."""

    def __init__(
        self, configuration: FleetConfiguration, seed: int, score: Callable[[Floats], float]
    ) -> None:
        rng = np.random.default_rng(seed)
        first = np.zeros(LAYOUT.size, np.float32)
        w1, _, w2, _ = _views(first)
        w1[:] = rng.normal(0, np.sqrt(2 / 64), w1.shape)
        w2[:] = rng.normal(0, np.sqrt(2 / HIDDEN), w2.shape)
        self.rules = FoldRules(
            layout=LAYOUT, codec=configuration.update.canonical_codec, max_examples=100_000
        )
        self.state = VersionState.initial(first, fingerprint=LAYOUT.fingerprint)
        self._score = score
        self._sequence = 0
        self.staleness = 0
        self.accuracies: list[float] = []
        self._open()

    @property
    def waiting(self) -> int:
        return self._fold.count

    @property
    def folded(self) -> int:
        return self._sequence

    def take(self, device: int, base: VersionId, delta: Floats, examples: int) -> None:
        """An update arrives."""
        self._sequence += 1
        update_id = hashlib.sha256(b"%d %d" % (device, self._sequence)).digest()[:16]
        self.staleness += fold_delta(
            self._fold,
            delta,
            rules=self.rules,
            state=self.state,
            base=base,
            device=device,
            update_id=update_id,
            sequence=self._sequence,
            examples=examples,
        )

    def close(self) -> None:
        """The next version."""
        self.state = self._fold.close()
        self.accuracies.append(self._score(self.state.master))
        self._open()

    def _open(self) -> None:
        self._fold = Fold(self.rules, self.state)
        digest = hashlib.sha256(self.state.master.tobytes()).digest()[:16]
        self.version = VersionId(epoch=1, number=self.state.number, digest=digest)


@dataclass(slots=True)
class _Fleet:
    """Devices: what each is at, and what it has trained on; the roster that leases are chosen from."""

    shares: Sequence[NDArray[np.intp]]
    rng: np.random.Generator
    busy: set[int] = field(default_factory=set)
    trained: dict[int, int] = field(default_factory=dict)
    leases: dict[int, Lease] = field(default_factory=dict)

    def ready(self, version: VersionId, *, most: int, fair: bool) -> Sequence[str]:
        """As the store's: it does not know who is busy."""
        free = [
            device
            for device in range(len(self.shares))
            if device not in self.leases and self.trained.get(device) != version.number
        ]
        return [f"{device}" for device in self.rng.permutation(free)[:most]]


def stability(seeds: int) -> dict[str, Any]:
    """The figures of the section ``stability``: a row for each partition and load."""
    runs = list(cells(seeds))
    rows = [row_of(runs[start : start + seeds]) for start in range(0, len(runs), seeds)]
    return {"devices": DEVICES, "updates": UPDATES, "seeds": seeds, "rows": rows}


def cells(seeds: int, updates: int = UPDATES, selection: str = "auto") -> Iterator[Cell]:
    """All loads and partitions, each with every seed."""
    for scheme in SCHEMES:
        for load in LOADS:
            for seed in range(seeds):
                yield cell(load, scheme, seed, updates, selection)


def cell(load: float, scheme: str, seed: int, updates: int, selection: str = "auto") -> Cell:
    """One run, and its rounds."""
    train, held_out = digits.split(seed)
    x, labels = train.x.reshape(len(train.x), -1).astype(np.float32), train.y.ravel()
    test_x, test_y = held_out.x.reshape(len(held_out.x), -1).astype(np.float32), held_out.y.ravel()

    def score(weights: Floats) -> float:
        return float((_scores(weights, test_x)[1].argmax(axis=1) == test_y).mean())

    def train_on(device: int, weights: Floats, turn: int) -> Floats:
        rows = shares[device]
        return _delta(weights, x[rows], labels[rows], np.random.default_rng((seed, device, turn)))

    shares = partition(labels, DEVICES, scheme=scheme, seed=seed)
    size = round(DEVICES / load)
    configuration = FleetConfiguration(
        fleet="bench",
        state=Path("/nowhere"),
        artifact=Path("/nowhere"),
        selection=SelectionTable(kind=selection),
        buffer=BufferTable(size=size, flush_after_s=FLUSH_S),
    )
    server = _Server(configuration, seed, score)
    _free_running(server, _Fleet(shares, np.random.default_rng(seed)), configuration, train_on, updates)
    rounds = _Server(configuration, seed, score)
    _rounds(rounds, _Fleet(shares, np.random.default_rng(seed)), min(size, DEVICES), train_on, updates)
    return Cell(
        load=load,
        scheme=scheme,
        seed=seed,
        final=server.accuracies[-1],
        best=max(server.accuracies),
        rounds=rounds.accuracies[-1],
        versions=len(server.accuracies),
        staleness=server.staleness / server.folded,
    )


def _free_running(
    server: _Server,
    fleet: _Fleet,
    configuration: FleetConfiguration,
    train_on: Callable[[int, Floats, int], Floats],
    updates: int,
) -> None:
    """Every device trains as soon as it may: on each version once, by lease where the pacing says so."""
    times = np.random.default_rng(7)
    events: list[tuple[float, int, int, VersionId, Floats]] = []
    turn = 0
    crowded = configuration.selection.automatic and len(fleet.shares) > configuration.in_flight

    def begin(now: float) -> None:
        # The first version goes out before anybody is known to be on line: it is open.
        nonlocal turn
        by_lease = crowded and server.version.number > 0
        if by_lease:
            held = list(fleet.leases.values())
            for name in configuration.choice.choose(server.version, fleet, held, server.waiting):
                lease = Lease(lease_id=bytes(8), device=name, version=server.version, deadline=now + 600)
                fleet.leases[int(name)] = lease
        for device in range(len(fleet.shares)):
            allowed = device in fleet.leases if by_lease else True
            if allowed and device not in fleet.busy and fleet.trained.get(device) != server.version.number:
                fleet.busy.add(device)
                fleet.trained[device] = server.version.number
                delta = train_on(device, server.state.master, turn)
                turn += 1
                done = now + float(times.lognormal(0, SPREAD))
                heapq.heappush(events, (done, turn, device, server.version, delta))

    now = opened = 0.0
    begin(now)
    while server.folded < updates:
        if not events or (server.waiting and events[0][0] > opened + FLUSH_S):
            now = opened + FLUSH_S
        else:
            now, _, device, base, delta = heapq.heappop(events)
            opened = now if server.waiting == 0 else opened
            server.take(device, base, delta, len(fleet.shares[device]))
            fleet.busy.discard(device)
            fleet.leases.pop(device, None)
        if server.waiting >= configuration.buffer.size or now >= opened + FLUSH_S:
            server.close()
        begin(now)
    if server.waiting:
        server.close()


def _rounds(
    server: _Server,
    fleet: _Fleet,
    size: int,
    train_on: Callable[[int, Floats, int], Floats],
    updates: int,
) -> None:
    """Synchronous: a cohort trains on a version, and all of it is waited for."""
    while server.folded < updates:
        for device in fleet.rng.permutation(len(fleet.shares))[:size]:
            delta = train_on(int(device), server.state.master, server.folded)
            server.take(int(device), server.version, delta, len(fleet.shares[device]))
        server.close()


def _views(weights: Floats) -> tuple[Floats, Floats, Floats, Floats]:
    a, b, c = 64 * HIDDEN, 64 * HIDDEN + HIDDEN, 64 * HIDDEN + HIDDEN + 10 * HIDDEN
    return weights[:a].reshape(64, HIDDEN), weights[a:b], weights[b:c].reshape(HIDDEN, 10), weights[c:]


def _scores(weights: Floats, x: Floats) -> tuple[Floats, Floats]:
    w1, b1, w2, b2 = _views(weights)
    hidden = np.maximum(x @ w1 + b1, 0)
    return hidden, hidden @ w2 + b2


def _delta(start: Floats, x: Floats, labels: NDArray[Any], rng: np.random.Generator) -> Floats:
    """SGD on the cross-entropy; what it changed."""
    weights = start.copy()
    w1, b1, w2, b2 = _views(weights)
    for _ in range(EPOCHS):
        order = rng.permutation(len(x))
        for first in range(0, len(x), BATCH):
            rows = order[first : first + BATCH]
            hidden, scores = _scores(weights, x[rows])
            error = np.exp(scores - scores.max(axis=1, keepdims=True))
            error /= error.sum(axis=1, keepdims=True)
            error[np.arange(len(rows)), labels[rows]] -= 1
            error /= len(rows)
            back = (error @ w2.T) * (hidden > 0)
            w2 -= LR * (hidden.T @ error)
            b2 -= LR * error.sum(axis=0)
            w1 -= LR * (x[rows].T @ back)
            b1 -= LR * back.sum(axis=0)
    return weights - start


def main(words: list[str] | None = None) -> int:
    """Print a line of JSON for each load and partition; 1 if one does not hold in the median of its seeds."""
    parser = argparse.ArgumentParser(prog="python -m hil.bench.stability", description=__doc__)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--updates", type=int, default=UPDATES)
    parser.add_argument("--selection", choices=["auto", "open"], default="auto", help="open: without pacing")
    options = parser.parse_args(words)
    runs: dict[tuple[str, float], list[Cell]] = {}
    for run in cells(options.seeds, options.updates, options.selection):
        rows = runs.setdefault((run.scheme, run.load), [])
        rows.append(run)
        if len(rows) == options.seeds:
            sys.stdout.write(json.dumps(row_of(rows)) + "\n")
            sys.stdout.flush()
    return 0 if all(row_of(rows)["holds"] for rows in runs.values()) else 1


def row_of(runs: Sequence[Cell]) -> dict[str, Any]:
    """The row of a load and a partition: medians of its seeds, and the least favourable of them."""
    final, best, rounds, fallen, behind = (
        [getattr(run, name) for run in runs] for name in ("final", "best", "rounds", "fallen", "behind")
    )
    return {
        "scheme": runs[0].scheme,
        "load": runs[0].load,
        "final": round(statistics.median(final), 4),
        "final_min": round(min(final), 4),
        "best": round(statistics.median(best), 4),
        "rounds": round(statistics.median(rounds), 4),
        "fallen": round(statistics.median(fallen), 4),
        "fallen_max": round(max(fallen), 4),
        "behind": round(statistics.median(behind), 4),
        "behind_max": round(max(behind), 4),
        "versions": runs[0].versions,
        "staleness": round(statistics.mean(run.staleness for run in runs), 2),
        "seeds_that_hold": sum(run.holds for run in runs),
        "seeds": len(runs),
        "holds": statistics.median(fallen) <= FALLEN and statistics.median(behind) <= FAR,
    }


if __name__ == "__main__":
    sys.exit(main())
