"""Fleets of real processes that stop and go on as a test says."""

import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from hil.chaos.clock import build_shim
from hil.local_fleet import FleetOptions, LocalFleet

PATIENCE_S = 60.0


@pytest.fixture
def local_fleet(tmp_path: Path) -> Iterator[Callable[..., LocalFleet]]:
    """Makes prepared fleets; keyword arguments are those of ``FleetOptions``."""
    fleets: list[LocalFleet] = []

    def make(**options: Any) -> LocalFleet:
        settings = {"buffer": {"size": 2}, "plan": {"epochs": 1}, **options.pop("settings", {})}
        made = LocalFleet(
            tmp_path / f"fleet-{len(fleets)}", FleetOptions(runtime="numpy", settings=settings, **options)
        )
        fleets.append(made)
        made.prepare()
        return made

    yield make
    for fleet in fleets:
        fleet.stop()


class Steps:
    """What a test does with a fleet, one thing after the other."""

    def until(self, fleet: LocalFleet, condition: Callable[[], object]) -> None:
        """Wait until something holds; polls, as the files it looks at send no event."""
        until = time.monotonic() + PATIENCE_S
        while not condition():
            assert time.monotonic() < until, fleet.coordinator.last_words()
            time.sleep(0.05)

    def begin(self, fleet: LocalFleet, version: int, environment: dict[str, str] | None = None) -> None:
        """Start the coordinator, to end by itself at a version."""
        configuration = fleet.folder / "fleet.toml"
        lines = [line for line in configuration.read_text().splitlines() if "stop_after" not in line]
        configuration.write_text("\n".join([f"stop_after_versions = {version}", *lines]) + "\n")
        fleet.coordinator.start(environment)

    def end(self, fleet: LocalFleet) -> None:
        """Wait for the coordinator's end by itself."""
        assert fleet.coordinator.wait(PATIENCE_S) == 0, fleet.coordinator.last_words()


@pytest.fixture
def steps() -> Steps:
    """Start coordinators, and wait for what comes of it."""
    return Steps()


@pytest.fixture(scope="session")
def clock_shim(tmp_path_factory) -> Path:
    """The library that moves a process's wall clock."""
    shim = build_shim(tmp_path_factory.mktemp("clock"))
    if shim is None:
        pytest.skip("no C compiler: wall clocks of processes cannot be moved")
    return shim
