"""The operator and the app: what people do about a broken fleet, and no more than they are told to.

They make backups, restore one where the coordinator says so, recover where it says `rolled_back`, and give
a device samples again whose store is gone.
"""

import subprocess
import sys
import time
from pathlib import Path

from broker_coordinator.books.backup import back_up
from edge_agent.samples import SampleStore
from fl_protocol.errors import LichenError
from hil.chaos.fleet import ChaosFleet
from hil.chaos.schedule import COORDINATOR
from hil.chaos.witness import Witness

__all__ = ["Operator"]

BACKUP_EVERY_S = 15.0
PATIENCE_S = 2.0
"""How long a person takes to see `rolled_back`."""
MOST_STARTS = 8
"""A coordinator that ended so often in a row, by itself, is not started any more without a backup."""
_CALLS_FOR_BACKUP = ("restore a backup", "from a backup", "damaged", "lichen audit")
_RESTARTS_ARE_ENOUGH = ("another coordinator", "does not serve", "Connection refused", "No space", "is full")


class Operator:
    """Looks after one fleet. ``acts`` says, a sentence each, what was done."""

    def __init__(self, fleet: ChaosFleet, witness: Witness) -> None:
        self._fleet = fleet
        self._witness = witness
        self._backups: list[Path] = []
        self._restored: Path | None = None
        self._next_backup = 0.0
        self._rolled_back_since: float | None = None
        self._exits_read = 0
        self._own_exits = 0
        self.acts: list[str] = []

    @property
    def newest_backup(self) -> Path | None:
        """The last backup that was made."""
        return self._backups[-1] if self._backups else None

    def attend(self) -> None:
        """Look at everything once, and do what is called for."""
        self._read_exits()
        self._recover_if_rolled_back()
        if time.monotonic() >= self._next_backup:
            self.back_up()

    def back_up(self) -> None:
        """Make a backup, if the coordinator is well."""
        self._next_backup = time.monotonic() + BACKUP_EVERY_S
        status = self._fleet.local.status()
        if not self._fleet.process(COORDINATOR).running or status.get("state") in (None, "rolled_back"):
            self._next_backup = time.monotonic() + 1.0
            return
        path = self._fleet.out / "copies" / f"backup-{len(self._backups)}"
        try:
            back_up(self._fleet.state, path)
        except LichenError as error:
            self._witness.note("no backup", reason=str(error))
            return
        self._backups.append(path)
        self._restored = None
        self._witness.note("backup", path=path.name)

    def restore(self, why: str) -> None:
        """Put the newest backup in the place of the coordinator's state; whatever came since is given up."""
        fleet = self._fleet
        fleet.kill(COORDINATOR)
        before = self._witness.journal(fleet.state)
        if self.newest_backup is None:
            raise LichenError(f"there is no backup to restore, and {why}", hint=f"see {fleet.out}")
        if self._restored == self.newest_backup and len(self._backups) > 1:
            self._backups.pop()  # it did not help
        fleet.replace(COORDINATOR, self.newest_backup)
        self._restored = self.newest_backup
        after = self._witness.journal(fleet.state)
        self._witness.give_up(before, after, f"not in the backup that was restored: {why}")
        self._act(f"restored {self.newest_backup.name}: {why}")
        self._own_exits = 0

    def give_samples(self, device: str) -> None:
        """What an app does: put samples into a store that has none."""
        samples = self._fleet.local.folder / "held_out.npz"
        import numpy as np

        with np.load(samples) as arrays:
            x, y = arrays["x"][:64], arrays["y"][:64]
        try:
            with SampleStore(self._fleet.folder(device) / "samples.db") as store:
                if store.set_aside is not None or not len(store):
                    store.extend(x, y)
                    self._act(f"gave {device} samples again")
        except LichenError as error:
            self._witness.note("no samples", device=device, reason=str(error))

    def _read_exits(self) -> None:
        fleet = self._fleet
        for line in fleet.exits[self._exits_read :]:
            self._witness.note("exit", line=line)
            if not line.startswith(f"{COORDINATOR} "):
                continue
            self._own_exits += 1
            words = fleet.process(COORDINATOR).last_words(3)
            if any(word in words for word in _RESTARTS_ARE_ENOUGH):
                continue
            if any(word in words for word in _CALLS_FOR_BACKUP) or self._own_exits >= MOST_STARTS:
                self.restore(words.splitlines()[-1] if words else "it does not start")
        self._exits_read = len(fleet.exits)

    def _recover_if_rolled_back(self) -> None:
        fleet = self._fleet
        status = fleet.local.status()
        process = fleet.process(COORDINATOR)
        if status.get("state") != "rolled_back" or status.get("pid") != process.pid or not process.running:
            self._rolled_back_since = None
            return
        now = time.monotonic()
        if self._rolled_back_since is None:
            self._rolled_back_since = now
        elif now - self._rolled_back_since >= PATIENCE_S:
            fleet.kill(COORDINATOR)
            words = [
                sys.executable,
                "-m",
                "lichen",
                "coordinator",
                "recover",
                str(fleet.out / "fleet/fleet.toml"),
            ]
            done = subprocess.run(words, capture_output=True, text=True, timeout=60, check=False)
            said = (done.stdout + done.stderr).strip().splitlines()
            self._act(f"recover: {said[0] if said else done.returncode}")
            fleet.start(COORDINATOR)
            self._rolled_back_since = None

    def _act(self, sentence: str) -> None:
        self.acts.append(sentence)
        self._witness.note("act", sentence=sentence)
