"""The work of ``plain_sgd`` by a virtual fleet, which encodes, sends, journals and receipts each update."""

from hil.bench.plain_sgd import PLAN, fleet_of
from hil.simulate.result import SimulationResult
from hil.simulate.simulation import Progress, simulate
from models.zoo import digits
from models.zoo.catalogue import find

__all__ = ["small_fleet"]


def small_fleet(
    way: str, count: int, versions: int, *, progress: Progress, broker: str = ""
) -> SimulationResult:
    """Run it; ``way`` is a runtime, or ``stacked``."""
    kept = digits.split()[1]
    return simulate(
        find("digits-mlp").open(),
        fleet_of,
        count=count,
        versions=versions,
        plan=PLAN,
        fleet={"buffer": {"size": count}},
        evaluation=(kept.x, kept.y),
        runtimes=("numpy",) if way == "stacked" else (way,),
        stacked=way == "stacked",
        progress=progress,
        broker=broker,
    )
