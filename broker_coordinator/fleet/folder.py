"""The folder of a fleet, as its operator keeps it.

FOLDER/fleet.toml         what the coordinator runs
       registry.json      the devices: all that follows from them is written anew from it
       ca.pem             the fleet's authority, which everybody trusts
       private/           the authority's key; the coordinator's certificate and key towards the broker
       coordinator/       the coordinator's state, with its signing key
       broker/            all that mosquitto needs: configuration, certificate, rights, revocations
       devices/DEVICE/    what goes onto a device: agent.toml, its certificate and key, ca.pem
"""

import contextlib
import datetime
import fcntl
import json
import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from broker_coordinator.configuration import FleetConfiguration, read_fleet
from broker_coordinator.fleet.authority import END, Authority
from broker_coordinator.fleet.mosquitto import BrokerFolder, Notified, notify_broker
from broker_coordinator.fleet.registry import EnrolledDevice, Registry, read_registry, write_registry
from broker_coordinator.fleet.rights import COORDINATOR_NAME, topic_rights
from broker_coordinator.keys import open_key
from fl_io.broker_address import BrokerAddress
from fl_io.disk import write_file
from fl_protocol.errors import ConfigError, StorageError
from fl_protocol.topics import valid_name

__all__ = ["Credential", "FleetFolder", "FleetPlan"]

REGISTRY = "registry.json"
LOCAL_HOSTS = ("localhost", "127.0.0.1")


@dataclass(frozen=True, slots=True, kw_only=True)
class FleetPlan:
    """What a new fleet is to be. ``hosts`` are names and addresses of the broker, the first is what devices
    dial; ``coordinator_host`` is what the coordinator dials. ``broker_path`` is where the broker finds its
    folder (in a container: where it is mounted), None for where it is."""

    name: str
    hosts: Sequence[str]
    port: int = 8883
    coordinator_host: str = "127.0.0.1"
    coordinator_port: int = 8884
    artifact: str = "artifact"
    broker_path: Path | None = None

    def __post_init__(self) -> None:
        if not valid_name(self.name):
            raise ConfigError(f"fleet {self.name!r}: a name is 1 to 64 of A-Z a-z 0-9 . _ -")
        if not self.hosts:
            raise ConfigError("the broker needs a name or an address")
        if self.port == self.coordinator_port:
            raise ConfigError(f"devices and the coordinator cannot both have port {self.port}")
        for host in (*self.hosts, self.coordinator_host):
            BrokerAddress.parse(_url(host, self.port))


@dataclass(frozen=True, slots=True, kw_only=True)
class Credential:
    """What was issued to a device: ``path`` is the folder that goes onto it."""

    device: str
    path: Path
    serial: str
    expires: str
    notified: Notified


class FleetFolder:
    """An existing fleet. Its operations hold a lock, and may be killed at any moment: the next one writes
    whatever follows from the registry again.

    Raises:
        ConfigError: ``fleet.toml`` has faults, or is of a fleet without identities.
    """

    def __init__(self, path: Path) -> None:
        self.path = path.absolute()
        self.configuration: FleetConfiguration = read_fleet(self.path / "fleet.toml")
        identity = self.configuration.identity
        if identity.registry is None or not identity.broker:
            raise ConfigError(
                f"{self.path / 'fleet.toml'} has no [identity]: its fleet has no certificates",
                hint="lichen fleet init DIR makes a fleet that has",
            )
        self._registry = identity.registry
        self._identity = identity
        self.broker = BrokerFolder(path=self.path / "broker", seen_as=self.path / "broker")

    @classmethod
    def create(cls, path: Path, plan: FleetPlan) -> "FleetFolder":
        """Make a fleet in a new or empty folder; ``fleet.toml`` comes last, and makes it one.

        Raises:
            ConfigError: a host that is none.
            StorageError: there is something in the folder, or the disk refuses.
        """
        path = path.absolute()
        if path.exists() and (not path.is_dir() or any(path.iterdir())):
            raise StorageError(f"{path} is not an empty folder", hint="a fleet is never overwritten")
        authority = Authority.make(plan.name)
        hosts = dict.fromkeys([*plan.hosts, plan.coordinator_host, *LOCAL_HOSTS])
        server = authority.issue_broker(list(hosts))
        client = authority.issue_client(COORDINATOR_NAME)
        path.mkdir(parents=True, exist_ok=True)
        for name in ("private", "coordinator", "devices"):
            (path / name).mkdir(mode=0o700)
        (path / "broker" / "run").mkdir(parents=True)
        _write(path / "private" / "ca.key", authority.key, secret=True)
        _write(path / "private" / "coordinator-tls.key", client.key, secret=True)
        _write(path / "private" / "coordinator-tls.pem", client.certificate)
        for folder in (path, path / "broker"):
            _write(folder / "ca.pem", authority.certificate)
        open_key(path / "coordinator")
        broker = BrokerFolder(path=path / "broker", seen_as=plan.broker_path or path / "broker")
        _write(broker.path / "broker.key", server.key, secret=True)
        _write(broker.path / "broker.pem", server.certificate)
        local = plan.coordinator_host in LOCAL_HOSTS
        configuration = broker.configuration(
            plan.name,
            port=plan.port,
            coordinator_port=plan.coordinator_port,
            coordinator_bind="127.0.0.1" if local else "",
        )
        _write(broker.path / "mosquitto.conf", configuration.encode())
        registry = Registry(fleet=plan.name)
        write_registry(path / REGISTRY, registry)
        _write_derived(broker, authority, registry)
        _write(path / "fleet.toml", _fleet_toml(plan).encode())
        return cls(path)

    @property
    def registry(self) -> Registry:
        """The devices, as of now."""
        return read_registry(self._registry)

    def enroll(
        self,
        device: str,
        *,
        out: Path | None = None,
        state: str = "state",
        days: int | None = None,
        renew: bool = False,
    ) -> Credential:
        """Issue a certificate to a device, and give it its rights.

        ``out`` is the folder for what goes onto the device (``devices/DEVICE`` unless named), ``state`` where
        its agent keeps its state. It is valid for ever, or for ``days``. ``renew`` replaces the certificate
        of a device that is enrolled: the one it has is void from then on. An ``agent.toml`` that is there
        is left as it is.

        Raises:
            ConfigError: a name that cannot be one, or an authority that cannot be read.
            StorageError: it is enrolled already, there is something in ``out``, or the disk refuses.
        """
        if not valid_name(device):
            raise ConfigError(
                f"device {device[:80]!r}: a name is 1 to 64 of A-Z a-z 0-9 . _ - and begins with no dot"
            )
        folder = (out or self.path / "devices" / device).absolute()
        with self.locked():
            registry, authority = self.registry, self.authority()
            if device in registry.active and not renew:
                raise StorageError(
                    f"{device} is enrolled already, since {registry.devices[device].enrolled}",
                    hint=f"a new certificate that voids the old one: lichen fleet enroll {device} --renew",
                )
            known = device in registry.devices
            if folder.exists() and (not folder.is_dir() or any(folder.iterdir())) and not known:
                raise StorageError(f"{folder} is not an empty folder", hint="name another with --out")
            now = datetime.datetime.now(datetime.UTC)
            until = END if days is None else now + datetime.timedelta(days=days)
            issued = authority.issue_client(device, until)
            entry = EnrolledDevice(
                device=device,
                serial=f"{issued.serial:x}",
                enrolled=_text(now),
                expires="" if days is None else _text(until),
            )
            # First of all it is known: a certificate that nobody knows of could never be revoked.
            registry = registry.enrolled(entry)
            self.commit(registry)
            folder.mkdir(parents=True, exist_ok=True, mode=0o700)
            _write(folder / "device.key", issued.key, secret=True)
            _write(folder / "device.pem", issued.certificate)
            _write(folder / "ca.pem", authority.certificate)
            if not (folder / "agent.toml").exists():
                _write(folder / "agent.toml", self._agent_toml(device, state).encode())
            notified = self.announce(registry, authority)
        return Credential(
            device=device, path=folder, serial=entry.serial, expires=entry.expires, notified=notified
        )

    def revoke(self, device: str) -> Notified:
        """Take a device's certificate and rights away. A running coordinator refuses it at once.

        Raises:
            StorageError: there is no such device, or the disk refuses.
        """
        with self.locked():
            registry, authority = self.registry, self.authority()
            if device not in registry.devices:
                raise StorageError(
                    f"{device} was never enrolled here", hint="lichen fleet list shows who was"
                )
            if device in registry.active:
                registry = registry.revoked(device, _text(datetime.datetime.now(datetime.UTC)))
                self.commit(registry)
            return self.announce(registry, authority)

    def commit(self, registry: Registry) -> None:
        """Put another registry in the place of this one, without what ended long ago; raises StorageError."""
        write_registry(self._registry, registry.pruned(datetime.datetime.now(datetime.UTC)))

    def announce(self, registry: Registry, authority: Authority) -> Notified:
        """Write what follows from the registry, and have the broker read all its files again."""
        _write_derived(self.broker, authority, registry)
        return notify_broker(self.broker, self._identity.reload)

    def authority(self) -> Authority:
        """Who signs; raises ConfigError, StorageError."""
        try:
            return Authority.read(
                (self.path / "ca.pem").read_bytes(), (self.path / "private" / "ca.key").read_bytes()
            )
        except OSError as error:
            raise StorageError(f"cannot read the authority of {self.path}: {error.strerror}") from None

    def _agent_toml(self, device: str, state: str) -> str:
        key = open_key(self.configuration.state).public_key
        values = {
            "device": device,
            "fleet": self.configuration.fleet,
            "task": self.configuration.task,
            "broker": self._identity.broker,
            "state": state,
            "trusted_keys": [key],
        }
        tls = {"ca": "ca.pem", "certificate": "device.pem", "key": "device.key"}
        return f"{_toml(values)}\n[tls]\n{_toml(tls)}"

    @contextlib.contextmanager
    def locked(self) -> Iterator[None]:
        """Hold every other operation off; raises StorageError."""
        try:
            descriptor = os.open(self.path / ".lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        except OSError as error:
            raise StorageError(f"cannot write in {self.path}: {error.strerror}") from None
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX)
            yield
        finally:
            os.close(descriptor)


def _write_derived(broker: BrokerFolder, authority: Authority, registry: Registry) -> None:
    """What follows from the registry."""
    _write(broker.rights, topic_rights(registry.fleet, sorted(registry.active)).encode(), mode=0o640)
    void = [
        (int(serial, 16), datetime.datetime.fromisoformat(when)) for serial, when in registry.void.items()
    ]
    _write(broker.revocations, authority.revocations(void, registry.edition + 1), mode=0o640)
    broker.hand_over()


def _fleet_toml(plan: FleetPlan) -> str:
    top = {
        "fleet": plan.name,
        "state": "coordinator",
        "broker": _url(plan.coordinator_host, plan.coordinator_port),
        "artifact": plan.artifact,
    }
    tls = {"ca": "ca.pem", "certificate": "private/coordinator-tls.pem", "key": "private/coordinator-tls.key"}
    identity = {"registry": REGISTRY, "broker": _url(plan.hosts[0], plan.port), "reload": ""}
    return f"{_toml(top)}\n[tls]\n{_toml(tls)}\n[identity]\n{_toml(identity)}"


def _toml(values: Mapping[str, object]) -> str:
    # JSON's texts and lists of texts are TOML's too.
    return "".join(f"{name} = {json.dumps(value)}\n" for name, value in values.items())


def _url(host: str, port: int) -> str:
    return f"mqtts://[{host}]:{port}" if ":" in host else f"mqtts://{host}:{port}"


def _text(moment: datetime.datetime) -> str:
    return moment.isoformat(timespec="seconds")


def _write(path: Path, content: bytes, *, secret: bool = False, mode: int = 0o644) -> None:
    write_file(path, content, purpose="fleet.file", mode=0o600 if secret else mode)
