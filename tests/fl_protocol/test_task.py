"""The task manifest: order, and who participates."""

import pytest

from fl_protocol.errors import MessageError
from fl_protocol.fields import pack, unpack
from fl_protocol.plan import TrainingPlan
from fl_protocol.task import participates
from fl_protocol.version import VersionId

FLEET = [f"pi-{number}" for number in range(4000)]


def version(number: int) -> VersionId:
    """A version with a digest of its own."""
    return VersionId(epoch=1, number=number, digest=number.to_bytes(16, "big"))


@pytest.mark.parametrize("share", [0.05, 0.25, 0.5, 0.9])
def test_the_share_that_is_asked_for_takes_part(share):
    """Within four standard deviations."""
    drawn = sum(participates(device, version(1), share) for device in FLEET)
    deviation = (len(FLEET) * share * (1 - share)) ** 0.5
    assert abs(drawn - len(FLEET) * share) < 4 * deviation


def test_all_and_none_are_exact():
    """A share of 1 leaves nobody out, a share of 0 takes nobody."""
    assert all(participates(device, version(1), 1.0) for device in FLEET)
    assert not any(participates(device, version(1), 0.0) for device in FLEET)


def test_each_version_draws_anew_and_a_greater_share_keeps_who_was_in():
    """Nobody is left out for ever, and changing the share in mid-version takes nobody's turn away."""
    first = {device for device in FLEET if participates(device, version(1), 0.5)}
    second = {device for device in FLEET if participates(device, version(2), 0.5)}
    assert 0.4 < len(first & second) / len(first) < 0.6
    assert first <= {device for device in FLEET if participates(device, version(1), 0.7)}


def test_a_plan_travels_without_its_seed():
    """The seed is the device's own."""
    plan = TrainingPlan(epochs=3, lr=0.25, seed=99)
    read = TrainingPlan.from_body(unpack(pack(plan.to_body()), limit=1000))
    assert read == TrainingPlan(epochs=3, lr=0.25, seed=0)


@pytest.mark.parametrize(
    "change",
    [
        {"epochs": 0},
        {"batch": 0},
        {"lr": -1.0},
        {"momentum": 1.5},
        {"deadline": 0.5},
        {"steps": -1},
        {"mu": None},
    ],
)
def test_a_plan_out_of_range_is_refused(change):
    """Every hyper-parameter has a range, and none a silent default."""
    with pytest.raises(MessageError):
        TrainingPlan.from_body(unpack(pack(dict(TrainingPlan().to_body()) | change), limit=1000))
