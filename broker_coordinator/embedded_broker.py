"""A broker that Lichen runs itself: mosquitto where it is installed, else amqtt, as a child process.

For the demo, for tests and for small fleets behind one machine: it listens on loopback only and takes
anyone there. A fleet beyond that has a broker of its own, with users, certificates and topic rights.
"""

import argparse
import asyncio
import contextlib
import ctypes
import os
import pwd
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Sequence
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

from fl_protocol.errors import ConfigError, TransportError

__all__ = ["BROKER_KINDS", "EmbeddedBroker"]

BROKER_KINDS = ("auto", "mosquitto", "amqtt")
START_TIMEOUT_S = 15.0
STOP_TIMEOUT_S = 5.0
MESSAGE_LIMIT_BYTES = 256 << 10
MAX_QUEUED_MESSAGES = 20_000
_ATTEMPTS = 3
_SYSTEM_FOLDERS = "/usr/sbin:/usr/local/sbin"
_SET_PARENT_DEATH_SIGNAL = 1


class EmbeddedBroker:
    """One broker process on loopback, gone at the latest when its parent is.

    ``kind`` is one of ``BROKER_KINDS``; ``port`` 0 takes a free one; ``folder`` holds its configuration
    and log. It keeps nothing across a restart: whoever depends on a broker's memory depends on luck.
    Start it from a thread that outlives it: Linux sends the parent's death signal when that thread ends.

    Raises:
        ConfigError: an unknown kind, or one that is not installed.
    """

    def __init__(self, kind: str, port: int, folder: Path) -> None:
        if kind not in BROKER_KINDS:
            raise ConfigError(f"broker {kind!r} is none of {', '.join(BROKER_KINDS)}")
        self._program = _mosquitto() if kind != "amqtt" else None
        if kind == "mosquitto" and self._program is None:
            raise ConfigError("mosquitto is not installed", hint="apt install mosquitto, or take amqtt")
        self.kind = "mosquitto" if self._program else "amqtt"
        self.name = f"{self.kind} {_version_of(self._program)}"
        self.port = port
        self._any_port = port == 0
        self._folder = folder
        self._process: subprocess.Popen[bytes] | None = None

    @property
    def url(self) -> str:
        """Where it listens; final once it was started."""
        return f"mqtt://127.0.0.1:{self.port}"

    @property
    def pid(self) -> int | None:
        """Its process id while it runs."""
        return self._process.pid if self._process is not None and self._process.poll() is None else None

    def start(self) -> "EmbeddedBroker":
        """Start it, and return when it accepts connections. After ``kill`` it comes back on its port.

        Raises:
            TransportError: it ended at once or did not accept within 15 s.
        """
        self._folder.mkdir(parents=True, exist_ok=True)
        if self.port and _listening(self.port):
            raise TransportError(
                f"something listens on port {self.port} already",
                hint=f"use it: --broker {self.url}, or take another port: --broker auto:1884",
            )
        for attempt in range(_ATTEMPTS):
            if self._any_port and (self.port == 0 or attempt):
                self.port = _free_port()
            with (self._folder / "broker.log").open("ab") as log:
                self._process = subprocess.Popen(
                    self._command(), stdin=subprocess.DEVNULL, stdout=log, stderr=log, cwd=self._folder
                )
            if self._accepts(self._process):
                return self
            self.kill()
        raise TransportError(
            f"{self.name} does not start on port {self.port}",
            hint=f"the reason is in {self._folder / 'broker.log'}; is the port taken?",
        )

    def stop(self) -> None:
        """End it cleanly; by force after 5 s."""
        if self._process is not None:
            self._process.terminate()
            with contextlib.suppress(subprocess.TimeoutExpired):
                self._process.wait(STOP_TIMEOUT_S)
        self.kill()

    def kill(self) -> None:
        """End it at once, as a power cut does."""
        if self._process is not None:
            self._process.kill()
            self._process.wait()
            self._process = None

    def __enter__(self) -> "EmbeddedBroker":
        return self.start()

    def __exit__(self, *exception: object) -> None:
        self.stop()

    def _command(self) -> list[str]:
        wrapper = [sys.executable, "-m", "broker_coordinator.embedded_broker", "--parent", str(os.getpid())]
        if self._program is None:
            return [*wrapper, "--port", str(self.port)]
        configuration = self._folder / "mosquitto.conf"
        configuration.write_text(_mosquitto_configuration(self.port), encoding="utf-8")
        return [*wrapper, "--execute", self._program, "-c", str(configuration.absolute())]

    def _accepts(self, process: subprocess.Popen[bytes]) -> bool:
        until = time.monotonic() + START_TIMEOUT_S
        while process.poll() is None and time.monotonic() < until:
            if _listening(self.port):
                return process.poll() is None
            time.sleep(0.02)
        return False


def main(arguments: Sequence[str] | None = None) -> None:
    """The child: bind this process's life to its parent's, then become the broker."""
    parser = argparse.ArgumentParser(prog="python -m broker_coordinator.embedded_broker")
    parser.add_argument("--parent", type=int, default=0, help="end when this process does")
    parser.add_argument("--port", type=int, default=1883, help="run amqtt on this loopback port")
    parser.add_argument("--execute", nargs=argparse.REMAINDER, help="run this program instead")
    options = parser.parse_args(arguments)
    _die_with(options.parent)
    if options.execute:
        os.execv(options.execute[0], options.execute)
    with contextlib.suppress(KeyboardInterrupt):
        asyncio.run(_serve_amqtt(options.port, options.parent))


def _die_with(parent: int) -> None:
    """Ask the kernel for SIGKILL at the parent's death (Linux; elsewhere amqtt looks for itself)."""
    if parent == 0:
        return
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(_SET_PARENT_DEATH_SIGNAL, signal.SIGKILL)
    if os.getppid() != parent:
        raise SystemExit("the parent is gone")


async def _serve_amqtt(port: int, parent: int) -> None:
    try:
        from amqtt.broker import Broker
        from amqtt.contexts import BrokerConfig, ListenerConfig
    except ImportError:
        raise SystemExit("amqtt is not installed: pip install 'lichen[coordinator]'") from None
    broker = Broker(
        BrokerConfig(
            listeners={"default": ListenerConfig(bind=f"127.0.0.1:{port}")},
            plugins={"amqtt.plugins.authentication.AnonymousAuthPlugin": {"allow_anonymous": True}},
        )
    )
    await broker.start()
    stop = asyncio.Event()
    asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, stop.set)
    while not stop.is_set() and parent in (0, os.getppid()):
        with contextlib.suppress(TimeoutError):
            await asyncio.wait_for(stop.wait(), 1.0)
    await broker.shutdown()


def _mosquitto() -> str | None:
    """Debian installs it where an ordinary user's PATH does not look."""
    return shutil.which("mosquitto") or shutil.which("mosquitto", path=_SYSTEM_FOLDERS)


def _mosquitto_configuration(port: int) -> str:
    lines = [
        f"listener {port} 127.0.0.1",
        "allow_anonymous true",
        "persistence false",
        "set_tcp_nodelay true",
        f"message_size_limit {MESSAGE_LIMIT_BYTES}",
        # What the coordinator may hold unacknowledged is what one commit can take: at mosquitto's default
        # of 20 each fsync serves 20 updates. No limit rather than a high one: with 400 or 1000, 2.0.11 was
        # seen to stop delivering, perhaps by the miscount of eclipse-mosquitto/mosquitto issue 2362.
        "max_inflight_messages 0",
        f"max_queued_messages {MAX_QUEUED_MESSAGES}",
        "max_queued_bytes 268435456",
        "log_dest stderr",
        "log_type error",
        "log_type warning",
    ]
    if os.geteuid() == 0:
        # mosquitto would drop to its own user, and with that the kernel forgets the parent's death signal.
        lines.append(f"user {pwd.getpwuid(0).pw_name}")
    return "\n".join(lines) + "\n"


def _version_of(program: str | None) -> str:
    if program is None:
        try:
            return version("amqtt")
        except PackageNotFoundError:
            raise ConfigError(
                "no broker to run: neither mosquitto nor amqtt is installed",
                hint="pip install 'lichen[coordinator]', or name your own broker with --broker mqtt://host",
            ) from None
    told = subprocess.run([program, "-h"], capture_output=True, text=True, timeout=10, check=False)
    words = told.stdout.split()
    return words[2] if len(words) > 2 else "(unknown version)"


def _listening(port: int) -> bool:
    try:
        socket.create_connection(("127.0.0.1", port), 1.0).close()
    except OSError:
        return False
    return True


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


if __name__ == "__main__":
    main()
