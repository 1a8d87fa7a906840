"""Damage: what failing cards and cables do to a file."""

import random
from pathlib import Path

__all__ = ["AGENT_FILES", "COORDINATOR_FILES", "damage", "pick"]

SECTOR_BYTES = 512
AGENT_FILES = {
    "outbox": "agent.db",
    "wal": "agent.db-wal",
    "samples": "samples.db",
    "identity": "identity.json",
    "blob": "blobs/*",
    "artifact": "artifacts/*/*",
    "notice": "model.json",
}
"""Files of an agent's state folder by the name that a schedule gives them, as shell patterns."""
COORDINATOR_FILES = {
    "journal": "coordinator.db",
    "wal": "coordinator.db-wal",
    "version": "versions/*.state",
    "blob": "blobs/*",
    "key": "coordinator.key",
    "manifest": "task.manifest",
}
"""The same for a coordinator's."""


def pick(folder: Path, pattern: str, chance: random.Random) -> Path | None:
    """One of the files that are there and not empty; None where there is none."""
    found = [path for path in sorted(folder.glob(pattern)) if path.is_file() and path.stat().st_size]
    return chance.choice(found) if found else None


def damage(path: Path, how: str, chance: random.Random) -> str:
    """Turn one bit (``flip``), overwrite a sector (``block``), or take the end away (``cut``); what was done.

    The file changes in place, behind the back of whoever has it open.
    """
    size = path.stat().st_size
    if how == "cut":
        left = chance.randrange(size)
        with path.open("r+b") as stream:
            stream.truncate(left)
        return f"{path.name} cut from {size} to {left} bytes"
    at = chance.randrange(size)
    with path.open("r+b") as stream:
        if how == "flip":
            stream.seek(at)
            before = stream.read(1)[0]
            stream.seek(at)
            stream.write(bytes([before ^ (1 << chance.randrange(8))]))
            return f"{path.name}: a bit of byte {at} turned"
        at -= at % SECTOR_BYTES
        stream.seek(at)
        stream.write(chance.randbytes(min(SECTOR_BYTES, size - at)))
    return f"{path.name}: sector at byte {at} overwritten"
