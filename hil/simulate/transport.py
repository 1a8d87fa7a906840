"""A virtual device's connection: the broker in memory over the device's own link, each byte counted."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from fl_protocol.loopback import Link, LoopbackBroker, LoopbackTransport
from fl_protocol.transport import Received, Traffic, TransportEvent, Will

__all__ = ["Caller", "Meter", "VirtualTransport"]

WINDOW = 16
_PUBACK = 4
_SUBACK = 5
_CONNACK = 4


class Meter:
    """MQTT bytes and messages of all devices together."""

    __slots__ = ("down", "messages_down", "messages_up", "up")

    def __init__(self) -> None:
        self.up = self.down = 0
        self.messages_up = self.messages_down = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class Caller:
    """Who connects: its name at the broker, its ``link`` (None costs no time), ``woken``, which is called
    after each event that it is given, and who counts its bytes. The rest as ``Transport`` has it."""

    client_id: str
    link: Link | None
    woken: Callable[[], None]
    meter: Meter
    will: Callable[[], Will] | None = None
    clean: bool = True
    manual_ack: bool = False
    window: int = WINDOW


class VirtualTransport(LoopbackTransport):
    """Counts what MQTT 3.1.1 at QoS 1 would send for what passes, and says when something came."""

    __slots__ = ("_down", "_meter", "_up", "_woken")

    def __init__(self, broker: LoopbackBroker, caller: Caller) -> None:
        super().__init__(
            broker,
            caller.client_id,
            will=caller.will,
            clean=caller.clean,
            manual_ack=caller.manual_ack,
            window=caller.window,
            link=caller.link,
        )
        self._woken = caller.woken
        self._meter = caller.meter
        self._up = 0
        self._down = 0

    def start(self, receive: Callable[[TransportEvent], None]) -> None:
        """Connect; whoever receives is woken."""
        super().start(receive)
        will = self.will
        spoken = 4 + len(will.topic) + len(will.payload) if will else 0
        self._count(16 + len(self.client_id) + spoken, _CONNACK)

    def publish(self, topic: str, payload: bytes, *, retain: bool = False) -> int | None:
        """Send, counted."""
        token = super().publish(topic, payload, retain=retain)
        if token is not None:
            self._count(_publish_bytes(topic, payload), _PUBACK)
            self._meter.messages_up += 1
        return token

    def subscribe(self, filters: Sequence[str]) -> None:
        """Subscribe, counted."""
        if self.connected:
            self._count(4 + sum(len(pattern) + 3 for pattern in filters), _SUBACK)
        super().subscribe(filters)

    def unsubscribe(self, filters: Sequence[str]) -> None:
        """Unsubscribe, counted."""
        if self.connected:
            self._count(4 + sum(len(pattern) + 2 for pattern in filters), _PUBACK)
        super().unsubscribe(filters)

    def emit(self, event: TransportEvent) -> None:
        """Pass an event on, counted, unless this connection is gone."""
        if not self.connected:
            return
        if isinstance(event, Received):
            self._count(_PUBACK, _publish_bytes(event.topic, event.payload))
            self._meter.messages_down += 1
        self.tell(event)

    def tell(self, event: TransportEvent) -> None:
        """Give an event to whoever receives, and wake it."""
        if self._receive is not None:
            self._receive(event)
            self._woken()

    def _count(self, up: int, down: int) -> None:
        meter = self._meter
        self._up += up
        self._down += down
        meter.up += up
        meter.down += down

    def traffic(self) -> Traffic:
        """MQTT bytes, without TCP's and TLS's own."""
        return Traffic(self._up, self._down)


def _publish_bytes(topic: str, payload: bytes) -> int:
    rest = 4 + len(topic) + len(payload)
    return 1 + (1 if rest < 1 << 7 else 2 if rest < 1 << 14 else 3) + rest
