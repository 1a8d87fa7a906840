"""The folder of a fleet: made once, and every operation leaves it whole."""

import json
import os
import stat
import subprocess
import sys
from pathlib import Path

import pytest
from cryptography import x509

from broker_coordinator.configuration import read_fleet
from broker_coordinator.fleet.authority import Authority
from broker_coordinator.fleet.folder import FleetFolder, FleetPlan
from broker_coordinator.fleet.mosquitto import BrokerFolder, notify_broker
from broker_coordinator.fleet.registry import read_registry
from edge_agent.configuration import read_agent_configuration
from fl_protocol.errors import ConfigError, StorageError


@pytest.fixture
def fleet(tmp_path):
    """A fleet ``barn`` whose broker is reached as broker.example."""
    return FleetFolder.create(
        tmp_path / "barn", FleetPlan(name="barn", hosts=("broker.example", "192.0.2.1"))
    )


def certificate(path):
    return x509.load_pem_x509_certificate(path.read_bytes())


def revoked(fleet):
    """The serials on the broker's list."""
    listed = x509.load_pem_x509_crl((fleet.broker.path / "revoked.pem").read_bytes())
    assert listed.is_signature_valid(certificate(fleet.path / "ca.pem").public_key())
    return {f"{entry.serial_number:x}" for entry in listed}


def rights_of(fleet, user):
    """The lines of the rights file under a user."""
    text = (fleet.broker.path / "rights.acl").read_text()
    blocks = dict(block.partition("\n")[::2] for block in text.split("user ")[1:])
    return [line for line in blocks.get(user, "").splitlines() if line]


def test_what_init_makes_is_ready_to_run(fleet):
    """Coordinator and agent read their files, and find in them what the other has."""
    coordinator = read_fleet(fleet.path / "fleet.toml")
    assert coordinator.broker == "mqtts://127.0.0.1:8884"
    assert coordinator.tls.files.certificate.exists()
    device = fleet.enroll("pi-07", state="/var/lib/lichen").path
    agent = read_agent_configuration(device / "agent.toml")
    assert (agent.device, agent.fleet, agent.broker) == ("pi-07", "barn", "mqtts://broker.example:8883")
    assert str(agent.state) == "/var/lib/lichen"
    assert [*agent.trusted_keys] == [(fleet.path / "coordinator" / "coordinator.pub").read_text().strip()]
    assert agent.tls.ca.read_bytes() == coordinator.tls.ca.read_bytes()


def test_a_broker_elsewhere_has_its_own_paths_and_listeners(tmp_path):
    """In a container: where its folder is mounted, and a coordinator that is another host."""
    plan = FleetPlan(
        name="barn", hosts=("h",), coordinator_host="mosquitto", broker_path=Path("/mosquitto/config")
    )
    made = FleetFolder.create(tmp_path / "barn", plan)
    lines = (made.broker.path / "mosquitto.conf").read_text().splitlines()
    paths = [line.partition(" ")[2] for line in lines if "file " in line and not line.startswith("#")]
    assert len(paths) == 10
    for path in paths:
        there = Path(path).relative_to("/mosquitto/config")
        assert there == Path("run/mosquitto.pid") or (made.broker.path / there).exists()
    assert "listener 8884" in lines
    assert made.configuration.broker == "mqtts://mosquitto:8884"


def test_private_keys_are_their_owners_alone(fleet):
    """Every one of them, whatever the umask."""
    before = os.umask(0)
    try:
        fleet.enroll("pi-07")
    finally:
        os.umask(before)
    keys = list(fleet.path.rglob("*.key"))
    assert len(keys) == 5
    assert {stat.S_IMODE(path.stat().st_mode) for path in keys} == {0o600}
    assert stat.S_IMODE((fleet.path / "private").stat().st_mode) == 0o700


def test_certificates_outlive_every_clock_and_say_what_they_are_for(fleet):
    """A device that boots in 1970 can verify them; a device's key makes no broker."""
    device = fleet.enroll("pi-07").path / "device.pem"
    purposes = {}
    for path in (fleet.broker.path / "broker.pem", device, fleet.path / "private" / "coordinator-tls.pem"):
        made = certificate(path)
        made.verify_directly_issued_by(certificate(fleet.path / "ca.pem"))
        assert (made.not_valid_before_utc.year, made.not_valid_after_utc.year) == (1970, 9999)
        (purpose,) = made.extensions.get_extension_for_class(x509.ExtendedKeyUsage).value
        purposes[made.subject.rfc4514_string()] = purpose._name
    assert purposes == {"CN=broker": "serverAuth", "CN=pi-07": "clientAuth", "CN=@coordinator": "clientAuth"}
    names = certificate(fleet.broker.path / "broker.pem").extensions.get_extension_for_class(
        x509.SubjectAlternativeName
    )
    assert names.value.get_values_for_type(x509.DNSName) == ["broker.example", "localhost"]
    assert [str(a) for a in names.value.get_values_for_type(x509.IPAddress)] == ["192.0.2.1", "127.0.0.1"]


def test_rights_are_written_out_line_by_line(fleet):
    """Blobs, tasks and presence are the coordinator's to write; a device has its own branches."""
    fleet.enroll("pi-07")
    fleet.enroll("pi-08")
    assert rights_of(fleet, "pi-07") == [
        "topic write fl1/barn/up/pi-07/#",
        "topic write fl1/barn/state/pi-07",
        "topic read fl1/barn/down/pi-07/#",
        "topic read fl1/barn/task/#",
        "topic read fl1/barn/blob/#",
        "topic read fl1/barn/coordinator",
    ]
    writers = [
        user
        for user in ("@coordinator", "pi-07", "pi-08")
        for line in rights_of(fleet, user)
        if "write" in line and ("/blob/" in line or "/task/" in line or line.endswith("/coordinator"))
    ]
    assert writers == ["@coordinator"] * 3
    assert "pattern" not in (fleet.broker.path / "rights.acl").read_text()


def test_a_revoked_device_loses_certificate_and_rights(fleet):
    """For good: enrolled anew it has another certificate, and the old one stays void."""
    first = fleet.enroll("pi-07").serial
    fleet.enroll("pi-08")
    fleet.revoke("pi-07")
    assert revoked(fleet) == {first}
    assert rights_of(fleet, "pi-07") == []
    assert fleet.registry.active == {"pi-08"}
    second = fleet.enroll("pi-07").serial
    assert revoked(fleet) == {first}
    third = fleet.enroll("pi-07", renew=True).serial
    assert revoked(fleet) == {first, second}
    assert f"{certificate(fleet.path / 'devices' / 'pi-07' / 'device.pem').serial_number:x}" == third
    assert fleet.registry.active == {"pi-07", "pi-08"}
    fleet.revoke("pi-07")
    fleet.revoke("pi-07")
    assert revoked(fleet) == {first, second, third}


def test_an_end_that_the_operator_sets_is_the_certificates(fleet):
    """``--days``; the registry says when."""
    issued = fleet.enroll("pi-07", days=90)
    made = certificate(issued.path / "device.pem")
    assert made.not_valid_after_utc.isoformat() == issued.expires == fleet.registry.devices["pi-07"].expires


def test_nothing_is_overwritten(fleet, tmp_path):
    """No fleet, no enrolled device, no folder with something in it, no agent.toml that was edited."""
    with pytest.raises(StorageError, match="not an empty folder"):
        FleetFolder.create(fleet.path, FleetPlan(name="barn", hosts=("h",)))
    folder = fleet.enroll("pi-07").path
    with pytest.raises(StorageError, match="enrolled already") as refusal:
        fleet.enroll("pi-07")
    assert "--renew" in refusal.value.hint
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "thesis.tex").write_text("years of work")
    with pytest.raises(StorageError, match="not an empty folder"):
        fleet.enroll("pi-08", out=tmp_path / "full")
    assert "pi-08" not in fleet.registry.devices
    (folder / "agent.toml").write_text("# mine")
    fleet.enroll("pi-07", renew=True)
    assert (folder / "agent.toml").read_text() == "# mine"


@pytest.mark.parametrize("name", ["", "a/b", "#", "pi 07", ".hidden", "a" * 65, "@coordinator", "pi\nuser x"])
def test_a_name_that_could_mean_something_to_the_broker_is_refused(fleet, name):
    """Wildcards, levels, lines, and the coordinator's own."""
    with pytest.raises(ConfigError, match="1 to 64"):
        fleet.enroll(name)
    assert not fleet.registry.devices


def test_a_fleet_without_identities_is_no_folder_of_ours(tmp_path):
    """Its fleet.toml has no ``[identity]``."""
    (tmp_path / "fleet.toml").write_text('fleet = "f"\nstate = "s"\nartifact = "a"\n')
    with pytest.raises(ConfigError, match="no certificates"):
        FleetFolder(tmp_path)
    with pytest.raises(ConfigError, match=r"fleet\.toml"):
        FleetFolder(tmp_path / "nowhere")


@pytest.mark.parametrize("point", ["fleet.registry.durable", "fleet.file.written", "fleet.file.durable:5"])
def test_a_kill_in_the_middle_is_mended_by_the_next_operation(fleet, point):
    """The registry is written first; whatever follows from it is written by the next enrolment."""
    code = (
        "import sys; from pathlib import Path; from broker_coordinator.fleet.folder import FleetFolder\n"
        "FleetFolder(Path(sys.argv[1])).enroll('pi-07')"
    )
    environment = {**os.environ, "LICHEN_CRASH_POINT": point}
    done = subprocess.run(
        [sys.executable, "-c", code, str(fleet.path)], env=environment, check=False, timeout=60
    )
    assert done.returncode < 0
    assert fleet.registry.active == {"pi-07"}
    fleet.enroll("pi-08")
    assert rights_of(fleet, "pi-07")
    lost = fleet.registry.devices["pi-07"].serial
    issued = fleet.enroll("pi-07", renew=True)
    assert read_agent_configuration(issued.path / "agent.toml").device == "pi-07"
    assert revoked(fleet) == {lost}


WITHOUT_NAMES = {"format": "lichen-registry/1", "fleet": "barn", "edition": 1, "devices": [{}], "void": {}}


@pytest.mark.parametrize("damage", ["", "[]", "{}", json.dumps(WITHOUT_NAMES)])
def test_a_damaged_registry_is_said_so(fleet, damage):
    """And not begun anew: all devices would be strangers."""
    path = fleet.path / "registry.json"
    path.write_text(damage)
    with pytest.raises(ConfigError, match="no registry"):
        read_registry(path)
    with pytest.raises(ConfigError):
        fleet.enroll("pi-07")


def test_an_authority_needs_its_own_key(fleet):
    """Another's is refused before anything is signed."""
    other = Authority.make("barn")
    (fleet.path / "private" / "ca.key").write_bytes(other.key)
    with pytest.raises(ConfigError, match="not that of its certificate"):
        fleet.enroll("pi-07")
    assert not fleet.registry.devices


def test_the_broker_is_told_by_a_command_of_the_operator(tmp_path):
    """It ran, or it failed and that is said; the pid of another program is not signalled."""
    broker = BrokerFolder(path=tmp_path, seen_as=tmp_path)
    told = notify_broker(broker, f"touch '{tmp_path / 'a file'}'")
    assert told.done
    assert (tmp_path / "a file").exists()
    assert notify_broker(broker, "false").failed
    assert "no-such-program" in notify_broker(broker, "no-such-program --reload").sentence
    broker.pid_file.parent.mkdir()
    broker.pid_file.write_text(str(os.getpid()))
    ours = notify_broker(broker, "")
    assert not ours.done
    assert "kill -HUP" in ours.sentence


def test_the_registry_holds_no_secret(fleet):
    """Coordinators and backups may read it."""
    fleet.enroll("pi-07")
    body = json.loads((fleet.path / "registry.json").read_text())
    assert body["devices"][0].keys() == {"device", "serial", "enrolled", "expires", "revoked"}
