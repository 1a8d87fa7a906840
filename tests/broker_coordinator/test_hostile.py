"""Messages that are meant, or happen, to do harm: each costs a counter, and nothing else happens."""

import hashlib
from dataclasses import replace

import msgpack

from broker_coordinator import ingest as ingest_module
from broker_coordinator.books.audit import audit
from broker_coordinator.configuration import BufferTable
from broker_coordinator.inquiry import AGAIN_S, MOST_REMEMBERED, Inquiry
from fl_protocol.clock import ManualClock
from fl_protocol.command import Command
from fl_protocol.presence import DeviceEvent, GetRequest
from fl_protocol.signed import peek
from fl_protocol.topics import blob_name
from fl_protocol.transport import Received
from fl_protocol.update import MAX_BEGIN_BYTES


def questions(device):
    """The commands to restate with evidence that a device has got."""
    commands = [Command.unpack(peek(envelope, limit=4096)) for envelope in device.commands]
    return [command for command in commands if command.kind == "restate" and command.evidence]


def obedient(device, seen):
    """Let a device restate its birth whenever it is asked to, as devices do."""
    receive = device.receive

    def receive_and_obey(event):
        receive(event)
        if isinstance(event, Received) and event.topic == device.topics.command(device.name):
            device.birth(seen=seen)

    device.transport._receive = receive_and_obey


def test_a_chunk_number_beyond_any_file_is_answered_empty(fleet):
    """No disk can seek there: it must not be tried."""
    device = fleet.device("d1")
    weights = device.manifest.weights
    name = blob_name(weights.address, weights.chunk_bytes)
    for index in (10**9, 10**15 - 1):
        device.say(device.topics.get("d1"), GetRequest(blob=name, index=index).pack())
    fleet.settle()
    assert device.blobs == {(weights.address, 10**9): b"", (weights.address, 10**15 - 1): b""}


def test_a_header_that_grows_when_it_is_written_again_is_malformed(fleet_of, large_artifact):
    """Names without end fill it to the limit, and numbers take more room as we write them: were it kept, it
    could not be read again, and every version that closes looks at it."""
    fleet = fleet_of(artifact=large_artifact, buffer=BufferTable(size=1)).start()
    device = fleet.device("d1")
    update_id, header, _ = device.make(fleet.layout, metrics={})
    numbers = {f"{number:03d}{'n' * 4074}": 2.0**52 for number in range(16)}
    body = msgpack.unpackb(header.pack()) | {"m": {"before": numbers}}
    content = msgpack.packb(body, use_single_float=True)
    assert len(content) <= MAX_BEGIN_BYTES < len(msgpack.packb(body))
    device.say(device.topics.begin("d1", update_id), content)
    fleet.settle()
    assert device.last(update_id).reason == "malformed"
    assert not fleet.store.uploads()


def test_a_claim_is_asked_about_once_in_a_while(fleet):
    """A device that restates its claim when it is asked, and has no proof: not a storm of questions."""
    device = fleet.device("d1")
    obedient(device, (1, 99))
    device.birth(seen=(1, 99))
    fleet.settle(10.0)
    assert len(questions(device)) == 1
    device.birth(seen=(1, 99))
    fleet.settle(AGAIN_S + 1.0)
    device.birth(seen=(1, 99))
    fleet.settle()
    assert len(questions(device)) == 2


def test_a_rolled_back_coordinator_asks_nobody(fleet, tmp_path):
    """A thousand devices come back to it, each with a newer manifest: it knows already."""
    from broker_coordinator.books.backup import back_up

    devices = [fleet.device(f"d{number}") for number in range(2)]
    back_up(fleet.folder, tmp_path / "backup")
    for device in devices:
        device.begin(*device.make(fleet.layout))
    fleet.settle()
    proof = fleet.broker._retained[devices[0].topics.task()]
    fleet.crash()
    fleet.folder = tmp_path / "backup"
    fleet.configuration = replace(fleet.configuration, state=fleet.folder)
    fleet.broker.restart(keep_store=False)
    fleet.start()
    fleet.settle(3.0)
    late = fleet.device("late")
    late.say(late.topics.event("late"), DeviceEvent(kind="evidence", proof=proof).pack())
    fleet.settle()
    assert fleet.coordinator.figures().state == "rolled_back"
    obedient(late, devices[0].manifest.order)
    late.birth(seen=devices[0].manifest.order)
    fleet.settle(10.0)
    assert questions(late) == []


def test_who_was_asked_is_remembered_within_bounds():
    """By name, and the oldest goes: a flood of names costs no memory."""
    asked = []

    class Commands:
        """Notes who is asked."""

        def restate(self, device, *, evidence):
            asked.append(device)
            return device, b""

    class Batch:
        """Takes answers."""

        def __init__(self):
            self.answers = []

    inquiry = Inquiry(Commands(), ManualClock(0.0))
    for number in range(MOST_REMEMBERED + 10):
        inquiry.ask(Batch(), str(number))
    inquiry.ask(Batch(), str(MOST_REMEMBERED))
    assert len(asked) == len(inquiry._asked) + 10 == MOST_REMEMBERED + 10


def test_an_ancient_manifest_proves_nothing(fleet_of):
    """Its version was forgotten in time, below the horizon: replayed, it must not halt the fleet."""
    from broker_coordinator.configuration import HorizonTable

    fleet = fleet_of(horizon=HorizonTable(versions=2), buffer=BufferTable(size=1)).start()
    device = fleet.device("d1")
    ancient = fleet.broker._retained[device.topics.task()]
    for _ in range(4):
        device.begin(*device.make(fleet.layout))
        fleet.settle()
    fleet.store._database.change("DELETE FROM versions WHERE number = 0")
    device.say(device.topics.event("d1"), DeviceEvent(kind="evidence", proof=ancient).pack())
    fleet.settle()
    assert fleet.coordinator.figures().state == "running"


def test_a_message_that_breaks_the_program_is_left_out(fleet_of, monkeypatch):
    """A fault of ours, met by one update in a burst: the others are accepted, it is counted and does not
    come again, and what was undone with it is not counted twice."""
    fleet = fleet_of(buffer=BufferTable(size=50)).start()
    devices = [fleet.device(f"d{number}") for number in range(6)]
    updates = [device.make(fleet.layout) for device in devices]
    appraise_all = ingest_module.appraise_all

    def broken(candidates, **named):
        if updates[3][0] in [candidate.update_id for candidate in candidates]:
            raise ZeroDivisionError
        return appraise_all(candidates, **named)

    monkeypatch.setattr(ingest_module, "appraise_all", broken)
    for device, update in zip(devices, updates, strict=True):
        device.begin(*update)
    devices[0].begin(b"m" * 16, replace(updates[0][1], codec="int8"), updates[0][2])
    fleet.settle()
    words = [device.words(update[0]) for device, update in zip(devices, updates, strict=True)]
    assert words == [["done"]] * 3 + [[]] + [["done"]] * 2
    figures = fleet.coordinator.figures()
    assert (figures.rejected, figures.refused) == ({"broken": 1}, {"codec": 1})
    assert figures.updates_accepted == fleet.store.counts().accepted == 5
    assert not fleet.broker._sessions["coordinator"].unacknowledged
    monkeypatch.undo()
    devices[3].begin(*updates[3])
    fleet.settle()
    assert devices[3].words(updates[3][0]) == ["done"]
    assert audit(fleet.folder).balanced


def test_a_burst_decides_as_one_message_after_the_other_would(fleet_of):
    """Twice the same update, a second one for the same base, one that does not decode: all in one commit."""
    fleet = fleet_of(buffer=BufferTable(size=50)).start()
    one, two, three, four = (fleet.device(f"d{number}") for number in range(4))
    first, second = one.make(fleet.layout), one.make(fleet.layout)
    update_id, header, payload = two.make(fleet.layout)
    bad = b"\xff" * len(payload)
    broken = update_id, replace(header, sha256=hashlib.sha256(bad).digest()), bad
    after, last = two.make(fleet.layout), four.make(fleet.layout)
    one.begin(*first)
    one.begin(*first)
    one.begin(*second)
    two.begin(*broken)
    two.begin(*after)
    three.begin(first[0], replace(first[1], num_examples=3), first[2])
    four.begin(*last)
    fleet.settle()
    assert one.words(first[0]) == ["done", "done"]
    assert one.last(second[0]).reason == "already_counted"
    assert (two.last(broken[0]).reason, two.words(after[0])) == ("codec", ["done"])
    assert three.last(first[0]).reason == "conflict"
    assert four.words(last[0]) == ["done"]
    assert fleet.store.counts().accepted == 3
    assert audit(fleet.folder).balanced


def test_an_upload_that_breaks_the_program_is_undone_whole(fleet_of, large_artifact, monkeypatch):
    """What is known of uploads under way is what the store knows of, after a commit that was undone."""
    fleet = fleet_of(artifact=large_artifact).start()
    device = fleet.device("d1")
    update_id, header, _ = device.make(fleet.layout)
    grant = fleet.coordinator._ingest.credit.grant
    monkeypatch.setattr(fleet.coordinator._ingest.credit, "grant", lambda *words: 1 // 0)
    device.begin(update_id, header)
    fleet.settle()
    assert (device.words(update_id), fleet.store.uploads()) == ([], [])
    monkeypatch.setattr(fleet.coordinator._ingest.credit, "grant", grant)
    device.begin(update_id, header)
    fleet.settle()
    assert device.words(update_id) == ["open"]
    assert [upload.update_id for upload in fleet.store.uploads()] == [update_id]


def test_a_commit_that_is_undone_after_the_last_byte_costs_no_byte(fleet_of, large_artifact, monkeypatch):
    """The payload is whole and renamed already when its acceptance fails: taken again, its last chunk must
    not stand for all of it, which would refuse a good update for ever."""
    fleet = fleet_of(artifact=large_artifact, buffer=BufferTable(size=1)).start()
    device = fleet.device("d1")
    update_id, header, payload = device.make(fleet.layout)
    device.begin(update_id, header)
    fleet.settle()
    appraise_all, failures = ingest_module.appraise_all, [ZeroDivisionError]

    def broken_once(*rest, **named):
        if failures:
            raise failures.pop()
        return appraise_all(*rest, **named)

    monkeypatch.setattr(ingest_module, "appraise_all", broken_once)
    for at in range(0, header.size, 1 << 16):
        device.say(device.topics.chunk("d1", update_id, at), payload[at : at + (1 << 16)])
    fleet.settle()
    assert not failures
    assert device.last(update_id).state == "done"
    assert fleet.coordinator.version.number == 1
    assert audit(fleet.folder).versions_ok == 1


def test_refusals_are_pruned_although_no_version_closes(fleet, monkeypatch):
    """A fleet of another model sends for ever: what is remembered of it stays bounded."""
    from broker_coordinator import coordinator as coordinator_module

    fleet.coordinator._policy = replace(fleet.coordinator._policy, rows=5)
    device = fleet.device("d1")
    for number in range(20):
        _, header, payload = device.make(fleet.layout, fingerprint=b"x" * 8)
        device.begin(hashlib.sha256(bytes([number])).digest()[:16], header, payload)
    fleet.settle(coordinator_module.PRUNE_EVERY_S + 2.0)
    assert fleet.coordinator.figures().refused == {"layout": 20}
    assert fleet.store.counts().refused == 5
