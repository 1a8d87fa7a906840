"""A broker connection of our own over TCP or TLS: for a coordinator of thousands of messages a second.

paho costs 45 us for each message that comes, as much for its acknowledgement and for each receipt, and two
threads that fight for one lock. Here whoever publishes or acknowledges only adds to a list; the network
thread sends all that has come together in one write, and reads as many messages in one read.
"""

import contextlib
import os
import select
import socket
import ssl
import time
from collections import deque
from collections.abc import Sequence

from fl_io import mqtt_packets
from fl_io.broker_address import CONNECT_TIMEOUT_S
from fl_io.connection import BrokerConnection, ConnectionTerms
from fl_io.mqtt_packets import Acknowledgement, Answer, ConnectOptions, Packet, PacketReader, Publication
from fl_protocol.errors import TransportError
from fl_protocol.transport import Connected, Delivered, Received, Will

__all__ = ["StreamConnection"]

READ_BYTES = 256 << 10
WINDOW_BYTES = 4 << 20
"""A window of many small messages must not be one of as many chunks."""
MOST_RECEIVED_BYTES = 1 << 20
"""Longer packets end the connection: nothing of ours is a tenth as long."""
_REFUSALS = {
    1: "Unacceptable protocol version",
    2: "Client identifier not valid",
    3: "Server unavailable",
    4: "Bad user name or password",
    5: "Not authorized",
}


class StreamConnection(BrokerConnection):
    """One socket. Nothing but ``serve`` touches it once it is open."""

    def __init__(self, terms: ConnectionTerms, generation: int) -> None:
        super().__init__(terms, generation)
        self._socket: socket.socket | None = None
        self._reader = PacketReader(MOST_RECEIVED_BYTES)
        self._sizes: dict[int, int] = {}
        """Payload bytes of the publishes under way, by packet id."""
        self._under_way = 0
        self._last_id = 0
        self._waiting: deque[bytes] = deque()
        self._unsent = b""
        self._asleep = False
        self._bell, self._rope = os.pipe2(os.O_NONBLOCK | os.O_CLOEXEC)
        self._leaving = False
        self.bytes_sent = self.bytes_received = 0
        """MQTT's own, without TLS's and TCP's."""
        self._heard = self._spoke = time.monotonic()
        self._pinged = 0.0

    def fileno(self) -> int:
        """The socket of a connection that is open, for whoever waits for several of them."""
        assert self._socket is not None
        return self._socket.fileno()

    @property
    def has_to_send(self) -> bool:
        """Whether something waits for the next ``serve``."""
        return bool(self._waiting or self._unsent)

    def open(self, will: Will | None) -> None:
        """Connect, and send CONNECT; raises OSError."""
        address, terms = self.terms.address, self.terms
        plain = socket.create_connection((address.host, address.port), CONNECT_TIMEOUT_S)
        self._socket = plain
        self.hold(plain.fileno())
        if terms.trust is not None:
            self._socket = terms.trust.context.wrap_socket(plain, server_hostname=address.host)
        options = ConnectOptions(
            client_id=terms.client_id,
            clean=terms.clean,
            keepalive_s=terms.keepalive_s,
            username=address.username or None,
            password=address.password or None,
            will=will,
        )
        greeting = mqtt_packets.connect(options)
        self._socket.sendall(greeting)
        self.bytes_sent += len(greeting)
        self._socket.setblocking(False)
        self._heard = self._spoke = time.monotonic()

    def serve(self, timeout_s: float) -> str | None:
        """Send what waits, wait for more to happen, and read what has come."""
        writable = self._send()
        if self._leaving and writable and not self._waiting:
            return "we have left"
        readable = self._wait(timeout_s, for_room=not writable)
        try:
            if readable and not self._read():
                return "the broker has closed the connection"
        except TransportError as error:
            return str(error)
        return self._keep_alive()

    def publish(self, topic: str, payload: bytes, retain: bool) -> int | None:
        """Publish if the window has room."""
        with self.lock:
            full = len(self._sizes) >= self.terms.window or (
                self._sizes and self._under_way + len(payload) > WINDOW_BYTES
            )
            if not self.accepted or self._leaving or full:
                return None
            packet_id = self._next_id()
            self._sizes[packet_id] = len(payload)
            self._under_way += len(payload)
        self._queue(mqtt_packets.publish(topic, payload, packet_id, retain=retain))
        return self.first_token + packet_id

    def acknowledge(self, token: int) -> None:
        """Acknowledge a message of this connection."""
        if packet_id := self.packet_id(token):
            self._queue(mqtt_packets.puback(packet_id))

    def subscribe(self, filters: Sequence[str]) -> None:
        """Subscribe at QoS 1."""
        with self.lock:
            packet_id = self._next_id()
        self._queue(mqtt_packets.subscribe(packet_id, filters))

    def unsubscribe(self, filters: Sequence[str]) -> None:
        """Unsubscribe."""
        with self.lock:
            packet_id = self._next_id()
        self._queue(mqtt_packets.unsubscribe(packet_id, filters))

    def disconnect(self) -> None:
        """Say farewell, after all that waits."""
        self._queue(mqtt_packets.DISCONNECT)
        self._leaving = True
        self._ring()

    def close(self) -> tuple[int, int]:
        """End it."""
        traffic = super().close()
        if self._socket is not None:
            self._socket.close()
        with self.lock:
            for descriptor in (self._bell, self._rope):
                if descriptor >= 0:
                    os.close(descriptor)
            self._bell = self._rope = -1
        return traffic

    def _next_id(self) -> int:
        """A packet id that is not under way; with the lock held."""
        while True:
            self._last_id = self._last_id % mqtt_packets.MAX_PACKET_IDS + 1
            if self._last_id not in self._sizes:
                return self._last_id

    def _queue(self, packet: bytes) -> None:
        self._waiting.append(packet)
        if self._asleep:
            self._ring()

    def _ring(self) -> None:
        """End the wait of ``serve``."""
        with self.lock, contextlib.suppress(OSError):
            self._asleep = False
            if self._rope >= 0:
                os.write(self._rope, b"\0")

    def _send(self) -> bool:
        """Send as much as there is room for; whether that was all."""
        assert self._socket is not None
        while self._waiting or self._unsent:
            together = [self._unsent]
            while self._waiting:
                together.append(self._waiting.popleft())
            self._unsent = b"".join(together)
            try:
                sent = self._socket.send(self._unsent)
            except (BlockingIOError, ssl.SSLWantWriteError, ssl.SSLWantReadError):
                return False
            self._unsent = self._unsent[sent:]
            self.bytes_sent += sent
            self._spoke = time.monotonic()
        return True

    def _wait(self, timeout_s: float, *, for_room: bool) -> bool:
        """Whether there is, or may be, something to read."""
        connection = self._socket
        assert connection is not None
        if isinstance(connection, ssl.SSLSocket) and connection.pending():
            return True
        self._asleep = True
        if self._waiting and not for_room:
            # It came between the sending and the falling asleep, and rang no bell.
            self._asleep = False
            timeout_s = 0.0
        poll = select.poll()
        poll.register(connection, select.POLLIN | (select.POLLOUT if for_room else 0))
        poll.register(self._bell, select.POLLIN)
        ready = {descriptor for descriptor, _ in poll.poll(timeout_s * 1000)}
        self._asleep = False
        if self._bell in ready:
            with contextlib.suppress(OSError):
                os.read(self._bell, 4096)
        return connection.fileno() in ready

    def _read(self) -> bool:
        """Take in what has come; whether the connection stands."""
        assert self._socket is not None
        try:
            received = self._socket.recv(READ_BYTES)
        except (BlockingIOError, ssl.SSLWantReadError, ssl.SSLWantWriteError):
            return True
        if not received:
            return False
        self.bytes_received += len(received)
        self._heard, self._pinged = time.monotonic(), 0.0
        for packet in self._reader.feed(received):
            self._take(packet)
        return not self.refusal

    def _take(self, packet: Packet) -> None:
        if isinstance(packet, Publication):
            self.moved += len(packet.payload)
            token = self.first_token + packet.packet_id
            self.noted.append(Received(packet.topic, packet.payload, packet.retained, token))
            if packet.packet_id and not self.terms.manual_ack:
                self._queue(mqtt_packets.puback(packet.packet_id))
        elif isinstance(packet, Acknowledgement):
            with self.lock:
                size = self._sizes.pop(packet.packet_id, None)
                self._under_way -= size or 0
            if size is not None:
                self.moved += size
                self.noted.append(Delivered(self.first_token + packet.packet_id))
        elif isinstance(packet, Answer) and packet.connects:
            if packet.code:
                self.refusal = _REFUSALS.get(packet.code, f"refused with code {packet.code}")
                return
            self.accepted = True
            self.noted.append(Connected(packet.session_present, self.date_error))

    def _keep_alive(self) -> str | None:
        """Ask after the broker if nothing was said for long; whether it does not answer any more."""
        keepalive_s = self.terms.keepalive_s
        if not keepalive_s or not self.accepted:
            return None
        now = time.monotonic()
        if self._pinged:
            return "the broker does not answer any more" if now - self._pinged > keepalive_s else None
        if now - min(self._heard, self._spoke) >= keepalive_s:
            self._pinged = now
            self._queue(mqtt_packets.PINGREQ)
        return None
