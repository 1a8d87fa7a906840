"""Personal parameters: trained by the step graph, never sent."""

import numpy as np
import onnx
import pytest

from fl_protocol.errors import ArtifactError, LayoutError
from models.build import build_artifact, inspect_model
from models.build import transforms as transforms_module
from models.runtime import RUNTIMES, Batch, split_flat, zero_slots
from models.zoo.mlp import mlp

HEAD = ("layer2.weight", "layer2.bias")
BODY = ("layer1.weight", "layer1.bias")
HYPER = {"lr": 0.1, "momentum": 0.9, "mu": 0.3, "clip": 0.2}


def network():
    """A 5-7-3 MLP."""
    return mlp((5, 7, 3), seed=4)


@pytest.fixture(scope="module")
def personal():
    """Its head is personal."""
    return build_artifact(
        network(), loss="softmax_cross_entropy", personal=["layer2.*"], runtimes=("onnx", "tflite")
    )


@pytest.fixture(scope="module")
def shared():
    """The same model, all of it shared."""
    return build_artifact(network(), loss="softmax_cross_entropy")


@pytest.fixture
def batch():
    """Six rows."""
    draw = np.random.default_rng(8)
    return Batch.of(draw.standard_normal((6, 5)).astype(np.float32), draw.integers(0, 3, 6).astype(np.int32))


def start_of(artifact):
    """What travels, as it starts."""
    return split_flat(artifact.initial_weights(), artifact.layout)


def test_personal_parameters_are_outside_layout_and_fingerprint(personal, shared):
    """The update of a fleet with personal heads is that of the body alone."""
    assert tuple(tensor.name for tensor in personal.layout.tensors) == BODY
    assert personal.layout.fingerprint != shared.layout.fingerprint
    roles = {entry.name: (entry.kind, entry.role) for entry in personal.manifest.parameters}
    assert [roles[name] for name in HEAD] == [("weight", "personal")] * 2
    assert list(roles) == [*BODY, *HEAD]
    assert personal.frozen_weights().keys() == set(HEAD)


def test_the_step_graph_gives_them_slots_and_no_anchor(personal):
    """They are pulled to nothing: what they start from is the device's own."""
    step = onnx.load_from_string(personal.read("step.onnx")).graph
    inputs, outputs = ({value.name for value in values} for values in (step.input, step.output))
    assert {f"{kind}.{name}" for kind in "wv" for name in HEAD} <= inputs
    assert not {f"a.{name}" for name in HEAD} & inputs
    assert {f"a.{name}" for name in BODY} <= inputs
    assert {f"{kind}.{name}.new" for kind in "wv" for name in HEAD} <= outputs
    assert {f"v.{name}" for name in HEAD} <= zero_slots(personal).keys()


@pytest.mark.parametrize("runtime", RUNTIMES)
def test_they_train_as_shared_ones_do(installed, personal, shared, batch, runtime):
    """Three steps with momentum and clipping, whose norm is over all that is trained."""
    installed(runtime)
    sessions = [(RUNTIMES[runtime].open(personal), personal), (RUNTIMES["numpy"].open(shared), shared)]
    results = []
    for session, artifact in sessions:
        weights = anchor = start_of(artifact)
        slots = zero_slots(artifact)
        for _ in range(3):
            result = session.step(weights, slots, batch, HYPER | {"mu": 0.0}, anchor)
            weights, slots = result.weights, result.slots
        results.append(result)
    one, other = results
    assert list(one.weights) == [*BODY, *HEAD]
    assert one.grad_norm == pytest.approx(other.grad_norm, rel=1e-5)
    for name, tensor in other.weights.items():
        np.testing.assert_allclose(one.weights[name], tensor, atol=2e-6, err_msg=name)


def test_the_pull_to_the_anchor_is_felt_by_shared_ones_alone(personal, batch):
    """FedProx with a strong pull moves the body, and leaves the head where it would be without."""
    session, weights = RUNTIMES["numpy"].open(personal), start_of(personal)
    away = {name: tensor + 1 for name, tensor in weights.items()}
    plain = HYPER | {"momentum": 0.0, "clip": 0.0}
    pulled, free = (
        session.step(weights, zero_slots(personal), batch, plain | {"mu": mu}, away).weights
        for mu in (0.5, 0)
    )
    np.testing.assert_array_equal(pulled["layer2.bias"], free["layer2.bias"])
    np.testing.assert_allclose(pulled["layer1.bias"] - free["layer1.bias"], 0.1 * 0.5, rtol=1e-4)


def test_a_session_takes_the_devices_own_or_the_artifacts(personal, shared, batch):
    """In step, evaluation and inference alike."""
    session, weights = RUNTIMES["numpy"].open(personal), start_of(personal)
    whole = start_of(shared)
    np.testing.assert_array_equal(session.infer(weights, batch.x), session.infer(whole, batch.x))
    own = whole | {"layer2.bias": np.array([9, 0, 0], np.float32)}
    assert (session.infer(own, batch.x).argmax(1) == 0).all()
    assert session.evaluate(own, batch) != session.evaluate(weights, batch)
    assert session.step(own, zero_slots(personal), batch, {}, weights).weights["layer2.bias"][0] > 8


def test_a_pattern_decides_and_the_rest_is_trained_or_frozen():
    """``personal`` first, then ``train`` among the others."""
    artifact = build_artifact(
        network(), loss="softmax_cross_entropy", personal=["layer2.*"], train=["*.weight"], expect_params=66
    )
    assert [entry.role for entry in artifact.manifest.parameters] == [
        "trainable",
        "frozen",
        "personal",
        "personal",
    ]


def test_an_inspection_shows_them():
    """Before anything is built."""
    found = inspect_model(network(), personal=["layer2.bias"])
    assert [role for *_, role in found.parameters] == ["trainable", "trainable", "trainable", "personal"]


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"personal": ["*"]}, "no weight is both trained and shared"),
        ({"personal": ["layer1.*"], "train": ["layer1.*"]}, "no weight is both trained and shared"),
        ({"personal": ["haed.*"]}, "no parameter matches 'haed"),
    ],
)
def test_a_choice_that_makes_no_sense_is_refused(options, words):
    """A fleet without anything to send is none."""
    with pytest.raises(ArtifactError, match=words) as caught:
        build_artifact(network(), loss="softmax_cross_entropy", **options)
    assert caught.value.hint


def test_a_wrong_gradient_of_a_personal_parameter_is_found(monkeypatch):
    """The gate looks at all that is trained."""
    right = transforms_module.clip_by_global_norm

    def wrong(graph, gradients, limit):
        clipped, norm = right(graph, gradients, limit)
        half = graph.op("Mul", clipped["layer2.bias"], graph.constant(0.5))
        return clipped | {"layer2.bias": half}, norm

    monkeypatch.setattr("models.build.assemble.clip_by_global_norm", wrong)
    with pytest.raises(ArtifactError, match=r"gradient of 'layer2\.bias'"):
        build_artifact(network(), loss="softmax_cross_entropy", personal=["layer2.*"])


@pytest.fixture(scope="module")
def corrected():
    """Built with correction, its head personal."""
    return build_artifact(
        network(),
        loss="softmax_cross_entropy",
        personal=["layer2.*"],
        correction=True,
        runtimes=("onnx", "tflite"),
    )


@pytest.mark.parametrize("runtime", RUNTIMES)
def test_a_correction_is_added_to_the_gradient(installed, corrected, batch, runtime):
    """After clipping, and only for what is shared; without one the step is the plain one."""
    installed(runtime)
    session, weights = RUNTIMES[runtime].open(corrected), start_of(corrected)
    shift = {name: np.full(tensor.shape, 0.25, np.float32) for name, tensor in weights.items()}
    plain, moved = (
        session.step(
            weights, zero_slots(corrected), batch, {"lr": 0.1, "clip": 0.01}, weights, correction=correction
        )
        for correction in (None, shift)
    )
    assert plain.grad_norm == moved.grad_norm
    for name in BODY:
        np.testing.assert_allclose(plain.weights[name] - moved.weights[name], 0.1 * 0.25, atol=1e-6)
    for name in HEAD:
        np.testing.assert_array_equal(plain.weights[name], moved.weights[name])


def test_a_correction_that_does_not_fit_is_refused(corrected, personal, batch):
    """One tensor short, or an artifact that was not built for any."""
    for artifact, words in ((corrected, "needs the tensor"), (personal, "takes no correction")):
        session, weights = RUNTIMES["numpy"].open(artifact), start_of(artifact)
        with pytest.raises(LayoutError, match=words):
            session.step(
                weights, zero_slots(artifact), batch, {}, weights, correction={BODY[0]: weights[BODY[0]]}
            )
