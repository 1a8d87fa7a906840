"""Renewed certificates: by the authority that is there, for the key that is there or another."""

import datetime
import json
import os
import ssl
import subprocess
import sys
from dataclasses import replace

import pytest
from cryptography import x509
from cryptography.hazmat.primitives.serialization import load_pem_private_key

from broker_coordinator.fleet.authority import Authority
from broker_coordinator.fleet.folder import FleetFolder, FleetPlan
from broker_coordinator.fleet.registry import write_registry
from broker_coordinator.fleet.renewal import renew_broker, renew_devices
from fl_io.tls import TlsFiles, Trust
from fl_protocol.errors import ConfigError, StorageError


@pytest.fixture
def fleet(tmp_path):
    """A fleet ``barn``; pi-07's certificate ends in 20 days, pi-08's never."""
    made = FleetFolder.create(tmp_path / "barn", FleetPlan(name="barn", hosts=("broker.example",)))
    made.enroll("pi-07", days=20)
    made.enroll("pi-08")
    return made


def certificate(path):
    return x509.load_pem_x509_certificate(path.read_bytes())


def device_file(fleet, device, name="device.pem"):
    return fleet.path / "devices" / device / name


def void(fleet):
    """The serials on the broker's list."""
    listed = x509.load_pem_x509_crl((fleet.broker.path / "revoked.pem").read_bytes())
    return {f"{entry.serial_number:x}" for entry in listed}


def killed(fleet, call, point):
    """Begin a renewal that dies by a crash at this point."""
    code = (
        "import sys; from pathlib import Path; from broker_coordinator.fleet.folder import FleetFolder\n"
        "from broker_coordinator.fleet.renewal import renew_broker, renew_devices\n"
        f"fleet = FleetFolder(Path(sys.argv[1])); {call}"
    )
    environment = {**os.environ, "LICHEN_CRASH_POINT": point}
    words = [sys.executable, "-c", code, str(fleet.path)]
    assert subprocess.run(words, env=environment, check=False, timeout=60).returncode < 0


def belong_together(path, key):
    private = load_pem_private_key(key.read_bytes(), None)
    return certificate(path).public_key() == private.public_key()


def test_the_same_key_gets_a_later_end_and_nobody_is_cut_off(fleet):
    """The certificate before holds on: it ends sooner by itself."""
    authority = (fleet.path / "ca.pem").read_bytes()
    key = device_file(fleet, "pi-07", "device.key").read_bytes()
    before = certificate(device_file(fleet, "pi-07"))
    ((renewed,), _) = renew_devices(fleet, ["pi-07"], days=90)
    after = certificate(renewed.path / "device.pem")
    assert device_file(fleet, "pi-07", "device.key").read_bytes() == key
    assert after.public_key() == before.public_key()
    assert after.not_valid_after_utc.isoformat() == renewed.expires == fleet.registry.devices["pi-07"].expires
    assert renewed.old_holds_until == before.not_valid_after_utc.isoformat()
    assert void(fleet) == set()
    assert (fleet.path / "ca.pem").read_bytes() == authority
    after.verify_directly_issued_by(x509.load_pem_x509_certificate(authority))


def test_whoever_is_revoked_has_no_certificate_left(fleet):
    """All that held on are void together; so they are when the device is enrolled anew, or gets a new key."""
    issued = [fleet.registry.devices["pi-07"].serial]
    for _ in range(2):
        issued.append(renew_devices(fleet, ["pi-07"], days=90)[0][0].serial)
    fleet.revoke("pi-07")
    assert void(fleet) == set(issued)
    others = [fleet.registry.devices["pi-08"].serial, renew_devices(fleet, ["pi-08"])[0][0].serial]
    renew_devices(fleet, ["pi-08"], new_key=True)
    assert void(fleet) == {*issued, *others}


def test_an_end_that_comes_sooner_holds_at_once(fleet):
    """A certificate without end must not outlive one that was to replace it."""
    old = fleet.registry.devices["pi-08"].serial
    ((renewed,), _) = renew_devices(fleet, ["pi-08"], days=30)
    assert renewed.old_holds_until == ""
    assert void(fleet) == {old}


def test_a_kill_in_a_shorter_renewal_needs_no_new_key(fleet):
    """The certificate in the folder is void, and shows all the same which key is the device's."""
    old = fleet.registry.devices["pi-08"].serial
    for _ in range(2):
        killed(fleet, "renew_devices(fleet, ['pi-08'], days=30)", "fleet.registry.durable")
        assert f"{certificate(device_file(fleet, 'pi-08')).serial_number:x}" == old
        assert old in fleet.registry.void
    renew_devices(fleet, ["pi-08"], days=20)
    assert belong_together(device_file(fleet, "pi-08"), device_file(fleet, "pi-08", "device.key"))
    (newest,) = fleet.registry.devices["pi-08"].serials  # those of thirty days would outlast it
    assert f"{certificate(device_file(fleet, 'pi-08')).serial_number:x}" == newest
    assert len(void(fleet)) == 3
    renew_devices(fleet, ["pi-08"], days=30)
    device_file(fleet, "pi-08").write_bytes(Authority.make("barn").issue_client("pi-08").certificate)
    with pytest.raises(ConfigError, match="is void, or none of ours"):
        renew_devices(fleet, ["pi-08"])


def test_of_earlier_certificates_each_holds_to_its_own_end_and_is_then_forgotten(fleet):
    """One that would outlast the newest is void, the others are not; a month past its end none is listed."""
    first = fleet.registry.devices["pi-07"]
    renew_devices(fleet, ["pi-07"], days=90)
    second = fleet.registry.devices["pi-07"]
    renew_devices(fleet, ["pi-07"], days=40)
    assert fleet.registry.devices["pi-07"].earlier == {first.serial: first.expires}
    assert void(fleet) == {second.serial}
    end = datetime.datetime.fromisoformat(first.expires)
    for days, left in ((29, 1), (31, 0)):
        now = end + datetime.timedelta(days=days)
        assert len(fleet.registry.pruned(now).devices["pi-07"].earlier) == left
    day = datetime.timedelta(days=1)
    over = (datetime.datetime.now(datetime.UTC) - 31 * day).isoformat(timespec="seconds")
    entry = replace(fleet.registry.devices["pi-07"], earlier={first.serial: over})
    write_registry(
        fleet.path / "registry.json",
        replace(fleet.registry, devices={**fleet.registry.devices, "pi-07": entry}),
    )
    fleet.enroll("pi-09")
    assert fleet.registry.devices["pi-07"].earlier == {}
    assert void(fleet) == {second.serial}


def test_without_days_it_is_valid_for_as_long_as_before(fleet):
    """Twenty days from now; or for ever."""
    renewed, _ = renew_devices(fleet, ["pi-07", "pi-08"])
    end = datetime.datetime.fromisoformat(renewed[0].expires)
    left = end - datetime.datetime.now(datetime.UTC)
    assert datetime.timedelta(days=19, hours=23) < left <= datetime.timedelta(days=20)
    assert renewed[1].expires == ""
    assert certificate(device_file(fleet, "pi-08")).not_valid_after_utc.year == 9999


def test_a_new_key_voids_the_old_ones_certificate(fleet):
    """And the two new files belong together."""
    before = certificate(device_file(fleet, "pi-08"))
    ((renewed,), _) = renew_devices(fleet, ["pi-08"], new_key=True)
    after = certificate(device_file(fleet, "pi-08"))
    assert after.public_key() != before.public_key()
    assert belong_together(device_file(fleet, "pi-08"), device_file(fleet, "pi-08", "device.key"))
    assert (renewed.new_key, void(fleet)) == (True, {f"{before.serial_number:x}"})


def test_a_key_that_was_given_up_does_not_come_back(fleet, tmp_path):
    """Nor does a key get in by a file that was put there."""
    old = device_file(fleet, "pi-08").read_bytes()
    renew_devices(fleet, ["pi-08"], new_key=True)
    device_file(fleet, "pi-08").write_bytes(old)
    with pytest.raises(ConfigError, match="is void, or none of ours"):
        renew_devices(fleet, ["pi-08"])
    for foreign in (
        device_file(fleet, "pi-07").read_bytes(),
        Authority.make("barn").issue_client("pi-08").certificate,
        b"rubbish",
    ):
        device_file(fleet, "pi-08").write_bytes(foreign)
        with pytest.raises(ConfigError):
            renew_devices(fleet, ["pi-08"])
    authority = fleet.authority()
    with pytest.raises(ConfigError, match="not one of this authority"):
        authority.issue_client("pi-08", like=Authority.make("barn").issue_client("pi-08").certificate)
    with pytest.raises(ConfigError, match="not pi-08's certificate"):
        authority.issue_client("pi-08", like=device_file(fleet, "pi-07").read_bytes())


def test_all_are_renewed_or_none(fleet):
    """A stranger, one that is revoked, or one whose files went elsewhere: nothing changes."""
    fleet.revoke("pi-08")
    before = fleet.registry
    for other, why in (("pi-70", "never enrolled"), ("pi-08", "is revoked")):
        with pytest.raises(StorageError, match=why):
            renew_devices(fleet, ["pi-07", other])
    device_file(fleet, "pi-07").unlink()
    with pytest.raises(StorageError, match="cannot read") as refusal:
        renew_devices(fleet, ["pi-07"])
    assert "--new-key" in refusal.value.hint
    assert fleet.registry == before


@pytest.mark.parametrize("point", ["fleet.registry.durable", "fleet.file.durable", "fleet.file.durable:2"])
def test_a_kill_in_a_renewal_is_mended_by_the_next(fleet, point):
    """Whatever was issued is known: it is on the list once the device is revoked."""
    killed(fleet, "renew_devices(fleet, ['pi-07'], days=90)", point)
    renew_devices(fleet, ["pi-07"], days=90)
    serials = fleet.registry.devices["pi-07"].serials
    assert len(serials) == 3
    assert belong_together(device_file(fleet, "pi-07"), device_file(fleet, "pi-07", "device.key"))
    fleet.revoke("pi-07")
    assert void(fleet) == set(serials)


def test_a_broker_gets_other_names_for_its_key(fleet):
    """Those that it has stay, unless they are dropped."""
    key = (fleet.broker.path / "broker.key").read_bytes()
    renewed, _ = renew_broker(fleet, add=["b.example", "192.0.2.9"])
    assert renewed.hosts == ("broker.example", "127.0.0.1", "localhost", "b.example", "192.0.2.9")
    renewed, _ = renew_broker(fleet, drop=["localhost"], add=["b.example"])
    assert renewed.hosts == ("broker.example", "127.0.0.1", "b.example", "192.0.2.9")
    made = certificate(fleet.broker.path / "broker.pem")
    names = made.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    assert {str(name.value) for name in names} == set(renewed.hosts)
    assert (fleet.broker.path / "broker.key").read_bytes() == key
    assert belong_together(fleet.broker.path / "broker.pem", fleet.broker.path / "broker.key")


@pytest.mark.parametrize(
    ("change", "why"),
    [
        ({"drop": ["broker.example"]}, r"dialled: \[identity\] broker"),
        ({"drop": ["127.0.0.1"]}, "dialled: broker in"),
        ({"drop": ["b.example"]}, "not in the broker's certificate"),
        ({"add": [""]}, "no broker's URL"),
        ({"add": ["bröker"]}, "no host's name"),
    ],
)
def test_a_name_that_is_needed_or_none_is_refused(fleet, change, why):
    """Before anything is written."""
    before = (fleet.broker.path / "broker.pem").read_bytes()
    with pytest.raises(ConfigError, match=why):
        renew_broker(fleet, **change)
    assert (fleet.broker.path / "broker.pem").read_bytes() == before


def test_a_new_key_of_the_broker_voids_the_old_certificate(fleet):
    """And each that the old key had before; for those who heed the list. Devices stay as they are."""
    first = certificate(fleet.broker.path / "broker.pem")
    renew_broker(fleet, add=["second.example"])
    assert void(fleet) == set()
    before = certificate(fleet.broker.path / "broker.pem")
    renew_broker(fleet, new_key=True)
    after = certificate(fleet.broker.path / "broker.pem")
    assert after.public_key() != before.public_key()
    assert belong_together(fleet.broker.path / "broker.pem", fleet.broker.path / "broker.key")
    assert void(fleet) == {f"{first.serial_number:x}", f"{before.serial_number:x}"}
    assert fleet.registry.active == {"pi-07", "pi-08"}
    ca = fleet.path / "ca.pem"
    ca.write_bytes(ca.read_bytes() + (fleet.broker.path / "revoked.pem").read_bytes())
    renew_broker(fleet)  # as the guide has it: a list of revocations behind the authority
    assert Trust(TlsFiles(ca=ca)).context.verify_flags & ssl.VERIFY_CRL_CHECK_LEAF


def test_a_kill_between_the_brokers_two_files_is_mended_by_the_next_renewal(fleet):
    """The certificate follows the key that is there."""
    killed(fleet, "renew_broker(fleet, new_key=True)", "fleet.file.durable")
    pair = fleet.broker.path / "broker.pem", fleet.broker.path / "broker.key"
    assert not belong_together(*pair)
    renew_broker(fleet)
    assert belong_together(*pair)


def test_a_registry_of_before_is_read_and_only_what_is_new_is_written(fleet):
    """Releases that know nothing of certificates that hold on read it, as long as there are none."""
    path = fleet.path / "registry.json"
    assert "earlier" not in path.read_text()
    renew_devices(fleet, ["pi-07"], days=90)
    listed = {entry["device"]: entry for entry in json.loads(path.read_text())["devices"]}
    assert len(listed["pi-07"]["earlier"]) == 1
    assert "earlier" not in listed["pi-08"]
    listed["pi-07"]["earlier"] = list(listed["pi-07"]["earlier"])
    body = {**json.loads(path.read_text()), "devices": list(listed.values())}
    path.write_text(json.dumps(body))
    assert fleet.registry.devices["pi-07"].earlier == {
        listed["pi-07"]["earlier"][0]: listed["pi-07"]["expires"]
    }
