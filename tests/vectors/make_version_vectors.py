"""Write the frozen versions again: updates folded by the rules, and the state file that comes of it.

    python tests/vectors/make_version_vectors.py

They pin the identity of versions: a change here means that older versions do not replay.
"""

import base64
import hashlib
import json
from dataclasses import replace
from pathlib import Path

import numpy as np

from broker_coordinator.aggregation.appraisal import Appraisal, appraise
from broker_coordinator.aggregation.fold import Fold
from broker_coordinator.aggregation.rules import FoldRules
from broker_coordinator.aggregation.version_state import VersionState
from broker_coordinator.storage.records import AcceptedUpdate
from fl_protocol.codec import codec_for, codec_seed, encode_model
from fl_protocol.layout import TensorLayout
from fl_protocol.update import UpdateHeader
from fl_protocol.version import VersionId

FOLDER = Path(__file__).parent / "versions"
CODECS = ("float32", "int8", "eden(bits=1)", "eden(bits=1,keep=0.25)")
WEIGHTS = [["w", [7, 11]], ["b", [3]]]
LAYOUTS = {
    "weights": WEIGHTS,
    "buffers": [*WEIGHTS, ["mean", [5], "buffer"], ["var", [5], "buffer"]],
}


def numbers(name: str, size: int) -> np.ndarray:
    """Multiples of 1/64 that look random: float32[size]."""
    octets = b"".join(hashlib.sha256(f"{name} {at}".encode()).digest() for at in range(size // 32 + 1))
    return (np.frombuffer(octets, np.uint8, size).astype(np.float32) - np.float32(128)) / np.float32(64)


def first_state(layout: TensorLayout, known: int) -> VersionState:
    """Version 6, with a past: a window of ``known`` norms, and buffers of the two versions before."""
    state = VersionState.initial(
        numbers("weights", layout.size), fingerprint=layout.fingerprint, buffer_size=layout.buffer_size
    )
    past = numbers("past", 2 * layout.buffer_size).reshape(2, layout.buffer_size)
    return replace(
        state,
        number=6,
        norms=np.full(known, 2, np.float32),
        witnesses=np.arange(known, dtype=np.uint32),
        past_buffers=past if layout.buffer_size else state.past_buffers,
    )


def accepted(number: int, staleness: int, state: VersionState, rules: FoldRules, odd: bool) -> AcceptedUpdate:
    """Update ``number`` as a coordinator in ``state`` accepts it; an odd one has buffers far from all."""
    update_id = hashlib.sha256(f"update {number}".encode()).digest()[:16]
    codec, layout = CODECS[number % len(CODECS)], rules.layout
    delta = numbers(f"delta {number}", layout.size)
    delta[layout.weight_size :] *= np.float32(4096 if odd else 1)
    payload = codec_for(codec).encode(delta, layout, codec_seed(update_id))
    header = UpdateHeader(
        incarnation=b"incarnat",
        base=VersionId(epoch=1, number=state.number - staleness, digest=b"d" * 16),
        codec=codec,
        size=len(payload),
        sha256=hashlib.sha256(payload).digest(),
        fingerprint=layout.fingerprint,
        num_examples=11 + 7 * number,
        steps_done=3,
        steps_planned=3 + number % 2,
    )
    device = f"device-{number}"
    found = appraise(update_id, header, payload, device=device, state=state, rules=rules)
    if not isinstance(found, Appraisal):
        raise SystemExit(f"update {number} is refused: {found}")
    return AcceptedUpdate(
        accept_seq=number,
        update_id=update_id,
        device=device,
        hash=b"",
        header=header.pack(),
        base=(1, header.base.number),
        payload=payload,
        weight=found.weight,
        scale=found.scale,
        norm=found.norm,
        staleness=found.staleness,
        state="waiting",
    )


def case_of(name: str, entries: list, staleness: list[int]) -> dict:
    """One version: what it is made of, and what it becomes."""
    rules = FoldRules(layout=TensorLayout.of(entries), codec=CODECS[0], max_examples=1000, server_lr=0.75)
    # Clipping makes steps short, so that there is nothing to damp: it is on where nobody is late.
    state = first_state(rules.layout, known=62 if name.endswith("fresh") else 3)
    fold, updates = Fold(rules, state), []
    for number, late in enumerate(staleness):
        update = accepted(number, late, state, rules, odd=number == 1 and name.endswith("odd"))
        fold.add(update, update.payload)
        header, _ = UpdateHeader.unpack(update.header)
        updates.append(
            {
                "update_id": update.update_id.hex(),
                "device": update.device,
                "codec": header.codec,
                "header": update.header.hex(),
                "base": header.base.number,
                "staleness": update.staleness,
                "weight": update.weight.hex(),
                "scale": update.scale.hex(),
                "norm": update.norm.hex(),
                "payload": base64.b64encode(update.payload).decode(),
            }
        )
    closed = fold.close()
    return {
        "name": name,
        "layout": entries,
        "rules": json.loads(rules.to_json()),
        "state": base64.b64encode(state.pack()).decode(),
        "updates": updates,
        "next": base64.b64encode(closed.pack()).decode(),
        "next_sha256": closed.digest().hex(),
        "published_sha256": hashlib.sha256(encode_model(closed.master, rules.layout)).hexdigest(),
    }


def render() -> str:
    """The file's text."""
    plans = {
        "fresh": [0, 0, 0, 0],
        "late": [0, 2, 1, 2],
        "very late": [5, 4, 3, 6, 2],
        "nothing": [],
        "one is odd": [0, 1, 0, 0, 5, 2],
    }
    cases = [
        case_of(f"{kind}, {name}", entries, staleness)
        for kind, entries in LAYOUTS.items()
        for name, staleness in plans.items()
    ]
    return json.dumps({"cases": cases}, indent=1) + "\n"


if __name__ == "__main__":
    FOLDER.mkdir(exist_ok=True)
    (FOLDER / "fold.json").write_text(render())
