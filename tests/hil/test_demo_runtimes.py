"""The demo on other runtimes than the default one, on all at once, and on one that is not there."""

import json
import subprocess
import sys

import numpy as np
import pytest

from fl_protocol.errors import ConfigError, RuntimeUnavailable
from hil import lineup
from hil.gate import faults
from hil.local_fleet import FleetOptions, LocalFleet
from models.build import build_artifact
from models.zoo.mlp import mlp

TIMEOUT_S = 90.0


def demo(folder, *words):
    """Run ``lichen demo --json`` into a folder."""
    return subprocess.run(
        [sys.executable, "-m", "lichen", "demo", *map(str, words), "--out", str(folder), "--json"],
        capture_output=True,
        text=True,
        timeout=TIMEOUT_S,
        check=False,
    )


def told(word, folder, *options):
    """What an operator reads of a demo's coordinator."""
    words = [sys.executable, "-m", "lichen", word, str(folder / "out" / "coordinator"), *options]
    return subprocess.run(words, capture_output=True, text=True, timeout=TIMEOUT_S, check=True).stdout


@pytest.mark.process
def test_a_fleet_trains_on_litert_and_fetches_no_other_graphs(tmp_path):
    """Real agents, fixed batches of 32 under a plan of 16: nothing lost, nothing counted twice."""
    pytest.importorskip("ai_edge_litert")
    folder = tmp_path / "out"
    done = demo(folder, "--devices", 2, "--versions", 2, "--runtime", "litert")
    assert done.returncode == 0, done.stderr
    figures = json.loads(done.stdout)
    assert (figures["runtime"], figures["versions"], figures["lost"]) == ("litert", 2, 0)
    assert figures["balanced"]
    assert figures["runtimes"].keys() == {"litert"}
    fetched = {path.name for path in folder.glob("devices/*/state/artifacts/*/*")}
    assert fetched == {"manifest.json", "golden.npz", "step.tflite", "eval.tflite", "infer.tflite"}


@pytest.mark.process
def test_all_runtimes_train_in_one_federation(tmp_path):
    """Each update names what trained it, and updates of each were folded into the same versions."""
    pytest.importorskip("onnxruntime")
    pytest.importorskip("ai_edge_litert")
    present = ["onnx", "litert", "numpy"] + ["tflite"] * lineup._USUAL_PYTHON.exists()
    done = demo(tmp_path / "out", "--devices", len(present), "--versions", 8, "--runtime", "mixed")
    assert done.returncode == 0, done.stderr
    figures = json.loads(done.stdout)
    by_runtime = figures["runtimes"]
    assert by_runtime.keys() == set(present)
    assert all(counts["devices"] == 1 for counts in by_runtime.values())
    assert sum(counts["accepted"] for counts in by_runtime.values()) == figures["updates_accepted"]
    report = json.loads((tmp_path / "out" / "report.json").read_text())
    assert sum(counts["folded"] for counts in by_runtime.values()) == sum(
        point["updates"] for point in report["by_version"]
    )
    assert {share["runtime"] for share in report["by_device"]} == set(present)
    said = faults(figures, present)
    assert [line for line in said if "folded" in line or "lost" in line or "bit" in line] == []
    assert {device["runtime"] for device in json.loads(told("devices", tmp_path, "--json"))} == set(present)
    status = told("status", tmp_path)
    assert all(f"trained by {name}" in status for name in present)


@pytest.mark.process
def test_a_model_and_samples_of_ones_own_train_on_the_demos_fleet(tmp_path):
    """A regression: its own metric is the headline, its plan is the one asked for, and its error falls."""
    draw = np.random.default_rng(2)
    x = draw.standard_normal((300, 6)).astype(np.float32)
    np.savez(tmp_path / "pump.npz", x=x, y=x[:, 0] + 0.5 * x[:, 1])
    build_artifact(mlp((6, 8, 1), name="pump"), loss="mse", metrics=["mae"], out=tmp_path / "pump")
    own = ("--artifact", tmp_path / "pump", "--samples", tmp_path / "pump.npz")
    plan = ("--lr", 0.05, "--epochs", 4, "--batch-size", 8)
    fleet = ("--devices", 3, "--versions", 8, "--runtime", "numpy", "--codec", "float32")
    done = demo(tmp_path / "out", *fleet, *own, *plan)
    assert done.returncode == 0, done.stderr
    figures = json.loads(done.stdout)
    assert (figures["model"], figures["metric"], figures["partition"]) == ("pump", "mae", "iid")
    assert figures["held_out_examples"] == 60
    assert figures["accuracy"] is None
    by_version = json.loads((tmp_path / "out" / "report.json").read_text())["by_version"]
    assert figures["metrics"]["mae"] < 0.7 * by_version[0]["metrics"]["mae"]
    fleet_file = (tmp_path / "out" / "fleet.toml").read_text()
    assert all(line in fleet_file for line in ("lr = 0.05", "epochs = 4", "batch_size = 8"))


def test_samples_that_do_not_fit_end_the_demo_before_it_begins(tmp_path):
    """Exit code 78 and the reason; no broker was started, no agent was."""
    build_artifact(mlp((6, 8, 3), name="m"), loss="softmax_cross_entropy", out=tmp_path / "m")
    np.savez(tmp_path / "m.npz", x=np.zeros((300, 5), np.float32), y=np.zeros(300, np.int32))
    done = demo(tmp_path / "out", "--artifact", tmp_path / "m", "--samples", tmp_path / "m.npz")
    assert done.returncode == 78
    assert "rows of x have the shape [5], the model takes [6]" in done.stderr
    assert not (tmp_path / "out" / "broker").exists()
    alone = demo(tmp_path / "out", "--artifact", tmp_path / "m")
    assert alone.returncode == 78
    assert "give both --artifact DIR and --samples FILE.npz" in alone.stderr


def test_a_runtime_that_is_not_here_ends_the_demo_before_it_begins(tmp_path, monkeypatch):
    """A fleet of agents that cannot train would be waited for, for ever."""
    monkeypatch.setattr(lineup, "_USUAL_PYTHON", tmp_path / "nowhere")
    fleet = LocalFleet(tmp_path / "fleet", FleetOptions(devices=1, versions=1, runtime="tflite"))
    with pytest.raises(RuntimeUnavailable, match="no tflite fleet"):
        fleet.prepare()
    assert fleet.embedded is None


def test_a_batch_that_tflite_graphs_cannot_take_is_refused(tmp_path):
    """Their rows are fixed at the build; a step cannot be cut in two."""
    pytest.importorskip("ai_edge_litert")
    options = FleetOptions(devices=1, versions=1, runtime="litert", batch_size=64)
    with pytest.raises(ConfigError, match=r"a batch of 64 rows, the \.tflite graphs take 32"):
        LocalFleet(tmp_path / "fleet", options).prepare()
