"""Which process an old status is of."""

import json
import os
import subprocess
import sys

import pytest

from edge_agent.birthmark import birthmark, is_alive
from edge_agent.status import StatusFile, read_status, status_path
from fl_protocol.clock import ManualClock


@pytest.fixture
def written(tmp_path):
    """``written(**changes)``: what is read of a status that this process wrote, some of it changed since."""

    def read(**changes):
        path = status_path(tmp_path)
        path.parent.mkdir(exist_ok=True)
        StatusFile(path, ManualClock()).write(lambda: {"pid": os.getpid(), "state": "training"})
        path.write_text(json.dumps(json.loads(path.read_text()) | changes))
        return read_status(tmp_path)

    return read


def test_a_status_of_an_earlier_boot_passes_for_no_process_of_its_number(written):
    """After a boot the number is most likely that of a living process again."""
    assert written()["running"]
    mark = written()["birthmark"]
    boot, ticks = mark.split("/")
    assert boot
    assert ticks
    status = written(birthmark=f"7b6c1e0a-0000-4000-8000-000000000000/{ticks}")
    assert (status["running"], status["state"]) == (False, "stopped")
    assert not written(birthmark=f"{boot}/{int(ticks) + 1}")["running"]


@pytest.mark.parametrize("mark", ["", "/", None, 5])
def test_what_no_birthmark_tells_is_told_by_the_number(written, mark):
    """A status that an earlier release wrote, or one from where the kernel does not say."""
    assert written(birthmark=mark)["running"]
    assert not written(birthmark=mark, pid=2**40)["running"]


@pytest.mark.parametrize("pid", [0, -1, True, "1", None])
def test_what_is_no_process_is_not_alive(written, pid):
    """0 and below stand for groups of processes, which are there."""
    assert not written(pid=pid)["running"]


def test_a_process_is_not_alive_once_it_is_gone():
    """Its birthmark had both parts; whoever has its number next has another."""
    with subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE) as child:
        mark = birthmark(child.pid)
        assert is_alive(child.pid, mark)
        child.communicate(b"\n")
    assert not is_alive(child.pid, mark)
    assert mark != birthmark(os.getpid())
