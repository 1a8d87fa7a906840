"""Small fleets of real processes that train with the guide's code: real frameworks, a real broker."""

import numpy as np
import pytest
import torch

from models.zoo import digits

pytestmark = [pytest.mark.process, pytest.mark.timeout(240)]

DEVICES = ("one", "two", "three")
VERSIONS = 4


def falls(versions):
    """Whether what devices measure of the first version is worse than what they measure of a late one."""
    losses = [version["devices"]["loss"] for version in versions if version["devices"]]
    assert len(losses) >= 2, versions
    return losses[-1] < losses[0]


def assert_good(books, versions, status, *, trainer):
    """Nothing lost, every version replayed, the trainer named, the loss lower than it was."""
    assert books.balanced, books.faults
    assert (books.lost, books.duplicated, books.replay_ok) == (0, 0, True)
    assert books.folded >= 2 * VERSIONS
    assert status["version"] == VERSIONS
    assert status["runtimes"].keys() == {trainer}
    assert status["runtimes"][trainer]["folded"] >= 2 * VERSIONS
    assert status["accuracy_source"] in ("devices", "")
    assert falls(versions), versions


def test_an_unmodified_flower_client_takes_part(page, bench, broker_of):
    """It loads data of its own: its update counts the examples that its fit returns."""
    broker = broker_of("auto").url
    (bench.app / "client.py").write_text(page.block("Flower", "python", "class FlowerClient"))
    (bench.app / "my_app.py").write_text(page.block("Flower", "python", "from client import"))
    images = digits.split()[0]
    parts = [slice(start, start + 100) for start in (0, 100, 200)]
    own_data = [{"x": images.x[part], "y": images.y[part].astype(np.int64)} for part in parts]
    np.savez(bench.app / "data.npz", **own_data[0])
    bench.wrap(page.block("Flower", "python", "FlowerTrainer.weights"))

    coordinator = bench.coordinate(page.block("Three steps", "toml", "[plan]"), broker, VERSIONS)
    settings = page.block("Flower", "toml", "min_samples = 0")
    for device, arrays in zip(DEVICES, own_data, strict=True):
        bench.join(device, broker, settings, files={"data.npz": arrays})
    books, versions, status = bench.finish(coordinator)
    assert_good(books, versions, status, trainer="DigitsTrainer")
    measured = versions[0]["devices"]
    assert measured["examples"] == 20 * measured["devices"]
    assert status["accuracy"] > 0.3


def test_the_head_of_a_transformer_is_trained(page, bench, broker_of):
    """Of a BERT only head and biases travel: the rest is each device's own checkpoint."""
    from transformers import BertConfig, BertForSequenceClassification

    broker = broker_of("auto").url
    config = BertConfig(
        vocab_size=20,
        hidden_size=32,
        num_hidden_layers=2,
        num_attention_heads=2,
        intermediate_size=64,
        max_position_embeddings=16,
        num_labels=3,
    )
    torch.manual_seed(0)
    model = BertForSequenceClassification(config)
    model.save_pretrained(bench.app / "checkpoint")
    (bench.app / "my_app.py").write_text(page.block("PyTorch", "python", "class BertTrainer"))
    artifact = bench.wrap(page.block("PyTorch", "python", "import BertTrainer"))
    assert artifact.layout.size < model.num_parameters() / 5

    random = np.random.default_rng(0)
    coordinator = bench.coordinate(page.block("Three steps", "toml", "[plan]"), broker, VERSIONS)
    settings = page.block("Three steps", "toml", "BertTrainer")
    for device in DEVICES:
        tokens = random.integers(3, 20, (150, 8)).astype(np.int32)
        bench.join(device, broker, settings, samples=(tokens, (tokens[:, 0] % 3).astype(np.int32)))
    books, versions, status = bench.finish(coordinator)
    assert_good(books, versions, status, trainer="BertTrainer")


def test_an_estimator_of_scikit_learn_is_trained(page, bench, broker_of):
    """Real digits, a network of scikit-learn's, devices' accuracy only."""
    broker = broker_of("auto").url
    (bench.app / "my_app.py").write_text(page.block("scikit-learn", "python", "class DigitsTrainer"))
    bench.wrap(page.block("scikit-learn", "python", "initial("))

    images = digits.split()[0]
    coordinator = bench.coordinate(page.block("Three steps", "toml", "[plan]"), broker, VERSIONS)
    for number, device in enumerate(DEVICES):
        rows = slice(200 * number, 200 * number + 200)
        settings = 'trainer = "my_app:DigitsTrainer"\n'
        bench.join(device, broker, settings, samples=(images.x[rows], images.y[rows]))
    books, versions, status = bench.finish(coordinator)
    assert_good(books, versions, status, trainer="DigitsTrainer")
    assert status["accuracy"] > 0.3
