"""What goes wrong around a device: its disk, its worker, its coordinator. It waits, says why, and goes on."""

import sqlite3
from dataclasses import replace
from pathlib import Path

import pytest

from edge_agent.configuration import GateSettings
from edge_agent.jobs import JobFailed, PrepareJob, TrainJob, VerifyJob
from edge_agent.outbox import Outbox
from edge_agent.samples import SampleStore
from fl_io.ed25519 import new_private_key, signer
from fl_protocol.errors import StorageError
from fl_protocol.presence import CoordinatorPresence
from fl_protocol.ranges import ByteRanges
from fl_protocol.receipt import Receipt
from fl_protocol.signed import TASK_CONTEXT, seal
from fl_protocol.task import Pacing
from fl_protocol.transport import Received

CHUNK = 65536
MOST_TURNS = 700


def turns(world, seconds: float) -> int:
    """How often the supervisor is called while ``seconds`` pass; a loop without a pause ends the count."""
    count, end = 0, world.clock.monotonic() + seconds
    while world.clock.monotonic() < end and count <= MOST_TURNS:
        wait, due = world.pump(), world.broker.next_due()
        count += 1
        left = end - world.clock.monotonic()
        world.clock.advance(
            min(wait, left, left if due is None else max(due - world.clock.monotonic(), 0.001))
        )
    return count


def trainings(world) -> list[TrainJob]:
    return [job for job in world.script.jobs if isinstance(job, TrainJob)]


def refuse(*_: object, **__: object):
    raise StorageError("no space left on device")


def silent(update_id, header, payload):
    """A coordinator that hears and says nothing."""


def invite(world, **fields):
    """An ``open`` for all of an update, whatever came before."""
    return lambda update_id, header, payload: world.coordinator.receipt(
        "open", missing=ByteRanges(((0, header.size),)), credit=1 << 24, **fields
    )


def test_a_full_disk_costs_a_training_a_minute_at_most(world, monkeypatch):
    """What the worker made cannot be kept: said, counted, and not made again at once."""
    world.coordinator.publish_version(1)
    world.boot()
    world.advance(1)
    monkeypatch.setattr(type(world.outbox), "put", refuse)
    monkeypatch.setattr(type(world.outbox), "remember_all", refuse)
    world.coordinator.publish_version(2)
    world.advance(600)
    assert world.agent.idle_reason == "no space left on device"
    assert world.agent.status()["failures"] >= 5
    assert len(world.script.jobs) <= 20
    monkeypatch.undo()
    world.advance(7200)
    assert [header.base.number for _, header, _ in world.coordinator.begins] == [1, 2]


@pytest.mark.parametrize("kind", [PrepareJob, VerifyJob])
def test_a_result_that_cannot_be_remembered_is_not_asked_for_again_at_once(world, monkeypatch, kind):
    """Neither the golden steps nor a signature's check: each costs a process."""
    monkeypatch.setattr("edge_agent.outbox.Outbox.remember_all", refuse)
    if kind is PrepareJob:
        monkeypatch.setattr("edge_agent.orders.Orders._accept_manifest", accept_unkept)
    world.coordinator.publish_version(1)
    world.boot()
    world.advance(300)
    assert 2 <= sum(isinstance(job, kind) for job in world.script.jobs) <= 7


def accept_unkept(orders) -> None:
    if orders._candidate is not None:
        orders._envelope, orders._verified = orders._candidate
        orders._candidate = None


def test_a_disk_that_keeps_it_from_training_does_not_keep_it_from_delivering(world, monkeypatch):
    """The outbox empties, and the coordinator hears of the device, while nothing can be fetched."""
    world.coordinator.answer = silent
    world.coordinator.publish_version(1)
    world.boot()
    world.advance(1)
    monkeypatch.setattr("edge_agent.cache.Cache.missing", refuse)
    world.coordinator.publish_version(2)
    world.coordinator.answer = world.coordinator.accept
    world.transport.drop("bad link")
    world.transport.reconnect()
    world.coordinator.births.clear()
    world.advance(100)
    assert world.outbox.counts().done == 1
    assert [birth.online for birth in world.coordinator.births] == [False, True, True]
    assert world.coordinator.births[-1].idle_reason == "no space left on device"
    assert world.agent.idle_reason == "no space left on device"


def test_an_outbox_found_damaged_ends_the_supervisor(world, monkeypatch):
    """Only opening it anew helps, which sets it aside; whoever runs the supervisor does that."""

    def read(*_: object) -> bool:
        try:
            raise sqlite3.DatabaseError("database disk image is malformed")
        except sqlite3.DatabaseError as error:
            raise StorageError("the outbox") from error

    world.boot()
    monkeypatch.setattr(type(world.outbox), "made_update_for", read)
    world.coordinator.publish_version(1)
    with pytest.raises(StorageError):
        world.advance(1)


def test_telling_does_not_stop_the_doing(world, monkeypatch):
    """Counts that cannot be read are shown as they were, and the failure is counted."""
    world.coordinator.publish_version(1)
    world.boot()
    world.advance(1)
    monkeypatch.setattr(type(world.outbox), "counts", refuse)
    world.coordinator.publish_version(2)
    world.advance(1)
    assert len(world.coordinator.begins) == 2
    assert world.agent.status()["updates"]["created"] >= 1
    assert world.agent.status()["failures"] >= 1


def test_an_update_that_cannot_be_read_gives_way_to_the_others(world, monkeypatch):
    """A bad sector under one payload: counted, put off, and the rest goes up."""
    world.coordinator.answer = silent
    world.boot()
    for number in range(1, 7):
        world.coordinator.publish_version(number)
        world.advance(1)
    unreadable = world.coordinator.begins[0][0]
    read = world.outbox.payload_range

    def payload_range(_: Outbox, update_id: bytes, start: int, end: int) -> bytes:
        return refuse() if update_id == unreadable else read(update_id, start, end)

    monkeypatch.setattr(type(world.outbox), "payload_range", payload_range)
    world.coordinator.answer = world.coordinator.accept
    world.coordinator.payloads.clear()
    world.coordinator.present(b"session2")
    world.advance(600)
    counts = world.outbox.counts()
    assert (counts.done, counts.waiting) == (5, 1)
    assert 1 <= world.agent.status()["failures"] <= 10


def test_samples_that_cannot_be_read_are_the_reason(world):
    """Not 'zero samples': a person would look in the wrong place."""
    path = world.configuration.samples_path
    for file in path.parent.glob(f"{path.name}*"):
        file.unlink()
    path.write_bytes(b"no database " * 1000)
    world.coordinator.publish_version(1)
    world.boot()
    world.advance(60)
    assert world.agent.idle_reason.startswith(f"the sample store {path}")
    path.unlink()
    with SampleStore(path) as store:
        store.extend([[0.0] * 4] * 40, [[0.0]] * 40)
    world.advance(31)
    assert len(trainings(world)) == 1


def test_a_worker_that_crashes_on_every_version_is_given_longer_and_longer_rests(world):
    """A runtime that dies on this artifact dies on each version of it, published every ten seconds."""
    world.script.failures = [JobFailed(reason="ended by SIGSEGV", retryable=True)] * 1000
    world.boot()
    for number in range(1, 361):
        world.coordinator.publish_version(number)
        world.advance(10)
    crashes = 1000 - len(world.script.failures)
    assert 4 <= crashes <= 9
    assert len(world.coordinator.events) == crashes
    world.script.failures.clear()
    world.advance(7200)
    world.coordinator.publish_version(361)
    world.advance(1)
    assert world.coordinator.begins[-1][1].base.number == 361


def test_a_new_artifact_is_tried_at_once(world):
    """What failed was another work."""
    world.script.failures = [JobFailed(reason="crash", retryable=True)] * 3
    world.boot()
    for number in (1, 2, 3):
        world.coordinator.publish_version(number)
        world.advance(200)
    world.script.failures = [JobFailed(reason="crash", retryable=True)]
    world.coordinator.publish_version(4, codec="int8")
    world.advance(1)
    assert world.script.failures == []


def test_a_card_that_spoils_what_it_is_given_is_not_filled_for_ever(world):
    """One new download for each version, then it counts as a failure like any other."""
    world.coordinator.publish_version(1)
    world.boot()
    world.advance(1)
    [folder] = (world.folder / "artifacts").iterdir()
    fail = JobFailed(reason="step.onnx is damaged", retryable=False)
    run = world.script.run

    def spoil(job):
        if isinstance(job, VerifyJob):
            return run(job)
        (folder / "step.onnx").write_bytes(b"damage")
        return fail

    world.script.run = spoil
    world.script.jobs.clear()
    world.coordinator.publish_version(2)
    world.advance(100_000)
    assert len(world.script.jobs) <= 3
    assert world.agent.idle_reason == "step.onnx is damaged"


def test_golden_steps_count_for_the_artifact_they_were_run_on(world):
    """A newer artifact that arrives while the old one is prepared is prepared itself."""
    world.coordinator.publish_version(1)
    world.script.hold = PrepareJob
    world.boot()
    world.advance(1)
    assert isinstance(world.worker.job, PrepareJob)
    world.coordinator.artifact_name = "another"
    second = world.coordinator.publish_version(2)
    world.advance(1)
    world.script.hold = None
    world.worker.release()
    world.advance(30)
    prepared = [Path(job.artifact_dir).name for job in world.script.jobs if isinstance(job, PrepareJob)]
    assert prepared[-1] == second.artifact.sha256.hex()
    assert len(set(prepared)) == 2


def test_updates_that_were_put_off_do_not_keep_the_device_awake(world):
    """More of them are due than may be under way: the others wait for a place, without a busy loop."""
    world.coordinator.answer = lambda *_: world.coordinator.receipt("later", wait_s=60.0)
    world.boot()
    for number in range(1, 9):
        world.coordinator.publish_version(number)
        world.advance(1)
    world.coordinator.answer = silent
    assert turns(world, 600) <= MOST_TURNS


def test_a_full_window_does_not_keep_the_device_awake_and_is_not_waited_on_for_ever(world, monkeypatch):
    """A broker that acknowledges nothing: quiet, and after ten minutes a new connection."""
    world.coordinator.answer = silent
    world.boot()
    world.coordinator.publish_version(1)
    world.advance(1)
    monkeypatch.setattr(type(world.broker), "confirm", lambda broker, transport, token: None)
    world.coordinator.present(b"session2")
    connection = world.transport.connection
    world.transport._window = world.transport._under_way
    assert turns(world, 500) <= MOST_TURNS
    assert world.transport.connection == connection
    world.transport._window = 16
    world.advance(1000)
    assert world.transport.connection > connection


@pytest.mark.parametrize("size", [200, 3 * CHUNK])
def test_an_open_that_never_ends_is_answered_less_and_less_often(world, size):
    """A coordinator that asks for the same bytes again and again does not empty a data plan."""
    world.script.payload = bytes(size)
    world.coordinator.answer = invite(world)
    world.coordinator.publish_version(1)
    world.boot()
    world.advance(86400)
    carried = sum(payload is not None for _, _, payload in world.coordinator.begins)
    sent = carried * size if size < CHUNK else sum(len(chunk) for _, chunk in world.coordinator.chunks)
    assert 2 * size <= sent <= 16 * size
    assert len(world.coordinator.begins) <= 40
    world.coordinator.answer = lambda *_: world.coordinator.receipt("done")
    world.coordinator.present(b"session2")
    world.advance(10)
    assert world.outbox.counts().done == 1


def test_a_link_that_breaks_all_the_time_is_not_taken_for_a_coordinator_that_stalls(world):
    """Each new connection begins afresh: the payload goes up in the first one that lets it."""
    world.coordinator.publish_version(1)
    world.script.hold = True
    world.boot()
    world.advance(1)
    world.coordinator.answer = silent
    world.worker.release()
    for _ in range(20):
        world.advance(1)
        world.coordinator.answer = invite(world)
        world.broker.faults = replace(world.broker.faults, lose=0.5)
        world.transport.drop("bad link")
        world.transport.reconnect()
    world.broker.faults = replace(world.broker.faults, lose=0.0)
    world.coordinator.answer = world.coordinator.accept
    world.transport.drop("bad link")
    world.transport.reconnect()
    world.advance(2)
    assert world.outbox.counts().done == 1


@pytest.mark.parametrize("state", ["done", "refused", "open"])
def test_the_word_of_a_coordinator_that_was_replaced_ends_nothing(world, state):
    """(epoch, term) below that of the newest manifest: its store is one that was given up."""
    old = {"open": {"missing": ByteRanges(((0, 200),)), "credit": 1 << 20}}.get(state, {})
    world.coordinator.answer = lambda *_: Receipt(state=state, epoch=1, term=6, **old)
    task = world.coordinator.publish_version(1, term=7)
    world.boot()
    world.advance(5)
    assert task.term == 7
    assert world.outbox.counts().waiting == 1
    assert world.agent.status()["ignored"] == 1
    assert len(world.coordinator.begins) == 1
    world.coordinator.answer = lambda *_: Receipt(state="done", epoch=2, term=1)
    world.advance(120)
    assert world.outbox.counts().done == 1


def test_a_rolled_back_coordinator_may_ask_for_patience(world):
    """``later`` costs nothing, so it is obeyed whoever says it."""
    world.coordinator.answer = lambda *_: Receipt(state="later", epoch=1, term=0, wait_s=1000.0)
    world.coordinator.publish_version(1)
    world.boot()
    world.advance(900)
    assert len(world.coordinator.begins) == 1


def missing_chunk(world) -> str:
    """Take the weights of the newest version from broker and coordinator; their topic."""
    name = next(reversed(world.coordinator.blobs))
    world.broker._retained.pop(f"fl1/test/blob/{name}")
    world.coordinator.blobs.pop(name)
    return name


def test_a_version_that_is_gone_is_asked_for_less_and_less_often(world):
    """Not every ten seconds for ever: a whole fleet would."""
    world.coordinator.publish_version(1)
    missing_chunk(world)
    world.coordinator.answers_gets = True
    world.boot()
    world.advance(86400)
    assert 5 <= len(world.coordinator.gets) <= 60


def test_a_version_that_comes_back_is_taken_up(world):
    """One empty message, a mistake or a lie, does not cost the version: the coordinator has the last word."""
    world.coordinator.publish_version(1)
    name = missing_chunk(world)
    world.coordinator.answers_gets = True
    world.boot()
    world.advance(30)
    assert not trainings(world)
    world.coordinator.blobs[name] = bytes([1]) * 48
    world.advance(120)
    assert len(world.coordinator.begins) == 1


def test_versions_that_overtake_each_other_do_not_fill_the_card(world):
    """A link too slow for any of them: what is left of the earlier ones goes."""
    world.boot()
    for number in range(1, 9):
        world.coordinator.publish_version(number, weights=bytes([number]) * 300_000)
        missing_chunk(world)
        world.advance(5)
    assert not trainings(world)
    assert len(list((world.folder / "blobs").iterdir())) <= 2


def test_forged_manifests_cost_a_process_a_minute_at_most(world):
    """Eight in a row are checked as they come, then the device takes its time; the honest one still comes."""
    honest = world.coordinator.publish_version(1, pacing=Pacing(by_lease=True))
    world.coordinator.answers_gets = True
    world.boot()
    world.advance(1)
    forger = signer(new_private_key())
    world.script.jobs.clear()
    for number in range(600):
        forged = replace(honest, counter=1000 + number, pacing=Pacing())
        world.coordinator.say(world.coordinator.topics.task(), seal(TASK_CONTEXT, forged.pack(), forger))
        world.advance(1)
    assert 10 <= sum(isinstance(job, VerifyJob) for job in world.script.jobs) <= 30
    world.coordinator.publish_version(2)
    world.advance(120)
    assert world.coordinator.begins[-1][1].base.number == 2


def test_forged_commands_do_not_keep_a_device_from_training(world):
    """They are checked with growing patience, and training goes on."""
    world.boot()
    honest = world.coordinator.sign
    world.coordinator.sign = signer(new_private_key())
    for number in range(100):
        world.coordinator.command("pause", 1000 + number)
        world.advance(1)
    world.coordinator.sign = honest
    assert sum(isinstance(job, VerifyJob) for job in world.script.jobs) <= 25
    world.coordinator.publish_version(1)
    world.advance(120)
    assert len(trainings(world)) == 1


def test_a_forged_manifest_that_displaced_the_honest_one_is_made_good_by_asking(world):
    """Whoever overwrites the retained manifest wins ten seconds, not a version."""
    world.coordinator.answers_gets = True
    world.boot()
    world.advance(1)
    honest = world.coordinator.publish_version(1, retain=False, pacing=Pacing(spread_s=5.0))
    envelope = world.coordinator.manifest
    forged = replace(honest, counter=1000, pacing=Pacing())
    world.coordinator.say(
        world.coordinator.topics.task(), seal(TASK_CONTEXT, forged.pack(), signer(new_private_key()))
    )
    world.coordinator.manifest = envelope
    world.advance(60)
    assert [header.base for _, header, _ in world.coordinator.begins] == [honest.version]


def test_a_fleet_that_gives_up_signatures_takes_the_manifest_it_has(make_world):
    """From trusted keys to ``insecure``: nothing is checked, and nothing waits for a check."""
    world = make_world()
    world.coordinator.publish_version(1, pacing=Pacing(by_lease=True))
    world.boot()
    world.advance(1)
    world.kill()
    world.configuration = replace(world.configuration, insecure=True, trusted_keys=())
    world.boot()
    world.advance(5)
    assert world.agent.idle_reason == "waiting for the coordinator's lease"


def test_a_clock_that_jumps_changes_no_order_and_no_wait(make_world, monkeypatch):
    """Only the quiet hours ask what time it is, and they know when it is not known."""
    world = make_world(gates=GateSettings(quiet_hours="22:00-06:00"))
    world.coordinator.publish_version(1)
    wall = iter([2e9, 0.0, 4e9, 1e9] * 100)
    monkeypatch.setattr(world.clock, "wall", lambda: next(wall), raising=False)
    world.boot()
    world.advance(300)
    assert len(world.coordinator.begins) <= 1
    assert turns(world, 600) <= MOST_TURNS


def test_a_storm_of_coordinator_sessions_costs_a_birth_every_other_second(world):
    """Presence is not signed: whoever forges it does not make the device shout."""
    world.coordinator.answer = silent
    world.coordinator.publish_version(1)
    world.boot()
    world.advance(1)
    births, begins = len(world.coordinator.births), len(world.coordinator.begins)
    for number in range(2000):
        body = CoordinatorPresence(session=number.to_bytes(8, "big"), epoch=1, term=1).pack()
        world.coordinator.say(world.coordinator.topics.coordinator, body)
        world.advance(0.01)
    assert len(world.coordinator.births) - births <= 25
    assert len(world.coordinator.begins) - begins <= 25


def test_a_flood_leaves_time_for_all_else(world, monkeypatch):
    """Messages without end: the device still does what is due, and stops when it is told to."""
    world.boot()
    world.advance(1)
    topic = world.coordinator.topics.blob_for("dev-1", "a" * 26 + ".65536", 0)
    agent = world.agent
    worked = []
    works = agent._chores.work

    def flood() -> float:
        worked.append(1)
        if len(worked) == 5:
            agent.stop()
        for _ in range(64):
            agent.receive(Received(topic, b"unasked", False, 0))
        return works()

    monkeypatch.setattr(type(agent._chores), "work", lambda _: flood())
    agent.work()
    assert len(worked) == 5
