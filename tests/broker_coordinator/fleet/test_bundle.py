"""What `lichen fleet bundle` puts into a payload; pip's part is real, the wheels are tiny."""

import json
import tarfile
import zipfile

import pytest
from click.testing import CliRunner

from broker_coordinator.fleet.bundle import BundlePlan, make_bundle
from broker_coordinator.fleet.command import fleet
from broker_coordinator.fleet.folder import FleetFolder, FleetPlan
from fl_io.ed25519 import new_private_key, signer
from fl_protocol.errors import ConfigError, LichenError

SIGN = signer(new_private_key())


def wheel(folder, name, version, tags, files=()):
    """A wheel that holds a module of its own name, and these files."""
    info = f"{name}-{version}.dist-info"
    with zipfile.ZipFile(folder / f"{name}-{version}-{tags}.whl", "w") as archive:
        archive.writestr(f"{name}/__init__.py", f"tags = {tags!r}\n")
        archive.writestr(
            f"{info}/METADATA", f"Metadata-Version: 2.1\nName: {name.replace('_', '-')}\nVersion: {version}\n"
        )
        archive.writestr(f"{info}/WHEEL", f"Wheel-Version: 1.0\nTag: {tags}\n")
        archive.writestr(f"{info}/RECORD", "")
        for path in files:
            archive.writestr(path, "x")


@pytest.fixture
def wheels(tmp_path):
    """All that an agent asks for, for 64-bit ARM and two Pythons."""
    folder = tmp_path / "wheels"
    folder.mkdir()
    wheel(
        folder,
        "paho_mqtt",
        "2.1.0",
        "py3-none-any",
        ["paho_mqtt/tests/big.bin", "paho_mqtt-2.1.0.data/scripts/s"],
    )
    wheel(folder, "cryptography", "45.0", "cp311-abi3-manylinux_2_28_aarch64")
    for python in ("311", "313"):
        for name in ("numpy", "onnxruntime", "msgpack"):
            wheel(folder, name, "2.0", f"cp{python}-cp{python}-manylinux_2_17_aarch64")
    wheel(folder, "numpy", "2.1", "cp311-cp311-manylinux_2_99_aarch64")  # newer, and no device's
    return folder


def names(path):
    """The files of a payload."""
    with tarfile.open(path) as archive:
        return {entry.name for entry in archive if entry.isreg()}


def test_each_python_finds_its_own_wheels_and_shares_the_rest(tmp_path, wheels):
    """One copy of what serves both; what a wheel brings for its tests or as a program stays behind."""
    plan = BundlePlan(arch="aarch64", pythons=["3.13", "3.11"], offline=wheels, preset=0)
    made = make_bundle(plan, tmp_path / "p.tar.xz", SIGN)
    found = names(made.path)
    assert {path for path in found if path.endswith("numpy/__init__.py")} == {
        "lib/python3.11/numpy/__init__.py",
        "lib/python3.13/numpy/__init__.py",
    }
    assert {
        path for path in found if path.endswith(("cryptography/__init__.py", "paho_mqtt/__init__.py"))
    } == {
        "lib/python3/cryptography/__init__.py",
        "lib/python3/paho_mqtt/__init__.py",
    }
    assert not {path for path in found if "big.bin" in path or path.endswith("scripts/s")}
    assert made.description.pythons == ("3.11", "3.13")
    assert made.description.runtime == "onnx"
    assert made.description.packages["numpy"] == "2.0"


def test_the_agent_goes_in_and_the_operators_side_does_not(tmp_path, wheels):
    """What trains on a device, its launcher, unit and installer; neither coordinator nor builder."""
    plan = BundlePlan(arch="aarch64", pythons=["3.11"], runtime="numpy", offline=wheels, preset=0)
    found = names(make_bundle(plan, tmp_path / "p.tar.xz", SIGN).path)
    wanted = {"edge_agent/supervisor.py", "models/runtime/__init__.py", "fl_io/mqtt.py", "lichen/__init__.py"}
    assert {f"lib/python3/{path}" for path in wanted} <= found
    assert {"install.sh", "lichen-agent", "lichen-agent.service", "MANIFEST", "MANIFEST.sig"} <= found
    unwanted = ("broker_coordinator", "hil/", "models/build", "models/zoo", "__pycache__", "onnxruntime")
    assert not [path for path in found for word in unwanted if word in path]


def test_a_32_bit_payload_leaves_to_debian_what_has_no_wheels(tmp_path, wheels):
    """Of the wheels only the one that is pure Python; numpy, msgpack and cryptography are the system's."""
    made = make_bundle(
        BundlePlan(arch="armv7l", pythons=["3.11", "3.13"], offline=wheels, preset=0),
        tmp_path / "p.tar.xz",
        SIGN,
    )
    assert made.description.packages == {"paho-mqtt": "2.1.0"}
    assert made.description.debian == ("python3-numpy", "python3-msgpack", "python3-cryptography")
    assert made.description.runtime == "numpy"
    assert {"lib/python3.11/for-this-python.txt", "lib/python3.13/for-this-python.txt"} <= names(made.path)


def test_pinned_versions_are_taken(tmp_path, wheels):
    """A constraints file of pip's says which; one that there is not is an error that names it."""
    wheel(wheels, "numpy", "1.26", "cp311-cp311-manylinux_2_17_aarch64")
    pins = tmp_path / "pins.txt"
    plan = {"arch": "aarch64", "pythons": ["3.11"], "offline": wheels, "constraint": pins, "preset": 0}
    pins.write_text("numpy==1.26\n")
    made = make_bundle(BundlePlan(**plan), tmp_path / "p.tar.xz", SIGN)
    assert made.description.packages["numpy"] == "1.26"
    pins.write_text("numpy==1.99\n")
    with pytest.raises(LichenError, match=r"Python 3\.11 on aarch64.*numpy"):
        make_bundle(BundlePlan(**plan), tmp_path / "p.tar.xz", SIGN)


@pytest.mark.parametrize(
    "wrong",
    [
        {"arch": "vax"},
        {"pythons": []},
        {"pythons": ["3.10"]},
        {"pythons": ["3.11", "3.11"]},
        {"pythons": ["--index-url=x"]},
    ],
)
def test_a_device_that_cannot_be_is_refused(wrong):
    """Before anything is fetched."""
    with pytest.raises(ConfigError):
        BundlePlan(**{"arch": "aarch64", "pythons": ["3.11"], **wrong})


def test_a_runtime_that_the_processor_does_not_have_is_refused(tmp_path, wheels):
    """With those that it has."""
    plan = BundlePlan(arch="armv7l", pythons=["3.11"], runtime="onnx", offline=wheels)
    with pytest.raises(ConfigError, match="--runtime numpy"):
        make_bundle(plan, tmp_path / "p.tar.xz", SIGN)


def test_the_command_makes_a_payload_that_it_finds_good(tmp_path, wheels):
    """Twice the same bytes; another fleet's key does not hold, a public key alone suffices to check."""
    garden, barn = (
        FleetFolder.create(tmp_path / name, FleetPlan(name=name, hosts=("127.0.0.1",)))
        for name in ("garden", "barn")
    )
    words = [
        "--arch",
        "aarch64",
        "--python",
        "3.11",
        "--wheels",
        str(wheels),
        "--fleet",
        str(garden.path),
        "--json",
    ]
    runner, made = CliRunner(), []
    for name in ("a.tar.xz", "b.tar.xz"):
        done = runner.invoke(fleet, ["bundle", *words, "--out", str(tmp_path / name)], catch_exceptions=False)
        made.append(json.loads(done.output))
    assert made[0]["sha256"] == made[1]["sha256"]
    path = str(tmp_path / "a.tar.xz")
    key = (garden.path / "coordinator" / "coordinator.pub").read_text().strip()
    for how in (["--fleet", str(garden.path)], ["--key", key]):
        done = runner.invoke(fleet, ["bundle", "--check", path, *how], catch_exceptions=False)
        assert "is whole and signed by" in done.output
    with pytest.raises(LichenError, match="not signed by"):
        runner.invoke(fleet, ["bundle", "--check", path, "--fleet", str(barn.path)], catch_exceptions=False)
