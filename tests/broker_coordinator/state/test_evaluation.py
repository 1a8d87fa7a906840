"""Evaluation: figures that say whose they are."""

import re
from dataclasses import replace

import numpy as np
import pytest

from broker_coordinator.evaluation import Evaluation, HeldOut, caveat_of
from broker_coordinator.storage.records import DeviceEvaluation
from fl_protocol.artifact import Parameter
from fl_protocol.errors import ConfigError
from models.runtime import Batch, TrainingArtifact, open_session, split_flat
from models.zoo import digits
from models.zoo.mlp import digits_artifact


@pytest.fixture(scope="module")
def artifact(tmp_path_factory):
    return digits_artifact(tmp_path_factory.mktemp("artifact") / "digits")


@pytest.fixture
def held_out_file(tmp_path):
    _, held_out = digits.split(0)
    np.savez(tmp_path / "held_out.npz", x=held_out.x, y=held_out.y.astype(np.int64))
    return tmp_path / "held_out.npz"


def test_published_weights_are_measured_on_the_file(artifact, held_out_file):
    """The sums are those of one large batch, and the accuracy is theirs."""
    weights = artifact.initial_weights()
    held_out = HeldOut(artifact, held_out_file, runtimes=("numpy",))
    found = held_out.evaluate(weights)
    assert (found.source, found.devices, found.examples) == ("coordinator", 0, 360)
    _, whole = digits.split(0)
    session, _ = open_session(artifact, ("numpy",))
    sums = session.evaluate(split_flat(weights, artifact.layout), Batch.of(whole.x, whole.y))
    assert found.sums == pytest.approx(sums, rel=1e-5)
    assert found.accuracy == pytest.approx(sums["correct"] / 360)
    assert found.loss == pytest.approx(sums["loss"] / 360, rel=1e-5)
    assert Evaluation.from_metrics(found.to_metrics()) == found


def test_what_devices_report_says_so(artifact):
    """Sums over devices; nothing reported is nothing, not zero."""
    reports = DeviceEvaluation(devices=3, sums={"count": 40.0, "correct": 30.0})
    found = Evaluation.of_devices(reports)
    assert (found.source, found.devices, found.examples) == ("devices", 3, 40)
    assert (found.accuracy, found.loss) == (0.75, None)
    assert Evaluation.of_devices(DeviceEvaluation(devices=0, sums={})) is None


def test_means_bear_the_names_of_metrics_and_survive_the_store():
    """Sums over their examples; what a record adds for readers is no sum and is not divided again."""
    sums = {"loss": 20.0, "correct": 30.0, "absolute_error": 4.0, "top3": 36.0, "weight": 40.0}
    measured = Evaluation(source="coordinator", devices=0, examples=40, sums=sums)
    means = {"loss": 0.5, "accuracy": 0.75, "mae": 0.1, "top3": 0.9}
    assert measured.means == pytest.approx(means)
    kept = Evaluation.from_metrics({**measured.to_metrics(), "accuracy": 0.75})
    assert kept.means == pytest.approx(means)
    assert Evaluation.from_metrics({}) is None


def test_a_model_that_is_personal_in_part_is_measured_with_a_caveat(artifact):
    """The coordinator has no device's own tensors, and says which it takes instead."""
    assert caveat_of(artifact) == ""
    own = [
        Parameter(name=f"own {kind}", shape=(3,), kind=kind, role="personal") for kind in ("weight", "buffer")
    ]
    manifest = artifact.manifest
    for added, words in (
        (own[:1], "personal parameters"),
        (own, "personal parameters and running statistics"),
    ):
        changed = replace(manifest, parameters=(*manifest.parameters, *added))
        assert f"the {words} that the artifact came with" in caveat_of(TrainingArtifact.of(changed, {}))


@pytest.mark.parametrize(
    "arrays",
    [
        {"x": np.zeros((3, 64), np.float32)},
        {"x": np.zeros((3, 64), np.float32), "y": np.zeros(2, np.int32)},
        {"x": np.zeros((3, 63), np.float32), "y": np.zeros(3, np.int32)},
        {"x": np.zeros((0, 64), np.float32), "y": np.zeros(0, np.int32)},
        {"x": np.array([{}], object), "y": np.zeros(1, np.int32)},
    ],
)
def test_a_file_that_does_not_fit_is_a_configuration_error(artifact, tmp_path, arrays):
    """Missing, mismatched, empty or pickled arrays are found at the start."""
    np.savez(tmp_path / "bad.npz", **arrays)
    with pytest.raises(ConfigError, match="held-out file"):
        HeldOut(artifact, tmp_path / "bad.npz", runtimes=("numpy",))


@pytest.mark.parametrize(
    ("y", "says"),
    [
        ([1, 10, 3], "classes from 1 to 10, the model tells 10 apart"),
        ([1, -1, 3], "classes from -1 to 3, the model tells 10 apart"),
        ([1.5, 2, 3], "y holds values that int32 does not"),
        ([1, 2**32, 3], "y holds values that int32 does not"),
        ([1, np.nan, 3], "y holds values that int32 does not"),
        (["cat", "dog", "cat"], "y is <U3, the artifact takes int32"),
    ],
)
def test_labels_that_the_model_has_not_are_found_at_the_start(artifact, tmp_path, y, says):
    """Their rows would count as rows without loss, and the model would look better than it is."""
    np.savez(tmp_path / "bad.npz", x=np.zeros((3, 64), np.float32), y=np.array(y))
    with pytest.raises(ConfigError, match=re.escape(says)):
        HeldOut(artifact, tmp_path / "bad.npz", runtimes=("numpy",))


def test_no_file_is_a_configuration_error(artifact, tmp_path):
    """Not there, and not an npz."""
    (tmp_path / "text.npz").write_text("hello")
    for name in ("missing.npz", "text.npz"):
        with pytest.raises(ConfigError, match=name):
            HeldOut(artifact, tmp_path / name, runtimes=("numpy",))
