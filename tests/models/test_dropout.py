"""Dropout: units are left out in training steps alone, the same ones in every runtime."""

import contextlib
import importlib.util
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import helper

from fl_protocol.errors import ArtifactError, RuntimeUnavailable
from models.build import build_artifact
from models.runtime import RUNTIMES, Batch, split_flat, zero_slots

_SPEC = importlib.util.spec_from_file_location("forward", Path(__file__).parent / "forward.py")
forward = importlib.util.module_from_spec(_SPEC)
_SPEC.loader.exec_module(forward)
network, w, zeros, ones = forward.network, forward.w, forward.zeros, forward.ones

UNITS, RATIO = 40, 0.25
PLAIN = {"lr": 1.0, "momentum": 0.0, "mu": 0.0, "clip": 0.0}


def model(*, ratio=RATIO, mode=None, opset=18):
    """x times a weight per unit, dropped: the gradient of a weight shows what was kept."""
    tensors = {"scale": ones(UNITS)}
    inputs = "d"
    if opset >= 12:
        tensors["ratio"] = np.float32(ratio)
        inputs = "d ratio"
        if mode is not None:
            tensors["mode"] = np.array(mode)
            inputs = "d ratio mode"
    attributes = {"ratio": ratio} if opset < 12 else {}
    return network(
        (UNITS,),
        [("Mul", "x scale", "d", {}), ("Dropout", inputs, "z", attributes)],
        tensors,
        opset=opset,
    )


@pytest.fixture(scope="module")
def artifact():
    """The model with a squared error against 0: loss and gradient tell every unit's factor."""
    return build_artifact(model(), loss="mse", runtimes=("onnx", "tflite"))


def factors(artifact, runtime, seed, rows=6, *, alone=None):
    """What each unit of each row was multiplied by, told from one step per row: float[rows, units]."""
    session = RUNTIMES[runtime].open(artifact)
    weights = split_flat(artifact.initial_weights(), artifact.layout)
    found = []
    for row in range(rows) if alone is None else alone:
        sample_weight = np.eye(rows, dtype=np.float32)[row]
        batch = Batch(
            x=np.ones((rows, UNITS), np.float32),
            y=np.zeros((rows, UNITS), np.float32),
            sample_weight=sample_weight,
        )
        hyper = PLAIN | {"seed": seed}
        result = session.step(weights, zero_slots(artifact), batch, hyper, weights)
        # loss = mean over units of (factor * scale)^2, so that its slope is 2 factor^2 / units.
        found.append(np.sqrt((weights["scale"] - result.weights["scale"]) * UNITS / 2))
    return np.array(found)


def test_units_are_dropped_or_scaled_up(artifact):
    """Each factor is 0 or 1 / (1 - ratio), about as many as the ratio says, others in every row."""
    found = factors(artifact, "numpy", 11)
    kept = np.isclose(found, 1 / (1 - RATIO), rtol=1e-5)
    assert (kept | (found == 0)).all()
    assert 0.6 < kept.mean() < 0.9
    assert len(np.unique(kept, axis=0)) == len(kept)


@pytest.mark.parametrize("runtime", RUNTIMES)
def test_the_same_seed_drops_the_same_units_in_every_runtime(installed, artifact, runtime):
    """And another seed others."""
    installed(runtime)
    one, other = factors(artifact, runtime, 4_000_000), factors(artifact, runtime, 4_000_001)
    np.testing.assert_allclose(one, factors(artifact, "numpy", 4_000_000), rtol=1e-5)
    assert (one != other).any(axis=1).all()


def test_rows_beside_it_do_not_change_what_a_row_drops(artifact):
    """As a short batch is filled up to the rows that a TFLite graph takes."""
    np.testing.assert_array_equal(
        factors(artifact, "numpy", 9, rows=3, alone=[1]), factors(artifact, "numpy", 9, rows=8, alone=[1])
    )


@pytest.mark.parametrize("runtime", RUNTIMES)
def test_nothing_is_dropped_in_evaluation(installed, artifact, runtime):
    """Nor in inference."""
    installed(runtime)
    session = RUNTIMES[runtime].open(artifact)
    weights = split_flat(artifact.initial_weights(), artifact.layout)
    x = np.arange(2 * UNITS, dtype=np.float32).reshape(2, UNITS)
    np.testing.assert_array_equal(session.infer(weights, x), x)
    assert session.evaluate(weights, Batch.of(x, x))["loss"] == 0


def test_the_seed_is_a_scalar_of_the_step_with_a_default(artifact):
    """A caller that knows of none trains with the units that seed 0 drops."""
    assert artifact.manifest.hyper["seed"] == 0
    session = RUNTIMES["numpy"].open(artifact)
    weights = split_flat(artifact.initial_weights(), artifact.layout)
    batch = Batch.of(np.ones((4, UNITS), np.float32), np.zeros((4, UNITS), np.float32))
    none, zero = (
        session.step(weights, zero_slots(artifact), batch, hyper, weights).weights["scale"]
        for hyper in (PLAIN, PLAIN | {"seed": 0})
    )
    np.testing.assert_array_equal(none, zero)


def same(one, other):
    """Whether two builds have the same graphs."""
    return all(one.read(f"{name}.onnx") == other.read(f"{name}.onnx") for name in ("step", "eval", "infer"))


@pytest.mark.parametrize("options", [{"mode": True}, {"mode": False}, {"opset": 11}, {"opset": 7}])
def test_however_it_was_exported_it_is_the_same_layer(options, artifact):
    """Training mode or not, an input or an attribute."""
    assert same(build_artifact(model(**options), loss="mse"), build_artifact(model(), loss="mse"))


def test_a_ratio_of_zero_is_no_layer():
    """And needs no seed."""
    artifact = build_artifact(model(ratio=0.0), loss="mse")
    assert "seed" not in artifact.manifest.hyper


def computed_ratio():
    """A ratio that the graph works out."""
    made = model()
    made.graph.node.insert(1, helper.make_node("ReduceMax", ["x"], ["r"], keepdims=0, name="r"))
    made.graph.node[2].input[1] = "r"
    return made


def mask_used():
    """The second output of the layer."""
    made = model()
    made.graph.node[1].output[:] = ["y", "mask"]
    made.graph.node.append(helper.make_node("Where", ["mask", "y", "d"], ["z"], name="use"))
    return made


REFUSED = [
    (computed_ratio, "Dropout1.*ratio is computed"),
    (lambda: model(ratio=1.0), "Dropout1.*leaves nothing"),
    (mask_used, "Dropout1.*further output 'mask' is used"),
]


@pytest.mark.parametrize(("make", "words"), REFUSED)
def test_a_layer_that_cannot_be_followed_is_refused(make, words):
    """By name, with a remedy."""
    with pytest.raises(ArtifactError, match=words) as caught:
        build_artifact(make(), loss="mse")
    assert caught.value.hint


SEQUENCES = {
    "steps first": (
        [("Transpose", "x", "s", {"perm": [1, 0, 2]})],
        [("Transpose", "d", "b", {"perm": [1, 0, 2]})],
    ),
    "steps folded into the batch": ([("Reshape", "x fold", "s", {})], [("Reshape", "d unfold", "b", {})]),
}


@pytest.mark.parametrize("order", SEQUENCES)
def test_a_sequence_drops_the_same_units_in_every_runtime(order):
    """Wherever its batch is: a short batch that is filled up has the loss of its own rows."""
    before, after = SEQUENCES[order]
    made = network(
        (5, 8),
        [
            *before,
            ("Dropout", "s", "d", {}),
            *after,
            ("Flatten", "b", "f", {}),
            ("MatMul", "f head", "z", {}),
        ],
        {"fold": forward.i64(-1, 8), "unfold": forward.i64(-1, 5, 8), "head": w(40, 3)},
    )
    artifact = build_artifact(made, loss=forward.CLASSES, runtimes=("onnx", "tflite"))
    batch = Batch.of(np.ones((4, 5, 8), np.float32), np.zeros(4, np.int32))
    weights = split_flat(artifact.initial_weights(), artifact.layout)
    losses = []
    for name in RUNTIMES:
        with contextlib.suppress(RuntimeUnavailable):
            session = RUNTIMES[name].open(artifact)
            result = session.step(weights, zero_slots(artifact), batch, PLAIN | {"seed": 77}, weights)
            losses.append(result.sums["loss"])
    assert losses == pytest.approx([losses[0]] * len(losses), rel=1e-5)


def test_a_step_costs_no_more_than_a_few_nodes_for_a_second_layer():
    """Layers share what is mixed of seed and row."""

    def nodes(count):
        layers = [("Mul", "x scale", "h0", {})]
        layers += [("Dropout", f"h{at} ratio", f"h{at + 1}", {}) for at in range(count)]
        made = network(
            (UNITS,),
            [*layers, ("Identity", f"h{count}", "z", {})],
            {"scale": ones(UNITS), "ratio": np.float32(0.5)},
        )
        return len(onnx.load_from_string(build_artifact(made, loss="mse").read("step.onnx")).graph.node)

    without, one, two = nodes(0), nodes(1), nodes(2)
    assert two - one < (one - without) / 3
