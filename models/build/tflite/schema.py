"""The part of the TFLite schema (version 3) that our files use: numbers of operators, options, types.

From schema.fbs of TensorFlow; a number there never changes its meaning. Only operators that
tflite-runtime 2.14 (2023) has, in the versions that it has.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from types import MappingProxyType

import numpy as np

__all__ = ["OPERATORS", "PADDING_SAME", "PADDING_VALID", "SCHEMA_VERSION", "TENSOR_TYPES", "Operator", "Slot"]

SCHEMA_VERSION = 3
TENSOR_TYPES: Mapping[np.dtype[np.generic], int] = MappingProxyType(
    {np.dtype(np.float32): 0, np.dtype(np.int32): 2, np.dtype(np.bool_): 6}
)
"""TensorType of each element type that a graph of ours holds."""
PADDING_SAME, PADDING_VALID = 0, 1


@dataclass(frozen=True, slots=True, kw_only=True)
class Slot:
    """A field of an options table: number, ``bool`` | ``int8`` | ``int32`` | ``float32``, default."""

    number: int
    kind: str
    default: float = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class Operator:
    """A builtin operator: ``code`` in BuiltinOperator, ``options`` in BuiltinOptions (0 for none)."""

    code: int
    options: int = 0
    slots: Mapping[str, Slot] = field(default_factory=dict)


def _slots(*fields: tuple[str, int, str] | tuple[str, int, str, float]) -> Mapping[str, Slot]:
    return MappingProxyType(
        {
            name: Slot(number=number, kind=kind, default=sum(default))
            for name, number, kind, *default in fields
        }
    )


_STRIDES = (("padding", 0, "int8"), ("stride_w", 1, "int32"), ("stride_h", 2, "int32"))
_CONV = _slots(*_STRIDES, ("dilation_w", 4, "int32", 1), ("dilation_h", 5, "int32", 1))
_DEPTHWISE = _slots(
    *_STRIDES,
    ("depth_multiplier", 3, "int32"),
    ("dilation_w", 5, "int32", 1),
    ("dilation_h", 6, "int32", 1),
)
_POOL = _slots(*_STRIDES, ("filter_w", 3, "int32"), ("filter_h", 4, "int32"))
_REDUCER = _slots(("keep_dims", 0, "bool"))

OPERATORS: Mapping[str, Operator] = MappingProxyType(
    {
        "ABS": Operator(code=101, options=78),
        "ADD": Operator(code=0, options=11),
        "ARG_MAX": Operator(code=56, options=40, slots=_slots(("output_type", 0, "int8"))),
        "AVERAGE_POOL_2D": Operator(code=1, options=5, slots=_POOL),
        "BATCH_MATMUL": Operator(
            code=126, options=101, slots=_slots(("adj_x", 0, "bool"), ("adj_y", 1, "bool"))
        ),
        "BROADCAST_TO": Operator(code=130, options=104),
        "CAST": Operator(code=53, options=37, slots=_slots(("from_type", 0, "int8"), ("to_type", 1, "int8"))),
        "CEIL": Operator(code=104),
        "CONCATENATION": Operator(code=2, options=10, slots=_slots(("axis", 0, "int32"))),
        "CONV_2D": Operator(code=3, options=1, slots=_CONV),
        "COS": Operator(code=108, options=84),
        "DEPTHWISE_CONV_2D": Operator(code=4, options=2, slots=_DEPTHWISE),
        "DIV": Operator(code=42, options=29),
        "ELU": Operator(code=111),
        "EQUAL": Operator(code=71, options=53),
        "EXP": Operator(code=47, options=33),
        "FLOOR": Operator(code=8),
        "GATHER": Operator(code=36, options=23, slots=_slots(("axis", 0, "int32"))),
        "GREATER": Operator(code=61, options=44),
        "GREATER_EQUAL": Operator(code=62, options=45),
        "LESS": Operator(code=58, options=41),
        "LESS_EQUAL": Operator(code=63, options=46),
        "LOG": Operator(code=73),
        "LOGICAL_AND": Operator(code=86, options=62),
        "LOGICAL_NOT": Operator(code=87, options=63),
        "LOGICAL_OR": Operator(code=84, options=60),
        "LOGISTIC": Operator(code=14),
        "LOG_SOFTMAX": Operator(code=50, options=36),
        "MAXIMUM": Operator(code=55, options=39),
        "MAX_POOL_2D": Operator(code=17, options=5, slots=_POOL),
        "MEAN": Operator(code=40, options=27, slots=_REDUCER),
        "MINIMUM": Operator(code=57, options=39),
        "MUL": Operator(code=18, options=21),
        "NEG": Operator(code=59, options=42),
        "NOT_EQUAL": Operator(code=72, options=54),
        "ONE_HOT": Operator(code=85, options=61, slots=_slots(("axis", 0, "int32"))),
        "PAD": Operator(code=34, options=22),
        "PADV2": Operator(code=60, options=43),
        "POW": Operator(code=78, options=56),
        "REDUCE_MAX": Operator(code=82, options=27, slots=_REDUCER),
        "REDUCE_MIN": Operator(code=89, options=27, slots=_REDUCER),
        "RELU": Operator(code=19),
        "RESHAPE": Operator(code=22),
        "RESIZE_NEAREST_NEIGHBOR": Operator(code=97, options=74),
        "REVERSE_V2": Operator(code=105, options=81),
        "SCATTER_ND": Operator(code=122, options=97),
        "SELECT_V2": Operator(code=123, options=98),
        "SIN": Operator(code=66),
        "SLICE": Operator(code=65, options=48),
        "SOFTMAX": Operator(code=25, options=9, slots=_slots(("beta", 0, "float32"))),
        "SQRT": Operator(code=75),
        "STRIDED_SLICE": Operator(code=45, options=32),
        "SUB": Operator(code=41, options=28),
        "SUM": Operator(code=74, options=27, slots=_REDUCER),
        "TANH": Operator(code=28),
        "TRANSPOSE": Operator(code=39, options=26),
        "TRANSPOSE_CONV": Operator(code=67, options=49, slots=_slots(*_STRIDES)),
    }
)
"""Every operator that a file of ours may hold, by its name."""
