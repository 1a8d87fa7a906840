"""Every aggregator and server optimizer in a whole coordinator that is killed in the middle of a version."""

import pytest

from broker_coordinator.configuration import AggregatorTable, BufferTable, SelectionTable, ServerTable

SIZE = 5
AGGREGATORS = [
    AggregatorTable(kind="mean"),
    AggregatorTable(kind="median"),
    AggregatorTable(kind="trimmed_mean"),
    AggregatorTable(kind="krum", chosen=2),
    AggregatorTable(kind="ca2fl", age=2),
]


@pytest.mark.parametrize("table", AGGREGATORS, ids=lambda table: table.kind)
@pytest.mark.parametrize("optimizer", ["sgd", "momentum", "adagrad", "adam", "yogi"])
def test_versions_close_replay_and_survive(fleet_of, table, optimizer):
    """Four versions of five updates each; nothing is quarantined, and the audit makes each one again."""
    fleet = fleet_of(
        aggregator=table,
        server=ServerTable(optimizer=optimizer),
        buffer=BufferTable(size=SIZE, flush_after_s=0),
        selection=SelectionTable(kind="random") if table.kind == "ca2fl" else SelectionTable(),
    ).start()
    devices = [fleet.device(f"d{number}") for number in range(SIZE)]
    for number in range(1, 5):
        fleet.contribute(*devices[:3], value=0.01 * number)
        if number == 2:
            fleet.crash()
            fleet.start()
        fleet.contribute(*devices[3:], value=-0.02)
        assert fleet.coordinator.version.number == number
    books = fleet.books()
    assert (books.versions_ok, books.folded, books.quarantined) == (4, 20, 0)
