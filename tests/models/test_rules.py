"""Every gradient rule against central differences, in double precision, from one table.

A case is an operator, its inputs (an array is differentiated, ``Fixed`` is a constant) and attributes.
"""

from dataclasses import dataclass

import numpy as np
import pytest
from onnx import TensorProto, helper, numpy_helper
from onnx.reference import ReferenceEvaluator

from models.build.backward import backward
from models.build.graph import WorkingGraph
from models.build.rules import RULES
from models.runtime.numpy_runtime import NumpyGraph
from models.runtime.onnx_reader import read_model

DRAW = np.random.default_rng(7)
STEP = 1e-6
OURS = {"AveragePool", "Conv", "ConvTranspose", "Erf", "MaxPool", "Resize"}


@dataclass(frozen=True)
class Fixed:
    """An input that is a constant."""

    array: np.ndarray


def n(*shape):
    """Normal numbers, none within 0.05 of zero: no kink is near."""
    numbers = DRAW.standard_normal(shape)
    return np.where(np.abs(numbers) < 0.05, 0.5, numbers)


def p(*shape):
    """Numbers from 0.5 to 2."""
    return DRAW.uniform(0.5, 2, shape)


def axes(*values):
    """A constant int64[n]."""
    return Fixed(np.array(values, np.int64))


NEAREST = {"mode": "nearest", "coordinate_transformation_mode": "asymmetric", "nearest_mode": "floor"}

CASES = [
    ("Abs", [n(3, 4)], {}),
    ("Add", [n(2, 3), n(2, 3)], {}),
    ("Add", [n(2, 3), n(3)], {}),
    ("Add", [n(1, 3), n(2, 1)], {}),
    ("Add", [n(), n(2, 3)], {}),
    ("Cast", [n(2, 3)], {"to": TensorProto.DOUBLE}),
    ("Clip", [n(4, 4), Fixed(np.array(-0.6)), Fixed(np.array(0.6))], {}),
    ("Div", [n(2, 3), p(2, 3)], {}),
    ("Div", [n(2, 3), p(3)], {}),
    ("Div", [n(3), p(2, 1)], {}),
    ("Exp", [n(3, 4)], {}),
    ("Expand", [n(1, 3), axes(2, 3)], {}),
    ("Expand", [n(3, 1), axes(2, 1, 4)], {}),
    ("Gemm", [n(3, 4), n(4, 2)], {}),
    ("Gemm", [n(3, 4), n(4, 2), n(2)], {}),
    ("Gemm", [n(3, 4), n(2, 4), n(2)], {"transB": 1, "alpha": 0.5, "beta": 2.0}),
    ("Gemm", [n(4, 3), n(4, 2), n(3, 1)], {"transA": 1, "beta": 0.5}),
    ("Gemm", [n(4, 3), n(2, 4), n(1)], {"transA": 1, "transB": 1, "alpha": 3.0}),
    ("Identity", [n(2, 3)], {}),
    ("LeakyRelu", [n(3, 4)], {"alpha": 0.2}),
    ("LeakyRelu", [n(3, 4)], {}),
    ("Log", [p(3, 4)], {}),
    ("LogSoftmax", [n(2, 5)], {"axis": -1}),
    ("LogSoftmax", [n(2, 5, 2)], {"axis": 1}),
    ("MatMul", [n(3, 4), n(4, 2)], {}),
    ("MatMul", [n(2, 3, 4), n(4, 2)], {}),
    ("MatMul", [n(2, 2, 3, 4), n(2, 2, 4, 3)], {}),
    ("MatMul", [n(2, 2, 3, 4), n(1, 2, 4, 3)], {}),
    ("MatMul", [n(3, 4), n(2, 4, 2)], {}),
    ("Mul", [n(2, 3), n(2, 3)], {}),
    ("Mul", [n(2, 3), n(3)], {}),
    ("Mul", [n(1, 3), n(2, 1)], {}),
    ("Neg", [n(3, 4)], {}),
    ("Reciprocal", [p(3, 4)], {}),
    ("ReduceMean", [n(2, 3, 4), axes(1, 2)], {}),
    ("ReduceMean", [n(2, 3, 4), axes(-2)], {"keepdims": 0}),
    ("ReduceMean", [n(2, 3, 4)], {"keepdims": 0}),
    ("ReduceSum", [n(2, 3, 4), axes(0, -1)], {"keepdims": 0}),
    ("ReduceSum", [n(2, 3, 4), axes(1)], {}),
    ("ReduceSum", [n(2, 3)], {}),
    ("ReduceSum", [n(2, 3), axes()], {"noop_with_empty_axes": 1}),
    ("Relu", [n(3, 4)], {}),
    ("Reshape", [n(2, 6), axes(3, 4)], {}),
    ("Reshape", [n(2, 6), axes(0, -1, 2)], {}),
    ("Sigmoid", [n(3, 4)], {}),
    ("Softmax", [n(2, 5)], {"axis": -1}),
    ("Softmax", [n(2, 3, 2)], {"axis": 1}),
    ("Sqrt", [p(3, 4)], {}),
    ("Squeeze", [n(2, 1, 3), axes(1)], {}),
    ("Sub", [n(2, 3), n(2, 3)], {}),
    ("Sub", [n(3), n(2, 1)], {}),
    ("Sum", [n(2, 3), n(3), n(1, 1)], {}),
    ("Tanh", [n(3, 4)], {}),
    ("Transpose", [n(2, 3, 4)], {}),
    ("Transpose", [n(2, 3, 4)], {"perm": [2, 0, 1]}),
    ("Unsqueeze", [n(2, 3), axes(0, 2)], {}),
    ("AveragePool", [n(2, 2, 4, 6)], {"kernel_shape": [2, 2], "strides": [2, 2]}),
    ("AveragePool", [n(2, 2, 7)], {"kernel_shape": [3], "strides": [2]}),
    (
        "AveragePool",
        [n(2, 2, 7)],
        {"kernel_shape": [3], "strides": [2], "pads": [1, 1], "count_include_pad": 1},
    ),
    ("Concat", [n(2, 3), n(2, 1)], {"axis": 1}),
    ("Concat", [n(2, 3, 2), n(2, 1, 2), n(2, 2, 2)], {"axis": -2}),
    ("Conv", [n(2, 3, 5, 5), n(4, 3, 3, 3), n(4)], {"pads": [1, 1, 1, 1]}),
    ("Conv", [n(2, 3, 6, 5), n(4, 3, 3, 2)], {"strides": [2, 1], "pads": [1, 0, 0, 1]}),
    ("Conv", [n(2, 2, 6, 6), n(3, 2, 1, 1)], {"strides": [2, 2]}),
    ("Conv", [n(2, 4, 7), n(4, 1, 3)], {"group": 4, "pads": [1, 1]}),
    ("Conv", [n(2, 4, 8), n(8, 2, 3), n(8)], {"group": 2, "strides": [2], "pads": [1, 1]}),
    ("Conv", [n(1, 2, 9), n(3, 2, 3)], {"dilations": [2]}),
    ("Conv", [n(1, 2, 9, 8), n(3, 2, 3, 2)], {"dilations": [2, 3], "strides": [1, 2], "pads": [4, 1, 0, 2]}),
    ("Conv", [n(2, 4, 6, 6), n(4, 1, 3, 3)], {"group": 4, "strides": [2, 2], "pads": [1, 1, 1, 1]}),
    ("Conv", [n(1, 2, 4), n(3, 2, 2)], {"pads": [3, 2]}),
    ("ConvTranspose", [n(2, 3, 4), n(3, 2, 4), n(2)], {"strides": [2], "pads": [1, 1]}),
    ("ConvTranspose", [n(1, 2, 3, 3), n(2, 2, 3, 3)], {}),
    (
        "ConvTranspose",
        [n(2, 2, 3, 4), n(2, 3, 3, 2), n(3)],
        {"strides": [2, 2], "pads": [1, 0, 1, 0], "output_padding": [1, 1]},
    ),
    ("ConvTranspose", [n(1, 2, 4), n(2, 3, 3)], {"dilations": [3], "output_padding": [2]}),
    ("ConvTranspose", [n(2, 4, 3), n(4, 2, 3)], {"group": 2, "strides": [2]}),
    ("Cos", [n(3)], {}),
    ("Erf", [n(3, 4)], {}),
    ("Gather", [n(5, 3), axes(0, 2, 2)], {}),
    ("Gather", [n(5, 3), Fixed(np.array([[1, 4], [4, 0]], np.int32))], {"axis": 0}),
    ("Max", [n(2, 3), n(2, 3)], {}),
    ("Max", [n(2, 3), n(3)], {}),
    ("MaxPool", [n(2, 2, 4, 6)], {"kernel_shape": [2, 2], "strides": [2, 2]}),
    ("MaxPool", [n(2, 2, 7)], {"kernel_shape": [3], "strides": [2], "pads": [1, 1]}),
    ("MaxPool", [n(1, 2, 6, 5)], {"kernel_shape": [3, 2], "strides": [1, 2]}),
    ("MaxPool", [n(1, 2, 7, 5)], {"kernel_shape": [2, 2], "dilations": [3, 1]}),
    ("Min", [n(2, 1), n(1, 3)], {}),
    ("Pad", [n(2, 3), axes(0, 1, 1, 0)], {}),
    ("Pad", [n(2, 3), axes(0, 0, 0, 0)], {}),
    ("Pad", [n(2, 3), axes(1, 1, 1, 2), Fixed(np.array(7.0))], {}),
    ("Pow", [p(3, 4), Fixed(np.array(2.5))], {}),
    ("Pow", [n(3, 4), Fixed(np.array([3.0]))], {}),
    ("ReduceMax", [n(2, 3, 4), axes(1)], {}),
    ("ReduceMax", [n(2, 3, 4), axes(0, -1)], {"keepdims": 0}),
    ("ReduceMax", [n(2, 3)], {"keepdims": 0}),
    ("Resize", [n(2, 2, 2, 3), None, Fixed(np.array([1, 1, 2, 3], np.float32))], NEAREST),
    ("Sin", [n(3)], {}),
    ("Slice", [n(4, 5), axes(1), axes(-1), axes(1)], {}),
    ("Slice", [n(4, 5, 2), axes(1, -3), axes(100, 4)], {}),
    ("Slice", [n(4, 5), axes(0), axes(3), axes(-1), axes(1)], {}),
    ("Where", [Fixed(np.array([[True, False, True]] * 2)), n(2, 3), n(3)], {}),
]


def model_of(nodes, inputs, outputs, constants):
    """A double-precision model."""
    return helper.make_model(
        helper.make_graph(
            nodes,
            "g",
            [helper.make_tensor_value_info(k, TensorProto.DOUBLE, v.shape) for k, v in inputs.items()],
            [helper.make_tensor_value_info(k, TensorProto.DOUBLE, None) for k in outputs],
            [numpy_helper.from_array(v, k) for k, v in constants.items()],
        ),
        opset_imports=[helper.make_opsetid("", 18)],
    )


def evaluator(op, model):
    """Runs a model: the standard's own evaluator, or ours where that one is wrong or knows float32 only."""
    if op in OURS:
        return NumpyGraph(read_model(model.SerializeToString()), precision=np.float64)
    standard = ReferenceEvaluator(model)
    return lambda feeds: dict(zip(standard.output_names, standard.run(None, feeds), strict=True))


@pytest.mark.parametrize(
    ("op", "inputs", "attributes"), CASES, ids=[f"{op}-{at}" for at, (op, _, _) in enumerate(CASES)]
)
def test_a_rule_gives_the_slope(op, inputs, attributes):
    """For every input and every element, within 1e-6 of the central difference."""
    names = [f"i{at}" if entry is not None else "" for at, entry in enumerate(inputs)]
    fixed = {k: v.array for k, v in zip(names, inputs, strict=True) if isinstance(v, Fixed)}
    moving = {k: v for k, v in zip(names, inputs, strict=True) if isinstance(v, np.ndarray)}
    node = helper.make_node(op, names, ["o"], name="node", **attributes)
    forward = evaluator(op, model_of([node], moving, ["o"], fixed))
    seed = DRAW.standard_normal(np.shape(forward(moving)["o"]))

    graph = WorkingGraph(float_type=np.float64)
    for name, array in moving.items():
        graph.input(name, array.shape)
    graph.constants.update(fixed)
    graph.nodes.append(node)
    graph.infer()
    gradients = backward(graph, {"o": graph.constant(seed)}, list(moving))
    wanted = list(dict.fromkeys(gradients.values()))
    computed = evaluator(op, model_of(graph.nodes, moving, wanted, graph.constants))(moving)

    for name, array in moving.items():
        slope = np.zeros_like(array)
        for at in np.ndindex(array.shape):
            for sign in (1, -1):
                moved = array.copy()
                moved[at] += sign * STEP
                output = forward({**moving, name: moved})["o"]
                slope[at] += sign * float((output * seed).sum()) / (2 * STEP)
        assert computed[gradients[name]].shape == array.shape
        np.testing.assert_allclose(computed[gradients[name]], slope, rtol=1e-6, atol=1e-7, err_msg=name)


def test_every_rule_has_a_case():
    """A rule without a case is a rule that nobody checked."""
    assert {op for op, _, _ in CASES} == set(RULES)


def test_every_operator_with_a_rule_has_a_kernel():
    """What can be differentiated can also be interpreted."""
    from models.runtime.numpy_ops import KERNELS

    assert RULES.keys() <= KERNELS.keys()
