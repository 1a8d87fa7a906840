"""Everything that Flower calls a client, by Flower's own classes: each gives the same update."""

import numpy as np
import pytest
from flwr.app import ArrayRecord, Message, MetricRecord, RecordDict
from flwr.client import NumPyClient
from flwr.clientapp import ClientApp

from edge_agent.jobs import Trained
from edge_agent.trainer import ArraySamples
from fl_protocol.errors import ConfigError
from fl_protocol.plan import TrainingPlan
from lichen import FlowerTrainer

WEIGHTS = {"w": np.array([[1, 2], [3, 4]], np.float32), "b": np.array([5, 6], np.float32)}
PLAN = TrainingPlan(epochs=2, batch_size=5, lr=0.5, seed=1, version=3)
NOTHING = ArraySamples(np.zeros((0, 0)), np.zeros((0, 0)))


def step(array, config):
    return array * config["lr"] + config["server_round"]


class Client(NumPyClient):
    """A step that shows what it was given."""

    def fit(self, parameters, config):
        return [step(array, config) for array in parameters], 12, {"note": "good"}

    def evaluate(self, parameters, config):
        return float(sum(array.sum() for array in parameters)), 10, {"accuracy": 0.5}


by_message = ClientApp()


@by_message.train()
def train(message, context):
    """The same step in messages; arrays by number, as ``ArrayRecord`` of a list has them."""
    config = message.content["config"]
    assert config["server-round"] == config["server_round"]
    assert context.node_config["partition-id"] == 7
    arrays = [step(array, config) for array in message.content["arrays"].to_numpy_ndarrays()]
    metrics = MetricRecord({"num-examples": 12, "train_loss": 0.1})
    return Message(RecordDict({"arrays": ArrayRecord(arrays), "metrics": metrics}), reply_to=message)


@by_message.evaluate()
def evaluate(message, context):
    """The same figures under the names of newer examples."""
    total = float(sum(array.sum() for array in message.content["arrays"].to_numpy_ndarrays()))
    metrics = MetricRecord({"num-examples": 10, "eval_loss": total, "eval_acc": 0.5})
    return Message(RecordDict({"metrics": metrics}), reply_to=message)


class Wrapped(FlowerTrainer):
    """Gives what it was made with."""

    node_config = {"partition-id": 7}  # noqa: RUF012  as a user writes it

    def __init__(self, client):
        self.made = client

    def client(self, samples):
        return self.made


@pytest.mark.parametrize(
    "client",
    [
        Client(),
        Client().to_client(),
        ClientApp(client_fn=lambda context: Client().to_client()),
        by_message,
    ],
    ids=["NumPyClient", "Client", "client_fn", "ClientApp"],
)
def test_each_kind_of_client_takes_part(client):
    """The same tensors, examples and sums from all of them."""
    trainer = Wrapped(client)
    result = trainer.train(WEIGHTS, NOTHING, PLAN, lambda: False)
    assert (result.num_examples, result.steps) == (12, 6)
    assert list(result.weights) == ["w", "b"]
    for name, array in result.weights.items():
        assert np.array_equal(array, WEIGHTS[name] * 0.5 + 3)
    assert trainer.evaluate(WEIGHTS, NOTHING) == {"loss": 210.0, "correct": 5.0, "count": 10.0}


def test_a_client_without_an_evaluate_of_its_own_evaluates_nothing():
    """Flower's base class answers (0.0, 0, {})."""

    class OnlyFits(NumPyClient):
        def fit(self, parameters, config):
            return parameters, 1, {}

    assert Wrapped(OnlyFits()).evaluate(WEIGHTS, NOTHING) == {}


def test_a_reply_that_lacks_something_is_told_so():
    """No arrays; no number of examples."""
    app = ClientApp()

    @app.train()
    def without_arrays(message, context):
        return Message(RecordDict({"metrics": MetricRecord({"num-examples": 1})}), reply_to=message)

    @app.evaluate()
    def without_count(message, context):
        return Message(RecordDict({"metrics": MetricRecord({"loss": 1.0})}), reply_to=message)

    with pytest.raises(ConfigError, match="0 array records"):
        Wrapped(app).train(WEIGHTS, NOTHING, PLAN, lambda: False)
    with pytest.raises(ConfigError, match="how many examples"):
        Wrapped(app).evaluate(WEIGHTS, NOTHING)


def test_the_app_of_the_guide_trains(page, bench):
    """As a device's worker runs it, with weights by name."""
    (bench.app / "my_app.py").write_text(page.block("Flower", "python", "class AppTrainer"))
    artifact = bench.wrap(
        "import lichen, torch\n"
        "weights = lichen.TorchTrainer.weights(torch.nn.Linear(2, 1))\n"
        "lichen.wrap_weights(weights, out='artifact', name='app')\n"
    )
    trained = bench.train("my_app:AppTrainer", artifact)
    assert isinstance(trained, Trained), trained
    assert (trained.runtime, trained.num_examples) == ("AppTrainer", 2)
    assert trained.metrics["after.loss"] < trained.metrics["before.loss"]
    assert trained.metrics["before.count"] == 2
