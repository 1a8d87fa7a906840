"""Long work of the coordinator says that it gets on: a watchdog must not take it for one that hangs."""

import pytest

from broker_coordinator.configuration import AggregatorTable, BufferTable

WAITING = 40


@pytest.fixture(params=["mean", "median"])
def crowd(request, fleet_of):
    """A fleet whose version takes more updates than have come, and what its coordinator said meanwhile."""
    fleet = fleet_of(
        aggregator=AggregatorTable(kind=request.param), buffer=BufferTable(size=WAITING, min_updates=3)
    )
    fleet.said = []
    return fleet.start(progress=lambda: fleet.said.append(fleet.coordinator))


def test_a_start_that_folds_all_anew_says_so_update_by_update(crowd):
    """As many words as updates wait, however many: a start is bounded by its pieces, not in all."""
    for number in range(WAITING - 1):
        crowd.contribute(crowd.device(f"d{number}"))
    crowd.crash()
    crowd.said.clear()
    crowd.start(progress=lambda: crowd.said.append(crowd.coordinator))
    before_it_was_made = [coordinator for coordinator in crowd.said if coordinator is None]
    assert len(before_it_was_made) >= WAITING - 1
    assert crowd.coordinator.figures().waiting == WAITING - 1


def test_one_turn_of_many_updates_says_so_between_them(crowd):
    """And of the version that they close."""
    devices = [crowd.device(f"d{number}") for number in range(WAITING)]
    for device in devices:
        device.begin(*device.make(crowd.layout, value=0.01))
    while crowd.broker.deliver_due():
        pass
    crowd.said.clear()
    crowd.coordinator.work()
    assert crowd.coordinator.version.number == 1
    assert len(crowd.said) > WAITING
