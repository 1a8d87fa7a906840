"""A connection to a broker from CONNECT to its end: what both ways to have one share."""

import contextlib
import os
import socket
import threading
import time
from abc import ABC, abstractmethod
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass

from fl_io.broker_address import BrokerAddress
from fl_io.socket_bytes import socket_bytes
from fl_io.tls import Trust
from fl_protocol.transport import TransportEvent, Will

__all__ = ["BrokerConnection", "ConnectionTerms"]

STEADY_S = 30.0
"""A connection that held this long resets the back-off."""
USEFUL_BYTES = 32 << 10
"""So does one that moved this much: a link that breaks every few seconds gets on, a bit at a time. Counted
are payloads of whole messages, received or acknowledged: one that the broker drops never counts."""
GENERATION_BITS = 16


@dataclass(frozen=True, slots=True, kw_only=True)
class ConnectionTerms:
    """What every connection of a transport has in common; see ``MqttTransport``."""

    address: BrokerAddress
    client_id: str
    clean: bool
    manual_ack: bool
    keepalive_s: int
    window: int
    trust: Trust | None


class BrokerConnection(ABC):
    """One attempt, and the connection it leads to. ``serve`` is called by one thread, again and again;
    ``publish``, ``acknowledge``, ``subscribe``, ``unsubscribe``, ``disconnect``, ``sever`` by any.

    Tokens are packet ids above ``generation << 16``, so that those of an older connection have no effect.
    """

    def __init__(self, terms: ConnectionTerms, generation: int) -> None:
        self.terms = terms
        self.noted: deque[TransportEvent] = deque()
        """Events that happened, in order; whoever calls ``serve`` passes them on."""
        self.accepted = False
        self.refusal = ""
        """Why the broker said no."""
        self.first_token = generation << GENERATION_BITS
        self.moved = 0
        """Payload bytes of whole messages."""
        self.date_error = terms.trust.date_error if terms.trust is not None else ""
        self.lock = threading.Lock()
        self._began = time.monotonic()
        self._plain: socket.socket | None = None
        self._counted = (0, 0)

    @abstractmethod
    def open(self, will: Will | None) -> None:
        """Connect the socket, and send CONNECT; raises OSError, ValueError."""

    @abstractmethod
    def serve(self, timeout_s: float) -> str | None:
        """Wait for something to happen, at most so long, and do what it calls for; why the connection
        ended, if it did. Raises OSError."""

    @abstractmethod
    def publish(self, topic: str, payload: bytes, retain: bool) -> int | None:
        """Publish at QoS 1 if the window has room; the token."""

    @abstractmethod
    def acknowledge(self, token: int) -> None:
        """Acknowledge, unless the message came on an older connection (and will come again)."""

    @abstractmethod
    def subscribe(self, filters: Sequence[str]) -> None:
        """Subscribe at QoS 1, in one packet."""

    @abstractmethod
    def unsubscribe(self, filters: Sequence[str]) -> None:
        """Unsubscribe, in one packet."""

    @abstractmethod
    def disconnect(self) -> None:
        """Say farewell, after all that was sent before."""

    def packet_id(self, token: int) -> int:
        """The packet id of a token of this connection, 0 where it is another's."""
        packet_id = token - self.first_token
        return packet_id if 0 < packet_id < 1 << GENERATION_BITS else 0

    def was_useful(self) -> bool:
        """Whether it held for long, or moved what a transfer is made of."""
        return self.moved >= USEFUL_BYTES or time.monotonic() - self._began > STEADY_S

    def sever(self) -> None:
        """Cut the connection under its reader's feet: the end is seen at once."""
        with self.lock, contextlib.suppress(OSError):
            if self._plain is not None:
                self._plain.shutdown(socket.SHUT_RDWR)

    def traffic(self) -> tuple[int, int]:
        """``(sent, received)`` bytes so far."""
        with self.lock:
            counted = socket_bytes(self._plain) if self._plain is not None else None
            self._counted = counted or self._counted
            return self._counted

    def close(self) -> tuple[int, int]:
        """End it, however it stands; ``traffic`` of its whole life."""
        self.accepted = False
        _, received = self.traffic()  # before the end, which the kernel counts too, once both sides said it
        self.sever()
        self.let_go()
        self._counted = self._counted[0], received
        return self._counted

    def hold(self, descriptor: int) -> None:
        """Know the socket of that file descriptor: the TCP connection without its TLS or websocket
        wrapping, which hides what is needed here."""
        plain = socket.socket(fileno=os.dup(descriptor))
        with contextlib.suppress(OSError):
            # Nagle's delay costs 57 ms a round where 15 would do.
            plain.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        with self.lock:
            self._plain = plain

    def let_go(self) -> None:
        """Count for the last time, and close what ``hold`` opened."""
        self.traffic()
        with self.lock:
            plain, self._plain = self._plain, None
        if plain is not None:
            plain.close()
