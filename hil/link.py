"""A bad link over loopback: a TCP relay that delays, slows, stalls, forgets and resets connections.

    with LinkEmulator(load_profile("commuter"), upstream=("127.0.0.1", 1883), seed=7) as link:
        agent = start_agent(broker=f"mqtt://127.0.0.1:{link.port}")

It works anywhere, without rights. A lost packet can only be shown as what TCP makes of it: everything behind
it waits for the retransmission. Packets are lost for real in ``hil.link_namespace``.
"""

import asyncio
import contextlib
import random
import socket
import struct
import threading
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from typing import TypeVar

from fl_protocol.errors import LichenError
from hil.link_profile import LinkDirection, LinkProfile

__all__ = ["LinkCounts", "LinkEmulator"]

T = TypeVar("T")

_PACKET_BYTES = 1400
_WINDOW_BYTES = 256 << 10
"""What one direction of a connection holds at most: about the send buffer of a small device."""
_LEAST_RETRANSMISSION_S = 0.2
"""Linux' shortest retransmission time-out."""
_WAIT_S = 10.0
_RESET = struct.pack("ii", 1, 0)
"""SO_LINGER with 0 s: closing sends a reset."""


@dataclass(frozen=True, slots=True, kw_only=True)
class LinkCounts:
    """What a link has carried: payload bytes of TCP that reached the other end, and connections.

    ``sent_up`` and ``sent_down`` are the bytes that went onto the line: those too that were lost on it, once
    more where they were sent again, and those on their way when a connection was reset.
    """

    bytes_up: int = 0
    bytes_down: int = 0
    sent_up: int = 0
    sent_down: int = 0
    connections: int = 0
    resets: int = 0


class LinkEmulator:
    """A relay from ``port`` on loopback to ``upstream``, in a thread of its own.

    All methods may be called from any thread, and have worked when they return.
    """

    def __init__(
        self, profile: LinkProfile, *, upstream: tuple[str, int], seed: int = 0, listen: str = "127.0.0.1"
    ) -> None:
        self.profile = profile
        self.port = 0
        """Where devices connect to; 0 before the start."""
        self._upstream = upstream
        self._listen_on = listen
        self._random = random.Random(seed)
        self._loop: asyncio.AbstractEventLoop | None = None
        self._thread: threading.Thread | None = None
        self._server: asyncio.Server | None = None
        self._connections: set[_Connection] = set()
        self._tasks: list[asyncio.Task[None]] = []
        self._open = asyncio.Event()
        self._refuses = False
        self._bytes = [0, 0]
        self._sent = [0, 0]
        self._accepted = 0
        self._resets = 0

    def __enter__(self) -> "LinkEmulator":
        return self.start()

    def __exit__(self, *failure: object) -> None:
        self.stop()

    def start(self) -> "LinkEmulator":
        """Listen, on a port that the system chooses."""
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, name="link", daemon=True)
        self._thread.start()
        asyncio.run_coroutine_threadsafe(self._listen(), self._loop).result(_WAIT_S)
        return self

    def stop(self) -> None:
        """Close every connection and end the thread."""
        if self._loop is None or self._thread is None:
            return
        asyncio.run_coroutine_threadsafe(self._close(), self._loop).result(_WAIT_S)
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join(_WAIT_S)
        self._loop.close()
        self._loop = self._thread = None

    def pause(self) -> None:
        """A blackout: nothing passes, nothing is refused, connections stay."""
        self._there(self._open.clear)

    def resume(self) -> None:
        """End a blackout; what had been sent meanwhile arrives."""
        self._there(self._open.set)

    def change(self, profile: LinkProfile) -> None:
        """Be a link like this from now on, for connections that stand too; it ends a blackout."""

        def change() -> None:
            for task in self._tasks:
                task.cancel()
            self._tasks.clear()
            self.profile = profile
            for connection in self._connections:
                connection.hurry()
            self._open.set()
            self._begin()

        self._there(change)

    def reset(self) -> None:
        """Reset every connection, at both ends."""
        self._there(self._reset)

    def forget(self) -> None:
        """Leave every open connection half-open for ever, as a router that lost its tables: what is sent on
        it vanishes. New connections work."""

        def change() -> None:
            for connection in self._connections:
                connection.forget()

        self._there(change)

    def refuse(self, refuses: bool = True) -> None:
        """Reset new connections at once, or no longer."""

        def change() -> None:
            self._refuses = refuses

        self._there(change)

    @property
    def counts(self) -> LinkCounts:
        """What the link has carried so far."""
        return self._there(
            lambda: LinkCounts(
                bytes_up=self._bytes[0],
                bytes_down=self._bytes[1],
                sent_up=self._sent[0],
                sent_down=self._sent[1],
                connections=self._accepted,
                resets=self._resets,
            )
        )

    def _there(self, work: Callable[[], T]) -> T:
        async def call() -> T:
            return work()

        if self._loop is None:
            raise LichenError("the link does not run", hint="use it within `with`, or call start() first")
        return asyncio.run_coroutine_threadsafe(call(), self._loop).result(_WAIT_S)

    async def _listen(self) -> None:
        self._open.set()
        self._server = await asyncio.start_server(self._serve, self._listen_on, 0)
        self.port = self._server.sockets[0].getsockname()[1]
        self._begin()

    def _begin(self) -> None:
        """Begin what recurs."""
        if self.profile.reset_every_s:
            self._tasks.append(asyncio.create_task(self._reset_now_and_then(self.profile.reset_every_s)))
        if self.profile.outage is not None:
            self._tasks.append(asyncio.create_task(self._go_and_come()))

    async def _close(self) -> None:
        if self._server is not None:
            self._server.close()
        for task in self._tasks:
            task.cancel()
        connections = list(self._connections)
        for connection in connections:
            connection.reset()
        await asyncio.gather(*self._tasks, *(c.ended.wait() for c in connections), return_exceptions=True)

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._accepted += 1
        if self._refuses:
            _abort(writer)
            return
        try:
            far = await asyncio.open_connection(*self._upstream)
        except OSError:
            _abort(writer)
            return
        connection = _Connection(self, (reader, writer), far)
        self._connections.add(connection)
        try:
            await connection.run()
        finally:
            self._connections.discard(connection)

    def _reset(self) -> None:
        self._resets += len(self._connections)
        for connection in self._connections:
            connection.reset()

    async def _reset_now_and_then(self, every_s: float) -> None:
        while True:
            await asyncio.sleep(every_s * self._random.uniform(0.8, 1.2))
            self._reset()

    async def _go_and_come(self) -> None:
        outage = self.profile.outage
        assert outage is not None
        while True:
            await asyncio.sleep(outage.every_s - outage.lasting_s)
            self._open.clear()
            await asyncio.sleep(outage.lasting_s)
            if outage.resets:
                self._reset()
            self._open.set()

    def line(self, way: int) -> LinkDirection:
        """What a direction is like now: ``way`` 0 goes up."""
        return self.profile.down if way else self.profile.up

    def draw(self) -> float:
        """The next random number in [0, 1) of this link's seed."""
        return self._random.random()

    def carried(self, way: int, count: int) -> None:
        """Count bytes that arrived: ``way`` 0 goes up."""
        self._bytes[way] += count

    def sent(self, way: int, count: int) -> None:
        """Count bytes that left their sender, whether they will arrive or not."""
        self._sent[way] += count

    async def passable(self) -> None:
        """Wait for the end of a blackout."""
        await self._open.wait()


class _Connection:
    """One connection of a device, with its other half to the broker."""

    def __init__(
        self,
        link: LinkEmulator,
        near: tuple[asyncio.StreamReader, asyncio.StreamWriter],
        far: tuple[asyncio.StreamReader, asyncio.StreamWriter],
    ) -> None:
        self._link = link
        self._ends = (near, far)
        self._forgotten = False
        self._queues = (_Queue(), _Queue())
        self._pumps: list[asyncio.Task[None]] = []
        self.ended = asyncio.Event()

    async def run(self) -> None:
        """Carry both directions until both are closed or the connection is reset."""
        (near_in, near_out), (far_in, far_out) = self._ends
        for _, writer in self._ends:
            writer.get_extra_info("socket").setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        ways = [(0, near_in, far_out), (1, far_in, near_out)]
        for way, reader, writer in ways:
            queue = self._queues[way]
            self._pumps.append(asyncio.create_task(self._take(way, reader, queue)))
            self._pumps.append(asyncio.create_task(self._deliver(way, queue, writer)))
        try:
            await asyncio.gather(*self._pumps)
        except (OSError, asyncio.CancelledError):
            self.reset()
            await asyncio.gather(*self._pumps, return_exceptions=True)
        finally:
            for _, writer in self._ends:
                _abort(writer)
            now = asyncio.get_running_loop().time()
            for way, queue in enumerate(self._queues):
                self._link.sent(way, queue.under_way(now))
            self.ended.set()

    def reset(self) -> None:
        """Reset both ends at once; what was on its way is lost."""
        for pump in self._pumps:
            pump.cancel()

    def hurry(self) -> None:
        """Let what is on its way arrive now: the line that held it is no more."""
        for queue in self._queues:
            queue.hurry(asyncio.get_running_loop().time())

    def forget(self) -> None:
        """Swallow everything from now on."""
        self._forgotten = True

    async def _take(self, way: int, reader: asyncio.StreamReader, queue: "_Queue") -> None:
        clock = asyncio.get_running_loop().time
        while True:
            content = await reader.read(_PACKET_BYTES)
            line = self._link.line(way)
            queue.free_at = max(queue.free_at, clock())
            if line.rate_kbps:
                queue.free_at += len(content) * 8 / (line.rate_kbps * 1000)
            late = (line.delay_ms + line.jitter_ms * self._link.draw()) / 1000
            if line.loss and self._link.draw() < line.loss:
                late += max(_LEAST_RETRANSMISSION_S, 4 * line.delay_ms / 1000)
                self._link.sent(way, len(content))
            queue.arrives_at = max(queue.arrives_at, queue.free_at + late)  # TCP: what comes later waits
            await queue.put(queue.arrives_at, queue.free_at, content)
            if not content:
                return

    async def _deliver(self, way: int, queue: "_Queue", writer: asyncio.StreamWriter) -> None:
        clock = asyncio.get_running_loop().time
        while True:
            due, content = await queue.first()
            await asyncio.sleep(max(0.0, due - clock()))
            await self._link.passable()
            await queue.drop_first()
            self._link.sent(way, len(content))
            if self._forgotten:
                continue
            if not content:
                with contextlib.suppress(OSError):
                    writer.write_eof()
                return
            writer.write(content)
            await writer.drain()
            self._link.carried(way, len(content))


class _Queue:
    """What is on its way in one direction: at most ``_WINDOW_BYTES``."""

    def __init__(self) -> None:
        self.free_at = self.arrives_at = 0.0
        """When the line is free again, and when what was put last arrives."""
        self._packets: deque[tuple[float, float, bytes]] = deque()
        self._size = 0
        self._changed = asyncio.Condition()

    async def put(self, due: float, left: float, content: bytes) -> None:
        """Add what leaves its sender at ``left`` and arrives at ``due``, when there is room."""
        async with self._changed:
            await self._changed.wait_for(lambda: self._size + len(content) <= _WINDOW_BYTES)
            self._packets.append((due, left, content))
            self._size += len(content)
            self._changed.notify_all()

    def hurry(self, now: float) -> None:
        """Let everything be due at once."""
        self.free_at = self.arrives_at = now
        self._packets = deque(
            (min(due, now), min(left, now), content) for due, left, content in self._packets
        )

    async def first(self) -> tuple[float, bytes]:
        """What arrives next, and when."""
        async with self._changed:
            await self._changed.wait_for(lambda: bool(self._packets))
            due, _, content = self._packets[0]
        return due, content

    async def drop_first(self) -> None:
        """It has arrived."""
        async with self._changed:
            _, _, content = self._packets.popleft()
            self._size -= len(content)
            self._changed.notify_all()

    def under_way(self, now: float) -> int:
        """Bytes that have left their sender and not arrived."""
        return sum(len(content) for _, left, content in self._packets if left <= now)


def _abort(writer: asyncio.StreamWriter) -> None:
    """Close at once, with a reset."""
    end = writer.get_extra_info("socket")
    with contextlib.suppress(OSError):
        end.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _RESET)
    writer.transport.abort()
