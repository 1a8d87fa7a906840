"""A list of devices whose cards are written one after the other: CSV with a header."""

import csv
from dataclasses import dataclass
from pathlib import Path

from fl_protocol.errors import ConfigError
from fl_protocol.topics import valid_name

__all__ = ["ListedDevice", "read_devices"]

MAX_DEVICES = 10_000


@dataclass(frozen=True, slots=True, kw_only=True)
class ListedDevice:
    """One line: ``device``, and where its card goes if the list says so."""

    device: str
    out: Path | None = None


def read_devices(path: Path) -> tuple[ListedDevice, ...]:
    """Columns ``device`` and, optionally, ``out``.

    Raises:
        ConfigError: it cannot be read, or has faults; all of them are listed.
    """
    try:
        with path.open(newline="", encoding="utf-8-sig") as file:
            reader = csv.DictReader(file, strict=True)
            columns = reader.fieldnames or []
            rows = [(reader.line_num, row) for row in reader]
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise ConfigError(f"cannot read the list of devices {path}: {error}") from None
    if "device" not in columns or set(columns) - {"device", "out"} or len(rows) > MAX_DEVICES:
        raise ConfigError(
            f"{path} has columns {', '.join(map(str, columns)) or 'without names'} and {len(rows)} rows",
            hint=f"its first line is device or device,out; then one device a line, {MAX_DEVICES} at most",
        )
    faults, found, outs = [], {}, set()
    for line, row in rows:
        device, out = (row["device"] or "").strip(), (row.get("out") or "").strip()
        if None in row or not valid_name(device):
            faults.append(f"line {line}: {device[:80]!r} is no device's name, or there are too many fields")
        elif device in found:
            faults.append(f"line {line}: {device} stands there twice")
        elif out and out in outs and not out.startswith("/dev/"):
            faults.append(f"line {line}: {out} is another device's card too")
        found[device] = ListedDevice(device=device, out=Path(out) if out else None)
        outs.add(out)
    if faults or not found:
        raise ConfigError(f"{path} cannot be used", faults=faults or ["it names no device"])
    return tuple(found.values())
