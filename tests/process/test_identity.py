"""Who may do what: a fleet with certificates on a real mosquitto, and everybody who is not to be let in."""

import datetime
import json
import shutil
import subprocess
import sys
import urllib.request
from collections.abc import Iterator
from dataclasses import replace

import psutil
import pytest
from certificates import Authority as ForeignAuthority
from certificates import BrokerFiles, tls_mosquitto
from secure_fleet import SecureFleet, mosquitto_program

from broker_coordinator.fleet.authority import Authority
from broker_coordinator.fleet.renewal import renew_broker, renew_devices
from broker_coordinator.storage.sqlite_store import SqliteStore
from fl_io.ed25519 import new_private_key, signer
from fl_io.mqtt import TlsFiles
from fl_protocol.command import Command
from fl_protocol.presence import DevicePresence
from fl_protocol.receipt import Receipt
from fl_protocol.signed import COMMAND_CONTEXT, TASK_CONTEXT, peek, seal
from fl_protocol.task import TaskManifest
from fl_protocol.topics import FleetTopics
from fl_protocol.transport import Disconnected, Received
from fl_protocol.update import UpdateHeader
from hil.mosquitto import free_ports

pytestmark = [pytest.mark.process, pytest.mark.mosquitto]

MIB = 1 << 20
TOPICS = FleetTopics("barn")
UPDATE = b"0123456789abcdef"


@pytest.fixture
def barn(tmp_path) -> Iterator[SecureFleet]:
    """A fleet whose broker runs, and nobody else."""
    fleet = SecureFleet(tmp_path)
    fleet.start_broker()
    yield fleet
    fleet.stop()


@pytest.fixture
def quiet(barn) -> SecureFleet:
    """With two enrolled devices: what passes is what a test says."""
    for device in ("pi-01", "mole"):
        barn.fleet.enroll(device)
    return barn


def manifest_of_a_forger(fleet: SecureFleet) -> bytes:
    """Sealed by a key that no device trusts."""
    return seal(TASK_CONTEXT, b"\x80", signer(new_private_key()))


class TestTheDoor:
    """Who gets as far as MQTT."""

    def test_an_enrolled_device_is_let_in(self, quiet):
        """The others of this class would be refused for nothing otherwise."""
        assert quiet.client(quiet.files("pi-01")).admitted

    def test_nobody_without_a_certificate(self, quiet):
        """The handshake itself fails."""
        assert not quiet.client(TlsFiles(ca=quiet.path / "ca.pem")).admitted

    def test_nobody_of_a_foreign_authority(self, quiet):
        """Though its name is that of a device."""
        foreign = Authority.make("barn")
        files = quiet.issued("pi-01", foreign, datetime.datetime(2099, 1, 1, tzinfo=datetime.UTC))
        assert not quiet.client(files).admitted

    def test_nobody_whose_certificate_expired(self, quiet):
        """An end that the operator set holds at the broker, which has a clock."""
        ours = quiet.fleet.authority()
        day = datetime.timedelta(days=1)
        now = datetime.datetime.now(datetime.UTC)
        assert quiet.client(quiet.issued("pi-01", ours, now + day)).admitted
        assert not quiet.client(quiet.issued("pi-01", ours, now - day)).admitted

    def test_nobody_who_was_revoked(self, quiet):
        """Nor with the certificate that a renewal replaced; with the new one again."""
        quiet.fleet.enroll("gone")
        old = quiet.issued_copy("gone")
        assert quiet.client(old).admitted
        assert quiet.fleet.revoke("gone").done
        quiet.until(lambda: not quiet.client(old).admitted)
        quiet.fleet.enroll("gone")
        quiet.until(lambda: quiet.client(quiet.files("gone")).admitted)
        assert not quiet.client(old).admitted
        quiet.fleet.enroll("gone", renew=True)
        quiet.until(lambda: quiet.client(quiet.files("gone")).admitted)
        assert not quiet.client(old).admitted

    def test_a_device_does_not_believe_a_broker_with_another_devices_certificate(self, quiet, tmp_path):
        """A stolen device's key, or any other authority's, makes no broker."""
        files = quiet.files("mole")
        stolen = BrokerFiles(certificate=files.certificate, key=files.key, serial=0)
        foreign = ForeignAuthority(tmp_path).broker("127.0.0.1")
        for pair in (stolen, foreign):
            with tls_mosquitto(mosquitto_program(), tmp_path, pair, quiet.path / "ca.pem") as port:
                assert not quiet.client(quiet.files("pi-01"), port=port).admitted
                quiet.hang_up()


class TestRenewal:
    """mosquitto reads what was renewed, and nobody has to come to the door anew."""

    def test_a_broker_under_another_name_takes_devices_while_it_runs(self, quiet):
        """127.0.0.2 was no name of it; the connection under the old one stands."""
        standing = quiet.device("mole")
        assert not quiet.client(quiet.files("pi-01"), host="127.0.0.2").admitted
        quiet.clients.pop().transport.stop()
        assert renew_broker(quiet.fleet, add=["127.0.0.2"])[1].done
        quiet.until(lambda: quiet.client(quiet.files("pi-01"), host="127.0.0.2").admitted)
        standing.transport.subscribe([f"{TOPICS.prefix}down/mole/#"])
        quiet.insider().say(TOPICS.command("mole"), b"fence")
        assert standing.heard_until(TOPICS.command("mole")) == []

    def test_a_broker_with_another_key_is_believed(self, quiet):
        """And one who heeds the list of revocations believes the old certificate no longer."""
        old = tuple(
            shutil.copy(quiet.fleet.broker.path / f"broker.{part}", quiet.folder) for part in ("pem", "key")
        )
        stolen = BrokerFiles(certificate=old[0], key=old[1], serial=0)
        assert renew_broker(quiet.fleet, new_key=True)[1].done
        quiet.until(lambda: quiet.client(quiet.files("pi-01")).admitted)
        heeding = quiet.folder / "ca-and-revoked.pem"
        revoked = (quiet.fleet.broker.path / "revoked.pem").read_bytes()
        heeding.write_bytes((quiet.path / "ca.pem").read_bytes() + revoked)
        files = replace(quiet.files("pi-01"), ca=heeding)
        assert quiet.client(files).admitted
        with tls_mosquitto(mosquitto_program(), quiet.folder, stolen, quiet.path / "ca.pem") as port:
            assert not quiet.client(files, port=port).admitted
            quiet.hang_up()

    def test_a_renewed_device_comes_with_either_certificate_until_it_is_revoked(self, quiet):
        """The old one is good for the way that the new one has to go."""
        quiet.fleet.enroll("late", days=10)
        old = quiet.issued_copy("late")
        renew_devices(quiet.fleet, ["late"], days=90)
        for files in (old, quiet.files("late")):
            quiet.until(lambda files=files: quiet.client(files).admitted)
            quiet.hang_up()
        quiet.fleet.revoke("late")
        for files in (old, quiet.files("late")):
            quiet.until(lambda files=files: not quiet.client(files).admitted)

    def test_a_device_comes_with_what_was_carried_onto_it_meanwhile(self, quiet):
        """At its next connection, and nobody starts it again. A key whose certificate is still on its way is
        not used: the pair of before is shown, and refused."""
        quiet.fleet.enroll("carried")
        onto, thief = quiet.issued_copy("carried"), quiet.issued_copy("carried")
        device = quiet.client(onto, "carried").connect()
        renew_devices(quiet.fleet, ["carried"], new_key=True)
        quiet.until(lambda: not quiet.client(thief).admitted)
        device.transport.renew()
        device.next(Disconnected)
        assert not device.admitted
        for source, to, admitted in (
            (quiet.files("carried").key, onto.key, False),
            (quiet.files("carried").certificate, onto.certificate, True),
        ):
            shutil.copy(source, to)
            device.transport.renew()
            assert device.admitted == admitted


class TestTheRights:
    """What an enrolled device, ``mole``, can do to others: nothing."""

    @pytest.mark.parametrize(
        ("topic", "why"),
        [
            (TOPICS.begin("pi-01", UPDATE), "an update as another device"),
            (TOPICS.state("pi-01"), "another device's birth"),
            (TOPICS.event("pi-01"), "another device's event"),
            (TOPICS.task(), "a forged manifest"),
            (TOPICS.blob("a" * 26 + ".65536", 0), "a blob"),
            (TOPICS.coordinator, "the coordinator's presence"),
        ],
    )
    def test_what_it_may_not_say_reaches_nobody(self, quiet, topic, why):
        """PUBACK or not: what comes next from it comes first, and nothing is retained."""
        listener = quiet.insider()
        listener.transport.subscribe([f"{TOPICS.prefix}{branch}" for branch in ("up/#", "state/+", "task/#")])
        listener.transport.subscribe([f"{TOPICS.prefix}blob/#", TOPICS.coordinator])
        mole = quiet.device("mole")
        mole.say(topic, b"forged", retain=True)
        mole.say(TOPICS.event("mole"), b"fence")
        assert listener.heard_until(TOPICS.event("mole")) == [], why

    def test_it_cannot_command_or_answer_another_device(self, quiet):
        """Commands and receipts come from the coordinator."""
        victim = quiet.device("pi-01")
        victim.transport.subscribe([f"{TOPICS.prefix}down/pi-01/#"])
        mole, insider = quiet.device("mole"), quiet.insider()
        command = Command(kind="pause", device="pi-01", term=99, sequence=99).pack()
        mole.say(TOPICS.command("pi-01"), seal(COMMAND_CONTEXT, command, signer(new_private_key())))
        mole.say(TOPICS.receipt("pi-01", UPDATE), Receipt(state="done", epoch=9, term=9).pack())
        insider.say(TOPICS.task_for("pi-01"), b"fence")
        assert victim.heard_until(TOPICS.task_for("pi-01")) == []

    def test_it_hears_nothing_that_is_another_devices(self, quiet):
        """Neither what goes to it nor what comes from it; mosquitto grants the subscription, and delivers
        nothing."""
        mole = quiet.device("mole")
        mole.transport.subscribe(["#", f"{TOPICS.prefix}down/pi-01/#", f"{TOPICS.prefix}up/#"])
        mole.transport.subscribe([f"{TOPICS.prefix}state/+", f"{TOPICS.prefix}down/+/command"])
        insider, victim = quiet.insider(), quiet.device("pi-01")
        victim.say(TOPICS.state("pi-01"), b"birth")
        victim.say(TOPICS.begin("pi-01", UPDATE), b"update")
        insider.say(TOPICS.command("pi-01"), b"command")
        insider.say(TOPICS.command("mole"), b"fence")
        assert mole.heard_until(TOPICS.command("mole")) == []

    def test_it_cannot_throw_another_device_out(self, quiet):
        """Whatever client id it asks for, the broker knows it by its certificate."""
        victim = quiet.device("pi-01")
        quiet.device("mole", "pi-01")
        quiet.device("mole", "coordinator-barn")
        victim.transport.subscribe([f"{TOPICS.prefix}down/pi-01/#"])
        insider = quiet.insider()
        # A victim that was thrown out would have to connect again first.
        victim.say(TOPICS.state("pi-01"), b"alive")
        insider.say(TOPICS.task_for("pi-01"), b"fence", retain=True)
        assert isinstance(victim.next(Received, Disconnected), Received)
        insider.say(TOPICS.task_for("pi-01"), b"", retain=True)


def probe_of(manifest: TaskManifest) -> bytes:
    """A good header without payload: the probe of an update that fits the task."""
    header = UpdateHeader(
        incarnation=bytes(8),
        base=manifest.version,
        codec=manifest.codec,
        size=10,
        sha256=bytes(32),
        fingerprint=manifest.fingerprint,
        num_examples=1,
        steps_done=1,
        steps_planned=1,
    )
    return header.pack()


def test_a_fleet_under_attack_trains_on(barn):
    """Three agents under mutual TLS; a mole with a credential tries everything, an insider with the broker's
    rights forges and replays manifests, one device is revoked on the way. The books balance."""
    barn.fleet.enroll("mole")
    folders = [barn.enroll(f"pi-0{number}", number) for number in range(3)]
    coordinator = barn.coordinate()
    insider = barn.insider()
    insider.transport.subscribe([TOPICS.task()])
    first_manifest = insider.next(Received).payload
    mole = barn.device("mole")
    agents = [barn.agent(folder) for folder in folders]
    barn.until(lambda: barn.status()["version"] >= 2)

    for victim in ("pi-00", "pi-01"):
        mole.say(TOPICS.begin(victim, UPDATE), b"\x80")
        mole.say(TOPICS.state(victim), DevicePresence(online=False, session=bytes(8)).pack())
        mole.say(TOPICS.receipt(victim, UPDATE), Receipt(state="done", epoch=9, term=9).pack())
    mole.say(TOPICS.task(), manifest_of_a_forger(barn), retain=True)
    # Worse: someone who has the broker. Devices take neither a forged manifest nor one that is old.
    insider.say(TOPICS.task(), manifest_of_a_forger(barn), retain=True)
    insider.say(TOPICS.task(), first_manifest, retain=True)
    forged = Command(kind="pause", device="pi-00", term=99, sequence=1).pack()
    insider.say(TOPICS.command("pi-00"), seal(COMMAND_CONTEXT, forged, signer(new_private_key())))
    at_attack = barn.status()["version"]
    barn.until(lambda: barn.status()["version"] >= at_attack + 2)

    # Two of three make versions too, before the third has started on a busy machine.
    barn.until(lambda: _online(barn, "pi-02"))
    told = barn.lichen("fleet", "revoke", "pi-02")
    assert f"mosquitto (process {barn.mosquitto.pid}) reads its files again" in told
    barn.until(lambda: not _online(barn, "pi-02"))
    at_revocation = barn.status()["version"]
    barn.until(lambda: barn.status()["version"] >= at_revocation + 2)
    assert barn.status()["devices_enrolled"] == 3
    for process in (*agents, coordinator):
        assert process.stop() == 0, process.last_words()
    report = barn.books("pi-00", "pi-01", "pi-02")
    assert report.versions_checked >= 6
    listed = {entry["device"]: entry for entry in json.loads(barn.lichen("devices", "--json"))}
    assert listed.keys() == {"pi-00", "pi-01", "pi-02"}
    assert [listed[device]["refused"] for device in ("pi-00", "pi-01")] == [0, 0]
    assert "pi-02" in barn.lichen("fleet", "list")


def _online(barn: SecureFleet, device: str) -> bool:
    store = SqliteStore.open(barn.path / "coordinator", read_only=True)
    try:
        record = store.device(device)
    finally:
        store.close()
    return record is not None and record.online


def test_a_revoked_device_is_refused_at_once_though_the_broker_was_not_told(barn):
    """Its connection stands and its rights too: the coordinator alone refuses, from the next message on."""
    barn.fleet.enroll("thief")
    toml = barn.path / "fleet.toml"
    toml.write_text(toml.read_text().replace('reload = ""', 'reload = "true"'))
    barn.coordinate()
    thief = barn.device("thief")
    thief.transport.subscribe(TOPICS.device_filters("thief"))
    while (message := thief.next(Received)).topic != TOPICS.task():
        pass
    manifest = TaskManifest.unpack(peek(message.payload, limit=1 << 16))
    thief.say(TOPICS.state("thief"), DevicePresence(online=True, session=bytes(8)).pack())
    barn.until(lambda: barn.status()["devices_online"] == 1)
    assert "was told by `true`" in barn.lichen("fleet", "revoke", "thief")
    thief.say(TOPICS.begin("thief", UPDATE), probe_of(manifest))
    while (message := thief.next(Received)).topic != TOPICS.receipt("thief", UPDATE):
        pass
    receipt = Receipt.unpack(message.payload)
    assert (receipt.state, receipt.reason) == ("refused", "unknown_device")
    thief.say(TOPICS.state("thief"), DevicePresence(online=True, session=b"8 octets").pack())
    barn.until(lambda: barn.status()["rejected"].get("unknown_device"))
    assert barn.status()["devices_online"] == 0
    assert barn.status()["refused"] == {"unknown_device": 1}


def test_a_copied_card_is_noticed_and_named(barn):
    """Two agents on copies of one state folder throw each other out; the coordinator says which device."""
    folder = barn.enroll("pi-00")
    barn.coordinate()
    barn.agent(folder)
    barn.until(lambda: (barn.agent_status("pi-00").get("updates") or {}).get("done"))
    barn.processes["pi-00"].stop()
    copy = barn.folder / "copy"
    shutil.copytree(folder, copy)
    barn.agent(folder)
    barn.agent(copy, "copy")
    barn.until(lambda: barn.status()["doubled"].get("pi-00"))
    told = barn.lichen("devices")
    assert "pi-00 is two live devices: a copy of its state folder runs too" in " ".join(told.split())
    assert "pi-00 (" in " ".join(barn.lichen("status").split())


def test_a_check_under_a_certificate_throws_nobody_out(barn):
    """Without an agent it tries connection and rights, under its one name; beside one it asks the agent."""
    folder = barn.enroll("pi-00")
    barn.coordinate()
    words = [sys.executable, "-m", "edge_agent", "check", "--config", str(folder / "agent.toml")]
    alone = subprocess.run(words, capture_output=True, text=True, timeout=60, check=False)
    assert alone.returncode == 0, alone.stdout + alone.stderr
    assert "the coordinator answered" in alone.stdout
    barn.agent(folder)
    barn.until(lambda: barn.agent_status("pi-00").get("state", "offline") != "offline")
    connections = (barn.folder / "mosquitto.log").read_text().count(" as pi-00 ")
    beside = subprocess.run(words, capture_output=True, text=True, timeout=60, check=False)
    assert beside.returncode == 0, beside.stdout + beside.stderr
    assert "the running agent says" in beside.stdout
    assert connections == 2
    assert (barn.folder / "mosquitto.log").read_text().count(" as pi-00 ") == 2


def test_the_supervisor_stays_small_under_mutual_tls(barn):
    """At most 30 MiB at rest, connected, after its first update, its worker gone."""
    folder = barn.enroll("pi-00")
    toml = folder / "agent.toml"
    toml.write_text(toml.read_text() + "\n[worker]\nlinger_s = 0.0\n")
    barn.coordinate(settings="[buffer]\nsize = 1000\nflush_after_s = 0.0\n")
    barn.agent(folder)
    barn.until(lambda: (barn.agent_status("pi-00").get("updates") or {}).get("done"))
    supervisor = psutil.Process(barn.processes["pi-00"].pid)
    barn.until(lambda: not supervisor.children())
    assert barn.agent_status("pi-00")["state"] == "waiting"
    assert supervisor.memory_info().rss <= 30 * MIB


def test_a_wrong_fleet_in_agent_toml_is_named(barn):
    """All else is right, the broker lets it in, and nothing would ever come: check and status say why."""
    folder = barn.enroll("pi-00")
    toml = folder / "agent.toml"
    toml.write_text(toml.read_text().replace('fleet = "barn"', 'fleet = "bran"'))
    barn.coordinate()
    why = "ca.pem is the authority of fleet 'barn', but fleet in agent.toml is 'bran'"
    words = [sys.executable, "-m", "edge_agent", "check", "--config", str(toml)]
    alone = subprocess.run(words, capture_output=True, text=True, timeout=60, check=False)
    assert alone.returncode == 1, alone.stdout + alone.stderr
    assert f"FAIL  fleet: {why}" in alone.stdout
    assert "nobody is there under fleet 'bran'" in alone.stdout
    barn.agent(folder)
    barn.until(lambda: barn.agent_status("pi-00").get("idle_reason") == why)
    beside = subprocess.run(words, capture_output=True, text=True, timeout=60, check=False)
    assert f"the running agent says: waiting, {why}" in beside.stdout


def test_a_certificate_about_to_end_is_named_and_counted_until_it_is_renewed(barn):
    """By status and metrics of a coordinator that runs; one that has ended too, others not."""
    for device, days in (("soon", 10), ("later", 90), ("always", None)):
        barn.fleet.enroll(device, days=days)
    (port,) = free_ports(1)
    barn.coordinate(settings=f"[http]\nport = {port}\n")

    def counted():
        with urllib.request.urlopen(f"http://127.0.0.1:{port}/metrics", timeout=10) as answer:
            lines = answer.read().decode().splitlines()
        return next(line for line in lines if line.startswith("lichen_certificates_expiring "))

    assert barn.status()["certificates_expiring"] == {"soon": 9}
    assert counted() == "lichen_certificates_expiring 1.0"
    said = " ".join(barn.lichen("status").split())
    assert "soon's ends in 9 days: lichen fleet renew soon" in said
    assert "later" not in said
    barn.lichen("fleet", "renew", "soon", "--days", "90")
    barn.until(lambda: barn.status()["certificates_expiring"] == {})
    barn.until(lambda: counted() == "lichen_certificates_expiring 0.0")
    # As time goes by: an end that was set long ago.
    registry = barn.fleet.registry
    over = replace(registry.devices["later"], expires="2026-01-02T00:00:00+00:00")
    barn.fleet.commit(registry.enrolled(replace(over, earlier=dict.fromkeys(over.serials, over.expires))))
    barn.until(lambda: barn.status()["certificates_expiring"].get("later", 0) < 0)
    assert "later's has ended" in " ".join(barn.lichen("status").split())
