"""The ledgers of agents, as an audit reads them: ``agent.db`` in each agent's state folder."""

import contextlib
import sqlite3
from dataclasses import dataclass
from pathlib import Path

from fl_protocol.errors import StorageError

__all__ = ["AgentLedger", "read_ledger"]

_AGENT_DATABASE = "agent.db"


@dataclass(frozen=True, slots=True, kw_only=True)
class AgentLedger:
    """What one agent wrote down: ids ``created`` and ``done`` in their order, ids ``refused``, and those
    that are in its ``outbox`` now."""

    folder: Path
    created: tuple[bytes, ...]
    done: tuple[bytes, ...]
    refused: frozenset[bytes]
    outbox: frozenset[bytes]


def read_ledger(folder: Path) -> AgentLedger:
    """Read an agent's ledger; it may be running.

    Raises:
        StorageError: there is none, or it cannot be read.
    """
    path = folder / _AGENT_DATABASE
    if not path.exists():
        raise StorageError(f"no agent has run in {folder}", hint=f"name folders that hold {_AGENT_DATABASE}")
    try:
        uri = f"{path.absolute().as_uri()}?mode=ro"
        with contextlib.closing(sqlite3.connect(uri, uri=True, timeout=10.0)) as connection:
            connection.execute("BEGIN")
            lines = connection.execute("SELECT update_id, outcome FROM ledger ORDER BY sequence").fetchall()
            outbox = connection.execute("SELECT update_id FROM outbox").fetchall()
    except sqlite3.Error as error:
        raise StorageError(f"cannot read {path}: {error}") from None
    return AgentLedger(
        folder=folder,
        created=tuple(update_id for update_id, outcome in lines if outcome == "created"),
        done=tuple(update_id for update_id, outcome in lines if outcome == "done"),
        refused=frozenset(update_id for update_id, outcome in lines if outcome == "refused"),
        outbox=frozenset(update_id for (update_id,) in outbox),
    )
