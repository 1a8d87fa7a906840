"""Every crash point of the code, in real processes: hit, recovered from, and the books balance after it.

Four fleets run at the same time, and their processes die again and again: each is started with all points
that nobody has died at yet, and dies at whichever comes first. What no fleet passes is passed by commands and
by short programs of their own. One test a point says that a process died there; the audits say that nothing
was lost or counted twice by all of it.
"""

import os
import re
import shutil
import signal
import sqlite3
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import closing
from functools import partial
from pathlib import Path

import numpy as np
import pytest
from crash_points import crash_points

from broker_coordinator.books.audit import AuditReport, audit
from fl_io.crash import LAST_WORDS
from hil.local_fleet import FleetOptions, LocalFleet
from hil.processes import ManagedProcess

pytestmark = [pytest.mark.process, pytest.mark.mosquitto, pytest.mark.timeout(400)]

POINTS = tuple(point.name for point in crash_points())
AGENT = ("agent.", "worker.")
COORDINATOR = ("coordinator.", "publish.")
PATIENCE_S = 60.0
FOREVER = 1_000_000


class Battlefield:
    """The points that processes died at, in every fleet and command."""

    def __init__(self) -> None:
        self.deaths: set[str] = set()

    def left(self, *beginnings: str) -> set[str]:
        """The points that begin so and that nobody died at."""
        return {point for point in POINTS if point.startswith(beginnings)} - self.deaths


class Mortal:
    """A process that is started again wherever it dies, with the points that are left."""

    def __init__(
        self,
        field: Battlefield,
        process: ManagedProcess,
        points: Callable[[], set[str]],
        between: Callable[[], None] = lambda: None,
    ) -> None:
        self.process = process
        self.lives = 0
        self._between = between
        self._field = field
        self._points = points
        self._read = 0

    def start(self) -> None:
        """Begin a life."""
        self.lives += 1
        points = ",".join(sorted(self._points()))
        self.process.start({"LICHEN_CRASH_POINT": points} if points else None)

    def look(self) -> bool:
        """Note deaths, of the process or a worker of its; whether there was one. The next life begins."""
        log = self.process.log.read_bytes() if self.process.log.exists() else b""
        new, self._read = log[self._read :].decode(errors="replace"), len(log)
        died = re.findall(f"^{re.escape(LAST_WORDS)}(.+)$", new, re.MULTILINE)
        self._field.deaths.update(died)
        if not self.process.running:
            assert self.process.exit_code == -signal.SIGKILL, self.process.last_words(40)
        elif not died:
            return False
        self.process.kill()
        self._between()
        self.start()
        return True


class Front:
    """A fleet, all of whose processes are mortal."""

    def __init__(
        self, field: Battlefield, folder: Path, *, points: Callable[[], set[str]], **options
    ) -> None:
        self.field = field
        settings = {"": {"safe_after_starts": 0}, **options.pop("agent_settings", {})}
        options = FleetOptions(runtime="numpy", versions=FOREVER, agent_settings=settings, **options)
        self.fleet = LocalFleet(folder, options)
        self.fleet.prepare()
        self.coordinator = Mortal(field, self.fleet.coordinator, lambda: _of(points(), COORDINATOR))
        self.agents = {
            name: Mortal(field, process, lambda: _of(points(), AGENT), partial(self._lose_artifacts, name))
            for name, process in self.fleet.agents.items()
        }
        self._points = points
        self._moved = time.monotonic()

    def begin(self) -> None:
        """Patience begins anew."""
        self._moved = time.monotonic()

    def rest(self) -> None:
        """Nobody lives, until the next battle."""
        for mortal in (self.coordinator, *self.agents.values()):
            mortal.process.kill()
            mortal.lives = 0

    def work(self) -> bool:
        """Start who is not started, and who died; False when no point is left, or none comes."""
        now = time.monotonic()
        if not self._points():
            self.rest()
            return False
        for mortal in (self.coordinator, *self.agents.values()):
            if not mortal.lives:
                mortal.start()
                self._moved = now
                # One after the other: what comes at a first start is for one of them.
                break
            if mortal.look():
                self._moved = now
            if not mortal.process.running or (mortal is self.coordinator and not self._up):
                break
        return now - self._moved < PATIENCE_S / 2

    def _lose_artifacts(self, device: str) -> None:
        """What is fetched once in a device's life is fetched again, as long as points are left on the way."""
        if self.field.left("agent.artifact"):
            shutil.rmtree(self.fleet.agent_state(device) / "artifacts", ignore_errors=True)

    @property
    def _up(self) -> bool:
        return self.fleet.status().get("state") == "running"

    def finish(self) -> AuditReport:
        """Two more versions without a crash, and the books."""
        self.rest()
        fleet = self.fleet
        configuration = fleet.folder / "fleet.toml"
        last = self.version + 2
        configuration.write_text(
            configuration.read_text().replace(f"= {FOREVER}\n", f"= {last}\n"), encoding="utf-8"
        )
        fleet.start()
        assert fleet.coordinator.wait(PATIENCE_S) == 0, fleet.coordinator.last_words()
        for process in fleet.agents.values():
            process.stop()
        return audit(fleet.state, fleet.agent_states)

    @property
    def version(self) -> int:
        """The newest committed version."""
        with closing(sqlite3.connect(self.fleet.state / "coordinator.db")) as db:
            return db.execute("SELECT MAX(number) FROM versions").fetchone()[0] or 0


def _of(points: set[str], beginnings: tuple[str, ...]) -> set[str]:
    return {point for point in points if point.startswith(beginnings)}


class Errand:
    """A short program that is repeated wherever it dies, and must do its work in the end."""

    def __init__(self, field: Battlefield, folder: Path) -> None:
        self._field = field
        self._folder = folder
        self._folder.mkdir(parents=True)
        self._lives = 0

    def run(self, *beginnings: str, words: Callable[[int], list[str]], code: int = 0) -> None:
        """Run ``words(life)`` until it ends by itself, with this exit code."""
        while True:
            points = ",".join(sorted(self._field.left(*beginnings)))
            self._lives += 1
            done = subprocess.run(
                [sys.executable, *words(self._lives)],
                cwd=self._folder,
                env={**os.environ, "LICHEN_CRASH_POINT": points},
                capture_output=True,
                text=True,
                timeout=PATIENCE_S,
                check=False,
            )
            died = re.findall(f"^{re.escape(LAST_WORDS)}(.+)$", done.stderr, re.MULTILINE)
            self._field.deaths.update(died)
            if not died:
                assert done.returncode == code, done.stderr
                return


IN_LARGE = (
    "agent.part",
    "agent.chunk",
    "agent.personal",
    "agent.checkpoint",
    "agent.event",
    "worker.",
    "coordinator.part",
    "coordinator.payload",
    "coordinator.reopened",
)
"""What takes a large model, personal tensors, or a long training."""
IN_SILENT = ("agent.get", "coordinator.set_aside")
"""What takes a broker without retained messages, or a version that cannot be published."""
IN_ERRANDS = (
    "agent.ages",
    "agent.drop_state",
    "agent.expire",
    "agent.quarantine",
    "agent.set_aside",
    "agent.shelf",
    "coordinator.damaged",
    "coordinator.epoch",
    "coordinator.folder",
    "coordinator.forget.",
    "coordinator.key",
    "coordinator.public_key",
    "coordinator.reset_upload",
    "coordinator.schema",
    "coordinator.state.",
)
SPOILT_STATE = ("agent.set_aside", "agent.drop_state", "agent.shelf")
UNPUBLISHABLE = """
from broker_coordinator.global_model import GlobalModel
from fl_protocol.errors import CodecError
from lichen.command import main

def refuse(*_):
    raise CodecError("a version that would not travel")

GlobalModel._commit = refuse
main()
"""
RESET = """
import sys
from pathlib import Path
from broker_coordinator.storage.records import Upload
from broker_coordinator.storage.sqlite_store import SqliteStore
from fl_protocol.ranges import ByteRanges

store = SqliteStore.open(Path(sys.argv[1]))
store.open_upload(Upload(update_id=bytes(16), device="d", header=b"", hash=bytes(32), ranges=ByteRanges()))
store.put_range(bytes(16), 0, 4096)
store.reset_upload(bytes(16))
assert not list(store.upload(bytes(16)).ranges)
store.close_upload(bytes(16))
"""
FORGET = """
import sys
from pathlib import Path
from broker_coordinator.books.retention import RetentionPolicy, prune
from broker_coordinator.storage.sqlite_store import SqliteStore
from broker_coordinator.storage.uploads import PayloadFiles
from broker_coordinator.aggregation.version_state import VersionFiles

folder = Path(sys.argv[1])
store = SqliteStore.open(folder)
prune(store, PayloadFiles(folder), VersionFiles(folder), RetentionPolicy(versions=1, rows=1))
assert store.office().forgotten
"""
SAVE = """
import sys
from models.runtime import TrainingArtifact

TrainingArtifact.open(sys.argv[1]).save(sys.argv[2])
TrainingArtifact.open(sys.argv[2])
"""
WRITE_CARD = """
from pathlib import Path
from broker_coordinator.flash.target import open_target

with open_target(Path("card.img"), replace=True) as card:
    card.write(512, b"card")
    card.sync()
    card.finish()
assert Path("card.img").read_bytes()[512:] == b"card"
"""
REGISTER = """
import tempfile
from pathlib import Path
from broker_coordinator.fleet.folder import FleetFolder, FleetPlan
from broker_coordinator.fleet.payload import Member, PayloadDescription, check_payload, write_payload

fleet = FleetFolder.create(Path(tempfile.mkdtemp(dir=".")), FleetPlan(name="barn", hosts=("localhost",)))
fleet.enroll("pi-07")
assert fleet.registry.active == {"pi-07"}
whole = Path("payload.tar.xz")
about = PayloadDescription(lichen="1", arch="x86_64", pythons=("3.11",), runtime="numpy", packages={})
for _ in range(2):
    if whole.exists():
        assert check_payload(whole, lambda signature, signed: signature == b"s" * 64).files == 2
    write_payload(whole, [Member(path="x", read=bytes)], about, lambda signed: (b"", b"s" * 64))
"""


@pytest.fixture(scope="module")
def war(tmp_path_factory) -> Iterator["War"]:
    """All of it, once; in memory where that is possible, for kill -9 shows no missing fsync anyway."""
    memory = Path("/dev/shm")
    folder = (
        Path(tempfile.mkdtemp(prefix="lichen-", dir=memory))
        if os.access(memory, os.W_OK)
        else tmp_path_factory.mktemp("war")
    )
    war = War(folder)
    try:
        war.wage()
        yield war
    finally:
        war.end()
        shutil.rmtree(folder, ignore_errors=True)


class War:
    """Four fleets and the errands beside them."""

    def __init__(self, folder: Path) -> None:
        self.field = Battlefield()
        self.books: dict[str, AuditReport] = {}
        self._folder = folder
        self._fronts: list[Front] = []

    def wage(self) -> None:
        """Pass every point."""
        small, other = self._small("mosquitto", 0), self._small("amqtt", 1)
        large, silent = self._large(), self._silent()
        self._first_start(small.fleet)
        self._fight(small, other, large, silent)
        self._overdue(large)
        for name, front in (("small", small), ("other", other), ("large", large)):
            self.books[name] = front.finish()
        self._commands(small.fleet)
        self.books["pruned"] = audit(small.fleet.state, small.fleet.agent_states)
        self._spoilt(large.fleet)

    def end(self) -> None:
        """Nobody is left."""
        for front in self._fronts:
            for process in (front.fleet.coordinator, *front.fleet.agents.values()):
                process.kill()
            front.fleet.stop()

    def _front(self, name: str, points: Callable[[], set[str]], **options) -> Front:
        front = Front(self.field, self._folder / name, points=points, **{"broker": "mosquitto", **options})
        self._fronts.append(front)
        return front

    def _small(self, broker: str, half: int) -> Front:
        """Small updates, leases, and a short memory; every other point of those that they pass."""
        elsewhere = (*IN_LARGE, *IN_SILENT, *IN_ERRANDS)
        mine = {point for point in POINTS if not point.startswith(elsewhere)}
        mine = set(sorted(mine)[half::2])
        return self._front(
            f"small-{broker}",
            lambda: self.field.left(*AGENT, *COORDINATOR) & mine,
            broker=broker,
            devices=3,
            settings={
                "buffer": {"size": 2, "flush_after_s": 2},
                "selection": {"kind": "train", "in_flight": 3},
                "retention": {"versions": 2},
                "horizon": {"versions": 2},
                "publish": {"keep": 3},
                "http": {"enabled": False},
            },
        )

    def _large(self) -> Front:
        """Payloads in chunks, a personal head, a checkpoint after each step."""
        from models.build import build_artifact
        from models.zoo import digits
        from models.zoo.mlp import mlp

        build_artifact(
            mlp((64, 1024, 10)),
            loss="softmax_cross_entropy",
            personal=["layer2.*"],
            out=self._folder / "artifact",
        )
        rows, _ = digits.split(seed=0)
        np.savez(self._folder / "samples.npz", x=rows.x[:200], y=rows.y[:200])
        return self._front(
            "large",
            lambda: self.field.left(*IN_LARGE),
            devices=2,
            artifact=self._folder / "artifact",
            samples=self._folder / "samples.npz",
            codec="float32",
            settings={"buffer": {"size": 1}, "http": {"enabled": False}},
            agent_settings={"worker": {"checkpoint_every_s": 0}},
        )

    def _silent(self) -> Front:
        """Nothing is retained: the agent asks for all. Its first version would not travel."""
        front = self._front(
            "silent",
            lambda: self.field.left(*IN_SILENT),
            devices=1,
            settings={"publish": {"retain": "never"}, "buffer": {"size": 1}, "http": {"enabled": False}},
        )
        words = ["-c", UNPUBLISHABLE, "coordinator", "run", "fleet.toml", "--insecure"]
        log = front.fleet.folder / "logs" / "coordinator.log"
        front.fleet.coordinator = front.coordinator.process = ManagedProcess(
            "coordinator", [sys.executable, *words], log, folder=front.fleet.folder
        )
        return front

    def _fight(self, *fronts: Front) -> None:
        """All at the same time, until no point is left of any, or none comes any more."""
        for front in fronts:
            front.begin()
        while sum(front.work() for front in fronts):
            time.sleep(0.02)
        for front in fronts:
            front.rest()

    def _first_start(self, fleet: LocalFleet) -> None:
        """A coordinator makes its folder, its store and its key; and finds no broker. A key that is there is
        not made again: it is taken away for the steps behind it."""
        folder = self._folder / "first"
        text = (fleet.folder / "fleet.toml").read_text()
        text = text.replace('"coordinator"', '"new/state"').replace(fleet.broker_url, "mqtt://127.0.0.1:1")
        errand = Errand(self.field, folder)
        (folder / "fleet.toml").write_text(text.replace('"artifact"', f'"{fleet.folder}/artifact"'))
        (folder / "held_out.npz").symlink_to(fleet.folder / "held_out.npz")
        words = ["-m", "lichen", "coordinator", "run", "fleet.toml", "--insecure"]
        for lost in ((), ("coordinator.pub",), ("coordinator.pub", "coordinator.key")):
            for name in lost:
                (folder / "new" / "state" / name).unlink()
            errand.run(*COORDINATOR, words=lambda life: words, code=1)

    def _overdue(self, front: Front) -> None:
        """An update waits while nobody answers, too long for its outbox."""
        fleet = front.fleet
        victim = front.agents["dev-00"].process

        def waits() -> bool:
            if not fleet.coordinator.running:
                fleet.coordinator.start({"LICHEN_CRASH_POINT": "publish.manifest.delivered"})
                fleet.coordinator.wait(PATIENCE_S)
                time.sleep(1.0)
            return fleet.agent_status("dev-00").get("outbox", {}).get("count", 0) > 0

        for process in (fleet.coordinator, *fleet.agents.values()):
            process.kill()
        for process in fleet.agents.values():
            process.start()
        _await(waits)
        # Its age is saved as it ends: what kill -9 ended has a little more time.
        victim.stop()
        for point in ("agent.ages.commit", "agent.ages.committed"):
            victim.start({"LICHEN_CRASH_POINT": point})
            self._awake(fleet, victim)
            victim.signal(signal.SIGTERM)
            self._died(victim, point)
        configuration = fleet.folder / "devices" / "dev-00" / "agent.toml"
        text = configuration.read_text()
        configuration.write_text(text + "\n[outbox]\nmax_age_s = 0.001\n")
        for point in ("agent.expire.commit", "agent.expire.committed"):
            victim.start({"LICHEN_CRASH_POINT": point})
            self._died(victim, point)
        configuration.write_text(text)

    def _spoilt(self, fleet: LocalFleet) -> None:
        """Personal tensors that a bad card has changed, and an outbox of noise, again and again."""
        changed, noise = fleet.agents.values()
        with closing(sqlite3.connect(fleet.agent_state(changed.name) / "agent.db")) as db:
            db.execute("UPDATE device_states SET content = x'00'")
            db.commit()
        for _ in self.field.left(*SPOILT_STATE):
            changed.start({"LICHEN_CRASH_POINT": ",".join(self.field.left(*SPOILT_STATE))})
            self._died(changed)
        for _ in self.field.left("agent.quarantine"):
            # Who died in the middle of it finds no outbox, which is another case.
            (fleet.agent_state(noise.name) / "agent.db").write_bytes(os.urandom(8192))
            noise.start({"LICHEN_CRASH_POINT": ",".join(self.field.left("agent.quarantine"))})
            self._died(noise)
        for process in (changed, noise):
            process.start()
            self._awake(fleet, process)
            process.stop()

    def _awake(self, fleet: LocalFleet, process: ManagedProcess) -> None:
        _await(lambda: fleet.agent_status(process.name).get("pid") == process.pid)

    def _died(self, process: ManagedProcess, point: str = "") -> None:
        process.wait(PATIENCE_S)
        word = re.findall(f"^{re.escape(LAST_WORDS)}(.+)$", process.last_words(), re.MULTILINE)[-1]
        assert point in (word, "")
        self.field.deaths.add(word)

    def _commands(self, fleet: LocalFleet) -> None:
        """What an operator and an app do, on the state that the fleet has left."""
        folder = self._folder / "errands"
        errand = Errand(self.field, folder)
        state, copy = str(fleet.state), folder / "copy"
        lichen = ["-m", "lichen"]
        errand.run("backup.", words=lambda life: [*lichen, "backup", state, "--out", f"backup-{life}"])
        errand.run("export.", words=lambda life: [*lichen, "export", state, "--out", "weights.npz"])
        newest = max(folder.glob("backup-*"), key=lambda path: int(path.name.partition("-")[2]))
        shutil.copytree(newest, copy)
        text = (fleet.folder / "fleet.toml").read_text().replace('"coordinator"', f'"{copy}"')
        text = text.replace('"artifact"', f'"{fleet.folder}/artifact"')
        (folder / "fleet.toml").write_text(text)
        (folder / "held_out.npz").symlink_to(fleet.folder / "held_out.npz")
        recover = [*lichen, "coordinator", "recover", "--force", "fleet.toml"]
        errand.run("coordinator.epoch", words=lambda life: recover)
        errand.run("coordinator.reset_upload", words=lambda life: ["-c", RESET, str(copy)])
        (copy / "coordinator.db").write_bytes(os.urandom(8192))
        errand.run(
            "coordinator.damaged",
            words=lambda life: [*lichen, "coordinator", "run", "fleet.toml", "--insecure"],
            code=1,
        )
        errand.run("coordinator.forget.", words=lambda life: ["-c", FORGET, state])
        agent = ["-m", "edge_agent"]
        toml = str(fleet.folder / "devices" / "dev-00" / "agent.toml")
        np.savez(folder / "rows.npz", x=np.zeros((3, 64), np.float32), y=np.zeros(3, np.int64))
        errand.run("samples.", words=lambda life: [*agent, "samples", "add", "--config", toml, "rows.npz"])
        errand.run("check.", words=lambda life: [*agent, "check", "--config", toml])
        artifact = str(fleet.folder / "artifact")
        errand.run("artifact.", words=lambda life: ["-c", SAVE, artifact, "saved"])
        errand.run("fleet.", words=lambda life: ["-c", REGISTER])
        errand.run("flash.", words=lambda life: ["-c", WRITE_CARD])


def _await(condition: Callable[[], bool]) -> None:
    until = time.monotonic() + PATIENCE_S
    while not condition():
        assert time.monotonic() < until, "nothing came of it"
        time.sleep(0.02)


@pytest.mark.parametrize("point", POINTS)
def test_a_process_died_at_the_point_and_went_on(war, point):
    """A point that nobody passes is no point: rename it, or show how it is passed."""
    assert point in war.field.deaths


@pytest.mark.parametrize("fleet", ["small", "other", "large", "pruned"])
def test_nothing_was_lost_or_counted_twice_by_all_those_deaths(war, fleet):
    """And every version that is kept is reproduced bit for bit, journal rows dropped or not."""
    books = war.books[fleet]
    assert books.balanced, books.faults
    assert (books.lost, books.duplicated, books.replay_ok) == (0, 0, True)
