"""Graphs that must be refused: `lichen models build` ends with 1, names node and remedy, and writes nothing.

Each is what an exporter, an optimiser or a person really makes; the words are held to here, as a stranger
reads them.
"""

import sys

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from fl_protocol.errors import ArtifactError
from lichen.command import main
from models.build import build_artifact

pytest.importorskip("rich")
DRAW = np.random.default_rng(9)
FLOAT = TensorProto.FLOAT
SIGNATURE = "pkg.torch.export.ExportedProgram.graph_signature"


def w(*shape):
    """A parameter."""
    return DRAW.standard_normal(shape).astype(np.float32)


def node(op, inputs, outputs, name, **options):
    """A node with a name, as exporters give."""
    return helper.make_node(op, inputs, outputs, name=name, **options)


LINEAR = node("Gemm", ["h", "head.weight", "head.bias"], ["z"], "head", transB=1)
HEAD = {"head.weight": w(3, 4), "head.bias": w(3)}


def model(nodes, tensors=HEAD, *, x=("batch", 4), inputs=(), outputs=("z",), domains=(), rank=2):
    """A forward graph from ``x`` to ``z``."""
    graph = helper.make_graph(
        list(nodes),
        "net",
        [helper.make_tensor_value_info("x", FLOAT, list(x)), *inputs],
        [helper.make_tensor_value_info(name, FLOAT, [None] * rank) for name in outputs],
        [numpy_helper.from_array(array, name) for name, array in tensors.items()],
    )
    imports = [helper.make_opsetid("", 18), *(helper.make_opsetid(domain, 1) for domain in domains)]
    return helper.make_model(graph, opset_imports=imports, ir_version=9)


def fused():
    """A graph that ONNX Runtime optimised."""
    made = node("FusedGemm", ["x", "k"], ["h"], "fused", domain="com.microsoft", activation="Relu")
    return model([made, LINEAR], {**HEAD, "k": w(4, 4)}, domains=["com.microsoft"])


def custom():
    """An operator of a person's own."""
    return model([node("Swirl", ["x"], ["h"], "swirl", domain="acme"), LINEAR], domains=["acme"])


def loop():
    """A recurrent layer as Keras on TensorFlow exports it."""
    value = helper.make_tensor_value_info
    body = helper.make_graph(
        [node("Identity", ["go"], ["on"], "on"), node("Tanh", ["before"], ["after"], "tanh")],
        "body",
        [value("i", TensorProto.INT64, []), value("go", TensorProto.BOOL, []), value("before", FLOAT, None)],
        [value("on", TensorProto.BOOL, []), value("after", FLOAT, None)],
    )
    made = node("Loop", ["n", "yes", "x"], ["h"], "gru_loop", body=body)
    return model([made, LINEAR], {**HEAD, "n": np.array(3), "yes": np.array(True)})


def branch():
    """A layer that is left out by the data."""
    value = helper.make_tensor_value_info("o", FLOAT, None)
    arms = {
        f"{arm}_branch": helper.make_graph([node(op, ["x"], ["o"], arm)], arm, [], [value])
        for arm, op in (("then", "Relu"), ("else", "Neg"))
    }
    return model([node("If", ["c"], ["h"], "early_exit", **arms), LINEAR], {**HEAD, "c": np.array(True)})


def picked():
    """As many rows as are not zero."""
    nodes = [
        node("NonZero", ["x"], ["places"], "where_not_zero"),
        node("Transpose", ["places"], ["rows"], "rows", perm=[1, 0]),
        node("GatherND", ["x", "rows"], ["h"], "pick"),
    ]
    return model([*nodes, node("Mul", ["h", "k"], ["z"], "scale")], {"k": w(1)})


def of_tensorflow():
    """A convolution with its normalisation folded in and no bias left, as tf2onnx writes it."""
    name = "StatefulPartitionedCall/net/conv2d/Conv2D"
    nodes = [
        node("Conv", ["x", "const_fold_opt__21"], ["c"], name, kernel_shape=[3, 3]),
        node("Relu", ["c"], ["r"], "StatefulPartitionedCall/net/re_lu/Relu"),
        node("Flatten", ["r"], ["h"], "StatefulPartitionedCall/net/flatten/Reshape"),
    ]
    head = {"head.weight": w(3, 8), "head.bias": w(3)}
    return model([*nodes, LINEAR], {"const_fold_opt__21": w(2, 1, 3, 3), **head}, x=("batch", 1, 4, 4))


def merged():
    """What PyTorch's exporter makes by default of a convolution and its batch normalisation."""
    made = model(
        [
            node("Conv", ["x", "0.weight", "0.bias"], ["h"], "node_Conv_13", kernel_shape=[3]),
            node("Relu", ["h"], ["z"], "node_relu"),
        ],
        {"0.weight": w(2, 1, 3), "0.bias": w(2)},
        x=("batch", 1, 6),
        rank=3,
    )
    names = ("0.weight", "0.bias", "1.weight", "1.bias")
    made.graph.metadata_props.add(
        key=SIGNATURE, value="\n".join(f"p_{name}: PARAMETER target='{name}'" for name in names)
    )
    made.graph.node[0].metadata_props.add(
        key="pkg.onnxscript.rewriter.rule_name", value="FuseBatchNormIntoConv"
    )
    return made


def merged_by_the_older_one():
    """The same from PyTorch's older exporter."""
    conv = node("Conv", ["x", "onnx::Conv_17", "onnx::Conv_18"], ["z"], "/0/Conv", kernel_shape=[3])
    return model([conv], {"onnx::Conv_17": w(2, 1, 3), "onnx::Conv_18": w(2)}, x=("batch", 1, 6), rank=3)


def sparse():
    """A pruned layer."""
    made = model([node("MatMul", ["x", "pruned.weight"], ["z"], "pruned")], {})
    values = numpy_helper.from_array(w(2), "pruned.weight")
    places = numpy_helper.from_array(np.array([1, 5]), "places")
    made.graph.sparse_initializer.append(helper.make_sparse_tensor(values, places, [4, 3]))
    return made


def two_inputs():
    """A model of an image and of what is known besides."""
    second = helper.make_tensor_value_info("age", FLOAT, ["batch", 4])
    return model([node("Add", ["x", "age"], ["h"], "both"), LINEAR], inputs=[second])


def two_outputs():
    """A model with two heads."""
    return model([node("Relu", ["x"], ["h"], "body"), LINEAR], outputs=("z", "h"))


def fixed_batch():
    """An export of one batch size, which hides in a reshape."""
    made = node("Reshape", ["x", "shape"], ["h"], "view")
    return model([made, LINEAR], {**HEAD, "shape": np.array([8, 4])}, x=(8, 2, 2))


def quantized():
    """A layer in whole numbers."""
    names = ["q", "scale", "zero"]
    nodes = [
        node("DequantizeLinear", names, ["k"], "weight_dequantized"),
        node("MatMul", ["x", "k"], ["h"], "dense"),
        LINEAR,
    ]
    numbers = DRAW.integers(-9, 9, (4, 4)).astype(np.int8)
    return model(nodes, {**HEAD, "q": numbers, "scale": np.float32(0.1), "zero": np.int8(0)})


def half():
    """A model of float16 weights."""
    nodes = [
        node("Cast", ["dense.weight"], ["k"], "to_float", to=FLOAT),
        node("MatMul", ["x", "k"], ["h"], "dense"),
        LINEAR,
    ]
    return model(nodes, {**HEAD, "dense.weight": w(4, 4).astype(np.float16)})


def unsupported():
    """An operator that nobody differentiates here."""
    return model([node("TopK", ["x", "k"], ["h", "places"], "top"), LINEAR], {**HEAD, "k": np.array([4])})


def random():
    """Noise of its own."""
    noise = node("RandomNormalLike", ["x"], ["n"], "noise", dtype=FLOAT)
    return model([noise, node("Add", ["x", "n"], ["h"], "noisy"), LINEAR])


def out_of_reach():
    """A parameter that only ever chooses a place."""
    nodes = [
        node("MatMul", ["x", "gate.weight"], ["g"], "gate"),
        node("ArgMax", ["g"], ["i"], "choice", axis=1, keepdims=0),
        node("Gather", ["table.weight", "i"], ["h"], "look_up"),
    ]
    return model([*nodes, LINEAR], {**HEAD, "gate.weight": w(4, 5), "table.weight": w(5, 4)})


def no_parameters():
    """Weights that were folded into constants."""
    constant = node("Constant", [], ["k"], "k", value=numpy_helper.from_array(w(4, 3)))
    return model([constant, node("MatMul", ["x", "k"], ["z"], "dense")], {})


def free_length():
    """A sequence of any length."""
    return model(
        [node("ReduceMean", ["x", "one"], ["h"], "mean", keepdims=0), LINEAR],
        {**HEAD, "one": np.array([1])},
        x=("batch", "length", 4),
    )


def rows_mixed():
    """A batch normalisation that somebody wrote out."""
    nodes = [
        node("ReduceMean", ["x", "zero"], ["m"], "batch_mean"),
        node("Sub", ["x", "m"], ["h"], "centred"),
    ]
    return model([*nodes, LINEAR], {**HEAD, "zero": np.array([0])})


REFUSED = {
    fused: ("node 'fused' (FusedGemm)", "before ONNX Runtime optimised it"),
    custom: ("node 'swirl' (Swirl) is of the foreign operator domain 'acme'", "standard operators"),
    loop: ("node 'gru_loop' (Loop)", "unroll=True"),
    branch: ("node 'early_exit' (If) chooses between two graphs", "Where"),
    picked: ("node 'where_not_zero' (NonZero): how much comes out of it depends on the data", "mask"),
    of_tensorflow: ("node 'StatefulPartitionedCall/net/conv2d/Conv2D' (Conv)", "lichen.from_keras"),
    merged: ("not in the graph: 1.bias, 1.weight; node 'node_Conv_13' (Conv) has a batch", "optimize=False"),
    merged_by_the_older_one: ("node '/0/Conv' (Conv) has a parameter 'onnx::Conv_17'", "lichen.from_torch"),
    sparse: ("the parameter 'pruned.weight' is sparse", "to_dense()"),
    two_inputs: ("2 inputs: ['x', 'age']", "cuts up itself"),
    two_outputs: ("2 outputs: ['z', 'h']", "logits as only output"),
    fixed_batch: ("node 'view' (Reshape) makes [8, 4] of any number of rows", "dynamic batch"),
    quantized: ("node 'weight_dequantized' (DequantizeLinear): the model is quantized", "float32 model"),
    half: ("the parameter 'dense.weight' is FLOAT16", "net.float()"),
    unsupported: ("node 'top' (TopK): the operator is not supported", "docs/operators.md"),
    random: ("node 'noise' (RandomNormalLike): it draws random numbers", "leave the noise out"),
    out_of_reach: ("gate.weight", "--train"),
    no_parameters: ("the model has no parameters to train", "as initializers"),
    free_length: ("['batch', 'length', 4] is not", "fixed sizes in every dimension but the first"),
    rows_mixed: ("a row's output depends on its neighbours", "GroupNormalization"),
}


@pytest.mark.parametrize("graph", REFUSED, ids=lambda graph: graph.__name__)
def test_a_graph_that_must_be_refused_is_refused_in_words_that_help(graph, tmp_path, monkeypatch, capsys):
    """The node by its name, the remedy in the hint; no traceback, no file."""
    reason, remedy = REFUSED[graph]
    onnx.save(graph(), tmp_path / "net.onnx")
    loss = ["--loss", "softmax_cross_entropy"]
    words = ["lichen", "models", "build", tmp_path / "net.onnx", *loss, "--out", tmp_path / "out"]
    monkeypatch.setattr(sys, "argv", [str(word) for word in words])
    with pytest.raises(SystemExit) as ended:
        main()
    told = capsys.readouterr().err
    assert ended.value.code == 1
    what, _, hint = told.partition("\n  hint: ")
    assert what.startswith("error: ")
    assert reason in what
    assert remedy in hint
    assert not (tmp_path / "out").exists()


def test_what_cannot_be_reached_may_be_frozen():
    """The remedy of a parameter without a gradient."""
    artifact = build_artifact(out_of_reach(), loss="softmax_cross_entropy", train=["head.*", "table.*"])
    assert {entry.name for entry in artifact.manifest.parameters if entry.role == "frozen"} == {"gate.weight"}


@pytest.mark.parametrize("graph", [of_tensorflow, merged, merged_by_the_older_one])
def test_a_count_tells_whether_anything_was_lost(graph):
    """The remedy where an exporter only gave other names; a wrong count lists what there is."""
    there = sum(int(np.prod(tensor.dims)) for tensor in graph().graph.initializer)
    loss = "softmax_cross_entropy" if graph is of_tensorflow else "mse"
    assert build_artifact(graph(), loss=loss, expect_params=there).layout.size == there
    with pytest.raises(ArtifactError, match=f"has {there} parameters, not {there + 4}"):
        build_artifact(graph(), loss=loss, expect_params=there + 4)


def test_what_the_exporter_does_not_call_a_parameter_is_a_constant():
    """PyTorch's graphs name their parameters: a table that was registered as a buffer is not trained."""
    made = model([node("Add", ["x", "offset"], ["h"], "add"), LINEAR], {**HEAD, "offset": w(1, 4)})
    names = "\n".join(f"p_{name}: PARAMETER target='{name}'" for name in HEAD)
    made.graph.metadata_props.add(key=SIGNATURE, value=names)
    artifact = build_artifact(made, loss="softmax_cross_entropy")
    assert {entry.name for entry in artifact.manifest.parameters} == HEAD.keys()
