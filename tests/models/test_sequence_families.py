"""Attention and recurrent models, built by hand as exporters write them, through all gates."""

import importlib.util
from pathlib import Path

import numpy as np
import pytest
from onnx import TensorProto

_SPEC = importlib.util.spec_from_file_location("forward", Path(__file__).parent / "forward.py")
forward = importlib.util.module_from_spec(_SPEC)
_SPEC.loader.exec_module(forward)

network, w, zeros, ones, i64 = forward.network, forward.w, forward.zeros, forward.ones, forward.i64
CLASSES = forward.CLASSES


ATTENTION = [
    ("MatMul", "n1 qkv.w", "qkv0", {}),
    ("Add", "qkv0 qkv.b", "qkv", {}),
    ("Split", "qkv thirds", "q k v", {"axis": -1}),
    *(("Reshape", f"{name} heads", f"{name}h", {}) for name in "qkv"),
    ("Transpose", "qh", "qt", {"perm": [0, 2, 1, 3]}),
    ("Transpose", "kh", "kt", {"perm": [0, 2, 3, 1]}),
    ("Transpose", "vh", "vt", {"perm": [0, 2, 1, 3]}),
    ("MatMul", "qt kt", "scores0", {}),
    ("Div", "scores0 root", "scores", {}),
    ("Softmax", "scores", "p", {"axis": -1}),
    ("MatMul", "p vt", "mixed", {}),
    ("Transpose", "mixed", "mt", {"perm": [0, 2, 1, 3]}),
    ("Reshape", "mt flat", "mf", {}),
    ("MatMul", "mf proj.w", "ao", {}),
    ("Add", "e ao", "r1", {}),
]
"""Two heads over six steps of eight features, split out of one product."""


def transformer():
    """An embedding, positions, one pre-norm encoder block with two heads, and a mean over the steps."""
    return network(
        (6,),
        [
            ("Gather", "tokens.w x", "e0", {}),
            ("Add", "e0 places.w", "e", {}),
            ("LayerNormalization", "e norm1.w norm1.b", "n1", {"axis": -1}),
            *ATTENTION,
            ("LayerNormalization", "r1 norm2.w norm2.b", "n2", {"axis": -1}),
            ("MatMul", "n2 up.w", "f0", {}),
            ("Add", "f0 up.b", "f1", {}),
            ("Div", "f1 root2", "f2", {}),
            ("Erf", "f2", "f3", {}),
            ("Add", "f3 one", "f4", {}),
            ("Mul", "f1 f4", "f5", {}),
            ("MatMul", "f5 down.w", "f6", {}),
            ("Add", "r1 f6", "r2", {}),
            ("ReduceMean", "r2 steps", "h", {"keepdims": 0}),
            ("Gemm", "h head.w head.b", "z", {"transB": 1}),
        ],
        {
            "tokens.w": w(11, 8, scale=1),
            "places.w": w(6, 8, scale=0.3),
            "norm1.w": ones(8),
            "norm1.b": zeros(8),
            "qkv.w": w(8, 24, scale=0.35),
            "qkv.b": zeros(24),
            "thirds": i64(8, 8, 8),
            "heads": i64(0, 6, 2, 4),
            "flat": i64(0, 6, 8),
            "root": np.float32(2),
            "proj.w": w(8, 8),
            "norm2.w": ones(8),
            "norm2.b": zeros(8),
            "up.w": w(8, 12, scale=0.35),
            "up.b": zeros(12),
            "root2": np.float32(2**0.5),
            "one": np.float32(1),
            "down.w": w(12, 8, scale=0.15),
            "steps": i64(1),
            "head.w": w(3, 8),
            "head.b": zeros(3),
        },
        kind=TensorProto.INT64,
    )


def folded_attention():
    """Self-attention as PyTorch's encoder layer has it: steps first, the heads folded into the batch."""
    heads = [
        *(
            node
            for name in "qkv"
            for node in (
                ("Reshape", f"{name} folded", f"{name}f", {}),
                ("Transpose", f"{name}f", f"{name}t", {"perm": [1, 0, 2]}),
            )
        ),
        ("Transpose", "kt", "ktt", {"perm": [0, 2, 1]}),
        ("MatMul", "qt ktt", "scores", {}),
        ("Softmax", "scores", "p", {"axis": -1}),
        ("MatMul", "p vt", "mixed", {}),
        ("Transpose", "mixed", "mt", {"perm": [1, 0, 2]}),
        ("Reshape", "mt rows", "flat", {}),
        ("Gemm", "flat proj.w proj.b", "o", {"transB": 1}),
        ("Reshape", "o back", "out", {}),
    ]
    return network(
        (5, 6),
        [
            ("Transpose", "x", "xt", {"perm": [1, 0, 2]}),
            ("Shape", "xt", "shape", {}),
            ("Gather", "shape one", "count", {}),
            ("Mul", "count two", "count2", {}),
            ("Unsqueeze", "count2 first", "count3", {}),
            ("Concat", "five count3 three", "folded", {"axis": 0}),
            ("Concat", "minus six", "rows", {"axis": 0}),
            *((("MatMul", f"xt {name}.w", name, {})) for name in "qkv"),
            *heads[:-1],
            ("Unsqueeze", "count first", "count1", {}),
            ("Concat", "five count1 six", "back", {"axis": 0}),
            heads[-1],
            ("Add", "out xt", "r", {}),
            ("ReduceMean", "r first", "h", {"keepdims": 0}),
            ("Gemm", "h head.w", "z", {"transB": 1}),
        ],
        {
            **{f"{name}.w": w(6, 6) for name in "qkv"},
            "one": np.array(1, np.int64),
            "two": np.array(2, np.int64),
            "first": i64(0),
            "five": i64(5),
            "three": i64(3),
            "six": i64(6),
            "minus": i64(-1),
            "proj.w": w(6, 6),
            "proj.b": zeros(6),
            "head.w": w(3, 6),
        },
    )


def recurrent(op, gates, *, directions=1, **attributes):
    """A recurrent layer over seven steps, as PyTorch exports ``batch_first``; its last state is read."""
    direction = "bidirectional" if directions == 2 else "forward"
    return network(
        (7, 3),
        [
            ("Transpose", "x", "xt", {"perm": [1, 0, 2]}),
            ("Shape", "xt", "shape", {"start": 1, "end": 2}),
            ("Concat", "count shape hidden", "start", {"axis": 0}),
            ("Expand", "zero start", "h0", {}),
            (
                op,
                f"xt rnn.w rnn.r rnn.b  h0{' h0' if op == 'LSTM' else ''}",
                "y last",
                {"hidden_size": 5, "direction": direction, **attributes},
            ),
            ("Transpose", "y", "yt", {"perm": [2, 0, 1, 3]}),
            ("Reshape", "yt flat", "steps", {}),
            ("Gather", "steps final", "h", {"axis": 1}),
            ("Gemm", "h head.w head.b", "z", {"transB": 1}),
        ],
        {
            "rnn.w": w(directions, gates * 5, 3, scale=0.5),
            "rnn.r": w(directions, gates * 5, 5, scale=0.5),
            "rnn.b": w(directions, 2 * gates * 5, scale=0.1),
            "count": i64(directions),
            "hidden": i64(5),
            "zero": np.float32(0),
            "flat": i64(0, 7, 5 * directions),
            "final": np.array(-1, np.int64),
            "head.w": w(3, 5 * directions),
            "head.b": zeros(3),
        },
    )


FAMILIES = {
    "transformer": (transformer, CLASSES, {}),
    "attention, heads in the batch": (folded_attention, CLASSES, {}),
    "gru": (lambda: recurrent("GRU", 3, linear_before_reset=1), CLASSES, {}),
    "gru, reset before": (lambda: recurrent("GRU", 3), CLASSES, {}),
    "lstm": (lambda: recurrent("LSTM", 4), CLASSES, {}),
    "lstm both ways": (lambda: recurrent("LSTM", 4, directions=2), CLASSES, {}),
    "rnn": (lambda: recurrent("RNN", 1), CLASSES, {}),
}


@pytest.mark.parametrize("family", FAMILIES)
def test_a_family_builds_and_learns(family):
    """Its gates pass, and it learns."""
    make, loss, options = FAMILIES[family]
    forward.assert_builds_and_learns(make(), loss, options)
