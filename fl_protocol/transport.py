"""What agent and coordinator ask of a broker connection. MQTT 3.1.1 semantics, QoS 1.

An acknowledged publish (``Delivered``) only says that the broker has it: brokers lose acknowledged
messages. Nothing durable may depend on it.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Protocol

__all__ = [
    "Connected",
    "Delivered",
    "Disconnected",
    "Received",
    "Traffic",
    "Transport",
    "TransportEvent",
    "Will",
]


@dataclass(frozen=True, slots=True)
class Connected:
    """The broker took us; nothing is subscribed unless ``session_present``.

    ``date_error`` is what was found wrong with the dates of the broker's certificate, and forgiven.
    """

    session_present: bool
    date_error: str = ""


@dataclass(frozen=True, slots=True)
class Disconnected:
    """The connection ended, or could not be made; the transport tries again by itself.

    ``permanent`` means that trying again soon is pointless (refused credentials, bad certificate).
    """

    reason: str
    permanent: bool = False


@dataclass(frozen=True, slots=True)
class Received:
    """A message; ``token`` is what ``acknowledge`` takes (transports that acknowledge by themselves
    ignore it)."""

    topic: str
    payload: bytes
    retained: bool
    token: int


@dataclass(frozen=True, slots=True)
class Delivered:
    """The broker acknowledged the publish that ``publish`` gave ``token`` for."""

    token: int


TransportEvent = Connected | Disconnected | Received | Delivered


@dataclass(frozen=True, slots=True)
class Will:
    """What the broker says for us when the connection breaks."""

    topic: str
    payload: bytes


@dataclass(frozen=True, slots=True)
class Traffic:
    """Bytes through our sockets so far, MQTT framing included; ``None`` where the system does not tell."""

    sent: int | None
    received: int | None


class Transport(Protocol):
    """One connection to one broker, kept up until ``stop``.

    Events come from one thread at a time, in order; the receiver returns at once and never raises.
    """

    def start(self, receive: Callable[[TransportEvent], None]) -> None:
        """Connect, and go on connecting with full jitter for ever."""
        ...

    def publish(self, topic: str, payload: bytes, *, retain: bool = False) -> int | None:
        """Send at QoS 1; the token that ``Delivered`` will name, or ``None`` if we are not connected or
        the window is full (nothing was sent: call again later)."""
        ...

    def subscribe(self, filters: Sequence[str]) -> None:
        """Subscribe at QoS 1; lost with the connection unless the session is kept."""
        ...

    def unsubscribe(self, filters: Sequence[str]) -> None:
        """Take subscriptions back."""
        ...

    def acknowledge(self, token: int) -> None:
        """Tell the broker that a received message is ours now."""
        ...

    def renew(self) -> None:
        """Drop the connection and connect anew, with a new client object and an empty window."""
        ...

    def stop(self) -> None:
        """Disconnect cleanly (no will) and end all threads, waiting a bounded time."""
        ...

    def traffic(self) -> Traffic:
        """Bytes sent and received over all connections so far."""
        ...
