"""One contract, every runtime: the arithmetic of a training step against a model written out by hand."""

import numpy as np
import pytest

from fl_protocol.errors import ArtifactError, LayoutError
from models.runtime import RUNTIMES, Batch, split_flat, zero_slots
from models.runtime.golden import TOLERANCE, deviation
from models.zoo.catalogue import find

PLAIN = {"lr": 0.1, "momentum": 0.0, "mu": 0.0, "clip": 0.0}


@pytest.fixture(params=RUNTIMES)
def session(request, small_artifact, installed):
    """The small MLP, opened in each runtime."""
    installed(request.param)
    return RUNTIMES[request.param].open(small_artifact)


@pytest.fixture
def weights(small_artifact):
    """The initial weights, read-only, biases off zero."""
    draw = np.random.default_rng(3)
    flat = small_artifact.initial_weights()
    flat += 0.1 * draw.standard_normal(flat.size).astype(np.float32)
    flat.flags.writeable = False
    return split_flat(flat, small_artifact.layout)


def by_hand(weights, slots, batch, hyper, anchor):
    """One step of the 5-7-3 ReLU MLP in double precision, written out; imports nothing of ours."""
    w1, b1, w2, b2 = (
        np.asarray(weights[name], np.float64)
        for name in ("layer1.weight", "layer1.bias", "layer2.weight", "layer2.bias")
    )
    x, sw = batch.x.astype(np.float64), batch.sample_weight.astype(np.float64)
    hidden = np.maximum(x @ w1.T + b1, 0)
    logits = hidden @ w2.T + b2
    powers = np.exp(logits - logits.max(1, keepdims=True))
    probability = powers / powers.sum(1, keepdims=True)
    rows = np.arange(len(x))
    loss = -(np.log(probability[rows, batch.y]) * sw).sum()
    correct = ((logits.argmax(1) == batch.y) * sw).sum()

    delta = probability.copy()
    delta[rows, batch.y] -= 1
    delta *= (sw / max(sw.sum(), 1e-12))[:, None]
    back = delta @ w2 * (hidden > 0)
    gradients = {
        "layer1.weight": back.T @ x,
        "layer1.bias": back.sum(0),
        "layer2.weight": delta.T @ hidden,
        "layer2.bias": delta.sum(0),
    }
    norm = np.sqrt(sum((gradient**2).sum() for gradient in gradients.values()))
    scale = min(1.0, hyper["clip"] / max(norm, 1e-12)) if hyper["clip"] > 0 else 1.0
    new_weights, new_slots = {}, {}
    for name, gradient in gradients.items():
        pulled = scale * gradient + hyper["mu"] * (
            np.asarray(weights[name], np.float64) - np.asarray(anchor[name], np.float64)
        )
        velocity = hyper["momentum"] * np.asarray(slots[f"v.{name}"], np.float64) + pulled
        new_slots[f"v.{name}"] = velocity
        new_weights[name] = np.asarray(weights[name], np.float64) - hyper["lr"] * velocity
    return new_weights, new_slots, {"loss": loss, "weight": sw.sum(), "correct": correct}, norm


def assert_same(result, expected):
    """A step's result equals the one by hand to 1e-5."""
    weights, slots, sums, norm = expected
    for got, wanted in ((result.weights, weights), (result.slots, slots)):
        assert got.keys() == wanted.keys()
        for name, array in wanted.items():
            assert got[name].dtype == np.float32
            np.testing.assert_allclose(got[name], array, atol=1e-5, rtol=1e-5, err_msg=name)
    assert result.sums == pytest.approx(sums, rel=1e-5, abs=1e-5)
    assert result.grad_norm == pytest.approx(norm, rel=1e-5)


def test_it_reproduces_the_golden_steps(session, small_artifact):
    """What was recorded at the build comes out here too."""
    assert deviation(small_artifact, session) <= TOLERANCE


@pytest.mark.parametrize(
    "hyper",
    [
        PLAIN,
        {**PLAIN, "momentum": 0.9},
        {**PLAIN, "clip": 0.05},
        {**PLAIN, "clip": 1000.0},
        {**PLAIN, "clip": -1.0},
        {**PLAIN, "mu": 0.5},
        {"lr": 0.05, "momentum": 0.8, "mu": 0.1, "clip": 0.2},
    ],
    ids=lambda hyper: ",".join(f"{key}={value:g}" for key, value in hyper.items()),
)
def test_twenty_steps_are_those_written_by_hand(session, small_artifact, weights, hyper):
    """Momentum, clipping, FedProx and row weights, step after step, within 1e-5."""
    draw = np.random.default_rng(6)
    slots, anchor = zero_slots(small_artifact), weights
    expected = (weights, slots)
    for _ in range(20):
        batch = Batch(
            x=draw.standard_normal((8, 5)).astype(np.float32),
            y=draw.integers(0, 3, 8).astype(np.int32),
            sample_weight=draw.choice(np.array([0, 0.5, 1, 2], np.float32), 8),
        )
        result = session.step(weights, slots, batch, hyper, anchor)
        by_now = by_hand(*expected, batch, hyper, anchor)
        assert_same(result, by_now)
        weights, slots, expected = result.weights, result.slots, by_now[:2]


def test_a_row_of_weight_zero_counts_nothing(session, small_artifact, weights, small_batch):
    """Padding a batch with rows of weight 0 changes no result at all."""
    padded = Batch(
        x=np.concatenate([small_batch.x, np.full((3, 5), 9, np.float32)]),
        y=np.concatenate([small_batch.y, np.zeros(3, np.int32)]),
        sample_weight=np.concatenate([small_batch.sample_weight, np.zeros(3, np.float32)]),
    )
    slots = zero_slots(small_artifact)
    bare = session.step(weights, slots, small_batch, PLAIN, weights)
    full = session.step(weights, slots, padded, PLAIN, weights)
    assert full.sums == pytest.approx(bare.sums, rel=1e-6)
    assert full.grad_norm == pytest.approx(bare.grad_norm, rel=1e-6)
    for name, array in bare.weights.items():
        np.testing.assert_allclose(full.weights[name], array, atol=1e-7)


def test_all_rows_of_weight_zero_give_no_gradient(session, small_artifact, weights, small_batch):
    """Sums and gradient are zero, not NaN, and the weights stay."""
    empty = Batch(x=small_batch.x, y=small_batch.y, sample_weight=np.zeros(6, np.float32))
    result = session.step(weights, zero_slots(small_artifact), empty, PLAIN, weights)
    assert result.sums == {"loss": 0, "weight": 0, "correct": 0}
    assert result.grad_norm == 0
    for name, array in weights.items():
        np.testing.assert_array_equal(result.weights[name], array)


def test_a_step_sums_what_evaluation_sums(session, small_artifact, weights, small_batch):
    """A step reports the loss before it, under the same names."""
    stepped = session.step(weights, zero_slots(small_artifact), small_batch, PLAIN, weights).sums
    assert session.evaluate(weights, small_batch) == pytest.approx(stepped, rel=1e-6)


def test_evaluation_of_parts_adds_up(session, weights, small_batch):
    """Sums, not means: devices and batches can be added."""
    halves = [Batch.of(small_batch.x[part], small_batch.y[part]) for part in (slice(0, 2), slice(2, None))]
    parts = [session.evaluate(weights, half) for half in halves]
    whole = session.evaluate(weights, small_batch)
    assert {key: parts[0][key] + parts[1][key] for key in whole} == pytest.approx(whole, rel=1e-5)


def test_inference_gives_the_logits(session, weights, small_batch):
    """One row in, one row out, for any number of rows."""
    hidden = np.maximum(small_batch.x @ weights["layer1.weight"].T + weights["layer1.bias"], 0)
    logits = hidden @ weights["layer2.weight"].T + weights["layer2.bias"]
    np.testing.assert_allclose(session.infer(weights, small_batch.x), logits, atol=1e-5)
    assert session.infer(weights, small_batch.x[:1]).shape == (1, 3)


@pytest.mark.parametrize("runtime", RUNTIMES)
def test_no_rows_at_all_have_no_loss_and_no_output(runtime, installed):
    """Also through convolutions, whose windows there are none of."""
    installed(runtime)
    artifact = find("digits-cnn").open()
    session = RUNTIMES[runtime].open(artifact)
    initial = split_flat(artifact.initial_weights(), artifact.layout)
    x = np.zeros((0, 64), np.float32)
    sums = session.evaluate(initial, Batch.of(x, np.zeros(0, np.int32)))
    assert sums == {"loss": 0, "weight": 0, "correct": 0}
    assert session.infer(initial, x).shape == (0, 10)


def test_a_batch_has_a_label_and_a_weight_for_each_row():
    """A graph of fixed size would be filled up, and train on labels that nobody gave."""
    with pytest.raises(LayoutError, match="4 rows has 3 labels and 4 weights"):
        Batch.of(np.zeros((4, 5), np.float32), np.zeros(3, np.int32))


def test_hyper_parameters_that_are_left_out_take_the_artifacts_defaults(
    session, small_artifact, weights, small_batch
):
    """lr 0.1 and everything else off; a name that the graph has no input for does no harm."""
    slots = zero_slots(small_artifact)
    default = session.step(weights, slots, small_batch, {"warmup": 3.0}, weights)
    assert_same(default, by_hand(weights, slots, small_batch, PLAIN, weights))


def test_a_missing_tensor_is_named(session, small_artifact, weights, small_batch):
    """Before anything runs."""
    fewer = {name: array for name, array in weights.items() if name != "layer2.bias"}
    with pytest.raises(LayoutError, match=r"layer2\.bias"):
        session.step(fewer, zero_slots(small_artifact), small_batch, PLAIN, weights)
    with pytest.raises(LayoutError, match=r"layer2\.bias"):
        session.infer(fewer, small_batch.x)
    with pytest.raises(LayoutError, match=r"v\.layer"):
        session.step(weights, {}, small_batch, PLAIN, weights)


def test_rows_of_another_width_are_refused(session, weights):
    """Whatever the runtime says about it, the caller sees one kind of error."""
    with pytest.raises(ArtifactError):
        session.infer(weights, np.zeros((2, 4), np.float32))


@pytest.mark.parametrize("other", ["onnx", "litert", "tflite"])
def test_two_runtimes_agree_for_twenty_steps(digits_for_all, installed, other):
    """The real digits MLP, from the same start: 1e-5 on every weight."""
    installed(other)
    from models.runtime import TrainingArtifact
    from models.zoo import digits

    artifact = TrainingArtifact.open(digits_for_all)
    sessions = {name: RUNTIMES[name].open(artifact) for name in (other, "numpy")}
    train, _ = digits.split()
    start = split_flat(artifact.initial_weights(), artifact.layout)
    states = {name: (start, zero_slots(artifact)) for name in sessions}
    hyper = {"lr": 0.1, "momentum": 0.9, "mu": 0.01, "clip": 1.0}
    for step in range(20):
        rows = slice(step * 32, step * 32 + 32)
        batch = Batch.of(train.x[rows], train.y[rows])
        results = {
            name: session.step(*states[name], batch, hyper, start) for name, session in sessions.items()
        }
        states = {name: (result.weights, result.slots) for name, result in results.items()}
        assert results[other].sums == pytest.approx(results["numpy"].sums, rel=1e-5)
    for name, array in states["numpy"][0].items():
        np.testing.assert_allclose(states[other][0][name], array, atol=1e-5, err_msg=name)
