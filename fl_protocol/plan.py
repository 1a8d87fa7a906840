"""The training plan: the hyper-parameters of one participation."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from fl_protocol.fields import Fields

__all__ = ["TrainingPlan"]


@dataclass(frozen=True, slots=True, kw_only=True)
class TrainingPlan:
    """How a device trains: passes over its samples, batch size, and the step graph's scalars.

    ``seed`` is the device's own and ``version`` the number of the version it starts from: both are 0 in a
    task manifest and filled in where training begins. ``max_steps`` 0 means no limit; ``clip`` is the
    global gradient norm (0: no clipping) and ``mu`` the FedProx weight (Li et al., 2020).
    """

    epochs: int = 1
    batch_size: int = 32
    lr: float = 0.1
    momentum: float = 0.0
    mu: float = 0.0
    clip: float = 0.0
    max_steps: int = 0
    deadline_s: float = 600.0
    seed: int = 0
    version: int = 0

    def to_body(self) -> Mapping[str, Any]:
        """The map that travels; seed and version do not."""
        return {
            "epochs": self.epochs,
            "batch": self.batch_size,
            "lr": self.lr,
            "momentum": self.momentum,
            "mu": self.mu,
            "clip": self.clip,
            "steps": self.max_steps,
            "deadline": self.deadline_s,
        }

    @classmethod
    def from_body(cls, fields: Fields) -> "TrainingPlan":
        """Read a plan.

        Raises:
            MessageError: a field is missing, ill-typed or out of range.
        """
        return cls(
            epochs=fields.integer("epochs", low=1, high=10_000),
            batch_size=fields.integer("batch", low=1, high=1 << 20),
            lr=fields.number("lr", low=0.0),
            momentum=fields.number("momentum", low=0.0, high=1.0),
            mu=fields.number("mu", low=0.0),
            clip=fields.number("clip", low=0.0),
            max_steps=fields.integer("steps"),
            deadline_s=fields.number("deadline", low=1.0, high=7 * 86400.0),
        )
