"""The correspondence: what a broker's connection brings, read and handed to whom it concerns."""

import logging
from collections.abc import Callable

from edge_agent.attendance import Attendance
from edge_agent.belonging import foreign_authority, nobody_there
from edge_agent.chance import Chance
from edge_agent.configuration import AgentConfiguration
from edge_agent.download import Downloads
from edge_agent.lookout import Lookout
from edge_agent.orders import Orders
from edge_agent.outbox import Outbox
from edge_agent.presence import Presence
from edge_agent.refusals import Refusals
from edge_agent.safe_mode import SafeMode
from edge_agent.upload import Uploads
from fl_io.disk import Disk
from fl_protocol.clock import Clock
from fl_protocol.command import Command
from fl_protocol.errors import ProtocolError
from fl_protocol.presence import CoordinatorPresence, DeviceEvent
from fl_protocol.receipt import Receipt
from fl_protocol.topics import BlobTopic, DeviceTopic, FleetTopics, NamedTopic, ReceiptTopic
from fl_protocol.transport import Connected, Delivered, Disconnected, Received, Transport, TransportEvent

__all__ = ["Correspondence"]

_log = logging.getLogger("lichen.agent")


class Correspondence:
    """One device's side of the protocol: its orders, downloads, uploads and attendance, over one connection.

    ``idle_reason`` says, for the birth message, why the device is not training.
    """

    __slots__ = (
        "_configuration",
        "_foreign",
        "_idle_reason",
        "_incarnation",
        "_lookout",
        "_presence",
        "_safe_mode",
        "_topics",
        "attendance",
        "date_error",
        "downloads",
        "ignored",
        "offline_reason",
        "orders",
        "reconnects",
        "uploads",
    )

    def __init__(
        self,
        configuration: AgentConfiguration,
        *,
        transport: Transport,
        presence: Presence,
        clock: Clock,
        outbox: Outbox,
        lookout: Lookout,
        safe_mode: SafeMode,
        refusals: Refusals,
        incarnation: bytes,
        idle_reason: Callable[[], str],
        disk: Disk,
        chance: Chance,
    ) -> None:
        device, task = configuration.device, configuration.task
        self.offline_reason = ""
        self.date_error = ""
        """What is wrong with the dates of the broker's certificate, and was forgiven."""
        self.reconnects = 0
        self.ignored = 0
        """Messages that were none of ours, could not be read, or were of a coordinator that was replaced."""
        self._configuration = configuration
        self._presence = presence
        self._lookout = lookout
        self._safe_mode = safe_mode
        self._incarnation = incarnation
        self._idle_reason = idle_reason
        self._topics = FleetTopics.of(configuration.fleet)
        self._foreign = foreign_authority(configuration)
        self.attendance = Attendance(
            self._topics,
            device=device,
            task=task,
            transport=transport,
            clock=clock,
            presence=presence,
            birth=self._birth,
            chance=chance,
        )
        self.orders = Orders(
            device=device,
            fleet=configuration.fleet,
            task=task,
            trusted_keys=configuration.trusted_keys,
            outbox=outbox,
            clock=clock,
        )
        self.downloads = Downloads(self._topics, device, transport, clock, disk=disk, chance=chance)
        self.uploads = Uploads(
            self._topics,
            device,
            transport,
            clock,
            outbox,
            is_late=self.orders.is_late,
            refused=refusals.note,
            chance=chance,
        )

    @property
    def missing_fleet(self) -> str:
        """Why no task is to be expected under the fleet's name; empty where one came, or may come yet."""
        if not self.attendance.connected or self.orders.manifest is not None or self.orders.distrust:
            return ""
        if self._foreign:
            return self._foreign
        return nobody_there(self._configuration.fleet) if self.attendance.alone else ""

    def take(self, event: TransportEvent) -> None:
        """Take an event of the connection. A message that breaks the protocol is counted, nothing else.

        Raises:
            StorageError, OSError: what came could not be kept; it comes again, or is asked for.
        """
        match event:
            case Received():
                try:
                    self._read(event)
                except ProtocolError as error:
                    self.ignored += 1
                    _log.debug("a message on %s is ignored: %s", event.topic, error)
            case Delivered(token):
                self.uploads.delivered(token)
            case Connected(_, date_error):
                self.attendance.arrive(without_task=self._lookout.left)
                self.uploads.connected()
                self.downloads.connected()
                _log.info("connected to %s", self._configuration.address)
                if self._safe_mode.active:
                    self.report(self._safe_mode.reason)
                self._forgive(date_error)
            case Disconnected(reason, permanent):
                self._lose(reason, permanent)

    def attend(self) -> float:
        """See ``Attendance.work``."""
        lost = self.downloads.gone or bool(self.orders.distrust)
        return self.attendance.work(without_task=self._lookout.left, lost_task=lost)

    def obey(self, command: Command | None) -> None:
        """Say what a command asks to be said; the rest of it is done by ``Orders``."""
        if command is None:
            return
        _log.info("the coordinator commands: %s", command.kind)
        if command.kind == "restate":
            self.attendance.restate()
            if command.evidence and self.orders.evidence:
                self.attendance.tell(DeviceEvent(kind="evidence", proof=self.orders.evidence))
        elif command.kind in ("pause", "resume"):
            if command.kind == "resume":
                self._safe_mode.leave()
            self.attendance.tell(DeviceEvent(kind="command", message=command.kind))

    def report(self, reason: str) -> None:
        """Tell the coordinator of a failure; nothing depends on its arrival."""
        self.attendance.tell(DeviceEvent(kind="error", message=reason))

    def _read(self, message: Received) -> None:
        topic = self._topics.parse(message.topic)
        device = self._configuration.device
        match topic:
            case ReceiptTopic(device=receiver, update_id=update_id) if receiver == device:
                self._take_receipt(update_id, Receipt.unpack(message.payload))
            case BlobTopic(device=receiver) if receiver in (None, device):
                self.downloads.receive(topic, message.payload)
            case NamedTopic("task", name) if name == self._configuration.task:
                self._take_manifest(message.payload)
            case DeviceTopic("task", receiver) if receiver == device:
                self._take_manifest(message.payload)
            case DeviceTopic("command", receiver) if receiver == device:
                self.obey(self.orders.receive_command(message.payload))
            case NamedTopic("coordinator"):
                self._meet(CoordinatorPresence.unpack(message.payload), retained=message.retained)
            case _:
                self.ignored += 1

    def _take_receipt(self, update_id: bytes, receipt: Receipt) -> None:
        """A coordinator whose office is older than that of the newest manifest has a store without that
        version: its word may be of a history that was given up. It may still ask for patience."""
        if receipt.state != "later" and (receipt.epoch, receipt.term) < self.orders.office:
            self.ignored += 1
            return
        if self.uploads.receive(update_id, receipt):
            self._safe_mode.prove()

    def _take_manifest(self, envelope: bytes) -> None:
        if not envelope:
            return
        news = self.orders.receive_manifest(envelope)
        self.attendance.manifest_arrived(news=news)
        if not news:
            self.downloads.retry()

    def _meet(self, coordinator: CoordinatorPresence, *, retained: bool) -> None:
        manifest = self.orders.manifest
        own_spread_s = manifest.pacing.spread_s if manifest else 0.0
        spread_s = self.attendance.meet(coordinator, retained=retained, spread_s=own_spread_s)
        if spread_s is not None:
            self.uploads.coordinator_changed(spread_s)
            self._tell_date_error()

    def _forgive(self, date_error: str) -> None:
        """A connection for which a date was forgiven: said once for each kind, and to each coordinator."""
        news = date_error != self.date_error
        self.date_error = date_error
        if news and date_error:
            _log.warning("%s", self._excuse)
            self._tell_date_error()

    def _tell_date_error(self) -> None:
        if self.date_error:
            self.report(self._excuse)

    @property
    def _excuse(self) -> str:
        return f"the broker's certificate is taken in spite of its dates ({self.date_error}): a wrong clock?"

    def _lose(self, reason: str, permanent: bool) -> None:
        self.reconnects += self.attendance.connected
        if self.attendance.connected or reason != self.offline_reason:
            hint = "; this will not mend by itself" if permanent else ""
            _log.warning("not connected: %s%s", reason, hint)
        self.attendance.connected = False
        self.offline_reason = reason
        self.uploads.disconnected()
        self.downloads.disconnected()

    def _birth(self) -> bytes:
        return self._presence.birth(
            incarnation=self._incarnation,
            runtimes=self._configuration.runtimes,
            samples=self._lookout.samples,
            idle_reason="" if self.orders.manifest is None else self._idle_reason(),
            seen=self.orders.seen,
        )
