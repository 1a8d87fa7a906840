"""A systemd unit, read as its lines stand."""

from collections import defaultdict
from pathlib import Path

__all__ = ["DEPLOY", "read_unit", "unit_command"]

DEPLOY = Path(__file__).parents[2] / "deploy"


def read_unit(name: str) -> dict[str, dict[str, list[str]]]:
    """Section, key, and its values: a unit is no ini file, a key may come twice."""
    found: dict[str, dict[str, list[str]]] = defaultdict(lambda: defaultdict(list))
    section = ""
    for number, line in enumerate((DEPLOY / name).read_text().splitlines(), 1):
        if not line or line.startswith("#"):
            continue
        if line.startswith("["):
            section = line.strip("[]")
            continue
        key, equals, value = line.partition("=")
        assert section
        assert key.isalpha(), f"{name}, line {number}: {line}"
        assert equals
        found[section][key].append(value)
    return found


def unit_command(name: str) -> list[str]:
    """The words of what a unit starts."""
    (command,) = read_unit(name)["Service"]["ExecStart"]
    return command.split()
