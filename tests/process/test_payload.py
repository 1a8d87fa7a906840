"""A payload is made, installed below a folder, and trains: with the bare Python, and nothing else."""

import importlib.metadata
import json
import os
import platform
import re
import shutil
import subprocess
import sys
import sysconfig
import zipfile
from pathlib import Path

import pytest
from secure_fleet import SecureFleet

from broker_coordinator.fleet.bundle import BundlePlan, make_bundle
from broker_coordinator.keys import open_key
from hil.processes import ManagedProcess

pytestmark = [
    pytest.mark.process,
    pytest.mark.mosquitto,
    pytest.mark.skipif(
        platform.machine() not in ("x86_64", "aarch64"), reason="no payload for this processor"
    ),
]

REQUIRED = ("numpy", "msgpack", "cryptography", "paho-mqtt", "cffi", "pycparser")
PYTHON = f"{sys.version_info[0]}.{sys.version_info[1]}"
BARE = Path(sys.base_prefix) / "bin" / f"python{PYTHON}"
INSTALLER = Path(__file__).parents[2] / "deploy" / "install.sh"


def as_wheel(name: str, folder: Path) -> None:
    """The wheel that an installed distribution came from, as far as its record goes."""
    found = importlib.metadata.distribution(name)
    tags = re.findall(r"^Tag: ([^-]+)-([^-]+)-(.+)$", found.read_text("WHEEL") or "", re.MULTILINE)
    pythons, abis, platforms = ({tag[part]: None for tag in tags} for part in range(3))
    stem = (
        f"{name.replace('-', '_')}-{found.version}-{'.'.join(pythons)}-{'.'.join(abis)}-{'.'.join(platforms)}"
    )
    site = Path(sysconfig.get_path("purelib"))
    with zipfile.ZipFile(folder / f"{stem}.whl", "w") as archive:
        for file in found.files or ():
            path = Path(found.locate_file(file)).resolve()
            if path.is_file() and path.is_relative_to(site.resolve()) and "__pycache__" not in path.parts:
                archive.write(path, path.relative_to(site.resolve()))


@pytest.fixture
def barn(tmp_path):
    """A fleet with certificates, its broker running."""
    fleet = SecureFleet(tmp_path)
    fleet.start_broker()
    yield fleet
    fleet.stop()


def test_a_device_trains_from_its_payload_alone(barn, tmp_path):
    """Bundle, install.sh, check, run, an update that is folded; the worker imports nothing from elsewhere."""
    wheels = tmp_path / "wheels"
    wheels.mkdir()
    for name in REQUIRED:
        as_wheel(name, wheels)
    plan = BundlePlan(arch=platform.machine(), pythons=[PYTHON], runtime="numpy", offline=wheels, preset=0)
    signing = open_key(barn.fleet.configuration.state)
    payload = make_bundle(plan, tmp_path / "payload.tar.xz", signing.sign).path
    config = barn.enroll("dev-0")
    toml = config / "agent.toml"
    state = config / "state"
    toml.write_text(toml.read_text().replace('state = "state"', f"state = {json.dumps(str(state))}"))
    root = tmp_path / "root"
    words = ["--payload", str(payload), "--config", str(config), "--root", str(root)]
    environment = {"PATH": os.environ["PATH"], "LICHEN_PYTHON": str(BARE)}
    done = subprocess.run(
        ["sh", str(INSTALLER), *words],
        capture_output=True,
        text=True,
        env=environment,
        timeout=120,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    shutil.rmtree(wheels)
    barn.coordinate(settings="[buffer]\nsize = 1\n")
    # -I -S: no environment, no site-packages of anybody.
    launcher = [str(BARE), "-I", "-S", str(root / "opt/lichen/current/lichen-agent")]
    installed = ["--config", str(root / "etc/lichen/agent.toml")]
    check = subprocess.run(
        [*launcher, "check", "--json", *installed],
        capture_output=True,
        text=True,
        env={},
        cwd="/",
        timeout=120,
        check=False,
    )
    assert json.loads(check.stdout)["ok"], check.stdout
    agent = ManagedProcess("dev-0", [*launcher, "run", *installed], tmp_path / "dev-0.log", folder=tmp_path)
    agent.start()
    barn.processes["dev-0"] = agent
    barn.until(lambda: barn.agent_status("dev-0").get("updates", {}).get("done", 0) >= 2)
    status = barn.agent_status("dev-0")
    assert status["runtime"] == "numpy"
    assert set(status["limits"]) >= {"memory_bytes", "memory_off", "cpu_weight", "scheduling"}
    maps = Path(f"/proc/{agent.pid}/maps").read_text()
    assert str(sysconfig.get_path("purelib")) not in maps
    assert str(root) in Path(f"/proc/{agent.pid}/cmdline").read_text()
    barn.stop()
    assert barn.books("dev-0").accepted >= 2
