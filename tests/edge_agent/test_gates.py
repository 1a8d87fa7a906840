"""Gates: when a device may train."""

import pytest

from edge_agent.configuration import GateSettings
from edge_agent.gates import LinuxMachine, Surroundings, shut_gate, surroundings
from fl_protocol.clock import ManualClock


def around(**changes) -> Surroundings:
    usual = {"samples": 100, "minute": 720, "on_mains": None, "temperature_c": None, "load": None}
    return Surroundings(**{**usual, **changes})


def test_without_settings_only_samples_are_asked_for():
    """A bare device trains as soon as it has one sample."""
    assert shut_gate(GateSettings(), around()) is None
    assert "0 training samples" in shut_gate(GateSettings(), around(samples=0))


@pytest.mark.parametrize(
    ("hours", "minute", "shut"),
    [
        ("22:00-06:30", 23 * 60, True),
        ("22:00-06:30", 0, True),
        ("22:00-06:30", 6 * 60 + 29, True),
        ("22:00-06:30", 6 * 60 + 30, False),
        ("9:00-17:00", 12 * 60, True),
        ("9:00-17:00", 17 * 60, False),
        ("9:00-9:00", 9 * 60, False),
    ],
)
def test_quiet_hours_across_midnight_too(hours, minute, shut):
    """The end is outside, the begin inside."""
    assert (shut_gate(GateSettings(quiet_hours=hours), around(minute=minute)) is not None) == shut


def test_a_device_without_a_clock_cannot_keep_quiet_hours():
    """It rather waits than trains in somebody's bedroom."""
    assert surroundings(LinuxMachine(), ManualClock(), 1).minute is None
    assert "clock" in shut_gate(GateSettings(quiet_hours="22:00-06:00"), around(minute=None))
    assert shut_gate(GateSettings(), around(minute=None)) is None


def test_mains_temperature_and_load():
    """Each has its sentence; what a machine does not tell does not shut a gate."""
    strict = GateSettings(mains_only=True, max_temperature_c=70.0, max_load=2.0)
    assert shut_gate(strict, around()) is None
    assert shut_gate(strict, around(on_mains=False)) == "on battery"
    assert "75 C" in shut_gate(strict, around(temperature_c=75.0))
    assert "load 2.5" in shut_gate(strict, around(load=2.5))
    assert shut_gate(strict, around(on_mains=True, temperature_c=70.0, load=2.0)) is None


def test_memory_and_battery():
    """Off the mains alone the battery counts; a training under way has its memory already."""
    strict = GateSettings(min_memory_mb=100.0, min_battery=0.3)
    assert shut_gate(strict, around()) is None
    low = around(free_memory_mb=64.0)
    assert shut_gate(strict, low) == "64 MiB of memory are free, at least 100 are needed"
    assert shut_gate(strict, low, in_training=True) is None
    weak = around(battery=0.2, on_mains=False)
    assert shut_gate(strict, weak) == "the battery is at 20%, at least 30% are needed"
    assert shut_gate(strict, weak, in_training=True) == shut_gate(strict, weak)
    assert shut_gate(strict, around(battery=0.2, on_mains=True)) is None
    assert shut_gate(strict, around(battery=0.3, free_memory_mb=100.0)) is None
    for wrong in ({"min_battery": 1.0}, {"min_memory_mb": -1.0}):
        with pytest.raises(ValueError, match="min_memory_mb must not be negative"):
            GateSettings(**wrong)


def test_linux_tells_its_memory_and_its_emptiest_battery(tmp_path):
    """MemAvailable in MiB, capacity in percent; nothing where there is neither."""
    machine = LinuxMachine(tmp_path / "sys", tmp_path / "proc")
    assert machine.free_memory_mb() is machine.battery() is None
    (tmp_path / "proc").mkdir()
    (tmp_path / "proc/meminfo").write_text("MemTotal:  512000 kB\nMemAvailable:   65536 kB\n")
    for name, kind, capacity in (("a", "Battery", "80"), ("b", "Battery", "35"), ("usb", "USB", "1")):
        supply = tmp_path / "sys/class/power_supply" / name
        supply.mkdir(parents=True)
        (supply / "type").write_text(kind + "\n")
        (supply / "capacity").write_text(capacity + "\n")
    assert machine.free_memory_mb() == 64.0
    assert machine.battery() == 0.35


def test_a_training_is_not_ended_by_its_own_load():
    """While it trains, only what is not its own doing counts."""
    settings = GateSettings(min_samples=10, max_load=1.0, mains_only=True)
    assert shut_gate(settings, around(samples=0, load=9.0), in_training=True) is None
    assert shut_gate(settings, around(on_mains=False), in_training=True) == "on battery"


def supply(root, name, **files):
    folder = root / "class/power_supply" / name
    folder.mkdir(parents=True)
    for key, value in files.items():
        (folder / key).write_text(f"{value}\n")


@pytest.mark.parametrize(
    ("supplies", "expected"),
    [
        ([], None),
        ([("BAT0", {"type": "Battery", "status": "Discharging"})], False),
        ([("BAT0", {"type": "Battery", "status": "Full"})], True),
        (
            [("AC", {"type": "Mains", "online": 1}), ("BAT0", {"type": "Battery", "status": "Discharging"})],
            True,
        ),
        ([("AC", {"type": "Mains", "online": 0})], False),
        ([("mouse", {"type": "Battery", "scope": "Device", "status": "Discharging"})], None),
    ],
)
def test_power_is_read_from_the_kernel(tmp_path, supplies, expected):
    """``/sys/class/power_supply``, as laptops, phones and HATs show it."""
    for name, files in supplies:
        supply(tmp_path, name, **files)
    assert LinuxMachine(tmp_path).on_mains() is expected


def test_the_hottest_zone_counts(tmp_path):
    """Millidegrees; a zone that cannot be read is left out."""
    for number, text in enumerate(["41000", "67500", "", "rubbish"]):
        zone = tmp_path / f"class/thermal/thermal_zone{number}"
        zone.mkdir(parents=True)
        (zone / "temp").write_text(text)
    assert LinuxMachine(tmp_path).temperature_c() == 67.5
    assert LinuxMachine(tmp_path / "nowhere").temperature_c() is None
