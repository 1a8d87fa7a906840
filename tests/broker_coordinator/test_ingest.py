"""The order of ingest: commit, acknowledgement, receipt. And power cuts between any two file operations."""

import contextlib

import pytest
from simulated_disk import PowerCut, SimulatedDisk

from broker_coordinator.books.audit import audit
from broker_coordinator.ingest import commit_then_answer
from fl_protocol.errors import StorageError


class FullStore:
    """A store whose commit fails, as on a full disk."""

    @contextlib.contextmanager
    def transaction(self, purpose=""):
        yield
        raise StorageError("the disk is full")


class GoodStore:
    """A store that notes its commit."""

    def __init__(self, log):
        self._log = log

    @contextlib.contextmanager
    def transaction(self, purpose=""):
        yield
        self._log.append("commit")


class Wire:
    """Notes what would go out: stands for the transport and for the outgoing queue."""

    def __init__(self, log):
        self._log = log

    def acknowledge(self, token):
        self._log.append(f"acknowledge {token}")

    def send(self, topic, payload):
        self._log.append(f"send {topic}")


def work(batch):
    batch.tokens.append(7)
    batch.answers.append(("receipt", b""))


def test_acknowledgement_and_receipt_come_after_the_commit():
    """Whoever swaps commit and receipt turns this red."""
    log = []
    commit_then_answer(GoodStore(log), Wire(log), Wire(log), work)
    assert log == ["commit", "acknowledge 7", "send receipt"]


def test_a_failed_commit_says_nothing():
    """Neither acknowledged nor answered: broker and device keep what they have."""
    log = []
    with pytest.raises(StorageError):
        commit_then_answer(FullStore(), Wire(log), Wire(log), work)
    assert log == []


def test_a_full_disk_loses_nothing(fleet_of):
    """The commit of an update fails, the process ends; the next one takes the update in."""
    fleet = fleet_of().start()
    device = fleet.device("d1")
    update = device.make(fleet.layout)
    store, commit = fleet.store, fleet.store.transaction

    @contextlib.contextmanager
    def full(purpose=""):
        with commit():
            yield
            raise StorageError("the disk is full")

    store.transaction = full
    device.begin(*update)
    with pytest.raises(StorageError):
        fleet.settle()
    assert device.words(update[0]) == []
    fleet.crash()
    fleet.start()
    assert device.words(update[0]) == ["done"]


class Outboxes:
    """What the devices keep, whatever becomes of the coordinator: updates under way, and the last base."""

    def __init__(self):
        self.updates = {}
        self.bases = {}
        self.made = 0
        self.done = set()


def scenario(fleet, outboxes):
    """Two devices contribute to versions until six updates are done, beginning with what is left in their
    outboxes from an earlier life of the coordinator."""
    fleet.start()
    devices = [fleet.device(f"d{number}") for number in range(2)]
    for _ in range(4):
        for device in devices:
            base = device.manifest.version
            if device.name not in outboxes.updates and outboxes.bases.get(device.name) != base:
                outboxes.made += 1
                outboxes.updates[device.name] = device.make(fleet.layout, salt=str(outboxes.made))
                outboxes.bases[device.name] = base
            if device.name in outboxes.updates and len(outboxes.done) < 6:
                push(fleet, device, outboxes.updates[device.name])
                outboxes.done.add(outboxes.updates.pop(device.name)[0])


def push(fleet, device, update):
    """Get one update through, however it has to travel."""
    update_id, header, payload = update
    for _ in range(20):
        if device.words(update_id)[-1:] == ["done"]:
            return
        device.begin(update_id, header)
        fleet.settle(1.0)
        receipt = device.last(update_id)
        assert receipt.state != "refused", receipt
        if receipt.state != "open":
            continue
        for start, end in receipt.missing.first(receipt.credit):
            for at in range(start, end, 1 << 16):
                stop = min(at + (1 << 16), end)
                device.say(device.topics.chunk(device.name, update_id, at), payload[at:stop])
        fleet.settle(1.0)
    raise AssertionError(device.words(update_id))


def operations_of(fleet_of, large_artifact):
    """How many file operations the scenario takes."""
    disk = SimulatedDisk()
    scenario(fleet_of(artifact=large_artifact, disk=disk), Outboxes())
    return disk.operations


def cut_run(fleet_of, large_artifact, cut, *, disk_class=SimulatedDisk):
    """Run to a power cut before operation ``cut``, come back, go on, and audit."""
    disk = disk_class(cut=cut, seed=cut)
    fleet = fleet_of(artifact=large_artifact, disk=disk)
    outboxes = Outboxes()
    with contextlib.suppress(PowerCut):
        scenario(fleet, outboxes)
    fleet.crash()
    disk.crash()
    scenario(fleet, outboxes)
    report = audit(fleet.folder)
    assert report.balanced, report.faults
    assert (len(outboxes.done), report.quarantined) == (6, 0)
    assert not [i.hex() for i in outboxes.done if fleet.store.outcome(i) is None]


def test_a_power_cut_between_any_two_file_operations_loses_nothing(fleet_of, large_artifact):
    """Part files, payloads, state files, blobs, the manifest: whatever was said to be done is there, every
    version replays, and the fleet goes on by itself."""
    total = operations_of(fleet_of, large_artifact)
    assert total > 60
    for cut in range(1, total + 1, 3):
        cut_run(fleet_of, large_artifact, cut)


@pytest.mark.parametrize(("folder", "dropped"), [("versions", {2}), ("parts", {1, 2})])
def test_a_missing_fsync_is_found(fleet_of, large_artifact, folder, dropped):
    """Drop the fsync of one state file, or of one payload (its chunks are synced, and it is once more, when
    it is whole): some power cut then breaks the books."""

    class Forgetful(SimulatedDisk):
        """Drops some of the fsyncs in ``folder``."""

        seen = 0

        def sync(self, path):
            self.seen += path.parent.name == folder
            if path.parent.name != folder or self.seen not in dropped:
                super().sync(path)

    def breaks(cut):
        try:
            cut_run(fleet_of, large_artifact, cut, disk_class=Forgetful)
        except (AssertionError, StorageError):
            return True
        return False

    total = operations_of(fleet_of, large_artifact)
    assert any(breaks(cut) for cut in range(1, total + 1))
