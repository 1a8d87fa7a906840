"""Estimators of scikit-learn: those that can start from given weights, and what they must keep to."""

import numpy as np
import pytest
from sklearn.linear_model import LogisticRegression, SGDClassifier, SGDRegressor
from sklearn.neural_network import MLPClassifier, MLPRegressor

from edge_agent.trainer import ArraySamples, Trainer
from fl_protocol.errors import ConfigError, LayoutError
from fl_protocol.plan import TrainingPlan
from lichen import SklearnTrainer
from models.zoo import digits

PLAN = TrainingPlan(epochs=3, batch_size=16, lr=0.01, seed=3)


def never():
    return False


def trainer_of(make, classes=None):
    """A trainer whose estimator a function makes."""
    body = {"estimator": lambda self: make(), "classes": classes}
    return type("Made", (SklearnTrainer,), body)()


@pytest.fixture(scope="module")
def images():
    """Two hundred real digits."""
    loaded = digits.load()
    return loaded.take(np.arange(200))


@pytest.mark.parametrize(
    ("make", "lr"),
    [
        (lambda: SGDClassifier(loss="log_loss"), 0.01),
        (SGDClassifier, 0.01),
        (lambda: MLPClassifier(hidden_layer_sizes=(32,), solver="sgd"), 0.1),
        (lambda: MLPClassifier(hidden_layer_sizes=(32, 16)), 0.01),
    ],
    ids=["logistic", "hinge", "mlp-sgd", "mlp-adam"],
)
def test_a_classifier_learns_and_does_so_the_same_again(images, make, lr):
    """Optimizer state of one training is none of the next; every class is known though few are seen."""
    trainer = trainer_of(make, classes=range(10))
    assert isinstance(trainer, Trainer)
    weights = trainer.initial(features=64)
    samples = ArraySamples(images.x, images.y)
    plan = TrainingPlan(epochs=5, batch_size=16, lr=lr, seed=3)
    result = trainer.train(weights, samples, plan, never)
    assert result.steps == 65
    before, after = trainer.evaluate(weights, samples), trainer.evaluate(result.weights, samples)
    assert after["correct"] > before["correct"] + 20
    assert ("loss" in after) == hasattr(make(), "predict_proba")
    again = trainer.train(weights, samples, plan, never)
    assert all(np.array_equal(again.weights[name], result.weights[name]) for name in weights)


@pytest.mark.parametrize(
    ("make", "targets"),
    [(SGDRegressor, 1), (lambda: MLPRegressor(hidden_layer_sizes=(8,)), 1), (MLPRegressor, 3)],
    ids=["linear", "mlp", "mlp-three-targets"],
)
def test_a_regressor_learns(make, targets):
    """One target or several; stored as rows of (targets,)."""
    random = np.random.default_rng(0)
    x = random.normal(size=(100, 6)).astype(np.float32)
    y = (x @ random.normal(size=(6, targets))).astype(np.float32)
    trainer = trainer_of(make)
    weights = trainer.initial(features=6, targets=targets)
    samples = ArraySamples(x, y)
    result = trainer.train(weights, samples, PLAN, never)
    assert (
        trainer.evaluate(result.weights, samples)["loss"] < 0.8 * trainer.evaluate(weights, samples)["loss"]
    )


def test_one_step_of_a_linear_model_is_what_it_should_be():
    """Squared loss without a penalty: w += lr (y - w x) x, from the given weights."""
    trainer = trainer_of(lambda: SGDRegressor(penalty=None))
    weights = {"coef_": np.array([1.0, 2.0], np.float32), "intercept_": np.array([0.5], np.float32)}
    samples = ArraySamples(np.array([[1.0, 3.0]], np.float32), np.array([2.0], np.float32))
    result = trainer.train(weights, samples, TrainingPlan(lr=0.1), never)
    error = 2.0 - 7.5
    assert np.allclose(result.weights["coef_"], [1 + 0.1 * error, 2 + 0.3 * error])
    assert np.allclose(result.weights["intercept_"], [0.5 + 0.1 * error])


def test_a_training_ends_when_it_is_told(images):
    """Between two steps."""
    trainer = trainer_of(SGDClassifier, classes=range(10))
    weights = trainer.initial(features=64)
    asked = iter([False, False, True])
    samples = ArraySamples(images.x, images.y)
    assert trainer.train(weights, samples, PLAN, lambda: next(asked)).steps == 2


def test_weights_to_start_from_are_those_of_an_estimator_that_learned_nothing():
    """Zeros for a linear model; a network's as it draws them, its biases too."""
    linear = trainer_of(SGDClassifier, classes=range(10)).initial(features=64)
    assert {name: array.shape for name, array in linear.items()} == {"coef_": (10, 64), "intercept_": (10,)}
    assert not any(array.any() for array in linear.values())
    make = lambda: MLPClassifier(hidden_layer_sizes=(8,), random_state=0)  # noqa: E731
    drawn = trainer_of(make, classes=range(3)).initial(features=4)
    estimator = make()
    estimator.set_params(learning_rate_init=1e-30).partial_fit(np.ones((3, 4)), range(3), classes=range(3))
    for name, array in trainer_of(make).weights(estimator).items():
        assert np.allclose(drawn[name], array, atol=1e-9)
        assert array.any()


@pytest.mark.parametrize("asks", [{"mu": 0.1}, {"clip": 1.0}, {"momentum": 0.9}])
def test_what_scikit_learn_has_not_is_refused(asks):
    """Rather than left out in silence."""
    trainer = trainer_of(SGDRegressor)
    weights = {"coef_": np.zeros(2, np.float32), "intercept_": np.zeros(1, np.float32)}
    samples = ArraySamples(np.zeros((1, 2)), np.zeros(1))
    with pytest.raises(ConfigError, match=f"has no {next(iter(asks))}"):
        trainer.train(weights, samples, TrainingPlan(**asks), never)


def test_what_cannot_be_trained_this_way_is_refused():
    """No partial_fit; two sets of weights; no weights; weights of another."""
    weights = {"coef_": np.zeros((10, 2), np.float32), "intercept_": np.zeros(10, np.float32)}
    samples = ArraySamples(np.zeros((1, 2)), np.zeros(1))
    with pytest.raises(ConfigError, match="no partial_fit"):
        trainer_of(LogisticRegression, range(10)).evaluate(weights, samples)
    with pytest.raises(ConfigError, match="two sets"):
        trainer_of(lambda: SGDClassifier(average=True), range(10)).evaluate(weights, samples)
    with pytest.raises(ConfigError, match="has no weights"):
        SklearnTrainer.weights(SGDClassifier())
    with pytest.raises(LayoutError, match="the estimator"):
        trainer_of(SGDClassifier, range(5)).evaluate(weights, samples)
    with pytest.raises(LayoutError, match="wrap"):
        trainer_of(SGDClassifier, range(5)).evaluate({"w": np.zeros(3, np.float32)}, samples)
