"""Broker and coordinator as services of a real systemd, put in place word by word as the guide has it.

Slow: a Debian of its own boots. What a test finds is what the one before left: a machine has a history.
"""

import json
import re
import sys

import numpy as np
import pytest
from booted_machine import PYTHON, BootedMachine, guide_commands, wheels_for, why_not

from broker_coordinator.books.audit import audit
from edge_agent.samples import SampleStore
from hil.processes import ManagedProcess

pytestmark = [pytest.mark.slow, pytest.mark.timeout(1500)]

COORDINATOR, BROKER = "lichen-coordinator", "lichen-broker"
LICHEN = "/opt/lichen-coordinator/bin/lichen"
FLEET = "/var/lib/lichen-fleet"
START_S = 3
"""`TimeoutStartSec=` of the start that takes twice as long for each update that it folds."""
SETTINGS = "[buffer]\nsize = 1\n[plan]\nepochs = 1\n"


@pytest.fixture(scope="module")
def machine(tmp_path_factory, outlasting):
    """A booted Debian with both services, as the guide says; devices dial 127.0.0.1."""
    if reason := why_not():
        pytest.skip(f"no machine with a systemd of its own: {reason}")
    folder = tmp_path_factory.mktemp("machine")
    with BootedMachine(folder, wheels_for(PYTHON, folder / "wheels")) as made:
        outlasting.append(made.process)
        lines = [line.replace("broker.example", "127.0.0.1") for line in guide_commands("As services")]
        assert lines[-1].startswith("systemctl enable --now")
        made.shell(lines)
        yield made
    outlasting.remove(made.process)


@pytest.fixture(scope="module")
def device(machine, tmp_path_factory, outlasting):
    """A device with samples, enrolled by the operator's command; its agent runs beside the machine."""
    made = Device(machine, tmp_path_factory.mktemp("device"))
    outlasting.append(made.agent)
    yield made
    made.agent.stop()
    outlasting.remove(made.agent)


class Device:
    """pi-07: what ``lichen fleet enroll`` made, carried onto it, and the agent there."""

    def __init__(self, machine, folder):
        self.machine = machine
        enrolled = machine.do(LICHEN, "fleet", "enroll", "pi-07", "--days", "20", "--fleet", FLEET)
        assert "reads its files again" in enrolled
        self.folder = folder / "pi-07"
        self.carry("agent.toml", "ca.pem", "device.pem", "device.key")
        toml = self.folder / "agent.toml"
        toml.write_text('runtimes = ["numpy"]\n' + toml.read_text())
        rng = np.random.default_rng(7)
        with SampleStore(self.folder / "state" / "samples.db") as samples:
            samples.extend(rng.normal(size=(40, 6, 100)).astype(np.float32), rng.integers(0, 7, 40))
        words = machine.beside(sys.executable, "-m", "edge_agent", "run", "--config", str(toml))
        self.agent = ManagedProcess("agent", words, folder / "agent.log", folder=folder)

    def carry(self, *names):
        """Copy files from the operator's folder onto the device."""
        (self.folder / "state").mkdir(parents=True, exist_ok=True)
        for name in names:
            content = (self.machine.path / FLEET[1:] / "devices/pi-07" / name).read_bytes()
            (self.folder / name).write_bytes(content)


def status(machine):
    """What `lichen status` says, as the user that the guide names."""
    words = ["runuser", "-u", COORDINATOR, "--", LICHEN, "status", f"{FLEET}/coordinator", "--json"]
    return json.loads(machine.do(*words))


def version(machine):
    return status(machine)["version"]


def books(machine, *states):
    """The audit of the state as it lies on the disk: all is counted once, and replays."""
    report = audit(machine.path / FLEET[1:] / "coordinator", states)
    assert report.balanced, report.faults
    return report


def drop_in(machine, text):
    """What `systemctl edit` does."""
    folder = machine.path / f"etc/systemd/system/{COORDINATOR}.service.d"
    folder.mkdir(exist_ok=True)
    (folder / "override.conf").write_text(text)
    machine.do("systemctl", "daemon-reload")


def complaints(machine):
    """What the journal holds of either service that is worse than a notice."""
    words = ["journalctl", "--no-pager", "--output=cat", "-p", "warning", "-u", COORDINATOR, "-u", BROKER]
    return machine.said(*words)


def test_the_guides_words_make_two_services_that_run(machine):
    """At the first try, with no word of complaint; and the fleet is on line."""
    for unit in (BROKER, COORDINATOR):
        assert machine.shows(unit, "ActiveState", "SubState", "NRestarts") == ["active", "running", "0"]
    machine.until(lambda: status(machine)["state"] == "running")
    assert complaints(machine) == ""
    assert machine.said("systemctl", "--failed", "--quiet") == ""


def test_the_hardening_holds_and_breaks_nothing(machine):
    """No rights, no new ones, system calls filtered; what is not theirs is neither written nor seen."""
    for unit, user, writes in (
        (BROKER, "mosquitto", "broker/run"),
        (COORDINATOR, COORDINATOR, "coordinator"),
    ):
        (pid,) = machine.shows(unit, "MainPID")
        said = machine.do("cat", f"/proc/{pid}/status")
        assert re.search(r"^CapBnd:\s0+$", said, re.MULTILINE)
        assert re.search(r"^NoNewPrivs:\s1$", said, re.MULTILINE)
        assert re.search(r"^Seccomp:\s2$", said, re.MULTILINE)
        assert machine.do("stat", "--format=%U", f"/proc/{pid}").strip() == user
        inside = ["nsenter", f"--target={pid}", "--mount", "--", "runuser", "-u", user, "--", "sh", "-c"]
        assert (
            machine.do(*inside, f"cd / && touch {FLEET}/{writes}/x && rm {FLEET}/{writes}/x && echo so")
            == "so\n"
        )
        for path in ("/usr", "/etc", "/var/tmp/..", FLEET):
            assert machine.said(*inside, f"cd / && touch {path}/x && echo written") == ""
        for path in (f"{FLEET}/private/ca.key", "/dev/sda", "/dev/mem"):
            assert machine.said(*inside, f"cd / && cat {path} && echo read") == ""


def test_a_device_trains_over_mutual_tls(machine, device):
    """From outside, with what was carried onto it; versions come, one for each update."""
    toml = machine.path / FLEET[1:] / "fleet.toml"
    toml.write_text(f"{toml.read_text()}\n{SETTINGS}")
    machine.do("systemctl", "restart", COORDINATOR)
    device.agent.start()
    machine.until(lambda: version(machine) >= 2)
    assert books(machine).replay_ok


def test_a_coordinator_that_is_killed_is_started_again_and_nothing_is_lost(machine, device):
    """kill -9 in mid-training, three times: five seconds later it is back, and goes on where it was."""
    for number in (1, 2, 3):
        before = version(machine)
        machine.do("systemctl", "kill", "--signal=KILL", COORDINATOR)
        machine.until(
            lambda number=number: (
                machine.shows(COORDINATOR, "NRestarts", "SubState") == [str(number), "running"]
            )
        )
        machine.until(lambda before=before: version(machine) >= before + 2)
        books(machine)


def test_a_broker_that_is_killed_is_started_again(machine, device):
    """Both sides come back to it by themselves."""
    before = version(machine)
    machine.do("systemctl", "kill", "--signal=KILL", BROKER)
    machine.until(lambda: machine.shows(BROKER, "NRestarts", "SubState") == ["1", "running"])
    machine.until(lambda: version(machine) >= before + 2)
    books(machine)


def test_a_coordinator_that_hangs_is_ended_by_the_watchdog(machine, device):
    """Stopped in its tracks, as by a disk that never answers: systemd hears nothing, and begins anew."""
    drop_in(machine, "[Service]\nWatchdogSec=6\n")
    machine.do("systemctl", "restart", COORDINATOR)
    before = version(machine)
    machine.until(lambda: version(machine) >= before + 1)
    (restarts,) = machine.shows(COORDINATOR, "NRestarts")
    (pid,) = machine.shows(COORDINATOR, "MainPID")
    machine.do("kill", "-STOP", pid)
    machine.until(lambda: int(machine.shows(COORDINATOR, "NRestarts")[0]) == int(restarts) + 1)
    assert "Watchdog timeout" in machine.said("journalctl", "--no-pager", "-u", COORDINATOR)
    machine.until(lambda: version(machine) >= before + 2)
    books(machine)


def test_a_start_that_gets_on_may_take_longer_than_its_timeout(machine, device):
    """One update that takes twice the timeout to fold; systemd would end a start that says nothing."""
    (site,) = (machine.path / "opt/lichen-coordinator/lib").glob("python3*/site-packages")
    (site / "slow_rules.py").write_text(SLOW_RULES)
    toml = machine.path / FLEET[1:] / "fleet.toml"
    settings = toml.read_text()
    toml.write_text(
        settings.replace("size = 1\n", "size = 2\n") + '[aggregator]\nkind = "slow_rules:SlowMean"\n'
    )
    drop_in(machine, f"[Service]\nTimeoutStartSec={START_S}\n")
    assert machine.shows(COORDINATOR, "TimeoutStartUSec") == [f"{START_S}s"]
    machine.do("systemctl", "restart", COORDINATOR)
    machine.until(lambda: status(machine)["waiting"] == 1)
    (restarts,) = machine.shows(COORDINATOR, "NRestarts")
    machine.do("systemctl", "restart", COORDINATOR)
    assert machine.shows(COORDINATOR, "NRestarts", "SubState") == [restarts, "running"]
    assert status(machine)["waiting"] == 1
    began, ended = (
        int(at)
        for at in machine.shows(
            COORDINATOR, "InactiveExitTimestampMonotonic", "ActiveEnterTimestampMonotonic"
        )
    )
    # By systemd's own clock, and from below alone: without an extension nothing would have been shown.
    assert ended - began > START_S * 1_000_000
    toml.write_text(settings)
    drop_in(machine, "")
    before = version(machine)
    machine.do("systemctl", "restart", COORDINATOR)
    machine.until(lambda: version(machine) > before)
    books(machine)


SLOW_RULES = f"""
import time
import numpy as np

FOLD_S = {2.0 * START_S}

class SlowMean:
    holds_updates = False
    def weigh(self, update, context): return update.num_examples
    def init(self, size): return dict(total=np.zeros(size, np.float32), weight=np.float32(0))
    def accumulate(self, state, start, values, weight):
        if start == 0:
            time.sleep(FOLD_S)
            state["weight"] += weight
        state["total"][start : start + len(values)] += values * weight
    def finalize(self, state): return state["total"] / state["weight"]
"""


def test_a_renewed_certificate_needs_no_restart_of_the_agent(machine, device):
    """A new key voids the old at once; carried onto the device, it is back by itself."""
    pid = device.agent.pid
    assert "reads its files again" in machine.do(
        LICHEN, "fleet", "renew", "pi-07", "--new-key", "--fleet", FLEET
    )
    machine.do("systemctl", "restart", BROKER)
    machine.until(lambda: status(machine)["state"] == "running" and status(machine)["devices_online"] == 0)
    before = version(machine)
    device.carry("device.key", "device.pem")
    # It tries again within two minutes.
    machine.until(lambda: version(machine) > before, patience_s=180)
    assert device.agent.pid == pid
    assert device.agent.running
    books(machine)


def test_the_operators_commands_work_as_the_guide_has_them(machine, device):
    """A backup while it runs, the figures for Prometheus, a reload, and a device that is taken out."""
    machine.do("install", "-d", "-o", COORDINATOR, "/backup")
    words = [
        "runuser",
        "-u",
        COORDINATOR,
        "--",
        LICHEN,
        "backup",
        f"{FLEET}/coordinator",
        "--out",
        "/backup/today",
    ]
    machine.do(*words)
    assert audit(machine.path / "backup/today").balanced
    fetch = (
        "import urllib.request as http; print(http.urlopen('http://127.0.0.1:9641/healthz').read().decode())"
    )
    assert machine.do("python3", "-c", fetch).strip() == "ok"
    machine.do("systemctl", "reload", BROKER)
    machine.do(LICHEN, "fleet", "enroll", "thief", "--fleet", FLEET)
    machine.until(lambda: status(machine)["devices_enrolled"] == 2)
    assert "reads its files again" in machine.do(LICHEN, "fleet", "revoke", "thief", "--fleet", FLEET)
    machine.until(lambda: status(machine)["devices_enrolled"] == 1)
    before = version(machine)
    machine.until(lambda: version(machine) > before)


def test_after_a_power_cut_both_services_start_by_themselves(machine, device):
    """The whole machine is gone in mid-training, and comes back; the device's books and its own agree."""
    before = version(machine)
    machine.cut_power()
    machine.boot()
    machine.until(lambda: status(machine)["state"] == "running")
    assert version(machine) >= before
    machine.until(lambda: version(machine) >= before + 2, patience_s=180)
    device.agent.stop()
    machine.do("systemctl", "stop", COORDINATOR)
    report = books(machine, device.folder / "state")
    assert (report.lost, report.duplicated) == (0, 0)
    assert machine.shows(COORDINATOR, "Result", "ExecMainStatus") == ["success", "0"]
