"""``lichen fleet``, as it is typed."""

import json

import pytest
from click.testing import CliRunner

from broker_coordinator.fleet.command import fleet
from fl_protocol.errors import StorageError


def run(*words):
    """Exit code, and what it printed."""
    result = CliRunner().invoke(fleet, [str(word) for word in words])
    if result.exception is not None and not isinstance(result.exception, SystemExit):
        raise result.exception
    return result.exit_code, result.output


@pytest.fixture
def barn(tmp_path):
    """A fleet made by the command."""
    code, said = run("init", tmp_path / "barn", "--host", "broker.example")
    assert code == 0
    assert f"lichen coordinator run {tmp_path / 'barn' / 'fleet.toml'}" in said
    return tmp_path / "barn"


def test_enroll_revoke_and_list_tell_the_same(barn, tmp_path):
    """Each says what is to be done next."""
    code, said = run("enroll", "pi-07", "--fleet", barn, "--out", tmp_path / "card")
    assert code == 0
    assert str(tmp_path / "card") in said
    assert "no mosquitto runs here" in said
    issued = json.loads(run("enroll", "pi-08", "--fleet", barn, "--days", "10", "--json")[1])
    assert run("revoke", "pi-07", "--fleet", barn)[0] == 0
    listed = {entry["device"]: entry for entry in json.loads(run("list", "--fleet", barn, "--json")[1])}
    assert listed["pi-07"]["revoked"]
    assert (listed["pi-08"]["serial"], listed["pi-08"]["revoked"]) == (issued["serial"], "")
    table = run("list", "--fleet", barn)[1]
    assert "pi-07" in table
    assert "pi-08" in table


def test_a_revocation_that_the_broker_did_not_hear_of_fails(barn):
    """With the command's reason; the device is revoked all the same."""
    toml = barn / "fleet.toml"
    toml.write_text(toml.read_text().replace('reload = ""', 'reload = "false"'))
    run("enroll", "pi-07", "--fleet", barn)
    code, said = run("revoke", "pi-07", "--fleet", barn)
    assert code == 1
    assert "NOT told" in said
    assert json.loads(run("list", "--fleet", barn, "--json")[1])[0]["revoked"]


def test_revoking_a_stranger_is_a_mistake(barn):
    """A typing error must not look like a success."""
    with pytest.raises(StorageError, match="never enrolled"):
        run("revoke", "pi-70", "--fleet", barn)


def test_renewals_are_told_and_listed(barn):
    """What to carry where, until when the old one holds; the days that are left."""
    run("enroll", "pi-07", "--fleet", barn, "--days", "10")
    run("enroll", "pi-08", "--fleet", barn)
    code, said = run("renew", "pi-07", "--fleet", barn, "--days", "90", "--host", "b.example")
    assert code == 0
    assert "the broker's certificate is for broker.example" in said
    assert f"carry device.pem of {barn / 'devices' / 'pi-07'}" in said
    assert "holds on until" in said
    listed = {entry["device"]: entry for entry in json.loads(run("list", "--fleet", barn, "--json")[1])}
    assert (listed["pi-07"]["days_left"], listed["pi-08"]["days_left"]) == (89, None)
    assert "89" in run("list", "--fleet", barn)[1]
    made = json.loads(run("renew", "pi-08", "--new-key", "--fleet", barn, "--json")[1])
    assert (made["broker"], made["devices"][0]["new_key"]) == (None, True)
    assert made["devices"][0]["old_holds_until"] == ""


@pytest.mark.parametrize(
    "words", [[], ["--broker", "--days", "9"], ["a", "b", "--out", "x"], ["--broker", "--out", "x"]]
)
def test_a_renewal_of_nothing_is_wrong_usage(barn, words):
    """Or one with options of another."""
    assert run("renew", *words, "--fleet", barn)[0] == 2
