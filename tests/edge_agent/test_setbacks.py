"""Setbacks: how long a device leaves off after a failure, on one version and from version to version."""

import random

import pytest

from edge_agent.jobs import JobFailed
from edge_agent.setbacks import MAX_TRIES, Setbacks
from fl_protocol.blob import BlobRef
from fl_protocol.clock import ManualClock
from fl_protocol.plan import TrainingPlan
from fl_protocol.task import Pacing, TaskManifest
from fl_protocol.version import VersionId

CRASH = JobFailed(reason="crash", retryable=True)
DIVERGED = JobFailed(reason="training diverged", retryable=False)


def manifest(number: int, *, artifact: bytes = b"artifact") -> TaskManifest:
    return TaskManifest(
        fleet="f",
        task="main",
        counter=number,
        term=1,
        version=VersionId(epoch=1, number=number, digest=bytes(16)),
        artifact=BlobRef.of(artifact),
        weights=BlobRef.of(b"weights"),
        fingerprint=bytes(8),
        plan=TrainingPlan(),
        codec="float32",
        pacing=Pacing(),
    )


@pytest.fixture
def setbacks():
    """None yet, on a manual clock."""
    clock = ManualClock(100.0)
    return Setbacks(clock, random.Random(1)), clock


def test_without_a_failure_nothing_waits(setbacks):
    """Nor after a success."""
    all_well, _ = setbacks
    assert all_well.pending(manifest(1)) is None
    all_well.fail(manifest(1), CRASH)
    all_well.succeed()
    assert all_well.pending(manifest(1)) is None


def test_the_same_version_is_tried_again_later_and_later_and_then_no_more(setbacks):
    """30 s doubling, up to twice that at random; five times."""
    many, clock = setbacks
    for attempt in range(MAX_TRIES - 1):
        many.fail(manifest(1), CRASH)
        reason, until = many.pending(manifest(1))
        assert reason == "crash"
        assert 30 * 2**attempt <= until - clock.monotonic() <= 60 * 2**attempt
        clock.advance(until - clock.monotonic())
        assert many.pending(manifest(1)) is None
    many.fail(manifest(1), CRASH)
    assert many.pending(manifest(1)) == ("crash", None)


def test_what_trying_again_does_not_help_waits_for_a_newer_version(setbacks):
    """Which may be tried at once, the first time."""
    one, _ = setbacks
    one.fail(manifest(1), DIVERGED)
    assert one.pending(manifest(1)) == ("training diverged", None)
    assert one.pending(manifest(2)) is None


def test_failures_in_a_row_delay_newer_versions_too(setbacks):
    """Up to an hour, twice that at random; another artifact is another matter."""
    many, clock = setbacks
    waits = []
    for number in range(1, 15):
        many.fail(manifest(number), DIVERGED)
        pending = many.pending(manifest(number + 1))
        waits.append(pending[1] - clock.monotonic() if pending else 0.0)
        assert many.pending(manifest(number + 1, artifact=b"another")) is None
        clock.advance(waits[-1])
    assert waits[0] == 0
    assert 30 <= waits[1] <= 60 <= waits[2] <= 120
    assert max(waits) <= 7200
    assert min(waits[-3:]) >= 3600


def test_the_first_failure_on_a_version_is_told_apart(setbacks):
    """It is reported; the repetitions are not."""
    many, _ = setbacks
    assert [many.fail(manifest(number), CRASH) for number in (1, 1, 2, 2, 2)] == [
        True,
        False,
        True,
        False,
        False,
    ]
