"""The coordinator as a process: lock, broker, key, challenge, HTTP, signals, status file, and the loop."""

import contextlib
import json
import logging
import os
import signal
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

from broker_coordinator.compatibility import beyond_retention
from broker_coordinator.configuration import FleetConfiguration
from broker_coordinator.coordinator import Coordinator
from broker_coordinator.embedded_broker import EmbeddedBroker
from broker_coordinator.evaluation import HeldOut
from broker_coordinator.http import HttpServer
from broker_coordinator.keys import Signing, open_key
from broker_coordinator.metrics import Figures
from broker_coordinator.office import challenge, locked
from broker_coordinator.storage.sqlite_database import DATABASE_NAME
from broker_coordinator.storage.sqlite_store import SqliteStore
from fl_io.clock import SystemClock
from fl_io.mqtt import BrokerAddress, MqttTransport
from fl_io.watchdog import LONGEST_PIECE_S, Notifier, Watchdog
from fl_protocol.errors import ConfigError, StorageError
from models.runtime import TrainingArtifact, fixed_rows

__all__ = ["STATUS_FILE", "is_running", "read_status", "run_coordinator"]

STATUS_FILE = Path("run") / "status.json"
STATUS_EVERY_S = 0.25
STALLED_S = 60.0
SLOWEST_DISK = 2_000_000
"""Bytes a second: a worn SD card."""
PUBLISH_WINDOW = 512
"""A commit's receipts go out together: what the window does not hold waits for the next turn of the loop."""
KEEPALIVE_S = 60
_log = logging.getLogger("lichen.coordinator")


def run_coordinator(configuration: FleetConfiguration, *, insecure: bool = False) -> None:
    """Run until SIGTERM, SIGINT, or the last version that was asked for.

    Only ``insecure`` takes a broker without TLS, wherever it is: what listens on this machine's loopback may
    listen elsewhere too. A broker of our own listens on loopback only.

    Raises:
        ConfigError: the broker's connections are plain.
        LichenError: it cannot start (see the parts), the disk refuses, or another one took office.
    """
    state = configuration.state
    plain = _plain(configuration.broker)
    if plain:
        _accept_plain(configuration.broker, insecure=insecure)
    _warn_of_payloads(configuration)
    with contextlib.ExitStack() as stack:
        stack.enter_context(locked(state))
        artifact = TrainingArtifact.open(configuration.artifact)
        _check_batch(configuration, artifact)
        clock = SystemClock()
        watchdog = Watchdog(Notifier(), clock)
        held_out = configuration.held_out
        evaluate = HeldOut(artifact, held_out, progress=watchdog.progress).evaluate if held_out else None
        watchdog.progress(_reading_s(state / DATABASE_NAME))
        # The store comes before every other file: a folder that lost its database is not begun anew.
        store = SqliteStore.open(state)
        stack.callback(store.close)
        signing = _signing(state)
        address, broker_name = stack.enter_context(_broker(configuration))
        transport = MqttTransport(
            address,
            f"coordinator-{configuration.fleet}",
            clean=False,
            manual_ack=True,
            keepalive_s=KEEPALIVE_S,
            window=PUBLISH_WINDOW,
            tls=configuration.tls.files,
        )
        watchdog.add(transport.fault)
        coordinator = Coordinator(
            configuration,
            artifact=artifact,
            store=store,
            transport=transport,
            clock=clock,
            signing=signing,
            evaluate=evaluate,
            broker_name=broker_name,
            insecure=plain,
            progress=watchdog.progress,
        )
        _serve(coordinator, configuration, watchdog, stack)


def _reading_s(database: Path) -> float:
    """How long it may take to read all of a database, as it is before it is used, on a slow disk."""
    try:
        return LONGEST_PIECE_S + database.stat().st_size / SLOWEST_DISK
    except OSError:
        return LONGEST_PIECE_S


def _check_batch(configuration: FleetConfiguration, artifact: TrainingArtifact) -> None:
    """A batch that the .tflite graphs do not take would fail on every device that trains with them."""
    asked, most = configuration.plan.batch_size, fixed_rows(artifact)
    if most is not None and asked > most:
        raise ConfigError(
            f"[plan] batch_size is {asked}; the .tflite graphs of {artifact.manifest.name!r} take {most}",
            hint=f"set batch_size = {most} or less, or build the artifact with --batch {asked}; for a fleet "
            "without LiteRT and tflite_runtime with --runtimes onnx",
        )


def _warn_of_payloads(configuration: FleetConfiguration) -> None:
    rule, kept = configuration.aggregator, configuration.retention.versions
    if more := beyond_retention(rule.kind, rule.options, versions=kept):
        _log.warning("%s", more)


def read_status(state: Path) -> dict[str, Any]:
    """The newest status of a state folder, and whether its coordinator runs.

    Raises:
        StorageError: none has run there.
    """
    path = state / STATUS_FILE
    try:
        body: dict[str, Any] = json.loads(path.read_bytes())
    except FileNotFoundError:
        raise StorageError(
            f"no coordinator has run in {state}",
            hint="name its state folder, or start one with `lichen coordinator run`",
        ) from None
    except (OSError, ValueError) as error:
        raise StorageError(f"cannot read {path}: {error}") from None
    return {**body, "running": is_running(state)}


def is_running(state: Path) -> bool:
    """Whether a coordinator holds the state folder."""
    if not (state / "lock").exists():
        return False
    try:
        with locked(state, write=False):
            return False
    except StorageError:
        return True


def _serve(
    coordinator: Coordinator,
    configuration: FleetConfiguration,
    watchdog: Watchdog,
    stack: contextlib.ExitStack,
) -> None:
    status = _Status(coordinator, configuration.state / STATUS_FILE, watchdog)
    if configuration.http.enabled:
        at = configuration.http
        server = HttpServer(at.host, at.port, figures=lambda: status.figures, fault=status.fault)
        stack.callback(server.stop)
        coordinator.http_url = server.url
    stopping: list[int] = []

    def stop(number: int, frame: object) -> None:
        stopping.append(number)
        coordinator.wake()

    for number in (signal.SIGTERM, signal.SIGINT):
        stack.callback(signal.signal, number, signal.signal(number, stop))
    version = coordinator.version
    _log.info("fleet %s at version %d.%d", configuration.fleet, version.epoch, version.number)
    stack.callback(status.write)

    def turned() -> None:
        status.update()
        watchdog.turn()

    watchdog.ready()
    coordinator.run(lambda: bool(stopping), turned)
    watchdog.stopping()


class _Status:
    """The newest figures, for other threads, and in ``run/status.json`` for other processes."""

    def __init__(self, coordinator: Coordinator, path: Path, watchdog: Watchdog) -> None:
        self._coordinator = coordinator
        self._watchdog = watchdog
        self._path = path
        self._clock = SystemClock()
        self._written: Figures | None = None
        self._failures = 0
        self._next = 0.0
        path.parent.mkdir(exist_ok=True)
        self.figures = coordinator.figures()

    def update(self) -> None:
        """Look at the figures four times a second."""
        now = self._clock.monotonic()
        if now >= self._next:
            self._next = now + STATUS_EVERY_S
            self.write()

    def write(self) -> None:
        """Write the file, if there is something new. Not durable: it tells of now."""
        self.figures = replace(self._coordinator.figures(), status_failures=self._failures)
        if self.figures == self._written:
            return
        temporary = self._path.with_name(f".{self._path.name}.tmp")
        try:
            temporary.write_text(json.dumps(self.figures.to_body()), encoding="utf-8")
            os.replace(temporary, self._path)
        except OSError:
            self._failures += 1
        else:
            self._written = self.figures

    def fault(self) -> str:
        """Why the coordinator is not well; empty if it is."""
        silent = self._watchdog.silent_s
        if silent > STALLED_S:
            return f"the loop has not turned for {silent:.0f} s"
        if self.figures.state == "connecting":
            return "no connection to the broker"
        if self.figures.aggregator_fault:
            return self.figures.aggregator_fault
        return "rolled back: lichen coordinator recover" if self.figures.state == "rolled_back" else ""


def _plain(broker: str) -> bool:
    """Whether it is a broker without TLS that is not our own."""
    return "://" in broker and not BrokerAddress.parse(broker).tls


def _accept_plain(broker: str, *, insecure: bool) -> None:
    address = BrokerAddress.parse(broker)
    if not insecure:
        raise ConfigError(
            f"the broker at {address} has no TLS: whoever reaches it can read, and speak for any device",
            hint="lichen fleet init DIR makes certificates and a broker's configuration;"
            " on a network you trust: --insecure",
        )
    _log.warning("insecure: no TLS to %s: whoever reaches it can read, and speak for any device", address)


def _signing(state: Path) -> Signing:
    signing = open_key(state)
    if signing.fresh:
        _log.info('a new key was made; for agent.toml: trusted_keys = ["%s"]', signing.public_key)
    return signing


@contextlib.contextmanager
def _broker(configuration: FleetConfiguration) -> Iterator[tuple[BrokerAddress, str]]:
    """The broker's address and name: one of our own, or the configured one after a challenge."""
    kind, _, port = configuration.broker.partition(":")
    if "://" in configuration.broker:
        address = BrokerAddress.parse(configuration.broker)
        challenge(address, configuration.fleet, tls=configuration.tls.files)
        yield address, str(address)
        return
    if port and not port.isdecimal():
        raise ConfigError(f"broker {configuration.broker!r}: write a URL, auto, or auto:PORT")
    # Nobody else can be on a broker that we have only just started.
    with EmbeddedBroker(kind, int(port or 0), configuration.state / "broker") as broker:
        _log.info("%s on %s", broker.name, broker.url)
        yield BrokerAddress.parse(broker.url), f"{broker.name} on {broker.url}"
