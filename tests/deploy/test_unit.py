"""The service of a device: systemd takes it without a word, and it promises what it is to promise."""

import shutil
import subprocess
from collections import defaultdict
from pathlib import Path

import pytest

UNIT = Path(__file__).parents[2] / "deploy" / "lichen-agent.service"


def parsed() -> dict[str, dict[str, list[str]]]:
    """Section, key, and its values: a unit is no ini file, a key may come twice."""
    found: dict[str, dict[str, list[str]]] = defaultdict(lambda: defaultdict(list))
    section = ""
    for number, line in enumerate(UNIT.read_text().splitlines(), 1):
        if not line or line.startswith("#"):
            continue
        if line.startswith("["):
            section = line.strip("[]")
            continue
        key, equals, value = line.partition("=")
        assert section
        assert key.isalpha(), f"line {number}: {line}"
        assert equals
        found[section][key].append(value)
    return found


def test_systemd_understands_every_line(tmp_path):
    """`systemd-analyze verify` says nothing. Its program, which is not here, is exchanged for one that is."""
    assert set(parsed()) == {"Unit", "Service", "Install"}
    if analyze := shutil.which("systemd-analyze"):
        copy = tmp_path / UNIT.name
        lines = (
            "ExecStart=/bin/true" if line.startswith("ExecStart=") else line
            for line in UNIT.read_text().split("\n")
        )
        copy.write_text("\n".join(lines))
        done = subprocess.run(
            [analyze, "verify", copy], capture_output=True, text=True, timeout=60, check=False
        )
        said = [line for line in done.stderr.splitlines() if UNIT.stem in line]
        assert (done.returncode, said) == (0, [])


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
    assert parsed()["Service"][key] == [value]


def test_limits_are_set_for_memory_processors_disk_and_log():
    """The worker's training fits: 170 MB with ONNX Runtime, below what throttles, below what kills."""
    service = parsed()["Service"]
    high, most = (int(service[key][0].removesuffix("M")) for key in ("MemoryHigh", "MemoryMax"))
    assert 170 < high < most < 512
    for key in ("CPUWeight", "IOWeight"):
        assert int(service[key][0]) < 100
    assert int(service["LogRateLimitBurst"][0]) > 0
    assert int(service["WatchdogSec"][0]) > 0


def test_the_payload_has_the_program_that_the_unit_starts():
    """At the path that install.sh makes; and restarts have no limit that would leave a device dead."""
    program, *_ = parsed()["Service"]["ExecStart"][0].split()
    assert program == "/opt/lichen/current/lichen-agent"
    assert (UNIT.parent / Path(program).name).stat().st_mode & 0o111
    assert parsed()["Unit"]["StartLimitIntervalSec"] == ["0"]
