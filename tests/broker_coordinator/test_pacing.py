"""Rounds, FedAsync, and leases that come by themselves: a coordinator on the loopback broker."""

import logging

import numpy as np
import pytest

from broker_coordinator.configuration import (
    BufferTable,
    FleetConfiguration,
    HorizonTable,
    SelectionTable,
    StalenessTable,
)
from fl_protocol.command import Command
from fl_protocol.signed import peek


def orders(device):
    """The train commands a device has got."""
    commands = [Command.unpack(peek(envelope, limit=4096)) for envelope in device.commands]
    return [command for command in commands if command.kind == "train"]


def on_line(fleet, count):
    devices = [fleet.device(f"d{number}") for number in range(count)]
    for device in devices:
        device.birth()
    fleet.settle()
    return devices


def asked(devices, number):
    """Those that hold a command for version ``number``."""
    return [device for device in devices if any(order.version.number == number for order in orders(device))]


def answer(fleet, *devices, **changes):
    """Each answers its newest command."""
    ids = []
    for device in devices:
        ids += fleet.contribute(device, lease=orders(device)[-1].lease, **changes)
    return ids


def rounds(fleet_of, **changes):
    table = {"kind": "rounds", "size": 2, "over_selection": 1.5, "flush_after_s": 60.0, **changes}
    return fleet_of(
        buffer=BufferTable(**table), selection=SelectionTable(kind="random", lease_s=100.0)
    ).start()


def test_a_round_asks_its_cohort_and_closes_at_the_target(fleet_of):
    """Three are asked so that two answer; then the next three are. Where what is late is taken, the straggler
    is not among them."""
    fleet = rounds(fleet_of, late="accept")
    devices = on_line(fleet, 8)
    cohort = asked(devices, 0)
    assert len(cohort) == 3
    answer(fleet, cohort[0])
    assert fleet.coordinator.version.number == 0
    assert len(asked(devices, 0)) == 3, "who has answered is not replaced"
    answer(fleet, cohort[1])
    assert (fleet.coordinator.version.number, fleet.coordinator.version.closed_by) == (1, "size")
    second = asked(devices, 1)
    assert len(second) == 3
    assert cohort[2] not in second
    fleet.books()


def test_a_straggler_is_asked_again_when_its_round_is_over(fleet_of):
    """Its lease is void: in a fleet no larger than a cohort everybody is asked for each round, or soon only
    the fast would be. That holds over a crash too."""
    fleet = rounds(fleet_of)
    devices = on_line(fleet, 3)
    assert devices[0].manifest.pacing.horizon == 0
    answer(fleet, *devices[:2])
    assert asked(devices, 1) == devices
    answer(fleet, *devices[1:])
    fleet.crash()
    fleet.start()
    assert asked(devices, 2) == devices
    assert fleet.coordinator.figures().leases == 3
    assert fleet.books().balanced


def test_a_round_ends_at_its_deadline_with_what_there_is(fleet_of):
    """It counts from the round's beginning, not from the first update."""
    fleet = rounds(fleet_of)
    devices = on_line(fleet, 4)
    fleet.settle(50.0)
    answer(fleet, asked(devices, 0)[0])
    assert fleet.coordinator.version.number == 0
    fleet.settle(11.0)
    version = fleet.coordinator.version
    assert (version.number, version.updates, version.closed_by) == (1, 1, "deadline")


@pytest.mark.parametrize(("late", "word"), [("accept", "done"), ("refuse", "refused")])
def test_what_comes_late_is_taken_or_not_by_rule(fleet_of, late, word):
    """With its staleness, or as stale."""
    fleet = rounds(fleet_of, late=late)
    devices = on_line(fleet, 8)
    cohort = asked(devices, 0)
    update = cohort[2].make(fleet.layout, lease=orders(cohort[2])[-1].lease)
    answer(fleet, *cohort[:2])
    cohort[2].begin(*update)
    fleet.settle()
    receipt = cohort[2].last(update[0])
    assert (receipt.state, receipt.reason) == (word, "" if late == "accept" else "stale")
    waiting = list(fleet.store.waiting())
    assert [row.staleness for row in waiting] == ([1] if late == "accept" else [])


def test_a_round_goes_on_after_a_crash(fleet_of):
    """Same cohort, same update in it, nobody asked twice; then it closes with the two it wants."""
    fleet = rounds(fleet_of)
    devices = on_line(fleet, 8)
    cohort = asked(devices, 0)
    answer(fleet, cohort[0])
    fleet.crash()
    fleet.start()
    assert fleet.coordinator.figures().waiting == 1
    assert asked(devices, 0) == cohort
    answer(fleet, cohort[1])
    version = fleet.coordinator.version
    assert (version.number, version.updates, version.closed_by) == (1, 2, "size")
    assert fleet.books().balanced


def test_a_cohort_that_never_answers_is_replaced(fleet_of):
    """Its leases lapse, and others are asked: a round cannot hang on the dead."""
    fleet = rounds(fleet_of)
    devices = on_line(fleet, 8)
    silent = asked(devices, 0)
    for _ in range(10):  # each time at random, and so perhaps those again
        fleet.settle(101.0)
    assert len(set(asked(devices, 0)) - set(silent)) > 0


def test_fedasync_makes_a_version_of_each_update(fleet_of):
    """x + alpha s(t - tau) (x_new - x_base), alpha .6, s = (1 + 1) ** -.5 for the second."""
    fleet = fleet_of(
        buffer=BufferTable(kind="fedasync", size=1, mixing=0.6),
        staleness=StalenessTable(kind="polynomial", exponent=0.5),
    ).start()
    first, second = on_line(fleet, 2)
    before = fleet.coordinator.weights.copy()
    late = second.make(fleet.layout, value=0.01)
    fleet.contribute(first, value=0.01)
    assert fleet.coordinator.version.number == 1
    np.testing.assert_allclose(fleet.coordinator.weights - before, 0.006, rtol=1e-3)
    second.begin(*late)
    fleet.settle()
    assert fleet.coordinator.version.number == 2
    np.testing.assert_allclose(fleet.coordinator.weights - before, 0.006 + 0.006 * 2**-0.5, rtol=1e-3)
    fleet.books()


def test_leases_begin_by_themselves_where_the_fleet_is_large(fleet_of):
    """Six may be in flight for K = 2: with six on line a version is open, with seven it is by lease."""
    fleet = fleet_of().start()
    devices = on_line(fleet, 6)
    fleet.contribute(*devices[:2])
    assert not devices[0].manifest.pacing.by_lease
    more = fleet.device("d6")
    more.birth()
    fleet.settle()
    fleet.contribute(*devices[:2])
    assert devices[0].manifest.version.number == 2
    assert devices[0].manifest.pacing.by_lease
    assert len(asked([*devices, more], 2)) == 6


def test_a_restart_keeps_the_pacing_that_went_out(fleet_of):
    """Who is on line by then decides for the next version: the same manifest wakes nobody again."""
    fleet = fleet_of().start()
    devices = on_line(fleet, 7)
    before = devices[0].manifest.order
    fleet.crash()
    fleet.start()
    assert devices[0].manifest.order == before


def test_a_share_by_hash_stays_open(fleet_of):
    """Whoever writes a participation below 1 has chosen."""
    fleet = fleet_of(selection=SelectionTable(participation=0.5)).start()
    devices = on_line(fleet, 9)
    fleet.contribute(*devices[:2])
    assert not devices[0].manifest.pacing.by_lease


def test_a_start_says_that_fewer_devices_are_known_than_a_version_takes(fleet_of, caplog):
    """They may come; so it is a warning."""
    fleet = fleet_of(buffer=BufferTable(size=5)).start()
    on_line(fleet, 2)
    fleet.crash()
    with caplog.at_level(logging.WARNING, "lichen.coordinator"):
        fleet.start()
    assert "takes 5 updates and 2 devices are known" in caplog.text


@pytest.mark.parametrize(
    ("tables", "remedy"),
    [
        ({"buffer": {"kind": "fedasync", "size": 10}}, "size = 1"),
        ({"buffer": {"kind": "round"}}, "fedbuff, fedasync, rounds"),
        ({"buffer": {"kind": "rounds", "flush_after_s": 0.0}}, "over_selection = 1 to wait for all"),
        ({"buffer": {"kind": "rounds"}, "selection": {"kind": "open"}}, 'kind = "random" or "fair"'),
        (
            {"buffer": {"kind": "rounds"}, "selection": {"kind": "fair", "in_flight": 12}},
            "in_flight = 13",
        ),
        ({"selection": {"kind": "closed"}}, "auto, open, random or fair"),
    ],
)
def test_what_cannot_work_is_refused_with_what_would(tmp_path, tables, remedy):
    """The nearest valid value is in the message."""
    types = {"buffer": BufferTable, "selection": SelectionTable, "horizon": HorizonTable}
    with pytest.raises(ValueError) as refused:
        FleetConfiguration(
            fleet="lab",
            state=tmp_path,
            artifact=tmp_path,
            **{name: types[name](**values) for name, values in tables.items()},
        )
    assert remedy in str(refused.value)
