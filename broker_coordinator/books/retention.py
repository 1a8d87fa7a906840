"""Retention: how much of the past can still be replayed.

Pruning removes an oldest prefix of payloads and state files. The state of the newest version in that
prefix stays: it is the anchor, where replay begins.
"""

from collections.abc import Sequence
from dataclasses import dataclass

from broker_coordinator.aggregation.version_state import VersionFiles
from broker_coordinator.books.export import rules_of
from broker_coordinator.storage.store import Store
from broker_coordinator.storage.uploads import PayloadFiles
from fl_io.crash import crash_point

__all__ = ["Pruned", "RetentionPolicy", "prune"]

_DAY_S = 86_400.0


@dataclass(frozen=True, slots=True, kw_only=True)
class RetentionPolicy:
    """Payloads are kept for ``versions``, up to ``bytes`` in all, and for ``days`` in which the
    coordinator ran, whichever ends first; ``rows`` journal rows, refusals and version records each."""

    versions: int = 50
    bytes: int = 2_000_000_000
    days: float = 7.0
    rows: int = 100_000


@dataclass(frozen=True, slots=True, kw_only=True)
class Pruned:
    """What a pruning did: the anchor now, state files and journal rows that went."""

    anchor: int
    states: int
    rows: int


def prune(
    store: Store, payloads: PayloadFiles, states: VersionFiles, policy: RetentionPolicy, *, spare: int = 0
) -> Pruned:
    """Drop what the policy does not keep; payloads of ``spare`` versions up to the anchor stay, because the
    versions after it are made of them too (``ca2fl``): so many as the open version calls upon, or one that
    is replayable still, if its rules call upon more.

    Rows first, then files: a crash between leaves files that nobody names, swept the next time.

    Raises:
        StorageError: the disk refuses.
    """
    wanted = _anchor(store, policy)
    files: Sequence[bytes] = ()
    if wanted > store.office().anchor:
        files = store.drop_payloads(wanted, spare=max(spare, _called_upon(store, wanted)))
    payloads.discard(files)
    crash_point("coordinator.payloads.removed")
    rows = store.forget(most=policy.rows)
    anchor = store.office().anchor
    removed = states.remove_below(anchor)
    crash_point("coordinator.states.removed")
    return Pruned(anchor=anchor, states=removed, rows=rows)


def _called_upon(store: Store, anchor: int) -> int:
    """The most versions back that those after ``anchor`` call upon: the rules may have changed since."""
    newest = store.newest_version()
    after = store.versions(newest.number - anchor) if newest is not None else ()
    rules = {version.rules: version for version in after}
    return max((rules_of(store, version).cached_versions for version in rules.values()), default=0)


def _anchor(store: Store, policy: RetentionPolicy) -> int:
    """The number of the newest version whose payloads are to go."""
    newest = store.newest_version()
    if newest is None:
        return 0
    anchor = newest.number - policy.versions
    kept = 0
    for number, size in reversed(store.payload_bytes()):
        kept += size
        if kept > policy.bytes:
            anchor = max(anchor, number)
            break
    born = store.office().uptime_s - policy.days * _DAY_S
    for version in store.versions(policy.versions + 1):
        if version.uptime_s < born:
            anchor = max(anchor, version.number)
    return anchor
