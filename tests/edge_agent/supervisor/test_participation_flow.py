"""From a published version to a receipt, and every reason on the way not to train."""

import logging
from dataclasses import replace

import pytest

from edge_agent.configuration import GateSettings
from edge_agent.jobs import JobFailed, PrepareJob, TrainJob, VerifyJob
from fl_io.ed25519 import new_private_key, signer
from fl_protocol.signed import TASK_CONTEXT, seal
from fl_protocol.task import Pacing
from fl_protocol.update import INCARNATION_BYTES


def kinds(world):
    return [type(job) for job in world.script.jobs]


def test_a_version_becomes_one_update_that_is_done(world):
    """Manifest, signature, fetch, golden steps, training, outbox, upload, receipt: once, and no more."""
    world.script.runtime = "MyVeryLongTrainer<1>"
    task = world.coordinator.publish_version(1)
    world.boot()
    world.advance(5)
    assert kinds(world) == [VerifyJob, PrepareJob, TrainJob]
    [(_, header, payload)] = world.coordinator.begins
    assert payload == world.script.payload
    assert (header.base, header.num_examples, header.codec) == (task.version, 12, "float32")
    assert len(header.incarnation) == INCARNATION_BYTES
    assert header.runtime == "MyVeryLongTraine"
    counts = world.outbox.counts()
    assert (counts.created, counts.done, counts.waiting) == (1, 1, 0)
    assert world.agent.state == "waiting"
    assert world.agent.idle_reason == "trained on version 1.1; waiting for a newer one"
    world.advance(86400)
    assert len(world.coordinator.begins) == 1


def test_the_next_version_needs_no_new_golden_steps(world):
    """An artifact is prepared once per runtime; each version is verified and trained on."""
    world.boot()
    for number in (1, 2, 3):
        world.coordinator.publish_version(number)
        world.advance(1)
    assert kinds(world).count(PrepareJob) == 1
    assert kinds(world).count(TrainJob) == 3
    assert [header.base.number for _, header, _ in world.coordinator.begins] == [1, 2, 3]


def test_only_current_and_previous_weights_are_kept(world):
    """The cache does not grow with the versions."""
    world.boot()
    for number in range(1, 6):
        world.coordinator.publish_version(number)
        world.advance(1)
    assert len(list((world.folder / "blobs").iterdir())) == 2
    assert len(list((world.folder / "artifacts").iterdir())) == 1


def test_a_manifest_of_another_key_is_not_obeyed(world):
    """The device says why it does nothing, and the honest manifest of a lower counter still works."""
    world.boot()
    honest = world.coordinator.publish_version(1)
    world.advance(1)
    forged = replace(honest, counter=1000)
    envelope = seal(TASK_CONTEXT, forged.pack(), signer(new_private_key()))
    world.coordinator.say(world.coordinator.topics.task(), envelope)
    world.advance(1)
    world.coordinator.publish_version(2)
    world.advance(1)
    assert [header.base.number for _, header, _ in world.coordinator.begins] == [1, 2]


def test_an_untrusted_fleet_is_named_as_the_reason(world):
    """A coordinator with another key: nothing is fetched, and the sentence says so."""
    world.coordinator.sign = signer(new_private_key())
    world.coordinator.publish_version(1)
    world.boot()
    world.advance(5)
    assert kinds(world) == [VerifyJob]
    assert "not trusted" in world.agent.idle_reason
    assert not list((world.folder / "blobs").iterdir())


def test_an_older_manifest_is_ignored_whoever_signed_it(world):
    """(epoch, counter) never goes back, across restarts too."""
    world.boot()
    old = world.coordinator.publish_version(1)
    world.coordinator.publish_version(2)
    world.advance(1)
    world.shut_down()
    world.boot()
    world.coordinator.publish_manifest(old)
    world.advance(1)
    assert [header.base.number for _, header, _ in world.coordinator.begins] == [2]
    assert world.coordinator.births[-1].seen == (1, 2)


def test_a_verified_manifest_is_not_verified_again_after_a_restart(world):
    """What is remembered by its bytes costs no process."""
    world.coordinator.publish_version(1)
    world.boot()
    world.advance(1)
    world.kill()
    world.script.jobs.clear()
    world.boot()
    world.advance(1)
    assert world.script.jobs == []


def test_insecure_fleets_need_no_verification(make_world):
    """``insecure = true`` takes an unsigned manifest without a worker."""
    world = make_world(signed=False)
    world.coordinator.publish_version(1)
    world.boot()
    world.advance(1)
    assert kinds(world) == [PrepareJob, TrainJob]


def test_a_new_list_of_keys_checks_the_stored_manifest_again(make_world):
    """A fleet that ran insecurely does not smuggle its last manifest past the keys."""
    world = make_world(signed=False)
    world.coordinator.publish_version(1, pacing=Pacing(by_lease=True))
    world.boot()
    world.advance(1)
    world.shut_down()
    key = "ed25519:" + "11" * 32
    world.configuration = replace(world.configuration, insecure=False, trusted_keys=(key,))
    agent = world.boot()
    world.advance(1)
    assert agent._orders.seen == (0, 0)


def test_a_device_that_is_not_drawn_fetches_nothing(world):
    """participation = 0 draws nobody; the reason names the version."""
    world.coordinator.publish_version(1, pacing=Pacing(participation=0.0))
    world.boot()
    world.advance(5)
    assert world.script.jobs == []
    assert world.agent.idle_reason == "not drawn for version 1.1"


def test_the_start_is_spread(world):
    """Within spread_s seconds, and not at once."""
    world.coordinator.publish_version(1, pacing=Pacing(spread_s=100.0))
    world.boot()
    assert world.script.jobs == []
    assert "drawn at random" in world.agent.idle_reason
    world.advance(101)
    assert kinds(world)[-1] is TrainJob


def test_an_agent_that_is_too_old_says_so(world):
    """minimum_agent is a gate, not a crash."""
    world.coordinator.publish_version(1, minimum_agent="99.0")
    world.boot()
    world.advance(1)
    assert world.script.jobs == []
    assert "needs 99.0" in world.agent.idle_reason


def test_too_few_samples_shut_the_gate_until_there_are_enough(make_world):
    """Samples that an app adds open the gate within half a minute, without a restart."""
    from edge_agent.samples import SampleStore

    world = make_world(gates=GateSettings(min_samples=60))
    world.coordinator.publish_version(1)
    world.boot()
    world.advance(40)
    assert "at least 60 are needed" in world.agent.idle_reason
    with SampleStore(world.configuration.samples_path) as store:
        store.extend([[float(i)] * 4 for i in range(60)], [[0.0]] * 60)
    world.advance(31)
    assert kinds(world)[-1] is TrainJob


def test_long_shut_gates_leave_the_task_topic_and_come_back_for_the_newest(make_world):
    """Versions that a device would not use cost it nothing; the first one after is the newest."""
    world = make_world(gates=GateSettings(mains_only=True))
    world.machine.mains = False
    world.coordinator.publish_version(1)
    world.boot()
    world.advance(400)
    assert world.agent.idle_reason == "on battery"
    received = world.transport.traffic().received
    for number in (2, 3):
        world.coordinator.publish_version(number)
        world.advance(10)
    assert world.transport.traffic().received == received
    world.machine.mains = True
    world.advance(60)
    assert [header.base.number for _, header, _ in world.coordinator.begins] == [3]


def test_a_training_ends_when_its_gate_shuts(make_world):
    """On battery in the middle of a training: it is cancelled, and taken up when power is back."""
    world = make_world(gates=GateSettings(mains_only=True))
    world.machine.mains = True
    world.script.hold = True
    world.coordinator.publish_version(1)
    world.boot()
    world.advance(5)
    assert world.agent.state == "training"
    assert world.agent.idle_reason == ""
    world.machine.mains = False
    world.advance(31)
    assert world.script.cancelled == 1
    assert world.agent.idle_reason == "on battery"
    world.machine.mains, world.script.hold = True, False
    world.advance(60)
    assert len(world.coordinator.begins) == 1


def test_a_crash_is_tried_again_and_a_hopeless_failure_is_not(world):
    """Retryable: after a pause. Else: only the next version, and the coordinator is told once."""
    world.coordinator.publish_version(1)
    world.script.failures = [JobFailed(reason="ended by SIGSEGV", retryable=True)]
    world.boot()
    world.advance(1)
    assert world.agent.idle_reason == "ended by SIGSEGV"
    world.advance(120)
    assert len(world.coordinator.begins) == 1
    world.script.failures = [JobFailed(reason="training diverged", retryable=False)]
    world.coordinator.publish_version(2)
    world.advance(100_000)
    assert world.agent.idle_reason == "training diverged"
    assert [event.message for event in world.coordinator.events] == ["ended by SIGSEGV", "training diverged"]
    world.coordinator.publish_version(3)
    world.advance(1)
    assert [header.base.number for _, header, _ in world.coordinator.begins] == [1, 3]


def test_a_reason_that_may_quote_samples_stays_on_the_device(world):
    """In its status and log: neither the event nor the presence of a later connection has its text."""
    world.coordinator.publish_version(1)
    world.script.failures = [JobFailed(reason="KeyError: patient 4711", retryable=False, told="KeyError")]
    world.boot()
    world.advance(1)
    assert world.agent.idle_reason == "KeyError: patient 4711"
    assert [event.message for event in world.coordinator.events] == ["KeyError"]
    world.transport.drop("gone")
    world.transport.reconnect()
    world.advance(1)
    assert world.coordinator.births[-1].idle_reason == "KeyError"


def test_a_version_is_two_lines_of_the_log(world, caplog):
    """A device that takes part every minute for years writes no more; the rest is for debugging."""
    world.coordinator.publish_version(1)
    world.boot()
    world.advance(10)
    with caplog.at_level(logging.INFO, "lichen.agent"):
        for number in range(2, 5):
            caplog.clear()
            world.coordinator.publish_version(number)
            world.advance(60)
            lines = [record.getMessage() for record in caplog.records]
            assert lines == ["training", f"waiting: trained on version 1.{number}; waiting for a newer one"]
    with caplog.at_level(logging.DEBUG, "lichen.agent"):
        world.coordinator.publish_version(5)
        world.advance(60)
        assert "fetching version 1.5" in [record.getMessage() for record in caplog.records]


def test_a_device_that_fails_every_version_is_heard_of(world):
    """On a connection that stands: one birth says so, and one that it trains again."""
    world.coordinator.publish_version(1)
    world.boot()
    world.advance(10)
    births = len(world.coordinator.births)
    world.script.failures = [JobFailed(reason="KeyError: patient 4711", retryable=False, told="KeyError")] * 6
    for number in range(2, 8):
        world.coordinator.publish_version(number)
        world.advance(4000)
    assert [birth.idle_reason for birth in world.coordinator.births[births:]] == ["KeyError"]
    assert not world.script.failures
    for number in range(8, 12):
        world.coordinator.publish_version(number)
        world.advance(4000)
    said = [birth.idle_reason for birth in world.coordinator.births[births:]]
    assert said == ["KeyError", "trained on version 1.8; waiting for a newer one"]


def test_a_worker_that_always_crashes_is_left_alone_after_five_times(world):
    """A device must not burn its battery on a version that kills its runtime."""
    world.coordinator.publish_version(1)
    world.script.failures = [JobFailed(reason="crash", retryable=True)] * 20
    world.boot()
    world.advance(100_000)
    assert len(world.script.failures) == 15


def test_a_damaged_artifact_is_fetched_again(world):
    """A file that changed on disk costs a download, not the version."""
    world.coordinator.publish_version(1)
    world.boot()
    world.advance(1)
    [folder] = (world.folder / "artifacts").iterdir()
    (folder / "step.onnx").write_bytes(b"damage")
    world.script.failures = [JobFailed(reason="step.onnx is damaged", retryable=False)]
    world.coordinator.publish_version(2)
    world.advance(5)
    assert [header.base.number for _, header, _ in world.coordinator.begins] == [1, 2]
    assert world.coordinator.events == []


def test_weights_damaged_between_two_lives_are_fetched_again(world):
    """Everything is hashed once when a process meets it first."""
    world.script.hold = True
    world.coordinator.publish_version(1)
    world.boot()
    world.advance(1)
    world.kill()
    [weights] = (world.folder / "blobs").iterdir()
    weights.write_bytes(b"x" * 48)
    world.script.hold = False
    world.boot()
    world.advance(1)
    assert weights.read_bytes() == b"\x01" * 48
    assert len(world.coordinator.begins) == 1


def test_a_version_that_is_gone_is_waited_out(world):
    """A chunk whose retained message was deleted: the device says so, asks, and takes the next version."""
    world.coordinator.publish_version(1)
    topic = f"fl1/test/blob/{next(reversed(world.coordinator.blobs))}"
    world.broker._retained.pop(topic)
    world.coordinator.blobs.popitem()
    world.coordinator.answers_gets = True
    world.boot()
    world.advance(20)
    assert "no longer published" in world.agent.idle_reason
    world.coordinator.publish_version(2)
    world.advance(5)
    assert [header.base.number for _, header, _ in world.coordinator.begins] == [2]


def test_a_broker_without_retained_messages_is_enough(world):
    """Manifest and chunks by ``get``; the later versions come live."""
    world.coordinator.answers_gets = True
    world.coordinator.publish_version(1, retain=False)
    world.boot()
    world.advance(60)
    assert [header.base.number for _, header, _ in world.coordinator.begins] == [1]


@pytest.mark.parametrize("rate", [0.2, 0.4])
def test_a_broker_that_loses_and_repeats_messages_costs_only_time(make_world, rate):
    """Lost chunks, receipts and manifests are asked for again; nothing is made or counted twice."""
    world = make_world()
    world.coordinator.answers_gets = True
    world.boot()
    world.broker.faults = replace(world.broker.faults, lose=rate, repeat=rate, reorder=rate)
    for number in (1, 2, 3):
        world.coordinator.publish_version(number, weights=bytes([number]) * 300_000)
        world.advance(3 * 3600)
    world.broker.faults = replace(world.broker.faults, lose=0.0)
    world.advance(86400)
    counts = world.outbox.counts()
    assert counts.waiting == 0
    assert counts.created == counts.done == len(world.coordinator.payloads)
    assert counts.created >= 2
