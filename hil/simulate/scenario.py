"""Scenario files: a simulated fleet as TOML.

Plain keys are those of ``Scenario``; ``[classes.NAME]``, ``[availability]`` and ``[attack]`` are tables of
the modules of their names, ``[gates]`` is that of agent.toml, and ``[fleet.TABLE]`` are the tables of
fleet.toml. ``--set fleet.buffer.size=50`` puts a key in place of the file's.
"""

import difflib
import tomllib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fl_io.configuration import check_configuration
from fl_io.users_code import imported, look_in
from fl_protocol.errors import ArtifactError, ConfigError
from hil.simulate.device_class import DeviceClass, drawn
from hil.simulate.device_data import DeviceSamplesOf, own_devices, partitioned
from hil.simulate.result import SimulationResult
from hil.simulate.share import Share
from hil.simulate.simulation import Progress, simulate
from hil.simulate.simulation import classes_from as _classes_from
from hil.workload import HELD_OUT_SHARE, Samples, read_samples
from models.runtime import PREFERENCE, TrainingArtifact
from models.zoo.catalogue import find

__all__ = ["READY", "SCENARIOS", "Scenario", "read_scenario", "run_scenario"]

SCENARIOS = Path(__file__).parents[1] / "scenarios"
READY = tuple(sorted(path.stem for path in SCENARIOS.glob("*.toml")))
"""Those that come along."""
_TABLES = ("attack", "availability", "classes", "fleet", "gates")
_DATA = ("digits", "motion", "shuttle")


@dataclass(frozen=True, slots=True, kw_only=True)
class Scenario:
    """One scenario. ``model`` is a name of the zoo or an artifact's folder; ``hidden`` above 0 builds the
    digits' MLP of that width instead. ``data`` is ``digits``, ``motion``, ``shuttle`` or an npz file of ``x``
    and ``y``, dealt out under ``partition``, ``per_device`` to each where that is not 0; or ``own`` names a
    function ``module:function(n, seed)`` that yields (x, y) for each device.
    """

    model: str = "digits-mlp"
    hidden: int = 0
    data: str = "digits"
    own: str = ""
    partition: str = "iid"
    per_device: int = 0
    evaluation: str = ""
    """``module:function()`` that gives (x, y); ``none`` has devices hold out a share instead."""
    held_out: float = 0.2
    """What devices hold out where the coordinator has nothing to measure with."""
    devices: int = 100
    versions: int = 50
    seed: int = 0
    target: float = 0.0
    longest_days: float = 400.0
    dropout: float = 0.0
    away_s: float = 60.0
    trainer: str = ""
    runtimes: tuple[str, ...] = tuple(PREFERENCE)
    stacked: bool = False
    summary: str = ""

    def __post_init__(self) -> None:
        faults = [
            fault
            for holds, fault in (
                (1 <= self.devices <= 1_000_000, "devices must be from 1 to 1000000"),
                (1 <= self.versions <= 1_000_000, "versions must be from 1 to 1000000"),
                (self.per_device >= 0 and self.hidden >= 0, "per_device and hidden must not be negative"),
                (0 <= self.target <= 1, "target is an accuracy from 0 to 1 (0: none)"),
                (0 <= self.held_out < 1, "held_out is a share from 0, below 1"),
                (0 <= self.dropout < 1, "dropout is a share from 0, below 1"),
                (self.away_s >= 0 and self.longest_days > 0, "away_s and longest_days must be positive"),
            )
            if not holds
        ]
        if faults:
            raise ValueError("; ".join(faults))


@dataclass(frozen=True, slots=True, kw_only=True)
class Written:
    """A scenario file as read: its name, its folder, its keys and its tables."""

    name: str
    path: Path
    keys: Scenario
    tables: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)


def read_scenario(words: str, changes: Sequence[str] = ()) -> Written:
    """Read a file, or the scenario that comes along under that name; ``changes`` are ``key=value``.

    Raises:
        ConfigError: no such file, or faults in it, every one told.
    """
    path = Path(words) if words.endswith(".toml") or Path(words).exists() else SCENARIOS / f"{words}.toml"
    try:
        text = path.read_text(encoding="utf-8")
        table = tomllib.loads(text)
    except OSError as error:
        near = difflib.get_close_matches(words, READY, n=1)
        hint = f"did you mean {near[0]!r}?" if near else f"those that come along: {', '.join(READY)}"
        raise ConfigError(f"cannot read the scenario {words}: {error.strerror}", hint=hint) from None
    except ValueError as error:
        raise ConfigError(f"{path}: not a TOML file", faults=[str(error)]) from None
    for change in changes:
        _set(table, change)
    tables = {name: table.pop(name) for name in _TABLES if name in table}
    for name, value in table.items():
        if isinstance(value, dict):  # no key takes one
            near = difflib.get_close_matches(name, _TABLES, n=1)
            hint = (
                f"did you mean [{near[0]}]?" if near else f"there are {', '.join(_TABLES)}; [fleet.{name}]?"
            )
            raise ConfigError(f"{path}: a scenario has no table {name!r}", hint=hint)
    for name, value in tables.items():
        if not isinstance(value, dict):
            if name not in ("attack", "availability"):
                raise ConfigError(f"{path}: {name} must be a table")
            tables[name] = {"kind": value}
    keys = check_configuration(table, Scenario, path=path, text=text)
    return Written(name=path.stem, path=path.absolute(), keys=keys, tables=tables)


def run_scenario(
    written: Written, *, state: Path | None = None, progress: Progress | None = None, broker: str = ""
) -> SimulationResult:
    """Run a scenario; see ``simulate``.

    Raises:
        ConfigError: the scenario's parts do not fit together.
    """
    keys, tables, folder = written.keys, written.tables, str(written.path.parent)
    look_in(folder)  # for a rule of the user's too, which the coordinator loads by its name
    classes = _classes_from(tables.get("classes", ()), path=written.path)
    artifact = _artifact(keys, written.path.parent)
    found = _data(keys, written.path.parent)
    samples: DeviceSamplesOf | Sequence[Samples]
    if keys.own:
        samples = own_devices(keys.own, keys.devices, keys.seed, folder=folder)
    else:
        slow = _slow(classes, keys) if keys.partition.startswith("slow:") else None
        samples = partitioned(
            found.training,
            keys.devices,
            scheme=keys.partition,
            seed=keys.seed,
            per_device=keys.per_device,
            users=found.users,
            slow=slow,
        )
    evaluation: tuple[Any, Any] | None = None
    judges: Any = None
    if keys.evaluation and keys.evaluation != "none":
        evaluation, judges = _own_evaluation(keys.evaluation, folder)
    elif not keys.evaluation and not keys.own:
        evaluation, judges = (found.held_out.x, found.held_out.y), found.judges
    fleet = dict(tables.get("fleet", {}))
    return simulate(
        artifact,
        lambda count, seed: (_rows(samples[n]) for n in range(count)),
        count=keys.devices,
        versions=keys.versions,
        seed=keys.seed,
        fleet=fleet,
        evaluation=evaluation,
        users=judges,
        held_out=None if evaluation is not None else keys.held_out,
        classes=classes,
        availability=tables.get("availability", "always"),
        attack=tables.get("attack"),
        gates=tables.get("gates"),
        dropout=keys.dropout,
        away_s=keys.away_s,
        trainer=imported(keys.trainer, what="trainer", folder=folder) if keys.trainer else None,
        target=keys.target or None,
        longest_s=keys.longest_days * 86400.0,
        runtimes=keys.runtimes,
        stacked=keys.stacked,
        name=written.name,
        state=state,
        progress=progress,
        base=written.path,
        broker=broker,
    )


def _artifact(keys: Scenario, folder: Path) -> TrainingArtifact:
    if keys.hidden:
        from models.zoo.mlp import digits_artifact

        return digits_artifact(hidden=keys.hidden)
    place = folder / keys.model
    if (place / "manifest.json").exists():
        return TrainingArtifact.open(place)
    try:
        model = find(keys.model)
    except ArtifactError as error:
        raise ConfigError(f"model: {error.args[0]}, and no artifact is in {place}", hint=error.hint) from None
    return model.open()


@dataclass(frozen=True, slots=True, kw_only=True)
class _Found:
    """Samples to deal out and those to measure with, and whose the rows of each are, where it is known."""

    training: Samples
    held_out: Samples
    users: NDArray[Any] | None = None
    judges: NDArray[Any] | None = None


def _data(keys: Scenario, folder: Path) -> _Found:
    if keys.data == "digits":
        from models.zoo import digits

        parts = digits.split(seed=keys.seed)
        return _Found(
            training=Samples(x=parts[0].x, y=parts[0].y), held_out=Samples(x=parts[1].x, y=parts[1].y)
        )
    if keys.data == "motion":
        from models.zoo import motion

        # In time, not by person: all ten are devices, and each is asked how well the model serves them.
        earlier, later = motion.split_in_time(HELD_OUT_SHARE)
        return _Found(
            training=Samples(x=earlier.x, y=earlier.y),
            held_out=Samples(x=later.x, y=later.y),
            users=earlier.person,
            judges=later.person,
        )
    if keys.data == "shuttle":
        from models.zoo import shuttle

        normal, mixed = shuttle.split()
        usual = mixed.take(~mixed.anomaly)
        return _Found(training=Samples(x=normal.x, y=normal.x), held_out=Samples(x=usual.x, y=usual.x))
    path = folder / keys.data
    if not path.exists():
        near = difflib.get_close_matches(keys.data, _DATA, n=1)
        raise ConfigError(
            f"no data are called {keys.data!r}, and there is no such file",
            hint=f"did you mean {near[0]!r}?" if near else f"{', '.join(_DATA)}, or an npz file of x and y",
        )
    rows = read_samples(path)
    order = np.random.default_rng(keys.seed).permutation(len(rows))
    cut = max(1, round(HELD_OUT_SHARE * len(rows)))
    return _Found(training=rows.take(np.sort(order[cut:])), held_out=rows.take(np.sort(order[:cut])))


def _rows(own: Share | Samples) -> Share:
    return own if isinstance(own, Share) else Share(own.x, own.y)


def _slow(classes: Sequence[DeviceClass], keys: Scenario) -> NDArray[np.bool_]:
    """Which devices are slower than the middle of the fleet's classes."""
    steps = np.array([drawn(classes, number, keys.seed).step_s for number in range(keys.devices)])
    return np.asarray(steps > (steps.min() * steps.max()) ** 0.5, np.bool_)


def _own_evaluation(name: str, folder: str) -> tuple[tuple[Any, Any], Any]:
    function = imported(name, what="function", folder=folder)
    try:
        x, y, *users = function()
    except MemoryError:
        raise
    except Exception as error:  # whatever a user's function raises is our caller's news
        raise ConfigError(
            f"{name} gives no x and y to evaluate with: {type(error).__name__}: {error}"
        ) from error
    if len(users) > 1:
        raise ConfigError(
            f"{name} gives {2 + len(users)} values", hint="x and y, or x, y and whose each row is"
        )
    return (x, y), users[0] if users else None


def _set(table: dict[str, Any], change: str) -> None:
    """Put ``key=value`` in place; the value is TOML's, or else a text."""
    key, equals, value = change.partition("=")
    if not equals or not key.strip():
        raise ConfigError(f"{change!r} sets nothing", hint="write key=value, as in fleet.buffer.size=50")
    *way, last = key.strip().split(".")
    for word in way:
        below = table.setdefault(word, {})
        if not isinstance(below, dict):
            raise ConfigError(f"{change!r}: {word} is no table")
        table = below
    try:
        table[last] = tomllib.loads(f"value = {value}")["value"]
    except ValueError:
        table[last] = value
