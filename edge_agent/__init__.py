"""The program on the device: it trains on data that never leaves it, and forgets no update.

Names are imported at first use: the supervisor, which runs for years, must not load numpy with them.
"""

from importlib import import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from edge_agent.agent import build_agent, build_worker
    from edge_agent.checkpoint import Checkpoint
    from edge_agent.configuration import AgentConfiguration, read_agent_configuration
    from edge_agent.predictor import Predictor
    from edge_agent.samples import SampleStore
    from edge_agent.status import read_status
    from edge_agent.supervisor import Supervisor
    from edge_agent.trainer import (
        ArraySamples,
        Samples,
        ShouldStop,
        Trainer,
        TrainingResult,
        Weights,
        load_trainer,
    )

__all__ = [
    "AgentConfiguration",
    "ArraySamples",
    "Checkpoint",
    "Predictor",
    "SampleStore",
    "Samples",
    "ShouldStop",
    "Supervisor",
    "Trainer",
    "TrainingResult",
    "Weights",
    "build_agent",
    "build_worker",
    "load_trainer",
    "read_agent_configuration",
    "read_status",
]

_HOMES = {
    "AgentConfiguration": "configuration",
    "ArraySamples": "trainer",
    "Checkpoint": "checkpoint",
    "Predictor": "predictor",
    "SampleStore": "samples",
    "Samples": "trainer",
    "ShouldStop": "trainer",
    "Supervisor": "supervisor",
    "Trainer": "trainer",
    "TrainingResult": "trainer",
    "Weights": "trainer",
    "build_agent": "agent",
    "build_worker": "agent",
    "load_trainer": "trainer",
    "read_agent_configuration": "configuration",
    "read_status": "status",
}


def __getattr__(name: str) -> object:
    home = _HOMES.get(name)
    if home is None:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{home}"), name)


def __dir__() -> list[str]:
    return list(__all__)
