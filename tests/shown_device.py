"""A state folder as an agent leaves it, and an app that predicts from it: without an agent's processes."""

import contextlib
import queue
import shutil
import threading
from collections.abc import Callable
from pathlib import Path

import numpy as np

from edge_agent.model_notice import NoticeBoard
from edge_agent.predictor import Predictor
from fl_protocol.blob import BlobRef
from fl_protocol.codec import decode_model, encode_model
from fl_protocol.plan import TrainingPlan
from fl_protocol.task import Pacing, TaskManifest
from fl_protocol.version import VersionId
from models.runtime import TrainingArtifact


class Device:
    """A state folder as an agent keeps it: whole versions, shown when they are there."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        for name in ("blobs", "artifacts", "personal"):
            (folder / name).mkdir(mode=0o750, parents=True)
        self.board = NoticeBoard(folder, runtimes=("numpy",))

    def show(
        self,
        artifact: TrainingArtifact,
        number: int,
        *,
        scale: float = 1.0,
        state: bytes = b"",
        keep: int = 2,
    ) -> np.ndarray:
        """Put a version there and remove old ones; the flat weights that were published."""
        flat = artifact.initial_weights() * np.float32(scale)
        content = encode_model(flat, artifact.layout)
        ref = BlobRef.of(content)
        manifest = TaskManifest(
            fleet="f",
            task="main",
            counter=number,
            term=1,
            version=VersionId(epoch=1, number=number, digest=bytes([number % 256]) * 16),
            artifact=BlobRef.of(artifact.manifest_json),
            weights=ref,
            fingerprint=artifact.layout.fingerprint,
            plan=TrainingPlan(),
            codec="float32",
            pacing=Pacing(),
        )
        home = self.folder / "artifacts" / artifact.digest.hex()
        if not home.exists():
            shutil.copytree(artifact.path, home)
        (self.folder / "blobs" / ref.sha256.hex()).write_bytes(content)
        self.board.show(manifest, state)
        by_age = sorted((self.folder / "blobs").iterdir(), key=lambda path: path.stat().st_mtime_ns)
        for path in by_age[:-keep]:
            if path.name not in self.board.files:
                path.unlink()
        return decode_model(content, artifact.layout)


class App:
    """Opens and predicts ``rows`` all the time, in a thread of its own, while the device goes on. ``judge``
    says what is wrong with the answers of a version."""

    def __init__(self, folder: Path, rows: np.ndarray, judge: Callable[[int, np.ndarray], str]) -> None:
        self._folder = folder
        self._rows = rows
        self._judge = judge
        self._ended = threading.Event()
        self._turns: queue.Queue[None] = queue.Queue(2)
        self.faults: list[str] = []

    def wait(self) -> None:
        """Until it is about to predict, or was twice since the last time."""
        self._turns.get(timeout=60)

    def __enter__(self) -> "App":
        self._thread = threading.Thread(target=self._guarded)
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._ended.set()
        self._thread.join(60)

    def _guarded(self) -> None:
        try:
            self._predict()
        except Exception as error:
            self.faults.append(repr(error))

    def _predict(self) -> None:
        keeps = Predictor(self._folder)
        while not self._ended.is_set():
            for predictor in (keeps, Predictor(self._folder)):
                with contextlib.suppress(queue.Full):
                    self._turns.put_nowait(None)
                answers = predictor.predict(self._rows)
                if fault := self._judge(predictor.version.number, answers):
                    self.faults.append(fault)
