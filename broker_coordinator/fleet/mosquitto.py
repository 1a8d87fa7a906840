"""mosquitto as a fleet's broker: its configuration with mutual TLS, and how it learns of a change.

Two listeners. On the devices' one the certificate's name is the client id too: nobody can throw another
device out. The coordinator has one of its own, because it asks under a second client id whether another
one is in office. Measured with 2.0.11: SIGHUP re-reads rights and list of revocations; a connection that
stands keeps standing, but its rights are the new ones from then on.
"""

import os
import pwd
import shlex
import signal
import subprocess
from dataclasses import dataclass
from pathlib import Path

from fl_protocol.errors import StorageError

__all__ = ["BrokerFolder", "Notified", "notify_broker"]

RELOAD_TIMEOUT_S = 30.0
_USER = "mosquitto"
"""What mosquitto becomes where root starts it; it reads its files again as that."""


@dataclass(frozen=True, slots=True, kw_only=True)
class BrokerFolder:
    """Where the broker's files are. ``seen_as`` is the folder's path in the eyes of the broker."""

    path: Path
    seen_as: Path

    @property
    def rights(self) -> Path:
        """Who may do what."""
        return self.path / "rights.acl"

    @property
    def revocations(self) -> Path:
        """Whose certificate is void."""
        return self.path / "revoked.pem"

    @property
    def pid_file(self) -> Path:
        """Its process id while it runs, in a folder that mosquitto may write in."""
        return self.path / "run" / "mosquitto.pid"

    def configuration(self, fleet: str, *, port: int, coordinator_port: int, coordinator_bind: str) -> str:
        """mosquitto.conf; ``coordinator_bind`` is where the coordinator's listener listens, empty for all."""
        seen = self.seen_as
        tls = [
            f"cafile {seen / 'ca.pem'}",
            f"certfile {seen / 'broker.pem'}",
            f"keyfile {seen / 'broker.key'}",
            f"crlfile {seen / self.revocations.name}",
            "require_certificate true",
            "use_identity_as_username true",
        ]
        lines = [
            f"# The broker of fleet {fleet}: mosquitto -c {seen / 'mosquitto.conf'}",
            "per_listener_settings false",
            "allow_anonymous false",
            f"acl_file {seen / self.rights.name}",
            f"pid_file {seen / 'run' / self.pid_file.name}",
            "persistence false",
            "set_tcp_nodelay true",
            "message_size_limit 262144",
            "max_queued_messages 20000",
            "max_queued_bytes 268435456",
            "log_dest stderr",
            "log_type error",
            "log_type warning",
            "log_type notice",
            "",
            "# Devices. Certificate name = user name = client id.",
            f"listener {port}",
            *tls,
            "use_username_as_clientid true",
            "",
            "# The coordinator.",
            f"listener {coordinator_port} {coordinator_bind}".rstrip(),
            *tls,
        ]
        return "\n".join(lines) + "\n"

    def hand_over(self) -> None:
        """Give mosquitto's user what it reads again as such, where we are root and there is one. The folder
        and its configuration stay ours: root would start whatever is written there.

        Raises:
            StorageError: the system refuses.
        """
        user = _other_user()
        if user is None:
            return
        try:
            for path in (self.pid_file.parent, self.path / "broker.key", self.rights, self.revocations):
                os.chown(path, user.pw_uid, user.pw_gid)
        except OSError as error:
            raise StorageError(
                f"cannot give files in {self.path} to user {_USER}: {error.strerror}"
            ) from None

    def shut_off_by(self) -> Path | None:
        """The folder above it that mosquitto's user cannot pass: it would start, and never read again."""
        user = _other_user()
        if user is None:
            return None
        for parent in self.path.parents:
            there = parent.stat()
            owned = there.st_uid == user.pw_uid and there.st_mode & 0o100
            shared = there.st_gid == user.pw_gid and there.st_mode & 0o010
            if not (owned or shared or there.st_mode & 0o001):
                return parent
        return None


@dataclass(frozen=True, slots=True, kw_only=True)
class Notified:
    """Whether the broker reads its files again; ``sentence`` tells a person so, or what to do."""

    done: bool
    failed: bool = False
    sentence: str


def notify_broker(folder: BrokerFolder, command: str) -> Notified:
    """Have the broker read its files again: by ``command``, or without one by SIGHUP to the process of its
    pid file."""
    if command:
        return _by_command(command)
    pid = _mosquitto_of(folder.pid_file)
    if pid is not None:
        try:
            os.kill(pid, signal.SIGHUP)
        except ProcessLookupError:
            pass
        except PermissionError:
            return Notified(
                done=False,
                failed=True,
                sentence=f"mosquitto (process {pid}) is not ours to tell: do it as its user, kill -HUP {pid}",
            )
        else:
            return Notified(done=True, sentence=f"mosquitto (process {pid}) reads its files again")
    return Notified(
        done=False,
        sentence=f"no mosquitto runs here from {folder.path}: if it runs elsewhere, give it"
        f" {folder.rights.name}, {folder.revocations.name} and broker.pem, and kill -HUP it"
        " (or name a command that does: reload under [identity] in fleet.toml)",
    )


def _other_user() -> pwd.struct_passwd | None:
    """mosquitto's own user, where it would become that: started by root."""
    if os.geteuid() != 0:
        return None
    try:
        return pwd.getpwnam(_USER)
    except KeyError:
        return None


def _by_command(command: str) -> Notified:
    try:
        done = subprocess.run(
            shlex.split(command), capture_output=True, text=True, timeout=RELOAD_TIMEOUT_S, check=False
        )
        fault = (
            "" if done.returncode == 0 else (done.stderr or done.stdout).strip() or f"exit {done.returncode}"
        )
    except (OSError, ValueError, subprocess.TimeoutExpired) as error:
        fault = str(error)
    if fault:
        return Notified(
            done=False, failed=True, sentence=f"the broker was NOT told: `{command}` failed: {fault[:500]}"
        )
    return Notified(done=True, sentence=f"the broker was told by `{command}`")


def _mosquitto_of(pid_file: Path) -> int | None:
    """The process of a pid file, if it is a mosquitto still: a number alone may be anybody's by now."""
    try:
        pid = int(pid_file.read_text())
        name = Path(f"/proc/{pid}/comm").read_text().strip()
    except (OSError, ValueError):
        return None
    return pid if name == "mosquitto" else None
