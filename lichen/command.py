"""The ``lichen`` command: which package serves which word. No logic lives here."""

import importlib
import importlib.util
import os
import sys
from pathlib import Path

try:
    import click
except ImportError:  # the device's installation has no operator side
    sys.exit("error: the lichen command needs an extra\n  hint: pip install 'lichen[coordinator]'")

from fl_protocol.errors import ConfigError, LichenError
from lichen import __version__

__all__ = ["main"]

_PACKAGES = ("broker_coordinator", "edge_agent", "fl_io", "fl_protocol", "hil", "models")
_HOMES = {
    "audit": "broker_coordinator.command",
    "backup": "broker_coordinator.command",
    "coordinator": "broker_coordinator.command",
    "demo": "hil.demo.command",
    "devices": "broker_coordinator.command",
    "export": "broker_coordinator.command",
    "fleet": "broker_coordinator.fleet.command",
    "models": "models.zoo.command",
    "new": "hil.simulate.project",
    "simulate": "hil.simulate.command",
    "status": "broker_coordinator.command",
    "versions": "broker_coordinator.command",
}


class LazyCommands(click.Group):
    """Commands that are imported when they are called, or when help lists them."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        """All words, sorted."""
        return sorted(_HOMES)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        """The command behind a word."""
        if cmd_name not in _HOMES:
            return None
        if cmd_name in ("models", "simulate"):
            # Before NumPy is loaded: products this small take twice the processor time on more threads.
            for library in ("OPENBLAS", "OMP", "MKL"):
                os.environ.setdefault(f"{library}_NUM_THREADS", "1")
        command: click.Command = getattr(importlib.import_module(_HOMES[cmd_name]), cmd_name)
        return command


@click.group(cls=LazyCommands, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(__version__, prog_name="lichen")
def lichen() -> None:
    """Federated learning that survives anywhere: coordinator, models, demo, simulator."""


def main() -> None:
    """Run the command; exit 0 ok, 1 failed at run time, 2 usage, 78 bad configuration."""
    try:
        lichen(prog_name="lichen")
    except ConfigError as error:
        _end(error, 78)
    except LichenError as error:
        _end(error, 1)
    except ImportError as error:
        _end(_not_loaded(error), 1)


def _end(error: LichenError, code: int) -> None:
    click.echo(f"error: {error}", err=True)
    sys.exit(code)


def _not_loaded(error: ImportError) -> LichenError:
    """Why a package cannot be imported: a folder of the user's hides one of ours, or an extra is missing.

    Raises:
        ImportError: ``error``, where it is our own fault.
    """
    here = Path(__file__).parent.parent.resolve()
    for package in _PACKAGES:
        found = importlib.util.find_spec(package)
        folders = [Path(place).resolve() for place in (found and found.submodule_search_locations) or ()]
        origin = folders[0] if folders else Path(found.origin) if found and found.origin else None
        if origin is not None and origin != here / package:
            return LichenError(
                f"something of yours hides Lichen's package {package!r}: {origin}",
                hint="rename it, or start the command from another folder",
            )
    missing = (error.name or "").partition(".")[0]
    if not missing or missing in (*_PACKAGES, "lichen"):
        raise error
    return LichenError(
        f"{missing} cannot be loaded: {error}", hint="pip install 'lichen[coordinator,models,onnx]'"
    )
