"""``run/status.json``: what the agent does and why, for people and for ``lichen-agent status``."""

import contextlib
import json
import os
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Protocol

from edge_agent.birthmark import birthmark, is_alive
from edge_agent.outbox_counts import OutboxCounts, read_counts
from fl_protocol.clock import Clock
from fl_protocol.errors import StorageError

__all__ = ["StatusFile", "StatusSink", "read_status", "status_path"]

WRITE_EVERY_S = 0.25


def status_path(state: Path) -> Path:
    """Where the status of the agent with this state folder is."""
    return state / "run" / "status.json"


class StatusSink(Protocol):
    """Where a status goes. ``status`` is asked for only by a sink that wants it."""

    def write(self, status: Callable[[], Mapping[str, Any]], *, at_once: bool = False) -> float | None:
        """Take a status; seconds until it should be offered again, if it is too early."""
        ...


class StatusFile:
    """Written when something changed, at most four times a second; whole at any moment, but not durable.
    It says which process wrote it: no other of its number passes for that one."""

    def __init__(self, path: Path, clock: Clock) -> None:
        self._path = path
        self._clock = clock
        self._birthmark = birthmark(os.getpid())
        self._written: Mapping[str, Any] = {}
        self._next = 0.0

    def write(self, status: Callable[[], Mapping[str, Any]], *, at_once: bool = False) -> float | None:
        """Write the status if it is news; seconds until it should be called again, if it is too early."""
        return self._write(status(), at_once=at_once)

    def _write(self, status: Mapping[str, Any], *, at_once: bool) -> float | None:
        if status == self._written:
            return None
        now = self._clock.monotonic()
        if now < self._next and not at_once:
            return self._next - now
        self._next = now + WRITE_EVERY_S
        temporary = self._path.with_name(".status.tmp")
        # A status that cannot be written must not keep the agent from its work.
        with contextlib.suppress(OSError):
            body = {**status, "birthmark": self._birthmark}
            temporary.write_text(json.dumps(body, indent=2) + "\n")
            os.replace(temporary, self._path)
            self._written = dict(status)
        return None


def read_status(state: Path) -> dict[str, Any]:
    """The status as last written, with the outbox as it is now and whether the agent runs.

    Raises:
        StorageError: there is no such state folder yet, or it cannot be read.
    """
    try:
        status: dict[str, Any] = json.loads(status_path(state).read_text())
    except (OSError, ValueError) as error:
        raise StorageError(
            f"no status in {state}: {getattr(error, 'strerror', None) or error}",
            hint="start the agent with `lichen-agent run`, or name its configuration with --config",
        ) from None
    pid, mark = status.get("pid"), status.get("birthmark")
    status["running"] = type(pid) is int and pid > 0 and is_alive(pid, mark if isinstance(mark, str) else "")
    if not status["running"]:
        status["state"] = "stopped"
    with contextlib.suppress(StorageError):
        status |= counts_body(read_counts(state / "agent.db"))
    return status


def counts_body(counts: OutboxCounts) -> dict[str, Any]:
    """``updates``, ``outbox``, ``personal`` and ``residual`` as the status shows them."""
    return {
        "updates": {name: getattr(counts, name) for name in ("created", "done", "refused", "expired")},
        "outbox": {"count": counts.waiting, "bytes": counts.waiting_bytes},
        "personal": {"bytes": counts.personal_bytes},
        "residual": {"bytes": counts.residual_bytes},
    }
