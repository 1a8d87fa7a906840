"""Wrong clocks: a fleet whose machines believe in 1970 or in 2099 works, TLS included."""

import time

import pytest
from certificates import Authority, tls_mosquitto

from broker_coordinator.books.audit import audit
from hil.chaos.clock import YEAR_S, MovableClock

pytestmark = [pytest.mark.process, pytest.mark.mosquitto]

VERSIONS = 4
IN_1970 = (86400.0 - time.time()) / YEAR_S
IN_2099 = 2099.5 - time.gmtime().tm_year


def test_a_fleet_in_1970_and_2099_trains_over_tls_and_says_what_it_forgave(
    local_fleet, steps, broker_of, clock_shim, tmp_path
):
    """Certificates are not yet valid for one device and the coordinator, and long expired for the other,
    whose clock is then set back by 129 years while it works. Everything that was made is counted once."""
    authority = Authority(tmp_path)
    program = broker_of("mosquitto")._program
    with tls_mosquitto(program, tmp_path, authority.broker(), authority.ca) as port:
        trust = {"ca": str(authority.ca)}
        fleet = local_fleet(
            devices=2,
            versions=VERSIONS,
            broker=f"mqtts://127.0.0.1:{port}",
            settings={"tls": trust},
            agent_settings={"tls": trust},
        )
        clocks = [MovableClock(clock_shim, tmp_path / f"clock-{number}") for number in range(3)]
        for clock, years in zip(clocks, (IN_1970, IN_1970, IN_2099), strict=True):
            clock.move(years)
        fleet.coordinator.start(clocks[0].environment)
        for agent, clock in zip(fleet.agents.values(), clocks[1:], strict=True):
            agent.start(clock.environment)
        steps.until(fleet, lambda: fleet.status().get("version", 0) >= 1)
        clocks[2].move(IN_1970)
        steps.end(fleet)
        fleet.stop()

    assert fleet.status()["version"] == VERSIONS
    assert "not yet valid" in fleet.status()["tls_date_error"]
    assert "not yet valid" in fleet.agent_status("dev-00")["tls_date_error"]
    assert "expired" in fleet.agent_status("dev-01")["tls_date_error"]
    heard = fleet.coordinator.log.read_text()
    for device, reason in (("dev-00", "not yet valid"), ("dev-01", "expired")):
        assert any(f"device {device} reports" in line and reason in line for line in heard.splitlines()), (
            heard
        )
    books = audit(fleet.state, fleet.agent_states)
    assert books.balanced, books.faults
    assert books.versions_checked >= VERSIONS
