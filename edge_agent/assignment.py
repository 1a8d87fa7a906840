"""The assignment: from the newest manifest to an update in the outbox, one step at a time.

manifest -> its gates -> this device's gates -> start spread -> signature -> fetch -> prepare -> train ->
outbox. Gates come before the signature because a check costs a process: an unsigned manifest can make
the device wait, which anybody who can publish could do, but nothing in it is acted on.
"""

import functools
import hashlib
import logging
import os
import random
import secrets
import sys
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import TypeAlias

import msgpack

from edge_agent.cache import Cache
from edge_agent.chance import Chance
from edge_agent.configuration import AgentConfiguration
from edge_agent.device_state import DeviceState
from edge_agent.download import Downloads
from edge_agent.jobs import (
    Job,
    JobFailed,
    Prepared,
    PrepareJob,
    Result,
    Trained,
    TrainJob,
)
from edge_agent.lookout import LOOK_EVERY_S, Lookout
from edge_agent.model_notice import NoticeBoard
from edge_agent.orders import Orders
from edge_agent.outbox import Outbox, OutboxEntry
from edge_agent.presence import AGENT_VERSION, is_older
from edge_agent.refusals import Refusals
from edge_agent.sealed import unseal
from edge_agent.setbacks import Setbacks
from edge_agent.state_folder import StateFolder
from fl_io.crash import crash_point
from fl_protocol.clock import Clock
from fl_protocol.errors import ArtifactError, LichenError, StorageError
from fl_protocol.task import TaskManifest, participates
from fl_protocol.topics import UPDATE_ID_BYTES
from fl_protocol.update import UpdateHeader, runtime_label
from fl_protocol.version import VersionId

__all__ = ["Assignment"]

FOREVER = 86400.0
_PREPARED = "prepared"
_PACKAGES = str(Path(msgpack.__file__ or "").parents[1])
_Told: TypeAlias = tuple[TaskManifest | None, bool, str, int]
_log = logging.getLogger("lichen.agent")


class Assignment:
    """What this device does about its task.

    ``state`` is one of ``waiting``, ``verifying``, ``fetching``, ``preparing``, ``training``;
    ``idle_reason`` says why it is not training, empty while it is. ``report`` tells the coordinator of a
    failure, once per manifest.

    Raises:
        StorageError, OSError: from ``next_job`` and ``finished``, if the disk refuses; call again later.
    """

    __slots__ = (
        "_at_work",
        "_begun",
        "_board",
        "_cache",
        "_cancelled",
        "_chance",
        "_clock",
        "_configuration",
        "_created",
        "_done_under",
        "_downloads",
        "_entropy",
        "_fetching",
        "_folder",
        "_lease",
        "_lookout",
        "_mended",
        "_orders",
        "_outbox",
        "_refusals",
        "_renewed",
        "_report",
        "_setbacks",
        "_start",
        "_tidy",
        "abandoned",
        "idle_reason",
        "runtime",
        "state",
        "training_cpu_s",
        "wait_s",
    )

    def __init__(
        self,
        configuration: AgentConfiguration,
        *,
        orders: Orders,
        cache: Cache,
        downloads: Downloads,
        outbox: Outbox,
        lookout: Lookout,
        refusals: Refusals,
        clock: Clock,
        folder: StateFolder,
        board: NoticeBoard,
        created: Callable[[OutboxEntry], None],
        report: Callable[[str], None],
        chance: Chance | None = None,
        entropy: Callable[[int], bytes] = secrets.token_bytes,
    ) -> None:
        self.state = "waiting"
        self.idle_reason = "no task has been published yet"
        self.wait_s = FOREVER
        self.runtime = ""
        self.training_cpu_s = 0.0
        """CPU time that trainers took since this process began; evaluation and encoding not included."""
        self.abandoned = 0
        """Trainings that were ended since this process began because their update would have come late."""
        self._configuration = configuration
        self._orders = orders
        self._cache = cache
        self._downloads = downloads
        self._outbox = outbox
        self._lookout = lookout
        self._refusals = refusals
        self._clock = clock
        self._folder = folder
        self._board = board
        self._renewed = False
        self._created = created
        self._report = report
        self._chance = chance or random.Random()
        self._entropy = entropy
        self._setbacks = Setbacks(clock, self._chance)
        self._start: tuple[VersionId, float] | None = None
        self._at_work: TaskManifest | None = None
        self._lease: bytes | None = None
        self._cancelled = False
        self._fetching: VersionId | None = None
        self._begun: TaskManifest | None = None
        """Whose files are on their way: not always the newest one's."""
        self._mended: VersionId | None = None
        self._done_under: _Told | None = None
        """The orders under which there was nothing to do but wait for the next version."""
        self._tidy = False
        """Whether nothing was begun to be fetched since old files were dropped for good."""

    def next_job(self) -> Job | None:
        """The worker's next job, if there is one; else ``idle_reason`` says why not, and ``wait_s`` when
        to ask again. Call it only while the worker is free."""
        self.wait_s = FOREVER
        self._renew_notice()
        if self._done_under is not None and self._done_under == self._told():
            return None
        self._done_under = None
        manifest = self._choose()
        obstacle = self._obstacle(manifest)
        if manifest is None or obstacle is not None:
            if manifest is None or not self._shows_too_little(manifest) or self._show_again(manifest):
                self._wait(*(obstacle or ("", None)))
                self._done_under = self._told() if self._is_done(manifest) else None
            return None
        check = None if manifest is self._begun else self._orders.manifest_check()
        if check is not None:
            return self._go("verifying", manifest, check)
        if not self._fetch(manifest):
            return None
        self._board.show(manifest, self._device_state(manifest.artifact.sha256))
        if not self._configuration.trainer and not self._is_prepared(manifest):
            return self._go("preparing", manifest, self._prepare_job(manifest))
        return self._go("training", manifest, self._train_job(manifest))

    def for_others(self, reason: str) -> str:
        """An ``idle_reason`` as it may leave the device."""
        return self._setbacks.for_others(reason)

    @property
    def standing(self) -> str:
        """What lastingly keeps this device from training, as it may leave the device; empty while nothing
        does."""
        return self._setbacks.standing or self._lookout.standing

    def should_cancel(self) -> bool:
        """Whether a training under way must end now: paused, a gate of the device shut, or its update would
        be refused as late."""
        late = self._at_work is not None and self._orders.is_late(self._at_work.version)
        if not late and not self._orders.paused and self._lookout.shut(in_training=True) is None:
            self.wait_s = max(self._lookout.next_at - self._clock.monotonic(), 0.0)
            return False
        if late and not self._cancelled:
            self.abandoned += 1
            _log.info("the training is abandoned: its update would come too late")
        self._cancelled = True
        self.wait_s = LOOK_EVERY_S
        return True

    def finished(self, job: Job, result: Result) -> None:
        """Take what a job gave. It is about the manifest it was begun for, whatever came since."""
        manifest, self._at_work = self._at_work, None
        cancelled, self._cancelled = self._cancelled, False
        self._lookout.look_again()
        if manifest is None:
            return
        if isinstance(result, Prepared):
            self.runtime = result.runtime or "the trainer"
            for reason in result.skipped:
                _log.warning("a runtime is not used: %s", reason)
            self._outbox.remember(_PREPARED, self._preparation(manifest, self.runtime))
        elif isinstance(result, Trained) and isinstance(job, TrainJob):
            self.training_cpu_s += result.training_cpu_s
            try:
                self._keep(manifest, job, result)
            except LichenError as error:
                self._fail(manifest, JobFailed(reason=f"{error.args[0]}", retryable=True))
                raise
            self._setbacks.succeed()
        elif isinstance(result, JobFailed) and not cancelled:
            self._fail(manifest, result)

    def _choose(self) -> TaskManifest | None:
        """The newest manifest; but one that was overtaken while its files came goes before it, as long as
        they come. A link slower than the fleet's pace would begin with each version and never end."""
        newest, begun = self._orders.manifest, self._begun
        if newest is None or begun is None or begun.version == newest.version:
            return newest
        gone = self._downloads.gone or self._downloads.stalled
        if gone or not _continues(begun, newest) or self._task_gate(begun) is not None:
            self._begun = None
            return newest
        return begun

    def _obstacle(self, manifest: TaskManifest | None) -> tuple[str, float | None] | None:
        """Why nothing is to be done now, and the moment at which that may have changed by itself."""
        if manifest is None:
            return self._orders.distrust or "no task has been published yet", None
        reason = self._task_gate(manifest)
        if reason is not None:
            self._lookout.unasked()
            return self._orders.distrust or reason, None
        reason = self._lookout.shut()
        if reason is not None:
            return reason, self._lookout.next_at
        start = self._start_time(manifest)
        if start > self._clock.monotonic():
            return "waiting for its start, drawn at random", start
        return (
            self._refusals.pending(manifest.version)
            or self._setbacks.pending(manifest)
            or self._orders.manifest_respite()
        )

    def _told(self) -> _Told:
        """What the orders and receipts say, as far as it changes what there is to do."""
        return self._orders.manifest, self._orders.paused, self._orders.distrust, self._outbox.given_back

    def _is_done(self, manifest: TaskManifest | None) -> bool:
        """Whether the newest version is trained on and shown: then nothing is to be done at any turn."""
        return (
            manifest is not None
            and manifest is self._orders.manifest
            and self._outbox.made_update_for(manifest.version)
            and self._board.shows(manifest.version)
        )

    def _task_gate(self, manifest: TaskManifest) -> str | None:
        version = manifest.version
        if self._orders.paused:
            return "paused by the coordinator"
        if is_older(AGENT_VERSION, manifest.minimum_agent):
            return f"this agent is {AGENT_VERSION}, the task needs {manifest.minimum_agent}: update it"
        if self._outbox.made_update_for(version):
            return f"trained on version {version.epoch}.{version.number}; waiting for a newer one"
        if manifest.pacing.by_lease:
            lease = self._orders.lease_for(manifest)
            return None if lease else "waiting for the coordinator's lease"
        if not participates(self._configuration.device, version, manifest.pacing.participation):
            return f"not drawn for version {version.epoch}.{version.number}"
        return None

    def _start_time(self, manifest: TaskManifest) -> float:
        if manifest.pacing.by_lease or not manifest.pacing.spread_s:
            return 0.0
        if self._start is None or self._start[0] != manifest.version:
            delay = self._chance.uniform(0.0, manifest.pacing.spread_s)
            self._start = manifest.version, self._clock.monotonic() + delay
        return self._start[1]

    def _fetch(self, manifest: TaskManifest) -> bool:
        """Whether all that training needs is here; else it is being fetched."""
        try:
            goals = self._cache.missing(manifest)
        except ArtifactError as error:
            self._fail(manifest, JobFailed(reason=str(error), retryable=False))
            self._wait(str(error), None)
            return False
        version = manifest.version
        if goals and self._fetching != version:
            if not self._tidy:
                # Parts of versions that were overtaken on a slow link must not fill the card.
                self._cache.drop_old(manifest, spare=self._board.files)
            self._tidy = False
            self._fetching = version
            self._begun = manifest
        self._downloads.want(goals)
        if not goals:
            return True
        self.state = "fetching"
        self.idle_reason = (
            f"version {version.epoch}.{version.number} is no longer published; waiting for a newer one"
            if self._downloads.gone
            else f"fetching version {version.epoch}.{version.number}"
        )
        return False

    def _shows_too_little(self, manifest: TaskManifest) -> bool:
        """Whether a power cut took the notice of a version, or its files, after the device trained on it."""
        return (
            manifest is self._orders.manifest
            and self._orders.verified
            and not self._orders.paused
            and not self._board.shows(manifest.version)
            and self._outbox.made_update_for(manifest.version)
        )

    def _show_again(self, manifest: TaskManifest) -> bool:
        """Show apps a version that this device has trained on; False while its files are fetched again."""
        if not self._fetch(manifest):
            return False
        self._board.show(manifest, self._device_state(manifest.artifact.sha256))
        return True

    def _prepare_job(self, manifest: TaskManifest) -> PrepareJob:
        return PrepareJob(
            artifact_dir=str(self._cache.artifact(manifest.artifact)),
            runtimes=self._configuration.runtimes,
        )

    def _train_job(self, manifest: TaskManifest) -> TrainJob:
        configuration = self._configuration
        if not self._tidy:
            self._cache.drop_old(manifest)
            self._tidy = True
        self._lease = self._orders.lease_for(manifest) if manifest.pacing.by_lease else None
        return TrainJob(
            update_id=self._entropy(UPDATE_ID_BYTES),
            device_seed=self._folder.device_seed,
            artifact_dir=str(self._cache.artifact(manifest.artifact)),
            weights_path=str(self._cache.weights(manifest.weights)),
            samples_path=str(configuration.samples_path),
            plan=manifest.plan,
            base=manifest.version,
            codec=manifest.codec,
            fingerprint=manifest.fingerprint,
            max_examples=manifest.max_examples,
            runtimes=(self.runtime,) if self.runtime in configuration.runtimes else configuration.runtimes,
            trainer=configuration.trainer,
            trainer_path=str(configuration.trainer_path or ""),
            device_state=self._device_state(manifest.artifact.sha256),
            checkpoint_path=str(self._folder.checkpoint),
            checkpoint_every_s=configuration.worker.checkpoint_every_s,
            codec_state=self._outbox.codec_state(),
        )

    def _keep(self, manifest: TaskManifest, job: TrainJob, trained: Trained) -> None:
        header = UpdateHeader(
            incarnation=self._folder.incarnation,
            base=manifest.version,
            codec=manifest.codec,
            size=len(trained.payload),
            sha256=hashlib.sha256(trained.payload).digest(),
            fingerprint=manifest.fingerprint,
            num_examples=trained.num_examples,
            steps_done=trained.steps_done,
            steps_planned=trained.steps_planned,
            lease=self._lease,
            metrics=trained.metrics,
            runtime=runtime_label(trained.runtime),
        )
        state = trained.device_state
        kept = DeviceState(artifact=manifest.artifact.sha256, content=state) if state else None
        # Where the task's codec keeps nothing, what one before it kept goes.
        left = trained.codec_state if trained.codec_state or job.codec_state else None
        entry = self._outbox.put(job.update_id, header, trained.payload, codec_state=left, device_state=kept)
        self._orders.end_lease(self._lease)
        self._created(entry)
        # What is left to do must not make a failure of an update that is made.
        with suppress(OSError):
            self._folder.drop_checkpoint()
            crash_point("agent.checkpoint.removed")
        self._renewed = kept is None

    def _device_state(self, artifact: bytes) -> bytes:
        """What there is of personal tensors for an artifact. What the card has spoilt is set aside and
        reported; then, and where the outbox was lost, the copy for apps is what there is."""
        while (kept := self._outbox.device_state(artifact)) is not None:
            try:
                unseal(kept.content, "the personal state")
            except StorageError as error:
                said = self._folder.set_aside("personal-state", kept.content, str(error.args[0]))
                self._outbox.drop_device_state(kept.artifact)
                _log.warning("%s", said)
                self._report(said)
            else:
                return (kept.artifact != artifact and self._board.device_state(artifact)) or kept.content
        return self._board.device_state(artifact)

    def _renew_notice(self) -> None:
        """Show the personal tensors as the last training left them: once in each life, for it may be that the
        last one ended in between, and after each training."""
        if not self._renewed and self._board.artifact:
            self._board.renew(self._device_state(self._board.artifact))
        self._renewed = True

    def _is_prepared(self, manifest: TaskManifest) -> bool:
        known = self._outbox.recall(_PREPARED) or b""
        wanted = self._preparation(manifest)
        if not known.startswith(wanted):
            return False
        self.runtime = sys.intern(known[len(wanted) :].decode())
        return True

    def _preparation(self, manifest: TaskManifest, runtime: str = "") -> bytes:
        """What the golden steps were run on: the artifact, the runtimes asked for, the packages here; and by
        what."""
        packages = os.stat(_PACKAGES).st_mtime_ns
        return _preparation(manifest.artifact.sha256, packages, self._configuration.runtimes, runtime)

    def _fail(self, manifest: TaskManifest, failed: JobFailed) -> None:
        """Note a failure. Where the disk refuses to, the setback stands all the same."""
        mended = self._mend(manifest)
        if not mended:
            first = self._setbacks.fail(manifest, failed)
            _log.warning("version %s gave no update: %s", manifest.version, failed.reason)
            if first:
                self._report(failed.for_others)
        self._outbox.remember(_PREPARED, b"")

    def _mend(self, manifest: TaskManifest) -> bool:
        """Whether a file was not what it was; it is then fetched again, which is remedy enough, once for
        each version: a card that spoils what it is given is no passing fault."""
        if not self._orders.verified or self._mended == manifest.version:
            return False
        self._cache.distrust()
        try:
            damaged = list(self._cache.missing(manifest))
        except (ArtifactError, OSError):
            return False
        for path in damaged:
            _log.warning("%s was damaged and is fetched again", path)
            self._mended = manifest.version
        return bool(damaged)

    def _wait(self, reason: str, until: float | None) -> None:
        self.state = "waiting"
        self.idle_reason = reason
        self._begun = None
        if until is not None:
            self.wait_s = max(until - self._clock.monotonic(), 0.0)
        self._downloads.want({})

    def _go(self, state: str, manifest: TaskManifest, job: Job) -> Job:
        self.state = state
        self.idle_reason = ""
        self._at_work = manifest
        return job


@functools.lru_cache(maxsize=16)
def _preparation(artifact: bytes, packages: int, runtimes: tuple[str, ...], runtime: str) -> bytes:
    """One text for all agents of a process."""
    return artifact + f" {AGENT_VERSION} {packages} {','.join(runtimes)} {runtime}".encode()


def _continues(begun: TaskManifest, newest: TaskManifest) -> bool:
    """Whether an update for ``begun`` is still of use when ``newest`` is out."""
    if newest.is_late(begun.version):
        return False
    return (begun.version.epoch, begun.fingerprint, begun.codec, begun.artifact) == (
        newest.version.epoch,
        newest.fingerprint,
        newest.codec,
        newest.artifact,
    )
