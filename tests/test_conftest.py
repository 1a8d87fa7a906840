"""What the tests are held to, tested on small runs of pytest."""

import shutil
import subprocess
import sys
from pathlib import Path

import pytest

TESTS = Path(__file__).parent


def run(folder: Path, source: str, *, ci: str) -> subprocess.CompletedProcess[str]:
    """Run one test file under our conftest."""
    for path in TESTS.glob("*.py"):
        if not path.name.startswith("test_"):
            shutil.copy(path, folder)
    (folder / "allowed_skips.txt").write_text("no such machine  # there is none here\n# a comment\n")
    (folder / "test_it.py").write_text(source)
    return subprocess.run(
        [
            sys.executable,
            "-m",
            "pytest",
            "-q",
            "-p",
            "no:cacheprovider",
            "--rootdir",
            str(folder),
            str(folder),
        ],
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
        env={"CI": ci, "PATH": "/usr/bin:/bin", "PYTHONPATH": str(TESTS.parent)},
    )


@pytest.mark.parametrize(
    ("reason", "ci", "status"),
    [("no such machine", "true", 0), ("too lazy", "true", 1), ("too lazy", "", 0)],
)
def test_a_skip_without_leave_fails_a_run_on_ci(tmp_path, reason, ci, status):
    """A skipped test is a claim that is not tested: CI wants its reason written down."""
    result = run(tmp_path, f"import pytest\ndef test_it():\n    pytest.skip({reason!r})\n", ci=ci)
    assert result.returncode == status, result.stdout
    assert ("skipped without leave" in result.stdout) is bool(status)


def test_the_skip_of_a_whole_module_counts_too(tmp_path):
    """As pytest.importorskip does it."""
    source = "import pytest\npytest.skip('too lazy', allow_module_level=True)\n"
    assert run(tmp_path, source, ci="true").returncode == 1


@pytest.mark.parametrize(
    "source",
    [
        "import subprocess\ndef test_it():\n    subprocess.Popen(['sleep', '100'])\n",
        "import threading as t\ndef test_it():\n    t.Thread(target=t.Event().wait, args=(5,)).start()\n",
    ],
)
def test_who_leaves_a_process_or_a_thread_behind_fails(tmp_path, source):
    """An orphan of one test disturbs the next one."""
    result = run(tmp_path, source, ci="")
    assert result.returncode == 1
    assert "left behind" in result.stdout
