"""Programs that are run to their end, and those that have none."""

import os
import signal
import threading
from pathlib import Path

import pytest

from fl_protocol.errors import LichenError
from hil.boards.board import BoardFailure
from hil.boards.debian_root import run as run_checked
from hil.boards.errand import run
from hil.boards.patience import Patience

HANGS = {
    "a child of its own": "sleep 300 & echo $! >pid; wait",
    "it has ended, and its child holds its output": "sleep 300 & echo $! >pid",
}


def is_gone(pid: int) -> bool:
    """Whether a process has ended, collected or not."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] == "Z"
    except FileNotFoundError:
        return True


@pytest.mark.parametrize("line", HANGS.values(), ids=HANGS.keys())
def test_nothing_is_left_of_an_errand_that_does_not_end(tmp_path, line):
    """Not of what it has started either, which would hold a mount, or a root under emulation."""
    with pytest.raises(BoardFailure, match=r"no end of 'sleep 300 .*' within 1 s"):
        run(line, within_s=1.0, folder=tmp_path)
    pid = int((tmp_path / "pid").read_text())
    Patience(lambda said: None).until("it ends", lambda: is_gone(pid), within_s=10.0)


def test_an_errand_ends_as_it_ends(tmp_path):
    """Its code, both its outputs, in its folder and environment, and nothing to read."""
    words = ["sh", "-c", 'cat; pwd; echo "$WORD" >&2; printf "\\377"; exit 7']
    done = run(words, within_s=30.0, folder=tmp_path, environment={**os.environ, "WORD": "said"})
    assert (done.returncode, done.stdout, done.stderr) == (7, f"{tmp_path}\n\ufffd", "said\n")


def test_an_interrupted_errand_is_ended(tmp_path):
    """A Ctrl-C reaches us, and not the session of its own that it is."""
    main = threading.get_ident()

    def interrupt():
        Patience(lambda said: None).until("it runs", (tmp_path / "pid").exists, within_s=30.0)
        signal.pthread_kill(main, signal.SIGINT)

    thread = threading.Thread(target=interrupt)
    thread.start()
    with pytest.raises(KeyboardInterrupt):
        run("echo $$ >begun; mv begun pid; exec sleep 300", within_s=60.0, folder=tmp_path)
    thread.join()
    assert is_gone(int((tmp_path / "pid").read_text()))


def test_a_build_step_without_end_says_what_it_was_for():
    """In the words of whoever asked for it."""
    with pytest.raises(LichenError, match="the root cannot be made: no end of 'sleep 300' within 0 s"):
        run_checked(["sleep", "300"], what="the root cannot be made", timeout_s=0.2)
