"""Matrix products: a transposed operand is only another layout."""

import math

import numpy as np

from models.build.tflite.attributes import integer, number
from models.build.tflite.elementwise import scalar
from models.build.tflite.replay import Laid, Layout, Replay, Value, translation
from models.runtime.onnx_reader import Node

__all__: list[str] = []


@translation("Gemm")
def _gemm(replay: Replay, node: Node, a: Value, b: Value, c: Value | None = None) -> Value:
    alpha, beta = (number(node, key, 1.0) for key in ("alpha", "beta"))
    flip_a, flip_b = (bool(integer(node, key, 0)) for key in ("transA", "transB"))
    bias = c if c is not None and alpha == beta == 1 and len(c.shape) == 1 else None
    product = _product(replay, a, b, flip_a=flip_a, flip_b=flip_b, bias=bias)
    if alpha != 1:
        product = replay.elementwise("MUL", product, scalar(alpha))
    if c is None or bias is not None:
        return product
    scaled = c if beta == 1 else replay.elementwise("MUL", c, scalar(beta))
    return replay.elementwise("ADD", product, scaled)


@translation("MatMul")
def _matmul(replay: Replay, node: Node, a: Value, b: Value) -> Value:
    rank_a, rank_b = len(a.shape), len(b.shape)
    if rank_a == rank_b == 2:
        return _product(replay, a, b)
    if rank_b == 2 and rank_a > 2:
        rows = [math.prod(a.shape[:-1]), a.shape[-1]]
        flat = replay.new(replay.reshape(replay.tensor(a), rows))
        product = replay.tensor(_product(replay, flat, b))
        return replay.new(replay.reshape(product, [*a.shape[:-1], b.shape[1]]))
    rank = max(rank_a, rank_b)
    left, right = replay.widened(a, rank), replay.widened(b, rank)
    straight = tuple(range(rank))
    (tensor_a, flip_a), (tensor_b, flip_b) = (_as_stored(replay, v, straight) for v in (left, right))
    lead = np.broadcast_shapes(left.shape[:-2], right.shape[:-2])
    shape = [*lead, left.shape[-2], right.shape[-1]]
    return replay.new(replay.call("BATCH_MATMUL", [tensor_a, tensor_b], shape, adj_x=flip_a, adj_y=flip_b))


def _product(
    replay: Replay,
    a: Value,
    b: Value,
    *,
    flip_a: bool = False,
    flip_b: bool = False,
    bias: Value | None = None,
) -> Laid:
    """``a @ b`` of two matrices, read as they are stored."""
    left, right = (
        _as_stored(replay, value, (1, 0) if flip else (0, 1)) for value, flip in ((a, flip_a), (b, flip_b))
    )
    shape = (a.shape[1 if flip_a else 0], b.shape[0 if flip_b else 1])
    product = replay.call("BATCH_MATMUL", [left[0], right[0]], shape, adj_x=left[1], adj_y=right[1])
    if bias is not None:
        product = replay.call("ADD", [product, replay.tensor(bias)], shape)
    return replay.new(product)


def _as_stored(replay: Replay, value: Value, wanted: Layout) -> tuple[int, bool]:
    """The tensor of a matrix, and whether it is stored the other way round than ``wanted``."""
    laid = replay.laid(value)
    *lead, row, column = wanted
    flipped = (*lead, column, row)
    if flipped in laid.tensors and wanted not in laid.tensors:
        return replay.tensor(laid, flipped), True
    return replay.tensor(laid, wanted), False
