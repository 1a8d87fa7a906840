"""Lines: what lies between a local process and the site's broker, and can be made worse."""

import contextlib
from collections.abc import Sequence
from typing import Protocol

from hil.boards.board import CUT
from hil.link import LinkEmulator
from hil.link_namespace import NamespaceLink
from hil.link_profile import LinkProfile, load_profile

__all__ = ["Line", "PacketLine", "RelayLine"]

_NAMESPACES = "/run/netns"


class Line(Protocol):
    """One device's way to the broker."""

    broker_url: str
    """What the device dials."""

    def change(self, profile: str) -> None:
        """Be like this from now on: a name of ``hil/profiles``, a path, or ``cut``."""

    def enter(self, words: Sequence[str]) -> list[str]:
        """A command line that runs ``words`` at the device's end, as the same process."""

    def close(self) -> None:
        """Take it down."""


class RelayLine:
    """A relay of TCP connections, for devices that reach this machine as ``host``; it listens on ``listen``.
    It works anywhere, without rights."""

    def __init__(self, port: int, *, host: str = "127.0.0.1", listen: str = "127.0.0.1") -> None:
        self._relay = LinkEmulator(LinkProfile(), upstream=("127.0.0.1", port), listen=listen).start()
        self.port = self._relay.port
        """Where it listens."""
        self.broker_url = f"mqtts://{host}:{self._relay.port}"

    def change(self, profile: str) -> None:
        """Change the relay."""
        if profile == CUT:
            self._relay.pause()
        else:
            self._relay.change(load_profile(profile))

    def enter(self, words: Sequence[str]) -> list[str]:
        """The words as they are: the relay is there for everybody."""
        return list(words)

    def close(self) -> None:
        """End the relay and its connections."""
        self._relay.stop()


class PacketLine:
    """A network namespace whose packets are late or lost; a relay that does nothing takes them to the broker
    on loopback. ``link`` is started here.

    Raises:
        ConfigError: this machine, or who runs this, cannot make one.
    """

    def __init__(self, port: int, link: NamespaceLink) -> None:
        self._link = link.start()
        with contextlib.ExitStack() as stack:
            stack.callback(link.stop)
            self._relay = LinkEmulator(
                LinkProfile(), upstream=("127.0.0.1", port), listen=link.address
            ).start()
            stack.pop_all()
        self.broker_url = f"mqtts://{link.address}:{self._relay.port}"

    def change(self, profile: str) -> None:
        """Change what becomes of packets."""
        if profile == CUT:
            self._link.pause()
        else:
            self._link.change(load_profile(profile))

    def enter(self, words: Sequence[str]) -> list[str]:
        """In the namespace; with /sys as it is, unlike `ip netns exec`: an agent reads its limits there."""
        return ["nsenter", f"--net={_NAMESPACES}/{self._link.namespace}", *words]

    def close(self) -> None:
        """Take namespace and relay down."""
        self._relay.stop()
        self._link.stop()
