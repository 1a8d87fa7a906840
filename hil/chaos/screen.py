"""What a person sees while a fleet is broken: a line a fault, and how things stand below."""

from collections.abc import Iterator
from contextlib import contextmanager

from rich.console import Console
from rich.live import Live
from rich.table import Table
from rich.text import Text

from hil.chaos.books import Books
from hil.chaos.course import Moment

__all__ = ["Screen", "summary"]


class Screen:
    """Lines on any console; on a terminal a last one that changes."""

    def __init__(self, console: Console, *, faults: int, devices: int) -> None:
        self._console = console
        self._faults, self._devices = faults, devices
        self._live: Live | None = None
        self._phase = ""

    @contextmanager
    def running(self) -> Iterator[None]:
        """Show how things stand while the block runs."""
        if not self._console.is_terminal:
            yield
            return
        with Live(Text("starting"), console=self._console, refresh_per_second=4, transient=True) as live:
            self._live = live
            yield
        self._live = None

    def say(self, line: str) -> None:
        """Print a line."""
        self._console.print(line, highlight=False, markup=False, soft_wrap=True)

    def show(self, moment: Moment) -> None:
        """Show a moment."""
        line = (
            f"{moment.seconds:6.1f} s  {moment.phase}: {moment.done} of {self._faults} faults, "
            f"version {moment.version}, {moment.accepted} updates, {moment.online}/{self._devices} devices"
        )
        if self._live is not None:
            self._live.update(Text(line, style="bold"))
        elif moment.phase != self._phase:
            self._phase = moment.phase
            self.say(line)


def summary(console: Console, books: Books) -> None:
    """The books as a table, and a sentence for each thing that is wrong."""
    table = Table(show_header=False, box=None, padding=(0, 2, 0, 0))
    for name, value in books.to_json().items():
        if name in ("sentences", "acts", "exits"):
            continue
        counted = isinstance(value, dict)
        text = ", ".join(f"{kind} {count}" for kind, count in value.items()) if counted else str(value)
        table.add_row(f"[bold]{name.replace('_', ' ')}[/bold]", text)
    console.print(table)
    for sentence in books.sentences:
        console.print(f"  {sentence}", highlight=False, markup=False, soft_wrap=True)
