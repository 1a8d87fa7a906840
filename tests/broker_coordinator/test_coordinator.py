"""The whole coordinator, on the loopback broker: versions, exactly once, large updates."""

import hashlib
from dataclasses import replace

import numpy as np
import pytest

from broker_coordinator.configuration import (
    BufferTable,
    HorizonTable,
    IngestTable,
    PublishTable,
)
from broker_coordinator.evaluation import Evaluation


def test_the_first_version_is_published_whole(fleet):
    """A device finds manifest, weights and artifact on the broker, without asking anyone."""
    device = fleet.device("d1")
    assert device.manifest.version.number == 0
    manifest = fleet.fetched(device, device.manifest.artifact)
    assert manifest == fleet.artifact.manifest.to_json()
    assert fleet.fetched(device, device.manifest.weights) is not None
    assert fleet.fetched(device, fleet.artifact.manifest.files["step.onnx"]) is not None
    assert device.presences[-1].marker


def test_k_updates_make_a_version(fleet):
    """Two accepted updates (K = 2) close version 1: master moves by their mean, and it goes out."""
    devices = [fleet.device(f"d{number}") for number in range(2)]
    before = fleet.coordinator.weights.copy()
    ids = fleet.contribute(*devices)
    assert [device.words(i) for device, i in zip(devices, ids, strict=True)] == [["done"], ["done"]]
    assert fleet.coordinator.version.number == 1
    assert (fleet.coordinator.weights - before) == pytest.approx(0.01, abs=1e-6)
    assert devices[0].manifest.version == fleet.coordinator.version.id
    assert fleet.books().folded == 2


def test_a_burst_is_weighed_version_by_version(fleet):
    """Ten updates that wait at once make five versions, and their staleness counts them: 0 0 1 1 2 2 ..."""
    devices = [fleet.device(f"d{number}") for number in range(10)]
    fleet.contribute(*devices)
    assert fleet.coordinator.version.number == 5
    staleness = [row.staleness for n in range(1, 6) for row in fleet.store.folded_into(n)]
    assert staleness == [0, 0, 1, 1, 2, 2, 3, 3, 4, 4]
    assert fleet.books().versions_ok == 5


def test_a_deadline_closes_a_smaller_version(fleet_of):
    """With ``flush_after_s`` one update is enough, after that time."""
    fleet = fleet_of(buffer=BufferTable(size=5, flush_after_s=60.0)).start()
    fleet.contribute(fleet.device("d1"))
    assert fleet.coordinator.version.number == 0
    fleet.settle(61.0)
    assert (fleet.coordinator.version.number, fleet.coordinator.version.closed_by) == (1, "deadline")


def test_publishing_may_be_slower_than_committing(fleet_of):
    """At most one edition every ten seconds; the newest version goes out, those between do not."""
    fleet = fleet_of(publish=PublishTable(every_s=10.0)).start()
    devices = [fleet.device(f"d{number}") for number in range(6)]
    fleet.contribute(*devices)
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
    fleet.contribute(*devices)
    assert not fleet.coordinator.finished, "updates may be under way"
    fleet.settle(1.1)
    assert fleet.coordinator.finished
    assert fleet.coordinator.version.number == 1
    assert [v.metrics["accuracy"] for v in fleet.store.versions()] == [0.75, 0.75]
    figures = fleet.coordinator.figures()
    assert (figures.accuracy, figures.accuracy_source, figures.waiting) == (0.75, "coordinator", 3)
    assert fleet.books().waiting == 3


def test_devices_reports_stand_in_for_a_held_out_file(fleet):
    """Accuracy says its source, and how many devices and examples are behind it."""
    fleet.contribute(fleet.device("d1"), fleet.device("d2"))
    figures = fleet.coordinator.figures()
    assert (figures.accuracy, figures.accuracy_source, figures.accuracy_version) == (0.5, "devices", 0)
    assert (figures.accuracy_devices, figures.accuracy_examples) == (2, 20)


def test_reports_that_came_late_are_those_of_the_newest_version_they_are_about(fleet):
    """Where devices are slower than versions, each is made of updates of versions before."""
    early, late = ([fleet.device(f"{kind}{number}") for number in range(2)] for kind in ("early", "late"))
    fleet.contribute(*early)
    held = [(device, device.make(fleet.layout)) for device in late]
    fleet.contribute(*early)
    for device, update in held:
        device.begin(*update)
    fleet.settle()
    figures = fleet.coordinator.figures()
    assert (figures.version, figures.accuracy_version, figures.accuracy_examples) == (3, 1, 40)


# Exactly once


def test_a_repeated_update_gets_the_same_receipt_and_counts_once(fleet):
    """However often it comes, before and after its version closed."""
    device = fleet.device("d1")
    update = device.make(fleet.layout)
    for _ in range(3):
        device.begin(*update)
    fleet.settle()
    fleet.contribute(fleet.device("d2"))
    assert fleet.coordinator.version.number == 1
    device.begin(*update)
    device.begin(*update[:2])
    fleet.settle()
    assert device.words(update[0]) == ["done"] * 5
    assert fleet.books().accepted == 2


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
    (first,), (second,) = fleet.contribute(device), fleet.contribute(device)
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
        fleet.contribute(*devices)
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
    assert fleet.contribute(device, fleet.device("d2"))
    assert fleet.coordinator.version.number == 1


def test_a_smaller_horizon_holds_from_the_start(fleet_of):
    """What the manifest calls late is refused as stale, also before the next version."""
    fleet = fleet_of().start()
    devices = [fleet.device(f"d{number}") for number in range(2)]
    old = devices[0].make(fleet.layout)
    for _ in range(2):
        fleet.contribute(*devices)
    fleet.crash()
    fleet.configuration = replace(fleet.configuration, horizon=HorizonTable(versions=1))
    fleet.start()
    assert devices[0].manifest.is_late(old[1].base)
    devices[0].begin(*old)
    fleet.settle()
    assert devices[0].last(old[0]).reason == "stale"


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
    assert fleet.books().versions_ok == 1


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
