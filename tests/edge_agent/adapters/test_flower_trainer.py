"""A client with Flower's two methods, without Flower: what it is given, and what becomes of its answer."""

import subprocess
import sys

import numpy as np
import pytest

from edge_agent.adapters import FlowerTrainer
from edge_agent.trainer import ArraySamples, Trainer
from fl_protocol.errors import ConfigError, LayoutError
from fl_protocol.plan import TrainingPlan

WEIGHTS = {"w": np.arange(6, dtype=np.float32).reshape(3, 2), "b": np.ones(2, np.float32)}
PLAN = TrainingPlan(epochs=3, batch_size=10, lr=0.25, mu=0.5, seed=7, version=4)
SAMPLES = ArraySamples(np.zeros((40, 3)), np.zeros(40))


class Client:
    """A NumPyClient by its looks: adds the learning rate to all that it is given."""

    def __init__(self, examples=25, returns=None):
        self.examples = examples
        self.returns = returns
        self.held = []

    def fit(self, parameters, config):
        self.config = config
        self.held = [parameter + config["lr"] for parameter in parameters]
        return self.held if self.returns is None else self.returns, self.examples, {"fit": 1.0}

    def evaluate(self, parameters, config):
        for array, parameter in zip(self.held, parameters, strict=False):
            array[...] = parameter  # as set_parameters of many a client does
        return 0.5, self.examples, {"accuracy": 0.8, "top5": 0.96, "note": "good", "broken": float("nan")}


class Wrapped(FlowerTrainer):
    """Gives the client that it was made with."""

    def __init__(self, client):
        self.made = client
        self.handed = []

    def client(self, samples):
        self.handed.append(samples)
        return self.made


def train(client):
    return Wrapped(client).train(WEIGHTS, SAMPLES, PLAN, lambda: False)


def test_fit_is_given_the_weights_and_its_examples_are_counted():
    """In the artifact's order; one fit is the whole of the planned steps."""
    result = train(Client(examples=np.int64(25)))
    assert isinstance(Wrapped(Client()), Trainer)
    assert (result.num_examples, result.steps) == (25, 9)
    assert list(result.weights) == ["w", "b"]
    for name, array in result.weights.items():
        assert array.dtype == np.float32
        assert np.array_equal(array, WEIGHTS[name] + 0.25)


def test_the_config_of_fit_is_the_plan():
    """Flower's own keys among them."""
    client = Client()
    train(client)
    told = {"lr": 0.25, "local_epochs": 3, "batch_size": 10, "proximal_mu": 0.5, "seed": 7}
    assert client.config.items() >= {**told, "version": 4, "server_round": 4}.items()


def test_a_client_may_go_on_using_the_arrays_that_it_returned():
    """Its evaluate sets the same arrays again, which must not change the result."""
    trainer = Wrapped(Client())
    result = trainer.train(WEIGHTS, SAMPLES, PLAN, lambda: False)
    trainer.evaluate(WEIGHTS, SAMPLES)
    assert np.array_equal(result.weights["w"], WEIGHTS["w"] + 0.25)


def test_a_client_may_write_to_what_it_is_given():
    """The published weights are read-only, and Flower's are not."""

    class Writer(Client):
        def fit(self, parameters, config):
            parameters[0] += 1
            return parameters, 5, {}

    frozen = {name: array.copy() for name, array in WEIGHTS.items()}
    for array in frozen.values():
        array.setflags(write=False)
    result = Wrapped(Writer()).train(frozen, SAMPLES, PLAN, lambda: False)
    assert np.array_equal(result.weights["w"], WEIGHTS["w"] + 1)


def test_means_become_sums():
    """So that devices can be added up; what is no number is left out."""
    sums = Wrapped(Client(examples=20)).evaluate(WEIGHTS, SAMPLES)
    assert sums == {"loss": 10.0, "correct": 16.0, "top5": pytest.approx(19.2), "count": 20.0}


def test_a_client_that_evaluates_nothing_says_nothing():
    """As Flower's own base class: (0.0, 0, {})."""
    assert Wrapped(Client(examples=0)).evaluate(WEIGHTS, SAMPLES) == {}


def test_a_client_is_made_from_the_samples_of_each_call():
    """Those to train on, then those held out."""
    trainer = Wrapped(Client())
    held_out = ArraySamples(np.zeros((5, 3)), np.zeros(5))
    trainer.train(WEIGHTS, SAMPLES, PLAN, lambda: False)
    trainer.evaluate(WEIGHTS, held_out)
    assert trainer.handed == [SAMPLES, held_out]


def test_a_training_that_must_stop_is_not_begun():
    """A fit cannot be interrupted."""
    trainer = Wrapped(Client())
    assert trainer.train(WEIGHTS, SAMPLES, PLAN, lambda: True).steps == 0
    assert trainer.handed == []


@pytest.mark.parametrize(
    ("returns", "says"),
    [
        ([np.zeros((3, 2))], "1 arrays, the model has 2"),
        ([np.zeros(2), np.zeros((3, 2))], "'w' of shape"),
    ],
)
def test_a_client_that_returns_other_tensors_is_told(returns, says):
    """Too few, or in another order."""
    with pytest.raises(LayoutError, match=says):
        train(Client(returns=returns))


def test_a_client_may_have_its_tensors_in_another_order():
    """Where an artifact was wrapped in another one than the client's."""

    class Ordered(Wrapped):
        order = ("b", "w")

    class Negative(Client):
        def fit(self, parameters, config):
            assert [parameter.shape for parameter in parameters] == [(2,), (3, 2)]
            return [-parameter for parameter in parameters], 5, {}

    result = Ordered(Negative()).train(WEIGHTS, SAMPLES, PLAN, lambda: False)
    assert all(np.array_equal(result.weights[name], -WEIGHTS[name]) for name in WEIGHTS)
    Ordered.order = ("b",)
    with pytest.raises(LayoutError, match="order names b"):
        Ordered(Client()).train(WEIGHTS, SAMPLES, PLAN, lambda: False)


def test_what_is_no_client_is_refused():
    """A client_fn, for instance, with the remedy."""
    with pytest.raises(ConfigError, match="gives a function"):
        train(lambda context: Client())


def test_parameters_are_named_to_be_wrapped():
    """By number where nothing better is known; integers, as the counters of BatchNorm, become float32."""
    arrays = [np.zeros((2, 2)), np.array(3)]
    assert list(FlowerTrainer.weights(arrays)) == ["parameter_0", "parameter_1"]
    named = FlowerTrainer.weights(arrays, ["w", "steps"])
    assert (named["steps"].dtype, named["steps"].item()) == (np.float32, 3.0)


def test_no_framework_is_imported_by_the_adapters():
    """They are there for whoever has one of them, and none of them has all."""
    code = (
        "import sys, lichen\n"
        "lichen.FlowerTrainer, lichen.KerasTrainer, lichen.SklearnTrainer, lichen.TorchTrainer\n"
        "sys.exit(any(name in sys.modules for name in ('torch', 'keras', 'sklearn', 'flwr')))"
    )
    assert subprocess.run([sys.executable, "-c", code], timeout=60, check=False).returncode == 0
