"""The broker of a fleet that `lichen fleet init` made: its mosquitto, as a process under watch."""

import os
import pwd
import socket
from pathlib import Path

from broker_coordinator.fleet.folder import FleetFolder
from fl_protocol.errors import LichenError
from hil.mosquitto import mosquitto_program
from hil.processes import ManagedProcess

__all__ = ["FleetBroker"]


class FleetBroker(ManagedProcess):
    """Runs on the fleet's own configuration; ``port`` is its coordinator's listener, on loopback.

    Raises:
        ConfigError: mosquitto is not installed.
    """

    def __init__(self, fleet: FleetFolder, log: Path, *, port: int) -> None:
        configuration = fleet.broker.path / "mosquitto.conf"
        command = [mosquitto_program(), "-c", str(configuration)]
        super().__init__("mosquitto", command, log, folder=fleet.path.parent)
        self._port = port
        if os.geteuid() == 0:
            # Its own user cannot pass the folders of tests.
            configuration.write_text(f"{configuration.read_text()}user {pwd.getpwuid(0).pw_name}\n")

    def listening(self) -> bool:
        """Whether whoever connects now is heard.

        Raises:
            LichenError: it has ended.
        """
        if not self.running:
            raise LichenError("mosquitto ended", hint=self.last_words())
        try:
            socket.create_connection(("127.0.0.1", self._port), 1.0).close()
        except OSError:
            return False
        return True
