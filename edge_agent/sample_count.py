"""How many samples a store holds, found out without an array library."""

import sqlite3
from collections.abc import Callable
from pathlib import Path
from typing import TypeAlias

from edge_agent.sqlite_file import storage_errors

__all__ = ["RIGHTS_HINT", "CountSamples", "count_samples"]

CountSamples: TypeAlias = Callable[[Path], tuple[int, int]]
"""The numbers of training and of held-out samples at a path."""

RIGHTS_HINT = "the app and the agent must both be able to read and write it: one group, mode 660"


def count_samples(path: Path | str) -> tuple[int, int]:
    """The numbers of training and of held-out samples; ``(0, 0)`` where there is no store yet.

    Raises:
        StorageError: the store cannot be read.
    """
    if not Path(path).exists():
        return 0, 0
    with storage_errors(f"the sample store {path}", RIGHTS_HINT):
        db = sqlite3.connect(f"file:{path}?mode=ro", uri=True, timeout=5.0)
        try:
            row = db.execute("SELECT training, held_out FROM totals").fetchone()
        except sqlite3.OperationalError as error:
            if "no such table" in str(error):  # another process is making the store at this moment
                return 0, 0
            raise
        finally:
            db.close()
    return (int(row[0]), int(row[1])) if row else (0, 0)
