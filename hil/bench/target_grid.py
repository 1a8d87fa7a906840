"""The runs of the bench ``target``: every codec with every way to aggregate, on digits and on motion.

The fleet is the scenario ``heavy-tail``: a hundred devices, step times lognormal with sigma 1.5, the
scenario's plan and K (a quarter of it, and two thirds of its learning rate, on motion, where it is the number
of versions that decides how far a run comes); nothing is set for one cell alone.
"""

import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import cache
from pathlib import Path
from typing import Any

from numpy.typing import NDArray

from fl_protocol.codec import codec_for
from fl_protocol.errors import CodecError
from hil.bench.learning_curve import LearningCurve, Yardstick, learning_curve
from hil.bench.run_book import RunBook
from hil.simulate.device_data import ByUser
from hil.simulate.scenario import read_scenario
from hil.workload import Samples
from models.zoo import digits, motion
from models.zoo.catalogue import find
from models.zoo.mlp import digits_artifact

__all__ = ["AGGREGATIONS", "CODECS", "WORKLOADS", "Cell", "cells", "measured", "motion_devices"]

CODECS = ("float32", "int8", "eden(bits=1)", "eden(bits=1,keep=0.25)", "sparse")
WORKLOADS = ("digits", "motion")
AGGREGATIONS: Mapping[str, Sequence[str]] = {
    "rounds, all": ("buffer.kind=rounds", "buffer.over_selection=1.0", "buffer.flush_after_s=0"),
    "rounds, over-selected": ("buffer.kind=rounds",),
    "fedasync": ("buffer.kind=fedasync", "buffer.size=1"),
    "fedbuff": (),
    "ca2fl": ("aggregator.kind=ca2fl", "selection.kind=random"),
}
"""What of fleet.toml a cell differs in from the scenario and the defaults."""
K: Mapping[str, int] = {"digits": 20, "motion": 5}
UPDATES: Mapping[str, int] = {"digits": 600, "motion": 1200}
"""Of a run."""
HIDDEN = 1024
MOTION_MODEL = "motion-cnn"
MOTION_LR = 0.2
PER_DEVICE = 60


@dataclass(frozen=True, slots=True, kw_only=True)
class Cell:
    """One run."""

    workload: str
    aggregation: str
    codec: str
    seed: int

    @property
    def changes(self) -> Sequence[str]:
        """What is set in the scenario, as ``lichen simulate --set`` takes it."""
        size, updates = K[self.workload], UPDATES[self.workload]
        workload = (
            (f"hidden={HIDDEN}",)
            if self.workload == "digits"
            else (
                "hidden=0",
                f'model="{MOTION_MODEL}"',
                'own="hil.bench.target_grid:motion_devices"',
                f"fleet.plan.lr={MOTION_LR}",
            )
        )
        return (
            f"seed={self.seed}",
            f"versions={updates if self.aggregation == 'fedasync' else updates // size}",
            f"fleet.buffer.size={size}",
            'evaluation="none"',
            "held_out=0.0",
            f'fleet.update.codec="{self.codec}"',
            # The scenario draws a share by hash; a fleet paces by leases unless it is told else.
            "fleet.selection.participation=1.0",
            *workload,
            *(f"fleet.{change}" for change in AGGREGATIONS[self.aggregation]),
        )

    def run(self) -> LearningCurve:
        """Simulate it."""
        return learning_curve(read_scenario("heavy-tail", self.changes), _measure(self.workload, self.seed))


def motion_devices(devices: int, seed: int) -> Iterator[tuple[NDArray[Any], NDArray[Any]]]:
    """Each device is a person's, ten people in turn: samples of the first four fifths of their recordings."""
    known, _ = motion.split_in_time()
    samples = Samples(x=known.x, y=known.y)
    dealt = ByUser(samples=samples, users=known.person, devices=devices, per_device=PER_DEVICE, seed=seed)
    yield from ((dealt[device].x, dealt[device].y) for device in range(devices))


def cells(seeds: int) -> Iterator[Cell]:
    """What is to be run, a seed after the other."""
    for seed in range(seeds):
        for workload in WORKLOADS:
            for codec in CODECS:
                for aggregation in AGGREGATIONS:
                    yield Cell(workload=workload, aggregation=aggregation, codec=codec, seed=seed)


def measured(book: Path, wanted: Sequence[Cell]) -> dict[Cell, LearningCurve]:
    """The curves of ``wanted``: those that the file ``book`` has, and the others, run now and added to it.

    A codec that is not registered is left out, and said to be on stderr.
    """
    runs, curves = RunBook(book), {}
    for cell in wanted:
        curve = runs.find(asdict(cell))
        if curve is None and not _registered(cell.codec):
            sys.stderr.write(
                f"left out, there is no codec {cell.codec}: {cell.workload}, {cell.aggregation}\n"
            )
            continue
        if curve is None:
            curve = cell.run()
            runs.keep(asdict(cell), curve)
            said = f"{cell.workload}, {cell.aggregation}, {cell.codec}, seed {cell.seed}"
            sys.stderr.write(f"{said}: {curve.level:.4f} (worst {curve.worst_level:.4f})\n")
        curves[cell] = curve
    return curves


def _registered(codec: str) -> bool:
    try:
        codec_for(codec)
    except CodecError:
        return False
    return True


@cache
def _measure(workload: str, seed: int) -> Yardstick:
    if workload == "digits":
        held_out = digits.split(seed)[1]
        samples = Samples(x=held_out.x, y=held_out.y)
        return Yardstick(artifact=digits_artifact(hidden=HIDDEN), samples=samples, groups=held_out.y)
    _, later = motion.split_in_time()
    samples = Samples(x=later.x, y=later.y)
    return Yardstick(artifact=find(MOTION_MODEL).open(), samples=samples, groups=later.person)
