"""A PyTorch module as a trainer: those of its parameters that the artifact names are trained and travel."""

import itertools
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from fnmatch import fnmatchcase
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from edge_agent.adapters.torch_course import TorchCourse
from edge_agent.checkpoint import Checkpoint
from edge_agent.sample_form import Array
from edge_agent.trainer import Samples, ShouldStop, TrainingResult, Weights
from fl_protocol.errors import LayoutError
from fl_protocol.plan import TrainingPlan

if TYPE_CHECKING:
    from torch import Tensor, nn
    from torch.optim import Optimizer

__all__ = ["TorchTrainer"]

_EVALUATION_ROWS = 256


class TorchTrainer(ABC):
    """Trains a module on the samples of the device.

    A subclass gives the module and the loss. Parameters and buffers go by their names in ``state_dict``:
    those in the artifact are set from the published weights and returned; all others keep what ``module``
    gave them, a checkpoint on the device for instance, and are never trained. A normalisation whose running
    statistics are not in the artifact uses them as they are, in training too; so does every normalisation
    where the last batch of an epoch has one row, which has no variance. ``device`` is where it runs.

    The same weights, samples and plan give the same result on the same machine. A long training leaves
    checkpoints; the optimizer's state is in them, not that of a learning rate scheduler.
    """

    device: str = "cpu"
    checkpoint: Checkpoint | None = None
    _module: "nn.Module | None" = None
    _own: "Mapping[str, Tensor]"

    @abstractmethod
    def module(self) -> "nn.Module":
        """The module, made once for each training."""

    @abstractmethod
    def loss(self, output: Any, y: "Tensor") -> "Tensor":
        """The mean loss of a batch; integer ``y`` come as int64."""

    def forward(self, module: "nn.Module", x: "Tensor") -> Any:
        """The module's output for a batch."""
        return module(x)

    def optimizer(self, parameters: "Sequence[nn.Parameter]", plan: TrainingPlan) -> "Optimizer":
        """A new optimizer: plain SGD, with the plan's momentum."""
        import torch

        return torch.optim.SGD(parameters, lr=plan.lr, momentum=plan.momentum)

    def metrics(self, output: Any, y: "Tensor") -> Mapping[str, float]:
        """Sums over a batch besides ``loss``: of a classifier, the number of ``correct`` answers."""
        import torch

        classes = isinstance(output, torch.Tensor) and not y.is_floating_point()
        if not classes or output.ndim != y.ndim + 1:
            return {}
        return {"correct": float((output.argmax(1) == y).sum())}

    def train(
        self, weights: Weights, samples: Samples, plan: TrainingPlan, should_stop: ShouldStop
    ) -> TrainingResult:
        """See ``Trainer.train``. Gradients are clipped by their global norm, then pulled to ``weights``
        (FedProx; Li et al., 2020), as in an artifact's own step graph.

        Raises:
            LayoutError: the module has no such tensors.
        """
        import torch

        module, tensors = self._opened(weights)
        normalisations = _to_training(module, tensors)
        trained = [tensor for tensor in tensors.values() if isinstance(tensor, torch.nn.Parameter)]
        anchors = [tensor.detach().clone() for tensor in trained] if plan.mu else []
        optimizer = self.optimizer(trained, plan)
        course = TorchCourse({**tensors, **dict(module.named_buffers())}, optimizer)
        steps = 0
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(plan.seed)
            if self.checkpoint is not None and (saved := self.checkpoint.resume()):
                steps = saved[0]
                course.restore(saved[1])
            batches = samples.batches(plan.batch_size, epochs=plan.epochs, seed=plan.seed)
            for x, y in itertools.islice(batches, steps, None):
                if should_stop() or (plan.max_steps and steps >= plan.max_steps):
                    break
                for part in normalisations:
                    part.train(len(x) > 1 or plan.batch_size == 1)
                optimizer.zero_grad()
                self.loss(self.forward(module, self._tensor(x)), self._tensor(y)).backward()
                if plan.clip:
                    torch.nn.utils.clip_grad_norm_(trained, plan.clip)
                for tensor, anchor in zip(trained, anchors, strict=False):
                    if tensor.grad is not None:
                        tensor.grad.add_(tensor.detach() - anchor, alpha=plan.mu)
                optimizer.step()
                steps += 1
                if self.checkpoint is not None:
                    self.checkpoint.offer(steps, course.capture)
        return TrainingResult({name: _array(tensor) for name, tensor in tensors.items()}, steps=steps)

    def evaluate(self, weights: Weights, samples: Samples) -> Mapping[str, float]:
        """See ``Trainer.evaluate``: the sum of ``loss``, and those of ``metrics``.

        Raises:
            LayoutError: the module has no such tensors.
        """
        import torch

        module, _ = self._opened(weights)
        module.eval()
        sums: dict[str, float] = {}
        with torch.inference_mode():
            for x, y in samples.batches(_EVALUATION_ROWS):
                target = self._tensor(y)
                output = self.forward(module, self._tensor(x))
                loss = float(self.loss(output, target)) * len(x)
                for name, value in {"loss": loss, **self.metrics(output, target)}.items():
                    sums[name] = sums.get(name, 0.0) + float(value)
        return sums

    @staticmethod
    def weights(
        module: "nn.Module", names: Sequence[str] = ("*",), *, buffers: bool = False
    ) -> dict[str, NDArray[np.float32]]:
        """What ``wrap_weights`` takes: the parameters that require a gradient and whose name matches one of
        the shell patterns ``names``; with ``buffers`` the matching floating-point buffers after them."""
        found = {name: tensor for name, tensor in module.named_parameters() if tensor.requires_grad}
        if buffers:
            found |= {name: tensor for name, tensor in module.named_buffers() if tensor.is_floating_point()}
        return {
            name: _array(tensor)
            for name, tensor in found.items()
            if any(fnmatchcase(name, pattern) for pattern in names)
        }

    def _opened(self, weights: Weights) -> "tuple[nn.Module, dict[str, Tensor]]":
        """The module with ``weights`` set, all else as it was made; and the tensors of those names."""
        import torch

        if self._module is None:
            self._module = self.module().to(self.device)
            self._own = {name: buffer.detach().clone() for name, buffer in self._module.named_buffers()}
        module = self._module
        buffers = dict(module.named_buffers(remove_duplicate=False))
        present = {**dict(module.named_parameters(remove_duplicate=False)), **buffers}
        with torch.no_grad():
            for name, content in self._own.items():
                buffers[name].copy_(content)
            for name, array in weights.items():
                _set(present, name, array)
        module.requires_grad_(False)
        for name in weights:
            if isinstance(present[name], torch.nn.Parameter):
                present[name].requires_grad_(True)
        return module, {name: present[name] for name in weights}

    def _tensor(self, rows: Array) -> "Tensor":
        import torch

        tensor = torch.tensor(rows, device=self.device)
        return tensor if tensor.is_floating_point() or tensor.dtype == torch.bool else tensor.long()


def _set(present: "Mapping[str, Tensor]", name: str, array: NDArray[np.float32]) -> None:
    import torch

    tensor = present.get(name)
    if tensor is None or tuple(tensor.shape) != array.shape:
        found = "no such tensor" if tensor is None else f"one of shape {list(tensor.shape)}"
        raise LayoutError(
            f"the artifact has {name!r} of shape {list(array.shape)}, the module {found}",
            hint="wrap the weights of this very module: lichen.wrap_weights(TorchTrainer.weights(module))",
        )
    tensor.copy_(torch.tensor(array))


def _to_training(module: "nn.Module", tensors: "Mapping[str, Tensor]") -> "list[nn.Module]":
    """Training mode, but for normalisations whose running statistics do not travel. Those whose statistics
    do are returned."""
    module.train()
    travelling = []
    for path, part in module.named_modules():
        statistics = [
            name for name in ("running_mean", "running_var") if getattr(part, name, None) is not None
        ]
        if any(f"{path}.{name}".lstrip(".") not in tensors for name in statistics):
            part.eval()
        elif statistics:
            travelling.append(part)
    return travelling


def _array(tensor: "Tensor") -> NDArray[np.float32]:
    array: NDArray[np.float32] = tensor.detach().to("cpu").float().numpy().copy()
    return array
