"""What the front doors are held to: golden steps on every runtime, and the framework's own losses."""

import numpy as np
import pytest
import torch

from models.runtime import RUNTIMES, Batch, runtimes_for, split_flat, try_runtime, zero_slots

STEPS = 5
LR, MOMENTUM = 0.05, 0.9
TOLERANCE = 1e-5


@pytest.fixture(autouse=True)
def seeded():
    """One thread and one seed: the machine's other work and the order of tests change no number."""
    torch.set_num_threads(1)
    torch.manual_seed(7)


@pytest.fixture
def runtimes_of():
    """The runtimes that are installed here, once each has reproduced an artifact's golden steps."""

    def check(artifact):
        trials = [try_runtime(name, artifact) for name in runtimes_for(artifact)]
        installed = [trial for trial in trials if trial.installed]
        assert not [trial for trial in installed if trial.reason], trials
        names = [trial.runtime for trial in installed]
        assert {"onnx", "litert", "numpy"} <= set(names)
        return names

    return check


@pytest.fixture
def losses_of():
    """The mean loss of each of a few training steps of an artifact on one runtime."""

    def train(artifact, runtime, x, y, *, steps=STEPS):
        session = RUNTIMES[runtime].open(artifact)
        start = split_flat(artifact.initial_weights(), artifact.layout)
        weights, slots = dict(start), zero_slots(artifact)
        batch = Batch.of(np.asarray(x), np.asarray(y))
        losses = []
        for _ in range(steps):
            result = session.step(weights, slots, batch, {"lr": LR, "momentum": MOMENTUM}, start)
            weights, slots = {**weights, **result.weights}, result.slots
            losses.append(result.sums["loss"] / result.sums["weight"])
        return losses, weights

    return train


@pytest.fixture
def in_step(runtimes_of, losses_of):
    """Train a module with PyTorch's own optimizer and the artifact on every runtime: the losses are equal."""

    def check(artifact, module, loss, x, y):
        module.train()
        trained = [tensor for tensor in module.parameters() if tensor.requires_grad]
        optimizer = torch.optim.SGD(trained, lr=LR, momentum=MOMENTUM)
        theirs = []
        for _ in range(STEPS):
            optimizer.zero_grad()
            error = loss(module(x), y)
            error.backward()
            optimizer.step()
            theirs.append(error.item())
        assert theirs[-1] < theirs[0]
        labels = y.numpy() if y.is_floating_point() else y.numpy().astype(np.int32)
        rows = x.numpy() if x.is_floating_point() else x.numpy().astype(np.int32)
        for runtime in runtimes_of(artifact):
            ours, _ = losses_of(artifact, runtime, rows, labels)
            np.testing.assert_allclose(ours, theirs, atol=TOLERANCE, rtol=0, err_msg=runtime)

    return check
