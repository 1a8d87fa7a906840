"""The plug-in in a project of a user's own: real sites and boards, in a pytest of its own."""

import os
import re
import subprocess
import sys

import pytest

pytestmark = [pytest.mark.process, pytest.mark.mosquitto]

OWN_TESTS = """
from pathlib import Path

import pytest

from hil.boards.scenarios import join
from hil.boards.site import SiteOptions


@pytest.fixture(scope="session")
def hil_options():
    return SiteOptions(epochs=5, codec="eden(bits=1)", runtimes=("numpy",))


def test_my_device_joins(board, site):
    join(board, site)
    assert "eden" in (site.fleet / "fleet.toml").read_text()


def test_a_small_device_is_held(pi_zero, site):
    pi_zero.start()
    site.until("an update is folded", lambda: site.folded() >= 1, within_s=120)
    limits = pi_zero.status()["limits"]
    pi_zero.stop()
    if pi_zero.confinement.group is not None:
        assert limits["memory_bytes"] == 400 << 20
        assert 20 << 20 < pi_zero.confinement.peak_bytes() < 400 << 20


def test_what_fails_is_explained(board, site):
    assert board.device == "nobody"
"""


@pytest.mark.timeout(170)
def test_a_project_of_ones_own_gets_boards_a_table_and_a_page(tmp_path):
    """Fixtures come by themselves, options from its own conftest; the table and the page say what failed."""
    (tmp_path / "test_own.py").write_text(OWN_TESTS)
    plugin = [] if installed() else ["-p", "hil.pytest_plugin"]
    words = [sys.executable, "-m", "pytest", *plugin, "-q", "--board", "process", "--hil-report", "page.html"]
    done = subprocess.run(
        words,
        cwd=tmp_path,
        capture_output=True,
        text=True,
        timeout=160,
        check=False,
        env={**os.environ, "PYTEST_ADDOPTS": ""},
    )
    assert "1 failed, 2 passed" in done.stdout, done.stdout + done.stderr
    assert re.search(r"test_my_device_joins +ok \d+ s", done.stdout)
    assert re.search(r"test_what_fails_is_explained +FAIL", done.stdout)
    assert "Captured" not in done.stderr
    page = (tmp_path / "page.html").read_text()
    assert "test my device joins" in page
    assert "nobody" in page


@pytest.mark.parametrize(
    ("words", "reason"),
    [(["--board", "toaster"], "no board is called"), (["--board", "ssh"], "lists no board")],
)
def test_a_board_that_cannot_be_had_is_an_error_not_a_skip(words, reason, tmp_path):
    """Whoever names a board is told why there is none."""
    (tmp_path / "test_own.py").write_text(OWN_TESTS)
    plugin = [] if installed() else ["-p", "hil.pytest_plugin"]
    done = subprocess.run(
        [sys.executable, "-m", "pytest", *plugin, "-q", *words, "-k", "joins"],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert done.returncode != 0
    assert reason in done.stdout + done.stderr


def test_a_page_that_its_own_figures_would_overwrite_is_refused(tmp_path):
    """The JSON goes beside the page, under its name: that must be another one."""
    (tmp_path / "test_own.py").write_text(OWN_TESTS)
    plugin = [] if installed() else ["-p", "hil.pytest_plugin"]
    done = subprocess.run(
        [sys.executable, "-m", "pytest", *plugin, "-q", "--hil-report", "x.json", "-k", "joins"],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert done.returncode == pytest.ExitCode.USAGE_ERROR
    assert "FILE.html" in done.stderr
    assert not (tmp_path / "x.json").exists()


def installed() -> bool:
    """Whether this environment was made after the plug-in had its entry point."""
    from importlib.metadata import entry_points

    return any(point.value == "hil.pytest_plugin" for point in entry_points(group="pytest11"))
