"""A real broker under a virtual fleet: a socket for each device, all of them served by one thread.

Time here passes with the wall's, faster by ``pace``, while anything is under way, and jumps to the next event
when all is quiet: what was sent is acknowledged, and nothing has come for a while. The pace falls where the
broker is slow, so that its answer is never late by the devices' clock.
"""

import contextlib
import logging
import resource
import secrets
import select
import ssl
import time
from collections import deque
from collections.abc import Callable, Iterable
from dataclasses import replace

from fl_io.broker_address import BrokerAddress, reachable
from fl_io.connection import ConnectionTerms
from fl_io.stream_connection import StreamConnection
from fl_io.tls import TlsFiles, Trust
from fl_protocol.errors import ConfigError, TransportError
from fl_protocol.transport import Received
from hil.simulate.broker_clock import BrokerClock
from hil.simulate.broker_connection import DeviceConnection
from hil.simulate.linked_connection import LinkedConnection
from hil.simulate.transport import WINDOW, Caller

__all__ = ["BrokerMedium"]

FASTEST = 20.0
"""Virtual seconds a second, at most, while messages are under way."""
ANSWER_VIRTUAL_S = 0.5
"""An acknowledgement takes no longer than this by the devices' clock, if the pace can help it."""
QUIET_LEAST_S, QUIET_MOST_S = 0.003, 1.0
OPENING_AT_ONCE = 64
"""Connections that wait for the broker's word: beyond its backlog they would wait seconds in the kernel."""
TRIES = 6
FIRST_DELAY_S = 0.1
SILENT_S = 60.0
KEEPALIVE_S = 600
LOOK_AROUND_S = 10.0
LAST_WORD_S = 10.0
SPARE_FILES = 256
_FILES_EACH = 4
_REFUSED: dict[str, str] = {
    "Unacceptable protocol version": "the broker is too old, or too new: it must speak MQTT 3.1.1",
    "Bad user name or password": "write them into the URL: mqtt://user:password@host",
    "Not authorized": "the broker must let one user name speak for every device; that of a fleet does not",
    "Client identifier not valid": "the broker must take any client name",
}
_WANTS_CERTIFICATE = ("certificate required", "bad certificate", "certificate unknown", "unknown ca")
"""OpenSSL's words for a broker that does not take who we say that we are."""
_log = logging.getLogger("lichen.simulate")


class BrokerMedium:
    """See ``hil.simulate.medium.Medium``. ``devices`` is how many connections there may be;
    all of them show the certificate of ``tls``, if it has one. Where they need more open files than the
    process may have, its soft limit is raised, and stays so: other media of the process may live by it.

    Raises:
        ConfigError: an address that is not MQTT's over TCP or TLS; too few open files are allowed.
        TransportError: nothing answers there; later, from every method: the broker refuses, falls silent,
            or goes away.
    """

    def __init__(self, url: str, *, devices: int, tls: TlsFiles | None = None) -> None:
        self.address = BrokerAddress.parse(url)
        if self.address.scheme not in ("mqtt", "mqtts"):
            raise ConfigError(
                f"a simulation takes no {self.address.scheme}:// broker", hint="mqtt://host or mqtts://host"
            )
        _allow_files(_FILES_EACH * (devices + 1) + SPARE_FILES)
        reachable(self.address)
        self.clock = BrokerClock(self._wait)
        self.fleet = f"simulation-{secrets.token_hex(6)}"
        """Retained messages of other runs are no business of this one, nor are its own of theirs."""
        self._mark = self.fleet.rpartition("-")[2][:8]
        self._terms = ConnectionTerms(
            address=self.address,
            client_id="",
            clean=True,
            manual_ack=False,
            keepalive_s=KEEPALIVE_S,
            window=WINDOW,
            trust=Trust(tls or TlsFiles()) if self.address.tls else None,
        )
        self._poll = select.epoll()
        self._known: dict[int, DeviceConnection] = {}
        self._ready: list[tuple[int, int]] = []
        self._speaking: dict[DeviceConnection, None] = {}
        """Those that have something to send, in the order in which they said so."""
        self._opening: deque[DeviceConnection] = deque()
        self._again: list[tuple[float, DeviceConnection]] = []
        self._carries = False
        """Whether it was seen that the broker carries this run's messages."""
        self._unanswered = 0
        self._standing = 0
        self._under_way = 0
        self._moved_at = time.monotonic()
        self._looked_at = self._moved_at
        self._answer_s = 0.01
        """How long an acknowledgement takes, about."""
        self._sample: tuple[DeviceConnection, int, float] | None = None

    def connection(self, caller: Caller) -> DeviceConnection:
        """See ``Medium.connection``. Its name at the broker is this run's own: two runs are two fleets."""
        terms = replace(
            self._terms,
            client_id=f"{caller.client_id}.{self._mark}" if caller.clean else caller.client_id,
            clean=caller.clean,
            manual_ack=caller.manual_ack,
            window=caller.window,
        )
        if caller.link is None:
            return DeviceConnection(self, terms, caller)
        return LinkedConnection(self, terms, caller, caller.link)

    # What connections say

    def want(self, connection: DeviceConnection) -> None:
        """Open it, as soon as others have been answered."""
        self._opening.append(connection)

    def speaks(self, connection: DeviceConnection) -> None:
        """It has something to send."""
        self._speaking[connection] = None

    def sent(self, connection: DeviceConnection, token: int) -> None:
        """It sends what the broker will acknowledge."""
        self._speaking[connection] = None
        self._under_way += 1
        if self._sample is None:
            self._sample = connection, token, time.monotonic()

    def answered(self, connection: DeviceConnection, token: int) -> None:
        """The broker has what it sent."""
        self._under_way -= 1
        if self._sample is not None and self._sample[:2] == (connection, token):
            took = time.monotonic() - self._sample[2]
            self._answer_s = max(took, 0.8 * self._answer_s)
            self._sample = None

    def opened(self, connection: DeviceConnection) -> None:
        """The broker took it."""
        self._unanswered -= 1
        self._standing += 1

    def closed(self, connection: DeviceConnection, descriptor: int, under_way: int) -> None:
        """It ends, with so many messages that were not acknowledged."""
        self._known.pop(descriptor, None)
        with contextlib.suppress(OSError, ValueError):
            self._poll.unregister(descriptor)
        self._speaking.pop(connection, None)
        self._under_way -= under_way
        if connection.accepted:
            self._standing -= 1
        else:
            self._unanswered -= 1
        if self._sample is not None and self._sample[0] is connection:
            self._sample = None

    # What the fleet asks

    def deliver_due(self) -> int:
        """Open, send and read what can be; how many events there were."""
        if self._standing and not self._carries:
            self._prove()
        now = time.monotonic()
        events = self._open(now)
        ready, self._ready = self._ready or self._poll.poll(0), []
        turn = dict(self._speaking)
        self._speaking.clear()
        for descriptor, _ in ready:
            if (connection := self._known.get(descriptor)) is not None:
                turn[connection] = None
        if now - self._looked_at >= LOOK_AROUND_S:
            self._look_around(now)
            turn.update(dict.fromkeys(self._known.values()))
        for connection in turn:
            events += self._serve(connection)
        if events or ready:
            self._moved_at = time.monotonic()
        return events

    def next_due(self) -> float | None:
        """See ``Medium.next_due``."""
        return None if self._quiet(time.monotonic()) else self.clock.monotonic() + 1.0

    def close(self, retained: Callable[[], Iterable[str]]) -> None:
        """End all connections, and take what is retained from the broker; what cannot be is logged."""
        for connection in list(self._known.values()):
            connection.stop()
        self._poll.close()
        try:
            _sweep(replace(self._terms, client_id=f"coordinator-{self.fleet}", window=64), list(retained()))
        except (OSError, ValueError, TransportError) as error:
            _log.warning("%s keeps retained messages of fl1/%s: %s", self.address, self.fleet, error)

    # Inside

    def _prove(self) -> None:
        """See that a message comes through: a broker acknowledges what its rules then drop."""
        self._carries = True
        try:
            _sweep(replace(self._terms, client_id=f"probe-{self._mark}"), [f"fl1/{self.fleet}/probe"])
        except TimeoutError:
            raise TransportError(
                f"the broker at {self.address} takes connections, and carries no message of fl1/{self.fleet}",
                hint="who connects must be allowed to read and write fl1/#; in a fleet's broker a device may"
                " only speak for itself: give it a listener of its own for simulations",
            ) from None
        except (OSError, ValueError, TransportError):
            return  # it takes no more connections: that is told by those that need one

    def _wait(self, virtual_s: float) -> float:
        """Let as much time pass as the broker lets; how much it was."""
        began = time.monotonic()
        if self._quiet(began):
            return virtual_s
        pace = self._pace(began)
        most = 0.002 if self._speaking else max(self._quiet_s, 0.002)
        self._ready = self._poll.poll(min(virtual_s / pace, most))
        return min(virtual_s, pace * (time.monotonic() - began))

    def _pace(self, now: float) -> float:
        waits = now - self._sample[2] if self._sample is not None else 0.0
        return min(max(ANSWER_VIRTUAL_S / max(self._answer_s, waits), 1.0), FASTEST)

    @property
    def _quiet_s(self) -> float:
        """How long nothing must come to be sure that nothing will."""
        return min(max(2.0 * self._answer_s, QUIET_LEAST_S), QUIET_MOST_S)

    def _quiet(self, now: float) -> bool:
        busy = self._under_way or self._unanswered or self._opening or self._again or self._speaking
        return not busy and now - self._moved_at >= self._quiet_s

    def _open(self, now: float) -> int:
        """Open those that want it, not too many at once; how many."""
        if self._again:
            self._opening.extend(connection for at, connection in self._again if at <= now)
            self._again = [each for each in self._again if each[0] > now]
        count = 0
        while self._opening and self._unanswered < OPENING_AT_ONCE:
            connection = self._opening.popleft()
            if not connection.wanted:
                continue
            self._unanswered += 1
            try:
                descriptor = connection.open()
            except ssl.SSLCertVerificationError as error:
                raise TransportError(
                    f"the certificate of {self.address} is not trusted ({error.verify_message})",
                    hint="name its authority: [fleet.tls] ca = FILE",
                ) from None
            except (OSError, ValueError) as error:
                self._unanswered -= 1
                self._failed(connection, str(error))
                continue
            self._known[descriptor] = connection
            self._poll.register(descriptor, select.EPOLLIN)
            self._moved_at = now
            count += 1
        return count

    def _serve(self, connection: DeviceConnection) -> int:
        events, ended = connection.serve()
        if ended is not None:
            accepted = connection.accepted
            connection.lost(ended)
            if accepted:
                self.want(connection)
            else:
                self._failed(connection, ended)
            return events + 1
        if connection.has_to_send:
            self._speaking[connection] = None
        return events

    def _failed(self, connection: DeviceConnection, reason: str) -> None:
        """The broker did not take a connection: try again, a few times."""
        if reason in _REFUSED:
            raise TransportError(
                f"the broker at {self.address} refuses {connection.client_id}: {reason}",
                hint=_REFUSED[reason],
            )
        if any(word in reason for word in _WANTS_CERTIFICATE):
            raise TransportError(
                f"the broker at {self.address} takes no device without a certificate that it knows: {reason}",
                hint="simulated devices have none of their own: give the broker a listener for this, without"
                " require_certificate, or name one certificate that may speak for all of them: [fleet.tls]"
                " certificate and key",
            )
        if connection.tries < TRIES:
            delay = FIRST_DELAY_S * 2.0 ** (connection.tries - 1)
            self._again.append((time.monotonic() + delay, connection))
        elif self._standing:
            raise TransportError(
                f"the broker at {self.address} holds {self._standing} connections of this simulation and"
                f" takes no more: {reason}",
                hint="raise its limit (mosquitto: max_connections, and ulimit -n where it is started), or"
                " simulate fewer --devices",
            )
        else:
            raise TransportError(
                f"the broker at {self.address} has gone away: {reason}",
                hint="does it run still? what does its log say?",
            )

    def _look_around(self, now: float) -> None:
        """Keep-alives are due now and then; and a broker that says nothing has not just nothing to say."""
        self._looked_at = now
        if (self._under_way or self._unanswered) and now - self._moved_at >= SILENT_S:
            raise TransportError(
                f"the broker at {self.address} has said nothing for {now - self._moved_at:.0f} s, and"
                f" {self._under_way} messages and {self._unanswered} connections wait for its answer",
                hint="is it stopped, or its disk full? what does its log say?",
            )


def _allow_files(count: int) -> None:
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if hard != resource.RLIM_INFINITY and hard < count:
        raise ConfigError(
            f"so many connections need {count} open files, and this process may have {hard}",
            hint=f"simulate {max((hard - SPARE_FILES) // _FILES_EACH - 1, 1)} --devices, or raise ulimit -Hn",
        )
    if soft < count:
        resource.setrlimit(resource.RLIMIT_NOFILE, (count, hard))


def _sweep(terms: ConnectionTerms, topics: list[str]) -> None:
    """Forget a coordinator's session, and what it left retained.

    Raises:
        TransportError: the broker ends the connection.
        OSError: it takes no connection; TimeoutError: it did not take it all within ten seconds.
    """
    # An acknowledgement is no proof (amqtt forgets what it has acknowledged, if we leave then): our echo is.
    echo = f"{topics[-1]}/swept"
    left = deque([*((topic, b"", True) for topic in topics), (echo, b"-", False)])
    echoed = subscribed = False
    connection = StreamConnection(terms, 1)
    try:
        connection.open(None)
        ends = time.monotonic() + LAST_WORD_S
        while not echoed:
            if connection.accepted and not subscribed:
                connection.subscribe([echo])
                subscribed = True
            while left and connection.publish(*left[0]) is not None:
                left.popleft()
            ended = connection.serve(0.1)
            while connection.noted:
                event = connection.noted.popleft()
                echoed |= isinstance(event, Received) and event.topic == echo
            if ended is not None:
                raise TransportError(connection.refusal or ended)
            if time.monotonic() > ends:
                raise TimeoutError(f"no answer within {LAST_WORD_S:g} s")
        connection.disconnect()
        connection.serve(0.0)
    finally:
        connection.close()
