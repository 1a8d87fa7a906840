"""The ledgers of agents, as an audit reads them: ``agent.db`` in each agent's state folder."""

import contextlib
import sqlite3
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from fl_protocol.errors import StorageError

__all__ = ["AgentLedger", "read_ledger"]

_AGENT_DATABASE = "agent.db"
_SET_ASIDE = f"quarantine/{_AGENT_DATABASE}.*"


@dataclass(frozen=True, slots=True, kw_only=True)
class AgentLedger:
    """What one agent wrote down: ids ``created`` and ``done`` in their order; ids that were ``refused``, that
    ``expired`` by its policy, that were ``destroyed`` because they could not be read; and those that are in
    its ``outbox`` now.

    ``epochs`` holds the epoch of an update's base, where the agent remembers it. ``stores_destroyed`` counts
    databases before this one, which were damaged and set aside: what waited in them went with them.
    """

    folder: Path
    created: tuple[bytes, ...]
    done: tuple[bytes, ...]
    refused: frozenset[bytes]
    outbox: frozenset[bytes]
    expired: frozenset[bytes] = frozenset()
    destroyed: frozenset[bytes] = frozenset()
    epochs: Mapping[bytes, int] = field(default_factory=dict)
    stores_destroyed: int = 0


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
            epochs = connection.execute(
                "SELECT update_id, epoch FROM ledger JOIN bases USING (sequence)"
            ).fetchall()
    except sqlite3.Error as error:
        raise StorageError(f"cannot read {path}: {error}") from None
    ids: dict[str, list[bytes]] = {}
    for update_id, outcome in lines:
        ids.setdefault(outcome, []).append(update_id)
    return AgentLedger(
        folder=folder,
        created=tuple(ids.get("created", ())),
        done=tuple(ids.get("done", ())),
        refused=frozenset(ids.get("refused", ())),
        expired=frozenset(ids.get("expired", ())),
        destroyed=frozenset(ids.get("destroyed", ())),
        outbox=frozenset(update_id for (update_id,) in outbox),
        epochs=dict(epochs),
        stores_destroyed=sum(1 for path in folder.glob(_SET_ASIDE) if "-" not in path.name),
    )
