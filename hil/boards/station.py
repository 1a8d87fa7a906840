"""Stations: a board of a kind, with the site that it reports to.

Kinds: ``process``, ``netns``, ``qemu``, ``ssh`` (every board that is listed in boards.toml), ``ssh:NAME``
(one of them), and ``pi_zero``, a process in a network namespace where that is possible, held to the memory
and the one core of a small device.
"""

import contextlib
import os
import shutil
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

from fl_protocol.errors import ConfigError, LichenError
from hil.boards.board import Board
from hil.boards.card_image import MAKERS, made_card_image
from hil.boards.confinement import PI_ZERO_BYTES, UNCONFINED, Confinement, confine
from hil.boards.debian_root import missing_programs
from hil.boards.line import Line, PacketLine
from hil.boards.machine import BROKER, PROGRAM
from hil.boards.process_board import ProcessBoard
from hil.boards.site import Site, SiteOptions
from hil.boards.ssh_inventory import read_inventory
from hil.link_namespace import NamespaceLink
from hil.link_profile import LinkProfile
from hil.mosquitto import mosquitto_program

__all__ = ["KINDS", "SEVERAL", "Station", "expand", "open_station", "unavailable"]

KINDS = ("process", "netns", "qemu", "ssh", "pi_zero")
SEVERAL = ("process", "netns", "qemu")
"""Kinds of which a station can have several boards."""
_SSH = "ssh:"
_QEMU_EPOCHS = 40
"""An emulated processor trains some forty times as slowly as this one: nine seconds are enough for a
power cut."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Station:
    """A site, and the board that belongs to it; ``others`` are more boards of the same kind, if they were
    asked for."""

    kind: str
    site: Site
    board: Board
    others: list[Board] = field(default_factory=list)
    figures: dict[str, float] = field(default_factory=dict)
    """What making it took, in seconds."""

    def measured(self) -> dict[str, float]:
        """What was measured until now: of the station, and of a board that says so."""
        of_board = getattr(self.board, "figures", None)
        return {**self.figures, **(of_board() if of_board is not None else {})}

    def retire_others(self) -> None:
        """Take the other boards away; from now on an audit reads their books as they are left."""
        while self.others:
            board = self.others.pop()
            try:
                books = board.books()
            finally:
                board.close()
            if books is not None:
                self.site.keep_books(board.device, books)

    def settle(self) -> None:
        """Let everything be well again, whatever came before: site up, link good, room on the disk, the right
        time. The board stays on or off."""
        self.site.start()
        for board in (self.board, *self.others):
            if "link" in board.abilities:
                board.link("lan")
            if "disk" in board.abilities:
                board.free_disk()
            if "clock" in board.abilities:
                board.set_clock(time.time())
            with contextlib.suppress(LichenError):
                board.status()  # a board whose agent has ended by itself says so once


def expand(kinds: Sequence[str], boards_file: Path) -> list[str]:
    """Kinds as they were asked for, each once; ``ssh`` becomes one for each board that is listed, ``all``
    each kind that can be had here.

    Raises:
        ConfigError: no such kind, or nothing is listed.
    """
    found: list[str] = []
    for kind in kinds:
        if kind == "all":
            here = [known for known in KINDS if not unavailable(known, boards_file)]
            found += [name for known in here for name in _each(known, boards_file)]
        elif kind in KINDS or kind.startswith(_SSH):
            found += _each(kind, boards_file)
        else:
            known = ", ".join((*KINDS, f"{_SSH}NAME", "all"))
            raise ConfigError(f"no board is called {kind!r}", hint=f"there are {known}")
    return list(dict.fromkeys(found))


def unavailable(kind: str, boards_file: Path) -> str:
    """Why there can be no board of this kind here; empty if there can."""
    try:
        mosquitto_program()
        if kind.startswith("ssh"):
            if not read_inventory(boards_file).boards:
                return f"{boards_file} lists no board"
        elif kind == "netns" and (os.geteuid() != 0 or not Path("/dev/net/tun").exists()):
            return "it needs root and /dev/net/tun"
        elif kind == "qemu":
            return _qemu_lacks()
        elif kind == "pi_zero" and shutil.which("taskset") is None:
            return "it needs taskset"
    except ConfigError as error:
        return str(error).partition("\n")[0]
    return ""


@contextlib.contextmanager
def open_station(
    kind: str,
    folder: Path,
    options: SiteOptions,
    *,
    boards_file: Path,
    say: Callable[[str], None],
    count: int = 1,
) -> Iterator[Station]:
    """Make site and board in ``folder``; at the end both are gone but for their files. ``count`` boards,
    where the kind is one of which there can be several (``SEVERAL``).

    Raises:
        ConfigError: there can be none of this kind here.
        BoardFailure: site or board do not start.
    """
    if reason := unavailable(kind, boards_file):
        raise ConfigError(f"no board of kind {kind} here: {reason}")
    with contextlib.ExitStack() as stack:
        if kind in ("process", "netns", "pi_zero"):
            yield stack.enter_context(_local(kind, folder, options, say, count))
        elif kind == "qemu":
            yield stack.enter_context(_emulated(folder, options, say, count))
        else:
            from hil.boards.ssh_board import SshBoard

            inventory = read_inventory(boards_file)
            entry = inventory.board(kind.removeprefix(_SSH))
            # Boards reach the relay of their link, and the relay reaches the broker on loopback.
            reached = _reached_as(options, inventory.site.host)
            site = stack.enter_context(Site(folder / "site", reached, say))
            site.start()
            place = inventory.site
            name = kind.removeprefix(_SSH)
            board = SshBoard(entry, site, folder / "board", device=name, host=place.host, listen=place.listen)
            stack.callback(board.close)
            yield Station(kind=kind, site=site, board=board)


@contextlib.contextmanager
def _local(
    kind: str, folder: Path, options: SiteOptions, say: Callable[[str], None], count: int
) -> Iterator[Station]:
    """Processes, in namespaces and held in where their kind asks for it."""
    packets = kind == "netns" or (kind == "pi_zero" and not unavailable("netns", folder))
    links = [NamespaceLink(LinkProfile()) if packets else None for _ in range(count)]
    confinement: Confinement = confine(PI_ZERO_BYTES) if kind == "pi_zero" else UNCONFINED
    for link in links:
        if link is not None:
            options = _reached_as(options, link.address)
    with contextlib.ExitStack() as stack:
        stack.callback(confinement.close)
        site = stack.enter_context(Site(folder / "site", options, say))
        site.start()
        boards: list[Board] = []
        for link, name in zip(links, _names(kind, count), strict=True):
            line: Line | None = PacketLine(site.port, link) if link is not None else None
            place = folder / name.replace(kind, "board")
            boards.append(ProcessBoard(name, site, place, line=line, confinement=confinement))
            stack.callback(boards[-1].close)
        if confinement.how != UNCONFINED.how:
            say(f"{kind} is held by {confinement.how}")
        yield Station(kind=kind, site=site, board=boards[0], others=boards[1:])


@contextlib.contextmanager
def _emulated(
    folder: Path, options: SiteOptions, say: Callable[[str], None], count: int
) -> Iterator[Station]:
    """Emulated machines. All of them have power, and do what a first boot does, when this is done."""
    reached = _reached_as(options, BROKER[0])
    if options.artifact is None:
        reached = replace(reached, epochs=options.epochs or _QEMU_EPOCHS)
    with contextlib.ExitStack() as stack:
        site = stack.enter_context(Site(folder / "site", reached, say))
        site.start()
        from hil.boards.flashing import flash_boards

        flashed = flash_boards(site, folder, _names("qemu", count))
        for board in flashed.boards:
            stack.callback(board.close)
        for board in flashed.boards:
            board.power_on()
        first, *others = flashed.boards
        yield Station(kind="qemu", site=site, board=first, others=[*others], figures=flashed.figures)


def _names(kind: str, count: int) -> list[str]:
    """The ids of the devices of a station."""
    return [kind, *(f"{kind}-{number}" for number in range(2, count + 1))]


def _each(kind: str, boards_file: Path) -> list[str]:
    if kind != "ssh":
        return [kind]
    names = list(read_inventory(boards_file).boards)
    if not names:
        raise ConfigError(f"{boards_file} lists no board", hint="docs/guide-hil.md shows how one is listed")
    return [f"{_SSH}{name}" for name in names]


def _reached_as(options: SiteOptions, host: str) -> SiteOptions:
    return replace(options, hosts=tuple(dict.fromkeys((*options.hosts, host))))


def _qemu_lacks() -> str:
    missing = missing_programs(PROGRAM, "debugfs")
    if not missing and not made_card_image():
        missing = missing_programs(*MAKERS)
        if os.geteuid() != 0:
            return "the stand-in image is not made yet, which takes root's rights, once"
    return f"apt-get install {' '.join(missing)}" if missing else ""
