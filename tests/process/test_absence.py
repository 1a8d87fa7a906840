"""A device that was away for a week with an update in its outbox; nothing in between remembers it."""

import pytest
from numpy import float32, frombuffer

from broker_coordinator.books.audit import audit
from broker_coordinator.books.ledgers import read_ledger
from broker_coordinator.storage.sqlite_store import SqliteStore
from hil.chaos.clock import YEAR_S, MovableClock

pytestmark = pytest.mark.process

WEEK = 7 * 86400 / YEAR_S
FIRST, AWAY, FOR_EVER = 1, 5, 1000


@pytest.fixture
def week_later(clock_shim, tmp_path) -> dict[str, str]:
    """What a process is started with to live a week from now."""
    clock = MovableClock(clock_shim, tmp_path / "clock")
    clock.move(WEEK)
    return clock.environment


def row_of(fleet, update_id):
    """The coordinator's row of an update, if it has one."""
    store = SqliteStore.open(fleet.state, read_only=True)
    try:
        return next((row for row in store.rows() if row.update_id == update_id), None)
    finally:
        store.close()


def word_on(fleet, update_id):
    """What the coordinator says of an update, for ever."""
    store = SqliteStore.open(fleet.state, read_only=True)
    try:
        outcome = store.outcome(update_id)
        return outcome.state, outcome.reason
    finally:
        store.close()


@pytest.mark.parametrize(("broker", "horizon"), [("mosquitto", 20), ("amqtt", 2)])
def test_an_update_of_last_week_is_folded_or_refused_by_the_tasks_rule(
    local_fleet, steps, week_later, broker, horizon
):
    """The broker was killed and lost everything, four versions went by, every clock is a week later: the
    update counts by its staleness, or is refused as stale, and in either case its device lets go of it."""
    fleet = local_fleet(
        devices=3,
        versions=FIRST,
        broker=broker,
        settings={
            "buffer": {"size": 2, "flush_after_s": 2.0},
            "horizon": {"versions": horizon},
            "defence": {"clip": False},
        },
    )
    one, two, away = fleet.agents.values()
    fleet.coordinator.start()
    one.start()
    two.start()
    steps.end(fleet)

    # It trains while no coordinator is there, and goes.
    away.start()
    steps.until(fleet, lambda: fleet.agent_status("dev-02").get("outbox", {}).get("count") == 1)
    assert away.stop() == 0
    [held] = read_ledger(fleet.agent_state("dev-02")).outbox

    fleet.embedded.kill()
    fleet.embedded.start()
    steps.begin(fleet, AWAY, week_later)
    steps.end(fleet)
    assert row_of(fleet, held) is None
    for agent in (one, two):  # they have had their week
        agent.stop()

    away.start(week_later)
    steps.begin(fleet, FOR_EVER, week_later)
    ledger = fleet.agent_state("dev-02")
    steps.until(fleet, lambda: held not in read_ledger(ledger).outbox)
    steps.until(fleet, lambda: (row := row_of(fleet, held)) is None or row.state != "waiting")
    assert fleet.coordinator.stop() == 0
    fleet.stop()
    row = row_of(fleet, held)
    if horizon < AWAY - FIRST:
        assert row is None
        assert held in read_ledger(ledger).refused
        assert word_on(fleet, held) == ("refused", "stale")
    else:
        assert held in read_ledger(ledger).done
        assert (row.base, row.state) == ((1, FIRST), "folded")
        assert row.staleness >= AWAY - FIRST
        assert frombuffer(row.scale, "<f4")[0] == float32((1.0 + row.staleness) ** -0.5)
    books = audit(fleet.state, fleet.agent_states)
    assert books.balanced, books.faults
