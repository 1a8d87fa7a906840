"""Lowerings of activations and of functions of one number."""

import math

import numpy as np
import onnx

from fl_protocol.errors import ArtifactError
from models.build.graph import WorkingGraph, attribute, described
from models.build.lowering import lowering

__all__: list[str] = []


@lowering("HardSigmoid")
def _hard_sigmoid(graph: WorkingGraph, node: onnx.NodeProto) -> str:
    scaled = graph.op("Mul", node.input[0], graph.constant(attribute(node, "alpha", 0.2)))
    moved = graph.op("Add", scaled, graph.constant(attribute(node, "beta", 0.5)))
    return graph.op("Clip", moved, graph.constant(0), graph.constant(1))


@lowering("HardSwish")
def _hard_swish(graph: WorkingGraph, node: onnx.NodeProto) -> str:
    """Howard et al.: Searching for MobileNetV3 (2019)."""
    scaled = graph.op("Mul", node.input[0], graph.constant(1 / 6))
    gate = graph.op(
        "Clip", graph.op("Add", scaled, graph.constant(0.5)), graph.constant(0), graph.constant(1)
    )
    return graph.op("Mul", node.input[0], gate)


@lowering("Elu")
def _elu(graph: WorkingGraph, node: onnx.NodeProto) -> str:
    return _exponential_unit(graph, str(node.input[0]), float(attribute(node, "alpha", 1.0)))


@lowering("Celu")
def _celu(graph: WorkingGraph, node: onnx.NodeProto) -> str:
    alpha = float(attribute(node, "alpha", 1.0))
    scaled = graph.op("Mul", node.input[0], graph.constant(1 / alpha))
    return graph.op("Mul", _exponential_unit(graph, scaled, 1.0), graph.constant(alpha))


@lowering("Selu")
def _selu(graph: WorkingGraph, node: onnx.NodeProto) -> str:
    """Klambauer et al.: Self-normalizing neural networks (2017)."""
    unit = _exponential_unit(graph, str(node.input[0]), float(attribute(node, "alpha", 1.6732632423543772)))
    return graph.op("Mul", unit, graph.constant(attribute(node, "gamma", 1.0507009873554805)))


def _exponential_unit(graph: WorkingGraph, x: str, alpha: float) -> str:
    # The exponential sees no positive number, so that it cannot overflow where it is not wanted.
    low = graph.op("Exp", graph.op("Min", x, graph.constant(0)))
    bent = graph.op("Mul", graph.op("Sub", low, graph.constant(1)), graph.constant(alpha))
    return graph.op("Add", graph.op("Relu", x), bent)


@lowering("Softplus")
def _softplus(graph: WorkingGraph, node: onnx.NodeProto) -> str:
    return softplus(graph, str(node.input[0]))


def softplus(graph: WorkingGraph, x: str) -> str:
    """``log(1 + exp(x))`` without overflow, with the right slope at 0."""
    small = graph.op("Exp", graph.op("Neg", graph.op("Abs", x)))
    return graph.op("Add", graph.op("Relu", x), graph.op("Log", graph.op("Add", small, graph.constant(1))))


@lowering("Softsign")
def _softsign(graph: WorkingGraph, node: onnx.NodeProto) -> str:
    x = str(node.input[0])
    return graph.op("Div", x, graph.op("Add", graph.op("Abs", x), graph.constant(1)))


@lowering("Mish")
def _mish(graph: WorkingGraph, node: onnx.NodeProto) -> str:
    x = str(node.input[0])
    return graph.op("Mul", x, graph.op("Tanh", softplus(graph, x)))


@lowering("PRelu")
def _prelu(graph: WorkingGraph, node: onnx.NodeProto) -> str:
    x, slope = node.input
    low = graph.op("Mul", graph.op("Min", x, graph.constant(0)), slope)
    return graph.op("Add", graph.op("Relu", x), low)


@lowering("Gelu")
def _gelu(graph: WorkingGraph, node: onnx.NodeProto) -> str:
    """Hendrycks, Gimpel: Gaussian error linear units (2016)."""
    x = str(node.input[0])
    if attribute(node, "approximate", b"none") in (b"tanh", "tanh"):
        cube = graph.op("Mul", graph.op("Mul", x, x), x)
        inner = graph.op("Add", x, graph.op("Mul", cube, graph.constant(0.044715)))
        bell = graph.op("Tanh", graph.op("Mul", inner, graph.constant(math.sqrt(2 / math.pi))))
    else:
        bell = graph.op("Erf", graph.op("Mul", x, graph.constant(math.sqrt(0.5))))
    half = graph.op("Mul", x, graph.constant(0.5))
    return graph.op("Mul", half, graph.op("Add", bell, graph.constant(1)))


@lowering("Pow")
def _pow(graph: WorkingGraph, node: onnx.NodeProto) -> str | None:
    """Small whole exponents are products, which have a gradient at and below 0 too."""
    x, exponent = node.input
    constant = graph.constants.get(exponent)
    if constant is None or constant.size != 1:
        return None
    power = float(constant.reshape(()))
    if power in (2.0, 3.0):
        square = graph.op("Mul", x, x)
        return square if power == 2 else graph.op("Mul", square, x)
    if power in (0.5, -1.0):
        return graph.op("Sqrt" if power > 0 else "Reciprocal", x)
    # An exponent of another element type than the base's is allowed by the standard, not by every runtime.
    plain = graph.constant(power, np.dtype(graph.float_type))
    if power == 1:
        return str(x)
    return None if plain == exponent else graph.op("Pow", x, plain)


@lowering("Max", "Min")
def _extreme(graph: WorkingGraph, node: onnx.NodeProto) -> str | None:
    if len(node.input) == 2:
        return None
    value = str(node.input[0])
    for other in node.input[1:]:
        value = graph.op(node.op_type, value, other)
    return value


@lowering("GreaterOrEqual")
def _greater_or_equal(graph: WorkingGraph, node: onnx.NodeProto) -> str:
    return graph.op("Not", graph.op("Less", *node.input))


@lowering("LessOrEqual")
def _less_or_equal(graph: WorkingGraph, node: onnx.NodeProto) -> str:
    return graph.op("Not", graph.op("Greater", *node.input))


@lowering("CastLike")
def _cast_like(graph: WorkingGraph, node: onnx.NodeProto) -> str:
    wanted = graph.types.get(node.input[1])
    if wanted is None:
        raise ArtifactError(f"{described(node)}: the element type to cast to is not known")
    return graph.op("Cast", node.input[0], to=wanted)
