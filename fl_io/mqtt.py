"""The broker connection of both sides: paho-mqtt, kept on a short leash.

paho's own reconnection and queue are not used. Each connection is a new client object with an empty
window, so that a message the broker will not take (it drops the connection, paho sends it again, for
ever) dies with its connection; the outbox decides what to send again. An exception in a callback would
end paho's network thread while ``is_connected()`` stays true: the loop runs in a thread of ours that
reports it and connects anew.
"""

import contextlib
import random
import socket
import ssl
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urlsplit

import paho.mqtt.client as paho
from paho.mqtt.enums import CallbackAPIVersion

from fl_io.socket_bytes import socket_bytes
from fl_protocol.errors import ConfigError, TransportError
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

CONNECT_TIMEOUT_S = 10.0
STOP_TIMEOUT_S = 5.0
FIRST_DELAY_S = 1.0
LONGEST_DELAY_S = 120.0
PERMANENT_DELAY_S = 900.0
STEADY_S = 30.0
"""A connection that held this long resets the back-off."""
MAX_FILTERS = 8
_PORTS = {"mqtt": 1883, "mqtts": 8883, "ws": 80, "wss": 443}
_REFUSED_FOR_GOOD = {"Not authorized", "Bad user name or password", "Unsupported protocol version"}


@dataclass(frozen=True, slots=True, kw_only=True)
class BrokerAddress:
    """Where a broker is: ``mqtt(s)://[user:password@]host[:port]`` or ``ws(s)://host[:port]/path``."""

    scheme: str
    host: str
    port: int
    path: str = ""
    username: str = ""
    password: str = ""

    @classmethod
    def parse(cls, url: str) -> "BrokerAddress":
        """Read a URL; raises ConfigError."""
        try:
            parts = urlsplit(url)
            port = parts.port
        except ValueError as error:
            raise ConfigError(f"broker {url!r}: {error}") from None
        if parts.scheme not in _PORTS or not parts.hostname:
            raise ConfigError(
                f"broker {url!r} is no broker's URL", hint="write mqtt://host:1883, mqtts://, ws:// or wss://"
            )
        return cls(
            scheme=parts.scheme,
            host=parts.hostname,
            port=port or _PORTS[parts.scheme],
            path=parts.path,
            username=unquote(parts.username or ""),
            password=unquote(parts.password or ""),
        )

    @property
    def tls(self) -> bool:
        """Whether the connection is encrypted."""
        return self.scheme in ("mqtts", "wss")

    def __str__(self) -> str:
        return f"{self.scheme}://{self.host}:{self.port}{self.path}"


@dataclass(frozen=True, slots=True, kw_only=True)
class TlsFiles:
    """PEM files of a TLS connection; without ``ca`` the system's authorities are trusted."""

    ca: Path | None = None
    certificate: Path | None = None
    key: Path | None = None


class MqttTransport:
    """See ``fl_protocol.transport.Transport``. One thread; events come from it.

    ``clean`` and ``manual_ack`` as in MQTT; ``window`` bounds publishes under way. Delays between
    attempts are drawn from ``[0, d]`` with d doubling from 1 to 120 s (full jitter), or to 900 s where
    the broker refuses for good.

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
        self._tls = _tls_context(tls or TlsFiles()) if address.tls else None
        self._receive: Callable[[TransportEvent], None] = lambda event: None
        self._stopping = threading.Event()
        self._renewed = threading.Event()
        self._thread: threading.Thread | None = None
        self._lock = threading.Lock()
        self._client: paho.Client | None = None
        self._socket: Any = None
        self._pending: set[int] = set()
        self._closed = (0, 0)
        self._refusal: str | None = None

    def start(self, receive: Callable[[TransportEvent], None]) -> None:
        """Start the network thread."""
        self._receive = receive
        self._thread = threading.Thread(target=self._run, name=f"mqtt {self._client_id}", daemon=True)
        self._thread.start()

    def publish(self, topic: str, payload: bytes, *, retain: bool = False) -> int | None:
        """Send at QoS 1, if connected and the window has room."""
        with self._lock:
            client = self._client
            if client is None or not client.is_connected() or len(self._pending) >= self._window:
                return None
            message = client.publish(topic, payload, qos=1, retain=retain)
            if message.rc != paho.MQTT_ERR_SUCCESS:
                return None
            self._pending.add(message.mid)
            return message.mid

    def subscribe(self, filters: Sequence[str]) -> None:
        """Subscribe, at most eight filters a packet: hosted brokers take no more."""
        client = self._client
        if client is not None:
            for at in range(0, len(filters), MAX_FILTERS):
                client.subscribe([(pattern, 1) for pattern in filters[at : at + MAX_FILTERS]])

    def unsubscribe(self, filters: Sequence[str]) -> None:
        """Unsubscribe, at most eight filters a packet."""
        client = self._client
        if client is not None:
            for at in range(0, len(filters), MAX_FILTERS):
                client.unsubscribe(list(filters[at : at + MAX_FILTERS]))

    def acknowledge(self, token: int) -> None:
        """Send the PUBACK of a received message."""
        client = self._client
        if client is not None and self._manual_ack:
            client.ack(token, 1)

    def renew(self) -> None:
        """Drop the connection; the network thread connects anew at once."""
        self._renewed.set()
        sock = self._socket
        if sock is not None:
            with contextlib.suppress(OSError):
                sock.shutdown(socket.SHUT_RDWR)

    def stop(self) -> None:
        """Disconnect cleanly and end the thread."""
        self._stopping.set()
        client = self._client
        if client is not None:
            client.disconnect()
        if self._thread is not None and self._thread is not threading.current_thread():
            self._thread.join(STOP_TIMEOUT_S)

    def traffic(self) -> Traffic:
        """Bytes through all sockets so far, as the kernel counted them; with TLS, its records included."""
        now = socket_bytes(self._socket) if self._socket is not None else (0, 0)
        if now is None:
            return Traffic(None, None)
        return Traffic(self._closed[0] + now[0], self._closed[1] + now[1])

    def _run(self) -> None:
        delay = FIRST_DELAY_S
        while not self._stopping.is_set():
            connected_at = time.monotonic()
            reason, permanent = self._connect_once()
            if self._stopping.is_set():
                return
            self._emit(Disconnected(reason, permanent))
            if self._renewed.is_set():
                self._renewed.clear()
                continue
            if permanent:
                delay = PERMANENT_DELAY_S
            elif time.monotonic() - connected_at > STEADY_S:
                delay = FIRST_DELAY_S
            self._stopping.wait(random.uniform(0.0, delay))
            delay = min(2 * delay, LONGEST_DELAY_S if not permanent else PERMANENT_DELAY_S)

    def _connect_once(self) -> tuple[str, bool]:
        """Run one connection to its end; why it ended, and whether that is for good."""
        self._refusal = None
        client = self._new_client()
        try:
            client.connect(self._address.host, self._address.port, self._keepalive_s)
            self._client = client
            code = client.loop_forever(retry_first_connection=False)
            reason = self._refusal or paho.error_string(code)
        except ssl.SSLCertVerificationError as error:
            return f"{self._address}: the broker's certificate is not trusted ({error.verify_message})", True
        except (OSError, ValueError) as error:
            return f"{self._address}: {error}", False
        finally:
            self._client = None
            self._pending.clear()
            self._forget_socket()
        return f"{self._address}: {reason}", self._refusal in _REFUSED_FOR_GOOD

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
        if self._tls is not None:
            client.tls_set_context(self._tls)
        if self._address.username:
            client.username_pw_set(self._address.username, self._address.password or None)
        if self._address.path:
            client.ws_set_options(path=self._address.path)
        if self._will is not None:
            will = self._will()
            client.will_set(will.topic, will.payload, qos=1, retain=False)
        client.on_socket_open = self._on_socket_open
        client.on_socket_close = lambda client, userdata, sock: self._forget_socket()
        client.on_connect = self._on_connect
        client.on_message = lambda client, userdata, message: self._emit(
            Received(message.topic, bytes(message.payload), message.retain, message.mid)
        )
        client.on_publish = lambda client, userdata, mid, reason, properties: self._on_published(mid)
        return client

    def _on_socket_open(self, client: paho.Client, userdata: Any, sock: Any) -> None:
        with contextlib.suppress(OSError, AttributeError):
            # Nagle's delay costs 57 ms a round where 15 would do.
            sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self._socket = sock

    def _on_connect(
        self, client: paho.Client, userdata: Any, flags: Any, reason: Any, properties: Any
    ) -> None:
        if reason.is_failure:
            self._refusal = str(reason)
            client.disconnect()
        else:
            self._emit(Connected(bool(flags.session_present)))

    def _on_published(self, mid: int) -> None:
        with self._lock:
            self._pending.discard(mid)
        self._emit(Delivered(mid))

    def _forget_socket(self) -> None:
        sock, self._socket = self._socket, None
        counted = socket_bytes(sock) if sock is not None else None
        if counted is not None:
            self._closed = (self._closed[0] + counted[0], self._closed[1] + counted[1])

    def _emit(self, event: TransportEvent) -> None:
        self._receive(event)


def reachable(address: BrokerAddress, timeout_s: float = CONNECT_TIMEOUT_S) -> None:
    """Return if something listens at ``address``; raises TransportError with the reason."""
    try:
        socket.create_connection((address.host, address.port), timeout_s).close()
    except OSError as error:
        raise TransportError(
            f"no broker answers at {address}: {error.strerror or error}",
            hint="start one (mosquitto), or give its address with --broker mqtt://host:port",
        ) from None


def _tls_context(files: TlsFiles) -> ssl.SSLContext:
    try:
        context = ssl.create_default_context(cafile=str(files.ca) if files.ca else None)
        if files.certificate is not None:
            context.load_cert_chain(str(files.certificate), str(files.key) if files.key else None)
    except (OSError, ssl.SSLError) as error:
        raise ConfigError(f"TLS files cannot be used: {error}") from None
    return context
