"""``lichen-agent``: exit codes and what is printed."""

import io
import json

import numpy as np
import pytest

from edge_agent.command import main
from edge_agent.status import StatusFile, read_status
from fl_protocol.clock import ManualClock
from fl_protocol.errors import StorageError

_single = io.BytesIO()
np.save(_single, np.ones(3))
SINGLE_ARRAY = _single.getvalue()


@pytest.fixture
def config(tmp_path):
    """A configuration whose broker does not exist."""
    path = tmp_path / "agent.toml"
    path.write_text(
        'device = "pi-07"\nfleet = "demo"\nbroker = "mqtt://127.0.0.1:1"\nstate = "state"\ninsecure = true\n'
    )
    return path


def test_a_bad_configuration_ends_with_78_and_every_fault(tmp_path, capsys):
    """Nothing is started; standard error says all that is wrong."""
    path = tmp_path / "agent.toml"
    path.write_text('device = "pi 07"\nflet = "demo"\n')
    assert main(["run", "--config", str(path)]) == 78
    said = capsys.readouterr()
    assert said.out == ""
    assert said.err.startswith("error: ")
    assert "agent.toml:2: flet: unknown key, did you mean 'fleet'?" in said.err
    assert main(["run", "--config", str(tmp_path / "nowhere.toml")]) == 78


def test_wrong_usage_ends_with_2(capsys):
    """As argparse does it."""
    for arguments in ([], ["fly"], ["samples"], ["samples", "add"]):
        with pytest.raises(SystemExit) as ended:
            main(arguments)
        assert ended.value.code == 2
    capsys.readouterr()


def test_samples_are_added_from_an_npz_file(config, tmp_path, capsys):
    """Rows of x and y; the agent's store counts them."""
    np.savez(tmp_path / "some.npz", x=np.ones((7, 4), np.float32), y=np.zeros(7, np.int32))
    add = ["samples", "add", "--config", str(config), str(tmp_path / "some.npz")]
    assert main([*add, "--json"]) == 0
    assert json.loads(capsys.readouterr().out) == {
        "added": 7,
        "samples": 7,
        "path": str(tmp_path / "state" / "samples.db"),
    }
    assert main(add) == 0
    assert "7 samples added, 14 in" in capsys.readouterr().out


@pytest.mark.parametrize("content", [None, b"rubbish", b"", b"PK\x03\x04cut", SINGLE_ARRAY])
def test_a_file_that_holds_no_samples_is_refused(config, tmp_path, capsys, content):
    """Missing, rubbish, empty, cut off, a single array: exit code 1 and a sentence."""
    path = tmp_path / "some.npz"
    if content is not None:
        path.write_bytes(content)
    assert main(["samples", "add", "--config", str(config), str(path)]) == 1
    assert capsys.readouterr().err.startswith("error: ")


def test_arrays_that_do_not_fit_together_are_refused(config, tmp_path, capsys):
    """Another number of labels than rows; objects; no x."""
    for number, arrays in enumerate(
        [{"x": np.ones((3, 2)), "y": np.ones(2)}, {"z": np.ones(3)}, {"x": np.array([{}], object)}]
    ):
        path = tmp_path / f"{number}.npz"
        np.savez(path, **arrays)
        assert main(["samples", "add", "--config", str(config), str(path)]) == 1
        assert capsys.readouterr().err.startswith("error: ")


def test_status_before_the_first_run_says_what_to_do(config, capsys):
    """Exit code 1 with a hint, not a stack trace."""
    assert main(["status", "--config", str(config)]) == 1
    assert "hint:" in capsys.readouterr().err


def test_check_fails_without_broker_and_samples(config, capsys):
    """A line per check; exit code 1; JSON holds the same."""
    assert main(["check", "--config", str(config)]) == 1
    lines = capsys.readouterr().out.splitlines()
    assert any(line.startswith("FAIL  broker mqtt://127.0.0.1:1") for line in lines)
    assert any(line.startswith("FAIL  samples: 0 to train on") for line in lines)
    assert any(line.startswith("ok    disk") for line in lines)
    assert main(["check", "--config", str(config), "--json"]) == 1
    report = json.loads(capsys.readouterr().out)
    assert report["ok"] is False
    assert all(finding["hint"] for finding in report["checks"] if not finding["ok"])


@pytest.mark.parametrize(
    ("trainer", "line"),
    [
        ("mine:Trainer", "ok    trainer: mine:Trainer was made"),
        ("mine:Miner", "FAIL  trainer: the trainer 'mine:Miner' cannot be made: AttributeError: "),
        ("other:Trainer", "FAIL  trainer: the trainer 'other:Trainer' cannot be made: ModuleNotFoundError: "),
        ("mine:Illegal", "FAIL  trainer: making the trainer 'mine:Illegal' ended its process with signal 4"),
    ],
)
def test_check_makes_the_trainer(config, capsys, trainer, line):
    """In a process of its own, which a package for another processor may end."""
    (config.parent / "mine.py").write_text(
        "import os\n\n"
        "class Trainer:\n    def train(self, *_): ...\n    def evaluate(self, *_): ...\n\n"
        "class Illegal:\n    def __init__(self):\n        os.kill(os.getpid(), 4)\n"
    )
    config.write_text(f'{config.read_text()}trainer = "{trainer}"\n')
    assert main(["check", "--config", str(config)]) == 1
    assert any(said.startswith(line) for said in capsys.readouterr().out.splitlines())


def test_the_status_file_is_written_only_for_news_and_four_times_a_second(tmp_path):
    """An idle device wears no flash with it."""
    (tmp_path / "run").mkdir()
    clock = ManualClock(100.0)
    status = StatusFile(tmp_path / "run" / "status.json", clock)
    assert status.write(lambda: {"pid": 1, "n": 1}) is None
    assert status.write(lambda: {"pid": 1, "n": 1}) is None
    assert status.write(lambda: {"pid": 1, "n": 2}) == pytest.approx(0.25)
    clock.advance(0.25)
    assert status.write(lambda: {"pid": 1, "n": 2}) is None
    assert read_status(tmp_path)["n"] == 2
    assert status.write(lambda: {"pid": 1, "n": 3}, at_once=True) is None
    assert read_status(tmp_path)["n"] == 3


def test_a_status_that_cannot_be_read_is_an_error_and_one_that_cannot_be_written_is_not(tmp_path):
    """Telling must not stop the doing."""
    status = StatusFile(tmp_path / "nowhere" / "status.json", ManualClock())
    assert status.write(lambda: {"n": 1}) is None
    with pytest.raises(StorageError, match="no status"):
        read_status(tmp_path)
