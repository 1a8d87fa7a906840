"""Steps of many devices at once give each what it gets alone."""

import numpy as np
import pytest

from fl_protocol.errors import ArtifactError
from models.runtime import Batch, zero_slots
from models.runtime.numpy_runtime import NumpyRuntime
from models.runtime.stacked_session import StackedSession
from models.zoo.catalogue import CATALOGUE

HYPER = {"lr": 0.05, "momentum": 0.9, "mu": 0.1, "clip": 0.5}
DEVICES, ROWS, STEPS = 5, 6, 3


def batches(artifact, rng):
    """A batch a device."""
    inputs = {entry.name: entry for entry in artifact.manifest.inputs}
    made = []
    for _ in range(DEVICES):
        x = rng.random((ROWS, *inputs["x"].shape[1:]), np.float32)
        y = inputs["y"]
        labels = rng.integers(0, 5, ROWS).astype(np.int32)
        made.append(Batch.of(x, labels if y.dtype == "int32" else x.reshape(ROWS, *y.shape[1:])))
    return made


def stacked_batch(made):
    """Arrays with a device axis in front."""
    parts = ("x", "y", "sample_weight")
    return Batch(**{part: np.stack([getattr(batch, part) for batch in made]) for part in parts})


@pytest.mark.parametrize("model", CATALOGUE, ids=lambda model: model.name)
def test_a_device_in_a_stack_learns_what_it_learns_alone(model):
    """Weights, slots and gradient norms, over steps in which the devices grow apart: dense layers,
    convolutions, normalisation and recurrence."""
    artifact = model.open()
    rng = np.random.default_rng(5)
    stacked, single = StackedSession(artifact), NumpyRuntime().open(artifact)
    base = {
        tensor.name: rng.normal(0, 0.1, tensor.shape).astype(np.float32) ** 2
        for tensor in artifact.manifest.layout.tensors
    }
    weights = {name: np.stack([tensor] * DEVICES) for name, tensor in base.items()}
    slots = {name: np.stack([tensor] * DEVICES) for name, tensor in zero_slots(artifact).items()}
    alone = [(dict(base), zero_slots(artifact)) for _ in range(DEVICES)]
    for _ in range(STEPS):
        given = batches(artifact, rng)
        step = stacked.step_all(weights, slots, stacked_batch(given), HYPER, base)
        weights, slots = step.weights, step.slots
        for device, batch in enumerate(given):
            own, kept = alone[device]
            result = single.step(own, kept, batch, HYPER, base)
            alone[device] = {**own, **result.weights}, result.slots
            np.testing.assert_allclose(step.grad_norm[device], result.grad_norm, rtol=2e-5)
    for device, (own, kept) in enumerate(alone):
        for name, tensor in weights.items():
            np.testing.assert_allclose(tensor[device], own[name], rtol=2e-5, atol=2e-6)
        for name, tensor in slots.items():
            np.testing.assert_allclose(tensor[device], kept[name], rtol=2e-5, atol=2e-6)
    assert not np.array_equal(weights[next(iter(base))][0], weights[next(iter(base))][1])


def test_what_a_device_learns_does_not_depend_on_the_others():
    """To the last bit: or a run would not be the same where another device fails."""
    artifact = next(model for model in CATALOGUE if model.name == "digits-mlp").open()
    rng = np.random.default_rng(0)
    base = {
        tensor.name: rng.normal(0, 0.1, tensor.shape).astype(np.float32)
        for tensor in artifact.manifest.layout.tensors
    }
    given = batches(artifact, rng)
    session = StackedSession(artifact)

    def learn(chosen):
        weights = {name: np.stack([tensor] * len(chosen)) for name, tensor in base.items()}
        slots = {name: np.stack([tensor] * len(chosen)) for name, tensor in zero_slots(artifact).items()}
        return session.step_all(weights, slots, stacked_batch(chosen), HYPER, base).weights

    whole, part = learn(given), learn([given[3], given[1]])
    for name, tensor in whole.items():
        assert np.array_equal(tensor[3], part[name][0])
        assert np.array_equal(tensor[1], part[name][1])


def test_a_stack_of_different_sizes_is_refused():
    """Weights of three devices and rows of five."""
    artifact = next(model for model in CATALOGUE if model.name == "digits-mlp").open()
    rng = np.random.default_rng(0)
    base = {tensor.name: np.zeros(tensor.shape, np.float32) for tensor in artifact.manifest.layout.tensors}
    weights = {name: np.stack([tensor] * 3) for name, tensor in base.items()}
    slots = {name: np.stack([tensor] * 3) for name, tensor in zero_slots(artifact).items()}
    with pytest.raises(ArtifactError, match=r"\[3, 5\] devices"):
        StackedSession(artifact).step_all(weights, slots, stacked_batch(batches(artifact, rng)), HYPER, base)
