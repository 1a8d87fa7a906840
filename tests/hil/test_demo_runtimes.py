"""The demo on another runtime than the default one, and on one that is not there."""

import json
import subprocess
import sys

import pytest

from fl_protocol.errors import RuntimeUnavailable
from hil.local_fleet import FleetOptions, LocalFleet

TIMEOUT_S = 60.0


@pytest.mark.process
def test_a_fleet_trains_on_litert_and_fetches_no_other_graphs(tmp_path):
    """Real agents, fixed batches of 32 under a plan of 16: nothing lost, nothing counted twice."""
    pytest.importorskip("ai_edge_litert")
    folder = tmp_path / "out"
    words = ["--devices", "2", "--versions", "2", "--runtime", "litert", "--out", str(folder), "--json"]
    done = subprocess.run(
        [sys.executable, "-m", "lichen", "demo", *words],
        capture_output=True,
        text=True,
        timeout=TIMEOUT_S,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    figures = json.loads(done.stdout)
    assert (figures["runtime"], figures["versions"], figures["lost"]) == ("litert", 2, 0)
    assert figures["balanced"]
    fetched = {path.name for path in folder.glob("devices/*/state/artifacts/*/*")}
    assert fetched == {"manifest.json", "golden.npz", "step.tflite", "eval.tflite", "infer.tflite"}


def test_a_runtime_that_is_not_here_ends_the_demo_before_it_begins(tmp_path, monkeypatch):
    """A fleet of agents that cannot train would be waited for, for ever."""
    for package in ("ai_edge_litert", "tflite_runtime"):
        monkeypatch.setitem(sys.modules, f"{package}.interpreter", None)
    fleet = LocalFleet(tmp_path / "fleet", FleetOptions(devices=1, versions=1, runtime="litert"))
    with pytest.raises(RuntimeUnavailable, match="litert"):
        fleet.prepare()
    assert fleet.embedded is None
