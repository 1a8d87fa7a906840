"""An agent in safe mode and under a watchdog: what it still does, and what it does no more."""

import pytest

from edge_agent.jobs import TrainJob, VerifyJob
from edge_agent.supervisor import WORKER_ALLOWANCE_S
from fl_io.watchdog import Notifier, Watchdog
from fl_protocol.task import Pacing


@pytest.fixture
def weary(world):
    """A device whose last five starts ended at once."""
    for _ in range(5):
        world.boot()
        world.kill()
    world.coordinator.births.clear()
    return world


def test_it_connects_and_says_why_it_does_not_train(weary):
    """In its status, and to the coordinator."""
    weary.coordinator.publish_version(1)
    weary.boot()
    weary.advance(30.0)
    status = weary.agent.status()
    assert status["safe_mode"] is True
    assert status["connected"] is True
    assert status["idle_reason"].startswith("safe_mode")
    assert [event.message for event in weary.coordinator.events if "safe_mode" in event.message]
    assert weary.script.jobs == []


def test_it_trains_again_after_a_good_minute(weary):
    """By itself."""
    weary.coordinator.publish_version(1)
    weary.boot()
    weary.advance(61.0)
    assert weary.agent.status()["safe_mode"] is False
    assert weary.outbox.counts().done == 1


def test_it_obeys_commands_and_resume_ends_it(weary):
    """The commands' signatures are checked as ever."""
    weary.coordinator.publish_version(1)
    weary.boot()
    weary.coordinator.command("resume", 1)
    weary.advance(5.0)
    assert weary.agent.status()["safe_mode"] is False
    assert any(isinstance(job, TrainJob) for job in weary.script.jobs)


def test_it_delivers_what_it_has(world):
    """An update of an earlier life is asked about, and settled: then the start was a good one."""
    world.coordinator.answer = lambda *_: None
    world.coordinator.publish_version(1)
    world.boot()
    world.advance(30.0)
    world.kill()
    for _ in range(5):
        world.boot()
        world.kill()
    world.coordinator.answer = world.coordinator.accept
    world.boot()
    assert world.agent.status()["safe_mode"] is True
    world.advance(50.0)
    assert world.outbox.counts().done == 1


@pytest.fixture
def watched(world):
    """The world's watchdog, and what it says to systemd."""
    said = []

    class Listener(Notifier):
        def say(self, *lines):
            said.extend(lines)

    world.watchdog = Watchdog(Listener({"WATCHDOG_USEC": "20000000"}), world.clock)
    return world.watchdog, said


def test_a_worker_that_does_not_end_starves_the_watchdog(world, watched):
    """Its own deadline passed, and nobody killed it: the main loop alone is no sign of life."""
    dog, said = watched
    world.script.hold = True
    world.coordinator.publish_version(1)
    world.boot()
    assert said[0] == "READY=1"
    world.advance(600.0)
    assert "WATCHDOG=1" in said
    assert dog.fault == ""
    world.advance(3600.0)
    assert "the worker has not ended its job: train" in dog.fault
    said.clear()
    world.advance(60.0)
    assert "WATCHDOG=1" not in said
    world.shut_down()
    assert said[-1] == "STOPPING=1"


def test_a_check_beside_a_training_that_does_not_end_starves_the_watchdog(world, watched):
    """It has a deadline of its own, long before that of the training which it is to end; once it is answered
    all is well again."""
    dog, said = watched
    world.script.hold = (TrainJob, VerifyJob)
    world.coordinator.publish_version(1)
    world.boot()
    world.worker.release()
    world.pump()
    world.coordinator.publish_version(2, pacing=Pacing(horizon=0))
    world.advance(WORKER_ALLOWANCE_S - 5.0)
    assert isinstance(world.workers[1].job, VerifyJob)
    assert dog.fault == ""
    world.advance(20.0)
    assert dog.fault == "the worker has not ended its job: verify"
    said.clear()
    world.advance(60.0)
    assert "WATCHDOG=1" not in said
    world.script.hold = VerifyJob
    world.workers[1].release()
    world.advance(20.0)
    assert dog.fault == ""
    assert "WATCHDOG=1" in said
