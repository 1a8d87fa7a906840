"""The guide's own words, run: its code and its files are taken from the page itself."""

import contextlib
import json
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from broker_coordinator.books.audit import AuditReport, audit
from edge_agent.job_runner import JobRunner
from edge_agent.jobs import JobFailed, Trained, TrainJob
from edge_agent.samples import SampleStore
from fl_io.clock import SystemClock
from fl_protocol.codec import encode_model
from fl_protocol.plan import TrainingPlan
from fl_protocol.version import VersionId
from hil.processes import ManagedProcess
from models.runtime import TrainingArtifact

ROOT = Path(__file__).parents[3]
PATIENCE_S = 100.0
_FENCE = re.compile(r"^```(\w*)\n(.*?)^```$", re.DOTALL | re.MULTILINE)


class Page:
    """The guide's blocks, section by section."""

    def __init__(self, text: str) -> None:
        parts = re.split(r"^## (.+)$", text, flags=re.MULTILINE)
        self._sections = dict(zip(parts[1::2], parts[2::2], strict=True))

    def block(self, section: str, language: str, holding: str) -> str:
        """The one block of a section and language that holds a text."""
        found = [code for name, code in _FENCE.findall(self._sections[section]) if name == language]
        found = [code for code in found if holding in code]
        assert len(found) == 1, f"{section} has {len(found)} {language} blocks with {holding!r}"
        return found[0]


@pytest.fixture(scope="session")
def page() -> Page:
    """docs/guide-trainers.md."""
    return Page((ROOT / "docs" / "guide-trainers.md").read_text(encoding="utf-8"))


class Bench:
    """A folder ``app`` with a user's code, the artifact that it wraps, and devices that train with it."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.app = folder / "app"
        self.app.mkdir()
        self.processes: list[ManagedProcess] = []
        self.states: list[Path] = []

    def wrap(self, code: str) -> TrainingArtifact:
        """Run the page's code that wraps, in the app's folder."""
        done = subprocess.run(
            [sys.executable, "-c", code],
            cwd=self.app,
            capture_output=True,
            text=True,
            timeout=90,
            check=False,
        )
        assert done.returncode == 0, done.stderr
        return TrainingArtifact.open(self.app / "artifact")

    def train(
        self,
        trainer: str,
        artifact: TrainingArtifact,
        *,
        samples: tuple[np.ndarray, np.ndarray] | None = None,
        plan: TrainingPlan | None = None,
    ) -> Trained | JobFailed:
        """One job, as a device's worker does it."""
        weights = self.folder / "weights"
        weights.write_bytes(encode_model(artifact.initial_weights(), artifact.layout))
        store = self.folder / "samples.db"
        if samples is not None and not store.exists():
            with SampleStore(store) as opened:
                opened.extend(*samples)
        job = TrainJob(
            update_id=bytes(16),
            device_seed=bytes(32),
            artifact_dir=str(artifact.path),
            weights_path=str(weights),
            samples_path=str(store),
            plan=plan or TrainingPlan(epochs=3, batch_size=16, lr=0.1),
            base=VersionId(epoch=1, number=1, digest=bytes(16)),
            codec="float32",
            fingerprint=artifact.layout.fingerprint,
            max_examples=1000,
            runtimes=(),
            trainer=trainer,
            trainer_path=str(self.app),
        )
        return JobRunner(clock=SystemClock()).run(job, lambda progress: None, lambda: False)

    def coordinate(self, fleet: str, broker: str, versions: int) -> ManagedProcess:
        """Start the coordinator with the page's fleet.toml."""
        text, count = re.subn(r'^broker = "[^"]*"', f'broker = "{broker}"', fleet, flags=re.MULTILINE)
        assert count == 1
        text = text.replace('artifact = "artifact"', 'artifact = "app/artifact"')
        (self.folder / "fleet.toml").write_text(f"stop_after_versions = {versions}\n{text}")
        words = ["lichen", "coordinator", "run", "fleet.toml", "--insecure"]
        return self._start("coordinator-process", words)

    def join(
        self,
        device: str,
        broker: str,
        settings: str,
        *,
        samples: tuple[np.ndarray, np.ndarray] | None = None,
        files: Mapping[str, Any] | None = None,
    ) -> ManagedProcess:
        """Start an agent with the page's part of agent.toml, its code beside that file."""
        key = self.await_text(self.folder / "coordinator" / "coordinator.pub").strip()
        place = self.folder / "devices" / device
        state = place / "state"
        state.mkdir(parents=True)
        for path in self.app.glob("*"):
            if path.suffix == ".py" or path.name == "checkpoint":
                (place / path.name).symlink_to(path)
        for name, arrays in (files or {}).items():
            np.savez(place / name, **arrays)
        if samples is not None:
            with SampleStore(state / "samples.db") as store:
                store.extend(*samples)
        own = f'device = "{device}"\nfleet = "garden"\nbroker = "{broker}"\nstate = "state"\n'
        (place / "agent.toml").write_text(f'{own}trusted_keys = ["{key}"]\n{settings}')
        self.states.append(state)
        words = ["edge_agent", "run", "--config", str(place / "agent.toml")]
        return self._start(device, words, OMP_NUM_THREADS="1")

    def finish(self, coordinator: ManagedProcess) -> tuple[AuditReport, list[dict[str, Any]], dict[str, Any]]:
        """Wait for the last version and end the agents: the books, the versions, the coordinator's status."""
        try:
            code = coordinator.wait(PATIENCE_S)
        finally:
            logs = self.logs()
        assert code == 0, logs
        for process in self.processes:
            process.signal(signal.SIGTERM)
        for process in self.processes:
            process.stop()
        told = subprocess.run(
            [sys.executable, "-m", "lichen", "versions", "--json"],
            cwd=self.folder,
            capture_output=True,
            text=True,
            timeout=60,
            check=True,
        )
        state = self.folder / "coordinator"
        status = json.loads((state / "run" / "status.json").read_text())
        return audit(state, self.states), json.loads(told.stdout), status

    def await_text(self, path: Path) -> str:
        """The content of a file that a process is about to write."""
        ends = time.monotonic() + PATIENCE_S
        while time.monotonic() < ends:
            with contextlib.suppress(OSError):
                if (text := path.read_text()).endswith("\n"):
                    return text
            assert all(process.running for process in self.processes), self.logs()
            time.sleep(0.05)
        raise AssertionError(f"{path} was not written: {self.logs()}")

    def logs(self) -> str:
        """The end of every process's log, and why agents wait."""
        reasons = []
        for state in self.states:
            with contextlib.suppress(OSError, ValueError):
                status = json.loads((state / "run" / "status.json").read_text())
                reasons.append(f"\n{status}")
        return "".join(f"\n{process.name}: {process.last_words()}" for process in self.processes) + "".join(
            reasons
        )

    def _start(self, name: str, words: list[str], **environment: str) -> ManagedProcess:
        process = ManagedProcess(
            name, [sys.executable, "-m", *words], self.folder / f"{name}.log", folder=self.folder
        )
        process.start({**environment, "PATH": os.environ["PATH"]})
        self.processes.append(process)
        return process


@pytest.fixture
def bench(tmp_path, monkeypatch) -> Iterator[Bench]:
    """An empty one; processes that were started there, and modules imported from there, end with the test."""
    monkeypatch.setattr(sys, "path", [*sys.path])
    known = set(sys.modules)
    bench = Bench(tmp_path)
    yield bench
    for process in bench.processes:
        process.signal(signal.SIGTERM)
    for process in bench.processes:
        process.stop()
    for name in set(sys.modules) - known:
        if str(getattr(sys.modules[name], "__file__", "") or "").startswith(str(tmp_path)):
            del sys.modules[name]
