"""Freeze what a release leaves on the disk and says on the wire (not run by the tests):

    python tests/releases/make_release.py RELEASE

RELEASE is a commit, or a venv, as of ``python -m hil.releases``. Into a new folder go ``fleet.tar.xz``, the
state folders of a coordinator and of devices that were killed while updates waited on both sides, with their
configurations; ``messages.json``, what passed the broker; and ``books.json``, what is in the stores. What was
frozen once is never made again: a release does not change.
"""

import argparse
import json
import shutil
import sqlite3
import sys
import tarfile
import tempfile
import threading
from collections import Counter
from contextlib import closing
from pathlib import Path

import paho.mqtt.client as paho

from fl_protocol.topics import FleetTopics
from hil.releases.fleet import ReleaseFleet
from hil.releases.installation import ROOT, Release, release_of

HERE = Path(__file__).parent
SAMPLES = 40
HIDDEN = 2
VERSIONS = 4
ATTEMPTS = 30
PATIENCE_S = 5.0
MESSAGES_OF_A_KIND = 6
LEFT_OUT = ("logs", "run", "lock", ".samples.db.lock")


class Recorder:
    """Everything that passes the broker: (topic, payload), in order."""

    def __init__(self, port: int, fleet: str) -> None:
        self.heard: list[tuple[str, bytes]] = []
        ready = threading.Event()
        self._client = paho.Client(paho.CallbackAPIVersion.VERSION2, client_id="recorder")
        self._client.on_connect = lambda client, *_: client.subscribe(f"{FleetTopics(fleet).prefix}#", qos=1)
        self._client.on_subscribe = lambda *_: ready.set()
        self._client.on_message = lambda _c, _u, message: self.heard.append((message.topic, message.payload))
        self._client.connect("127.0.0.1", port)
        self._client.loop_start()
        assert ready.wait(PATIENCE_S)

    def close(self) -> None:
        """Hear no more."""
        self._client.disconnect()
        self._client.loop_stop()


def freeze(release: Release, out: Path, work: Path) -> None:
    """Run a fleet of the release until it can be frozen."""
    with ReleaseFleet(work, prepared_by=release, hidden=HIDDEN) as fleet:
        for folder in fleet.local.agent_states:
            leave_few_samples(folder / "samples.db")
        recorder = Recorder(fleet.port, fleet.local.options.name)
        fleet.start_coordinator(release)
        fleet.start_agents(release)
        fleet.wait(f"version {VERSIONS}", lambda: fleet.version() >= VERSIONS)
        for _ in range(ATTEMPTS):
            if killed_in_time(fleet):
                break
            fleet.start_coordinator(release)
        else:
            sys.exit("no moment was found with updates on both sides")
        for agent in fleet.local.agents.values():
            agent.kill()
        recorder.close()
        out.mkdir()
        (out / "books.json").write_text(json.dumps(books(fleet, release), indent=1) + "\n")
        (out / "messages.json").write_text(json.dumps(chosen(recorder.heard), indent=0) + "\n")
        with tarfile.open(out / "fleet.tar.xz", "w:xz") as archive:
            for name in ("fleet.toml", "held_out.npz", "artifact", "coordinator", "devices"):
                archive.add(fleet.local.folder / name, name, filter=kept)


def leave_few_samples(path: Path) -> None:
    """The material is to be small; the tables stay as the release made them."""
    with closing(sqlite3.connect(path, isolation_level=None)) as store:
        store.execute("DELETE FROM samples WHERE sequence > ?", (SAMPLES,))
        store.execute(
            "UPDATE totals SET training = (SELECT count(*) FROM samples WHERE NOT held_out),"
            " held_out = (SELECT count(*) FROM samples WHERE held_out),"
            " bytes = (SELECT total(size) FROM samples)"
        )
        store.execute("PRAGMA wal_checkpoint(TRUNCATE)")
        store.execute("VACUUM")


def killed_in_time(fleet: ReleaseFleet) -> bool:
    """Kill the coordinator while an update waits in its journal; whether another waits on a device then."""
    fleet.wait("an update that waits in the journal", lambda: waiting(fleet))
    fleet.local.coordinator.kill()
    return bool(waiting(fleet)) and fleet.waited(PATIENCE_S, lambda: bool(fleet.outboxes()))


def waiting(fleet: ReleaseFleet) -> int:
    """Updates that wait in the journal."""
    return len(rows(fleet, "SELECT 1 FROM updates WHERE state = 'waiting'"))


def rows(fleet: ReleaseFleet, statement: str) -> list:
    """Rows of the coordinator's database."""
    path = fleet.local.state / "coordinator.db"
    with closing(sqlite3.connect(f"{path.as_uri()}?mode=ro", uri=True)) as database:
        return database.execute(statement).fetchall()


def books(fleet: ReleaseFleet, release: Release) -> dict:
    """What the stores hold, by statements that every release answers."""
    versions = rows(fleet, "SELECT number, hex(digest) FROM versions ORDER BY number")
    updates = rows(fleet, "SELECT hex(update_id), state FROM updates ORDER BY accept_seq")
    return {
        "release": release.name,
        "versions": [[number, digest.lower()] for number, digest in versions],
        "updates": [[update.lower(), state] for update, state in updates],
        "outboxes": {update.hex(): device for update, device in fleet.outboxes().items()},
        "samples": SAMPLES,
    }


def chosen(heard: list[tuple[str, bytes]]) -> list[list[str]]:
    """The first few messages of each kind: [topic, payload in hex]; of blobs, bytes to both sides, one."""
    kinds: Counter[str] = Counter()
    picked = []
    for topic, payload in heard:
        levels = topic.split("/")[2:]
        kind = levels[0] if levels[0] not in ("up", "down") else f"{levels[0]}/{levels[2]}"
        kinds[kind] += 1
        if payload and kinds[kind] <= (1 if kind == "blob" else MESSAGES_OF_A_KIND):
            picked.append([topic, payload.hex()])
    return picked


def kept(member: tarfile.TarInfo) -> tarfile.TarInfo | None:
    """Leave out what is only of the moment; nobody's name, and no date."""
    if Path(member.name).name in LEFT_OUT or member.name.endswith("-shm"):
        return None
    member.uid = member.gid = member.mtime = 0
    member.uname = member.gname = ""
    return member


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("release")
    parser.add_argument("--name", help="of the new folder; RELEASE, if not given")
    given = parser.parse_args()
    target = HERE / (given.name or given.release)
    if target.exists():
        sys.exit(f"{target} is frozen already")
    place = Path(tempfile.mkdtemp())
    freeze(release_of(given.release, ROOT / ".releases"), target, place)
    shutil.rmtree(place)
    size = sum(path.stat().st_size for path in target.iterdir())
    sys.stdout.write(f"{target}: {size} bytes\n")
