"""Taking office: one coordinator per fleet.

Three locks, from near to far: flock on the state folder; a challenge on the fleet's topic, which the one
in office answers; and the term, which every receipt and manifest carries.
"""

import contextlib
import fcntl
import os
import queue
import secrets
import time
from collections.abc import Iterator
from pathlib import Path

from fl_io.broker_address import BrokerAddress, reachable
from fl_io.disk import make_folder
from fl_io.mqtt import MqttTransport
from fl_io.tls import TlsFiles
from fl_protocol.errors import MessageError, StorageError, TransportError
from fl_protocol.presence import SESSION_BYTES, CoordinatorPresence
from fl_protocol.topics import FleetTopics
from fl_protocol.transport import Connected, Disconnected, Received, TransportEvent

__all__ = ["challenge", "locked"]

LOCK_S = 1.0
LOCK_EVERY_S = 0.05
ANSWER_S = 2.0
QUIET_S = 0.5
CONNECT_S = 15.0


@contextlib.contextmanager
def locked(state: Path, *, write: bool = True) -> Iterator[None]:
    """Hold the state folder; the system lets go of it when this process ends, however it ends.

    ``write`` False takes a lock that others may take too, and leaves no name in it: to find out.

    Raises:
        StorageError: another process holds it (the message names it), or the folder is not writable.
    """
    path = state / "lock"
    if write:
        make_folder(state, purpose="coordinator.state")
    try:
        descriptor = os.open(path, (os.O_RDWR | os.O_CREAT if write else os.O_RDONLY) | os.O_CLOEXEC, 0o640)
    except OSError as error:
        raise StorageError(f"{path}: {error.strerror}", hint="is the folder writable by you?") from None
    try:
        # Whoever only looks (`lichen status`) holds it for an instant: a start waits for that.
        if not _hold(descriptor, exclusive=write, within_s=LOCK_S if write else 0.0):
            holder = os.pread(descriptor, 32, 0).decode(errors="replace").strip()
            raise StorageError(
                f"{state} is in use by process {holder or '(unknown)'}",
                hint="one coordinator runs on a state folder; stop that one first",
            )
        if write:
            # Our name in it is for whoever is refused; a full disk must not keep us from starting.
            with contextlib.suppress(OSError):
                os.ftruncate(descriptor, 0)
                os.pwrite(descriptor, f"{os.getpid()}\n".encode(), 0)
        yield
    finally:
        os.close(descriptor)


def _hold(descriptor: int, *, exclusive: bool, within_s: float) -> bool:
    until = time.monotonic() + within_s
    while True:
        try:
            fcntl.flock(descriptor, (fcntl.LOCK_EX if exclusive else fcntl.LOCK_SH) | fcntl.LOCK_NB)
        except BlockingIOError:
            if time.monotonic() >= until:
                return False
            time.sleep(LOCK_EVERY_S)
        else:
            return True


def challenge(
    address: BrokerAddress, fleet: str, *, tls: TlsFiles | None = None, connect_s: float = CONNECT_S
) -> None:
    """Return if no other coordinator answers for this fleet within 2 s.

    Raises:
        TransportError: one does (the message names its session and term), or the broker does not serve.
    """
    reachable(address)
    topics = FleetTopics(fleet)
    session = secrets.token_bytes(SESSION_BYTES)
    question = CoordinatorPresence(session=session, epoch=0, term=0, challenge=session)
    events: queue.Queue[TransportEvent] = queue.Queue(1000)
    transport = MqttTransport(address, f"probe-{session.hex()}", tls=tls)
    transport.start(events.put)
    try:
        _connected(events, address, time.monotonic() + connect_s)
        transport.subscribe([topics.coordinator])
        transport.publish(topics.coordinator, question.pack())
        answer = _answer(events, session, time.monotonic() + ANSWER_S)
    finally:
        transport.stop()
    if answer is not None:
        raise TransportError(
            f"another coordinator of fleet {fleet!r} is running"
            f" (session {answer.session.hex()}, term {answer.term})",
            hint="stop it first: two coordinators would both count updates",
        )


def _connected(events: "queue.Queue[TransportEvent]", address: BrokerAddress, until: float) -> None:
    reason = "no answer"
    while (left := until - time.monotonic()) > 0:
        try:
            event = events.get(timeout=left)
        except queue.Empty:
            break
        if isinstance(event, Connected):
            return
        if isinstance(event, Disconnected):
            reason = event.reason
            if event.permanent:
                break
    raise TransportError(
        f"the broker at {address} does not serve: {reason}",
        hint="check its address, and the user's name and rights there",
    )


def _answer(
    events: "queue.Queue[TransportEvent]", session: bytes, until: float
) -> CoordinatorPresence | None:
    """The answer to our question. Its echo means that a coordinator has it too: where no presence is
    retained, none is likely, and a short wait will do."""
    retained = False
    while (left := until - time.monotonic()) > 0:
        try:
            event = events.get(timeout=left)
        except queue.Empty:
            return None
        if not isinstance(event, Received):
            continue
        try:
            presence = CoordinatorPresence.unpack(event.payload)
        except MessageError:
            continue
        if presence.session == session:
            until = until if retained else min(until, time.monotonic() + QUIET_S)
        elif presence.challenge == session:
            return presence
        retained = retained or event.retained
    return None
