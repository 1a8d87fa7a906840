"""boards.toml: the real boards that are reached over SSH, and how they reach this machine.

[site]
host = "192.168.1.10"                  # this machine, as boards see it
listen = "0.0.0.0"                     # where their way to the broker begins

[boards.pi-07]
ssh = "pi@192.168.1.23"
payload = "payload-aarch64.tar.xz"     # from `lichen fleet bundle`
power_off = "uhubctl -l 1-1 -p 2 -a off"
power_on = "uhubctl -l 1-1 -p 2 -a on"
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from fl_io.configuration import read_configuration
from fl_protocol.errors import ConfigError
from fl_protocol.topics import valid_name

__all__ = ["Inventory", "SitePlace", "SshEntry", "read_inventory"]


@dataclass(frozen=True, slots=True, kw_only=True)
class SitePlace:
    """``[site]``: ``host`` is the name or address by which boards reach this machine, ``listen`` the address
    on which the relays of their links listen. The broker itself stays on loopback."""

    host: str = "127.0.0.1"
    listen: str = "127.0.0.1"


@dataclass(frozen=True, slots=True, kw_only=True)
class SshEntry:
    """``[boards.NAME]``: one board.

    ``ssh`` is its destination as ssh takes it, ``options`` are words before it (``["-p", "2222"]``). The
    agent comes from ``payload``, an archive of ``lichen fleet bundle`` on this machine, which is brought
    there and unpacked below ``folder``; or it is there, and ``agent`` is its command. ``python`` runs the
    payload, and copies the books.

    Commands of yours; without one the board lacks that ability. Run here: ``power_off`` cuts its power,
    ``power_on`` gives it back. Run on the board: ``set_clock`` sets its clock. ``{device}``, ``{folder}`` and
    ``{unix_s}`` (of set_clock) are put in.
    ``disk`` says that the file system of ``folder`` may be filled up. ``slowness`` is how many times longer
    than a local process everything may take, ``boot_s`` how long it takes until ssh answers after power on.
    """

    ssh: str
    options: tuple[str, ...] = ()
    payload: Path | None = None
    agent: str = ""
    python: str = "python3"
    folder: str = "/var/tmp/lichen-hil"
    power_off: str = ""
    power_on: str = ""
    set_clock: str = ""
    disk: bool = False
    slowness: float = 4.0
    boot_s: float = 120.0

    def __post_init__(self) -> None:
        if (self.payload is None) == (not self.agent):
            raise ValueError("name either the payload or the agent that is there")
        if bool(self.power_off) != bool(self.power_on):
            raise ValueError("power_off and power_on belong together")
        if self.ssh.startswith("-") or not self.ssh:
            raise ValueError("ssh is a destination, as pi@192.168.1.23")
        if not self.folder.startswith("/") or self.folder.strip("/") == "":
            raise ValueError("folder is an absolute path, and not /")
        if self.slowness < 1 or self.boot_s <= 0:
            raise ValueError("slowness is at least 1, boot_s above 0")


@dataclass(frozen=True, slots=True, kw_only=True)
class Inventory:
    """A whole boards.toml: its boards by name, which is the device's id in the fleet."""

    site: SitePlace = field(default_factory=SitePlace)
    boards: Mapping[str, SshEntry] = field(default_factory=dict)

    def __post_init__(self) -> None:
        wrong = [name for name in self.boards if not valid_name(name)]
        if wrong:
            raise ValueError(f"boards {wrong}: a name is 1 to 64 of A-Z a-z 0-9 . _ -")

    def board(self, name: str) -> SshEntry:
        """One of them.

        Raises:
            ConfigError: there is none of that name.
        """
        if name not in self.boards:
            raise ConfigError(
                f"no board is called {name!r}", hint=f"there are {', '.join(self.boards) or 'none'}"
            )
        return self.boards[name]


def read_inventory(path: Path) -> Inventory:
    """Read boards.toml; a file that is not there lists nothing.

    Raises:
        ConfigError: with every fault, each with file and line.
    """
    return read_configuration(path, Inventory) if path.exists() else Inventory()
