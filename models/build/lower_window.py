"""Lowerings of convolutions, pools and up-sampling: all sizes and pads written out."""

import math
from typing import Any

import numpy as np
import onnx
from onnx import helper

from fl_protocol.errors import ArtifactError
from models.build.graph import WorkingGraph, attribute, described
from models.build.lowering import fixed_sizes, lowering, optional_input

__all__: list[str] = []

_WRITTEN_OUT = ("kernel_shape", "strides", "dilations", "pads", "group")
_ALIKE = {
    (b"asymmetric", b"floor"),
    (b"half_pixel", b"round_prefer_floor"),
    (b"half_pixel", b"round_prefer_ceil"),
}
"""Ways to find the nearest pixel that are one and the same where the factor is a whole number."""


@lowering("Conv")
def _conv(graph: WorkingGraph, node: onnx.NodeProto) -> str | None:
    kernel = fixed_sizes(graph, node, node.input[1], 2)
    if graph.known_shape(node.input[0]) is None:
        return None
    written = _geometry(node, kernel, fixed_sizes(graph, node, node.input[0], 2))
    written["group"] = int(attribute(node, "group", 1))
    return _again(graph, node, written)


@lowering("ConvTranspose")
def _conv_transpose(graph: WorkingGraph, node: onnx.NodeProto) -> str | None:
    """Pads from an output size: ONNX operators, ConvTranspose."""
    kernel = fixed_sizes(graph, node, node.input[1], 2)
    if graph.known_shape(node.input[0]) is None:
        return None
    rank, sizes = len(kernel), fixed_sizes(graph, node, node.input[0], 2)
    mode = _mode(node)
    plain = helper.make_node("ConvTranspose", [], [])
    plain.attribute.extend(entry for entry in node.attribute if entry.name != "auto_pad")
    written = _geometry(plain, kernel, sizes)
    extra = list(attribute(node, "output_padding", [0] * rank))
    wanted = attribute(node, "output_shape")
    if wanted is None and mode in ("SAME_UPPER", "SAME_LOWER"):
        wanted = [size * stride for size, stride in zip(sizes, written["strides"], strict=True)]
    if wanted is not None:
        total = [
            stride * (size - 1) + more + dilation * (taps - 1) + 1 - want
            for stride, size, more, dilation, taps, want in zip(
                written["strides"], sizes, extra, written["dilations"], kernel, wanted[-rank:], strict=True
            )
        ]
        if min(total) < 0:
            raise ArtifactError(f"{described(node)}: no padding gives it the size {list(wanted)}")
        small = [pad // 2 for pad in total]
        large = [pad - half for pad, half in zip(total, small, strict=True)]
        written["pads"] = [*small, *large] if mode == "SAME_UPPER" else [*large, *small]
    written |= {"group": int(attribute(node, "group", 1)), "output_padding": extra}
    return _again(graph, node, written)


@lowering("MaxPool")
def _max_pool(graph: WorkingGraph, node: onnx.NodeProto) -> str | None:
    if graph.known_shape(node.input[0]) is None:
        return None
    written = _pool(graph, node)
    made = graph.producer(str(node.input[0]))
    if made is None or made.op_type != "Relu":
        return _again(graph, node, written)
    # The same maxima, and the Relu has fewer numbers to look at, forwards and backwards.
    return graph.op("Relu", graph.op("MaxPool", made.input[0], **written))


@lowering("AveragePool")
def _average_pool(graph: WorkingGraph, node: onnx.NodeProto) -> str | None:
    """An average that leaves the padding out is one that counts it, corrected by fixed factors."""
    if graph.known_shape(node.input[0]) is None:
        return None
    written = _pool(graph, node)
    if set(written.pop("dilations")) != {1}:
        raise ArtifactError(f"{described(node)} has gaps in its window", hint="use a plain average pool")
    if not any(written["pads"]):
        return _again(graph, node, written)
    counted = {**written, "count_include_pad": 1}
    if attribute(node, "count_include_pad", 0):
        if attribute(node, "ceil_mode", 0):
            raise ArtifactError(
                f"{described(node)}: its last window may hang over", hint="export it with ceil_mode 0"
            )
        return _again(graph, node, counted)
    shares: np.ndarray[Any, Any] = np.ones(())
    for size, taps, stride, before, after in zip(
        fixed_sizes(graph, node, node.input[0], 2),
        written["kernel_shape"],
        written["strides"],
        *(written["pads"][half::] for half in (0, len(written["kernel_shape"]))),
        strict=False,
    ):
        inside = np.pad(np.ones(size), (before, after))
        windows = np.lib.stride_tricks.sliding_window_view(inside, taps)[::stride]
        shares = np.multiply.outer(shares, taps / windows.sum(1))
    padded = graph.op("AveragePool", node.input[0], **counted)
    return graph.op("Mul", padded, graph.constant(shares[None, None]))


@lowering("GlobalAveragePool")
def _global_average_pool(graph: WorkingGraph, node: onnx.NodeProto) -> str:
    axes = graph.integers(*range(2, len(graph.shape(node.input[0]))))
    return graph.op("ReduceMean", node.input[0], axes, keepdims=1)


@lowering("GlobalMaxPool")
def _global_max_pool(graph: WorkingGraph, node: onnx.NodeProto) -> str:
    axes = graph.integers(*range(2, len(graph.shape(node.input[0]))))
    return graph.op("ReduceMax", node.input[0], axes, keepdims=1)


@lowering("Resize")
def _resize(graph: WorkingGraph, node: onnx.NodeProto) -> str | None:
    x = str(node.input[0])
    if graph.known_shape(x) is None:
        return None
    scales, sizes = (_fixed(graph, node, index) for index in (2, 3))
    if sizes is not None and graph.known_shape(node.output[0]) is not None:
        old, new = (fixed_sizes(graph, node, value, 1) for value in (x, node.output[0]))
        scales = np.array([1, *(after / before for before, after in zip(old, new, strict=True))])
    way = tuple(
        attribute(node, key, default)
        for key, default in (
            ("coordinate_transformation_mode", b"half_pixel"),
            ("nearest_mode", b"round_prefer_floor"),
        )
    )
    nearest = attribute(node, "mode", b"nearest") == b"nearest" and way in _ALIKE
    if scales is None or not nearest or (scales != np.round(scales)).any() or (scales < 1).any():
        raise ArtifactError(
            f"{described(node)} resizes other than to the nearest pixel by whole factors",
            hint="up-sample by a whole factor with mode nearest, or with a transposed convolution",
        )
    factors = graph.constant(scales, np.float32)
    exact = [b"asymmetric", b"floor"]
    # Inference forgets the batch here, although its factor is 1.
    old_shape, whole = graph.shape(x), [round(factor) for factor in scales.tolist()]
    if any(factor != 1 for dim, factor in zip(old_shape, whole, strict=True) if not isinstance(dim, int)):
        raise ArtifactError(f"{described(node)} repeats the rows of the batch", hint="resize the sizes only")
    shape = [
        dim * factor if isinstance(dim, int) else dim for dim, factor in zip(old_shape, whole, strict=True)
    ]
    if factors == optional_input(node, 2) and list(way) == exact and len(node.input) == 3:
        graph.know(node.output[0], shape, like=x)
        return None
    value = graph.op(
        "Resize",
        x,
        "",
        factors,
        mode="nearest",
        coordinate_transformation_mode="asymmetric",
        nearest_mode="floor",
    )
    graph.know(value, shape, like=x)
    return value


def _fixed(graph: WorkingGraph, node: onnx.NodeProto, index: int) -> np.ndarray[Any, Any] | None:
    name = optional_input(node, index)
    array = graph.constants.get(name) if name is not None else None
    return array if array is not None and array.size else None


def _again(graph: WorkingGraph, node: onnx.NodeProto, written: dict[str, Any]) -> str | None:
    """The same node with these attributes only; ``None`` where it has them already."""
    present = {entry.name: helper.get_attribute_value(entry) for entry in node.attribute}
    present = {
        key: list(it) if key in written and not isinstance(it, int) else it for key, it in present.items()
    }
    if present == written:
        return None
    replaced = onnx.NodeProto()
    replaced.CopyFrom(node)
    del replaced.attribute[:]
    replaced.attribute.extend(helper.make_attribute(key, value) for key, value in written.items())
    # Under the exporter's own name, so that a later refusal can say which node it is about.
    del replaced.output[1:]
    graph.nodes.append(replaced)
    return str(node.output[0])


def _mode(node: onnx.NodeProto) -> str:
    mode = attribute(node, "auto_pad", b"NOTSET")
    return mode.decode() if isinstance(mode, bytes) else str(mode)


def _geometry(node: onnx.NodeProto, kernel: list[int], sizes: list[int]) -> dict[str, Any]:
    """Kernel, strides, dilations and pads; ``auto_pad`` worked out for an input of ``sizes``."""
    rank = len(kernel)
    strides = list(attribute(node, "strides", [1] * rank))
    dilations = list(attribute(node, "dilations", [1] * rank))
    pads = list(attribute(node, "pads", [0] * (2 * rank)))
    mode = _mode(node)
    if mode == "VALID":
        pads = [0] * (2 * rank)
    elif mode.startswith("SAME"):
        total = [
            max((math.ceil(size / stride) - 1) * stride + dilation * (taps - 1) + 1 - size, 0)
            for size, stride, dilation, taps in zip(sizes, strides, dilations, kernel, strict=True)
        ]
        small = [pad // 2 for pad in total]
        large = [pad - half for pad, half in zip(total, small, strict=True)]
        pads = [*small, *large] if mode == "SAME_UPPER" else [*large, *small]
    return {"kernel_shape": kernel, "strides": strides, "dilations": dilations, "pads": pads}


def _pool(graph: WorkingGraph, node: onnx.NodeProto) -> dict[str, Any]:
    sizes = fixed_sizes(graph, node, node.input[0], 2)
    written = _geometry(node, list(attribute(node, "kernel_shape")), sizes)
    if not attribute(node, "ceil_mode", 0):
        return written
    # A last window that hangs over is a little more padding at the end.
    rank = len(sizes)
    for axis, size in enumerate(sizes):
        stride, before = written["strides"][axis], written["pads"][axis]
        span = size + before + written["pads"][rank + axis]
        extent = written["dilations"][axis] * (written["kernel_shape"][axis] - 1) + 1
        count = -(-(span - extent) // stride) + 1
        if (count - 1) * stride >= size + before:  # a window that would see padding only
            count -= 1
        written["pads"][rank + axis] += max((count - 1) * stride + extent - span, 0)
    return written
