"""Batch normalisation in training: against a plain NumPy model that is differentiated numerically."""

import importlib.util
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import helper

from fl_protocol.errors import ArtifactError
from models.build import build_artifact, inspect_model
from models.build.mode import MODES
from models.runtime import RUNTIMES, Batch, split_flat, zero_slots

_SPEC = importlib.util.spec_from_file_location("forward", Path(__file__).parent / "forward.py")
forward = importlib.util.module_from_spec(_SPEC)
_SPEC.loader.exec_module(forward)
network, w, CLASSES = forward.network, forward.w, forward.CLASSES

CHANNELS, KEPT, EPSILON = 6, 0.8, 1e-3
SHAPES = {"rows of numbers": (), "1-d": (5,), "2-d": (3, 4)}
PLAIN = {"lr": 0.1, "momentum": 0.0, "mu": 0.0, "clip": 0.0}
STATISTICS = ("norm.mean", "norm.var")


def tensors(spatial):
    """Weights off their usual initial values; the names are in wire order."""
    size = CHANNELS * int(np.prod(spatial, dtype=int))
    draw = np.random.default_rng(3)

    def positive():
        return draw.uniform(0.5, 2, CHANNELS).astype(np.float32)

    return {
        "mix": w(CHANNELS, CHANNELS),
        "norm.w": positive(),
        "norm.b": w(CHANNELS, scale=0.3),
        "norm.mean": w(CHANNELS, scale=0.3),
        "norm.var": positive(),
        "head.w": w(size, 3),
        "head.b": w(3, scale=0.1),
    }


def model(spatial, given, *, training_mode=False):
    """Channels mixed by a 1x1 convolution (or a product), normalised; Tanh; a linear head."""
    mixed = ("MatMul", "x mix", "c", {}) if not spatial else ("Conv", "x kernel", "c", {})
    attributes = {"epsilon": EPSILON, "momentum": KEPT} | ({"training_mode": 1} if training_mode else {})
    outputs = "n mean var" if training_mode else "n"
    nodes = [
        mixed,
        ("BatchNormalization", "c norm.w norm.b norm.mean norm.var", outputs, attributes),
        ("Tanh", "n", "t", {}),
        ("Flatten", "t", "h", {}),
        ("MatMul", "h head.w", "m", {}),
        ("Add", "m head.b", "z", {}),
    ]
    if spatial:
        kernel = given["mix"].T.reshape(CHANNELS, CHANNELS, *[1] * len(spatial))
        given = {"kernel" if name == "mix" else name: it for name, it in given.items()} | {"kernel": kernel}
    return network((CHANNELS, *spatial), nodes, given)


def reference(values, x, weight):
    """The plain model: logits, and the batch's mean, biased variance and count of values."""
    mixed = np.einsum("nc...,cd->nd...", x, values["mix"])
    axes = (0, *range(2, mixed.ndim))
    share = (weight / weight.sum()).reshape(-1, *[1] * (mixed.ndim - 1))
    positions = int(np.prod(mixed.shape[2:], dtype=int))
    mean = (mixed * share).sum(axes) / positions
    wide = (1, -1, *[1] * (mixed.ndim - 2))
    variance = ((mixed - mean.reshape(wide)) ** 2 * share).sum(axes) / positions
    normal = (mixed - mean.reshape(wide)) / np.sqrt(variance + EPSILON).reshape(wide)
    active = np.tanh(normal * values["norm.w"].reshape(wide) + values["norm.b"].reshape(wide))
    logits = active.reshape(len(x), -1) @ values["head.w"] + values["head.b"]
    return logits, mean, variance, weight.sum() * positions


def reference_loss(values, batch):
    """The weighted mean of the cross-entropy."""
    logits = reference(values, batch.x.astype(np.float64), batch.sample_weight)[0]
    logs = logits - np.log(np.exp(logits).sum(1, keepdims=True))
    rows = -logs[np.arange(len(batch.y)), batch.y]
    return (rows * batch.sample_weight).sum() / batch.sample_weight.sum()


def slope(values, batch, name):
    """The gradient of one tensor by central differences, entry by entry."""
    gradient = np.empty(values[name].size)
    for place in range(gradient.size):
        ends = []
        for change in (1e-6, -1e-6):
            moved = values[name].copy()
            moved.reshape(-1)[place] += change
            ends.append(reference_loss(values | {name: moved}, batch))
        gradient[place] = (ends[0] - ends[1]) / 2e-6
    return gradient.reshape(values[name].shape)


def rows(spatial, weights):
    """A batch of as many rows as there are weights."""
    draw = np.random.default_rng(7)
    return Batch(
        x=(draw.standard_normal((len(weights), CHANNELS, *spatial)) + 0.5).astype(np.float32),
        y=draw.integers(0, 3, len(weights)).astype(np.int32),
        sample_weight=np.array(weights, np.float32),
    )


def built(spatial, policy="averaged", **options):
    """The artifact, and its tensors as a step takes them, named as the reference names them."""
    given = tensors(spatial)
    graphs = ("onnx", "tflite")
    artifact = build_artifact(
        model(spatial, given), loss=CLASSES, batch_norm=policy, runtimes=graphs, **options
    )
    return artifact, split_flat(artifact.initial_weights(), artifact.layout), given


@pytest.mark.parametrize("runtime", RUNTIMES)
@pytest.mark.parametrize("shape", SHAPES)
def test_a_step_is_that_of_the_plain_model(installed, runtime, shape):
    """Loss, every gradient through the batch's statistics, and the running ones, in each runtime."""
    installed(runtime)
    spatial = SHAPES[shape]
    artifact, weights, given = built(spatial)
    batch = rows(spatial, [1, 0.5, 2, 0, 1, 1.5])
    result = RUNTIMES[runtime].open(artifact).step(weights, zero_slots(artifact), batch, PLAIN, weights)

    exact = {name: tensor.astype(np.float64) for name, tensor in given.items()}
    wanted = reference_loss(exact, batch)
    assert result.sums["loss"] / result.sums["weight"] == pytest.approx(wanted, rel=1e-5)
    for name in ("mix", "norm.w", "norm.b", "head.w", "head.b"):
        moved = result.weights["kernel" if name == "mix" and spatial else name]
        if name == "mix" and spatial:
            moved = moved.reshape(CHANNELS, CHANNELS).T
        np.testing.assert_allclose(moved, exact[name] - 0.1 * slope(exact, batch, name), atol=1e-6)
    _, mean, variance, count = reference(exact, batch.x.astype(np.float64), batch.sample_weight)
    unbiased = variance * count / (count - 1)
    for name, new in (("norm.mean", mean), ("norm.var", unbiased)):
        kept = KEPT * exact[name] + (1 - KEPT) * new
        np.testing.assert_allclose(result.weights[name], kept, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("runtime", RUNTIMES)
def test_padding_changes_nothing(installed, runtime):
    """Rows of weight 0, whatever is in them, are not there: not for the statistics, not for a gradient."""
    installed(runtime)
    artifact, weights, _ = built((5,))
    session = RUNTIMES[runtime].open(artifact)
    alone = rows((5,), [1, 1, 2, 1])
    padded = Batch(
        x=np.concatenate([alone.x, np.full((3, CHANNELS, 5), 1e3, np.float32)]),
        y=np.concatenate([alone.y, np.zeros(3, np.int32)]),
        sample_weight=np.concatenate([alone.sample_weight, np.zeros(3, np.float32)]),
    )
    one, other = (
        session.step(weights, zero_slots(artifact), batch, PLAIN, weights) for batch in (alone, padded)
    )
    assert one.sums == pytest.approx(other.sums, rel=1e-6)
    for name, tensor in one.weights.items():
        np.testing.assert_allclose(other.weights[name], tensor, rtol=1e-6, atol=1e-6, err_msg=name)


@pytest.mark.parametrize("weights_of_rows", [[1], [0.25, 0.25], [0, 1, 0]])
def test_a_single_value_moves_no_running_statistic(weights_of_rows):
    """It has no variance; PyTorch refuses such a batch, which a device's last one may be."""
    artifact, weights, _ = built(())
    session = RUNTIMES["numpy"].open(artifact)
    result = session.step(weights, zero_slots(artifact), rows((), weights_of_rows), PLAIN, weights)
    for name in STATISTICS:
        np.testing.assert_array_equal(result.weights[name], weights[name])
    assert all(np.isfinite(tensor).all() for tensor in result.weights.values())


@pytest.mark.parametrize("runtime", RUNTIMES)
def test_a_negative_variance_is_taken_for_zero(installed, runtime):
    """An average with noise may fall below; the model must not answer with nothing."""
    installed(runtime)
    artifact, weights, _ = built(())
    session = RUNTIMES[runtime].open(artifact)
    batch = rows((), [1, 1, 1])
    below, zero = (weights | {"norm.var": np.full(CHANNELS, value, np.float32)} for value in (-0.5, 0))
    np.testing.assert_array_equal(session.infer(below, batch.x), session.infer(zero, batch.x))
    assert session.evaluate(below, batch) == session.evaluate(zero, batch)


ROLES = {
    "local": ("buffer", "personal"),
    None: ("buffer", "personal"),
    "averaged": ("buffer", "trainable"),
    "frozen": ("buffer", "frozen"),
}


@pytest.mark.parametrize("policy", ROLES)
def test_the_policy_decides_on_the_role_of_statistics(policy):
    """And on where they are: in an update, on the device, or in the artifact alone."""
    artifact, weights, given = built((), policy, expect_params=36 + 12 + 18 + 3)
    kinds = {entry.name: (entry.kind, entry.role) for entry in artifact.manifest.parameters}
    assert kinds["norm.mean"] == kinds["norm.var"] == ROLES[policy]
    assert list(kinds) == list(given)  # the builder's order, whatever travels
    travelling = [entry.name for entry in artifact.layout.tensors]
    assert travelling[-2:] == (list(STATISTICS) if policy == "averaged" else ["head.w", "head.b"])
    assert artifact.layout.weight_size == 36 + 12 + 18 + 3
    result = (
        RUNTIMES["numpy"]
        .open(artifact)
        .step(weights, zero_slots(artifact), rows((), [1, 1, 1]), PLAIN, weights)
    )
    moved = [name for name in STATISTICS if name in result.weights]
    assert moved == ([] if policy == "frozen" else list(STATISTICS))
    assert not any(slot.endswith(("mean", "var")) for slot in result.slots)


def test_frozen_statistics_serve_in_training_too():
    """The step's loss is then the evaluation's."""
    artifact, weights, _ = built((5,), "frozen")
    session, batch = RUNTIMES["numpy"].open(artifact), rows((5,), [1, 1, 0, 2])
    stepped = session.step(weights, zero_slots(artifact), batch, PLAIN, weights)
    assert stepped.sums == pytest.approx(session.evaluate(weights, batch), rel=1e-6)


def test_local_statistics_start_from_the_artifact_and_follow_the_mapping():
    """A session takes the device's own where it is given them, and its own where not."""
    artifact, weights, given = built((), "local")
    session, x = RUNTIMES["numpy"].open(artifact), rows((), [1, 1]).x
    start = {name: given[name] for name in STATISTICS}
    np.testing.assert_array_equal(session.infer(weights, x), session.infer(weights | start, x))
    other = start | {"norm.mean": start["norm.mean"] + 1}
    assert np.abs(session.infer(weights, x) - session.infer(weights | other, x)).max() > 0.01


def test_a_training_mode_export_is_the_same_model():
    """Which mode the exporter was in is of no matter."""
    given = tensors(())
    one, other = (
        build_artifact(model((), given, training_mode=mode), loss=CLASSES) for mode in (False, True)
    )
    assert one.read("step.onnx") == other.read("step.onnx")
    assert one.read("infer.onnx") == other.read("infer.onnx")


def test_a_personal_pattern_keeps_statistics_at_home_where_others_are_averaged():
    """A personal layer is personal with its statistics."""
    artifact, weights, _ = built((), "averaged", personal=["norm.*"])
    assert list(weights) == ["mix", "head.w", "head.b"]
    assert {entry.name for entry in artifact.manifest.parameters if entry.role == "personal"} == {
        "norm.w",
        "norm.b",
        *STATISTICS,
    }


def test_a_layer_that_is_used_twice_moves_its_statistics_twice():
    """As PyTorch does: once for each batch that passes through it."""
    norm = "norm.w norm.b norm.mean norm.var"
    attributes = {"epsilon": EPSILON, "momentum": KEPT}
    given = tensors(())
    twice = network(
        (CHANNELS,),
        [
            ("MatMul", "x mix", "c", {}),
            ("BatchNormalization", f"c {norm}", "n", attributes),
            ("BatchNormalization", f"n {norm}", "m", attributes),
            ("MatMul", "m head.w", "k", {}),
            ("Add", "k head.b", "z", {}),
        ],
        given,
    )
    artifact = build_artifact(twice, loss=CLASSES, batch_norm="averaged")
    weights = split_flat(artifact.initial_weights(), artifact.layout)
    batch = rows((), [1, 1, 1, 1])
    result = RUNTIMES["numpy"].open(artifact).step(weights, zero_slots(artifact), batch, PLAIN, weights)
    mean, mixed = given["norm.mean"].astype(np.float64), batch.x.astype(np.float64) @ given["mix"]
    for values in (mixed, np.broadcast_to(given["norm.b"], mixed.shape)):  # the second has a mean of b
        mean = KEPT * mean + (1 - KEPT) * values.mean(0)
    np.testing.assert_allclose(result.weights["norm.mean"], mean, rtol=1e-5, atol=1e-6)


def shared_with_a_bias():
    """An exporter that stores equal tensors once."""
    given = tensors(())
    net = model((), given)
    net.graph.node[1].input[3] = "norm.b"
    return net


def shared_with_another_layer():
    """The same thrift with the means of two layers."""
    given = tensors(()) | {"second.w": forward.ones(CHANNELS), "second.var": forward.ones(CHANNELS)}
    net = model((), given)
    second = helper.make_node(
        "BatchNormalization", ["c", "second.w", "norm.b", "norm.mean", "second.var"], ["c2"], name="second"
    )
    net.graph.node.insert(1, second)
    net.graph.node[2].input[0] = "c2"
    return net


def folded_batch():
    """Steps of a sequence folded into the batch."""
    given = tensors(())
    nodes = [
        ("Reshape", "x flat", "f", {}),
        ("BatchNormalization", "f norm.w norm.b norm.mean norm.var", "n", {}),
        ("Reshape", "n back", "h", {}),
        ("MatMul", "h head2", "z", {}),
    ]
    given = {name: it for name, it in given.items() if name.startswith("norm")}
    return network(
        (2, CHANNELS),
        nodes,
        given
        | {
            "flat": forward.i64(-1, CHANNELS),
            "back": forward.i64(-1, 2 * CHANNELS),
            "head2": w(2 * CHANNELS, 3),
        },
    )


REFUSED = [
    (shared_with_a_bias, {}, "'norm.b' is not its running statistic alone"),
    (shared_with_another_layer, {}, "'norm.mean' is not its running statistic alone"),
    (folded_batch, {}, "BatchNormalization1.*first dimension is not the batch alone"),
    (lambda: model((), tensors(())), {"batch_norm": "sometimes"}, "no policy 'sometimes'"),
]


@pytest.mark.parametrize(("make", "options", "words"), REFUSED)
def test_statistics_that_cannot_be_kept_are_refused(make, options, words):
    """By layer, with a remedy."""
    with pytest.raises(ArtifactError, match=words) as caught:
        build_artifact(make(), loss=CLASSES, **options)
    assert caught.value.hint


def test_a_folded_batch_trains_with_frozen_statistics():
    """The remedy that the refusal names."""
    artifact = build_artifact(folded_batch(), loss=CLASSES, batch_norm="frozen")
    assert artifact.layout.size == 2 * CHANNELS + 2 * CHANNELS * 3


def test_a_wrong_training_mode_is_found_on_the_model(monkeypatch):
    """The gate compares it with evaluation under the same statistics."""
    right = MODES["BatchNormalization"]

    def wrong(graph, node, training):
        result, *statistics = right(graph, node, training)
        return (graph.op("Mul", result, graph.constant(1.01)) if training else result, *statistics)

    monkeypatch.setitem(MODES, "BatchNormalization", wrong)
    with pytest.raises(ArtifactError, match="statistics of a batch the loss is"):
        built((5,))


def test_an_inspection_shows_what_becomes_of_statistics():
    """Before anything is built."""
    found = inspect_model(model((), tensors(())))
    assert not found.obstacles
    assert ("norm.var", (CHANNELS,), "personal buffer") in found.parameters
    assert [use.support for use in found.operators if use.op == "BatchNormalization"] == ["lowered"]


def test_old_operator_sets_keep_their_momentum():
    """An export of operator set 9 is converted, and its layer moves as fast."""
    pytest.importorskip("onnxruntime")  # the reference evaluator trains a layer of this set
    given = tensors(())
    old = model((), given)
    old.opset_import[0].CopyFrom(helper.make_opsetid("", 9))
    onnx.checker.check_model(old)
    one, other = (build_artifact(it, loss=CLASSES) for it in (old, model((), given)))
    assert one.read("step.onnx") == other.read("step.onnx")
