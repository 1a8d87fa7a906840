"""Recovery: from a store that is older than the world to a new epoch, and what of the old one is given up.

A coordinator that was restored from a backup learns from its own signature what the fleet has seen since.
The newest such manifest is kept beside the store, so that ``lichen coordinator recover`` can tell a person
what it is about to give up. It is a note, not a record: recovery does not depend on it.
"""

import contextlib
import os
from dataclasses import dataclass
from pathlib import Path

from broker_coordinator.storage.store import Store
from fl_protocol.errors import MessageError, StorageError
from fl_protocol.signed import peek
from fl_protocol.task import MAX_TASK_BYTES, TaskManifest

__all__ = ["Recovery", "note_witnessed", "recover", "witnessed"]

_FILE = "witnessed.manifest"


@dataclass(frozen=True, slots=True, kw_only=True)
class Recovery:
    """What was kept and what was given up; ``kept`` is the newest version of the store, or None.

    ``accepted`` updates are in the store, ``waiting`` of them not folded yet. ``seen`` is the newest version
    that the fleet has proven, None where it is not known. ``versions_given_up`` is how many versions devices
    have had beyond the last one that this store had published: at least these, and the updates in them.
    """

    epoch: int
    kept: tuple[int, int] | None
    accepted: int
    waiting: int
    seen: tuple[int, int] | None
    versions_given_up: int


def note_witnessed(state: Path, envelope: bytes, manifest: TaskManifest) -> None:
    """Keep a manifest that bears our signature, if it is the newest that was seen."""
    known = witnessed(state)
    if known is not None and known.order >= manifest.order:
        return
    temporary = state / f".{_FILE}.tmp"
    with contextlib.suppress(OSError):
        temporary.write_bytes(envelope)
        os.replace(temporary, state / _FILE)


def witnessed(state: Path) -> TaskManifest | None:
    """The newest manifest that the fleet has proven to a store older than itself."""
    try:
        return TaskManifest.unpack(peek((state / _FILE).read_bytes(), limit=2 * MAX_TASK_BYTES))
    except (OSError, MessageError):
        return None


def recover(state: Path, store: Store, *, force: bool = False) -> Recovery:
    """Open an epoch above all that was witnessed. Whoever calls it holds the state folder.

    Raises:
        StorageError: nobody has shown that it is needed (and it is not forced), or the disk refuses.
    """
    if not (store.office().rolled_back or force):
        raise StorageError(
            f"{state} is not rolled back: there is nothing to recover from",
            hint="--force opens a new epoch all the same",
        )
    newest, counts, manifest = store.newest_version(), store.counts(), witnessed(state)
    seen = manifest.version if manifest is not None else None
    if seen is not None and store.base_known(seen):
        seen = None
    # A store that took updates in before it knew may have made versions of its own: nobody has seen these.
    published = max((version.number for version in store.versions() if version.published), default=-1)
    done = Recovery(
        epoch=store.open_epoch().epoch,
        kept=(newest.epoch, newest.number) if newest is not None else None,
        accepted=counts.accepted,
        waiting=counts.waiting,
        seen=(seen.epoch, seen.number) if seen is not None else None,
        versions_given_up=max(seen.number - published, 1) if seen is not None else 0,
    )
    (state / _FILE).unlink(missing_ok=True)
    return done
