"""Forward graphs, written layer by layer: what the models of the zoo are made of.

Initial weights come from raw PCG64 words and correctly rounded arithmetic, so that a seed gives the same
bytes on every machine and with every version of NumPy.
"""

import math
from collections.abc import Sequence

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper

__all__ = ["Network"]

_OPSET, _IR_VERSION = 18, 9


class Network:
    """A forward graph in the making: ``x`` float32[batch, *shape] is its input.

    Each method writes one layer behind ``value``, a value's name, and returns its output's name: that of
    the layer. Parameters are named ``<layer>.weight`` and so on, as PyTorch would, and have PyTorch's
    shapes. Channels are dimension 1; sizes, strides and paddings are written one per spatial dimension.
    """

    def __init__(self, name: str, shape: Sequence[int], *, seed: int = 0) -> None:
        self.name = name
        self.x = "x"
        self._bits = np.random.PCG64(seed)
        self._shapes: dict[str, tuple[int, ...]] = {self.x: tuple(shape)}
        self._nodes: list[onnx.NodeProto] = []
        self._tensors: list[onnx.TensorProto] = []

    def shape(self, value: str) -> tuple[int, ...]:
        """The shape of a value without the batch."""
        return self._shapes[value]

    def linear(self, name: str, value: str, width: int) -> str:
        """``value @ weight.T + bias``: [batch, n] to [batch, ``width``]."""
        (fan_in,) = self.shape(value)
        weight = self._uniform(f"{name}.weight", (width, fan_in), math.sqrt(6 / fan_in))
        bias = self._filled(f"{name}.bias", (width,), 0)
        return self._node("Gemm", name, [value, weight, bias], (width,), transB=1)

    def conv(
        self,
        name: str,
        value: str,
        channels: int,
        kernel: Sequence[int],
        *,
        stride: Sequence[int] | None = None,
        pad: Sequence[int] | None = None,
        groups: int = 1,
        bias: bool = True,
    ) -> str:
        """A convolution in one or two dimensions; ``pad`` entries are added on both sides.

        Without ``bias`` in front of a normalisation, which takes it away again.
        """
        taken, *sizes = self.shape(value)
        stride, pad = stride or [1] * len(sizes), pad or [0] * len(sizes)
        fan_in = taken // groups * math.prod(kernel)
        weight = self._uniform(f"{name}.weight", (channels, taken // groups, *kernel), math.sqrt(6 / fan_in))
        inputs = [value, weight, *([self._filled(f"{name}.bias", (channels,), 0)] if bias else [])]
        out = [
            (size + 2 * edge - length) // step + 1
            for size, length, step, edge in zip(sizes, kernel, stride, pad, strict=True)
        ]
        window = {"kernel_shape": list(kernel), "strides": list(stride), "pads": [*pad, *pad]}
        return self._node("Conv", name, inputs, (channels, *out), group=groups, **window)

    def conv_transpose(
        self,
        name: str,
        value: str,
        channels: int,
        kernel: Sequence[int],
        *,
        stride: Sequence[int],
        pad: Sequence[int],
    ) -> str:
        """A transposed convolution: each entry of ``value`` is spread over a window of the output."""
        taken, *sizes = self.shape(value)
        fan_in = taken * math.prod(kernel) / math.prod(stride)
        weight = self._uniform(f"{name}.weight", (taken, channels, *kernel), math.sqrt(6 / fan_in))
        bias = self._filled(f"{name}.bias", (channels,), 0)
        out = [
            (size - 1) * step + length - 2 * edge
            for size, length, step, edge in zip(sizes, kernel, stride, pad, strict=True)
        ]
        window = {"kernel_shape": list(kernel), "strides": list(stride), "pads": [*pad, *pad]}
        return self._node("ConvTranspose", name, [value, weight, bias], (channels, *out), **window)

    def group_norm(self, name: str, value: str, groups: int, *, epsilon: float = 1e-5) -> str:
        """Wu, He: Group normalization (2018); each row of a batch for itself, so any batch size will do.

        Written as PyTorch exports it: ONNX's own operator has one scale per channel since operator set 21
        only, which older runtimes do not read.
        """
        channels, *sizes = self.shape(value)
        grouped = (groups, channels // groups * math.prod(sizes))
        one, zero = (self._constant(f"{name}.{fill}", np.full(groups, fill)) for fill in (1.0, 0.0))
        flat = self.reshape(f"{name}.grouped", value, grouped)
        normal = self._node(
            "InstanceNormalization", f"{name}.normal", [flat, one, zero], grouped, epsilon=epsilon
        )
        back = self.reshape(f"{name}.back", normal, (channels, *sizes))
        per_channel = (channels, *[1] * len(sizes))
        weight = self._filled(f"{name}.weight", per_channel, 1)
        bias = self._filled(f"{name}.bias", per_channel, 0)
        scaled = self._node("Mul", f"{name}.scaled", [back, weight], (channels, *sizes))
        return self._node("Add", name, [scaled, bias], (channels, *sizes))

    def batch_norm(self, name: str, value: str, *, epsilon: float = 1e-5) -> str:
        """Ioffe, Szegedy: Batch normalization (2015), with running statistics of mean 0 and variance 1."""
        channels = self.shape(value)[0]
        fills = {"weight": 1, "bias": 0, "running_mean": 0, "running_var": 1}
        inputs = [self._filled(f"{name}.{key}", (channels,), fill) for key, fill in fills.items()]
        return self._node(
            "BatchNormalization", name, [value, *inputs], self.shape(value), epsilon=epsilon, momentum=0.9
        )

    def gru(self, name: str, value: str, hidden: int) -> str:
        """The last state of a gated recurrent unit (Cho et al., 2014) over [batch, features, steps].

        ``<name>.weight`` [1, 3 x hidden, features], ``<name>.recurrence`` [1, 3 x hidden, hidden] and
        ``<name>.bias`` [1, 6 x hidden] are as ONNX has them: update, reset and new gate in this order.
        """
        features, _ = self.shape(value)
        bound = 1 / math.sqrt(hidden)
        weight = self._uniform(f"{name}.weight", (1, 3 * hidden, features), bound)
        recurrence = self._uniform(f"{name}.recurrence", (1, 3 * hidden, hidden), bound)
        bias = self._filled(f"{name}.bias", (1, 6 * hidden), 0)
        in_steps = self._node("Transpose", f"{name}.steps", [value], (), perm=[2, 0, 1])
        states, last = f"{name}.states", f"{name}.last"
        self._nodes.append(
            helper.make_node(
                "GRU",
                [in_steps, weight, recurrence, bias],
                [states, last],
                name=f"{name}.cell",
                hidden_size=hidden,
                linear_before_reset=1,
            )
        )
        axis = self._integers(f"{name}.direction", [0])
        return self._node("Squeeze", name, [last, axis], (hidden,))

    def activation(self, op: str, name: str, value: str) -> str:
        """An operator of one number: ``Relu``, ``Tanh`` ..."""
        return self._node(op, name, [value], self.shape(value))

    def max_pool(self, name: str, value: str, kernel: Sequence[int]) -> str:
        """The greatest of each window; windows do not overlap."""
        channels, *sizes = self.shape(value)
        out = [size // length for size, length in zip(sizes, kernel, strict=True)]
        return self._node(
            "MaxPool", name, [value], (channels, *out), kernel_shape=list(kernel), strides=list(kernel)
        )

    def mean_pool(self, name: str, value: str) -> str:
        """The mean of each channel: [batch, channels, ...] to [batch, channels]."""
        channels, *sizes = self.shape(value)
        pooled = self._node("GlobalAveragePool", f"{name}.mean", [value], (channels, *[1] * len(sizes)))
        return self.flatten(name, pooled)

    def flatten(self, name: str, value: str) -> str:
        """All dimensions but the batch in one."""
        return self._node("Flatten", name, [value], (math.prod(self.shape(value)),))

    def reshape(self, name: str, value: str, shape: Sequence[int]) -> str:
        """The same numbers as [batch, *``shape``]."""
        target = self._integers(f"{name}.shape", [0, *shape])
        return self._node("Reshape", name, [value, target], tuple(shape))

    def finish(self, value: str, *, output: str = "output") -> onnx.ModelProto:
        """The model that computes ``value``, the last layer's, under the name ``output``."""
        self._nodes[-1].output[0] = output
        graph = helper.make_graph(
            self._nodes,
            self.name,
            [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["batch", *self.shape(self.x)])],
            [helper.make_tensor_value_info(output, TensorProto.FLOAT, ["batch", *self.shape(value)])],
            self._tensors,
        )
        return helper.make_model(
            graph,
            opset_imports=[helper.make_opsetid("", _OPSET)],
            ir_version=_IR_VERSION,
            producer_name="lichen",
        )

    def _node(
        self, op: str, name: str, inputs: Sequence[str], shape: tuple[int, ...], **attributes: object
    ) -> str:
        self._nodes.append(helper.make_node(op, inputs, [name], name=name, **attributes))
        self._shapes[name] = shape
        return name

    def _uniform(self, name: str, shape: tuple[int, ...], bound: float) -> str:
        """Within ``bound``: sqrt(6 / fan_in) keeps a signal's size through ReLUs (He et al., 2015)."""
        raw = self._bits.random_raw(math.prod(shape))
        unit = (raw >> np.uint64(11)).astype(np.float64) * 2.0**-53
        return self._tensor(name, ((2 * unit - 1) * bound).astype(np.float32).reshape(shape))

    def _filled(self, name: str, shape: tuple[int, ...], value: float) -> str:
        return self._tensor(name, np.full(shape, value, np.float32))

    def _constant(self, name: str, array: NDArray[np.float64]) -> str:
        """A float32 that is no parameter."""
        value = numpy_helper.from_array(array.astype(np.float32), name)
        self._nodes.append(helper.make_node("Constant", [], [name], name=name, value=value))
        return name

    def _integers(self, name: str, values: Sequence[int]) -> str:
        return self._tensor(name, np.array(values, np.int64))

    def _tensor(self, name: str, array: NDArray[np.float32] | NDArray[np.int64]) -> str:
        self._tensors.append(numpy_helper.from_array(array, name))
        return name
