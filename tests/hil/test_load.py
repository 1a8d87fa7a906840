"""Light devices on a real broker and a real coordinator; the full size is `python -m hil.load`."""

import json

import pytest

from hil.load.__main__ import main
from hil.load.fleet import LightFleet, LoadOptions

pytestmark = pytest.mark.process


@pytest.mark.mosquitto
def test_a_hundred_devices_are_all_served(tmp_path):
    """Every update is accepted, no device goes without, the books balance; a stop of the coordinator's whole
    process only makes them wait, and what has gathered then is bounded."""
    options = LoadOptions(
        devices=100,
        updates=400,
        buffer=50,
        publish_every_s=0.2,
        training_s=0.2,
        ramp_s=0.5,
        stall_s=0.5,
        broker="mosquitto",
    )
    report = LightFleet(tmp_path / "fleet", options).run()
    assert (report.accepted, report.updates, report.refused) == (400, 400, {})
    assert report.fewest >= 1
    assert report.balanced
    assert report.online_peak == 100
    assert (report.inbox_dropped, report.outgoing_dropped, report.reconnects) == (0, 0, 0)
    assert 0 < report.inbox_peak <= 400


@pytest.mark.mosquitto
def test_the_command_reports_as_json(capsys):
    """`python -m hil.load --json`: one object, exit code 0 if all is well."""
    words = "--devices 10 --updates 20 --buffer 5 --ramp-s 0.1 --training-s 0.1 --broker mosquitto --json"
    assert main(words.split()) == 0
    report = json.loads(capsys.readouterr().out)
    assert (report["accepted"], report["balanced"]) == (20, True)


def test_a_broker_that_is_not_there_is_an_error(capsys):
    """Said in one line; exit code 1."""
    assert main(["--devices", "1", "--updates", "1", "--broker", "mqtt://127.0.0.1:1"]) == 1
    assert "error:" in capsys.readouterr().err
