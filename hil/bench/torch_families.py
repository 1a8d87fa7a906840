"""Small PyTorch models, one for each kind of network that must train exactly, and PyTorch's own training of
them: what an artifact's steps are compared with.

Needs PyTorch (``make test-frameworks`` sets up an environment that has it).
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any, TypeAlias

import numpy as np
import onnx
import torch
from numpy.typing import NDArray
from torch import nn
from torch.nn import functional

from hil.bench.recording import Recording
from models.build.torch_export import export_module
from models.runtime.session import Batch

__all__ = ["FAMILIES", "HYPER", "Family", "State", "TorchTraining", "draw_batches", "exported", "recorded"]

ROWS = 32
_ALWAYS = {"clip": 1.0, "mu": 0.01}
_ADAMW = {"lr": 0.001, "beta1": 0.9, "beta2": 0.999, "epsilon": 1e-8, "weight_decay": 0.01}
HYPER: Mapping[str, Mapping[str, float]] = MappingProxyType(
    {"sgd": {"lr": 0.1, "momentum": 0.9} | _ALWAYS, "adamw": _ADAMW | _ALWAYS}
)
"""The scalars of a step by optimizer: clipping and FedProx on."""
_LEAST = 1e-12


class Transformer(nn.Module):  # type: ignore[misc]
    """Token ids [batch, 16] through one pre-norm encoder block, to 6 classes."""

    def __init__(self) -> None:
        super().__init__()
        width = 32
        self.embedding = nn.Embedding(200, width)
        self.position = nn.Parameter(torch.randn(16, width) * 0.02)
        self.norm1, self.norm2, self.norm3 = (nn.LayerNorm(width) for _ in range(3))
        self.project, self.join = nn.Linear(width, 3 * width), nn.Linear(width, width)
        self.widen, self.narrow = nn.Linear(width, 4 * width), nn.Linear(4 * width, width)
        self.head = nn.Linear(width, 6)

    def forward(self, tokens: Any) -> Any:
        """Logits [batch, 6]."""
        x = self.embedding(tokens) + self.position
        query, key, value = (
            part.reshape(part.shape[0], 16, 4, 8).transpose(1, 2)
            for part in self.project(self.norm1(x)).chunk(3, -1)
        )
        attention = torch.softmax(query @ key.transpose(-1, -2) / 8**0.5, -1) @ value
        x = x + self.join(attention.transpose(1, 2).reshape(x.shape[0], 16, 32))
        x = x + self.narrow(functional.gelu(self.widen(self.norm2(x))))
        return self.head(self.norm3(x).mean(1))


class Recurrent(nn.Module):  # type: ignore[misc]
    """20 steps of 6 features through a recurrent layer, the last state to 6 classes."""

    def __init__(self, layer: Any) -> None:
        super().__init__()
        self.layer = layer
        self.head = nn.Linear(32, 6)

    def forward(self, x: Any) -> Any:
        """Logits [batch, 6]."""
        return self.head(self.layer(x)[0][:, -1])


class MeanOverTime(nn.Module):  # type: ignore[misc]
    """[batch, channels, time] to [batch, channels]."""

    def forward(self, x: Any) -> Any:
        """The mean over the last dimension."""
        return x.mean(-1)


def _mlp() -> Any:
    return nn.Sequential(nn.Linear(64, 256), nn.ReLU(), nn.Linear(256, 128), nn.ReLU(), nn.Linear(128, 10))


def _cnn(norm: Callable[[int], Any]) -> Any:
    return nn.Sequential(
        *(nn.Conv2d(1, 16, 3, padding=1), norm(16), nn.ReLU(), nn.MaxPool2d(2)),
        *(nn.Conv2d(16, 32, 3, padding=1), norm(32), nn.ReLU(), nn.MaxPool2d(2)),
        *(nn.Flatten(), nn.Linear(32 * 49, 28), nn.ReLU(), nn.Linear(28, 10)),
    )


def _conv1d() -> Any:
    return nn.Sequential(
        *(nn.Conv1d(6, 32, 5, stride=2, padding=2), nn.ReLU(), nn.AvgPool1d(2)),
        *(nn.Conv1d(32, 32, 3, padding=1, groups=32), nn.Conv1d(32, 64, 1), nn.ReLU6()),
        *(nn.Conv1d(64, 64, 5, stride=2, padding=2), nn.ReLU(), MeanOverTime(), nn.Linear(64, 6)),
    )


def _autoencoder() -> Any:
    return nn.Sequential(
        *(nn.Conv2d(1, 8, 3, stride=2, padding=1), nn.ReLU()),
        *(nn.Conv2d(8, 16, 3, stride=2, padding=1), nn.ReLU()),
        *(nn.ConvTranspose2d(16, 8, 3, stride=2, padding=1, output_padding=1), nn.ReLU()),
        nn.ConvTranspose2d(8, 1, 3, stride=2, padding=1, output_padding=1),
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class Family:
    """One kind of network: ``make`` builds it, ``x`` is the shape of one row.

    ``classes`` of 0 means that the row itself is what the model must give back (``mse``); ``tokens`` above
    0 that a row holds ids below it. ``batch_norm`` is the policy that the artifact is built with.
    """

    make: Callable[[], Any]
    x: tuple[int, ...]
    classes: int
    tokens: int = 0
    batch_norm: str | None = None

    @property
    def options(self) -> Mapping[str, Any]:
        """What ``build_artifact`` is told of the model."""
        names = [str(number) for number in range(self.classes)]
        loss = "softmax_cross_entropy" if self.classes else "mse"
        return {"loss": loss, "class_names": names, "batch_norm": self.batch_norm}


FAMILIES: Mapping[str, Family] = MappingProxyType(
    {
        "mlp": Family(make=_mlp, x=(64,), classes=10),
        "cnn, group norm": Family(
            make=lambda: _cnn(lambda it: nn.GroupNorm(4, it)), x=(1, 28, 28), classes=10
        ),
        "cnn, batch norm": Family(
            make=lambda: _cnn(nn.BatchNorm2d), x=(1, 28, 28), classes=10, batch_norm="averaged"
        ),
        "conv1d, depthwise": Family(make=_conv1d, x=(6, 128), classes=6),
        "transformer": Family(make=Transformer, x=(16,), classes=6, tokens=200),
        "gru": Family(make=lambda: Recurrent(nn.GRU(6, 32, batch_first=True)), x=(20, 6), classes=6),
        "lstm": Family(make=lambda: Recurrent(nn.LSTM(6, 32, batch_first=True)), x=(20, 6), classes=6),
        "autoencoder": Family(make=_autoencoder, x=(1, 28, 28), classes=0),
    }
)
"""Every family by its name."""


class WeighedBatchNorm(nn.Module):  # type: ignore[misc]
    """``nn.BatchNorm2d`` whose statistics count each row as often as ``row_weights`` says; PyTorch has none.

    float[batch] ``row_weights`` is set before each forward pass; with ones it is ``nn.BatchNorm2d``.
    """

    def __init__(self, plain: Any) -> None:
        super().__init__()
        self.weight, self.bias = plain.weight, plain.bias
        self.register_buffer("running_mean", plain.running_mean)
        self.register_buffer("running_var", plain.running_var)
        self.momentum, self.eps = plain.momentum, plain.eps
        self.row_weights: Any = None

    def forward(self, x: Any) -> Any:
        """The normalised image; moves the running statistics."""
        rows = self.row_weights[:, None, None, None]
        count = rows.sum() * x.shape[2] * x.shape[3]
        mean = (x * rows).sum((0, 2, 3)) / count
        centred = x - mean[:, None, None]
        variance = (centred * centred * rows).sum((0, 2, 3)) / count
        with torch.no_grad():
            self.running_mean += self.momentum * (mean - self.running_mean)
            self.running_var += self.momentum * (variance * count / (count - 1) - self.running_var)
        normal = centred / torch.sqrt(variance + self.eps)[:, None, None]
        return normal * self.weight[:, None, None] + self.bias[:, None, None]


State: TypeAlias = dict[str, NDArray[Any]]
"""Weights and running statistics by their PyTorch names."""


class TorchTraining:
    """PyTorch trains a family: the same loss, row weights, clipping, FedProx and optimizer as an artifact.

    ``hyper`` holds the scalars of the artifact's step graph. ``dtype`` float64 shows how much of a difference
    is PyTorch's own rounding. Without ``weighed_norms`` batch statistics count every row once, as PyTorch's
    own layer does, which is faster.
    """

    def __init__(
        self,
        family: Family,
        *,
        optimizer: str,
        hyper: Mapping[str, float],
        dtype: Any = torch.float32,
        weighed_norms: bool = True,
    ) -> None:
        self._family, self._hyper = family, dict(hyper)
        self.net = _made(family).to(dtype)
        self._weighed = _with_weighed_norms(self.net) if weighed_norms else []
        self._dtype = dtype
        self.anchor = [parameter.detach().clone() for parameter in self.net.parameters()]
        self._optimizer = (
            torch.optim.AdamW(
                self.net.parameters(),
                lr=hyper["lr"],
                betas=(hyper["beta1"], hyper["beta2"]),
                eps=hyper["epsilon"],
                weight_decay=hyper["weight_decay"],
            )
            if optimizer == "adamw"
            else torch.optim.SGD(self.net.parameters(), lr=hyper["lr"], momentum=hyper["momentum"])
        )

    def step(self, batch: Batch) -> float:
        """Take one step; the mean loss before it."""
        weights = torch.from_numpy(batch.sample_weight).to(self._dtype)
        for norm in self._weighed:
            norm.row_weights = weights
        x, y = torch.from_numpy(batch.x), torch.from_numpy(batch.y)
        output = self.net(x if self._family.tokens else x.to(self._dtype))
        rows = (
            functional.cross_entropy(output, y.long(), reduction="none")
            if self._family.classes
            else (output - y.to(self._dtype)).square().flatten(1).mean(1)
        )
        loss = (rows * weights).sum() / weights.sum().clamp(min=_LEAST)
        self._optimizer.zero_grad()
        loss.backward()
        with torch.no_grad():
            self._clip_and_pull()
        self._optimizer.step()
        return float(loss.detach())

    def plain_step(self, batch: Batch) -> None:
        """The step that everyone writes: no row weights, no clipping, no FedProx."""
        output, y = self.net(torch.from_numpy(batch.x)), torch.from_numpy(batch.y)
        loss = (
            functional.cross_entropy(output, y.long())
            if self._family.classes
            else functional.mse_loss(output, y)
        )
        self._optimizer.zero_grad()
        loss.backward()
        self._optimizer.step()

    def state(self) -> State:
        """A copy of what was trained."""
        return {name: value.detach().numpy().copy() for name, value in self.net.state_dict().items()}

    def slots(self) -> State:
        """A copy of the optimizer's state, named as an artifact's slots; empty before the first step."""
        held: State = {}
        names = {"momentum_buffer": "v", "exp_avg": "m", "exp_avg_sq": "v"}
        for name, parameter in self.net.named_parameters():
            for key, value in self._optimizer.state.get(parameter, {}).items():
                if key in names:
                    held[f"{names[key]}.{name}"] = value.detach().numpy().copy()
        return held

    def _clip_and_pull(self) -> None:
        parameters, limit = list(self.net.parameters()), self._hyper["clip"]
        gradients = [parameter.grad for parameter in parameters]
        norm = torch.sqrt(sum(gradient.square().sum() for gradient in gradients))
        scale = min(limit / max(float(norm), _LEAST), 1.0) if limit > 0 else 1.0
        for gradient, parameter, anchor in zip(gradients, parameters, self.anchor, strict=True):
            gradient.mul_(scale).add_(parameter - anchor, alpha=self._hyper["mu"])


def recorded(
    family: Family, batches: Sequence[Batch], *, optimizer: str, dtype: Any = torch.float32
) -> Recording:
    """PyTorch's steps on ``batches``, with clipping, FedProx and the optimizer's scalars of ``HYPER``."""
    training = TorchTraining(family, optimizer=optimizer, hyper=HYPER[optimizer], dtype=dtype)
    losses, states, slots = [], [training.state()], []
    for batch in batches:
        slots.append(training.slots())
        losses.append(training.step(batch))
        states.append(training.state())
    return Recording(
        hyper=HYPER[optimizer], batches=tuple(batches), losses=losses, states=states, slots=slots
    )


def exported(family: Family) -> onnx.ModelProto:
    """The family's forward graph as ``lichen.from_torch`` exports it."""
    return export_module(
        _made(family), torch.zeros(2, *family.x, dtype=torch.int64 if family.tokens else torch.float32)
    )


def draw_batches(family: Family, count: int, *, seed: int = 1, flat: bool = False) -> Iterator[Batch]:
    """Batches of 32 rows that weigh 0, 0.5, 1 or 2.

    ``flat`` gives images as cameras do, of few grey levels and with areas of one colour, whose maxima tie.
    """
    draw = np.random.default_rng(seed)
    for _ in range(count):
        x: NDArray[Any] = draw.standard_normal((ROWS, *family.x)).astype(np.float32)
        if family.tokens:
            x = draw.integers(0, family.tokens, (ROWS, *family.x)).astype(np.int32)
        if flat:
            grey = np.clip(np.round(2 * x), 0, 3) / 4
            x = grey.repeat(2, axis=-1)[..., : family.x[-1]].astype(np.float32)
        y = draw.integers(0, family.classes, ROWS).astype(np.int32) if family.classes else x
        weights = draw.choice(np.array([0, 0.5, 1, 2], np.float32), ROWS)
        yield Batch(x=x, y=y, sample_weight=weights)


def _made(family: Family) -> Any:
    torch.manual_seed(0)
    return family.make()


def _with_weighed_norms(net: Any) -> list[WeighedBatchNorm]:
    weighed = []
    for name, module in list(net.named_children()):
        if isinstance(module, nn.BatchNorm2d):
            setattr(net, name, WeighedBatchNorm(module))
            weighed.append(getattr(net, name))
    return weighed
