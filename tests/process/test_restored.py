"""A coordinator restored from yesterday's backup, in real processes: what a person does, sees, and hears."""

import json
import shutil
import signal
import subprocess
import sys

import pytest

from broker_coordinator.books.audit import audit
from broker_coordinator.books.ledgers import read_ledger
from broker_coordinator.storage.sqlite_store import SqliteStore
from hil.local_fleet import LocalFleet

pytestmark = [pytest.mark.process, pytest.mark.mosquitto]

PATIENCE_S = 60.0
BACKED_UP = 2
REACHED = 5
AT_LAST = 8
FOR_EVER = 1000


def lichen(*words: object) -> str:
    """What a ``lichen`` command says; it must succeed."""
    done = subprocess.run(
        [sys.executable, "-m", "lichen", *map(str, words)],
        capture_output=True,
        text=True,
        timeout=PATIENCE_S,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def journal(fleet: LocalFleet) -> set[bytes]:
    """The ids of all updates that the coordinator's store has."""
    store = SqliteStore.open(fleet.state, read_only=True)
    try:
        return {row.update_id for row in store.rows()}
    finally:
        store.close()


def test_a_backup_of_yesterday_is_recognised_recovered_from_and_what_is_gone_is_said(
    local_fleet, steps, tmp_path
):
    """Backup at version 2, three versions more, the copy put back: it publishes and refuses nothing until a
    person decides; then the fleet goes on, and an update that a device still held counts once."""
    # Fifty versions a second would leave the held update behind the horizon before anybody asks for it.
    pace = {"horizon": {"versions": 1000}, "publish": {"every_s": 0.2}}
    fleet = local_fleet(devices=3, versions=BACKED_UP, broker="mosquitto", settings=pace)
    one, two, late = fleet.agents.values()
    fleet.coordinator.start()
    one.start()
    two.start()
    steps.end(fleet)
    lichen("backup", fleet.state, "--out", tmp_path / "backup")

    # A device trains while no coordinator is there, and dies when the broker has its update.
    late.start({"LICHEN_CRASH_POINT": "agent.delivered"})
    late.wait(PATIENCE_S)
    assert late.exit_code == -signal.SIGKILL, late.last_words()
    steps.begin(fleet, REACHED)
    steps.end(fleet)
    [held] = read_ledger(fleet.agent_state("dev-02")).outbox
    assert audit(fleet.state, [fleet.agent_state("dev-02")]).receipt_pending == 1

    counted = journal(fleet)
    shutil.rmtree(fleet.state)
    shutil.copytree(tmp_path / "backup", fleet.state)
    steps.begin(fleet, AT_LAST)
    steps.until(fleet, lambda: fleet.status().get("state") == "rolled_back")
    late.start()
    steps.until(fleet, lambda: fleet.agent_status("dev-02").get("connected") is True)
    assert "rolled_back" in lichen("status", fleet.state)
    assert fleet.status()["published"] is None
    assert fleet.status()["refused"] == {}
    assert held in read_ledger(fleet.agent_state("dev-02")).outbox
    assert fleet.coordinator.stop() == 0
    assert "lichen coordinator recover" in fleet.coordinator.last_words()

    gone = json.loads(lichen("coordinator", "recover", fleet.folder / "fleet.toml", "--json"))
    assert (gone["epoch"], gone["seen"]) == (2, [1, REACHED])
    assert gone["versions_given_up"] == REACHED - BACKED_UP

    steps.begin(fleet, FOR_EVER)
    steps.until(fleet, lambda: held in read_ledger(fleet.agent_state("dev-02")).done)
    steps.until(fleet, lambda: fleet.status().get("version", 0) >= AT_LAST)
    assert fleet.status()["epoch"] == 2
    assert fleet.coordinator.stop() == 0
    fleet.stop()
    books = audit(fleet.state, fleet.agent_states)
    assert books.balanced, books.faults
    assert (books.lost, books.duplicated) == (0, 0)
    refused = {known for state in fleet.agent_states for known in read_ledger(state).refused}
    assert books.given_up == len(counted - journal(fleet) - refused) > 0
