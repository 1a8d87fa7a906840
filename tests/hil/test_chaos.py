"""The breaker on real processes: short schedules by hand, one for each thing that it once found."""

import io
import json
from pathlib import Path

import pytest
from click.testing import CliRunner
from rich.console import Console

from hil.chaos.__main__ import main, run
from hil.chaos.books import Books
from hil.chaos.schedule import Fault

pytestmark = pytest.mark.process


def broken(out: Path, *faults: Fault, broker: str = "mosquitto", large: bool = False) -> Books:
    """The books of a fleet of four that met these faults."""
    said = Console(file=io.StringIO(), width=200)
    return run(out, faults, devices=4, seed=1, broker=broker, console=said, large=large)


@pytest.mark.parametrize("broker", ["mosquitto", pytest.param("amqtt", marks=pytest.mark.slow)])
def test_killed_processes_lose_and_repeat_nothing(tmp_path, broker):
    """An agent, a worker, the coordinator and the broker, within a few seconds."""
    books = broken(
        tmp_path / "out",
        Fault(second=1.0, kind="kill_agent", target="dev-00"),
        Fault(second=1.5, kind="kill_coordinator", target="coordinator"),
        Fault(second=3.0, kind="kill_broker", target="broker", setting="lost"),
        Fault(second=4.0, kind="reset_link", target="dev-01"),
        broker=broker,
    )
    assert books.balanced, books.sentences
    assert books.faults == {"kill_agent": 1, "kill_broker": 1, "kill_coordinator": 1, "reset_link": 1}
    assert books.updates_created == books.folded + books.refused
    assert (books.lost, books.duplicated, books.destroyed, books.given_up) == (0, 0, 0, 0)


@pytest.mark.slow
def test_uploads_in_chunks_survive_dead_links_and_a_second_coordinator(tmp_path):
    """Links are reset and go dead in the middle of them; another coordinator takes over for a while."""
    books = broken(
        tmp_path / "out",
        Fault(second=1.0, kind="reset_link", target="dev-00"),
        Fault(second=1.2, kind="half_open_link", target="dev-01"),
        Fault(
            second=3.0,
            kind="second_coordinator",
            target="coordinator",
            setting="heir",
            lasting_s=8.0,
        ),
        large=True,
    )
    assert books.balanced, books.sentences


@pytest.mark.slow
def test_a_coordinator_put_back_to_an_old_copy_is_recovered_and_its_loss_named(tmp_path):
    """A snapshot of its disk from seconds ago: devices prove it, an epoch is opened, the rest is given up."""
    books = broken(
        tmp_path / "out",
        Fault(
            second=1.0,
            kind="roll_back_coordinator",
            target="coordinator",
            setting="snapshot",
            lasting_s=6.0,
        ),
    )
    assert books.balanced, books.sentences
    assert books.epochs == 2
    assert any(act.startswith("recover: epoch 2") for act in books.acts)
    assert books.given_up > 0


@pytest.mark.slow
def test_a_damaged_outbox_is_the_only_thing_lost(tmp_path):
    """The end of a device's database is cut off, and another device is put back to an old copy."""
    books = broken(
        tmp_path / "out",
        Fault(second=1.0, kind="roll_back_agent", target="dev-01", lasting_s=4.0),
        Fault(second=2.0, kind="damage_agent", target="dev-00", setting="cut outbox", salt=3),
    )
    assert books.balanced, books.sentences
    assert (books.lost, books.duplicated, books.given_up) == (0, 0, 0)


@pytest.mark.slow
def test_a_damaged_key_is_known_for_what_it_is(tmp_path):
    """Any 32 bytes are a key: the coordinator signed with others, and no device trusted it any more."""
    books = broken(
        tmp_path / "out",
        Fault(second=1.0, kind="damage_coordinator", target="coordinator", setting="block key", salt=1),
    )
    assert books.balanced, books.sentences
    assert any("restored backup" in act for act in books.acts)


def test_the_command_prints_a_schedule_without_running_it(tmp_path):
    """What a seed would do can be read first."""
    words = ["--schedule", "--seed", "3", "--minutes", "1", "--json", "--out", str(tmp_path / "out")]
    result = CliRunner().invoke(main, words)
    assert result.exit_code == 0
    assert json.loads(result.stdout)[0].keys() == {
        "second",
        "kind",
        "target",
        "lasting_s",
        "setting",
        "salt",
    }
    assert not (tmp_path / "out").exists()
