"""The fold rules: everything besides states and updates that a version's bits depend on.

They are journalled with each version, under the sha256 of their canonical JSON, so that an audit years
later folds as the coordinator did.
"""

import dataclasses
import hashlib
import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from broker_coordinator.aggregation.aggregator_registry import AnyAggregator, aggregator_for
from broker_coordinator.aggregation.optimizer_registry import server_optimizer_for
from broker_coordinator.aggregation.server_optimizer import ServerOptimizer
from broker_coordinator.aggregation.staleness import StalenessWeight, constant, hinge, polynomial
from fl_protocol.errors import ConfigError, LayoutError, StorageError
from fl_protocol.layout import TensorLayout

__all__ = ["ClipRule", "DampingRule", "FoldRules", "StalenessRule"]

_STALENESS: dict[str, Callable[["StalenessRule"], StalenessWeight]] = {
    "constant": lambda rule: constant(),
    "polynomial": lambda rule: polynomial(rule.exponent),
    "hinge": lambda rule: hinge(rule.grace, rule.slope),
}

_UNSAID: Mapping[str, Mapping[str, float]] = {"ca2fl": {"sum_bits": 32}}
"""What rules are about that do not say it: it was the only way, and their versions replay by it."""


@dataclass(frozen=True, slots=True, kw_only=True)
class StalenessRule:
    """``kind`` constant | polynomial (``exponent``) | hinge (``grace``, ``slope``): see ``staleness``."""

    kind: str = "polynomial"
    exponent: float = 0.5
    grace: int = 0
    slope: float = 0.0

    def weight(self) -> StalenessWeight:
        """The staleness weight; raises ConfigError."""
        if self.kind not in _STALENESS:
            raise ConfigError(f"unknown staleness rule {self.kind!r}: use one of {', '.join(_STALENESS)}")
        return _STALENESS[self.kind](self)


@dataclass(frozen=True, slots=True, kw_only=True)
class DampingRule:
    """No version steps further than ``margin * pi / (2 m + 1)``, m its updates' mean staleness: beyond
    that a delayed step overshoots for ever (see ``fold.damping``). A fleet that has far more devices at
    work than a version takes is slowed down by it, and needs no tuning."""

    enabled: bool = True
    margin: float = 0.9


@dataclass(frozen=True, slots=True, kw_only=True)
class ClipRule:
    """Norms above ``factor`` times the median of the last ``window`` ones are clipped to it; off until the
    window holds ``minimum_updates`` of ``minimum_devices`` devices, or for good (``enabled``). Where it is
    enabled running statistics are limited too: see ``running_statistics``."""

    enabled: bool = True
    factor: float = 2.0
    window: int = 64
    minimum_updates: int = 20
    minimum_devices: int = 5


@dataclass(frozen=True, slots=True, kw_only=True)
class FoldRules:
    """How updates become the next version. ``codec`` is the one the task asks for; each update is decoded
    by the codec of its own header. The options are those of the registries; in the text only where there
    are any, so that rules written before there were options keep their name."""

    layout: TensorLayout
    codec: str
    max_examples: int
    aggregator: str = "mean"
    staleness: StalenessRule = field(default_factory=StalenessRule)
    optimizer: str = "sgd"
    server_lr: float = 1.0
    damping: DampingRule = field(default_factory=DampingRule)
    clip: ClipRule = field(default_factory=ClipRule)
    denominator: str = "examples"
    aggregator_options: Mapping[str, float] = field(default_factory=dict)
    optimizer_options: Mapping[str, float] = field(default_factory=dict)

    def __hash__(self) -> int:
        return hash(self.to_json())

    def make_aggregator(self) -> AnyAggregator:
        """The aggregator; raises ConfigError."""
        unsaid = _UNSAID.get(self.aggregator, {})
        return aggregator_for(self.aggregator, {**unsaid, **self.aggregator_options})

    @property
    def cached_versions(self) -> int:
        """How many versions back a version's own updates are called upon again; 0 for most rules."""
        age = int(self.aggregator_options.get("age", 0))
        return age + 1 if age else 0

    def make_optimizer(self) -> ServerOptimizer:
        """The server optimizer; raises ConfigError."""
        return server_optimizer_for(self.optimizer, self.server_lr, self.optimizer_options)

    def to_json(self) -> str:
        """The canonical text: sorted keys, no spaces."""
        body = {
            part.name: getattr(self, part.name) for part in dataclasses.fields(self) if part.name != "layout"
        }
        body["staleness"] = dataclasses.asdict(self.staleness)
        body["damping"] = dataclasses.asdict(self.damping)
        body["clip"] = dataclasses.asdict(self.clip)
        body["layout"] = self.layout.entries
        for options in ("aggregator_options", "optimizer_options"):
            if body[options]:
                body[options] = dict(body[options])
            else:
                del body[options]
        return json.dumps(body, sort_keys=True, separators=(",", ":"))

    @property
    def name(self) -> str:
        """The sha256 of the text, in hex: what versions name their rules by."""
        return hashlib.sha256(self.to_json().encode()).hexdigest()

    @classmethod
    def from_json(cls, text: str) -> "FoldRules":
        """Read what ``to_json`` wrote; raises StorageError."""
        try:
            body: dict[str, Any] = json.loads(text)
            layout = TensorLayout.of(body.pop("layout"))
            staleness = StalenessRule(**body.pop("staleness"))
            damping = DampingRule(**body.pop("damping"))
            clip = ClipRule(**body.pop("clip"))
            return cls(layout=layout, staleness=staleness, damping=damping, clip=clip, **body)
        except (ValueError, TypeError, KeyError, AttributeError, LayoutError) as error:
            raise StorageError(f"fold rules that cannot be read: {error}") from None
