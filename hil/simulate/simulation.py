"""``lichen.simulate``: a whole run from an artifact and what devices have, in one call."""

import contextlib
import math
import os
import shutil
import tempfile
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np

from broker_coordinator.configuration import BufferTable, FleetConfiguration
from broker_coordinator.coordinator import Coordinator
from broker_coordinator.evaluation import Evaluation
from edge_agent.configuration import GateSettings
from edge_agent.sample_form import Array, as_stored
from edge_agent.trainer import Trainer
from fl_io.configuration import check_table
from fl_protocol.codec import codec_for
from fl_protocol.errors import CodecError, ConfigError
from fl_protocol.loopback import Link
from hil.simulate.attack import Attack, AttackingTrainer, attack_of
from hil.simulate.availability import Always, Availability, Diurnal, availability_of
from hil.simulate.broker_medium import BrokerMedium
from hil.simulate.device_class import DeviceClass, classes_of, drawn
from hil.simulate.fleet import DevicePlan, Dropout, Moment, VirtualFleet, rare_collections
from hil.simulate.machine import Battery, NightCharger, WindowCharger
from hil.simulate.measure import WORST_GROUP, Measure
from hil.simulate.result import SimulationResult, VersionRow
from hil.simulate.share import Share
from hil.simulate.training import split_held_out
from models.runtime import PREFERENCE, TrainingArtifact

__all__ = ["DEVICES_HELD_OUT", "Classes", "Devices", "Progress", "classes_from", "simulate"]

Pair: TypeAlias = tuple[Any, Any]
Devices: TypeAlias = Callable[[int, int], Iterable[Pair | Share]] | Sequence[Pair | Share]
"""``devices(n, seed)`` yields (x, y) for each device, or its ``Share`` of rows that all draw from; or the
pairs themselves."""
Classes: TypeAlias = Sequence[DeviceClass | str] | Mapping[str, Any]
"""Classes, names of those that come along, or tables by name."""
Progress: TypeAlias = Callable[[VirtualFleet], None]
"""Called after each moment of virtual time."""

DEVICES_HELD_OUT = 0.2
"""What devices keep from training where there are no samples to evaluate with."""
LONGEST_S = 400 * 86400.0
_SHARED_MEMORY = Path("/dev/shm")
_MARK = "simulation"
"""The sign that a folder is a simulation's: a coordinator's own looks much like it."""


def simulate(
    artifact: TrainingArtifact | Path | str,
    devices: Devices,
    *,
    count: int,
    versions: int = 50,
    codec: str = "eden(bits=1)",
    seed: int = 0,
    plan: Mapping[str, Any] | None = None,
    fleet: Mapping[str, Any] | None = None,
    evaluation: Pair | None = None,
    users: Any = None,
    held_out: float | None = None,
    classes: Classes = (),
    availability: Availability | Mapping[str, Any] | str = "always",
    attack: Attack | Mapping[str, Any] | str | None = None,
    gates: GateSettings | Mapping[str, Any] | None = None,
    dropout: float = 0.0,
    away_s: float = 60.0,
    trainer: Callable[[], Trainer] | None = None,
    target: float | None = None,
    longest_s: float = LONGEST_S,
    runtimes: Sequence[str] = PREFERENCE,
    stacked: bool = False,
    name: str = "simulation",
    state: Path | str | None = None,
    progress: Progress | None = None,
    base: Path = Path("simulation"),
    broker: str = "",
) -> SimulationResult:
    """Run a fleet of ``count`` virtual devices until ``versions`` are made.

    Devices are deployed agents in all but clock, connection, disk and worker: they fetch, train, encode,
    keep, send and delete as those do, and the coordinator is the deployed one on the state folder ``state``
    (thrown away where None; that of an earlier run is replaced). The same arguments give the same bytes.

    ``plan`` and ``fleet`` take tables of fleet.toml: ``plan={"epochs": 2}, fleet={"buffer": {"size": 50}}``.
    ``evaluation`` is (x, y) that the coordinator measures each version with, as a whole and for each of
    ``users``, who tell whose each of its rows is (for each class where there are none); without it devices
    hold out a fifth of their rows (or ``held_out``) and report. ``classes``, ``availability`` and ``attack``
    are what the modules of their names make, or take, ``gates`` is the table of agent.toml; ``dropout`` is
    the share of trainings in which the device's power fails, for ``away_s``. ``trainer`` makes what trains
    on each device in place of the artifact's own graph. The run ends early once a measured accuracy is at
    ``target``, or after ``longest_s`` virtual seconds. ``stacked`` computes trainings of the same version
    together, and in NumPy, whatever
    ``runtimes`` says: the same to the rounding of float32. Paths in tables are relative to the file ``base``,
    which errors name too. ``broker`` is the URL of a real one (mqtt:// or mqtts://): each device has a
    connection of its own to it, and the order of things is then the network's, no more the seed's.

    Raises:
        ConfigError: settings that do not exist or do not go together.
        ArtifactError, RuntimeUnavailable: the artifact is damaged, or nothing here can run it.
        TransportError: no ``broker`` answers, or it refuses devices, falls silent or goes away.
    """
    if stacked:
        if trainer is not None:
            raise ConfigError(
                "a trainer of your own cannot be stacked", hint="leave stacked out: only graphs can"
            )
        runtimes = ("numpy",)
    if count < 1 or versions < 1:
        raise ConfigError(f"{count} devices, {versions} versions", hint="at least one of each")
    opened = artifact if isinstance(artifact, TrainingArtifact) else TrainingArtifact.open(artifact)
    with _folders(state) as (folder, kept), rare_collections():
        if opened.path is None:
            opened = opened.save(folder / "artifact")
        configuration = _configuration(fleet, plan, codec, versions, artifact=opened, state=kept, base=base)
        _check_enough(configuration.buffer, count)
        measure = _measure(opened, evaluation, users, folder, runtimes)
        share = held_out if held_out is not None else 0.0 if evaluation is not None else DEVICES_HELD_OUT
        plans = _plans(
            opened,
            devices(count, seed) if callable(devices) else devices,
            count=count,
            seed=seed,
            held_out=share,
            classes=classes_from(classes, path=base),
            availability=_availability(availability, base),
            gated=gates is not None,
        )
        medium = BrokerMedium(broker, devices=count, tls=configuration.tls.files) if broker else None
        if medium is not None:
            configuration = replace(configuration, fleet=medium.fleet)
        whole = VirtualFleet(
            configuration,
            opened,
            plans,
            seed=seed,
            runtimes=tuple(runtimes),
            evaluate=measure.evaluate if measure is not None else None,
            make_trainer=_trainers(attack, trainer, seed, base),
            dropout=Dropout(probability=dropout, away_s=away_s) if dropout else None,
            stacked=stacked,
            medium=medium,
            gates=_gates(gates, base),
        )
        try:
            if len(whole.devices) != count:
                raise ConfigError(f"samples are there for {len(whole.devices)} devices, not for {count}")
            started = time.perf_counter()
            whole.run(until_s=longest_s, stop=_at(target), after_turn=progress)
            wall_s = time.perf_counter() - started
            return _result(whole, opened, configuration, measure, name=name, target=target, wall_s=wall_s)
        finally:
            whole.close()


@contextlib.contextmanager
def _folders(state: Path | str | None) -> Iterator[tuple[Path, Path]]:
    """A folder that is thrown away, in memory where possible, and the coordinator's."""
    base = _SHARED_MEMORY if _SHARED_MEMORY.is_dir() else None
    with tempfile.TemporaryDirectory(prefix="lichen-", dir=base, ignore_cleanup_errors=True) as made:
        folder = Path(made)
        yield folder, _fresh(Path(state)) if state is not None else folder / "coordinator"


def _fresh(state: Path) -> Path:
    """An empty folder; only what a simulation left is cleared for it.

    Raises:
        ConfigError: something else is in there.
    """
    if (state / _MARK).exists():
        shutil.rmtree(state)
    elif state.exists() and any(state.iterdir()):
        raise ConfigError(
            f"{state} is not empty, and no simulation's", hint="name a folder that is not there"
        )
    state.mkdir(parents=True, exist_ok=True)
    (state / _MARK).touch()
    return state


def _check_enough(buffer: BufferTable, devices: int) -> None:
    if not buffer.flush_after_s and buffer.size > devices:
        raise ConfigError(
            f"[fleet.buffer] size {buffer.size} of {devices} devices: each counts once for a version, and"
            " without a deadline it would wait for ever",
            hint=f"size = {devices}, or flush_after_s above 0",
        )


def _configuration(
    fleet: Mapping[str, Any] | None,
    plan: Mapping[str, Any] | None,
    codec: str,
    versions: int,
    *,
    artifact: TrainingArtifact,
    state: Path,
    base: Path,
) -> FleetConfiguration:
    tables = {
        key: dict(value) if isinstance(value, Mapping) else value for key, value in (fleet or {}).items()
    }
    for key in ("plan", "update"):
        if not isinstance(tables.get(key, {}), dict):
            raise ConfigError(f"{base}: fleet: {key} must be a table")
    # Absolute: a configuration's own paths are from its file's folder, these from where we are.
    paths = {"state": os.path.abspath(state), "artifact": os.path.abspath(str(artifact.path))}
    own = {"fleet": "simulation", **paths}
    tables["plan"] = {**tables.get("plan", {}), **(plan or {})}
    tables["update"] = {"codec": codec, **tables.get("update", {})}
    configuration = check_table(
        {**tables, **own, "stop_after_versions": versions}, FleetConfiguration, path=base, within=("fleet",)
    )
    try:
        codec_for(configuration.update.codec)
    except CodecError as error:
        raise ConfigError(f"{base}: codec: {error.args[0]}", hint=error.hint) from None
    return configuration


def _measure(
    artifact: TrainingArtifact, evaluation: Pair | None, users: Any, folder: Path, runtimes: Sequence[str]
) -> Measure | None:
    if evaluation is None:
        return None
    x, y = (np.asarray(rows) for rows in evaluation)
    whose = None if users is None else np.asarray(users)
    return Measure(artifact, x, y, users=whose, folder=folder, runtimes=runtimes)


def classes_from(classes: Classes, *, path: Path = Path("classes")) -> tuple[DeviceClass, ...]:
    """Device classes as they are, by tables or by names; one that is fast where there is none."""
    if not classes:
        return (DeviceClass(name="device"),)
    if isinstance(classes, Mapping):
        return classes_of(classes, path=path)
    names = [one for one in classes if isinstance(one, str)]
    made = tuple(one for one in classes if isinstance(one, DeviceClass))
    return made + (classes_of(names, path=path) if names else ())


def _availability(said: Availability | Mapping[str, Any] | str, base: Path) -> Availability:
    return availability_of(said, path=base) if isinstance(said, str | Mapping) else said


def _plans(
    artifact: TrainingArtifact,
    pairs: Iterable[Pair | Share],
    *,
    count: int,
    seed: int,
    held_out: float,
    classes: tuple[DeviceClass, ...],
    availability: Availability,
    gated: bool,
) -> Iterator[DevicePlan]:
    stored = _Stored(artifact)
    always = isinstance(availability, Always)
    for number, pair in enumerate(pairs):
        if number >= count:
            return
        kind = drawn(classes, number, seed)
        yield DevicePlan(
            samples=split_held_out(stored.share(pair), held_out, seed=seed * 1_000_003 + number),
            step_s=kind.step_s,
            start_s=kind.start_s,
            link=_link(kind),
            windows=None if always else availability.windows(number, seed),
            memory_mb=kind.memory_mb if gated else None,
            battery=_battery(kind, availability, number, seed) if gated and kind.battery else None,
        )


def _battery(kind: DeviceClass, availability: Availability, number: int, seed: int) -> Battery:
    """One that charges at night where the device is always on, else while it lies still: that is when it is
    on (``diurnal``), or when it is off."""
    charger = (
        NightCharger()
        if isinstance(availability, Always)
        else WindowCharger(charges_on=isinstance(availability, Diurnal))
    )
    return Battery(charger, hours=kind.battery_h, seed=seed, device=number)


def _gates(said: GateSettings | Mapping[str, Any] | None, base: Path) -> GateSettings | None:
    if said is None or isinstance(said, GateSettings):
        return said
    return check_table(dict(said), GateSettings, path=base, within=("gates",))


class _Stored:
    """Samples as the devices of a fleet store them, in the dtypes of the artifact's inputs: those that many
    devices share, once."""

    def __init__(self, artifact: TrainingArtifact) -> None:
        self._dtypes = {entry.name: np.dtype(entry.dtype) for entry in artifact.manifest.inputs}
        self._shared: tuple[Share, Share] | None = None
        """The whole of the last share as it was given, and as it is stored."""

    def share(self, pair: Pair | Share) -> Share:
        """The rows of one device."""
        if not isinstance(pair, Share):
            x, y = pair
            return Share(self._as("x", x), self._as("y", y))
        if self._shared is None or not self._shared[0].has_rows_of(pair):
            self._shared = pair, Share(self._as("x", pair.whole_x), self._as("y", pair.whole_y))
        return replace(self._shared[1], rows=pair.rows)

    def _as(self, name: str, rows: Any) -> Array:
        stored, dtype = as_stored(rows), self._dtypes.get(name)
        return stored if dtype is None or stored.dtype == dtype else stored.astype(dtype)


def _link(kind: DeviceClass) -> Link | None:
    rates = [0.0 if math.isinf(rate) else rate for rate in (kind.up_bytes_s, kind.down_bytes_s)]
    if not any(rates) and not kind.latency_s:
        return None
    return Link(latency_s=kind.latency_s, up_bytes_s=rates[0], down_bytes_s=rates[1])


def _trainers(
    attack: Attack | Mapping[str, Any] | str | None,
    own: Callable[[], Trainer] | None,
    seed: int,
    base: Path,
) -> Callable[[Trainer | None, int], Trainer] | None:
    if attack is None and own is None:
        return None
    harm = attack if isinstance(attack, Attack) or attack is None else attack_of(attack, path=base)

    def make(graph: Trainer | None, device: int) -> Trainer:
        trainer = own() if own is not None else graph
        if trainer is None:
            raise ConfigError("the artifact holds weights alone", hint="give a trainer of your own")
        if harm is not None and harm.made_by(device, seed):
            return AttackingTrainer(trainer, harm, device=device, seed=seed)
        return trainer

    return make


def _at(target: float | None) -> Callable[[VirtualFleet], bool] | None:
    if target is None:
        return None

    def reached(fleet: VirtualFleet) -> bool:
        measured = fleet.coordinator.evaluated
        return measured is not None and (measured[1].accuracy or 0.0) >= target

    return reached


def _result(
    fleet: VirtualFleet,
    artifact: TrainingArtifact,
    configuration: FleetConfiguration,
    measure: Measure | None,
    *,
    name: str,
    target: float | None,
    wall_s: float,
) -> SimulationResult:
    coordinator: Coordinator = fleet.coordinator
    figures = coordinator.figures()
    history = tuple(_rows(fleet))
    reached = None
    if target is not None:
        reached = next((row for row in history if (row.accuracy or 0.0) >= target), None)
    return SimulationResult(
        name=name,
        devices=len(fleet.devices),
        seed=fleet.seed,
        codec=configuration.update.canonical_codec,
        parameters=artifact.layout.size,
        versions=coordinator.version.number,
        updates=figures.updates_folded,
        accepted=figures.updates_accepted,
        refused=figures.refused,
        quarantined=figures.quarantined,
        devices_heard=fleet.devices_heard,
        accuracy=figures.accuracy,
        accuracy_source=figures.accuracy_source,
        metrics=figures.metrics,
        groups_of=measure.groups_of if measure is not None and measure.by_group else "",
        by_group=dict(measure.by_group) if measure is not None else {},
        bytes_up=fleet.meter.up,
        bytes_down=fleet.meter.down,
        payload_bytes=fleet.payload_bytes,
        virtual_s=fleet.clock.monotonic(),
        state_hash=coordinator.version.digest.hex(),
        trainings=fleet.trainings.done,
        encoded=fleet.encoded,
        losses=sum(device.losses for device in fleet.devices),
        target=target,
        reached=reached,
        history=history,
        wall_s=wall_s,
    )


def _rows(fleet: VirtualFleet) -> Iterator[VersionRow]:
    for moment in fleet.history:
        said = _evaluation(fleet, moment)
        yield VersionRow(
            version=moment.version,
            virtual_s=moment.virtual_s,
            updates=moment.updates,
            bytes_up=moment.bytes_up,
            bytes_down=moment.bytes_down,
            accuracy=said.accuracy if said else None,
            loss=said.loss if said else None,
            worst_group=said.means.get(WORST_GROUP) if said else None,
        )


def _evaluation(fleet: VirtualFleet, moment: Moment) -> Evaluation | None:
    """The coordinator's own figure of a version, else what devices said of it."""
    record = fleet.store.version(moment.version)
    own = Evaluation.from_metrics(record.metrics) if record is not None else None
    return own or Evaluation.of_devices(fleet.store.device_evaluation(moment.version))
