"""A broker to break: its store is kept or lost, and its limits and rights change while it runs."""

import os
import pwd
import signal
import socket
import time
from pathlib import Path

from broker_coordinator.embedded_broker import EmbeddedBroker
from fl_protocol.errors import TransportError
from hil.mosquitto import free_ports, mosquitto_program
from hil.processes import ManagedProcess

__all__ = ["AmqttBroker", "BreakableBroker", "MosquittoBroker", "broker_of"]

SIZE_LIMIT_BYTES = 256 << 10
START_S = 15.0
_RIGHTS = {
    "": "topic readwrite #\n",
    "up": "topic read #\n" + "".join(f"topic write fl1/+/{t}/#\n" for t in ("down", "task", "blob", "state"))
    + "topic write fl1/+/coordinator\n",
    "down": "topic read #\n" + "".join(f"topic write fl1/+/{t}/#\n" for t in ("up", "task", "blob", "state"))
    + "topic write fl1/+/coordinator\n",
    "task": "topic read #\n" + "".join(f"topic write fl1/+/{t}/#\n" for t in ("up", "down", "state"))
    + "topic write fl1/+/coordinator\n",
}  # fmt: skip
"""Access lists by what nobody may publish to; mosquitto tells 3.1.1 clients that all went well."""


class MosquittoBroker:
    """mosquitto on a port of its own, with its store on."""

    adjustable = True

    def __init__(self, folder: Path) -> None:
        program = mosquitto_program()
        self._folder = folder
        self._store = folder / "store"
        self._store.mkdir(parents=True, exist_ok=True)
        (self.port,) = free_ports(1)
        self._limit = SIZE_LIMIT_BYTES
        self._write()
        self.process = ManagedProcess(
            "broker", [program, "-c", str(folder / "mosquitto.conf")], folder / "broker.log", folder=folder
        )

    def start(self) -> None:
        """Start it, and return when it listens.

        Raises:
            TransportError: it does not.
        """
        self.process.start()
        until = time.monotonic() + START_S
        while time.monotonic() < until and self.process.running:
            try:
                socket.create_connection(("127.0.0.1", self.port), 1.0).close()
            except OSError:
                time.sleep(0.02)
            else:
                return
        raise TransportError("mosquitto does not start", hint=self.process.last_words())

    def kill(self, *, lose_store: bool) -> None:
        """kill -9; what it had not saved in the last seconds is gone in any case."""
        self.process.kill()
        if lose_store:
            for path in self._store.iterdir():
                path.unlink()

    def signal(self, number: signal.Signals) -> None:
        """Send it a signal."""
        self.process.signal(number)

    def limit(self, size: int = SIZE_LIMIT_BYTES) -> None:
        """Drop publishes above ``size`` bytes from now on."""
        self._limit = size
        self._write()
        self.process.signal(signal.SIGHUP)

    def deny(self, what: str = "") -> None:
        """Deny publishing to ``what``: ``up``, ``down``, ``task``, or nothing."""
        self._write(what)
        self.process.signal(signal.SIGHUP)

    def stop(self) -> None:
        """End it."""
        self.process.signal(signal.SIGCONT)
        self.process.stop()

    @property
    def running(self) -> bool:
        """Whether it is alive."""
        return self.process.running

    def _write(self, denied: str = "") -> None:
        rights = self._folder / "rights"
        rights.write_text(_RIGHTS[denied])
        lines = [
            f"listener {self.port} 127.0.0.1",
            "allow_anonymous true",
            "persistence true",
            f"persistence_location {self._store}/",
            "autosave_interval 5",
            f"acl_file {rights}",
            "set_tcp_nodelay true",
            f"message_size_limit {self._limit}",
            "max_queued_messages 20000",
            "max_queued_bytes 268435456",
            f"log_dest file {self._folder / 'mosquitto.log'}",
        ]
        if os.geteuid() == 0:
            # It would drop to a user of its own, and forget that it is to die with us.
            lines.append(f"user {pwd.getpwuid(0).pw_name}")
        (self._folder / "mosquitto.conf").write_text("\n".join(lines) + "\n")


class AmqttBroker:
    """amqtt: it has no store, and its limits are fixed."""

    adjustable = False

    def __init__(self, folder: Path) -> None:
        self._broker = EmbeddedBroker("amqtt", 0, folder)

    @property
    def port(self) -> int:
        """Where it listens, once it was started."""
        return self._broker.port

    def start(self) -> None:
        """Start it; see ``EmbeddedBroker.start``."""
        self._broker.start()

    def kill(self, *, lose_store: bool) -> None:
        """kill -9."""
        self._broker.kill()

    def signal(self, number: signal.Signals) -> None:
        """Send it a signal."""
        if self._broker.pid is not None:
            os.kill(self._broker.pid, number)

    def limit(self, size: int = SIZE_LIMIT_BYTES) -> None:
        """Nothing: it has no such limit."""

    def deny(self, what: str = "") -> None:
        """Nothing: it has no such rights."""

    def stop(self) -> None:
        """End it."""
        self.signal(signal.SIGCONT)
        self._broker.stop()

    @property
    def running(self) -> bool:
        """Whether it is alive."""
        return self._broker.pid is not None


BreakableBroker = MosquittoBroker | AmqttBroker


def broker_of(kind: str, folder: Path) -> BreakableBroker:
    """A broker of a kind.

    Raises:
        ConfigError: it is not installed.
    """
    folder.mkdir(parents=True, exist_ok=True)
    return MosquittoBroker(folder) if kind == "mosquitto" else AmqttBroker(folder)
