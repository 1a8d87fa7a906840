"""The broker connection of both sides: paho-mqtt, kept on a short leash.

paho's own reconnection and queue are not used. Each connection is a new client object with an empty
window, so that a message the broker will not take (it drops the connection, paho sends it again, for
ever) dies with its connection; the outbox decides what to send again. paho's callbacks run under its
locks, and an exception in one would end its network thread while ``is_connected()`` stays true: here they
only note what happened, and the loop, which is ours, passes it on afterwards.
"""

import contextlib
import logging
import os
import random
import socket
import ssl
import threading
import time
from collections import deque
from collections.abc import Callable, Sequence
from typing import Any

import paho.mqtt.client as paho
from paho.mqtt.enums import CallbackAPIVersion

from fl_io.broker_address import CONNECT_TIMEOUT_S, BrokerAddress, reachable
from fl_io.socket_bytes import socket_bytes
from fl_io.tls import TlsFiles, Trust, is_date_error
from fl_protocol.transport import (
    Connected,
    Delivered,
    Disconnected,
    Received,
    Traffic,
    TransportEvent,
    Will,
)

__all__ = ["BrokerAddress", "MqttTransport", "TlsFiles", "reachable"]

ANSWER_TIMEOUT_S = 30.0
"""How long a broker may take to answer CONNECT."""
STOP_TIMEOUT_S = 5.0
FIRST_DELAY_S = 1.0
LONGEST_DELAY_S = 120.0
PERMANENT_DELAY_S = 900.0
STEADY_S = 30.0
"""A connection that held this long resets the back-off."""
USEFUL_BYTES = 32 << 10
"""So does one that moved this much: a link that breaks every few seconds gets on, a bit at a time. Counted
are payloads of whole messages, received or acknowledged: one that the broker drops never counts."""
LONGEST_IDLE_S = 60.0
MAX_FILTERS = 8
_REFUSED_FOR_GOOD = {
    "Not authorized",
    "Bad user name or password",
    "Client identifier not valid",
    "Unsupported protocol version",
}

_log = logging.getLogger(__name__)


class MqttTransport:
    """See ``fl_protocol.transport.Transport``. One thread; events come from it.

    ``clean`` and ``manual_ack`` as in MQTT; ``window`` bounds publishes under way. Delays between
    attempts are drawn from ``[0, d]`` with d doubling from 1 to 120 s (full jitter), or to 900 s where
    the broker refuses for good; d is 1 s again after a connection that was of use. Tokens name their
    connection too: one of an older connection has no effect.

    Raises:
        ConfigError: a TLS file that cannot be read.
    """

    def __init__(
        self,
        address: BrokerAddress,
        client_id: str,
        *,
        will: Callable[[], Will] | None = None,
        clean: bool = True,
        manual_ack: bool = False,
        keepalive_s: int = 600,
        window: int = 16,
        tls: TlsFiles | None = None,
    ) -> None:
        self._address = address
        self._client_id = client_id
        self._will = will
        self._clean = clean
        self._manual_ack = manual_ack
        self._keepalive_s = keepalive_s
        self._window = window
        self._trust = Trust(tls or TlsFiles()) if address.tls else None
        self._receive: Callable[[TransportEvent], None] = lambda event: None
        self._stopping = False
        self._renewed = False
        self._wake = threading.Event()
        self._thread: threading.Thread | None = None
        self._lock = threading.Lock()
        self._connection: _Connection | None = None
        self._generation = 0
        self._closed = (0, 0)

    def start(self, receive: Callable[[TransportEvent], None]) -> None:
        """Start the network thread."""
        self._receive = receive
        self._thread = threading.Thread(target=self._run, name=f"mqtt {self._client_id}", daemon=True)
        self._thread.start()

    def publish(self, topic: str, payload: bytes, *, retain: bool = False) -> int | None:
        """Send at QoS 1, if connected and the window has room."""
        connection = self._connection
        return None if connection is None else connection.publish(topic, payload, retain)

    def subscribe(self, filters: Sequence[str]) -> None:
        """Subscribe, at most eight filters a packet: hosted brokers take no more."""
        connection = self._connection
        if connection is not None:
            for at in range(0, len(filters), MAX_FILTERS):
                connection.client.subscribe([(pattern, 1) for pattern in filters[at : at + MAX_FILTERS]])

    def unsubscribe(self, filters: Sequence[str]) -> None:
        """Unsubscribe, at most eight filters a packet."""
        connection = self._connection
        if connection is not None:
            for at in range(0, len(filters), MAX_FILTERS):
                connection.client.unsubscribe(list(filters[at : at + MAX_FILTERS]))

    def acknowledge(self, token: int) -> None:
        """Send the PUBACK of a message received on this very connection."""
        connection = self._connection
        if connection is not None and self._manual_ack:
            connection.acknowledge(token)

    def renew(self) -> None:
        """Drop the connection; the network thread connects anew at once, even out of a back-off."""
        self._renewed = True
        self._wake.set()
        connection = self._connection
        if connection is not None:
            connection.sever()

    def stop(self) -> None:
        """Disconnect cleanly and end the thread; a link that does not move is cut after 5 s."""
        self._stopping = True
        self._wake.set()
        connection = self._connection
        if connection is not None:
            connection.client.disconnect()
        if self._thread is None or self._thread is threading.current_thread():
            return
        self._thread.join(STOP_TIMEOUT_S)
        connection = self._connection
        if connection is not None:
            connection.sever()
            self._thread.join(STOP_TIMEOUT_S)

    def traffic(self) -> Traffic:
        """Bytes through all sockets so far, as the kernel counted them; with TLS, its records included."""
        if not hasattr(socket, "TCP_INFO"):
            return Traffic(None, None)
        with self._lock:
            now = self._connection.traffic() if self._connection is not None else (0, 0)
            return Traffic(self._closed[0] + now[0], self._closed[1] + now[1])

    def _run(self) -> None:
        delay = FIRST_DELAY_S
        while not self._stopping:
            reason, permanent, useful = self._connect_once()
            if self._stopping:
                return
            self._emit(Disconnected(f"{self._address}: {reason}", permanent))
            if permanent:
                delay = PERMANENT_DELAY_S
            elif useful:
                delay = FIRST_DELAY_S
            if not self._renewed and not self._stopping:
                self._wake.wait(random.uniform(0.0, delay))
                delay = min(2 * delay, PERMANENT_DELAY_S if permanent else LONGEST_DELAY_S)
            self._renewed = False
            self._wake.clear()

    def _connect_once(self) -> tuple[str, bool, bool]:
        """Run one connection to its end; why it ended, whether for good, and whether it was of use."""
        while (ending := self._try_once()) is None:
            pass
        return ending

    def _try_once(self) -> tuple[str, bool, bool] | None:
        """See ``_connect_once``; None to try again at once, and look at no date."""
        self._generation += 1
        forgiven = self._trust.date_error if self._trust is not None else ""
        connection = _Connection(self._new_client(), self._generation, self._window, forgiven)
        try:
            connection.client.connect(self._address.host, self._address.port, self._keepalive_s)
            self._connection = connection
            reason = self._attend(connection)
        except ssl.SSLCertVerificationError as error:
            if self._trust is not None and self._trust.forgives(error):
                return None
            reason = f"the broker's certificate is not trusted ({error.verify_message})"
            return reason, not is_date_error(error), False
        except (OSError, ValueError) as error:
            return str(error), False, connection.was_useful()
        finally:
            with self._lock:
                self._connection = None
                sent, received = connection.close()
                self._closed = (self._closed[0] + sent, self._closed[1] + received)
        return reason, reason in _REFUSED_FOR_GOOD, connection.was_useful()

    def _attend(self, connection: "_Connection") -> str:
        """Serve a connection until it ends, and say why it did."""
        answer_by = time.monotonic() + ANSWER_TIMEOUT_S
        idle = min(self._keepalive_s / 4 or LONGEST_IDLE_S, LONGEST_IDLE_S)
        if self._stopping:
            connection.client.disconnect()
        while True:
            code = connection.client.loop(idle if connection.accepted else 1.0)
            while connection.noted:
                self._emit(connection.noted.popleft())
            if code != paho.MQTT_ERR_SUCCESS:
                return connection.refusal or paho.error_string(code)
            if not connection.accepted and time.monotonic() > answer_by:
                return f"the broker did not answer CONNECT within {ANSWER_TIMEOUT_S:g} s"

    def _new_client(self) -> paho.Client:
        client = paho.Client(
            CallbackAPIVersion.VERSION2,
            client_id=self._client_id,
            clean_session=self._clean,
            protocol=paho.MQTTv311,
            transport="websockets" if self._address.scheme.startswith("ws") else "tcp",
            reconnect_on_failure=False,
            manual_ack=self._manual_ack,
        )
        client.connect_timeout = CONNECT_TIMEOUT_S
        client.max_inflight_messages_set(self._window)
        client.max_queued_messages_set(4 * self._window)
        if self._trust is not None:
            client.tls_set_context(self._trust.context)
        if self._address.username:
            client.username_pw_set(self._address.username, self._address.password or None)
        if self._address.path:
            client.ws_set_options(path=self._address.path)
        if self._will is not None:
            will = self._will()
            client.will_set(will.topic, will.payload, qos=1, retain=False)
        return client

    def _emit(self, event: TransportEvent) -> None:
        try:
            self._receive(event)
        except Exception:
            # It promised not to raise. The connection must outlive a receiver that breaks its promise.
            _log.exception("the receiver of broker events failed on %s", type(event).__name__)


class _Connection:
    """One paho client from CONNECT to its end; what its callbacks saw waits in ``noted``."""

    def __init__(self, client: paho.Client, generation: int, window: int, date_error: str) -> None:
        self.client = client
        self.noted: deque[TransportEvent] = deque()
        self.accepted = False
        self.refusal = ""
        self._date_error = date_error
        self._began = time.monotonic()
        self._moved = 0
        self._sizes: dict[int, int] = {}
        self._first_token = generation << 16
        self._window = window
        self._under_way = 0
        self._lock = threading.Lock()
        self._socket: socket.socket | None = None
        self._counted = (0, 0)
        client.on_socket_open = self._on_socket_open
        client.on_socket_close = self._on_socket_close
        # paho writes to the socket in the caller's thread, racing with the network thread, unless it
        # believes in an event loop that does; the loop finds the packet in its queue.
        client.on_socket_register_write = lambda client, userdata, sock: None
        client.on_connect = self._on_connect
        client.on_message = self._on_message
        client.on_publish = self._on_publish

    def publish(self, topic: str, payload: bytes, retain: bool) -> int | None:
        """Publish if the window has room. paho is called without our lock: it calls back under its own."""
        with self._lock:
            if not self.accepted or self._under_way >= self._window:
                return None
            self._under_way += 1
        message = self.client.publish(topic, payload, qos=1, retain=retain)
        if message.rc != paho.MQTT_ERR_SUCCESS:
            with self._lock:
                self._under_way -= 1
            return None
        self._sizes[message.mid] = len(payload)
        return self._first_token + message.mid

    def acknowledge(self, token: int) -> None:
        """Acknowledge, unless the message came on an older connection (and will come again)."""
        mid = token - self._first_token
        if 0 < mid < 1 << 16:
            self.client.ack(mid, 1)

    def was_useful(self) -> bool:
        """Whether it held for long, or moved what a transfer is made of."""
        return self._moved >= USEFUL_BYTES or time.monotonic() - self._began > STEADY_S

    def sever(self) -> None:
        """Cut the connection under paho's feet: its loop sees the end at once."""
        with self._lock, contextlib.suppress(OSError):
            if self._socket is not None:
                self._socket.shutdown(socket.SHUT_RDWR)

    def traffic(self) -> tuple[int, int]:
        """``(sent, received)`` bytes so far."""
        with self._lock:
            counted = socket_bytes(self._socket) if self._socket is not None else None
            self._counted = counted or self._counted
            return self._counted

    def close(self) -> tuple[int, int]:
        """End it, however it stands; ``traffic`` of its whole life."""
        self.accepted = False
        self.sever()
        self._on_socket_close(self.client, None, None)
        return self._counted

    def _on_socket_open(self, client: paho.Client, userdata: Any, sock: Any) -> None:
        # The same TCP connection without its TLS or websocket wrapping, which hides what is needed here.
        plain = socket.socket(fileno=os.dup(sock.fileno()))
        with contextlib.suppress(OSError):
            # Nagle's delay costs 57 ms a round where 15 would do.
            plain.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        with self._lock:
            self._socket = plain

    def _on_socket_close(self, client: paho.Client, userdata: Any, sock: Any) -> None:
        self.traffic()
        with self._lock:
            plain, self._socket = self._socket, None
        if plain is not None:
            plain.close()

    def _on_connect(
        self, client: paho.Client, userdata: Any, flags: Any, reason: Any, properties: Any
    ) -> None:
        if reason.is_failure:
            self.refusal = str(reason)
        else:
            self.accepted = True
            self.noted.append(Connected(bool(flags.session_present), self._date_error))

    def _on_message(self, client: paho.Client, userdata: Any, message: paho.MQTTMessage) -> None:
        try:
            topic = message.topic
        except UnicodeDecodeError:
            # Passed on, to be counted and acknowledged: left alone it would come again for ever.
            topic = ""
        token = self._first_token + message.mid
        self._moved += len(message.payload)
        self.noted.append(Received(topic, bytes(message.payload), message.retain, token))

    def _on_publish(self, client: paho.Client, userdata: Any, mid: int, reason: Any, properties: Any) -> None:
        with self._lock:
            self._under_way -= 1
        # The acknowledgement may be quicker than the note of the size, which is then left for the next.
        self._moved += self._sizes.pop(mid, 0)
        self.noted.append(Delivered(self._first_token + mid))
