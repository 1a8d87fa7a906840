"""A small model, updates for it, and stores to keep them in."""

import hashlib
from dataclasses import dataclass, replace

import numpy as np
import pytest

from broker_coordinator.aggregation.appraisal import Appraisal, appraise
from broker_coordinator.aggregation.fold import OpenVersion
from broker_coordinator.aggregation.rules import FoldRules
from broker_coordinator.aggregation.version_state import VersionFiles, VersionState
from broker_coordinator.storage.records import AcceptedUpdate, NewUpdate, VersionRecord
from broker_coordinator.storage.sqlite_store import SqliteStore
from broker_coordinator.storage.uploads import PayloadFiles
from fl_protocol.codec import codec_for, codec_seed, encode_model
from fl_protocol.layout import TensorLayout
from fl_protocol.update import UpdateHeader, update_hash
from fl_protocol.version import VersionId

LAYOUT = TensorLayout.of([("w", (33, 40)), ("b", (7,))])
RULES = FoldRules(layout=LAYOUT, codec="float32", max_examples=1000)


@dataclass(frozen=True, kw_only=True)
class Made:
    """An update as a device made it."""

    update_id: bytes
    device: str
    header: UpdateHeader
    payload: bytes

    @property
    def hash(self) -> bytes:
        return update_hash(self.update_id, self.header)


def made(number: int, base: VersionId, *, device: str = "", codec: str = "float32", **changes) -> Made:
    """Update ``number``: its values, id and device follow from that."""
    update_id = hashlib.sha256(b"update %d" % number).digest()[:16]
    layout = changes.pop("layout", LAYOUT)
    delta = changes.pop("delta", None)
    if delta is None:
        delta = np.random.default_rng(number).standard_normal(layout.size).astype(np.float32)
    payload = codec_for(codec).encode(delta, layout, codec_seed(update_id))
    header = UpdateHeader(
        incarnation=b"incarnat",
        base=base,
        codec=codec,
        size=len(payload),
        sha256=hashlib.sha256(payload).digest(),
        fingerprint=layout.fingerprint,
        num_examples=10 + number,
        steps_done=4,
        steps_planned=4,
    )
    return Made(
        update_id=update_id,
        device=device or f"device-{number}",
        header=replace(header, **changes),
        payload=payload,
    )


class History:
    """A coordinator's state without its protocol: accepts updates, folds them, commits versions."""

    def __init__(self, folder, rules: FoldRules = RULES, **opening) -> None:
        self.folder = folder
        self.rules = rules
        self.store = SqliteStore.open(folder, **opening)
        self.payloads = PayloadFiles(folder)
        self.payloads.make_folders()
        self.states = VersionFiles(folder)
        newest = self.store.newest_version()
        self.name = self.store.put_rules(rules.to_json())
        if newest is None:
            layout = rules.layout
            weights = np.linspace(-1, 1, layout.size, dtype=np.float32)
            state = VersionState.initial(
                weights, fingerprint=layout.fingerprint, buffer_size=layout.buffer_size
            )
            newest = self.commit(state, through_seq=0, updates=0, closed_by="initial")
        self.version = newest
        self.open = self.reopen()
        self.numbers = 0

    def reopen(self) -> OpenVersion:
        """Rebuild the open version from the store."""
        state = self.states.read(self.version)
        return OpenVersion(self.store, self.rules, state, through_seq=self.version.through_seq)

    def accept(self, update: Made, *, as_file: bool = False) -> AcceptedUpdate:
        """Appraise and accept an update."""
        appraisal = appraise(
            update.update_id,
            update.header,
            update.payload,
            device=update.device,
            state=self.open.state,
            rules=self.rules,
        )
        assert isinstance(appraisal, Appraisal), appraisal
        if as_file:
            self.payloads.put(update.update_id, 0, update.payload)
            assert self.payloads.finish(
                update.update_id, size=update.header.size, sha256=update.header.sha256
            )
        new = NewUpdate(
            update_id=update.update_id,
            device=update.device,
            hash=update.hash,
            header=update.header.pack(),
            base=update.header.base,
            size=len(update.payload),
            payload=None if as_file else update.payload,
            weight=appraisal.weight,
            scale=appraisal.scale,
            norm=appraisal.norm,
            staleness=appraisal.staleness,
        )
        self.store.device_seen(update.device)
        return AcceptedUpdate.of(new, self.store.accept(new))

    def next(self, base: VersionRecord | None = None, **changes) -> Made:
        """The next update, trained from the newest version unless told otherwise."""
        self.numbers += 1
        return made(self.numbers, (base or self.version).id, layout=self.rules.layout, **changes)

    def take(self, count: int = 1, **changes) -> list[Made]:
        """Accept and fold ``count`` updates."""
        updates = [self.next(**changes) for _ in range(count)]
        for update in updates:
            assert self.open.add(self.accept(update))
        return updates

    def close(self) -> VersionRecord:
        """Close the open version and commit it."""
        closed = self.open.close()
        assert closed is not None
        self.version = self.commit(
            closed.state, through_seq=closed.through_seq, updates=closed.updates, closed_by="size"
        )
        self.open = self.reopen()
        return self.version

    def commit(self, state: VersionState, *, through_seq: int, updates: int, closed_by: str) -> VersionRecord:
        """State file, blob, then the transaction."""
        blob = encode_model(state.master, self.rules.layout)
        (self.folder / "blobs").mkdir(exist_ok=True)
        (self.folder / "blobs" / hashlib.sha256(blob).hexdigest()).write_bytes(blob)
        record = VersionRecord(
            epoch=state.epoch,
            number=state.number,
            digest=self.states.write(state),
            published_sha256=hashlib.sha256(blob).digest(),
            rules=self.name,
            through_seq=through_seq,
            updates=updates,
            closed_by=closed_by,
            term=1,
        )
        self.store.commit_version(record)
        return record


@pytest.fixture
def begin(tmp_path):
    """Begin, or go on with, a history in a folder (``state`` in the test's own unless named)."""
    histories = []

    def open_history(folder=None, rules: FoldRules = RULES, **opening) -> History:
        histories.append(History(folder or tmp_path / "state", rules, **opening))
        return histories[-1]

    yield open_history
    for history in histories:
        history.store.close()


@pytest.fixture
def history(begin) -> History:
    """A history with its initial version."""
    return begin()


@pytest.fixture
def small_rules() -> FoldRules:
    """The rules of the small model."""
    return RULES


@pytest.fixture
def make_update():
    """``make_update(number, base, ...)``: an update as a device makes it."""
    return made
