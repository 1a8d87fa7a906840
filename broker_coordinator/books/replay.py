"""Replay: make a committed version again from the one before it and the journal."""

from broker_coordinator.aggregation.fold import Fold
from broker_coordinator.aggregation.version_state import VersionFiles
from broker_coordinator.books.export import rules_of
from broker_coordinator.storage.records import VersionRecord
from broker_coordinator.storage.store import Store
from fl_protocol.errors import AggregatorError, ConfigError, LichenError, StorageError

__all__ = ["replay"]


def replay(store: Store, states: VersionFiles, previous: VersionRecord, version: VersionRecord) -> bytes:
    """The digest that ``version`` must have, its predecessor's state and its updates given.

    Raises:
        StorageError: the state, a payload or the rules are not there, or an update does not fold.
    """
    states.read(version)
    state = states.read(previous)
    if not version.updates:  # of a recovery, or because all that came was set aside
        return state.reopened(version.epoch).digest()
    rules = rules_of(store, version)
    try:
        fold = Fold(rules, state, store)
    except ConfigError as error:
        raise StorageError(f"it was made by rules that are not here: {error}") from None
    for update in store.folded_into(version.number):
        payload = store.payload(update)
        if payload is None:
            raise StorageError(f"the payload of update {update.accept_seq} is gone")
        try:
            fold.add(update, payload)
        except LichenError as error:
            raise StorageError(f"update {update.accept_seq} does not fold: {error}") from None
    if fold.count != version.updates:
        raise StorageError(f"{fold.count} updates of {version.updates} are in the journal")
    try:
        return fold.close().digest()
    except AggregatorError as error:
        raise StorageError(str(error)) from None
