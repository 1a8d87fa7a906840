"""`from_torch` with real modules: what comes out trains as PyTorch does, and what cannot is told plainly."""

import copy
import warnings

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional

import lichen
from fl_protocol.errors import ArtifactError
from models.runtime import Batch, TrainingArtifact, open_session, split_flat, zero_slots

FOR_ALL = ("onnx", "tflite")


class Last(nn.Module):
    """A recurrent layer and a linear one on what its last step gives."""

    def __init__(self, layer: type, **options):
        super().__init__()
        self.layer = layer(3, 6, batch_first=True, **options)
        self.head = nn.Linear(6, 4)

    def forward(self, x):
        """[rows, steps, 3] -> [rows, 4]."""
        return self.head(self.layer(x)[0][:, -1])


class Encoder(nn.Module):
    """An embedding and a transformer encoder layer."""

    def __init__(self):
        super().__init__()
        self.embed = nn.Embedding(20, 8)
        self.layer = nn.TransformerEncoderLayer(8, 2, 16, dropout=0, batch_first=True)
        self.head = nn.Linear(8, 4)

    def forward(self, ids):
        """[rows, tokens] -> [rows, 4]."""
        return self.head(self.layer(self.embed(ids)).mean(1))


class Excite(nn.Module):
    """Squeeze and excite."""

    def __init__(self, channels: int):
        super().__init__()
        self.down, self.up = nn.Conv2d(channels, 4, 1), nn.Conv2d(4, channels, 1)

    def forward(self, x):
        """Scale every channel."""
        inner = functional.relu(self.down(functional.adaptive_avg_pool2d(x, 1)))
        return x * functional.hardsigmoid(self.up(inner))


class Mobile(nn.Module):
    """An inverted residual block as in MobileNetV3, between a stem and a head."""

    def __init__(self):
        super().__init__()
        self.stem = nn.Sequential(nn.Conv2d(3, 8, 3, 2, 1, bias=False), nn.BatchNorm2d(8), nn.Hardswish())
        self.block = nn.Sequential(
            nn.Conv2d(8, 16, 1, bias=False),
            nn.BatchNorm2d(16),
            nn.Hardswish(),
            nn.Conv2d(16, 16, 3, padding=1, groups=16, bias=False),
            nn.BatchNorm2d(16, momentum=0.01),
            nn.Hardswish(),
            Excite(16),
            nn.Conv2d(16, 8, 1, bias=False),
            nn.BatchNorm2d(8),
        )
        self.head = nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, 4))

    def forward(self, x):
        """[rows, 3, height, width] -> [rows, 4]."""
        x = self.stem(x)
        return self.head(x + self.block(x))


def mlp():
    """Six numbers, three classes."""
    return nn.Sequential(nn.Linear(6, 32), nn.ReLU(), nn.Linear(32, 3))


def cnn(dropout=0.0):
    """Convolution, batch normalisation, pooling, dropout."""
    layers = [nn.Conv2d(1, 8, 3, padding=1), nn.BatchNorm2d(8), nn.ReLU(), nn.MaxPool2d(2), nn.Flatten()]
    return nn.Sequential(*layers, nn.Dropout(dropout), nn.Linear(128, 4))


def numbers(*shape):
    """Normal numbers."""
    return lambda: torch.randn(16, *shape)


FAMILIES = {
    "mlp": (mlp, numbers(6), 3),
    "cnn with batch normalisation": (cnn, numbers(1, 8, 8), 4),
    "gru": (lambda: Last(nn.GRU, num_layers=2), numbers(7, 3), 4),
    "lstm": (lambda: Last(nn.LSTM), numbers(7, 3), 4),
    "transformer encoder": (Encoder, lambda: torch.randint(0, 20, (16, 5)), 4),
    "mobile block": (Mobile, numbers(3, 16, 16), 4),
}


@pytest.mark.parametrize("family", FAMILIES)
def test_a_module_trains_on_every_runtime_as_in_pytorch(family, in_step):
    """Five steps of SGD with momentum: the same losses, and every parameter by its own name."""
    make, rows, classes = FAMILIES[family]
    module, x = make(), rows()
    artifact = lichen.from_torch(module, x[:1], loss="softmax_cross_entropy", runtimes=FOR_ALL)
    weights = {tensor.name: tensor.shape for tensor in artifact.layout.tensors}
    assert weights == {name: tuple(tensor.shape) for name, tensor in module.named_parameters()}
    in_step(artifact, module, functional.cross_entropy, x, torch.randint(0, classes, (16,)))


def test_an_autoencoder_trains_as_in_pytorch(in_step):
    """ConvTranspose, and a loss against numbers."""
    layers = [nn.Conv2d(1, 8, 3, 2, 1), nn.LeakyReLU(), nn.ConvTranspose2d(8, 1, 4, 2, 1)]
    module, x = nn.Sequential(*layers), torch.randn(16, 1, 8, 8)
    artifact = lichen.from_torch(module, x[:1], loss="mse", runtimes=FOR_ALL)
    in_step(artifact, module, functional.mse_loss, x, x)


def bert(**options):
    """A tiny BERT with random weights, whose classifier gives the logits."""
    import transformers

    class Logits(nn.Module):
        def __init__(self):
            super().__init__()
            sizes = {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2}
            config = transformers.BertConfig(
                **sizes,
                intermediate_size=32,
                vocab_size=50,
                max_position_embeddings=16,
                num_labels=3,
                **options,
            )
            self.model = transformers.BertForSequenceClassification(config)

        def forward(self, ids):
            return self.model(input_ids=ids).logits

    return Logits()


def test_of_a_transformers_model_the_head_alone_is_trained(in_step):
    """Frozen by ``requires_grad``: the rest travels once and is no part of an update."""
    module = bert(hidden_dropout_prob=0.0, attention_probs_dropout_prob=0.0)
    module.model.bert.requires_grad_(False)
    ids = torch.randint(0, 50, (16, 8))
    artifact = lichen.from_torch(module, ids[:1], loss="softmax_cross_entropy", runtimes=FOR_ALL)
    assert [tensor.name for tensor in artifact.layout.tensors] == [
        "model.classifier.weight",
        "model.classifier.bias",
    ]
    frozen = {entry.name for entry in artifact.manifest.parameters if entry.role == "frozen"}
    assert len(frozen) == len(list(module.model.bert.parameters()))
    in_step(artifact, module, functional.cross_entropy, ids, torch.randint(0, 3, (16,)))


def test_patterns_say_what_is_trained_and_what_is_personal():
    """``train`` and ``personal`` are passed on, and go before ``requires_grad``."""
    options = {"train": ["0.*"], "personal": ["2.*"]}
    artifact = lichen.from_torch(mlp(), torch.zeros(1, 6), loss="softmax_cross_entropy", **options)
    roles = {entry.name: entry.role for entry in artifact.manifest.parameters}
    assert roles == {
        "0.weight": "trainable",
        "0.bias": "trainable",
        "2.weight": "personal",
        "2.bias": "personal",
    }


def test_dropout_and_batch_normalisation_survive_the_export():
    """Units are dropped in training by the seed, and only there; running statistics stay on the device."""
    artifact = lichen.from_torch(cnn(dropout=0.5), torch.zeros(1, 1, 8, 8), loss="softmax_cross_entropy")
    roles = {entry.name: (entry.kind, entry.role) for entry in artifact.manifest.parameters}
    assert roles["1.running_var"] == ("buffer", "personal")
    session, _ = open_session(artifact)
    weights = split_flat(artifact.initial_weights(), artifact.layout)
    x = np.random.default_rng(1).standard_normal((16, 1, 8, 8)).astype(np.float32)
    batch = Batch.of(x, np.zeros(16, np.int32))
    losses = [
        session.step(weights, zero_slots(artifact), batch, {"seed": seed}, weights).sums["loss"]
        for seed in (1, 2, 1)
    ]
    assert losses[0] == losses[2] != losses[1]
    assert session.evaluate(weights, batch) == session.evaluate(weights, batch)


def test_the_module_is_left_as_it_was():
    """Modes of every part, parameters, gradients, statistics and the random numbers to come."""
    module = cnn(dropout=0.5)
    module[1].eval()
    module[0].bias.requires_grad_(False)
    modes = [part.training for part in module.modules()]
    state, stream = copy.deepcopy(module.state_dict()), torch.random.get_rng_state()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        lichen.from_torch(module, torch.zeros(1, 1, 8, 8), loss="softmax_cross_entropy")
    assert [part.training for part in module.modules()] == modes
    assert all(torch.equal(tensor, state[name]) for name, tensor in module.state_dict().items())
    assert torch.equal(torch.random.get_rng_state(), stream)
    assert not module[0].bias.requires_grad
    assert module[0].weight.requires_grad


def test_a_recurrent_module_still_trains_after_its_export():
    """The exporter puts tensors of its own into a recurrent layer; they must not stay there."""
    module = Last(nn.GRU)
    lichen.from_torch(module, torch.zeros(1, 7, 3), loss="softmax_cross_entropy")
    module(torch.randn(4, 7, 3)).sum().backward()
    assert module.layer.weight_ih_l0.grad.abs().sum() > 0


def test_the_artifact_is_saved_where_it_is_told_to(tmp_path):
    """By ``out`` or by ``save``; the class's name is the artifact's, where none is given."""
    module = mlp()
    built = lichen.from_torch(module, np.zeros((1, 6)), loss="softmax_cross_entropy", out=tmp_path / "a")
    assert built.path == tmp_path / "a"
    again = lichen.from_torch(module, torch.zeros(4, 6), loss="softmax_cross_entropy").save(tmp_path / "b")
    assert again.manifest == TrainingArtifact.open(tmp_path / "a").manifest
    assert again.manifest.name == "sequential"


class Tied(nn.Module):
    """One table, for words going in and coming out."""

    def __init__(self):
        super().__init__()
        self.embed, self.head = nn.Embedding(9, 4), nn.Linear(4, 9, bias=False)
        self.head.weight = self.embed.weight

    def forward(self, ids):
        """[rows, tokens] -> [rows, 9]."""
        return self.head(self.embed(ids).mean(1))


def test_tied_weights_are_one_parameter(in_step):
    """Trained once, by the gradients of both uses."""
    module, ids = Tied(), torch.randint(0, 9, (16, 5))
    artifact = lichen.from_torch(module, ids[:1], loss="softmax_cross_entropy", runtimes=FOR_ALL)
    assert [tensor.name for tensor in artifact.layout.tensors] == ["embed.weight"]
    in_step(artifact, module, functional.cross_entropy, ids, torch.randint(0, 9, (16,)))


class Padded(nn.Module):
    """Words of a sentence that is filled up with word 0, which stands for nothing."""

    def __init__(self):
        super().__init__()
        self.embed, self.head = nn.Embedding(9, 4, padding_idx=0), nn.Linear(4, 3)

    def forward(self, ids):
        """[rows, tokens] -> [rows, 3]."""
        return self.head(torch.tanh(self.embed(ids)).mean(1))


def test_the_padding_of_an_embedding_is_not_trained(in_step):
    """As in PyTorch, which holds back that row's gradient; the module is as it was after the export."""
    module, ids = Padded(), torch.randint(0, 9, (16, 6))
    ids[:, 4:] = 0
    with torch.no_grad():
        module.embed.weight[0] = torch.randn(4)
    artifact = lichen.from_torch(module, ids[:1], loss="softmax_cross_entropy", runtimes=FOR_ALL)
    assert "forward" not in vars(module.embed)
    in_step(artifact, module, functional.cross_entropy, ids, torch.randint(0, 3, (16,)))


def test_a_padded_table_that_serves_twice_is_refused():
    """There its padding row would be trained after all, and the constant in the embedding grow stale."""
    module = Tied()
    module.embed.padding_idx = 0
    with pytest.raises(ArtifactError, match=r"embed\.weight, .* has another use"):
        lichen.from_torch(module, torch.zeros(1, 5, dtype=torch.int64), loss="softmax_cross_entropy")


class Mixed(nn.Module):
    """Two ids and four measurements in one tensor; two heads, joined, and a parameter without dimensions."""

    def __init__(self):
        super().__init__()
        self.embed, self.numbers = nn.Embedding(12, 6), nn.Linear(4, 6)
        self.scale = nn.Parameter(torch.tensor(1.5))
        self.first, self.second = nn.Linear(12, 3), nn.Linear(12, 2)

    def forward(self, x):
        """[rows, 6] -> [rows, 5]."""
        ids = self.embed(x[:, :2].long()).mean(1)
        h = torch.cat([ids, torch.tanh(self.numbers(x[:, 2:]))], -1)
        return torch.cat([self.first(h) * self.scale, self.second(h)], -1)


def test_ids_and_numbers_may_come_in_one_tensor(in_step):
    """What a person with two inputs is told to do."""
    module = Mixed()
    x = torch.cat([torch.randint(0, 12, (16, 2)).float(), torch.randn(16, 4)], 1)
    artifact = lichen.from_torch(module, x[:1], loss="softmax_cross_entropy", runtimes=FOR_ALL)
    in_step(artifact, module, functional.cross_entropy, x, torch.randint(0, 5, (16,)))


def test_a_residual_net_of_shared_weights_trains_as_in_pytorch(in_step):
    """One block three times, its batch normalisation too: its statistics move three times a step."""

    def forward(self, x):
        h = self.linear(x)
        for _ in range(3):
            h = h + self.block(h)
        return h

    block = nn.Sequential(nn.Linear(3, 3), nn.BatchNorm1d(3), nn.GELU(), nn.Linear(3, 3))
    module, x = Linear(forward, block=block), torch.randn(16, 6)
    artifact = lichen.from_torch(
        module, x[:1], loss="softmax_cross_entropy", runtimes=FOR_ALL, batch_norm="averaged"
    )
    in_step(artifact, module, functional.cross_entropy, x, torch.randint(0, 3, (16,)))


def test_an_export_for_inference_is_refused(tmp_path):
    """PyTorch's exporter folds a batch normalisation away unless it is told not to; the graph betrays it."""
    path, x = tmp_path / "net.onnx", torch.zeros(2, 1, 8, 8)
    options = {"dynamo": True, "verbose": False, "dynamic_shapes": ({0: "batch"},)}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.onnx.export(cnn().eval(), (x,), path, optimize=True, **options)
        with pytest.raises(ArtifactError, match=r"not in the graph: 1\.bias, 1\.weight; node .* \(Conv\)"):
            lichen.build_artifact(path, loss="softmax_cross_entropy")
        torch.onnx.export(cnn().eval(), (x,), path, optimize=False, **options)
    artifact = lichen.build_artifact(path, loss="softmax_cross_entropy")
    assert {"1.weight", "1.bias", "1.running_var"} <= {entry.name for entry in artifact.manifest.parameters}


class Linear(nn.Module):
    """Six numbers to three, by way of ``body``."""

    def __init__(self, body, **parts):
        super().__init__()
        self.linear, self.body = nn.Linear(6, 3), body
        for name, part in parts.items():
            setattr(self, name, part)

    def forward(self, *inputs):
        """Whatever the test does."""
        return self.body(self, *inputs)


def test_a_registered_buffer_is_a_constant():
    """It is no parameter: nobody trains it, and it is not among the frozen weights."""
    module = Linear(lambda self, x: self.linear(x + self.offset))
    module.register_buffer("offset", torch.randn(1, 6))
    artifact = lichen.from_torch(module, torch.zeros(1, 6), loss="softmax_cross_entropy")
    assert [entry.name for entry in artifact.manifest.parameters] == ["linear.weight", "linear.bias"]


def halved(self, x):
    """A loop over the data."""
    while x.abs().max() > 1:
        x = x / 2
    return self.linear(x)


def without_gradient(self, x):
    """A part that PyTorch does not differentiate."""
    with torch.no_grad():
        h = self.linear(x)
    return self.linear(x) * torch.sigmoid(h)


class Reversed(torch.autograd.Function):
    """Turns the gradient around."""

    @staticmethod
    def forward(ctx, x):
        """Nothing to see here."""
        return x.clone()

    @staticmethod
    def backward(ctx, gradient):
        """Uphill."""
        return -gradient


REFUSED = {
    "a gradient that is held back": (
        lambda self, x: self.linear(x) * self.linear(x).sigmoid().detach(),
        "would be trained otherwise than by PyTorch",
        "requires_grad",
    ),
    "a part without gradients": (without_gradient, "trained otherwise than by PyTorch", "no_grad"),
    "a parameter without gradients": (
        lambda self, x: self.linear(x).detach(),
        "its gradient there is 0 along",
        "train=[...]",
    ),
    "a gradient that is turned around": (
        lambda self, x: Reversed.apply(self.linear(x)),
        "trained otherwise than by PyTorch",
        "a backward of one's own",
    ),
    "a branch on the data": (
        lambda self, x: self.linear(x) if x.sum() > 0 else self.linear(-x),
        "by values of its input",
        "torch.where",
    ),
    "a loop on the data": (halved, "by values of its input", "before the model"),
    "a shape of the data": (lambda self, x: self.linear(x) + torch.nonzero(x).sum(), "NonZero", ""),
    "one number of rows": (
        lambda self, x: self.linear(x.reshape(1, 6)),
        "takes 1 rows, but not 3",
        "x.shape[0]",
    ),
    "several outputs": (lambda self, x: (self.linear(x), x), "output is a tuple", "returns the logits alone"),
    "a dictionary": (
        lambda self, x: {"logits": self.linear(x)},
        "output is a dict",
        "returns the logits alone",
    ),
    "several inputs": (lambda self, x, z: self.linear(x) + z, "missing 1 required", "takes one tensor"),
    "rows that see each other": (lambda self, x: self.linear(x - x.mean(0)), "mixes the rows", "LayerNorm"),
    "another model in training": (
        lambda self, x: self.linear(x) * (1 if self.training else 2),
        "is off by",
        "self.training",
    ),
    "no output per row": (lambda self, x: self.linear(x).mean(), "makes torch.float32 []", "[rows, ...]"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_what_cannot_be_trained_is_refused_in_a_line(case, capfd):
    """Words that help, not the exporter's pages; nothing else is printed."""
    body, reason, hint = REFUSED[case]
    with pytest.raises(ArtifactError) as caught:
        lichen.from_torch(Linear(body), torch.zeros(1, 6), loss="softmax_cross_entropy")
    assert reason in str(caught.value.args[0])
    assert hint in caught.value.hint
    assert len(str(caught.value.args[0]).splitlines()) == 1
    printed = capfd.readouterr()
    assert "Traceback" not in printed.out + printed.err
    assert "def forward" not in printed.out + printed.err


MODULES = {
    "a parameter that is not used": (
        lambda: Linear(lambda self, x: self.linear(x), spare=nn.Linear(2, 2)),
        "does not depend on 2 of the module's parameters: spare.weight, spare.bias",
    ),
    "float16": (lambda: nn.Linear(6, 3).half(), "not float32: weight (torch.float16)"),
    "no parameters": (nn.ReLU, "no parameters"),
    "no running statistics": (
        lambda: nn.Sequential(nn.Linear(6, 3), nn.BatchNorm1d(3, track_running_stats=False)),
        "1 (BatchNorm1d) keeps no running statistics",
    ),
    "a cumulative average": (
        lambda: nn.Sequential(nn.Linear(6, 3), nn.BatchNorm1d(3, momentum=None)),
        "1 (BatchNorm1d) has momentum=None",
    ),
}


@pytest.mark.parametrize("case", MODULES)
def test_a_module_that_cannot_be_taken_is_refused(case):
    """Before anything is exported."""
    make, reason = MODULES[case]
    with pytest.raises(ArtifactError) as caught:
        lichen.from_torch(make(), torch.zeros(1, 6), loss="softmax_cross_entropy")
    assert reason in str(caught.value.args[0])


@pytest.mark.parametrize(
    ("example", "reason"),
    [
        ((torch.zeros(1, 6), torch.zeros(1, 6)), "a tuple of 2 inputs"),
        (torch.zeros(6), "not [rows, sizes...]"),
        (torch.zeros(1, 5), "does not run on the example"),
    ],
)
def test_an_example_that_does_not_fit_is_refused(example, reason):
    """It must be what the module takes."""
    with pytest.raises(ArtifactError) as caught:
        lichen.from_torch(nn.Linear(6, 3), example, loss="softmax_cross_entropy")
    assert reason in str(caught.value.args[0])
