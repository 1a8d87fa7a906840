"""FLEET.toml: what an operator says about a fleet. Each table is a dataclass; unknown keys are faults.

Here are the tables on how a fleet learns; those on how its coordinator is run are in ``service_tables``.
"""

from dataclasses import dataclass, field
from pathlib import Path

from broker_coordinator.buffer import BUFFERS
from broker_coordinator.compatibility import (
    AGGREGATOR_OPTIONS,
    OPTIMIZER_OPTIONS,
    USUAL_LR,
    given,
    kind_rules,
    together,
    usable_codec,
)
from broker_coordinator.selection import LeaseSelection, RoundSelection, Selection, cohort
from broker_coordinator.service_tables import (
    HorizonTable,
    HttpTable,
    IdentityTable,
    IngestTable,
    PublishTable,
    RetentionTable,
    TlsTable,
)
from fl_io.configuration import check_rules, read_configuration
from fl_protocol.codec.spec import CodecSpec
from fl_protocol.errors import CodecError
from fl_protocol.plan import TrainingPlan
from fl_protocol.task import Pacing
from fl_protocol.topics import valid_name

__all__ = [
    "AggregatorTable",
    "BufferTable",
    "DefenceTable",
    "FleetConfiguration",
    "HorizonTable",
    "HttpTable",
    "IdentityTable",
    "IngestTable",
    "PlanTable",
    "PublishTable",
    "RetentionTable",
    "SelectionTable",
    "ServerTable",
    "StalenessTable",
    "TlsTable",
    "UpdateTable",
    "read_fleet",
]

MOST_AGE = 10_000
MOST = 10**9
"""Of any count that devices get to read."""
SELECTIONS = ("auto", "open", "random", "fair", "train")
IN_FLIGHT_PER_K = 3
"""A full step at high staleness diverges: in flight stays near three buffers."""
IN_FLIGHT_FEDASYNC = 10
"""Of versions of one update each: three in flight, and soon stragglers alone would hold the places. Its steps
are damped by its mixing and by their staleness."""


@dataclass(frozen=True, slots=True, kw_only=True)
class PlanTable:
    """``[plan]``: how a device trains. See ``TrainingPlan``."""

    epochs: int = 1
    batch_size: int = 32
    lr: float = 0.1
    momentum: float = 0.0
    mu: float = 0.0
    clip: float = 0.0
    max_steps: int = 0
    deadline_s: float = 600.0

    def __post_init__(self) -> None:
        check_rules(
            (1 <= self.epochs <= 10_000, "epochs must be from 1 to 10000"),
            (1 <= self.batch_size <= 1 << 20, "batch_size must be from 1 to 1048576"),
            (0 <= self.lr <= 1e6, "lr must be from 0 to 1e6"),
            (0 <= self.momentum <= 1, "momentum must be from 0 to 1"),
            (0 <= self.mu <= 1e6 and 0 <= self.clip <= 1e6, "mu and clip must be from 0 to 1e6"),
            (0 <= self.max_steps <= MOST, f"max_steps must be from 0 to {MOST}"),
            (1 <= self.deadline_s <= 7 * 86400, "deadline_s must be from 1 second to 7 days"),
        )

    @property
    def plan(self) -> TrainingPlan:
        """The plan as it travels."""
        return TrainingPlan(
            epochs=self.epochs,
            batch_size=self.batch_size,
            lr=self.lr,
            momentum=self.momentum,
            mu=self.mu,
            clip=self.clip,
            max_steps=self.max_steps,
            deadline_s=self.deadline_s,
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class UpdateTable:
    """``[update]``: how an update travels, and the most examples one may count."""

    codec: str = "eden(bits=1)"
    max_examples: int = 100_000

    def __post_init__(self) -> None:
        check_rules((1 <= self.max_examples <= MOST, f"max_examples must be from 1 to {MOST}"))
        try:
            CodecSpec.parse(self.codec)
            usable_codec(self.codec)
        except CodecError as error:
            raise ValueError(f"codec: {error}") from None

    @property
    def canonical_codec(self) -> str:
        """The codec's one spelling, as manifests and update headers hold it."""
        return str(CodecSpec.parse(self.codec))


@dataclass(frozen=True, slots=True, kw_only=True)
class SelectionTable:
    """``[selection]``: who trains. ``in_flight`` 0 means three buffers, ten with ``fedasync``, and in
    rounds the cohort.

    ``open`` draws ``participation`` of the fleet by hash; ``random`` and ``fair`` (fewest turns first) grant
    leases. ``auto`` grants leases at random where more devices are on line than may be in flight, else it is
    open; with a ``participation`` below 1 it is open. ``train`` is an older name of ``random``.
    """

    kind: str = "auto"
    participation: float = 1.0
    spread_s: float = 0.0
    in_flight: int = 0
    lease_s: float = 600.0

    def __post_init__(self) -> None:
        check_rules(
            (self.kind in SELECTIONS, "kind must be auto, open, random or fair"),
            (0 < self.participation <= 1, "participation must be above 0 and at most 1"),
            (0 <= self.spread_s <= 86400, "spread_s must be from 0 to 86400"),
            (self.in_flight >= 0, "in_flight must not be negative"),
            (1 <= self.lease_s <= 7 * 86400, "lease_s must be from 1 second to 7 days"),
        )

    @property
    def pacing(self) -> Pacing:
        """The pacing as it travels."""
        return Pacing(participation=self.participation, spread_s=self.spread_s, by_lease=self.leases)

    @property
    def leases(self) -> bool:
        """Whether every version is by lease."""
        return self.kind in ("random", "fair", "train")

    @property
    def automatic(self) -> bool:
        """Whether the number of devices on line decides, version by version."""
        return self.kind == "auto" and self.participation == 1.0


@dataclass(frozen=True, slots=True, kw_only=True)
class BufferTable:
    """``[buffer]``: a version closes at ``size`` updates, or after ``flush_after_s`` with ``min_updates``.

    ``fedbuff`` buffers what comes. ``fedasync`` makes a version of each update (``size`` is 1), ``mixing`` is
    its alpha. ``rounds`` asks a cohort of ``size * over_selection`` for each version; whom a round leaves
    behind gives up and may be asked again at once (``late = refuse``), or is waited for, and what comes late
    is taken with its staleness (``accept``).
    """

    kind: str = "fedbuff"
    size: int = 10
    flush_after_s: float = 600.0
    min_updates: int = 1
    over_selection: float = 1.3
    late: str = "refuse"
    mixing: float = 0.6

    def __post_init__(self) -> None:
        rounds = self.kind == "rounds"
        check_rules(
            (self.kind in BUFFERS, f"kind must be one of {', '.join(BUFFERS)}"),
            (self.kind != "fedasync" or self.size == 1, "fedasync makes a version of each update: size = 1"),
            (1 <= self.over_selection <= 10, "over_selection must be from 1 to 10"),
            (
                not (rounds and self.over_selection > 1 and self.flush_after_s == 0),
                "rounds that select more than they need have a deadline: flush_after_s = 600,"
                " or over_selection = 1 to wait for all",
            ),
            (self.late in ("accept", "refuse"), "late must be accept or refuse"),
            (0 < self.mixing <= 1, "mixing must be above 0 and at most 1"),
            (self.size >= 1, "size must be at least 1"),
            (self.flush_after_s >= 0, "flush_after_s must not be negative (0: no deadline)"),
            (1 <= self.min_updates <= self.size, "min_updates must be from 1 to size"),
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class AggregatorTable:
    """``[aggregator]``: ``mean``, ``median``, ``trimmed_mean`` (``trim``: the share left out on each side),
    ``krum`` (``attackers``; ``chosen`` above 1 is multi-Krum), ``ca2fl`` (``age``: versions that a device's
    last update is called upon), or a class of your own, ``module:Class``."""

    kind: str = "mean"
    trim: float | None = None
    attackers: int | None = None
    chosen: int | None = None
    age: int | None = None

    def __post_init__(self) -> None:
        check_rules(
            *kind_rules("kind", self.kind, AGGREGATOR_OPTIONS, self._given),
            (self.trim is None or 0 <= self.trim < 0.5, "trim must be at least 0 and below 0.5"),
            (self.attackers is None or self.attackers >= 0, "attackers must not be negative"),
            (self.chosen is None or self.chosen >= 1, "chosen must be at least 1"),
            (self.age is None or 1 <= self.age <= MOST_AGE, f"age must be from 1 to {MOST_AGE}"),
        )

    @property
    def options(self) -> dict[str, float]:
        """Those of this kind, as the fold rules keep them."""
        return {**AGGREGATOR_OPTIONS.get(self.kind, {}), **self._given}

    @property
    def _given(self) -> dict[str, float]:
        return given(trim=self.trim, attackers=self.attackers, chosen=self.chosen, age=self.age)


@dataclass(frozen=True, slots=True, kw_only=True)
class StalenessTable:
    """``[staleness]``: ``constant``, ``polynomial`` (exponent), or ``hinge`` (grace, slope)."""

    kind: str = "polynomial"
    exponent: float = 0.5
    grace: int = 4
    slope: float = 0.3

    def __post_init__(self) -> None:
        check_rules(
            (
                self.kind in ("constant", "polynomial", "hinge"),
                "kind must be constant, polynomial or hinge",
            ),
            (self.exponent >= 0, "exponent must not be negative"),
            (self.grace >= 0 and self.slope >= 0, "grace and slope must not be negative"),
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class ServerTable:
    """``[server]``: the step from the aggregate to the next version, by ``sgd``, ``momentum``, ``adagrad``,
    ``adam`` or ``yogi``. What is left out is the optimizer's usual: see ``compatibility``."""

    optimizer: str = "sgd"
    lr: float | None = None
    beta1: float | None = None
    beta2: float | None = None
    tau: float | None = None

    def __post_init__(self) -> None:
        betas = [beta for beta in (self.beta1, self.beta2) if beta is not None]
        check_rules(
            *kind_rules("optimizer", self.optimizer, OPTIMIZER_OPTIONS, self._given),
            (self.lr is None or 0 < self.lr <= 1e6, "lr must be above 0 and at most 1e6"),
            (all(0 <= beta < 1 for beta in betas), "beta1 and beta2 must be at least 0 and below 1"),
            (self.tau is None or 1e-12 <= self.tau <= 1e6, "tau must be from 1e-12 to 1e6"),
        )

    @property
    def learning_rate(self) -> float:
        """``lr``, or the optimizer's usual one."""
        return USUAL_LR[self.optimizer] if self.lr is None else self.lr

    @property
    def options(self) -> dict[str, float]:
        """Those of this optimizer, as the fold rules keep them."""
        return {**OPTIMIZER_OPTIONS[self.optimizer], **self._given}

    @property
    def _given(self) -> dict[str, float]:
        return given(beta1=self.beta1, beta2=self.beta2, tau=self.tau)


@dataclass(frozen=True, slots=True, kw_only=True)
class DefenceTable:
    """``[defence]``: ``clip`` bounds an update at twice the running median norm, and averaged running
    statistics at eight times the median distance from their median."""

    clip: bool = True


@dataclass(frozen=True, slots=True, kw_only=True)
class FleetConfiguration:
    """A whole FLEET.toml. Paths are absolute.

    ``broker`` is a URL, ``auto`` or ``auto:PORT``. ``held_out`` is an npz file with arrays ``x`` and ``y``.
    ``stop_after_versions`` 0 goes on for ever; a run that stops takes the updates under way first.
    """

    fleet: str
    state: Path
    artifact: Path
    task: str = "main"
    broker: str = "auto"
    held_out: Path | None = None
    stop_after_versions: int = 0
    plan: PlanTable = field(default_factory=PlanTable)
    update: UpdateTable = field(default_factory=UpdateTable)
    selection: SelectionTable = field(default_factory=SelectionTable)
    buffer: BufferTable = field(default_factory=BufferTable)
    aggregator: AggregatorTable = field(default_factory=AggregatorTable)
    staleness: StalenessTable = field(default_factory=StalenessTable)
    server: ServerTable = field(default_factory=ServerTable)
    defence: DefenceTable = field(default_factory=DefenceTable)
    horizon: HorizonTable = field(default_factory=HorizonTable)
    retention: RetentionTable = field(default_factory=RetentionTable)
    publish: PublishTable = field(default_factory=PublishTable)
    ingest: IngestTable = field(default_factory=IngestTable)
    http: HttpTable = field(default_factory=HttpTable)
    tls: TlsTable = field(default_factory=TlsTable)
    identity: IdentityTable = field(default_factory=IdentityTable)

    def __post_init__(self) -> None:
        check_rules(
            (valid_name(self.fleet), "fleet must be 1 to 64 of A-Z a-z 0-9 . _ -"),
            (valid_name(self.task), "task must be 1 to 64 of A-Z a-z 0-9 . _ -"),
            (self.stop_after_versions >= 0, "stop_after_versions must not be negative"),
            (
                self.buffer.kind != "rounds" or self.selection.leases or self.selection.automatic,
                'rounds ask their cohort: [selection] kind = "random" or "fair"',
            ),
            (
                self.buffer.kind != "rounds" or not 0 < self.selection.in_flight < self._cohort,
                f"a round asks {self._cohort} devices: [selection] in_flight = {self._cohort}, or 0 for that",
            ),
            (
                self.aggregator.kind != "ca2fl" or self.selection.leases,
                f"[aggregator] ca2fl collapses without leases, and [selection] kind is {self.selection.kind};"
                " nearest is kind = 'random'",
            ),
            *together(
                self.aggregator.kind,
                self.aggregator.options,
                codec=self.update.codec,
                size=self.buffer.size,
                least=self.buffer.min_updates if self.buffer.flush_after_s else self.buffer.size,
            ),
        )

    @property
    def in_flight(self) -> int:
        """How many leases may be held at a time."""
        if self.buffer.kind == "rounds":
            return self.selection.in_flight or self._cohort
        usual = IN_FLIGHT_FEDASYNC if self.buffer.kind == "fedasync" else IN_FLIGHT_PER_K * self.buffer.size
        return self.selection.in_flight or usual

    @property
    def choice(self) -> Selection:
        """Who is asked for updates of a version that is by lease."""
        fair = self.selection.kind == "fair"
        if self.buffer.kind == "rounds":
            return RoundSelection(size=self.in_flight, fair=fair)
        return LeaseSelection(in_flight=self.in_flight, fair=fair)

    @property
    def horizon_versions(self) -> int:
        """How many versions ago an update that is taken may have begun."""
        refused = self.buffer.kind == "rounds" and self.buffer.late == "refuse"
        return 0 if refused else self.horizon.versions

    @property
    def server_lr(self) -> float:
        """The server's step; of ``fedasync``, times its mixing."""
        return self.server.learning_rate * (self.buffer.mixing if self.buffer.kind == "fedasync" else 1.0)

    @property
    def _cohort(self) -> int:
        return cohort(self.buffer.size, self.buffer.over_selection)


def read_fleet(path: Path) -> FleetConfiguration:
    """Read FLEET.toml; raises ConfigError with every fault."""
    return read_configuration(path, FleetConfiguration)
