"""The README's own words, run: its files, its commands and its code are taken from the page itself."""

import contextlib
import json
import os
import re
import shlex
import signal
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from edge_agent.job_runner import JobRunner
from edge_agent.jobs import Trained, TrainJob
from edge_agent.sample_count import count_samples
from edge_agent.samples import SampleStore
from fl_io.clock import SystemClock
from fl_protocol.codec import codec_for, codec_seed, decode, encode_model
from fl_protocol.plan import TrainingPlan
from fl_protocol.version import VersionId
from hil.processes import ManagedProcess
from models.build import build_artifact
from models.zoo import digits
from models.zoo.mlp import mlp

DEVICES = ("pi-07", "pi-08", "pi-09", "pi-10")
"""Four: the page's buffer closes a version for every four updates, and a device counts once for a base."""
PATIENCE_S = 60.0


def put(text: str, *replacements: tuple[str, str]) -> str:
    """A text of the page with what is a stand-in there; each pattern must be there, once."""
    for pattern, value in replacements:
        text, count = re.subn(pattern, lambda match, value=value: value, text, flags=re.MULTILINE)
        assert count == 1, f"the page no longer says {pattern}"
    return text


class Desk:
    """A folder in which the page is followed, command by command."""

    def __init__(self, readme, folder: Path) -> None:
        self.readme = readme
        self.folder = folder
        self.processes: list[ManagedProcess] = []
        self.environment = {"PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"}

    def typed(self, holding: str) -> list[list[str]]:
        """The commands of the page's block that holds a text, as words."""
        lines = self.readme.block("", holding).splitlines()
        return [
            shlex.split(part, comments=True) for line in lines for part in line.split(";") if part.strip()
        ]

    def run(self, words: list[str]) -> str:
        """Run a command to its end, which must be a good one; what it printed."""
        done = subprocess.run(
            words,
            cwd=self.folder,
            env=os.environ | self.environment,
            capture_output=True,
            text=True,
            timeout=PATIENCE_S,
            check=False,
        )
        assert done.returncode == 0, f"{words}: {done.stdout}{done.stderr}{self.logs()}"
        return done.stdout

    def start(self, words: list[str], name: str) -> ManagedProcess:
        """Start a command that goes on."""
        process = ManagedProcess(name, words, self.folder / f"{name}.log", folder=self.folder)
        process.start(self.environment)
        self.processes.append(process)
        return process

    def wait_for(self, path: Path, wanted) -> dict:
        """Poll a file that a process writes, until it says what is wanted."""
        ends = time.monotonic() + PATIENCE_S
        while time.monotonic() < ends:
            with contextlib.suppress(OSError, ValueError):
                said = path.read_text()
                body = json.loads(said) if path.suffix == ".json" else said
                if wanted(body):
                    return body
            assert all(process.running for process in self.processes), self.logs()
            time.sleep(0.05)
        raise AssertionError(f"{path} did not come true: {self.logs()}")

    def logs(self) -> str:
        """The end of every process's log."""
        return "".join(f"\n{process.name}: {process.last_words()}" for process in self.processes)


@pytest.fixture
def desk(readme, tmp_path) -> Iterator[Desk]:
    """An empty folder; every process that was started there ends with the test."""
    desk = Desk(readme, tmp_path)
    yield desk
    for process in reversed(desk.processes):
        process.signal(signal.SIGTERM)
    for process in desk.processes:
        process.stop()


@pytest.mark.process
def test_run_it_for_real_does_what_it_says(desk, readme, broker_of):
    """Build, coordinate, train on four devices, look at it, export, audit, back up: as the page has it."""
    url = broker_of("auto").url
    onnx.save(mlp((64, 32, 10)), desk.folder / "net.onnx")
    train, held_out = digits.split()
    np.savez(desk.folder / "held_out.npz", x=held_out.x, y=held_out.y)

    for words in desk.typed("lichen models build"):
        desk.run(words)
    fleet = put(readme.block("toml", "artifact = "), (r'^broker = "mqtt://[^"]+"', f'broker = "{url}"'))
    (desk.folder / "fleet.toml").write_text(fleet)
    coordinate, *look = desk.typed("lichen coordinator run")
    state = desk.folder / "coordinator"
    coordinator = desk.start(coordinate, "coordinator-process")
    key = str(desk.wait_for(state / "coordinator.pub", lambda text: text.endswith("\n"))).strip()

    agents = []
    for number, device in enumerate(DEVICES):
        agents.append(join(desk, device, url, key, train.take(np.arange(100 * number, 100 * number + 100))))
    tell_status = next(words for words in desk.typed("lichen-agent run") if "status" in words)
    newest = desk.wait_for(state / "run" / "status.json", lambda body: body["version"] >= 2)
    told = desk.run(in_folder(tell_status, DEVICES[0]))
    assert f"{DEVICES[0]} of fleet garden" in told

    add_from_an_app(desk, readme, train.x[-1], train.y[-1])
    answers = predict_in_an_app(desk, readme, held_out.x)
    assert (answers.argmax(axis=1) == held_out.y).mean() > 0.3  # chance is a tenth
    with urllib.request.urlopen(f"{newest['http']}/healthz", timeout=10) as answer:
        assert answer.status == 200
    with urllib.request.urlopen(f"{newest['http']}/metrics", timeout=10) as answer:
        assert b"lichen_" in answer.read()

    printed = {words[1]: desk.run(at_version(words, 2)) for words in look}
    assert printed.keys() == {"status", "devices", "versions", "export", "audit", "backup"}
    assert "garden" in printed["status"]
    assert all(device in printed["devices"] for device in DEVICES)
    assert re.search(r"0\.\d{4} on \d+", printed["versions"])
    with np.load(desk.folder / "weights.npz") as weights:
        assert {name: weights[name].shape for name in weights.files} == {
            "layer1.weight": (32, 64),
            "layer1.bias": (32,),
            "layer2.weight": (10, 32),
            "layer2.bias": (10,),
        }
    assert (desk.folder / "backup" / "coordinator.key").exists()

    for process in (*agents, coordinator):
        assert process.stop() == 0, process.last_words()
    told = desk.run(["lichen", "audit", "--agents", "devices", "--json"])
    books = json.loads(told)
    assert (books["balanced"], books["lost"], books["agents"]) == (True, 0, len(DEVICES))


def join(desk: Desk, device: str, url: str, key: str, images: digits.Digits) -> ManagedProcess:
    """Follow the page's third step on one device: its file, its samples, the check, the agent."""
    folder = desk.folder / "devices" / device
    folder.mkdir(parents=True)
    configuration = put(
        desk.readme.block("toml", "trusted_keys = "),
        (r'^device = "[^"]+"', f'device = "{device}"'),
        (r'^broker = "mqtt://[^"]+"', f'broker = "{url}"'),
        (r'^state = "/var/lib/lichen"', 'state = "state"'),
        (r'"ed25519:\.\.\."', f'"{key}"'),
    )
    (folder / "agent.toml").write_text(configuration)
    np.savez(folder / "january.npz", x=images.x, y=images.y)
    agent = None
    for words in desk.typed("lichen-agent run"):
        here = in_folder(words, device)
        if "run" in words:
            agent = desk.start(here, device)
        elif "samples" in words or ("check" in words and device == DEVICES[0]):
            desk.run(here)
    assert agent is not None
    return agent


def in_folder(words: list[str], device: str) -> list[str]:
    """A command of the page as if typed in a device's own folder."""
    return ["env", "-C", f"devices/{device}", *words]


def at_version(words: list[str], number: int) -> list[str]:
    """A command of the page with another version than the page's: that many take their time."""
    return [
        str(number) if before == "--version" else word
        for before, word in zip(["", *words], words, strict=False)
    ]


def add_from_an_app(desk: Desk, readme, x: np.ndarray, y: np.ndarray) -> None:
    """The page's program adds a sample while the agent of that device runs."""
    samples = desk.folder / "devices" / DEVICES[0] / "state" / "samples.db"
    before = sum(count_samples(samples))
    code = put(readme.block("python", "SampleStore("), (r'"/var/lib/lichen/samples\.db"', repr(str(samples))))
    exec(code, {"x": x, "y": y})
    assert sum(count_samples(samples)) == before + 1 == 101


def predict_in_an_app(desk: Desk, readme, batch: np.ndarray) -> np.ndarray:
    """The page's other program, beside the agent of that device."""
    state = desk.folder / "devices" / DEVICES[0] / "state"
    names = {"batch": batch, "print": lambda number: None}
    exec(put(readme.block("python", "Predictor("), (r'"/var/lib/lichen"', repr(str(state)))), names)
    return np.asarray(names["answers"])


def linear_model() -> onnx.ModelProto:
    """``x @ w``, float32[3, 1]: what the page's trainer trains."""
    graph = helper.make_graph(
        [helper.make_node("MatMul", ["x", "w"], ["y"])],
        "linear",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["batch", 3])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, ["batch", 2])],
        [numpy_helper.from_array(np.zeros((3, 2), np.float32), "w")],
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=9)


def test_the_trainer_of_the_page_trains(readme, tmp_path, monkeypatch):
    """As an agent's worker would run it: named in a job, with samples from a store, on weights ``w``."""
    (tmp_path / "my_app.py").write_text(readme.block("python", "class LinearTrainer"))
    name = re.search(r'`trainer = "([\w:]+)"`', readme.prose)[1]
    monkeypatch.setattr(sys, "path", [*sys.path])
    artifact = build_artifact(linear_model(), loss="softmax_cross_entropy", out=tmp_path / "artifact")
    weights = tmp_path / "weights"
    weights.write_bytes(encode_model(artifact.initial_weights(), artifact.layout))
    wanted = np.array([[3, -1], [2, 0], [1, 5]], np.float32)
    x = np.random.default_rng(0).normal(size=(100, 3)).astype(np.float32)
    with SampleStore(tmp_path / "samples.db") as samples:
        samples.extend(x, x @ wanted)
    job = TrainJob(
        update_id=bytes(16),
        device_seed=bytes(32),
        artifact_dir=str(artifact.path),
        weights_path=str(weights),
        samples_path=str(tmp_path / "samples.db"),
        plan=TrainingPlan(epochs=60, batch_size=10, lr=0.1),
        base=VersionId(epoch=1, number=1, digest=bytes(16)),
        codec="float32",
        fingerprint=artifact.layout.fingerprint,
        max_examples=1000,
        runtimes=(),
        trainer=name,
        trainer_path=str(tmp_path),
    )
    trained = JobRunner(clock=SystemClock()).run(job, lambda progress: None, lambda: False)
    monkeypatch.delitem(sys.modules, "my_app", raising=False)
    assert isinstance(trained, Trained), trained
    delta = decode(codec_for("float32"), trained.payload, artifact.layout, codec_seed(job.update_id))
    assert np.allclose(delta.reshape(3, 2), wanted, atol=1e-3)
    assert trained.steps_done == trained.steps_planned > 0
    assert trained.metrics["after.squared_error"] < 1e-3 < trained.metrics["before.squared_error"]
    assert trained.metrics["before.count"] == trained.metrics["after.count"] > 0
