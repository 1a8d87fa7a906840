"""Limits are those that the kernel holds, not those that were asked for."""

import os

import pytest

from edge_agent.limits import Limits, read_limits

MIB = 1 << 20


@pytest.fixture
def machine(tmp_path):
    """Writes files of /proc and /sys below a folder, and reads the limits there."""

    def read(files: dict[str, str], policy: int = 0) -> Limits:
        for path, content in files.items():
            (tmp_path / path).parent.mkdir(parents=True, exist_ok=True)
            (tmp_path / path).write_text(content)
        return read_limits(tmp_path, policy=policy)

    return read


SERVICE = "sys/fs/cgroup/system.slice/lichen-agent.service"
UNIFIED = {
    "proc/self/cgroup": "0::/system.slice/lichen-agent.service\n",
    "sys/fs/cgroup/cgroup.controllers": "cpuset cpu io memory pids\n",
    f"{SERVICE}/cpu.weight": "20\n",
    f"{SERVICE}/cpu.max": "max 100000\n",
    f"{SERVICE}/io.weight": "default 20\n",
    f"{SERVICE}/pids.max": "128\n",
}


def test_a_service_whose_limits_hold(machine):
    """As the unit gives them, under control groups of version 2."""
    limits = machine({**UNIFIED, f"{SERVICE}/memory.max": f"{400 * MIB}\n"}, policy=5)
    assert limits == Limits(
        memory_bytes=400 * MIB, memory_off=False, cpu_weight=20, io_weight=20, tasks=128, scheduling="idle"
    )
    assert not limits.warning


def test_the_memory_controller_of_a_raspberry_pi_is_off(machine):
    """No file holds it: that is said, with what to do; the other limits hold all the same."""
    limits = machine({**UNIFIED, "sys/fs/cgroup/cgroup.controllers": "cpuset cpu io pids\n"})
    assert limits.memory_bytes is None
    assert limits.memory_off
    assert limits.tasks == 128
    assert "cgroup_enable=memory" in limits.warning


def test_the_least_of_all_groups_holds(machine):
    """A slice above may allow less than the unit does; so may a share of the processor."""
    limits = machine(
        {
            **UNIFIED,
            f"{SERVICE}/memory.max": "max\n",
            "sys/fs/cgroup/system.slice/memory.max": f"{300 * MIB}\n",
            "sys/fs/cgroup/system.slice/cpu.max": "50000 100000\n",
        }
    )
    assert (limits.memory_bytes, limits.cpu_cores) == (300 * MIB, 0.5)


def test_memory_that_is_not_limited_is_no_fault_of_the_kernel(machine):
    """Its controller is there, and nobody asked."""
    limits = machine({**UNIFIED, f"{SERVICE}/memory.max": "max\n"})
    assert (limits.memory_bytes, limits.memory_off) == (None, False)
    assert "is set" in limits.warning


@pytest.mark.parametrize(("bound", "seen"), [(str(200 * MIB), 200 * MIB), ("9223372036854771712", None)])
def test_version_1_of_control_groups(machine, bound, seen):
    """As old systems and some containers have it, where "no limit" is a very large number."""
    limits = machine(
        {
            "proc/self/cgroup": "4:memory:/system.slice/x\n1:cpu,cpuacct:/\n0::/\n",
            "sys/fs/cgroup/memory/system.slice/x/memory.limit_in_bytes": bound,
        }
    )
    assert (limits.memory_bytes, limits.memory_off) == (seen, False)


@pytest.mark.parametrize(
    "files",
    [
        {},
        {"proc/self/cgroup": "nonsense\n:::\n0::/../../etc\n"},
        {
            **UNIFIED,
            f"{SERVICE}/memory.max": "",
            f"{SERVICE}/cpu.max": "x",
            f"{SERVICE}/io.weight": "default\n",
        },
        {**UNIFIED, f"{SERVICE}/cpu.max": "1 0\n", f"{SERVICE}/pids.max": "-1\n"},
    ],
)
def test_what_cannot_be_understood_holds_nothing(machine, files):
    """No control groups, or files that are not what they should be."""
    limits = machine(files)
    assert limits.memory_bytes is None
    assert limits.cpu_cores is None


def test_this_process_has_limits_that_can_be_told(machine):
    """On the machine of the test, whatever they are; the policy is the one it runs under."""
    assert read_limits().scheduling == {0: "other", 3: "batch", 5: "idle"}.get(os.sched_getscheduler(0), "?")
