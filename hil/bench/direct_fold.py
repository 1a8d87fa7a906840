"""An update from a delta into a fold, by the product's own codec, appraisal and fold, nothing between."""

import hashlib

import numpy as np
from numpy.typing import NDArray

from broker_coordinator.aggregation.appraisal import Appraisal, appraise
from broker_coordinator.aggregation.fold import Fold
from broker_coordinator.aggregation.rules import FoldRules
from broker_coordinator.aggregation.version_state import VersionState
from broker_coordinator.storage.records import AcceptedUpdate
from fl_protocol.codec import codec_for, codec_seed
from fl_protocol.update import UpdateHeader, update_hash
from fl_protocol.version import VersionId

__all__ = ["fold_delta"]


def fold_delta(
    fold: Fold,
    delta: NDArray[np.float32],
    *,
    rules: FoldRules,
    state: VersionState,
    base: VersionId,
    device: int,
    update_id: bytes,
    sequence: int,
    examples: int,
) -> int:
    """Encode, appraise and fold ``delta`` float32[layout.size], made on ``base``; staleness in versions."""
    payload = codec_for(rules.codec).encode(delta, rules.layout, codec_seed(update_id))
    header = UpdateHeader(
        incarnation=bytes(8),
        base=base,
        codec=rules.codec,
        size=len(payload),
        sha256=hashlib.sha256(payload).digest(),
        fingerprint=rules.layout.fingerprint,
        num_examples=examples,
        steps_done=1,
        steps_planned=1,
    )
    verdict = appraise(update_id, header, payload, device=str(device), state=state, rules=rules)
    assert isinstance(verdict, Appraisal), verdict
    fold.add(
        AcceptedUpdate(
            accept_seq=sequence,
            update_id=update_id,
            device=str(device),
            hash=update_hash(update_id, header),
            header=header.pack(),
            base=(base.epoch, base.number),
            payload=payload,
            weight=verdict.weight,
            scale=verdict.scale,
            norm=verdict.norm,
            staleness=verdict.staleness,
            state="waiting",
        ),
        payload,
    )
    return verdict.staleness
