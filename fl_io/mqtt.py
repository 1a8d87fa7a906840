"""The broker connection of both sides: connected again for ever, in a thread of its own.

Each connection is a new object with an empty window, so that a message the broker will not take (it drops
the connection, the client sends it again, for ever) dies with its connection; the outbox decides what to
send again.
"""

import logging
import random
import socket
import ssl
import threading
import time
from collections.abc import Callable, Sequence

from fl_io.broker_address import CONNECT_TIMEOUT_S, BrokerAddress, reachable
from fl_io.connection import BrokerConnection, ConnectionTerms
from fl_io.tls import TlsFiles, Trust, is_date_error
from fl_protocol.transport import Disconnected, Traffic, TransportEvent, Will

__all__ = ["BrokerAddress", "MqttTransport", "TlsFiles", "reachable"]

ANSWER_TIMEOUT_S = 30.0
"""How long a broker may take to answer CONNECT."""
STOP_TIMEOUT_S = 5.0
FIRST_DELAY_S = 1.0
LONGEST_DELAY_S = 120.0
PERMANENT_DELAY_S = 900.0
LONGEST_IDLE_S = 60.0
OVERDUE_S = 120.0
"""How late the network thread may be before a watchdog calls it dead: resolving a name has no timeout."""
MAX_FILTERS = 8
PAHO_WINDOW = 64
"""paho's window knows no bytes: so many chunks of a blob are 4 MiB."""
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
    connection too: one of an older connection has no effect. The connection is our own, for
    thousands of messages a second and 2 MiB smaller than paho's; over websockets, or if ``paho``, it is that.

    TLS files that were replaced are read again for the next connection.

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
        paho: bool = False,
    ) -> None:
        self._address = address
        self._client_id = client_id
        self._will = will
        self._manual_ack = manual_ack
        self._keepalive_s = keepalive_s
        self._trust = Trust(tls or TlsFiles()) if address.tls else None
        paho = paho or address.scheme.startswith("ws")
        self._terms = ConnectionTerms(
            address=address,
            client_id=client_id,
            clean=clean,
            manual_ack=manual_ack,
            keepalive_s=keepalive_s,
            window=min(window, PAHO_WINDOW) if paho else window,
            trust=self._trust,
        )
        self._connect = _connector(paho=paho)
        self._receive: Callable[[TransportEvent], None] = lambda event: None
        self._stopping = False
        self._renewed = False
        self._wake = threading.Event()
        self._thread: threading.Thread | None = None
        self._lock = threading.Lock()
        self._connection: BrokerConnection | None = None
        self._generation = 0
        self._closed = (0, 0)
        self._due = 0.0

    def start(self, receive: Callable[[TransportEvent], None]) -> None:
        """Start the network thread."""
        self._receive = receive
        self._back_within(0.0)
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
                connection.subscribe(filters[at : at + MAX_FILTERS])

    def unsubscribe(self, filters: Sequence[str]) -> None:
        """Unsubscribe, at most eight filters a packet."""
        connection = self._connection
        if connection is not None:
            for at in range(0, len(filters), MAX_FILTERS):
                connection.unsubscribe(filters[at : at + MAX_FILTERS])

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
            connection.disconnect()
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

    def fault(self) -> str:
        """Why the network thread is not alive, for a watchdog: it ended, or is overdue at its next turn."""
        thread = self._thread
        if thread is None or self._stopping:
            return ""
        if not thread.is_alive():
            return "the network thread has ended"
        silent = time.monotonic() - self._due
        return f"the network thread is {silent:.0f} s late" if silent > 0 else ""

    def _back_within(self, seconds: float) -> None:
        """What follows should take this long, and surely no longer than the allowance beyond."""
        self._due = time.monotonic() + seconds + OVERDUE_S

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
                self._back_within(delay)
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
        self._back_within(CONNECT_TIMEOUT_S)
        if self._trust is not None and (fault := self._trust.reread()):
            _log.warning("the TLS files of before are used on: %s", fault)
        connection = self._connect(self._terms, self._generation)
        try:
            connection.open(self._will() if self._will is not None else None)
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

    def _attend(self, connection: BrokerConnection) -> str:
        """Serve a connection until it ends, and say why it did."""
        answer_by = time.monotonic() + ANSWER_TIMEOUT_S
        idle = min(self._keepalive_s / 4 or LONGEST_IDLE_S, LONGEST_IDLE_S)
        if self._stopping:
            connection.disconnect()
        while True:
            self._back_within(idle)
            ended = connection.serve(idle if connection.accepted else 1.0)
            while connection.noted:
                self._emit(connection.noted.popleft())
            if ended is not None:
                return connection.refusal or ended
            if not connection.accepted and time.monotonic() > answer_by:
                return f"the broker did not answer CONNECT within {ANSWER_TIMEOUT_S:g} s"

    def _emit(self, event: TransportEvent) -> None:
        try:
            self._receive(event)
        except Exception:
            # It promised not to raise. The connection must outlive a receiver that breaks its promise.
            _log.exception("the receiver of broker events failed on %s", type(event).__name__)


def _connector(*, paho: bool) -> Callable[[ConnectionTerms, int], BrokerConnection]:
    """The kind of connection; what is not used is not loaded."""
    if paho:
        from fl_io.paho_connection import PahoConnection

        return PahoConnection
    from fl_io.stream_connection import StreamConnection

    return StreamConnection
