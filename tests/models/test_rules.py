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

DRAW = np.random.default_rng(7)
STEP = 1e-6


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


@pytest.mark.parametrize(
    ("op", "inputs", "attributes"), CASES, ids=[f"{op}-{at}" for at, (op, _, _) in enumerate(CASES)]
)
def test_a_rule_gives_the_slope(op, inputs, attributes):
    """For every input and every element, within 1e-6 of the central difference."""
    names = [f"i{at}" for at in range(len(inputs))]
    fixed = {k: v.array for k, v in zip(names, inputs, strict=True) if isinstance(v, Fixed)}
    moving = {k: v for k, v in zip(names, inputs, strict=True) if not isinstance(v, Fixed)}
    node = helper.make_node(op, names, ["o"], name="node", **attributes)
    forward = ReferenceEvaluator(model_of([node], moving, ["o"], fixed))
    seed = DRAW.standard_normal(np.shape(forward.run(None, moving)[0]))

    graph = WorkingGraph(float_type=np.float64)
    for name, array in moving.items():
        graph.input(name, array.shape)
    graph.constants.update(fixed)
    graph.nodes.append(node)
    graph.infer()
    gradients = backward(graph, {"o": graph.constant(seed)}, list(moving))
    reverse = ReferenceEvaluator(
        model_of(graph.nodes, moving, list(dict.fromkeys(gradients.values())), graph.constants)
    )
    computed = dict(zip(dict.fromkeys(gradients.values()), reverse.run(None, moving), strict=True))

    for name, array in moving.items():
        slope = np.zeros_like(array)
        for at in np.ndindex(array.shape):
            for sign in (1, -1):
                moved = array.copy()
                moved[at] += sign * STEP
                (output,) = forward.run(None, {**moving, name: moved})
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
