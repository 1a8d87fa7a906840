"""Models of Keras 3: the guide's own, and what a training must keep to."""

import numpy as np
import pytest

from edge_agent.jobs import Trained
from edge_agent.trainer import ArraySamples, Trainer
from fl_protocol.errors import LayoutError
from fl_protocol.plan import TrainingPlan
from lichen import KerasTrainer, TorchTrainer
from models.zoo import digits

# Keras' own, on its torch backend with numpy 2.
pytestmark = pytest.mark.filterwarnings("ignore:__array__ implementation doesn't accept a copy keyword")

PLAN = TrainingPlan(epochs=2, batch_size=20, lr=0.1, momentum=0.9, seed=3)


def never():
    return False


@pytest.fixture(scope="module")
def samples():
    """A hundred real digits."""
    images = digits.load()
    return ArraySamples(images.x[:100], images.y[:100])


@pytest.fixture(scope="module")
def keras():
    """On the torch backend, as ``make test-frameworks`` sets it."""
    keras = pytest.importorskip("keras")
    assert keras.backend.backend() == "torch"
    return keras


@pytest.fixture(scope="module")
def normalised(keras):
    """A trainer with BatchNormalization and Dropout, and its weights, statistics included."""

    class Normalised(KerasTrainer):
        loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)

        def model(self):
            return keras.Sequential(
                [
                    keras.Input((64,)),
                    keras.layers.Dense(32, name="hidden"),
                    keras.layers.BatchNormalization(name="norm"),
                    keras.layers.ReLU(name="relu"),
                    keras.layers.Dropout(0.3, name="dropout"),
                    keras.layers.Dense(10, name="output"),
                ],
                name="net",
            )

    return Normalised


def equal(first, second):
    return all(np.array_equal(first[name], second[name]) for name in first.keys() | second.keys())


def test_the_model_of_the_guide_is_wrapped_and_trained(page, bench):
    """Real digits, as a device's worker does it."""
    (bench.app / "my_app.py").write_text(page.block("Keras", "python", "class DigitsTrainer"))
    artifact = bench.wrap(page.block("Keras", "python", "import DigitsTrainer"))
    assert artifact.layout.tensors[0].name == "digits/hidden/kernel"
    images = digits.load()
    trained = bench.train("my_app:DigitsTrainer", artifact, samples=(images.x[:200], images.y[:200]))
    assert isinstance(trained, Trained), trained
    assert trained.runtime == "DigitsTrainer"
    assert trained.metrics["after.loss"] < trained.metrics["before.loss"]
    assert trained.metrics["after.correct"] > trained.metrics["before.correct"]


@pytest.mark.parametrize("buffers", [False, True])
def test_a_training_is_the_same_again(normalised, samples, buffers):
    """In another instance, and in the same one after an evaluation; with another seed it is another."""
    trainer = normalised()
    assert isinstance(trainer, Trainer)
    weights = trainer.weights(trainer.model(), buffers=buffers)
    first = trainer.train(weights, samples, PLAN, never)
    assert first.steps == 10
    trainer.evaluate(first.weights, samples)
    assert equal(trainer.train(weights, samples, PLAN, never).weights, first.weights)
    assert equal(normalised().train(weights, samples, PLAN, never).weights, first.weights)
    limited = TrainingPlan(batch_size=100, lr=0.1, seed=4)  # one batch: the order cannot make a difference
    other = TrainingPlan(batch_size=100, lr=0.1, seed=5)
    dropped = [trainer.train(weights, samples, plan, never).weights for plan in (limited, other)]
    assert not equal(*dropped)


def test_only_what_the_artifact_names_moves(normalised, samples):
    """A BatchNormalization without its statistics is frozen, and so is what is not named."""
    trainer = normalised()
    model = trainer.model()
    trainer.model = lambda: model
    before = {entry.path: np.array(entry.numpy()) for entry in model.variables}
    weights = trainer.weights(model, ["*/output/*", "*/norm/*"])
    result = trainer.train(weights, samples, PLAN, never)
    assert result.weights.keys() == weights.keys()
    moved = {entry.path for entry in model.weights if not np.array_equal(before[entry.path], entry.numpy())}
    assert moved == {"net/output/kernel", "net/output/bias"}


def test_a_step_with_fedprox_is_that_of_pytorch(keras, samples):
    """The same linear model in both, pulled to where it began."""
    import torch

    class Ours(KerasTrainer):
        loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)

        def model(self):
            return keras.Sequential([keras.Input((64,)), keras.layers.Dense(10, name="out")], name="net")

    class Theirs(TorchTrainer):
        def module(self):
            return torch.nn.Linear(64, 10)

        def loss(self, output, y):
            return torch.nn.functional.cross_entropy(output, y)

    start = Ours.weights(Ours().model())
    kernel, bias = start["net/out/kernel"], start["net/out/bias"]
    plan = TrainingPlan(epochs=3, batch_size=20, lr=0.1, momentum=0.9, mu=0.5, seed=3)
    ours = Ours().train(start, samples, plan, never).weights
    theirs = Theirs().train({"weight": kernel.T.copy(), "bias": bias}, samples, plan, never).weights
    assert np.allclose(ours["net/out/kernel"].T, theirs["weight"], atol=1e-5)
    assert np.allclose(ours["net/out/bias"], theirs["bias"], atol=1e-5)


def test_a_gradient_is_clipped_by_its_global_norm(normalised, samples):
    """A step of plain SGD is then as long as the limit times the rate."""
    trainer = normalised()
    weights = trainer.weights(trainer.model(), ["*/hidden/*", "*/output/*"])
    plan = TrainingPlan(batch_size=100, lr=1.0, clip=0.01)
    trained = trainer.train(weights, samples, plan, never).weights
    moved = np.sqrt(sum(((trained[name] - weights[name]) ** 2).sum() for name in weights))
    assert moved == pytest.approx(0.01, rel=1e-3)


def test_weights_of_another_model_are_refused(normalised, samples):
    """With what to do about it."""
    with pytest.raises(LayoutError, match="no such variable"):
        normalised().evaluate({"other/kernel": np.zeros(3, np.float32)}, samples)
