"""Whole runs of virtual fleets: the deployed agent and coordinator on another clock and connection."""

from collections import Counter
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

import lichen
from broker_coordinator.books.audit import audit
from edge_agent.trainer import TrainingResult
from fl_protocol.errors import ConfigError
from hil.simulate import simulation
from hil.simulate.fleet import VirtualFleet
from models.zoo import digits
from models.zoo.mlp import digits_artifact

PLAN = {"epochs": 2, "batch_size": 16, "lr": 0.3}


@pytest.fixture(scope="module")
def artifact(tmp_path_factory):
    """A small MLP on the digits."""
    return digits_artifact(tmp_path_factory.mktemp("artifact") / "digits", hidden=8)


def devices(count, seed):
    """Digits dealt out at random."""
    training, _ = digits.split(seed=0)
    for rows in np.array_split(np.random.default_rng(seed).permutation(len(training)), count):
        yield training.x[rows], training.y[rows]


def held_out():
    """Digits that nobody trains on."""
    kept = digits.split(seed=0)[1]
    return kept.x, kept.y


def run(artifact, **options):
    """Twelve devices, two updates in flight for each one that a version takes."""
    settings = {
        "count": 12,
        "versions": 4,
        "plan": PLAN,
        "fleet": {"buffer": {"size": 6}},
        "evaluation": held_out(),
        "runtimes": ("numpy",),
    }
    return lichen.simulate(artifact, devices, **{**settings, **options})


HARD = {
    "classes": {"phone": {}, "pi": {}},
    "availability": {"kind": "lognormal", "on_s": 60.0, "off_s": 30.0},
    "dropout": 0.2,
    "away_s": 20.0,
    "attack": {"kind": "sign_flip", "share": 0.25},
    "fleet": {"buffer": {"size": 6, "flush_after_s": 120.0}},
}


@pytest.mark.parametrize("options", [{}, HARD], ids=["calm", "hard"])
def test_the_same_seed_gives_the_same_run(artifact, options):
    """To the last byte sent and the last bit of the state; another seed gives another."""
    once, again, other = run(artifact, **options), run(artifact, **options), run(artifact, seed=1, **options)
    assert once == again
    assert once.state_hash != other.state_hash
    assert once.versions == other.versions == 4


def test_every_update_goes_the_whole_way(artifact, tmp_path, monkeypatch):
    """Encoded, committed to the outbox, sent, accepted, receipted and deleted, each as often as the next."""
    passed = Counter()
    for module in ("sqlite_file", "upload"):
        monkeypatch.setattr(f"edge_agent.{module}.crash_point", lambda name: passed.update([name]))
    fleets = []
    result = run(artifact, state=tmp_path / "state", progress=lambda fleet: fleets[:] or fleets.append(fleet))
    accepted = result.accepted
    assert accepted >= 24
    assert result.trainings == passed["agent.update.committed"]
    assert passed["agent.upload"] == passed["agent.update.committed"]
    assert passed["agent.receipt"] == passed["agent.settle.committed"] == accepted
    report = audit(tmp_path / "state")
    assert report.balanced, report.faults
    assert report.versions_ok == report.versions_checked == result.versions
    assert result.payload_bytes > 0
    assert result.bytes_up > result.payload_bytes


def test_audit_replays_what_was_hard(artifact, tmp_path):
    """With power failures, attackers and slow links the books balance too."""
    result = run(artifact, state=tmp_path / "state", **HARD)
    report = audit(tmp_path / "state")
    assert report.balanced, report.faults
    assert report.versions_ok == result.versions
    assert result.losses > 0


def test_a_fleet_learns(artifact):
    """Accuracy rises from chance, versions come one after the other, and a target ends the run."""
    result = run(artifact, versions=30, target=0.7)
    assert result.reached is not None
    assert result.reached.version == result.history[-1].version < 30
    assert result.accuracy >= 0.7
    assert result.accuracy_source == "coordinator"
    times = [row.virtual_s for row in result.history]
    assert times == sorted(times)
    assert [row.version for row in result.history] == list(range(1, len(times) + 1))


def test_devices_report_where_nothing_else_measures(artifact):
    """A fifth of each device's samples is held out, and never trained on."""
    result = run(artifact, evaluation=None)
    assert result.accuracy_source == "devices"
    assert 0 < result.accuracy < 1


def test_slow_devices_take_longer_and_send_the_same(artifact):
    """Virtual time is the devices' own: a step of ten seconds is ten seconds, whatever it takes here."""
    fast = run(
        artifact, fleet={"buffer": {"size": 12}}, classes=[simulation.DeviceClass(name="f", step_s=0.1)]
    )
    slow = run(
        artifact, fleet={"buffer": {"size": 12}}, classes=[simulation.DeviceClass(name="s", step_s=10.0)]
    )
    assert slow.virtual_s > 20 * fast.virtual_s
    assert slow.payload_bytes == fast.payload_bytes
    assert slow.state_hash == fast.state_hash


def test_a_trainer_of_ones_own_trains(artifact):
    """``trainer`` takes the place of the artifact's graph, on every device."""

    class Still:
        def train(self, weights, samples, plan, should_stop):
            return TrainingResult({name: tensor + 1 for name, tensor in weights.items()}, steps=1)

        def evaluate(self, weights, samples):
            return {"loss": 0.0}

    one = run(artifact, versions=1, trainer=Still, codec="float32", fleet={"buffer": {"size": 12}})
    assert one.versions == 1
    assert one.accepted == 12


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"count": 0}, "at least one"),
        ({"fleet": {"bufer": {"size": 6}}}, "did you mean 'buffer'"),
        ({"availability": "comuter"}, "did you mean 'commuter'"),
        ({"classes": ["fone"]}, "did you mean 'phone'"),
        ({"codec": "eden(bits=9)"}, "codec"),
        ({"count": 5, "fleet": {"buffer": {"size": 6, "flush_after_s": 0.0}}}, "size = 5"),
    ],
)
def test_what_does_not_exist_is_refused_before_anything_starts(artifact, options, said):
    """With the nearest word that does."""
    with pytest.raises(ConfigError) as caught:
        run(artifact, **options)
    assert said in str(caught.value)


def test_too_few_samples_for_the_fleet_is_said(artifact):
    """A generator that ends early is no smaller fleet."""
    with pytest.raises(ConfigError, match="not for 12"):
        lichen.simulate(artifact, list(devices(5, 0)), count=12, runtimes=("numpy",))


def test_a_device_without_power_keeps_its_outbox(artifact, tmp_path):
    """It boots on the same disk and box, and no sample or update is anybody else's."""
    seen = {}

    def look(fleet: VirtualFleet):
        for device in fleet.devices:
            if device.on:
                seen.setdefault(device.name, set()).add(device.incarnation)

    result = run(artifact, progress=look, **replace_window(HARD))
    assert result.losses > 0
    assert all(len(incarnations) == 1 for incarnations in seen.values())
    assert len({next(iter(incarnations)) for incarnations in seen.values()}) == len(seen)


def test_a_device_that_comes_back_goes_on(artifact):
    """One after the other has power, twice: no version is made but of devices that were off before."""

    class Turns:
        def windows(self, device, seed):
            return iter([(100.0 * device, 100.0 * (device + 1)), (1000.0 + 100.0 * device, float("inf"))])

    buffer = {"size": 4, "flush_after_s": 5000.0}
    result = run(
        artifact, count=4, versions=2, fleet={"buffer": buffer}, availability=Turns(), longest_s=4000.0
    )
    assert result.versions == 2
    assert result.accepted == 8


def replace_window(options):
    """The same, with shorter windows."""
    return {**options, "availability": {"kind": "lognormal", "on_s": 20.0, "off_s": 10.0}}


def test_state_is_left_to_look_at(artifact, tmp_path):
    """``state`` is a coordinator's folder like any other."""
    result = run(artifact, state=tmp_path / "state")
    assert (Path(tmp_path) / "state" / "coordinator.pub").exists()
    assert replace(result, wall_s=0.0) == result


def test_large_updates_go_in_chunks_over_a_slow_link(tmp_path):
    """Credit, ranges and part files are passed through as on a real link, and take its time."""
    large = digits_artifact(tmp_path / "large", hidden=400)
    options = {"count": 3, "versions": 1, "codec": "float32", "fleet": {"buffer": {"size": 3}}}
    link = simulation.DeviceClass(name="lte", up_bytes_s=20_000.0, down_bytes_s=50_000.0, latency_s=0.1)
    quick = run(large, **options)
    slow = run(large, classes=[link], **options)
    assert slow.payload_bytes == quick.payload_bytes == 3 * 4 * large.layout.size
    assert slow.virtual_s > quick.virtual_s + 4 * large.layout.size / 20_000
    assert slow.accepted == quick.accepted == 3


def test_leases_are_granted_to_virtual_devices(artifact):
    """Selection by lease goes over signed commands, which devices check as they do manifests."""
    selection = {"kind": "train", "in_flight": 6}
    result = run(artifact, fleet={"buffer": {"size": 3}, "selection": selection})
    assert result.versions == 4
    assert result.accepted >= 12


def test_a_folder_of_somebody_elses_is_not_cleared(artifact, tmp_path):
    """One of an earlier simulation is."""
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "letter").write_text("keep")
    with pytest.raises(ConfigError, match="not empty"):
        run(artifact, state=tmp_path / "mine")
    assert (tmp_path / "mine" / "letter").read_text() == "keep"
    first = run(artifact, versions=1, state=tmp_path / "state")
    assert run(artifact, versions=1, state=tmp_path / "state") == first


def test_a_slow_device_ends_with_the_plan_s_time(artifact):
    """Its update counts for the steps that it took: three of ten seconds in half a minute."""
    slow = simulation.DeviceClass(name="slow", step_s=10.0, start_s=0.0)
    options = {"classes": [slow], "versions": 1, "fleet": {"buffer": {"size": 12}}}
    cut = run(artifact, plan={**PLAN, "deadline_s": 30.0}, **options)
    whole = run(artifact, plan={**PLAN, "deadline_s": 86400.0}, **options)
    assert 30 < cut.virtual_s < 35
    assert whole.virtual_s > 100
    assert cut.state_hash != whole.state_hash


def test_devices_of_a_simulation_keep_what_their_updates_leave_out(artifact, tmp_path):
    """Updates of their own lengths, journalled and replayed; and what was left out makes other ones of them
    than they are without it."""
    codec = "sparse(bits=1,keep=0.05)"
    kept = run(artifact, codec=codec, state=tmp_path / "state")
    lost = run(artifact, codec="sparse(bits=1,keep=0.05,feedback=0)")
    assert kept.state_hash != lost.state_hash
    assert kept == run(artifact, codec=codec, state=tmp_path / "again")
    report = audit(tmp_path / "state")
    assert report.balanced, report.faults
    assert report.versions_ok == kept.versions
