"""``lichen-agent run`` survives an outbox that is found damaged while it runs."""

import sqlite3

import pytest

from edge_agent.command import main
from edge_agent.outbox import Outbox
from fl_protocol.clock import ManualClock
from fl_protocol.errors import StorageError


class Agent:
    """As much of an agent as the command sees: its outbox is opened, and damaged in its first lives."""

    lives = 0

    def __init__(self, folder, *, damaged_lives: int, damage: str) -> None:
        self._outbox: Outbox = folder.open_outbox(max_bytes=1 << 20, max_age_s=1e6, clock=ManualClock())
        self._damaged = Agent.lives < damaged_lives
        self._damage = damage
        self._path = folder.database
        Agent.lives += 1

    def run(self) -> None:
        self.close()
        if not self._damaged:
            return
        if self._damage == "real":
            self._path.write_bytes(b"no database" * 1000)
        try:
            raise sqlite3.DatabaseError("database disk image is malformed")
        except sqlite3.DatabaseError as error:
            raise StorageError("the outbox") from error

    def stop(self) -> None:
        pass

    def close(self) -> None:
        self._outbox.close()


@pytest.fixture
def run(tmp_path, monkeypatch):
    """Run the command with an agent that finds its outbox damaged in its first lives; the exit code."""
    config = tmp_path / "agent.toml"
    config.write_text(
        'device = "d"\nfleet = "f"\nbroker = "mqtt://127.0.0.1:1"\nstate = "state"\ninsecure = true\n'
    )
    monkeypatch.setattr("signal.signal", lambda *_: None)
    monkeypatch.setattr(Agent, "lives", 0)

    def run(**settings) -> int:
        monkeypatch.setattr(
            "edge_agent.agent.build_agent", lambda configuration, folder: Agent(folder, **settings)
        )
        return main(["run", "--config", str(config)])

    return run


def test_a_damaged_outbox_is_set_aside_and_the_agent_goes_on(run, tmp_path):
    """No person has to come, and nobody has to start it again."""
    assert run(damaged_lives=2, damage="real") == 0
    assert Agent.lives == 3
    assert len([file for file in (tmp_path / "state" / "quarantine").iterdir() if file.suffix[1:]]) == 2


def test_damage_that_is_not_there_when_looked_for_ends_the_agent(run, capsys):
    """No loop: whatever it was, setting the file aside would not mend it."""
    assert run(damaged_lives=99, damage="said") == 1
    assert Agent.lives == 2
    assert "the outbox" in capsys.readouterr().err
