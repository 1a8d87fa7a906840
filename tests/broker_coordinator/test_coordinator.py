"""The whole coordinator, on the loopback broker."""

import numpy as np
import pytest

from broker_coordinator.audit import audit
from broker_coordinator.configuration import (
    BufferTable,
    HorizonTable,
    PublishTable,
    SelectionTable,
    UpdateTable,
)
from broker_coordinator.evaluation import Evaluation
from fl_protocol.command import Command
from fl_protocol.errors import TransportError
from fl_protocol.loopback import Faults
from fl_protocol.presence import CoordinatorPresence, GetRequest
from fl_protocol.signed import peek
from fl_protocol.topics import blob_name


@pytest.fixture
def fleet(fleet_of):
    return fleet_of().start()


def contribute(fleet, *devices, value=0.01, **changes):
    """Each device sends one update on the newest version, whole; their ids."""
    ids = []
    for device in devices:
        update = device.make(fleet.layout, value=value, **changes)
        device.begin(*update)
        ids.append(update[0])
    fleet.settle()
    return ids


def books(fleet):
    report = audit(fleet.folder)
    assert report.balanced, report.faults
    return report


def fetched(device, fleet, ref):
    """What a device gets by subscribing to every chunk of a blob."""
    name = blob_name(ref.address, ref.chunk_bytes)
    device.transport.subscribe([device.topics.blob(name, index) for index in range(ref.chunk_count)])
    fleet.settle()
    chunks = [device.blobs.get((ref.address, index)) for index in range(ref.chunk_count)]
    return None if None in chunks else b"".join(chunks)


# Versions


def test_the_first_version_is_published_whole(fleet):
    """A device finds manifest, weights and artifact on the broker, without asking anyone."""
    device = fleet.device("d1")
    assert device.manifest.version.number == 0
    manifest = fetched(device, fleet, device.manifest.artifact)
    assert manifest == fleet.artifact.manifest.to_json()
    assert fetched(device, fleet, device.manifest.weights) is not None
    assert fetched(device, fleet, fleet.artifact.manifest.files["step.onnx"]) is not None
    assert device.presences[-1].marker


def test_k_updates_make_a_version(fleet):
    """Two accepted updates (K = 2) close version 1: master moves by their mean, and it goes out."""
    devices = [fleet.device(f"d{number}") for number in range(2)]
    before = fleet.coordinator.weights.copy()
    ids = contribute(fleet, *devices)
    assert [device.words(i) for device, i in zip(devices, ids, strict=True)] == [["done"], ["done"]]
    assert fleet.coordinator.version.number == 1
    assert (fleet.coordinator.weights - before) == pytest.approx(0.01, abs=1e-6)
    assert devices[0].manifest.version == fleet.coordinator.version.id
    assert books(fleet).folded == 2


def test_a_burst_is_weighed_version_by_version(fleet):
    """Ten updates that wait at once make five versions, and their staleness counts them: 0 0 1 1 2 2 ..."""
    devices = [fleet.device(f"d{number}") for number in range(10)]
    contribute(fleet, *devices)
    assert fleet.coordinator.version.number == 5
    staleness = [row.staleness for n in range(1, 6) for row in fleet.store.folded_into(n)]
    assert staleness == [0, 0, 1, 1, 2, 2, 3, 3, 4, 4]
    assert books(fleet).versions_ok == 5


def test_a_deadline_closes_a_smaller_version(fleet_of):
    """With ``flush_after_s`` one update is enough, after that time."""
    fleet = fleet_of(buffer=BufferTable(size=5, flush_after_s=60.0)).start()
    contribute(fleet, fleet.device("d1"))
    assert fleet.coordinator.version.number == 0
    fleet.settle(61.0)
    assert (fleet.coordinator.version.number, fleet.coordinator.version.closed_by) == (1, "deadline")


def test_publishing_may_be_slower_than_committing(fleet_of):
    """At most one edition every ten seconds; the newest version goes out, those between do not."""
    fleet = fleet_of(publish=PublishTable(every_s=10.0)).start()
    devices = [fleet.device(f"d{number}") for number in range(6)]
    contribute(fleet, *devices)
    assert (fleet.coordinator.version.number, devices[0].manifest.version.number) == (3, 0)
    fleet.settle(10.1)
    assert [m.version.number for m in devices[0].manifests] == [0, 3]
    assert [v.published for v in fleet.store.versions()] == [True, False, False, True]


def test_it_stops_at_the_last_version_that_was_asked_for(artifact, fleet_of):
    """Finished means: made, evaluated, published, and quiet; what comes later is accepted and waits."""
    fleet = fleet_of(stop_after_versions=1)

    def evaluate(weights):
        return Evaluation(source="coordinator", devices=0, examples=4, sums={"correct": 3.0})

    fleet.start(evaluate=evaluate)
    devices = [fleet.device(f"d{number}") for number in range(5)]
    assert not fleet.coordinator.finished
    contribute(fleet, *devices)
    assert not fleet.coordinator.finished, "updates may be under way"
    fleet.settle(1.1)
    assert fleet.coordinator.finished
    assert fleet.coordinator.version.number == 1
    assert [v.metrics["accuracy"] for v in fleet.store.versions()] == [0.75, 0.75]
    figures = fleet.coordinator.figures()
    assert (figures.accuracy, figures.accuracy_source, figures.waiting) == (0.75, "coordinator", 3)
    assert books(fleet).waiting == 3


def test_devices_reports_stand_in_for_a_held_out_file(fleet):
    """Accuracy says its source, and how many devices and examples are behind it."""
    contribute(fleet, fleet.device("d1"), fleet.device("d2"))
    figures = fleet.coordinator.figures()
    assert (figures.accuracy, figures.accuracy_source, figures.accuracy_version) == (0.5, "devices", 0)
    assert (figures.accuracy_devices, figures.accuracy_examples) == (2, 20)


# Exactly once


def test_a_repeated_update_gets_the_same_receipt_and_counts_once(fleet):
    """However often it comes, before and after its version closed."""
    device = fleet.device("d1")
    update = device.make(fleet.layout)
    for _ in range(3):
        device.begin(*update)
    fleet.settle()
    contribute(fleet, fleet.device("d2"))
    assert fleet.coordinator.version.number == 1
    device.begin(*update)
    device.begin(*update[:2])
    fleet.settle()
    assert device.words(update[0]) == ["done"] * 5
    assert books(fleet).accepted == 2


def test_an_id_with_another_header_is_a_conflict(fleet):
    """And the first word on it stands."""
    device = fleet.device("d1")
    update_id, header, payload = device.make(fleet.layout)
    device.begin(update_id, header, payload)
    _, other, content = device.make(fleet.layout, value=0.5)
    device.begin(update_id, other, content)
    device.begin(update_id, header, payload)
    fleet.settle()
    assert device.words(update_id) == ["done", "refused", "done"]
    assert [r.reason for _, r in device.receipts] == ["", "conflict", ""]


def test_a_device_counts_once_for_a_base(fleet):
    """A second id for the same version: a card restored from an image, or a restless device."""
    device = fleet.device("d1")
    (first,), (second,) = contribute(fleet, device), contribute(fleet, device)
    assert device.last(first).state == "done"
    assert device.last(second).reason == "already_counted"


def test_a_probe_of_a_small_update_is_told_to_send_it(fleet):
    """``open``, with credit for all of it; then the payload comes in ``begin``."""
    device = fleet.device("d1")
    update_id, header, payload = device.make(fleet.layout)
    device.begin(update_id, header)
    fleet.settle()
    receipt = device.last(update_id)
    assert (receipt.state, receipt.credit) == ("open", header.size)
    device.begin(update_id, header, payload)
    fleet.settle()
    assert device.words(update_id) == ["open", "done"]


def test_a_base_below_the_horizon_is_stale(fleet_of):
    """After more versions than the horizon allows."""
    fleet = fleet_of(horizon=HorizonTable(versions=2)).start()
    sleeper = fleet.device("sleeper")
    old = sleeper.manifest.version
    devices = [fleet.device(f"d{number}") for number in range(2)]
    for _ in range(3):
        contribute(fleet, *devices)
    update = sleeper.make(fleet.layout, base=old)
    sleeper.begin(*update)
    fleet.settle()
    assert sleeper.last(update[0]).reason == "stale"


def test_bad_messages_are_counted_and_nothing_else_happens(fleet):
    """Not msgpack, not finite, another layout, a topic of no meaning, a foreign manifest: it goes on."""
    device = fleet.device("d1")
    topics = device.topics
    nan = np.full(fleet.layout.size, np.nan, np.float32).tobytes()
    bad = device.make(fleet.layout)
    import hashlib
    from dataclasses import replace

    header = replace(bad[1], sha256=hashlib.sha256(nan).digest())
    device.begin(bad[0], header, nan)
    foreign = device.make(fleet.layout, fingerprint=b"x" * 8)
    device.begin(*foreign)
    device.say(topics.begin("d1", b"m" * 16), b"\xc1 not msgpack")
    device.say(topics.state("d1"), b"{}")
    device.say(topics.event("d1"), b"")
    device.say(topics.get("d1"), b"\x00" * 9000)
    device.say(f"{topics.prefix}up/d1/begin/UPPER", b"")
    device.say(f"{topics.prefix}up/d1/chunk/{'a' * 26}/7", b"x")
    device.say(topics.task(), b"someone else's")
    device.say(topics.coordinator, b"noise")
    fleet.settle()
    assert device.last(bad[0]).reason == "codec"
    assert device.last(foreign[0]).reason == "layout"
    assert device.last(b"m" * 16).reason == "malformed"
    figures = fleet.coordinator.figures()
    assert figures.refused == {"codec": 1, "layout": 1}
    assert figures.rejected["malformed"] >= 4
    assert figures.rejected["topic"] == 2
    assert contribute(fleet, device, fleet.device("d2"))
    assert fleet.coordinator.version.number == 1


# Large updates


@pytest.fixture
def large(fleet_of, large_artifact):
    """Make fleets whose updates do not fit into one message."""
    return lambda **tables: fleet_of(artifact=large_artifact, **tables).start()


def send_missing(device, update, *, most=None):
    """Send what the last receipt asks for, within its credit, in chunks of 64 KiB; how many."""
    update_id, _, payload = update
    receipt = device.last(update_id)
    sent = 0
    for start, end in receipt.missing.first(receipt.credit):
        for at in range(start, end, 1 << 16):
            if sent == most:
                return sent
            stop = min(at + (1 << 16), end)
            device.say(device.topics.chunk(device.name, update_id, at), payload[at:stop])
            sent += 1
    return sent


def test_a_large_update_comes_in_chunks_and_survives_a_crash(large):
    """A third of it is there, the coordinator dies: only the rest is asked for, and it counts once."""
    fleet = large(buffer=BufferTable(size=1))
    device = fleet.device("d1")
    update = device.make(fleet.layout)
    assert update[1].size > 200_000
    device.begin(*update[:2])
    fleet.settle()
    assert send_missing(device, update, most=1) == 1
    fleet.settle()
    fleet.crash()
    fleet.start()
    device.begin(*update[:2])
    fleet.settle()
    assert device.last(update[0]).missing.ranges == ((1 << 16, update[1].size),)
    send_missing(device, update)
    fleet.settle()
    assert device.last(update[0]).state == "done"
    assert fleet.coordinator.version.number == 1
    assert not list((fleet.folder / "parts").iterdir())
    assert books(fleet).versions_ok == 1


def test_a_large_update_of_the_wrong_content_is_refused(large):
    """Its hash is not the header's: refused, and its bytes are gone."""
    fleet = large()
    device = fleet.device("d1")
    update_id, header, payload = device.make(fleet.layout)
    device.begin(update_id, header)
    fleet.settle()
    send_missing(device, (update_id, header, bytes(len(payload))))
    fleet.settle()
    assert device.last(update_id).reason == "hash"
    assert not [*(fleet.folder / "parts").iterdir(), *(fleet.folder / "payloads").iterdir()]


def test_credit_is_given_in_turns(large):
    """More uploads than the window holds: some are told to wait, all come through."""
    from broker_coordinator.configuration import IngestTable

    fleet = large(buffer=BufferTable(size=9), ingest=IngestTable(window_bytes=300_000))
    devices = [fleet.device(f"d{number}") for number in range(3)]
    updates = [device.make(fleet.layout) for device in devices]
    for device, update in zip(devices, updates, strict=True):
        device.begin(*update[:2])
    fleet.settle()
    assert "later" in [device.last(u[0]).state for device, u in zip(devices, updates, strict=True)]
    for _ in range(20):
        for device, update in zip(devices, updates, strict=True):
            receipt = device.last(update[0])
            if receipt.state == "later":
                device.begin(*update[:2])
            elif receipt.state == "open":
                send_missing(device, update)
            fleet.settle()
            assert fleet.coordinator.figures().credit_bytes <= 300_000
    assert [device.last(u[0]).state for device, u in zip(devices, updates, strict=True)] == ["done"] * 3


# Crashes and brokers


def test_a_restart_goes_on_where_it_was(fleet):
    """An accepted update is in the open version again; term counts the starts; the manifest is the same."""
    devices = [fleet.device(f"d{number}") for number in range(2)]
    (first,) = contribute(fleet, devices[0])
    envelope = devices[0].manifest
    fleet.crash()
    fleet.start()
    assert fleet.coordinator.figures().waiting == 1
    assert fleet.coordinator.figures().term == 2
    assert devices[0].manifest == envelope
    contribute(fleet, devices[1])
    assert fleet.coordinator.version.number == 1
    devices[0].begin(first, *devices[0].make(fleet.layout)[1:])
    fleet.settle()
    assert books(fleet).accepted == 2


def test_a_kept_broker_costs_a_restart_two_messages(fleet):
    """Marker and manifest are found: nothing but our presence goes out again."""
    device = fleet.device("d1")
    fleet.crash()
    sent = []
    route = fleet.broker.route
    fleet.broker.route = lambda topic, payload, *, retain: (
        sent.append(topic),
        route(topic, payload, retain=retain),
    )
    fleet.start()
    assert set(sent) == {device.topics.coordinator}
    assert len(sent) == 2


def test_a_broker_that_forgot_is_filled_again(fleet):
    """After a restart with an empty store everything is there again, without a restart of ours."""
    contribute(fleet, fleet.device("d1"), fleet.device("d2"))
    fleet.broker.restart(keep_store=False)
    fleet.settle()
    fleet.transport.reconnect()
    late = fleet.device("late")
    fleet.settle(3.0)
    assert late.manifest.version.number == 1
    assert fetched(late, fleet, late.manifest.weights) is not None
    assert fetched(late, fleet, late.manifest.artifact) is not None


def test_old_blobs_leave_the_broker_and_the_disk(fleet):
    """Three versions are kept; the artifact stays as long as it is used."""
    devices = [fleet.device(f"d{number}") for number in range(2)]
    refs = []
    for _ in range(6):
        refs.append(devices[0].manifest.weights)
        contribute(fleet, *devices)
    refs.append(devices[0].manifest.weights)
    late = fleet.device("late")
    there = [fetched(late, fleet, ref) is not None for ref in refs]
    assert there == [False] * 4 + [True] * 3
    assert fetched(late, fleet, late.manifest.artifact) is not None
    topics = {row.topic for row in fleet.store.inventory()}
    assert topics == {t for t in fleet.broker._retained if "/blob/" in t}
    assert len(list((fleet.folder / "blobs").iterdir())) <= len(topics) + 1


def test_without_retained_messages_devices_ask(fleet_of):
    """``retain = never``: nothing is retained; manifest and chunks come in answer to ``get``."""
    fleet = fleet_of(publish=PublishTable(retain="never")).start()
    assert not fleet.broker._retained
    device = fleet.device("d1")
    assert not device.manifests
    device.say(device.topics.get("d1"), GetRequest().pack())
    fleet.settle()
    weights = device.manifest.weights
    name = blob_name(weights.address, weights.chunk_bytes)
    device.say(device.topics.get("d1"), GetRequest(blob=name).pack())
    device.say(device.topics.get("d1"), GetRequest(blob=name, index=99).pack())
    fleet.settle()
    assert len(device.blobs[(weights.address, 0)]) == weights.size
    assert device.blobs[(weights.address, 99)] == b""
    contribute(fleet, device, fleet.device("d2"), base=device.manifest.version, codec="float32")
    assert device.manifest.version.number == 1


@pytest.mark.parametrize("seed", range(4))
def test_a_bad_broker_only_costs_time(fleet_of, seed):
    """It loses, repeats, delays and reorders; devices ask until they know: the books balance."""
    faults = Faults(lose=0.2, repeat=0.2, reorder=0.2, delay_s=(0.0, 0.5))
    fleet = fleet_of(faults=faults, seed=seed).start()
    devices = [fleet.device(f"d{number}") for number in range(4)]
    pending = {}
    for round_number in range(60):
        if round_number == 30:
            fleet.crash()
            fleet.start()
        for device in devices:
            if not device.manifests or round_number % 5 == 0:
                device.say(device.topics.get(device.name), GetRequest().pack())
            if device.manifests and device.name not in pending and round_number < 40:
                base = max(m.version.number for m in device.manifests)
                newest = next(m for m in device.manifests if m.version.number == base)
                pending[device.name] = device.make(fleet.layout, base=newest.version, codec="float32")
            if update := pending.get(device.name):
                device.begin(*update)
        fleet.settle(2.0)
        for device in devices:
            update = pending.get(device.name)
            if update and any(r.terminal for i, r in device.receipts if i == update[0]):
                del pending[device.name]
    assert not pending
    assert fleet.coordinator.version.number >= 5
    report = books(fleet)
    assert report.versions_checked == fleet.coordinator.version.number
    words = {}
    for device in devices:
        for update_id, receipt in device.receipts:
            if receipt.terminal:
                assert words.setdefault(update_id, receipt.state) == receipt.state


# Who is in office


def test_a_challenge_is_answered(fleet):
    """A second coordinator that asks hears session and term of the first."""
    probe = fleet.device("probe")
    question = CoordinatorPresence(session=b"q" * 8, epoch=0, term=0, challenge=b"q" * 8)
    probe.say(probe.topics.coordinator, question.pack())
    fleet.settle()
    answer = probe.presences[-1]
    assert (answer.challenge, answer.term) == (b"q" * 8, 1)
    assert answer.session != b"q" * 8


def test_a_coordinator_of_a_later_term_ends_this_one(fleet):
    """Two must not count: the older one goes, and says why."""
    other = fleet.device("other")
    later = CoordinatorPresence(session=b"z" * 8, epoch=1, term=2)
    other.say(other.topics.coordinator, later.pack())
    with pytest.raises(TransportError, match="has taken office"):
        fleet.settle()


def roll_back(fleet, copy):
    """Put an old copy of the state folder in the place of the present one."""
    import shutil

    fleet.crash()
    shutil.rmtree(fleet.folder)
    shutil.copytree(copy, fleet.folder)


@pytest.fixture
def restored(fleet, tmp_path):
    """A fleet at version 2, and a backup of it at version 1."""
    from broker_coordinator.backup import back_up

    devices = [fleet.device(f"d{number}") for number in range(2)]
    contribute(fleet, *devices)
    back_up(fleet.folder, tmp_path / "backup")
    contribute(fleet, *devices)
    assert devices[0].manifest.version.number == 2
    return fleet, devices, tmp_path / "backup"


def test_a_restored_coordinator_is_stopped_by_the_manifest_on_the_broker(restored):
    """It finds its own signature on a newer manifest: it publishes nothing, and refuses nothing."""
    fleet, devices, backup = restored
    manifest = devices[0].manifest
    roll_back(fleet, backup)
    fleet.start()
    assert fleet.coordinator.figures().state == "rolled_back"
    late = fleet.device("late")
    assert late.manifest == manifest
    update = late.make(fleet.layout)
    late.begin(*update)
    fleet.settle()
    assert (late.last(update[0]).state, late.last(update[0]).reason) == ("later", "rolled_back")
    assert devices[0].presences[-1].rolled_back


def test_a_restored_coordinator_is_stopped_by_a_device(restored):
    """Broker empty, backup old: a device has seen a newer manifest, is asked for it, and proves it."""
    from fl_protocol.presence import DeviceEvent

    fleet, devices, backup = restored
    order = devices[0].manifest.order
    proof = fleet.broker._retained[devices[0].topics.task()]
    roll_back(fleet, backup)
    fleet.broker.restart(keep_store=False)
    fleet.start()
    fleet.settle(3.0)
    assert fleet.coordinator.figures().state == "running"
    witness = fleet.device("witness")
    witness.birth(seen=order)
    fleet.settle()
    command = Command.unpack(peek(witness.commands[-1], limit=4096))
    assert (command.kind, command.evidence) == ("restate", True)
    witness.say(witness.topics.event("witness"), DeviceEvent(kind="evidence", proof=b"forged").pack())
    fleet.settle()
    assert fleet.coordinator.figures().state == "running"
    witness.say(witness.topics.event("witness"), DeviceEvent(kind="evidence", proof=proof).pack())
    fleet.settle()
    assert fleet.coordinator.figures().state == "rolled_back"


def test_recovery_opens_an_epoch_that_devices_follow(restored):
    """Version 2 of epoch 1 is given up; version 2 of epoch 2 goes out, and is built upon."""
    fleet, devices, backup = restored
    lost = devices[0].manifest.version
    roll_back(fleet, backup)
    fleet.start()
    fleet.store.open_epoch()
    fleet.crash()
    fleet.start()
    newest = devices[0].manifest
    assert (newest.version.epoch, newest.version.number) == (2, 2)
    assert newest.order > (1, 10**6)
    update = devices[0].make(fleet.layout, base=lost)
    devices[0].begin(*update)
    fleet.settle()
    assert devices[0].last(update[0]).reason == "unknown_base"
    contribute(fleet, *devices)
    assert (fleet.coordinator.version.epoch, fleet.coordinator.version.number) == (2, 3)
    assert books(fleet).replay_ok


# Leases


@pytest.fixture
def leased(fleet_of):
    return fleet_of(
        selection=SelectionTable(kind="train", in_flight=1, lease_s=100.0), update=UpdateTable(codec="int8")
    ).start()


def orders(device):
    """The train commands a device has got."""
    commands = [Command.unpack(peek(envelope, limit=4096)) for envelope in device.commands]
    return [command for command in commands if command.kind == "train"]


def test_leases_ask_one_device_at_a_time(leased):
    """One slot: an update ends the lease, and the other device gets its turn."""
    devices = [leased.device(f"d{number}") for number in range(2)]
    for device in devices:
        device.birth()
    leased.settle()
    first, second = sorted(devices, key=lambda device: -len(orders(device)))
    assert (len(orders(first)), len(orders(second))) == (1, 0)
    order = orders(first)[0]
    assert order.version == leased.coordinator.version.id
    contribute(leased, first, lease=order.lease)
    assert len(orders(second)) == 1
    assert orders(second)[0].order > order.order


def test_a_lease_that_expires_frees_its_slot_and_its_update_counts_all_the_same(leased):
    """Late is not lost."""
    devices = [leased.device(f"d{number}") for number in range(2)]
    for device in devices:
        device.birth()
    leased.settle()
    first, second = sorted(devices, key=lambda device: -len(orders(device)))
    leased.settle(101.0)
    assert len(orders(first)) + len(orders(second)) == 2
    (late,) = contribute(leased, first, lease=orders(first)[0].lease)
    assert first.last(late).state == "done"


def test_a_device_that_comes_back_hears_its_lease_again(leased):
    """The command may have been lost with its connection."""
    device = leased.device("d1")
    device.birth()
    leased.settle()
    leased.settle(40.0)
    device.birth(session=b"session2")
    leased.settle()
    first, second = orders(device)
    assert first.lease == second.lease
    assert second.order > first.order
    assert second.deadline_s == pytest.approx(60.0, abs=1.0)


def test_a_will_of_an_older_session_does_not_take_a_device_off_line(fleet):
    """Sessions are compared for equality, never ordered."""
    from fl_protocol.presence import DevicePresence

    device = fleet.device("d1")
    device.birth(session=b"session2")
    farewell = DevicePresence(online=False, session=b"session1")
    device.say(device.topics.state("d1"), farewell.pack())
    fleet.settle()
    assert fleet.coordinator.figures().devices_online == 1
    device.say(device.topics.state("d1"), DevicePresence(online=False, session=b"session2").pack())
    fleet.settle()
    assert fleet.coordinator.figures().devices_online == 0
