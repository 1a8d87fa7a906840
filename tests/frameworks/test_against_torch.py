"""Every kind of network trains in every runtime as in PyTorch: the same losses and weights, step by step.

Row weights, clipping, FedProx and momentum are on. From PyTorch's own state before it each step must be
exact. Twenty steps in a row may drift further where a unit sits at the kink of its activation and rounding
decides on which side: PyTorch in single precision drifts as far from itself in double precision.
"""

import pytest

pytest.importorskip("torch")

import torch

from hil.bench.torch_families import FAMILIES, draw_batches, exported, recorded
from models.build import build_artifact
from models.runtime import RUNTIMES

STEPS = 20
EXACT = 1e-5
DRIFTED = 1e-3
IMAGES = ["cnn, group norm", "cnn, batch norm", "autoencoder"]


@pytest.fixture(autouse=True, scope="module")
def one_thread():
    """Sums in one order, and no fight for cores."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="module")
def reference():
    """``reference(family, optimizer, flat)``: an artifact, and PyTorch's recorded steps; made once."""
    made = {}

    def make(name, optimizer, flat=False):
        family = FAMILIES[name]
        if name not in made:
            made[name] = exported(family)
        if (name, optimizer) not in made:
            made[name, optimizer] = build_artifact(
                made[name], optimizer=optimizer, runtimes=("onnx", "tflite"), **family.options
            )
        if (name, optimizer, flat) not in made:
            batches = list(draw_batches(family, STEPS, flat=flat))
            made[name, optimizer, flat] = recorded(family, batches, optimizer=optimizer)
        return made[name, optimizer], made[name, optimizer, flat]

    return make


@pytest.mark.parametrize("runtime", ["onnx", "litert", "numpy"])
@pytest.mark.parametrize("name", FAMILIES)
def test_sgd_is_pytorchs(name, runtime, reference):
    """Losses and weights of single steps, and losses of all in a row, within 1e-5."""
    artifact, recording = reference(name, "sgd")
    found = recording.retraced_by(RUNTIMES[runtime].open(artifact), artifact)
    assert max(found.one_loss, found.one_weights, found.loss) <= EXACT, found
    assert found.weights <= DRIFTED, found


@pytest.mark.parametrize("runtime", ["onnx", "litert", "numpy"])
@pytest.mark.parametrize("name", IMAGES)
def test_images_with_areas_of_one_colour_are_no_exception(name, runtime, reference):
    """Their maxima tie: PyTorch gives the first one everything, we share, and the weights get the same."""
    artifact, recording = reference(name, "sgd", flat=True)
    found = recording.retraced_by(RUNTIMES[runtime].open(artifact), artifact)
    assert max(found.one_loss, found.one_weights, found.loss) <= EXACT, found
    assert found.weights <= DRIFTED, found


@pytest.mark.parametrize("runtime", ["onnx", "litert", "numpy"])
@pytest.mark.parametrize("name", FAMILIES)
def test_adamw_is_pytorchs(name, runtime, reference):
    """Losses: its step divides by the root of tiny numbers, so that weights differ more."""
    artifact, recording = reference(name, "adamw")
    found = recording.retraced_by(RUNTIMES[runtime].open(artifact), artifact)
    assert found.one_loss <= EXACT, found
    assert found.loss <= DRIFTED, found
