"""Intake: messages wait here for their commit, and go into it a batch at a time.

A message that breaks the program would come again after every restart, and break it again. So a batch
that fails by anything but the disk is undone and taken again, each message in a commit of its own: the
one at fault is counted, acknowledged and left out.
"""

import logging
from collections import deque

from broker_coordinator.global_model import GlobalModel
from broker_coordinator.ingest import Batch, Ingest, commit_then_answer
from broker_coordinator.outgoing import Outgoing
from broker_coordinator.reception import Reception
from broker_coordinator.storage.store import Store
from fl_protocol.errors import StorageError
from fl_protocol.transport import Received, Transport

__all__ = ["Intake"]

_log = logging.getLogger("lichen.coordinator")


class _Broken(Exception):
    """A message broke the program before the commit."""


class Intake:
    """The queue between the inbox and the store; bounded by what is taken from the inbox at a time."""

    def __init__(
        self,
        *,
        store: Store,
        transport: Transport,
        outgoing: Outgoing,
        ingest: Ingest,
        reception: Reception,
        model: GlobalModel,
    ) -> None:
        self._store = store
        self._transport = transport
        self._outgoing = outgoing
        self._ingest = ingest
        self._reception = reception
        self._model = model
        self._waiting: deque[Received] = deque()
        self._taken: list[Received] = []
        self._alone = 0

    def __len__(self) -> int:
        return len(self._waiting)

    def add(self, message: Received) -> None:
        """Let a message wait for the next commit."""
        self._waiting.append(message)

    def commit(self) -> Batch:
        """Take in what waits, as far as the open version has room, in one commit; what that led to.

        Raises:
            StorageError: the disk refuses: nothing was committed, acknowledged or answered.
        """
        self._taken.clear()
        try:
            batch = commit_then_answer(self._store, self._transport, self._outgoing, self._attempt)
        except _Broken:
            self._undo()
            return Batch()
        self._alone = max(self._alone - len(self._taken), 0)
        self._ingest.settle(batch)
        self._reception.committed()
        return batch

    def _attempt(self, batch: Batch) -> None:
        try:
            self._take_in(batch)
        except StorageError:
            raise
        except Exception as error:
            raise _Broken from error

    def _take_in(self, batch: Batch) -> None:
        room = self._model.room
        state = self._ingest.state()
        while self._waiting and (room is None or batch.taken < max(room, 1)):
            if batch.rolled_back and not state.rolled_back:
                state = self._ingest.state()
            message = self._waiting.popleft()
            self._taken.append(message)
            self._reception.take(batch, state, message)
            if self._alone:
                break
        self._ingest.finish(batch, state)

    def _undo(self) -> None:
        """The store has undone the batch: do the same with what is in memory."""
        self._ingest.recall()
        self._reception.undo()
        if len(self._taken) > 1:
            self._waiting.extendleft(reversed(self._taken))
            self._alone = len(self._taken)
            return
        self._alone = max(self._alone - 1, 0)
        for message in self._taken:
            _log.exception("a message on %r broke the coordinator: it is left out", message.topic[:256])
            self._ingest.rejected["broken"] += 1
            self._transport.acknowledge(message.token)
