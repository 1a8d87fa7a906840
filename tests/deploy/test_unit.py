"""The services: systemd takes them without a word, and they promise what they are to promise."""

import shutil
import subprocess
from pathlib import Path

import pytest
from unit_file import DEPLOY, read_unit, unit_command

from broker_coordinator.configuration import read_fleet
from broker_coordinator.fleet.folder import FleetFolder, FleetPlan
from lichen.command import lichen

AGENT, COORDINATOR, BROKER = UNITS = (
    "lichen-agent.service",
    "lichen-coordinator.service",
    "lichen-broker.service",
)
FLEET = "/var/lib/lichen-fleet"


@pytest.mark.parametrize("unit", UNITS)
def test_systemd_understands_every_line(tmp_path, unit):
    """`systemd-analyze verify` says nothing. Programs, which are not here, are exchanged for one that is."""
    assert set(read_unit(unit)) == {"Unit", "Service", "Install"}
    if analyze := shutil.which("systemd-analyze"):
        copy = tmp_path / unit
        lines = (
            "ExecStart=/bin/true" if line.startswith("ExecStart=") else line
            for line in (DEPLOY / unit).read_text().split("\n")
        )
        copy.write_text("\n".join(lines))
        done = subprocess.run(
            [analyze, "verify", copy], capture_output=True, text=True, timeout=60, check=False
        )
        said = [line for line in done.stderr.splitlines() if copy.stem in line]
        assert (done.returncode, said) == (0, [])


@pytest.mark.parametrize("unit", UNITS)
def test_systemd_thinks_well_of_what_the_service_may_not_do(tmp_path, unit):
    """`systemd-analyze security`: below 2.5 of 10, where a service without any of it has 9.6."""
    analyze = shutil.which("systemd-analyze")
    if (
        analyze is None
        or "--offline"
        not in subprocess.run(
            [analyze, "--help"], capture_output=True, text=True, timeout=60, check=False
        ).stdout
    ):
        pytest.skip("systemd-analyze is not here, or does not judge files")
    words = [analyze, "security", "--offline=yes", "--threshold=25", DEPLOY / unit]
    done = subprocess.run(words, capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 0, done.stdout


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("Type", "notify"),
        ("User", "lichen"),
        ("ProtectSystem", "strict"),
        ("StateDirectory", "lichen"),
        ("OOMPolicy", "continue"),
        ("Restart", "always"),
        ("RestartPreventExitStatus", "78"),
        ("CPUSchedulingPolicy", "idle"),
        ("IOSchedulingClass", "idle"),
        ("NoNewPrivileges", "yes"),
        ("CapabilityBoundingSet", ""),
    ],
)
def test_the_service_is_bounded(key, value):
    """One folder to write in, no rights, the last in every queue; a wrong configuration is not retried."""
    assert read_unit(AGENT)["Service"][key] == [value]


def test_limits_are_set_for_memory_processors_disk_and_log():
    """The worker's training fits: 170 MB with ONNX Runtime, below what throttles, below what kills."""
    service = read_unit(AGENT)["Service"]
    high, most = (int(service[key][0].removesuffix("M")) for key in ("MemoryHigh", "MemoryMax"))
    assert 170 < high < most < 512
    for key in ("CPUWeight", "IOWeight"):
        assert int(service[key][0]) < 100
    assert int(service["LogRateLimitBurst"][0]) > 0
    assert int(service["WatchdogSec"][0]) > 0


def test_the_payload_has_the_program_that_the_unit_starts():
    """At the path that install.sh makes; and restarts have no limit that would leave a device dead."""
    program, *_ = unit_command(AGENT)
    assert program == "/opt/lichen/current/lichen-agent"
    assert (DEPLOY / Path(program).name).stat().st_mode & 0o111
    assert read_unit(AGENT)["Unit"]["StartLimitIntervalSec"] == ["0"]


@pytest.mark.parametrize("unit", [COORDINATOR, BROKER])
@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("Type", "notify"),
        ("ProtectSystem", "strict"),
        ("Restart", "always"),
        ("NoNewPrivileges", "yes"),
        ("CapabilityBoundingSet", ""),
    ],
)
def test_the_services_beside_the_broker_are_bounded(unit, key, value):
    """As the agent: started again for ever, nothing to write but what is theirs, no rights."""
    assert read_unit(unit)["Service"][key] == [value]
    assert read_unit(unit)["Service"]["User"] not in ([], ["root"])
    assert read_unit(unit)["Unit"]["StartLimitIntervalSec"] == ["0"]


def test_the_coordinator_writes_its_state_and_nothing_else(tmp_path):
    """systemd's state directory is where `lichen fleet init` puts it; the fleet is the operator's."""
    service = read_unit(COORDINATOR)["Service"]
    assert service["StateDirectory"] == ["lichen-fleet/coordinator"]
    assert "ReadWritePaths" not in service
    made = FleetFolder.create(tmp_path / "lichen-fleet", FleetPlan(name="barn", hosts=("h",)))
    state = read_fleet(made.path / "fleet.toml").state
    assert f"/var/lib/{state.relative_to(tmp_path)}" == f"/var/lib/{service['StateDirectory'][0]}"
    assert service["RestartPreventExitStatus"] == ["78"]


def test_the_services_name_files_of_the_fleet(tmp_path):
    """Every path below the fleet's folder is one that `lichen fleet init` makes."""
    made = FleetFolder.create(tmp_path / "fleet", FleetPlan(name="barn", hosts=("h",)))
    named = {
        word.lstrip("-")
        for unit in (COORDINATOR, BROKER)
        for section in read_unit(unit).values()
        for values in section.values()
        for value in values
        for word in value.split()
        if FLEET in word
    }
    assert len(named) >= 6
    for path in named:
        assert (made.path / Path(path).relative_to(FLEET)).exists(), path


def test_the_coordinators_command_is_one_of_ours():
    """Its words are understood."""
    _, *words = unit_command(COORDINATOR)
    group, run, *rest = words
    command = lichen.get_command(None, group).get_command(None, run)
    assert command.make_context(run, rest).params["http"] == "127.0.0.1:9641"
