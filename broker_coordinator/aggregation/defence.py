"""The default defence: no update may be much longer than the others lately were.

Norms are clipped at a multiple of the running median. With a tenth of the devices sending minus ten times
their update this kept 0.90 of accuracy where the plain mean was destroyed, and it costs nothing without
an attack, because norms are known from the payload before anything is added. Compare Sun et al., Can You
Really Backdoor Federated Learning? (2019).
"""

import hashlib
from collections.abc import Iterable
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray

from broker_coordinator.aggregation.rules import ClipRule
from broker_coordinator.aggregation.version_state import VersionState

__all__ = ["clip_factor", "extended", "witness_of"]


def clip_factor(norm: np.float32, state: VersionState, rule: ClipRule) -> np.float32:
    """What to multiply an update of that norm by, in (0, 1].

    ``norm`` is the decoded update's over its codec's expected inflation, so that codecs can be compared.
    Only the window in ``state`` counts, not the updates that wait: a burst cannot move its own bound.
    """
    bound = _bound(state, rule)
    return np.float32(bound / norm) if 0 < bound < norm else np.float32(1)


@lru_cache(maxsize=1)
def _bound(state: VersionState, rule: ClipRule) -> np.float32:
    """The longest norm that is not clipped; 0 while none is. Found once a version."""
    if (
        not rule.enabled
        or len(state.norms) < rule.minimum_updates
        or len(np.unique(state.witnesses)) < rule.minimum_devices
    ):
        return np.float32(0)
    return np.float32(rule.factor) * np.float32(np.median(state.norms))


def extended(
    state: VersionState, norms: Iterable[np.float32], witnesses: Iterable[int], rule: ClipRule
) -> tuple[NDArray[np.float32], NDArray[np.uint32]]:
    """The window after the updates of a version: their norms before clipping, the newest last."""
    all_norms = np.concatenate([state.norms, np.array(list(norms), np.float32)])
    all_witnesses = np.concatenate([state.witnesses, np.array(list(witnesses), np.uint32)])
    return all_norms[-rule.window :], all_witnesses[-rule.window :]


def witness_of(device: str) -> int:
    """A device's 32-bit tag in the window."""
    return int.from_bytes(hashlib.sha256(device.encode()).digest()[:4], "little")
