"""Processes under watch."""

import subprocess
import sys

import psutil
import pytest

from fl_protocol.errors import LichenError
from hil.processes import ManagedProcess

STUBBORN = """
import signal, sys
signal.signal(signal.SIGTERM, signal.SIG_IGN)
print("ready", flush=True)
signal.pause()
"""
PARENT = """
import sys
from pathlib import Path
from hil.processes import ManagedProcess
command = [sys.executable, "-c", "import signal; signal.pause()"]
child = ManagedProcess("child", command, Path("log"), folder=Path("."))
child.start()
print(child.pid, flush=True)
sys.stdin.read()
"""


@pytest.fixture
def process(tmp_path):
    """Make a process of Python code; it ends with the test."""
    made = []

    def make(code: str) -> ManagedProcess:
        made.append(
            ManagedProcess("child", [sys.executable, "-c", code], tmp_path / "child.log", folder=tmp_path)
        )
        return made[-1]

    yield make
    for child in made:
        child.kill()


def test_output_exit_code_and_last_words_are_kept_over_restarts(process):
    """The log goes on; variables reach the child; its folder is the one given."""
    child = process("import os, sys; print(os.environ['WORD'], os.getcwd()); sys.exit(7)")
    assert (child.pid, child.running, child.exit_code, child.last_words()) == (0, False, None, "")
    for word in ("one", "two"):
        child.start({"WORD": word})
        assert child.wait(30) == 7
    assert child.last_words() == f"one {child.log.parent}\ntwo {child.log.parent}"
    assert child.last_words(1).startswith("two")
    assert not child.running


def test_one_that_does_not_listen_is_ended_by_force(process):
    """SIGTERM, a bounded wait, kill -9."""
    child = process(STUBBORN)
    child.start()
    while child.last_words() != "ready":
        with pytest.raises(LichenError, match="child still runs after 0 s"):
            child.wait(0.01)
    assert child.stop(0.2) == -9
    assert child.stop() == -9


def test_children_die_with_a_parent_that_is_killed(tmp_path):
    """kill -9 of the parent leaves no time to end them in order: the kernel does it."""
    parent = subprocess.Popen(
        [sys.executable, "-c", PARENT], cwd=tmp_path, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    with parent:
        child = psutil.Process(int(parent.stdout.readline()))
        parent.kill()
    gone, alive = psutil.wait_procs([child], timeout=30)
    assert (len(gone), alive) == (1, [])
