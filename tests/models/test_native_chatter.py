"""What libraries in C write to the standard error of a process."""

import contextlib
import os
import subprocess
import sys
import threading
from pathlib import Path

import pytest

from models.runtime.native_chatter import without_info_lines
from models.zoo.mlp import digits_artifact

OPENED = """
import sys
from models.runtime import TrainingArtifact
from models.runtime.choose import try_runtime
trial = try_runtime("litert", TrainingArtifact.open(sys.argv[1]))
assert not trial.reason, trial
"""


def test_all_but_info_lines_is_written(capfd):
    """In order, the last line without an end too, and where it ends in an exception."""
    with contextlib.suppress(ValueError), without_info_lines():
        os.write(2, b"WARNING: one\nINFO: two\n  INFO: three\nfo")
        os.write(2, b"ur")
        raise ValueError
    os.write(2, b"!\n")
    assert capfd.readouterr().err == "WARNING: one\n  INFO: three\nfour!\n"


@pytest.mark.parametrize("end", ["os.abort()", "os.kill(os.getpid(), 9)", "os._exit(3)"])
def test_the_last_words_of_a_process_that_dies_meanwhile_are_written(end):
    """An assertion of the library's, or what the allocator found: all that ever tells why it crashed."""
    program = f"""
import os
from models.runtime.native_chatter import without_info_lines
with without_info_lines():
    os.write(2, b"INFO: created\\nassertion failed: tensor != nullptr\\n")
    {end}
"""
    ran = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, timeout=60.0, check=False
    )
    assert ran.returncode != 0
    assert ran.stderr == "assertion failed: tensor != nullptr\n"


def test_nothing_is_left_of_a_process_that_lives(capfd):
    """No child, no descriptor, no word; also where no child can be started."""
    before = os.listdir("/proc/self/fd"), _children()
    for path in (os.environ["PATH"], ""):
        with pytest.MonkeyPatch.context() as patch:
            patch.setenv("PATH", path)
            with without_info_lines():
                os.write(2, b"INFO: created\n")
    assert (os.listdir("/proc/self/fd"), _children()) == before
    assert capfd.readouterr().err == ""


def test_threads_give_each_other_s_standard_error_back(capfd):
    """Whoever comes last, descriptor 2 is what it was."""

    def speak(number):
        for _ in range(50):
            with without_info_lines():
                os.write(2, b"INFO: no\n%d\n" % number)

    threads = [threading.Thread(target=speak, args=(number,)) for number in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    os.write(2, b"end\n")
    lines = capfd.readouterr().err.splitlines()
    assert (sorted(lines[:-1]), lines[-1]) == (sorted("0123" * 50), "end")


def test_an_interpreter_opens_without_a_word(tmp_path):
    """Its line would stand in the middle of a spinner, and in a device's log once a version."""
    pytest.importorskip("ai_edge_litert")
    digits_artifact(tmp_path / "artifact", runtimes=("onnx", "tflite"))
    ran = subprocess.run(
        [sys.executable, "-c", OPENED, str(tmp_path / "artifact")],
        capture_output=True,
        text=True,
        timeout=60.0,
        check=False,
    )
    assert (ran.returncode, ran.stderr) == (0, "")


def _children() -> str:
    """Those of this thread, zombies among them."""
    return Path("/proc/thread-self/children").read_text()
