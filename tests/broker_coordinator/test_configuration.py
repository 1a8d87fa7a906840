"""FLEET.toml."""

import pytest

from broker_coordinator.configuration import read_fleet
from broker_coordinator.selection import LeaseSelection
from fl_protocol.errors import ConfigError

LEAST = 'fleet = "lab"\nstate = "state"\nartifact = "artifact"\n'


def read(folder, text):
    path = folder / "fleet.toml"
    path.write_text(text)
    return read_fleet(path)


def test_the_least_file_has_defaults_for_the_rest(tmp_path):
    """Three lines are a fleet; paths are relative to the file."""
    fleet = read(tmp_path, LEAST)
    assert fleet.state == tmp_path / "state"
    assert (fleet.task, fleet.broker, fleet.buffer.size, fleet.in_flight) == ("main", "auto", 10, 30)
    assert fleet.update.canonical_codec == "eden(bits=1)"


def test_every_table_is_read(tmp_path):
    """Each key of the reference reaches its field."""
    fleet = read(
        tmp_path,
        LEAST
        + """
        held_out = "x.npz"
        [plan]
        epochs = 5
        lr = 0.2
        [update]
        codec = "eden( bits=1, keep=0.25 )"
        [selection]
        kind = "train"
        in_flight = 7
        [buffer]
        size = 4
        flush_after_s = 60
        [staleness]
        kind = "hinge"
        [publish]
        retain = "never"
        """,
    )
    assert (fleet.plan.plan.epochs, fleet.plan.plan.lr, fleet.in_flight) == (5, 0.2, 7)
    assert fleet.selection.pacing.by_lease
    assert fleet.update.canonical_codec == "eden(bits=1,keep=0.25)"
    assert fleet.held_out == tmp_path / "x.npz"


def test_fedasync_keeps_ten_in_flight(tmp_path):
    """Three buffers of one update would be three devices, and stragglers soon hold those."""
    fleet = read(tmp_path, LEAST + '[buffer]\nkind = "fedasync"\nsize = 1\n')
    assert fleet.in_flight == 10
    assert fleet.choice == LeaseSelection(in_flight=10)


def test_all_faults_are_listed_at_once(tmp_path):
    """Unknown keys, wrong types and values out of range, each with its line."""
    with pytest.raises(ConfigError) as caught:
        read(tmp_path, LEAST + '[buffer]\nsiez = 4\n[plan]\nepochs = "five"\n[publish]\nkeep = 1\n')
    text = str(caught.value)
    assert "fleet.toml:5: buffer.siez" in text
    assert "did you mean 'size'" in text
    assert "plan.epochs" in text
    assert "keep must be at least 3" in text


@pytest.mark.parametrize(
    "line",
    [
        'fleet = "a b"',
        "[plan]\nlr = -1",
        "[plan]\nepochs = 0",
        '[selection]\nkind = "some"',
        "[selection]\nparticipation = 0.0",
        "[buffer]\nsize = 0",
        "[buffer]\nmin_updates = 11",
        '[update]\ncodec = "(("',
        '[publish]\nretain = "always"',
        "[ingest]\nbatch = 0",
        "[http]\nport = 70000",
        "[server]\nlr = 0.0",
        "[plan]\nclip = 1e39",
        f"[plan]\nmu = 1{'0' * 400}",
        f"[plan]\nmax_steps = {2**53}",
        f"[update]\nmax_examples = {2**53}",
    ],
)
def test_values_out_of_range_are_refused(tmp_path, line):
    """Said when the file is read, not when a fleet has trained for a night."""
    text = LEAST.replace('fleet = "lab"\n', "") + line if line.startswith("fleet") else LEAST + line
    with pytest.raises(ConfigError):
        read(tmp_path, text)
