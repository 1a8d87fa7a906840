"""Modules of PyTorch: the step is PyTorch's own, and only what the artifact names moves."""

import dataclasses

import numpy as np
import pytest
import torch
from torch import nn

from edge_agent.checkpoint import Checkpoint, read_checkpoint
from edge_agent.graph_trainer import GraphTrainer
from edge_agent.jobs import Trained
from edge_agent.trainer import ArraySamples, Trainer
from fl_io.clock import SystemClock
from fl_protocol.errors import LayoutError
from fl_protocol.plan import TrainingPlan
from lichen import TorchTrainer, wrap_weights
from models.runtime import RUNTIMES
from models.zoo import digits
from models.zoo.mlp import digits_artifact

PLAN = TrainingPlan(epochs=2, batch_size=20, lr=0.1, momentum=0.9, mu=0.1, clip=0.5, seed=3)


def never():
    return False


class Digits(TorchTrainer):
    """An MLP with the names of the zoo's."""

    def module(self):
        torch.manual_seed(0)
        layers = {"layer1": nn.Linear(64, 32), "relu": nn.ReLU(), "layer2": nn.Linear(32, 10)}
        net = nn.Sequential()
        for name, layer in layers.items():
            net.add_module(name, layer)
        return net

    def loss(self, output, y):
        return nn.functional.cross_entropy(output, y)


class Normalised(Digits):
    """BatchNorm and dropout in it."""

    def module(self):
        torch.manual_seed(0)
        return nn.Sequential(
            nn.Linear(64, 32), nn.BatchNorm1d(32), nn.ReLU(), nn.Dropout(0.3), nn.Linear(32, 10)
        )


@pytest.fixture(scope="module")
def samples():
    """A hundred real digits."""
    images = digits.load()
    return ArraySamples(images.x[:100], images.y[:100])


def equal(first, second):
    return all(np.array_equal(first[name], second[name]) for name in first.keys() | second.keys())


def test_a_training_is_that_of_the_artifacts_own_step_graph(samples, tmp_path):
    """Same weights, batches, momentum, clip and FedProx: PyTorch and the graph agree after ten steps."""
    artifact = digits_artifact(tmp_path / "artifact")
    graph = GraphTrainer(artifact, RUNTIMES["onnx"].open(artifact))
    start = {name: array.copy() for name, array in Digits.weights(Digits().module()).items()}
    ours = Digits().train(start, samples, PLAN, never)
    theirs = graph.train(start, samples, PLAN, never)
    assert ours.steps == theirs.steps == 10
    for name, tensor in ours.weights.items():
        assert np.allclose(tensor, theirs.weights[name], atol=1e-5), name
    measured, expected = Digits().evaluate(start, samples), graph.evaluate(start, samples)
    assert measured["correct"] == expected["correct"]
    assert measured["loss"] == pytest.approx(expected["loss"], rel=1e-5)


@pytest.mark.parametrize("buffers", [False, True])
def test_a_training_is_the_same_again(samples, buffers):
    """In another instance, in the same one after an evaluation, whatever dropout drew before."""
    trainer = Normalised()
    assert isinstance(trainer, Trainer)
    weights = trainer.weights(trainer.module(), buffers=buffers)
    first = trainer.train(weights, samples, PLAN, never).weights
    trainer.evaluate(first, samples)
    torch.rand(3)
    assert equal(trainer.train(weights, samples, PLAN, never).weights, first)
    assert equal(Normalised().train(weights, samples, PLAN, never).weights, first)


def test_only_what_the_artifact_names_moves(samples):
    """The rest is the module's own, and stays it."""
    trainer = Normalised()
    module = trainer.module()
    trainer.module = lambda: module
    before = {name: tensor.clone() for name, tensor in module.state_dict().items()}
    weights = trainer.weights(module, ["4.*"])
    assert list(weights) == ["4.weight", "4.bias"]
    result = trainer.train(weights, samples, PLAN, never)
    assert result.weights.keys() == weights.keys()
    after = module.state_dict()
    moved = {name for name, tensor in before.items() if not torch.equal(tensor, after[name])}
    assert moved == {"4.weight", "4.bias"}


def test_running_statistics_move_where_they_travel(samples):
    """And are used as they are where they do not."""
    trainer = Normalised()
    weights = trainer.weights(trainer.module(), buffers=True)
    assert {"1.running_mean", "1.running_var"} <= weights.keys()
    result = trainer.train(weights, samples, PLAN, never)
    assert not np.array_equal(result.weights["1.running_var"], weights["1.running_var"])
    assert trainer.evaluate(result.weights, samples)["correct"] > 50


def test_a_last_batch_of_one_row_is_trained_on(samples):
    """One row has no variance of its own: a normalisation then goes by its running statistics."""
    x, y = samples.all()
    trainer = Normalised()
    weights = trainer.weights(trainer.module(), buffers=True)
    plan = dataclasses.replace(PLAN, epochs=1)
    result = trainer.train(weights, ArraySamples(x[:41], y[:41]), plan, never)
    assert result.steps == 3
    assert all(np.isfinite(array).all() for array in result.weights.values())
    alone = trainer.train(weights, ArraySamples(x[:1], y[:1]), plan, never).weights
    assert np.array_equal(alone["1.running_var"], weights["1.running_var"])
    assert not np.array_equal(alone["4.bias"], weights["4.bias"])


def test_a_training_ends_when_it_is_told(samples):
    """Between two steps, and at the plan's last."""
    trainer = Digits()
    weights = trainer.weights(trainer.module())
    asked = iter([False, False, True])
    assert trainer.train(weights, samples, PLAN, lambda: next(asked)).steps == 2
    limited = TrainingPlan(epochs=9, batch_size=20, max_steps=3)
    assert trainer.train(weights, samples, limited, never).steps == 3


class Adaptive(Normalised):
    """With an optimizer that keeps more than one slot, and a step count."""

    def optimizer(self, parameters, plan):
        return torch.optim.Adam(parameters, lr=plan.lr / 10, amsgrad=True)


@pytest.mark.parametrize("kind", [Normalised, Adaptive])
def test_a_training_goes_on_from_its_checkpoint(samples, tmp_path, kind):
    """Cut off after four steps of ten, by a power cut as far as the file can tell: bit by bit the same."""
    trainer = kind()
    weights = trainer.weights(trainer.module(), buffers=True)
    whole = trainer.train(weights, samples, PLAN, never)

    def checkpoint(saved=None):
        bound = {"binding": b"1", "samples": 100, "newest": 0, "every_s": 0.0, "clock": SystemClock()}
        return Checkpoint(tmp_path / "checkpoint", saved=saved, **bound)

    cut = kind()
    cut.checkpoint = checkpoint()
    asked = iter([False] * 4 + [True])
    assert cut.train(weights, samples, PLAN, lambda: next(asked)).steps == 4
    torch.rand(3)
    resumed = kind()
    resumed.checkpoint = checkpoint(read_checkpoint(tmp_path / "checkpoint"))
    asked = iter([False] * 6)
    rest = resumed.train(weights, samples, PLAN, lambda: next(asked))
    assert rest.steps == 10
    assert equal(rest.weights, whole.weights)


def test_weights_of_another_module_are_refused():
    """By name and by shape."""
    trainer = Digits()
    with pytest.raises(LayoutError, match="no such tensor"):
        trainer.evaluate({"other": np.zeros(3, np.float32)}, ArraySamples(np.zeros((1, 64)), np.zeros(1)))
    wrong = {"layer1.bias": np.zeros(3, np.float32)}
    with pytest.raises(LayoutError, match=r"of shape \[3\]"):
        trainer.evaluate(wrong, ArraySamples(np.zeros((1, 64)), np.zeros(1)))


def test_statistics_travel_as_statistics(bench, page, tmp_path):
    """Wrapped as the guide says, they end the layout as buffers, and come back in the update."""
    (bench.app / "my_app.py").write_text(
        "import lichen, torch\n"
        "class Net(lichen.TorchTrainer):\n"
        "    def module(self):\n"
        "        torch.manual_seed(0)\n"
        "        return torch.nn.Sequential(torch.nn.BatchNorm1d(64), torch.nn.Linear(64, 10))\n"
        "    def loss(self, output, y): return torch.nn.functional.cross_entropy(output, y)\n"
    )
    weights = TorchTrainer.weights(nn.Sequential(nn.BatchNorm1d(64), nn.Linear(64, 10)), buffers=True)
    artifact = wrap_weights(weights, out=tmp_path / "artifact", buffers=["*running_*"])
    assert [tensor.kind for tensor in artifact.layout.tensors] == ["weight"] * 4 + ["buffer"] * 2
    images = digits.load()
    trained = bench.train("my_app:Net", artifact, samples=(images.x[:100], images.y[:100]))
    assert isinstance(trained, Trained), trained
    assert trained.metrics["after.correct"] > trained.metrics["before.correct"]
