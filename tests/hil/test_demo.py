"""``lichen demo`` as a newcomer runs it: real processes, a real broker, real digits."""

import json
import os
import shutil
import signal
import socket
import sqlite3
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil
import pytest

from broker_coordinator.books.audit import audit
from hil.demo.figures import collect
from hil.gate import faults
from hil.local_fleet import FleetOptions, LocalFleet

pytestmark = pytest.mark.process

BROKERS = ["mosquitto", "amqtt"]
DEVICES, VERSIONS = 4, 3
SMALL = ("--devices", str(DEVICES), "--versions", str(VERSIONS), "--runtime", "numpy", "--json")
TIMEOUT_S = 60.0
PROMISED = {
    "devices",
    "versions",
    "accuracy",
    "updates_accepted",
    "updates_refused",
    "bytes_up_total",
    "bytes_up_per_update",
    "float32_bytes_per_update",
    "ratio_payload",
    "ratio_all",
    "seconds",
    "broker",
    "lost",
    "duplicated",
}


def command(*words: object) -> list[str]:
    return [sys.executable, "-m", "lichen", *map(str, words)]


def run(*words: object) -> subprocess.CompletedProcess[str]:
    """Run one command to its end."""
    return subprocess.run(command(*words), capture_output=True, text=True, timeout=TIMEOUT_S, check=False)


@dataclass(frozen=True, slots=True, kw_only=True)
class Finished:
    """What a demo printed and left, before the next one took its folder."""

    code: int
    printed: str
    complained: str
    report: dict[str, Any]
    page: str
    bytes_sent: int


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    """The folder of all demos that are run to their end here: each takes over what the last one left."""
    return tmp_path_factory.mktemp("demos") / "out"


@pytest.fixture(scope="module")
def finished(folder) -> Callable[[str], Finished]:
    """Give the finished demo of a kind of broker; each is run once, all in one folder."""
    kept: dict[str, Finished] = {}

    def of(broker: str) -> Finished:
        if broker not in kept:
            done = run("demo", *SMALL, "--broker", broker, "--out", folder)
            assert done.returncode == 0, done.stderr
            statuses = [
                json.loads(path.read_text()) for path in folder.glob("devices/*/state/run/status.json")
            ]
            kept[broker] = Finished(
                code=done.returncode,
                printed=done.stdout,
                complained=done.stderr,
                report=json.loads((folder / "report.json").read_text()),
                page=(folder / "report.html").read_text(encoding="utf-8"),
                bytes_sent=sum(status["bytes_sent"] for status in statuses),
            )
        return kept[broker]

    return of


@pytest.mark.parametrize("broker", BROKERS)
def test_json_is_exactly_one_object_with_all_that_was_promised(finished, broker):
    """Nothing else on standard output, nothing at all on standard error."""
    demo = finished(broker)
    figures = json.loads(demo.printed)
    assert demo.printed.count("\n") == 1
    assert demo.complained == ""
    assert figures.keys() >= PROMISED
    assert figures["broker"].startswith(broker)
    assert (figures["devices"], figures["versions"]) == (DEVICES, VERSIONS)


@pytest.mark.parametrize("broker", BROKERS)
def test_the_books_of_a_demo_balance_and_its_figures_agree_with_each_other(finished, broker):
    """Nothing lost, nothing twice; bytes are those of the sockets; ratios are ratios of what stands there."""
    demo = finished(broker)
    figures = json.loads(demo.printed)
    assert (figures["lost"], figures["duplicated"], figures["balanced"]) == (0, 0, True)
    assert figures["versions_replayed"] == VERSIONS
    assert figures["replay_ok"] is True
    assert figures["accuracy"] > 0.3
    assert figures["updates_refused"] == 0
    folded = sum(point["updates"] for point in demo.report["by_version"])
    assert VERSIONS * (DEVICES // 2) <= folded <= figures["updates_accepted"]
    assert sum(share["updates"] for share in demo.report["by_device"]) == folded
    assert sum(demo.report["by_staleness"].values()) == folded
    assert figures["bytes_up_total"] == demo.bytes_sent
    per_update = figures["bytes_up_total"] / figures["updates_accepted"]
    assert figures["bytes_up_per_update"] == pytest.approx(per_update, abs=0.1)
    assert figures["float32_bytes_per_update"] == 4 * figures["parameters"] == 9640
    assert figures["ratio_all"] == pytest.approx(9640 / per_update, abs=0.01)
    assert figures["ratio_payload"] > 25


@pytest.mark.parametrize("broker", BROKERS)
def test_the_report_lies_in_the_folder_and_needs_nothing_else(finished, references, broker):
    """report.json holds what was printed; report.html loads nothing; the earlier demo's is gone."""
    demo = finished(broker)
    figures = json.loads(demo.printed)
    assert {name: demo.report[name] for name in figures} == figures
    assert [point["version"] for point in demo.report["by_version"]] == list(range(VERSIONS + 1))
    assert references(demo.page) == []
    assert demo.page.count("<svg") == 4
    assert broker in demo.page


@pytest.mark.mosquitto
def test_an_update_that_the_coordinator_forgot_is_found_lost(finished, folder, tmp_path):
    """The device was told `done`, and the row is gone: one lost, in the audit and in the demo's figures."""
    finished("amqtt")
    copy = tmp_path / "out"
    shutil.copytree(folder, copy)
    with sqlite3.connect(copy / "coordinator" / "coordinator.db") as db:
        deleted = db.execute("DELETE FROM updates WHERE accept_seq = 1 AND state = 'folded'").rowcount
    db.close()
    assert deleted == 1
    agents = sorted((copy / "devices").glob("*/state"))
    books = audit(copy / "coordinator", agents)
    assert (books.lost, books.duplicated, books.balanced) == (1, 0, False)
    told = run("audit", copy / "coordinator", "--agents", copy / "devices", "--json")
    assert told.returncode == 1
    assert json.loads(told.stdout)["lost"] == 1
    figures = collect(LocalFleet(copy, FleetOptions(devices=DEVICES, versions=VERSIONS)), (), 1.0)
    assert figures.summary["lost"] == 1
    assert "1 updates lost, 0 duplicated" in faults(figures.summary)


class RunningDemo:
    """A demo that would go on for long, in a session of its own as in a terminal."""

    def __init__(self, folder: Path, broker: str) -> None:
        self.folder = folder
        words = ("--devices", 3, "--versions", 10_000, "--runtime", "numpy", "--json", "--broker", broker)
        self.process = subprocess.Popen(
            command("demo", *words, "--out", folder),
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            start_new_session=True,
        )

    def await_version(self, number: int) -> None:
        """Poll until a version is out: the status is a file, there is nothing to wait on."""
        ends = time.monotonic() + TIMEOUT_S
        while self.version() < number:
            assert self.process.poll() is None, self.process.communicate()
            assert time.monotonic() < ends, "no version was made"
            time.sleep(0.05)

    def offspring(self) -> list[psutil.Process]:
        """Every process under it: broker, coordinator, agents, their workers."""
        return psutil.Process(self.process.pid).children(recursive=True)

    def version(self) -> int:
        try:
            return int(json.loads((self.folder / "coordinator/run/status.json").read_text())["version"])
        except (OSError, ValueError):
            return 0


@pytest.fixture
def start(tmp_path) -> Iterator[Callable[[str], RunningDemo]]:
    """Starts demos; whatever a test forgot is killed."""
    started: list[RunningDemo] = []

    def demo(broker: str) -> RunningDemo:
        started.append(RunningDemo(tmp_path / "out", broker))
        return started[-1]

    yield demo
    for running in started:
        running.process.kill()
        running.process.communicate()


def ctrl_c(process: subprocess.Popen[str]) -> None:
    """A terminal's: every process of the foreground group gets it, the broker too."""
    os.killpg(process.pid, signal.SIGINT)


def sigterm(process: subprocess.Popen[str]) -> None:
    process.send_signal(signal.SIGTERM)


@pytest.mark.parametrize(("interrupt", "broker"), [(ctrl_c, "mosquitto"), (sigterm, "amqtt")])
def test_an_interrupted_demo_ends_everything(start, interrupt, broker):
    """In mid-run: exit code 130, no object is printed, no process is left, not even a worker."""
    demo = start(broker)
    demo.await_version(2)
    offspring = demo.offspring()
    assert len(offspring) >= 5  # broker, coordinator, three agents
    interrupt(demo.process)
    printed, complained = demo.process.communicate(timeout=TIMEOUT_S)
    assert demo.process.returncode == 130, complained
    assert printed == ""
    assert "Traceback" not in complained
    _, alive = psutil.wait_procs(offspring, timeout=5)
    assert [process for process in alive if process.status() != psutil.STATUS_ZOMBIE] == []
    assert not (demo.folder / "report.json").exists()


@pytest.mark.mosquitto
def test_two_demos_do_not_run_in_one_folder(start):
    """The second is refused at once and takes nothing away from the first."""
    demo = start("auto")
    demo.await_version(1)
    second = run("demo", *SMALL, "--out", demo.folder)
    assert second.returncode == 1
    assert second.stdout == ""
    assert second.stderr.startswith(f"error: another demo runs in {demo.folder}\n  hint: ")
    demo.await_version(demo.version() + 1)
    sigterm(demo.process)
    demo.process.communicate(timeout=TIMEOUT_S)
    assert demo.process.returncode == 130


def test_a_broker_that_is_not_there_is_the_reason_given(tmp_path):
    """Nobody listens: exit code 1, the address and the reason on standard error, nothing printed."""
    with socket.create_server(("127.0.0.1", 0)) as probe:
        port = probe.getsockname()[1]
    done = run("demo", *SMALL, "--broker", f"mqtt://127.0.0.1:{port}", "--out", tmp_path / "out")
    assert done.returncode == 1
    assert done.stdout == ""
    assert done.stderr.startswith(f"error: no broker answers at mqtt://127.0.0.1:{port}: Connection refused")
    assert "hint: " in done.stderr


@pytest.mark.parametrize(
    "names",
    [
        ["thesis.txt"],
        # what an operator's own folder holds, by the README
        ["artifact", "coordinator", "fleet.toml", "held_out.npz"],
        ["demo.lock", "report.json", "thesis.txt"],
    ],
)
def test_a_folder_that_holds_anything_else_is_refused_and_left_as_it_was(tmp_path, names):
    """A demo empties its folder before it starts: it must be sure that the folder is its own."""
    for name in names:
        (tmp_path / name).write_text(name)
    done = run("demo", *SMALL, "--out", tmp_path)
    assert done.returncode == 1
    assert done.stderr.startswith(f"error: {tmp_path} holds files that no demo wrote: ")
    assert sorted(path.name for path in tmp_path.iterdir()) == sorted(names)
