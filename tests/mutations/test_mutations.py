"""The tests can fail: each mutation breaks a promise in a copy of the code, and one test must turn red.

Each takes away what makes a promise true: an fsync, the order of commit and receipt, a row's place in its
commit. A test that stays green proves nothing about it.
"""

import os
import shutil
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
PACKAGES = ("lichen", "fl_protocol", "fl_io", "edge_agent", "broker_coordinator", "models", "hil")
PATIENCE_S = 120.0
FAILED = 1


@dataclass(frozen=True, slots=True, kw_only=True)
class Mutation:
    """``old``, which is in ``file`` once, becomes ``new``; then ``test`` must fail."""

    file: str
    old: str
    new: str
    test: str


DISK = "tests/fl_io/test_disk.py"
INGEST = "tests/broker_coordinator/test_ingest.py"
COMMITS = "tests/broker_coordinator/test_commits.py"
POWER = "tests/edge_agent/supervisor/test_power_cuts.py"

MUTATIONS = {
    "the fsync of a durable file is left out": Mutation(
        file="fl_io/disk.py",
        old="    disk.sync(part)\n",
        new="",
        test=f"{DISK}::test_a_file_that_was_written_survives_every_power_cut",
    ),
    "the fsync of its folder is left out": Mutation(
        file="fl_io/disk.py",
        old="        disk.sync_directory(path.parent)\n    crash_point",
        new="        pass\n    crash_point",
        test=f"{DISK}::test_a_file_that_was_written_survives_every_power_cut",
    ),
    "the receipt is sent before the commit": Mutation(
        file="broker_coordinator/ingest.py",
        old="        work(batch)\n    for token in batch.tokens:\n",
        new="        work(batch)\n        for topic, payload in batch.answers:\n"
        "            outgoing.send(topic, payload)\n        batch.answers.clear()\n"
        "    for token in batch.tokens:\n",
        test=f"{INGEST}::test_acknowledgement_and_receipt_come_after_the_commit",
    ),
    "an update's id is not of the commit that counts it": Mutation(
        file="broker_coordinator/ingest.py",
        old='    with store.transaction("coordinator.ingest"):\n        work(batch)\n',
        new='    work(batch)\n    with store.transaction("coordinator.ingest"):\n        pass\n',
        test=f"{COMMITS}::test_a_batch_is_one_commit",
    ),
    "a base is remembered outside the commit of its update": Mutation(
        file="edge_agent/outbox.py",
        old='            db.execute("INSERT OR REPLACE INTO bases VALUES (?, ?, ?, ?, ?)",'
        " (*self._key(base), sequence))\n",
        new="",
        test=f"{POWER}::test_an_update_its_base_and_its_state_are_there_together_or_not_at_all",
    ),
    "an update leaves the outbox when the broker has it": Mutation(
        file="edge_agent/upload.py",
        old='                crash_point("agent.delivered")\n',
        new='                self._outbox.settle(upload.entry.update_id, "done")\n',
        test="tests/edge_agent/supervisor/test_upload_flow.py::test_a_puback_is_not_a_receipt",
    ),
}


@pytest.fixture(scope="module")
def copy(tmp_path_factory) -> Path:
    """The packages, to be changed at will."""
    folder = tmp_path_factory.mktemp("copy")
    for package in PACKAGES:
        shutil.copytree(ROOT / package, folder / package, ignore=shutil.ignore_patterns("__pycache__"))
    return folder


def run(copy: Path, *tests: str) -> subprocess.CompletedProcess:
    """Run tests on the copy's packages."""
    # -P and PYTHONPATH: the copy's packages, never those beside the tests.
    return subprocess.run(
        [sys.executable, "-P", "-m", "pytest", "-q", "-x", "-p", "no:cacheprovider", *tests],
        cwd=ROOT,
        env={**os.environ, "PYTHONPATH": str(copy), "PYTHONDONTWRITEBYTECODE": "1"},
        capture_output=True,
        text=True,
        timeout=PATIENCE_S,
        check=False,
    )


@pytest.mark.parametrize("name", MUTATIONS)
def test_a_broken_promise_turns_a_test_red(copy, name):
    """By a failed assertion, not by code that no longer runs; without the mutation the test is green."""
    mutation = MUTATIONS[name]
    path = copy / mutation.file
    original = path.read_text()
    assert original.count(mutation.old) == 1, "the code has changed: write the mutation anew"
    path.write_text(original.replace(mutation.old, mutation.new))
    try:
        broken = run(copy, mutation.test)
    finally:
        path.write_text(original)
    assert broken.returncode == FAILED, broken.stdout + broken.stderr
    assert "AssertionError" in broken.stdout or "assert " in broken.stdout, broken.stdout


def test_without_a_mutation_all_of_them_are_green(copy):
    """Or red would say nothing."""
    done = run(copy, *sorted({mutation.test for mutation in MUTATIONS.values()}))
    assert done.returncode == 0, done.stdout + done.stderr
