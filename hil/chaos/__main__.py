"""``python -m hil.chaos``: break a fleet for so many minutes, and read its books.

Exit codes: 0 they balance, 1 they do not, 2 wrong usage.
"""

import json
import secrets
import shutil
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

import click
from rich.console import Console

from fl_protocol.errors import LichenError
from hil.chaos.books import Books
from hil.chaos.course import Course
from hil.chaos.fleet import ChaosFleet
from hil.chaos.schedule import KINDS, Fault, draw_schedule
from hil.chaos.screen import Screen, summary
from hil.chaos.witness import Witness

__all__ = ["main", "run"]


@click.command(context_settings={"help_option_names": ["-h", "--help"]})
@click.option("--minutes", type=click.FloatRange(min=0.1), default=3.0, show_default=True)
@click.option("--devices", type=click.IntRange(2, 64), default=12, show_default=True)
@click.option("--seed", type=click.IntRange(min=0), help="Drawn and printed where not given.")
@click.option("--broker", type=click.Choice(["mosquitto", "amqtt"]), default="mosquitto", show_default=True)
@click.option(
    "--uploads",
    type=click.Choice(["small", "large"]),
    help="Updates of 0.5 KB, or of 150 KB that travel in chunks; large where the seed is odd, if not given.",
)
@click.option("--only", multiple=True, type=click.Choice(sorted(KINDS)), help="Only these kinds of faults.")
@click.option("--out", type=click.Path(file_okay=False, path_type=Path), help="A new folder, kept.")
@click.option("--schedule", "print_only", is_flag=True, help="Print what would be done, and do nothing.")
@click.option("--json", "as_json", is_flag=True, help="Print the books as JSON.")
def main(
    *,
    minutes: float,
    devices: int,
    seed: int | None,
    broker: str,
    uploads: str | None,
    only: Sequence[str],
    out: Path | None,
    print_only: bool,
    as_json: bool,
) -> None:
    """Break everything at random, by a schedule that its seed repeats, and see that the books balance."""
    seed = secrets.randbelow(1 << 31) if seed is None else seed
    kinds = [name for name in KINDS if name in only] or list(KINDS)
    schedule = draw_schedule(seed=seed, minutes=minutes, devices=devices, kinds=kinds)
    if print_only:
        _print_schedule(schedule, as_json=as_json)
        return
    large = bool(seed % 2) if uploads is None else uploads == "large"
    size = "large" if large else "small"
    console = Console(stderr=as_json)
    what = f"{devices} devices, {size} updates, {broker}"
    console.print(f"seed {seed}: {len(schedule)} faults in {minutes:g} minutes, {what}", highlight=False)
    folder = out or Path(tempfile.mkdtemp(prefix="lichen-chaos-"))
    try:
        books = run(folder, schedule, devices=devices, seed=seed, broker=broker, large=large, console=console)
    except LichenError as error:
        console.print(f"error: {error}\n{error.hint}\n{folder} is kept", highlight=False, markup=False)
        raise SystemExit(1) from None
    if as_json:
        sys.stdout.write(json.dumps(books.to_json(), indent=2) + "\n")
    summary(console, books)
    if books.balanced and out is None:
        shutil.rmtree(folder)
    elif not books.balanced:
        console.print(f"{folder} is kept", highlight=False)
    raise SystemExit(0 if books.balanced else 1)


def run(
    out: Path,
    schedule: Sequence[Fault],
    *,
    devices: int,
    seed: int,
    broker: str,
    console: Console,
    large: bool = False,
) -> Books:
    """Run a schedule in the folder ``out``, which must be new or empty.

    Raises:
        LichenError: the fleet does not start.
    """
    if out.exists() and any(out.iterdir()):
        raise LichenError(f"{out} is not empty", hint="name a new folder")
    out.mkdir(parents=True, exist_ok=True)
    out = out.absolute()
    witness = Witness(out / "witness.jsonl")
    screen = Screen(console, faults=len(schedule), devices=devices)
    try:
        chaos = ChaosFleet(out, devices=devices, seed=seed, broker=broker, large=large)
        with screen.running(), chaos as fleet:
            course = Course(
                fleet, witness, schedule, seed=seed, broker=broker, say=screen.say, show=screen.show
            )
            books = course.run()
        (out / "books.json").write_text(json.dumps(books.to_json(), indent=2) + "\n")
        return books
    finally:
        witness.close()


def _print_schedule(schedule: Sequence[Fault], *, as_json: bool) -> None:
    if as_json:
        sys.stdout.write(json.dumps([fault.to_json() for fault in schedule], indent=2) + "\n")
        return
    for fault in schedule:
        sys.stdout.write(f"{fault}\n")


if __name__ == "__main__":
    main()
