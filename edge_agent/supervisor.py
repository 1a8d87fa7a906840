"""The supervisor: what the agent is between two trainings, asleep most of the time.

It takes events (of the connection, of the worker), does what is due, and says when it wants to be called
again. Nothing in it waits, computes or loads an array library. What is due is done by chores, each for
itself: a full disk that keeps it from training does not keep it from delivering what it has.
"""

import logging
import os
import random
import secrets
from collections.abc import Callable, Mapping
from typing import Any, TypeAlias

from edge_agent.assignment import Assignment
from edge_agent.cache import Cache, runtimes_found
from edge_agent.chance import Chance
from edge_agent.chores import Chores
from edge_agent.configuration import AgentConfiguration
from edge_agent.correspondence import Correspondence
from edge_agent.gates import LinuxMachine, Machine
from edge_agent.inbox import MAX_WAITING, Inbox
from edge_agent.jobs import Deliver, Job, JobFailed, Progress, Result, TrainJob, Verified, VerifyJob, Worker
from edge_agent.limits import Limits, read_limits
from edge_agent.lookout import Lookout
from edge_agent.model_notice import NoticeBoard
from edge_agent.outbox import Outbox, OutboxEntry
from edge_agent.outbox_counts import OutboxCounts
from edge_agent.presence import Presence
from edge_agent.refusals import Refusals
from edge_agent.safe_mode import SafeMode
from edge_agent.sample_count import CountSamples, count_samples
from edge_agent.standing import Standing
from edge_agent.state_folder import StateFolder
from edge_agent.status import StatusFile, StatusSink, counts_body
from edge_agent.wear import Wear
from fl_io.crash import crash_point
from fl_io.disk import DISK, Disk
from fl_io.watchdog import Watchdog
from fl_protocol.clock import Clock
from fl_protocol.errors import LichenError, StorageError
from fl_protocol.signed import COMMAND_CONTEXT, TASK_CONTEXT
from fl_protocol.transport import Transport, TransportEvent

__all__ = ["Supervisor"]

LONGEST_SLEEP_S = 600.0
EXPIRE_EVERY_S = 3600.0
WORKER_ALLOWANCE_S = 300.0
"""What a job may take beyond its own deadline: a worker's start, a check, the grace of one that is killed."""
_PASSING = ("verifying", "fetching version", "uploading")
_NO_COUNTS = OutboxCounts()
_log = logging.getLogger("lichen.agent")

_Item: TypeAlias = TransportEvent | tuple[Job, Result] | None


class Supervisor:
    """One device of one fleet. Drive it by ``start``, ``receive`` and ``work``, or let ``run`` do so.

    ``receive`` may be called from any thread and returns at once; all else from one thread. ``count`` counts
    the samples at a path, ``limits`` are those of this process, ``status`` takes what ``status.json`` says,
    ``chance`` draws jitter, ``entropy`` the update ids.

    Raises:
        StorageError: from ``work`` and ``run``, if the outbox is found damaged (``is_damage``). Close this
            supervisor, open the outbox anew, and make another.
    """

    __slots__ = (
        "_assignment",
        "_cache",
        "_check",
        "_check_ends",
        "_checker",
        "_chores",
        "_clock",
        "_configuration",
        "_correspondence",
        "_counts",
        "_disk",
        "_expire_at",
        "_folder",
        "_inbox",
        "_job",
        "_job_ends",
        "_limits",
        "_lookout",
        "_make_worker",
        "_orders",
        "_outbox",
        "_safe_mode",
        "_said",
        "_standing",
        "_status",
        "_stopping",
        "_transport",
        "_watchdog",
        "_wear",
        "_worker",
    )

    def __init__(
        self,
        configuration: AgentConfiguration,
        *,
        transport: Transport,
        presence: Presence,
        clock: Clock,
        folder: StateFolder,
        outbox: Outbox,
        make_worker: Callable[[Deliver], Worker],
        watchdog: Watchdog | None = None,
        machine: Machine | None = None,
        limits: Limits | None = None,
        disk: Disk = DISK,
        count: CountSamples = count_samples,
        status: StatusSink | None = None,
        chance: Chance | None = None,
        entropy: Callable[[int], bytes] = secrets.token_bytes,
    ) -> None:
        chance = chance or random.Random()
        self._configuration = configuration
        self._transport, self._clock = transport, clock
        self._folder, self._outbox, self._disk = folder, outbox, disk
        self._wear = Wear()
        self._limits = limits or read_limits()
        self._inbox: Inbox[_Item] = Inbox()
        self._watchdog = watchdog
        self._safe_mode = SafeMode(outbox, clock, after=configuration.safe_after_starts)
        self._make_worker = make_worker
        self._worker = make_worker(self._deliver)
        self._checker: Worker | None = None
        """Checks commands and manifests while the worker trains: a ``pause``, or the end of a round, must not
        wait for what it is to end."""
        runtimes = runtimes_found(configuration.runtimes)
        self._cache = Cache(folder.blobs, folder.artifacts, runtimes=runtimes, disk=disk)
        self._lookout = Lookout(
            configuration.gates,
            configuration.samples_path,
            machine=machine or LinuxMachine(),
            clock=clock,
            count=count,
        )
        refusals = Refusals(clock, chance)
        self._correspondence = Correspondence(
            configuration,
            transport=transport,
            presence=presence,
            clock=clock,
            outbox=outbox,
            lookout=self._lookout,
            safe_mode=self._safe_mode,
            refusals=refusals,
            incarnation=folder.incarnation,
            idle_reason=self._for_birth,
            disk=disk,
            chance=chance,
        )
        self._orders = self._correspondence.orders
        self._assignment = Assignment(
            configuration,
            orders=self._orders,
            cache=self._cache,
            downloads=self._correspondence.downloads,
            outbox=outbox,
            lookout=self._lookout,
            refusals=refusals,
            clock=clock,
            folder=folder,
            board=NoticeBoard(folder.path, runtimes=runtimes, disk=disk),
            created=self._created,
            report=self._correspondence.report,
            chance=chance,
            entropy=entropy,
        )
        self._standing = Standing(
            clock, trouble=self._in_the_way, restate=self._correspondence.attendance.restate
        )
        self._chores = Chores(clock, self, _WORKS)
        self._status = status or StatusFile(folder.run / "status.json", clock)
        self._counts = _NO_COUNTS
        self._job: Job | None = None
        self._check: VerifyJob | None = None
        self._job_ends = 0.0
        self._check_ends = 0.0
        if watchdog is not None:
            watchdog.add(self._worker_fault)
        self._expire_at = 0.0
        self._said = ""
        self._stopping = False

    @property
    def state(self) -> str:
        """One word; see ``idle_reason`` for why it is not ``training``."""
        if self._stopping:
            return "stopped"
        if self._assignment.state != "waiting":
            return self._assignment.state
        if not self._connected:
            return "offline"
        return "uploading" if len(self._correspondence.uploads) else "waiting"

    @property
    def idle_reason(self) -> str:
        """Why this device is not training, in a sentence; empty while it is."""
        if trouble := self._chores.trouble("assignment") or self._safe_mode.reason:
            return trouble
        if not self._connected and self._assignment.state in ("waiting", "fetching"):
            if not self._correspondence.offline_reason:
                return f"connecting to {self._configuration.address}"
            return f"not connected: {self._correspondence.offline_reason}"
        return self._correspondence.missing_fleet or self._assignment.idle_reason

    def start(self) -> None:
        """Begin to connect."""
        for sentence in self._folder.quarantined:
            _log.warning("%s", sentence)
        # Where systemd started us limits are meant to be there; at a prompt nobody expects any.
        if "INVOCATION_ID" in os.environ and self._limits.warning:
            _log.warning("%s", self._limits.warning)
        self._transport.start(self.receive)
        if self._watchdog is not None:
            self._watchdog.ready()

    def receive(self, event: TransportEvent) -> None:
        """Take an event of the connection."""
        self._inbox.put(event)

    def work(self) -> float:
        """Do all that is due; seconds until more is."""
        wait = 0.0
        while not self._stopping:
            for item in self._inbox.take(MAX_WAITING):
                self._take(item)
            wait = self._chores.work()
            if not len(self._inbox):
                break
        self._say()
        waits = [wait, self._status.write(self.status), self._watchdog.turn() if self._watchdog else None]
        return min([LONGEST_SLEEP_S, *(wait for wait in waits if wait is not None)])

    def run(self) -> None:
        """Work until ``stop``."""
        self.start()
        try:
            while not self._stopping:
                self._inbox.wait(self.work())
        finally:
            self.close()

    def stop(self) -> None:
        """Make ``run`` return; safe from a signal's handler."""
        self._stopping = True
        self._inbox.put(None)

    def close(self) -> None:
        """Say farewell, end the worker and the connection, close the outbox."""
        self._stopping = True
        if self._watchdog is not None:
            self._watchdog.stopping()
        self._safe_mode.end()
        try:
            self._correspondence.attendance.depart()
            for worker in filter(None, (self._checker, self._worker)):
                worker.stop()
            self._transport.stop()
            self._status.write(self.status, at_once=True)
        finally:
            self._outbox.close()

    def status(self) -> dict[str, Any]:
        """What ``run/status.json`` says."""
        manifest = self._orders.manifest
        traffic = self._transport.traffic()
        correspondence = self._correspondence
        return {
            "device": self._configuration.device,
            "fleet": self._configuration.fleet,
            "pid": os.getpid(),
            "state": self.state,
            "idle_reason": self.idle_reason,
            "safe_mode": self._safe_mode.active,
            "connected": self._connected,
            "tls_date_error": correspondence.date_error,
            "epoch": manifest.version.epoch if manifest else None,
            "version": manifest.version.number if manifest else None,
            **counts_body(self._outbox_counts()),
            "last_refusal": correspondence.uploads.last_refusal,
            "bytes_sent": traffic.sent,
            "bytes_received": traffic.received,
            "reconnects": correspondence.reconnects,
            "ignored": correspondence.ignored + self._orders.ignored,
            "dropped": self._inbox.dropped,
            "failures": self._chores.failures + correspondence.uploads.unreadable,
            "damaged_chunks": correspondence.downloads.damaged,
            "damaged_files": self._cache.damaged,
            "wear": self._wear.body(self._disk.syncs + self._outbox.commits),
            "limits": self._limits.body(),
            "worker": {"job": _name(self._job), "pid": self._worker.process_id},
            "runtime": self._assignment.runtime,
            "training_cpu_s": round(self._assignment.training_cpu_s, 3),
            "trainings_abandoned": self._assignment.abandoned,
            "samples": {"training": self._lookout.samples, "held_out": self._lookout.held_out},
        }

    @property
    def _connected(self) -> bool:
        return self._correspondence.attendance.connected

    def _for_birth(self) -> str:
        """Why this device is not training, as a birth says it."""
        self._standing.told()
        return self._assignment.for_others(self.idle_reason)

    def _in_the_way(self) -> str:
        return self._chores.trouble("assignment") or self._safe_mode.reason or self._assignment.standing

    def _stand(self) -> float:
        """What a connection brings with it needs no birth beside it."""
        return self._standing.work() if self._connected else LONGEST_SLEEP_S

    def _deliver(self, job: Job, result: Result) -> None:
        self._inbox.put((job, result))

    def _created(self, entry: OutboxEntry) -> None:
        self._correspondence.uploads.add(entry)
        self._safe_mode.prove()

    def _allowance_s(self, job: Job) -> float:
        """How long a job may take before the worker itself must be what hangs."""
        own = job.plan.deadline_s if isinstance(job, TrainJob) else 0.0
        return self._configuration.worker.deadline_factor * own + WORKER_ALLOWANCE_S

    def _worker_fault(self) -> str:
        """What the watchdog is to know: the worker's own deadline, passed long ago, did not end it."""
        now = self._clock.monotonic()
        for job, ends in ((self._job, self._job_ends), (self._check, self._check_ends)):
            if job is not None and now > ends:
                return f"the worker has not ended its job: {_name(job)}"
        return ""

    def _take(self, item: _Item) -> None:
        """Take one thing in; what the disk refuses to keep is not obeyed either."""
        if isinstance(item, tuple):
            try:
                self._finish(*item)
            except (LichenError, OSError) as error:
                self._chores.rest("assignment", error)
        elif item is not None:
            try:
                self._correspondence.take(item)
            except (LichenError, OSError) as error:
                self._chores.count(error)

    def _finish(self, job: Job, result: Result) -> None:
        if isinstance(result, Progress) or self._stopping:
            return
        if job is self._check:
            self._check = None
            if isinstance(result, JobFailed) and job.context == TASK_CONTEXT:
                return  # the worker checks it when it is free
        else:
            self._job = None
        if isinstance(job, VerifyJob) and isinstance(result, JobFailed) and job.context == COMMAND_CONTEXT:
            result = Verified(ok=False, reason=result.reason)
        if isinstance(job, VerifyJob) and isinstance(result, Verified):
            self._correspondence.obey(self._orders.checked(job, result))
        else:
            self._assignment.finished(job, result)

    def _employ_worker(self) -> float:
        if self._job is None and self._check is None:
            job: Job | None = self._orders.command_check()
            if job is None and not self._safe_mode.active:
                job = self._assignment.next_job()
            if job is not None:
                self._job = job
                self._job_ends = self._clock.monotonic() + self._allowance_s(job)
                self._say()
                self._worker.submit(job)
                if isinstance(job, TrainJob):
                    crash_point("agent.training")
        elif isinstance(self._job, TrainJob):
            if self._assignment.should_cancel():
                self._worker.cancel()
            elif self._check is None and (check := self._check_meanwhile(self._job)) is not None:
                self._check = check
                self._check_ends = self._clock.monotonic() + self._allowance_s(check)
                self._checker = self._checker or self._make_worker(self._deliver)
                self._checker.submit(check)
        return min(self._assignment.wait_s, self._orders.command_wait_s() or LONGEST_SLEEP_S)

    def _check_meanwhile(self, job: TrainJob) -> VerifyJob | None:
        """What is to be checked while the worker trains: whatever may end the training."""
        return self._orders.command_check() or self._orders.hurried_check(job.base)

    def _expire(self) -> float:
        left = self._expire_at - self._clock.monotonic()
        if left > 0:
            return left
        self._correspondence.uploads.forget(self._outbox.expire_old())
        self._expire_at = self._clock.monotonic() + EXPIRE_EVERY_S
        return EXPIRE_EVERY_S

    def _outbox_counts(self) -> OutboxCounts:
        """As they are, or as they were when the outbox could last be read."""
        try:
            self._counts = self._outbox.counts()
        except StorageError:
            self._chores.failures += 1
        return self._counts

    def _say(self) -> None:
        """One line for each change of what we do; what every version passes through is for debugging."""
        if not _log.isEnabledFor(logging.INFO):
            return
        reason = self.idle_reason
        line = f"{self.state}: {reason}" if reason else self.state
        if reason.startswith(self.state):
            line = reason
        level = logging.DEBUG if line.startswith(_PASSING) else logging.INFO
        if line != self._said and _log.isEnabledFor(level):
            self._said = line
            _log.log(level, "%s", line)


_WORKS: Mapping[str, Callable[[Supervisor], float]] = {
    "assignment": Supervisor._employ_worker,
    "downloads": lambda agent: agent._correspondence.downloads.work(),
    "uploads": lambda agent: agent._correspondence.uploads.work(),
    "standing": Supervisor._stand,
    "attendance": lambda agent: agent._correspondence.attend(),
    "expiry": Supervisor._expire,
    "safe_mode": lambda agent: agent._safe_mode.work(),
}
"""What there is to do by turns, and in which order: what is wanted, before it is fetched."""


def _name(job: Job | None) -> str:
    return type(job).__name__.removesuffix("Job").lower() if job else ""
