"""The supervisor: what the agent is between two trainings, asleep most of the time.

It takes events (of the connection, of the worker), does what is due, and says when it wants to be called
again. Nothing in it waits, computes or loads an array library.
"""

import logging
import os
import random
import secrets
from collections.abc import Callable
from typing import Any, TypeAlias

from edge_agent.assignment import Assignment
from edge_agent.attendance import Attendance
from edge_agent.cache import Cache
from edge_agent.configuration import AgentConfiguration
from edge_agent.download import Downloads
from edge_agent.gates import LinuxMachine, Machine
from edge_agent.inbox import Inbox
from edge_agent.jobs import Deliver, Job, JobFailed, Progress, Result, TrainJob, Verified, VerifyJob, Worker
from edge_agent.orders import Orders
from edge_agent.outbox import Outbox
from edge_agent.presence import Presence
from edge_agent.state_folder import StateFolder
from edge_agent.status import StatusFile, counts_body
from edge_agent.upload import Uploads
from fl_io.crash import crash_point
from fl_io.disk import DISK, Disk
from fl_protocol.clock import Clock
from fl_protocol.command import Command
from fl_protocol.errors import LichenError, ProtocolError
from fl_protocol.presence import CoordinatorPresence, DeviceEvent
from fl_protocol.receipt import Receipt
from fl_protocol.signed import COMMAND_CONTEXT
from fl_protocol.topics import BlobTopic, DeviceTopic, FleetTopics, NamedTopic, ReceiptTopic
from fl_protocol.transport import Connected, Delivered, Disconnected, Received, Transport, TransportEvent

__all__ = ["Supervisor"]

LONGEST_SLEEP_S = 600.0
AFTER_TROUBLE_S = 60.0
EXPIRE_EVERY_S = 3600.0
_log = logging.getLogger("lichen.agent")

_Item: TypeAlias = TransportEvent | tuple[Job, Result] | None


class Supervisor:
    """One device of one fleet. Drive it by ``start``, ``receive`` and ``work``, or let ``run`` do so.

    ``receive`` may be called from any thread and returns at once; all else from one thread. ``chance``
    draws jitter, ``entropy`` the update ids.
    """

    def __init__(
        self,
        configuration: AgentConfiguration,
        *,
        transport: Transport,
        presence: Presence,
        clock: Clock,
        folder: StateFolder,
        outbox: Outbox,
        make_worker: Callable[[Deliver], Worker],
        machine: Machine | None = None,
        disk: Disk = DISK,
        chance: random.Random | None = None,
        entropy: Callable[[int], bytes] = secrets.token_bytes,
    ) -> None:
        self.reconnects = 0
        self.ignored = 0
        """Messages that were none of ours or could not be read."""
        self._configuration = configuration
        self._transport = transport
        self._presence = presence
        self._clock = clock
        self._folder = folder
        self._outbox = outbox
        self._chance = chance or random.Random()
        self._inbox: Inbox[_Item] = Inbox()
        self._worker = make_worker(lambda job, result: self._inbox.put((job, result)))
        self._topics = FleetTopics(configuration.fleet)
        device = configuration.device
        self._attendance = Attendance(
            self._topics,
            device=device,
            task=configuration.task,
            transport=transport,
            clock=clock,
            presence=presence,
            birth=self._birth,
            chance=self._chance,
        )
        self._orders = Orders(
            device=device,
            fleet=configuration.fleet,
            task=configuration.task,
            trusted_keys=configuration.trusted_keys,
            outbox=outbox,
            clock=clock,
        )
        self._downloads = Downloads(self._topics, device, transport, clock, disk=disk, chance=self._chance)
        self._uploads = Uploads(self._topics, device, transport, clock, outbox, chance=self._chance)
        self._assignment = Assignment(
            configuration,
            orders=self._orders,
            cache=Cache(folder.blobs, folder.artifacts, disk=disk),
            downloads=self._downloads,
            outbox=outbox,
            clock=clock,
            machine=machine or LinuxMachine(),
            incarnation=folder.incarnation,
            device_seed=folder.device_seed,
            created=self._uploads.add,
            report=lambda reason: self._attendance.tell(DeviceEvent(kind="error", message=reason)),
            chance=self._chance,
            entropy=entropy,
        )
        self._status = StatusFile(folder.run / "status.json", clock)
        self._job: Job | None = None
        self._offline_reason = ""
        self._expire_at = 0.0
        self._trouble = ""
        self._said = ""
        self._stopping = False

    @property
    def state(self) -> str:
        """One word; see ``idle_reason`` for why it is not ``training``."""
        if self._stopping:
            return "stopped"
        if self._assignment.state != "waiting":
            return self._assignment.state
        if not self._attendance.connected:
            return "offline"
        return "uploading" if len(self._uploads) else "waiting"

    @property
    def idle_reason(self) -> str:
        """Why this device is not training, in a sentence; empty while it is."""
        if self._trouble:
            return self._trouble
        if not self._attendance.connected and self._assignment.state in ("waiting", "fetching"):
            if not self._offline_reason:
                return f"connecting to {self._configuration.address}"
            return f"not connected: {self._offline_reason}"
        return self._assignment.idle_reason

    def start(self) -> None:
        """Begin to connect."""
        for sentence in self._folder.quarantined:
            _log.warning("%s", sentence)
        self._transport.start(self.receive)

    def receive(self, event: TransportEvent) -> None:
        """Take an event of the connection."""
        self._inbox.put(event)

    def work(self) -> float:
        """Do all that is due; seconds until more is."""
        wait = 0.0
        while True:
            for item in self._inbox.take():
                try:
                    self._take(item)
                except (LichenError, OSError) as error:
                    _log.error("%s", error)
            wait = self._guarded()
            if not len(self._inbox):
                break
        self._say()
        return min(wait, self._status.write(self.status()) or LONGEST_SLEEP_S)

    def run(self) -> None:
        """Work until ``stop``."""
        self.start()
        try:
            while not self._stopping:
                self._inbox.wait(self.work())
        finally:
            self.close()

    def stop(self) -> None:
        """Make ``run`` return; safe from a signal's handler."""
        self._stopping = True
        self._inbox.put(None)

    def close(self) -> None:
        """Say farewell, end the worker and the connection, close the outbox."""
        self._stopping = True
        self._attendance.depart()
        self._worker.stop()
        self._transport.stop()
        self._status.write(self.status(), at_once=True)
        self._outbox.close()

    def status(self) -> dict[str, Any]:
        """What ``run/status.json`` says."""
        manifest = self._orders.manifest
        traffic = self._transport.traffic()
        assignment = self._assignment
        return {
            "device": self._configuration.device,
            "fleet": self._configuration.fleet,
            "pid": os.getpid(),
            "state": self.state,
            "idle_reason": self.idle_reason,
            "connected": self._attendance.connected,
            "epoch": manifest.version.epoch if manifest else None,
            "version": manifest.version.number if manifest else None,
            **counts_body(self._outbox.counts()),
            "last_refusal": self._uploads.last_refusal,
            "bytes_sent": traffic.sent,
            "bytes_received": traffic.received,
            "reconnects": self.reconnects,
            "ignored": self.ignored + self._orders.ignored,
            "dropped": self._inbox.dropped,
            "damaged_chunks": self._downloads.damaged,
            "worker": {"job": _name(self._job), "pid": self._worker.process_id},
            "runtime": assignment.runtime,
            "training_cpu_s": round(assignment.training_cpu_s, 3),
            "samples": {"training": assignment.samples, "held_out": assignment.held_out},
        }

    def _guarded(self) -> float:
        """A disk that refuses must not end the agent: it waits, says why, and tries again."""
        try:
            wait = self._advance()
        except (LichenError, OSError) as error:
            if str(error) != self._trouble:
                _log.error("%s", error)
            self._trouble = str(error)
            return AFTER_TROUBLE_S
        self._trouble = ""
        return wait

    def _take(self, item: _Item) -> None:
        match item:
            case Received():
                try:
                    self._read(item)
                except ProtocolError as error:
                    self.ignored += 1
                    _log.debug("a message on %s is ignored: %s", item.topic, error)
            case Delivered(token):
                self._uploads.delivered(token)
            case Connected():
                self._greet()
            case Disconnected(reason, permanent):
                self._lose(reason, permanent)
            case (job, result):
                self._finish(job, result)

    def _read(self, message: Received) -> None:
        topic = self._topics.parse(message.topic)
        device = self._configuration.device
        match topic:
            case ReceiptTopic(device=receiver, update_id=update_id) if receiver == device:
                self._uploads.receive(update_id, Receipt.unpack(message.payload))
            case BlobTopic(device=receiver) if receiver in (None, device):
                self._downloads.receive(topic, message.payload)
            case NamedTopic("task", name) if name == self._configuration.task:
                self._take_manifest(message.payload)
            case DeviceTopic("task", receiver) if receiver == device:
                self._take_manifest(message.payload)
            case DeviceTopic("command", receiver) if receiver == device:
                self._obey(self._orders.receive_command(message.payload))
            case NamedTopic("coordinator"):
                coordinator = CoordinatorPresence.unpack(message.payload)
                spread = self._attendance.meet(
                    coordinator, retained=message.retained, spread_s=self._spread_s()
                )
                if spread is not None:
                    self._uploads.coordinator_changed(spread)
            case _:
                self.ignored += 1

    def _take_manifest(self, envelope: bytes) -> None:
        if envelope:
            self._attendance.manifest_arrived()
            self._orders.receive_manifest(envelope)

    def _greet(self) -> None:
        self._attendance.arrive(without_task=self._assignment.left)
        self._uploads.connected()
        self._downloads.connected()
        _log.info("connected to %s", self._configuration.address)

    def _lose(self, reason: str, permanent: bool) -> None:
        self.reconnects += self._attendance.connected
        if self._attendance.connected or reason != self._offline_reason:
            hint = "; this will not mend by itself" if permanent else ""
            _log.warning("not connected: %s%s", reason, hint)
        self._attendance.connected = False
        self._offline_reason = reason
        self._uploads.disconnected()
        self._downloads.disconnected()

    def _finish(self, job: Job, result: Result) -> None:
        if isinstance(result, Progress) or self._stopping:
            return
        self._job = None
        if isinstance(job, VerifyJob) and isinstance(result, JobFailed) and job.context == COMMAND_CONTEXT:
            result = Verified(ok=False, reason=result.reason)
        if isinstance(job, VerifyJob) and isinstance(result, Verified):
            self._obey(self._orders.checked(job, result))
        else:
            self._assignment.finished(job, result)

    def _obey(self, command: Command | None) -> None:
        if command is None:
            return
        _log.info("the coordinator commands: %s", command.kind)
        if command.kind == "restate":
            self._attendance.restate()
            if command.evidence and self._orders.evidence:
                self._attendance.tell(DeviceEvent(kind="evidence", proof=self._orders.evidence))
        elif command.kind in ("pause", "resume"):
            self._attendance.tell(DeviceEvent(kind="command", message=command.kind))

    def _advance(self) -> float:
        now = self._clock.monotonic()
        if self._job is None and not self._stopping:
            job = self._orders.command_check() or self._assignment.next_job()
            if job is not None:
                self._job = job
                self._say()
                self._worker.submit(job)
                if isinstance(job, TrainJob):
                    crash_point("agent.training")
        elif isinstance(self._job, TrainJob) and self._assignment.should_cancel():
            self._worker.cancel()
        assignment = self._assignment
        waits = [assignment.wait_s, self._downloads.work(), self._uploads.work()]
        waits.append(self._attendance.work(without_task=assignment.left, lost_task=self._downloads.gone))
        if now >= self._expire_at:
            self._uploads.forget(self._outbox.expire_old())
            self._expire_at = now + EXPIRE_EVERY_S
        return min(*waits, LONGEST_SLEEP_S)

    def _birth(self) -> bytes:
        return self._presence.birth(
            incarnation=self._folder.incarnation,
            runtimes=self._configuration.runtimes,
            samples=self._assignment.samples,
            idle_reason="" if self._orders.manifest is None else self.idle_reason,
            seen=self._orders.seen,
        )

    def _spread_s(self) -> float:
        manifest = self._orders.manifest
        return manifest.pacing.spread_s if manifest else 0.0

    def _say(self) -> None:
        """One line for each change of what we do."""
        reason = self.idle_reason
        line = f"{self.state}: {reason}" if reason else self.state
        if reason.startswith(self.state):
            line = reason
        if line != self._said:
            self._said = line
            _log.info("%s", line)


def _name(job: Job | None) -> str:
    return type(job).__name__.removesuffix("Job").lower() if job else ""
