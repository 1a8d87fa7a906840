"""A bad link made of packets: a network namespace for the device, joined to this machine by TUN devices.

    with NamespaceLink(load_profile("basement"), seed=7) as link:
        # a broker listens on link.address
        agent = start(link.within(["lichen-agent", "run", ...]))

What is lost here is lost for the kernel's TCP, which retransmits, backs off and gives up as it does on a real
link. It needs root, /dev/net/tun and iproute2; where it cannot run it says why. Resets are not a link's doing
but a router's: those of a profile are left to ``hil.link``.
"""

import asyncio
import contextlib
import fcntl
import itertools
import os
import random
import struct
import subprocess
import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

from fl_protocol.errors import ConfigError, LichenError
from hil.link_profile import LinkDirection, LinkProfile

__all__ = ["NamespaceLink", "PacketCounts"]

T = TypeVar("T")

_TUN = Path("/dev/net/tun")
_SET_INTERFACE = 0x400454CA
_TUN_WITHOUT_HEADER = 0x1001
_MTU_BYTES = 1400
_QUEUE_BYTES = 256 << 10
"""What a direction holds before its rate: what comes on top is lost, as at any router."""
_AT_ONCE = 64
_WAIT_S = 10.0
_numbers = itertools.count()


@dataclass(frozen=True, slots=True, kw_only=True)
class PacketCounts:
    """IP packets that entered the link from the device (``up``) and to it, their bytes, and the lost ones."""

    packets_up: int = 0
    packets_down: int = 0
    bytes_up: int = 0
    bytes_down: int = 0
    lost_up: int = 0
    lost_down: int = 0


class NamespaceLink:
    """A namespace at ``device_address`` that reaches this machine's ``address`` and nothing else.

    Methods may be called from any thread, and have worked when they return.

    Raises:
        ConfigError: from ``start``: this machine, or who runs this, cannot make one.
    """

    def __init__(self, profile: LinkProfile, *, seed: int = 0) -> None:
        number = (os.getpid() * 16 + next(_numbers)) % (1 << 14)
        # 198.18.0.0/15 is set aside for tests of network devices (RFC 2544).
        stem = f"198.18.{number >> 6}.{4 * (number & 63)}"
        prefix, _, last = stem.rpartition(".")
        self.profile = profile
        self.namespace = f"lichen-{number}"
        self.address = f"{prefix}.{int(last) + 1}"
        """This machine's end: what a broker listens on."""
        self.device_address = f"{prefix}.{int(last) + 2}"
        self._names = (f"lichen-d{number}", f"lichen-m{number}")
        self._random = random.Random(seed)
        self._ends: list[int] = []
        self._loop: asyncio.AbstractEventLoop | None = None
        self._thread: threading.Thread | None = None
        self._away = False
        self._ways: list[_Way] = []
        self._outage: asyncio.TimerHandle | None = None

    def __enter__(self) -> "NamespaceLink":
        return self.start()

    def __exit__(self, *failure: object) -> None:
        self.stop()

    def start(self) -> "NamespaceLink":
        """Make namespace and devices, and carry packets."""
        if os.geteuid() != 0:
            raise ConfigError("a link of packets needs root", hint="hil.link works without")
        if not _TUN.exists():
            raise ConfigError(f"a link of packets needs {_TUN}", hint="in a container: --device /dev/net/tun")
        try:
            self._build()
        except (ConfigError, OSError) as error:
            self._tear_down()
            raise ConfigError(f"no link of packets can be made here: {error}") from None
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, name="packets", daemon=True)
        self._thread.start()
        self._there(self._attach)
        return self

    def stop(self) -> None:
        """Take everything down. Processes in the namespace lose their network."""
        if self._loop is not None and self._thread is not None:
            self._there(self._detach)
            self._loop.call_soon_threadsafe(self._loop.stop)
            self._thread.join(_WAIT_S)
            self._loop.close()
            self._loop = self._thread = None
        self._tear_down()

    def within(self, words: Sequence[str]) -> list[str]:
        """A command line that runs ``words`` in the namespace, as the same process."""
        return ["ip", "netns", "exec", self.namespace, *words]

    def pause(self) -> None:
        """A blackout: every packet is lost, and nobody is told."""
        self._there(lambda: self._set_away(True))

    def resume(self) -> None:
        """End a blackout."""
        self._there(lambda: self._set_away(False))

    def change(self, profile: LinkProfile) -> None:
        """Be a link like this from now on; it ends a blackout."""

        def change() -> None:
            self.profile, self._away = profile, False
            for way, line in zip(self._ways, (profile.up, profile.down), strict=True):
                way.change(line)
            self._await_outage()

        self._there(change)

    @property
    def counts(self) -> PacketCounts:
        """What has entered the link so far."""
        return self._there(self._count)

    def _build(self) -> None:
        device, machine = self._names
        _ip("netns", "add", self.namespace)
        for name in self._names:
            self._ends.append(_open_tun(name))
        _ip("link", "set", device, "netns", self.namespace)
        here: list[str] = []
        there = ["-n", self.namespace]
        for where, name, own, peer in (
            (there, device, self.device_address, self.address),
            (here, machine, self.address, self.device_address),
        ):
            _ip(*where, "addr", "add", own, "peer", peer, "dev", name)
            _ip(*where, "link", "set", name, "mtu", str(_MTU_BYTES), "up")
        _ip(*there, "link", "set", "lo", "up")

    def _tear_down(self) -> None:
        while self._ends:
            os.close(self._ends.pop())
        with contextlib.suppress(ConfigError):
            _ip("netns", "del", self.namespace)

    def _attach(self) -> None:
        assert self._loop is not None
        profile, (device, machine) = self.profile, self._ends
        for line, source, sink in ((profile.up, device, machine), (profile.down, machine, device)):
            way = _Way(self._loop, line, source, sink, draw=self._random.random, away=lambda: self._away)
            self._ways.append(way)
            self._loop.add_reader(source, way.read)
        self._await_outage()

    def _await_outage(self) -> None:
        assert self._loop is not None
        if self._outage is not None:
            self._outage.cancel()
        outage = self.profile.outage
        if outage is not None:
            self._outage = self._loop.call_later(outage.every_s - outage.lasting_s, self._go_away)

    def _detach(self) -> None:
        assert self._loop is not None
        for end in self._ends:
            self._loop.remove_reader(end)
        for way in self._ways:
            way.closed = True

    def _count(self) -> PacketCounts:
        up, down = self._ways
        return PacketCounts(
            packets_up=up.packets,
            packets_down=down.packets,
            bytes_up=up.bytes,
            bytes_down=down.bytes,
            lost_up=up.lost,
            lost_down=down.lost,
        )

    def _set_away(self, away: bool) -> None:
        self._away = away

    def _go_away(self) -> None:
        assert self._loop is not None
        assert self.profile.outage is not None
        self._away = True
        self._outage = self._loop.call_later(self.profile.outage.lasting_s, self._come_back)

    def _come_back(self) -> None:
        self._away = False
        self._await_outage()

    def _there(self, work: Callable[[], T]) -> T:
        async def call() -> T:
            return work()

        if self._loop is None:
            raise LichenError("the link does not run", hint="use it within `with`, or call start() first")
        return asyncio.run_coroutine_threadsafe(call(), self._loop).result(_WAIT_S)


class _Way:
    """One direction: packets from one TUN device to the other, late, in their order, or not at all."""

    def __init__(
        self,
        loop: asyncio.AbstractEventLoop,
        line: LinkDirection,
        source: int,
        sink: int,
        *,
        draw: Callable[[], float],
        away: Callable[[], bool],
    ) -> None:
        self.packets = self.bytes = self.lost = 0
        self.closed = False
        self._loop = loop
        self._line = line
        self._source, self._sink = source, sink
        self._draw, self._away = draw, away
        self._queued = 0
        self._free_at = self._arrives_at = 0.0

    def change(self, line: LinkDirection) -> None:
        """Be a line like this from now on; what is on its way arrives when it would have."""
        self._line = line
        self._free_at = self._arrives_at = 0.0

    def read(self) -> None:
        """Take what the kernel sends, a bounded number at a time: the other direction has its turn."""
        for _ in range(_AT_ONCE):
            try:
                packet = os.read(self._source, 1 << 16)
            except BlockingIOError:
                return
            self._take(packet)

    def _take(self, packet: bytes) -> None:
        line, size = self._line, len(packet)
        self.packets += 1
        self.bytes += size
        if self._away() or self._draw() < line.loss or self._queued + size > _QUEUE_BYTES:
            self.lost += 1
            return
        self._free_at = max(self._free_at, self._loop.time())
        if line.rate_kbps:
            self._free_at += size * 8 / (line.rate_kbps * 1000)
        late = (line.delay_ms + line.jitter_ms * self._draw()) / 1000
        self._arrives_at = max(self._arrives_at, self._free_at + late)
        self._queued += size
        self._loop.call_at(self._arrives_at, self._deliver, packet)

    def _deliver(self, packet: bytes) -> None:
        self._queued -= len(packet)
        if self.closed:
            return
        try:
            os.write(self._sink, packet)
        except OSError:  # the device's queue is full, or it is going down
            self.lost += 1


def _open_tun(name: str) -> int:
    """A TUN device of this name, gone when its descriptor is closed."""
    descriptor = os.open(_TUN, os.O_RDWR | os.O_NONBLOCK | os.O_CLOEXEC)
    try:
        fcntl.ioctl(descriptor, _SET_INTERFACE, struct.pack("16sH", name.encode(), _TUN_WITHOUT_HEADER))
    except OSError:
        os.close(descriptor)
        raise
    return descriptor


def _ip(*words: str) -> None:
    try:
        done = subprocess.run(["ip", *words], capture_output=True, text=True, timeout=_WAIT_S, check=False)
    except FileNotFoundError:
        raise ConfigError("iproute2 (`ip`) is not installed", hint="apt install iproute2") from None
    if done.returncode:
        raise ConfigError(f"ip {' '.join(words)}: {done.stderr.strip()}")
