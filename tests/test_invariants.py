"""What every part must keep to, whatever else changes."""

import json
import subprocess
import sys
import time
from pathlib import Path

import pytest

from hil.local_fleet import FleetOptions, LocalFleet
from hil.processes import ManagedProcess

ROOT = Path(__file__).parents[1]
PACKAGES = ("broker_coordinator", "edge_agent", "fl_io", "fl_protocol", "hil", "lichen", "models")
NOT_IN_THE_SUPERVISOR = {
    "asyncio",
    "broker_coordinator",
    "click",
    "cryptography",
    "google",
    "models",
    "numpy",
    "onnx",
    "onnxruntime",
    "paho",
    "rich",
}
PATIENCE_S = 60.0
SUPERVISOR = """
import json, sys
from pathlib import Path
from edge_agent.command import main
code = main(sys.argv[2:])
Path(sys.argv[1]).write_text(json.dumps(sorted(sys.modules)))
sys.exit(code)
"""


@pytest.mark.process
def test_the_supervisor_of_an_agent_loads_nothing_heavy(tmp_path):
    """Verified, downloaded, trained, sent, counted, twice: by then it has imported all that it ever does."""
    fleet = LocalFleet(tmp_path / "fleet", FleetOptions(devices=1, versions=2, runtime="numpy"))
    fleet.prepare()
    configuration = fleet.folder / "devices" / "dev-00" / "agent.toml"
    words = [sys.executable, "-c", SUPERVISOR, tmp_path / "modules.json", "run", "--config", configuration]
    agent = ManagedProcess("agent", list(map(str, words)), tmp_path / "agent.log", folder=tmp_path)
    try:
        fleet.coordinator.start()
        agent.start()
        ends = time.monotonic() + PATIENCE_S
        while fleet.coordinator.running:
            assert agent.running, agent.last_words()
            assert time.monotonic() < ends, agent.last_words()
            time.sleep(0.05)
        assert fleet.coordinator.exit_code == 0, fleet.coordinator.last_words()
        assert agent.stop() == 0, agent.last_words()
    finally:
        agent.stop()
        fleet.stop()
    assert fleet.agent_status("dev-00")["updates"]["done"] >= 2
    loaded = {name.partition(".")[0] for name in json.loads((tmp_path / "modules.json").read_text())}
    assert {"edge_agent", "fl_protocol", "sqlite3"} <= loaded
    assert loaded & NOT_IN_THE_SUPERVISOR == set()


def test_the_protocol_without_its_codecs_needs_no_array_library():
    """Both sides read messages in processes that hold no array."""
    modules = [f"fl_protocol.{path.stem}" for path in sorted((ROOT / "fl_protocol").glob("[!_]*.py"))]
    assert len(modules) > 10
    code = f"""
import importlib, sys
for name in {modules}:
    importlib.import_module(name)
    assert "numpy" not in sys.modules, name
"""
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=False, timeout=60
    )
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize("package", PACKAGES)
def test_every_package_tells_type_checkers_that_it_is_typed(package):
    """PEP 561."""
    assert (ROOT / package / "py.typed").exists()
