"""Restarts and brokers: what is published is there again, whatever either of them forgot."""

import pytest

from broker_coordinator.assessment import MOST_WAITING
from broker_coordinator.configuration import BufferTable, PublishTable
from broker_coordinator.evaluation import Evaluation
from fl_protocol.errors import StorageError
from fl_protocol.loopback import Faults
from fl_protocol.presence import GetRequest
from fl_protocol.topics import blob_name


def test_a_restart_goes_on_where_it_was(fleet):
    """An accepted update is in the open version again; term counts the starts; the manifest is the same."""
    devices = [fleet.device(f"d{number}") for number in range(2)]
    (first,) = fleet.contribute(devices[0])
    envelope = devices[0].manifest
    fleet.crash()
    fleet.start()
    assert fleet.coordinator.figures().waiting == 1
    assert fleet.coordinator.figures().term == 2
    assert devices[0].manifest == envelope
    fleet.contribute(devices[1])
    assert fleet.coordinator.version.number == 1
    devices[0].begin(first, *devices[0].make(fleet.layout)[1:])
    fleet.settle()
    assert fleet.books().accepted == 2


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
    fleet.contribute(fleet.device("d1"), fleet.device("d2"))
    fleet.broker.restart(keep_store=False)
    fleet.settle()
    fleet.transport.reconnect()
    late = fleet.device("late")
    fleet.settle(3.0)
    assert late.manifest.version.number == 1
    assert fleet.fetched(late, late.manifest.weights) is not None
    assert fleet.fetched(late, late.manifest.artifact) is not None


def test_old_blobs_leave_the_broker_and_the_disk(fleet):
    """Three versions are kept; the artifact stays as long as it is used."""
    devices = [fleet.device(f"d{number}") for number in range(2)]
    refs = []
    for _ in range(6):
        refs.append(devices[0].manifest.weights)
        fleet.contribute(*devices)
    refs.append(devices[0].manifest.weights)
    late = fleet.device("late")
    there = [fleet.fetched(late, ref) is not None for ref in refs]
    assert there == [False] * 4 + [True] * 3
    assert fleet.fetched(late, late.manifest.artifact) is not None
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
    fleet.contribute(device, fleet.device("d2"), base=device.manifest.version, codec="float32")
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
    report = fleet.books()
    assert report.versions_checked == fleet.coordinator.version.number
    words = {}
    for device in devices:
        for update_id, receipt in device.receipts:
            if receipt.terminal:
                assert words.setdefault(update_id, receipt.state) == receipt.state


def hold(fleet):
    """Leave a connection without room: what is to go out waits."""
    fleet.transport._window = 0


def let_go(fleet):
    fleet.transport._window = 64
    return fleet.settle()


def test_a_manifest_names_what_is_there_even_if_a_newer_version_closed_meanwhile(fleet_of):
    """Version 1 is going out when version 2 closes: its blobs stay until they are sent, and no chunk of
    them is ever said to be gone."""
    fleet = fleet_of(buffer=BufferTable(size=1)).start()
    devices = [fleet.device(f"d{number}") for number in range(2)]
    route, found = fleet.broker.route, []

    def look(topic, payload, *, retain):
        route(topic, payload, retain=retain)
        if topic == devices[0].topics.task():
            found.append(sum("/blob/" in known for known in fleet.broker._retained))

    fleet.broker.route = look
    before = sum("/blob/" in known for known in fleet.broker._retained)
    hold(fleet)
    fleet.contribute(devices[0])
    fleet.contribute(devices[1])
    assert fleet.coordinator.version.number == 2
    let_go(fleet)
    assert [manifest.version.number for manifest in devices[0].manifests] == [0, 1, 2]
    assert found == [before + 1, before + 2]


@pytest.mark.parametrize("damage", ["rotten", "gone"])
@pytest.mark.parametrize("victim", ["weights", "artifact"])
def test_a_damaged_blob_is_never_published(fleet_of, damage, victim):
    """It stops, and says so; started again it makes the blob anew, from the state or from the artifact."""
    fleet = fleet_of(buffer=BufferTable(size=1)).start()
    device = fleet.device("d1")
    hold(fleet)
    fleet.contribute(device)
    ref = device.manifest.artifact
    sha256 = ref.sha256 if victim == "artifact" else fleet.coordinator.version.published_sha256
    path = fleet.folder / "blobs" / sha256.hex()
    if damage == "gone":
        path.unlink()
    else:
        path.write_bytes(bytes(path.stat().st_size))
    fleet.broker.restart(keep_store=False)
    fleet.transport._window = 64
    fleet.transport.reconnect()
    with pytest.raises(StorageError, match=r"damaged or gone|gone from the state folder"):
        fleet.settle(3.0)
    fleet.crash()
    fleet.start()
    fleet.settle(3.0)
    late = fleet.device("late")
    assert late.manifest.version.number == 1
    assert fleet.fetched(late, late.manifest.weights) is not None
    assert fleet.fetched(late, ref) == fleet.artifact.manifest.to_json()


def test_versions_that_come_faster_than_evaluations_do_not_pile_up(fleet_of, monkeypatch):
    """Under a load that never ends each is evaluated all the same: what waits holds memory and blobs."""

    def evaluate(weights):
        return Evaluation(source="coordinator", devices=0, examples=4, sums={"correct": 3.0})

    fleet = fleet_of(buffer=BufferTable(size=1)).start(evaluate=evaluate)
    coordinator = fleet.coordinator
    monkeypatch.setattr(type(coordinator._inbox), "__len__", lambda inbox: 1)
    for _ in range(10):
        coordinator._assessment.add(coordinator.version)
        assert coordinator.work() == 0.0
        assert len(coordinator._assessment) <= MOST_WAITING
    assert len(coordinator._assessment) == MOST_WAITING
