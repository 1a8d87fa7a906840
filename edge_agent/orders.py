"""Orders: what the coordinator asks of this device. Nothing is obeyed before its signature was checked.

A manifest or command that arrives is a candidate. The worker checks it; what holds is remembered, and
nothing older is obeyed after it, whoever signed it. The exception is ``restate``: obeying it twice does no
harm, and a coordinator that was restored from a backup, whose numbers have gone back, depends on it.
"""

import functools
import hashlib
import logging
import math
from dataclasses import dataclass

from edge_agent.jobs import Verified, VerifyJob
from edge_agent.outbox import Outbox
from fl_protocol.clock import Clock
from fl_protocol.command import MAX_COMMAND_BYTES, Command
from fl_protocol.errors import MessageError
from fl_protocol.fields import pack, unpack
from fl_protocol.signed import COMMAND_CONTEXT, TASK_CONTEXT, peek
from fl_protocol.task import MAX_TASK_BYTES, TaskManifest
from fl_protocol.version import VersionId

__all__ = ["Orders"]

MAX_WAITING_COMMANDS = 16
FREE_FORGERIES = 8
"""Checks in a row that may fail before the next ones are put off: each costs the device a process."""
LONGEST_RESPITE_S = 60.0
OLD_RESTATE_EVERY_S = 60.0
"""How often a ``restate`` is obeyed whose number is not new: anybody may have recorded it."""
_MANIFEST = "manifest"
_TRUST = "trust"
_COMMAND = "command"
_log = logging.getLogger("lichen.agent")


@dataclass(frozen=True, slots=True, kw_only=True)
class _Patience:
    """How long one kind of message waits for its check, because so many before it did not hold."""

    forgeries: int = 0
    until: float = -math.inf

    def after(self, now: float, *, held: bool) -> "_Patience":
        """As another check leaves it."""
        if held:
            return _UNTRIED
        forgeries, until = self.forgeries + 1, self.until
        if forgeries > FREE_FORGERIES:
            until = now + min(2.0 ** min(forgeries - FREE_FORGERIES, 16), LONGEST_RESPITE_S)
        return _Patience(forgeries=forgeries, until=until)


_UNTRIED = _Patience()


@dataclass(frozen=True, slots=True, kw_only=True)
class _Lease:
    lease: bytes
    version: VersionId
    ends: float


class Orders:
    """The newest manifest, commands and the lease of one device.

    ``trusted_keys`` as in ``agent.toml``; without any, every signature is taken (``insecure``).

    Raises:
        StorageError: from every method that remembers, if the disk refuses.
    """

    __slots__ = (
        "_candidate",
        "_clock",
        "_command_order",
        "_command_patience",
        "_commands",
        "_device",
        "_dropped",
        "_envelope",
        "_fleet",
        "_hurried",
        "_keys",
        "_lease",
        "_manifest_patience",
        "_old_restate_at",
        "_outbox",
        "_task",
        "_trust",
        "_verified",
        "distrust",
        "ignored",
        "paused",
    )

    def __init__(
        self,
        *,
        device: str,
        fleet: str,
        task: str,
        trusted_keys: tuple[str, ...],
        outbox: Outbox,
        clock: Clock,
    ) -> None:
        self.paused = False
        self.ignored = 0
        """Messages that were malformed, foreign, stale or not signed by a trusted key."""
        self.distrust = ""
        """Why the newest manifest was not obeyed, if its signature did not hold."""
        self._device, self._fleet, self._task = device, fleet, task
        self._keys = trusted_keys
        self._outbox = outbox
        self._clock = clock
        self._trust = _trust_in(trusted_keys)
        self._envelope = b""
        self._verified: TaskManifest | None = None
        self._candidate: tuple[bytes, TaskManifest] | None = None
        self._commands: tuple[tuple[bytes, Command, float], ...] = ()
        self._dropped = b""
        self._hurried = b""
        self._command_order = (-1, -1)
        self._old_restate_at = -math.inf
        self._manifest_patience = self._command_patience = _UNTRIED
        self._lease: _Lease | None = None
        self._recall()

    @property
    def manifest(self) -> TaskManifest | None:
        """The newest manifest, perhaps not checked yet."""
        return self._candidate[1] if self._candidate else self._verified

    @property
    def verified(self) -> bool:
        """Whether ``manifest`` may be acted on."""
        return self._candidate is None

    @property
    def seen(self) -> tuple[int, int]:
        """(epoch, counter) of the newest manifest whose signature held; (0, 0) before the first."""
        return self._verified.order if self._verified else (0, 0)

    @property
    def office(self) -> tuple[int, int]:
        """(epoch, term) of the coordinator that signed it: no word of an earlier one ends an update."""
        return (self._verified.version.epoch, self._verified.term) if self._verified else (0, 0)

    @property
    def evidence(self) -> bytes:
        """That manifest's envelope."""
        return self._envelope

    def is_late(self, base: VersionId) -> bool:
        """Whether the newest manifest whose signature held refuses updates that began at ``base``."""
        return self._verified is not None and self._verified.is_late(base)

    def lease_for(self, manifest: TaskManifest) -> bytes | None:
        """The lease to train on the manifest's version, if one runs: of this version, or of an older one that
        is not late. The leases of a round are void when it closes."""
        lease, version = self._lease, manifest.version
        if lease is None or self._clock.monotonic() >= lease.ends or manifest.is_late(lease.version):
            return None
        same_line = lease.version.epoch == version.epoch and lease.version.number <= version.number
        return lease.lease if same_line else None

    def end_lease(self, lease: bytes | None) -> None:
        """The lease is answered."""
        if self._lease is not None and self._lease.lease == lease:
            self._lease = None

    def manifest_respite(self) -> tuple[str, float] | None:
        """Why the newest manifest is not checked now, and until when."""
        until = self._manifest_patience.until
        if self._candidate is None or self._clock.monotonic() >= until:
            return None
        return "waiting before it checks another manifest, the last ones were not trusted", until

    def command_wait_s(self) -> float:
        """Seconds until a waiting command may be checked; 0 also where none waits."""
        if not self._commands:
            return 0.0
        return max(self._command_patience.until - self._clock.monotonic(), 0.0)

    def receive_manifest(self, envelope: bytes) -> bool:
        """Take a manifest; whether it is news."""
        candidate = self._candidate[0] if self._candidate else b""
        if envelope in (self._envelope, self._dropped, candidate):
            return False
        manifest = self._read_manifest(envelope)
        if manifest is None or manifest.order <= self.seen:
            self.ignored += 1
            return False
        # The newest arrival stands: an unchecked counter must not keep a later, honest one out.
        self._candidate = envelope, manifest
        if not self._keys:
            self._accept_manifest()
        return True

    def receive_command(self, envelope: bytes) -> Command | None:
        """Take a command; returned if it may be obeyed without a check."""
        try:
            command = Command.unpack(peek(envelope, limit=MAX_COMMAND_BYTES))
        except MessageError as error:
            _log.warning("a command that cannot be read: %s", error)
            self.ignored += 1
            return None
        known = any(envelope == waiting for waiting, _, _ in self._commands)
        if command.device != self._device or known or self._comes_late(command):
            self.ignored += 1
            return None
        if len(self._commands) >= MAX_WAITING_COMMANDS:
            self.ignored += 1
            self._drop_command()
        self._commands = (*self._commands, (envelope, command, self._clock.monotonic()))
        return None if self._keys else self._accept_command()

    def command_check(self) -> VerifyJob | None:
        """The check that the oldest waiting command needs."""
        if not self._commands or self.command_wait_s() > 0:
            return None
        return VerifyJob(envelope=self._commands[0][0], context=COMMAND_CONTEXT, trusted_keys=self._keys)

    def manifest_check(self) -> VerifyJob | None:
        """The check that the newest manifest needs; without keys it needs none and is taken."""
        if not self._keys:
            self._accept_manifest()
        if self._candidate is None:
            return None
        return VerifyJob(envelope=self._candidate[0], context=TASK_CONTEXT, trusted_keys=self._keys)

    def hurried_check(self, base: VersionId) -> VerifyJob | None:
        """The check of a manifest that would make the training of ``base`` late; asked for once, for the
        worker checks the newest one anyway when it is free."""
        if self._candidate is None or self.manifest_respite() is not None:
            return None
        envelope, manifest = self._candidate
        if envelope == self._hurried or not manifest.is_late(base):
            return None
        self._hurried = envelope
        return self.manifest_check()

    def checked(self, job: VerifyJob, result: Verified) -> Command | None:
        """Take the outcome of a check; a command to obey, if it was one and holds."""
        self.ignored += not result.ok
        now = self._clock.monotonic()
        if job.context == COMMAND_CONTEXT:
            self._command_patience = self._command_patience.after(now, held=result.ok)
            if not self._commands or self._commands[0][0] != job.envelope:
                return None
            if result.ok:
                return self._accept_command()
            self._drop_command()
            _log.warning("a command is not obeyed: %s", result.reason)
            return None
        self._manifest_patience = self._manifest_patience.after(now, held=result.ok)
        if self._candidate is not None and self._candidate[0] == job.envelope:
            if result.ok:
                self._accept_manifest()
            else:
                self._candidate = None
                self._dropped = job.envelope
                self.distrust = f"the task manifest is not trusted: {result.reason}"
                _log.warning("%s", self.distrust)
        elif result.ok:
            self._accept_overtaken(job.envelope)
        return None

    def _accept_manifest(self) -> None:
        if self._candidate is not None:
            self._remember(*self._candidate)
            self._candidate = None

    def _accept_overtaken(self, envelope: bytes) -> None:
        """A manifest that holds, and behind which another came while it was checked. Where versions come
        faster than checks go, it may be all that a device ever knows for sure."""
        manifest = self._read_manifest(envelope)
        if manifest is None or manifest.order <= self.seen:
            return
        self._remember(envelope, manifest)
        if self._candidate is not None and self._candidate[1].order <= self.seen:
            self._candidate = None

    def _remember(self, envelope: bytes, manifest: TaskManifest) -> None:
        self._outbox.remember_all({_MANIFEST: envelope, _TRUST: self._trust})
        self._envelope, self._verified = envelope, manifest
        self.distrust = ""

    def _drop_command(self) -> None:
        self._commands = self._commands[1:]

    def _comes_late(self, command: Command) -> bool:
        """Whether a command is not to be obeyed because of its number."""
        if command.order > self._command_order:
            return False
        pause = self._clock.monotonic() - self._old_restate_at
        return command.kind != "restate" or pause < OLD_RESTATE_EVERY_S

    def _accept_command(self) -> Command | None:
        _, command, arrived = self._commands[0]
        if self._comes_late(command):
            self._drop_command()
            self.ignored += 1
            return None
        if command.order <= self._command_order:
            self._drop_command()
            self._old_restate_at = self._clock.monotonic()
            return command
        paused = command.kind == "pause" or (self.paused and command.kind != "resume")
        self._outbox.remember(_COMMAND, pack({"t": command.term, "q": command.sequence, "p": paused}))
        self._drop_command()
        self._command_order = command.order
        self.paused = paused
        if command.kind == "train" and command.lease is not None and command.version is not None:
            self._lease = _Lease(
                lease=command.lease, version=command.version, ends=arrived + command.deadline_s
            )
        return command

    def _read_manifest(self, envelope: bytes) -> TaskManifest | None:
        try:
            manifest = _unpacked(envelope)
        except MessageError as error:
            _log.warning("a task manifest that cannot be read: %s", error)
            return None
        return manifest if (manifest.fleet, manifest.task) == (self._fleet, self._task) else None

    def _recall(self) -> None:
        envelope = self._outbox.recall(_MANIFEST)
        manifest = self._read_manifest(envelope) if envelope else None
        if envelope and manifest and (not self._keys or self._outbox.recall(_TRUST) == self._trust):
            self._envelope, self._verified = envelope, manifest
        elif envelope and manifest:
            # Checked under other keys than are trusted now.
            self._candidate = envelope, manifest
        fact = self._outbox.recall(_COMMAND)
        if fact is not None:
            fields = unpack(fact, limit=64)
            self._command_order = fields.integer("t"), fields.integer("q")
            self.paused = fields.flag("p")


@functools.lru_cache(maxsize=4)
def _trust_in(keys: tuple[str, ...]) -> bytes:
    """Which keys are trusted, as one hash."""
    return hashlib.sha256("\n".join(keys).encode()).digest()


@functools.lru_cache(maxsize=4)
def _unpacked(envelope: bytes) -> TaskManifest:
    """The manifest in an envelope: one comes again and again, retained, restated and recalled."""
    return TaskManifest.unpack(peek(envelope, limit=2 * MAX_TASK_BYTES))
