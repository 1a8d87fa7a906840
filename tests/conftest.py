"""What every test may ask for, and what every test is held to."""

import importlib.util
import os
import re
import shutil
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import hypothesis
import psutil
import pytest

TESTS = Path(__file__).parent
# A busy machine is no failure; what must be fast is measured by benches.
hypothesis.settings.register_profile("lichen", deadline=None)
hypothesis.settings.load_profile("lichen")
GRACE_S = 3.0
MOSQUITTO = shutil.which("mosquitto") or shutil.which("mosquitto", path="/usr/sbin:/usr/local/sbin")
lasting: list = []
"""Processes (with a ``pid``) that belong to a module, not to the test that started them again."""


def _load(name: str) -> None:
    """Make a module of this folder importable by its name: tests are no packages."""
    if name not in sys.modules:
        spec = importlib.util.spec_from_file_location(name, TESTS / f"{name}.py")
        assert spec is not None
        assert spec.loader is not None
        module = sys.modules[name] = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(module)


_load("certificates")
_load("secure_fleet")
_load("simulated_disk")
_load("crash_points")
_load("shown_device")


def pytest_runtest_setup(item: pytest.Item) -> None:
    """Skip what names mosquitto, as a parameter or by its mark, where it is not installed."""
    parameters = item.callspec.params.values() if hasattr(item, "callspec") else ()
    named = any(isinstance(value, str) and value == "mosquitto" for value in parameters)
    if not MOSQUITTO and (named or item.get_closest_marker("mosquitto")):
        pytest.skip("mosquitto is not installed")


@pytest.fixture
def simulated_disk():
    """A disk that forgets what was not synced; import ``SimulatedDisk`` for another seed or a mutation."""
    from simulated_disk import SimulatedDisk

    return SimulatedDisk()


@pytest.fixture(scope="module")
def broker_of(tmp_path_factory):
    """Give the module's real broker of a kind, on loopback: a test that kills it starts it again."""
    from broker_coordinator.embedded_broker import EmbeddedBroker

    brokers: dict[str, EmbeddedBroker] = {}

    def give(kind: str) -> EmbeddedBroker:
        if kind == "mosquitto" and not MOSQUITTO:
            pytest.skip("mosquitto is not installed")
        if kind not in brokers:
            brokers[kind] = EmbeddedBroker(kind, 0, tmp_path_factory.mktemp(kind)).start()
            lasting.append(brokers[kind])
        return brokers[kind]

    yield give
    for broker in brokers.values():
        broker.stop()
        lasting.remove(broker)


@pytest.fixture(scope="module", params=["mosquitto", "amqtt"])
def broker_process(request, broker_of):
    """The module's real broker: a test that asks for it runs once with mosquitto and once with amqtt."""
    return broker_of(request.param)


@pytest.fixture
def broker(broker_process) -> str:
    """The URL of ``broker_process``."""
    return broker_process.url


@pytest.fixture(scope="session")
def outlasting() -> list:
    """For the processes of a module's fixtures, which a test may start again."""
    return lasting


@pytest.fixture(autouse=True)
def nothing_left_behind() -> Iterator[None]:
    """Fail a test that leaves a child process or a non-daemon thread behind."""
    children, threads = _children(), set(threading.enumerate())
    yield
    until = time.monotonic() + GRACE_S
    while _left(children, threads) and time.monotonic() < until:
        time.sleep(0.02)
    left = _left(children, threads)
    for pid in _children() - children:
        psutil.Process(pid).kill()
    if left:
        pytest.fail(f"left behind: {', '.join(left)}")


def _children() -> set[int]:
    """Process ids of our children that still run."""
    try:
        lists = [(task / "children").read_text() for task in Path("/proc/self/task").iterdir()]
        pids = {int(pid) for text in lists for pid in text.split()}
    except OSError:
        pids = {child.pid for child in psutil.Process().children()}
    return {pid for pid in pids if _runs(pid)} - {process.pid for process in lasting}


def _runs(pid: int) -> bool:
    try:
        process = psutil.Process(pid)
        if process.status() == psutil.STATUS_ZOMBIE:
            return False
        return not any("resource_tracker" in word for word in process.cmdline())
    except psutil.NoSuchProcess:
        return False


def _left(children: set[int], threads: set[threading.Thread]) -> list[str]:
    alive = [thread for thread in threading.enumerate() if thread not in threads and not thread.daemon]
    names = [f"thread {thread.name!r}" for thread in alive]
    return names + [f"process {pid}" for pid in sorted(_children() - children)]


class SkipGate:
    """Under CI=true, a skipped test that ``allowed_skips.txt`` does not name fails the run."""

    def __init__(self, allowed: Path) -> None:
        lines = [line.partition("  #")[0].strip() for line in allowed.read_text().splitlines()]
        self.allowed = [line for line in lines if line and not line.startswith("#")]
        self.unexpected: list[str] = []

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        """Note a skip."""
        self._note(report)

    def pytest_collectreport(self, report: pytest.CollectReport) -> None:
        """Note the skip of a whole module."""
        self._note(report)

    def pytest_sessionfinish(self, session: pytest.Session) -> None:
        """Turn a run with unexpected skips red."""
        if self.unexpected and session.exitstatus in (0, pytest.ExitCode.NO_TESTS_COLLECTED):
            session.exitstatus = pytest.ExitCode.TESTS_FAILED

    def pytest_terminal_summary(self, terminalreporter) -> None:
        """Say which."""
        if self.unexpected:
            terminalreporter.section("skipped without leave (tests/allowed_skips.txt)", red=True)
            for line in self.unexpected:
                terminalreporter.write_line(line)

    def _note(self, report: pytest.TestReport | pytest.CollectReport) -> None:
        if not report.skipped or hasattr(report, "wasxfail"):
            return
        reason = report.longrepr[2] if isinstance(report.longrepr, tuple) else str(report.longrepr)
        reason = reason.removeprefix("Skipped: ")
        if not any(report.nodeid.startswith(rule) or re.search(rule, reason) for rule in self.allowed):
            self.unexpected.append(f"{report.nodeid}: {reason}")


def pytest_configure(config: pytest.Config) -> None:
    """Put the gate up where a machine runs the tests."""
    if os.environ.get("CI") == "true":
        config.pluginmanager.register(SkipGate(TESTS / "allowed_skips.txt"), "skip-gate")
