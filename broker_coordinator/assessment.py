"""How good each version is, and who says so: the coordinator with its held-out file, or the devices."""

from collections import deque
from collections.abc import Callable
from typing import Any, TypeAlias

import numpy as np
from numpy.typing import NDArray

from broker_coordinator.evaluation import Evaluation
from broker_coordinator.publication.shelf import BlobShelf
from broker_coordinator.storage.records import VersionRecord
from broker_coordinator.storage.store import Store
from fl_protocol.codec import decode_model
from fl_protocol.layout import TensorLayout

__all__ = ["Assessment", "Evaluate"]

Evaluate: TypeAlias = Callable[[NDArray[np.float32]], Evaluation]
"""Measures published weights, float32[n]."""

LOOK_BACK = 8
"""Updates are rarely later than so many versions."""
MOST_WAITING = 4
"""Beyond so many an evaluation is urgent: versions that wait hold memory, and blobs on the disk."""


class Assessment:
    """Evaluates versions one at a time, when there is nothing more urgent.

    ``caveat`` says how the model that ``evaluate`` measures is another than devices use: where it is not
    empty, what devices report is looked up too.
    """

    def __init__(
        self,
        evaluate: Evaluate | None,
        *,
        store: Store,
        shelf: BlobShelf,
        layout: TensorLayout,
        caveat: str = "",
    ) -> None:
        self.caveat = caveat
        self._evaluate = evaluate
        self._store = store
        self._shelf = shelf
        self._layout = layout
        self._waiting: deque[VersionRecord] = deque()
        self.newest: tuple[int, Evaluation] | None = None
        """The newest evaluation there is, and the number of its version."""
        self._reported: tuple[int, Evaluation] | None = None

    def __len__(self) -> int:
        return len(self._waiting)

    @property
    def urgent(self) -> bool:
        """Whether versions come faster than they are evaluated."""
        return len(self._waiting) > MOST_WAITING

    @property
    def reports(self) -> dict[str, Any]:
        """What devices said last: ``version``, ``devices``, ``examples``, ``means``; empty where nothing."""
        if self._reported is None:
            return {}
        version, found = self._reported
        return {
            "version": version,
            "devices": found.devices,
            "examples": found.examples,
            "means": found.means,
        }

    def add(self, version: VersionRecord) -> None:
        """A new version; without a held-out file of ours, devices' reports on those before it count."""
        if self._evaluate is None or self.caveat:
            self._look_up(version.number - 1)
        known = Evaluation.from_metrics(version.metrics)
        if known is not None:
            self.newest = (version.number, known)
        elif self._evaluate is not None:
            self._waiting.append(version)
        else:
            self.newest = self._reported

    def _look_up(self, newest: int) -> None:
        """Find the newest version that devices reported on: versions may be made of late updates alone."""
        known = self._reported[0] if self._reported is not None else 0
        for number in range(newest, max(known, newest - LOOK_BACK) - 1, -1):
            reports = Evaluation.of_devices(self._store.device_evaluation(number))
            if reports is not None:
                self._reported = (number, reports)
                return

    def evaluate_next(self) -> None:
        """Evaluate the oldest that waits, and record it."""
        version = self._waiting.popleft()
        content = self._shelf.read(version.published_sha256)
        if content is None or self._evaluate is None:
            return
        evaluation = self._evaluate(decode_model(content, self._layout))
        metrics = evaluation.to_metrics()
        if evaluation.accuracy is not None:
            metrics["accuracy"] = evaluation.accuracy
        self._store.set_evaluation(version.number, metrics)
        self.newest = (version.number, evaluation)

    def needed(self) -> set[bytes]:
        """The sha256 of the blobs that wait to be evaluated."""
        return {version.published_sha256 for version in self._waiting}
