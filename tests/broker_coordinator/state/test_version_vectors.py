"""The frozen versions: what was folded once folds to the same bits for ever."""

import base64
import hashlib
import importlib.util
import json
from dataclasses import replace
from pathlib import Path

import pytest

from broker_coordinator.aggregation.fold import Fold
from broker_coordinator.aggregation.rules import DampingRule, FoldRules
from broker_coordinator.aggregation.version_state import VersionState
from broker_coordinator.storage.records import AcceptedUpdate
from fl_protocol.codec import encode_model

VECTORS = Path(__file__).parents[2] / "vectors"
TEXT = (VECTORS / "versions" / "fold.json").read_text()
CASES = json.loads(TEXT)["cases"]


def rules_of(case) -> FoldRules:
    """The rules of a case."""
    return FoldRules.from_json(json.dumps(case["rules"]))


def folded(case, rules: FoldRules) -> VersionState:
    """The version that the updates of a case become."""
    fold = Fold(rules, VersionState.unpack(base64.b64decode(case["state"])))
    for number, entry in enumerate(case["updates"]):
        update = AcceptedUpdate(
            accept_seq=number,
            update_id=bytes.fromhex(entry["update_id"]),
            device=entry["device"],
            hash=b"",
            header=bytes.fromhex(entry["header"]),
            base=(1, entry["base"]),
            payload=None,
            weight=bytes.fromhex(entry["weight"]),
            scale=bytes.fromhex(entry["scale"]),
            norm=bytes.fromhex(entry["norm"]),
            staleness=entry["staleness"],
            state="waiting",
        )
        fold.add(update, base64.b64decode(entry["payload"]))
    return fold.close()


@pytest.mark.parametrize("case", CASES, ids=lambda case: case["name"])
def test_a_frozen_version_is_made_again(case):
    """From the state before, the journal's scalars and the payloads, on every machine."""
    rules = rules_of(case)
    closed = folded(case, rules)
    assert closed.digest().hex() == case["next_sha256"]
    assert hashlib.sha256(encode_model(closed.master, rules.layout)).hexdigest() == case["published_sha256"]


def test_the_vectors_hold_late_clipped_and_damped_updates_and_all_codecs():
    """A file of easy cases would pin little."""
    updates = [entry for case in CASES for entry in case["updates"]]
    assert len({entry["codec"] for entry in updates}) == 4
    assert {entry["staleness"] for entry in updates} >= {0, 1, 2, 5}
    fresh = [entry for entry in updates if entry["staleness"] == 0]
    assert any(entry["scale"] != "0000803f" for entry in fresh)
    undamped = [replace(rules_of(case), damping=DampingRule(enabled=False)) for case in CASES]
    digests = [folded(case, rules).digest().hex() for case, rules in zip(CASES, undamped, strict=True)]
    assert sum(digest != case["next_sha256"] for case, digest in zip(CASES, digests, strict=True)) >= 2


def test_the_script_writes_the_vectors_that_are_there():
    """What it makes of exact numbers; norms depend on a sum's order, and are not compared."""
    spec = importlib.util.spec_from_file_location("make_versions", VECTORS / "make_version_vectors.py")
    script = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(script)
    again = json.loads(script.render())["cases"]
    for case, new in zip(CASES, again, strict=True):
        assert (new["name"], new["rules"], new["state"]) == (case["name"], case["rules"], case["state"])
        for old_entry, entry in zip(case["updates"], new["updates"], strict=True):
            assert entry["payload"] == old_entry["payload"]
            assert entry["header"] == old_entry["header"]
