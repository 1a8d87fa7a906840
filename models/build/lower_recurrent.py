"""Lowerings of recurrent layers: unrolled over their fixed number of steps.

ONNX's layouts: x [steps, batch, features], weights [directions, gates x hidden, ...]; gate orders
``i o f c`` (LSTM) and ``z r h`` (GRU).
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TypeAlias

import onnx

from fl_protocol.errors import ArtifactError
from models.build.graph import WorkingGraph, attribute, described
from models.build.lowering import fixed_sizes, lowering, optional_input

__all__: list[str] = []

_DEFAULTS = {"LSTM": ["Sigmoid", "Tanh", "Tanh"], "GRU": ["Sigmoid", "Tanh"], "RNN": ["Tanh"]}
_MAX_STEPS = 256


@dataclass(frozen=True, slots=True, kw_only=True)
class _Layer:
    """One direction of a layer: its weights transposed, ready for a product with rows."""

    graph: WorkingGraph
    hidden: int
    recurrent: str
    bias: str | None

    def part(self, value: str, gate: int, axis: int = 1) -> str:
        """The columns of one gate."""
        ends = (gate * self.hidden, (gate + 1) * self.hidden, axis)
        return self.graph.op("Slice", value, *(self.graph.integers(number) for number in ends))


State: TypeAlias = tuple[str | None, str | None]
"""Hidden state and cell, ``None`` for zeros."""
Cell: TypeAlias = Callable[[_Layer, str, State], tuple[str, str | None]]
"""``cell(layer, gates of x, state)`` gives the next state."""


@lowering("LSTM")
def _lstm(graph: WorkingGraph, node: onnx.NodeProto) -> tuple[str, ...]:
    """Hochreiter, Schmidhuber: Long short-term memory (1997)."""
    if optional_input(node, 7) or attribute(node, "input_forget", 0):
        raise ArtifactError(f"{described(node)} has peepholes or a coupled gate", hint="export a plain LSTM")
    return _unrolled(graph, node, 4, _lstm_cell)


def _lstm_cell(layer: _Layer, gates: str, state: State) -> tuple[str, str]:
    graph, (hidden, cell) = layer.graph, state
    if hidden is not None:
        gates = graph.op("Add", gates, graph.op("MatMul", hidden, layer.recurrent))
    if layer.bias is not None:
        gates = graph.op("Add", gates, layer.bias)
    admit, show, forget = (graph.op("Sigmoid", layer.part(gates, gate)) for gate in (0, 1, 2))
    fresh = graph.op("Mul", admit, graph.op("Tanh", layer.part(gates, 3)))
    cell = fresh if cell is None else graph.op("Add", graph.op("Mul", forget, cell), fresh)
    return graph.op("Mul", show, graph.op("Tanh", cell)), cell


@lowering("GRU")
def _gru(graph: WorkingGraph, node: onnx.NodeProto) -> tuple[str, ...]:
    """Cho et al.: Learning phrase representations (2014); the reset gate before or after the product."""
    after = bool(attribute(node, "linear_before_reset", 0))
    return _unrolled(graph, node, 3, _gru_cell_after if after else _gru_cell_before)


def _gru_cell_after(layer: _Layer, gates: str, state: State) -> tuple[str, None]:
    """The reset gate scales the product of the state, its bias included."""
    graph, (hidden, _) = layer.graph, state
    past = None if hidden is None else graph.op("MatMul", hidden, layer.recurrent)
    if layer.bias is not None:
        past = layer.bias if past is None else graph.op("Add", past, layer.bias)
    update, reset = (_gate(layer, gates, past, gate) for gate in (0, 1))
    new = layer.part(gates, 2)
    if past is not None:
        axis = 0 if past == layer.bias else 1
        new = graph.op("Add", new, graph.op("Mul", reset, layer.part(past, 2, axis)))
    return _mixed(graph, update, graph.op("Tanh", new), hidden), None


def _gru_cell_before(layer: _Layer, gates: str, state: State) -> tuple[str, None]:
    """The reset gate scales the state."""
    graph, (hidden, _) = layer.graph, state
    if layer.bias is not None:
        gates = graph.op("Add", gates, layer.bias)
    new = layer.part(gates, 2)
    if hidden is None:
        return _mixed(graph, _gate(layer, gates, None, 0), graph.op("Tanh", new), None), None
    cuts = [(0, 2 * layer.hidden), (2 * layer.hidden, 3 * layer.hidden)]
    gate_weights, new_weights = (
        graph.op("Slice", layer.recurrent, *(graph.integers(number) for number in (*cut, 1))) for cut in cuts
    )
    past = graph.op("MatMul", hidden, gate_weights)
    update, reset = (_gate(layer, gates, past, gate) for gate in (0, 1))
    recalled = graph.op("MatMul", graph.op("Mul", reset, hidden), new_weights)
    return _mixed(graph, update, graph.op("Tanh", graph.op("Add", new, recalled)), hidden), None


def _gate(layer: _Layer, gates: str, past: str | None, gate: int) -> str:
    value = layer.part(gates, gate)
    if past is not None:
        axis = 0 if past == layer.bias else 1
        value = layer.graph.op("Add", value, layer.part(past, gate, axis))
    return layer.graph.op("Sigmoid", value)


def _mixed(graph: WorkingGraph, update: str, new: str, old: str | None) -> str:
    """``(1 - update) * new + update * old``."""
    step = new if old is None else graph.op("Sub", new, old)
    kept = graph.op("Mul", graph.op("Sub", graph.constant(1), update), step)
    return kept if old is None else graph.op("Add", kept, old)


@lowering("RNN")
def _rnn(graph: WorkingGraph, node: onnx.NodeProto) -> tuple[str, ...]:
    """Elman: Finding structure in time (1990)."""
    return _unrolled(graph, node, 1, _rnn_cell)


def _rnn_cell(layer: _Layer, gates: str, state: State) -> tuple[str, None]:
    graph, (hidden, _) = layer.graph, state
    if layer.bias is not None:
        gates = graph.op("Add", gates, layer.bias)
    if hidden is not None:
        gates = graph.op("Add", gates, graph.op("MatMul", hidden, layer.recurrent))
    return graph.op("Tanh", gates), None


def _unrolled(graph: WorkingGraph, node: onnx.NodeProto, gates: int, cell: Cell) -> tuple[str, ...]:
    """The layer's outputs: all hidden states, the last one, and for an LSTM the last cell."""
    _check(graph, node)
    steps = graph.shape(node.input[0])[0]
    if not isinstance(steps, int) or steps > _MAX_STEPS:
        raise ArtifactError(
            f"{described(node)} takes {steps} steps, which must be fixed and at most {_MAX_STEPS}",
            hint="cut the signal into windows; convolve with a stride in front of the layer",
        )
    ways = {"forward": [False], "reverse": [True], "bidirectional": [False, True]}
    outputs, hiddens, cells = [], [], []
    for place, backwards in enumerate(ways[_text(attribute(node, "direction", b"forward"))]):
        layer, projected = _one_direction(graph, node, gates, place, cell)
        state: State = (_start(graph, node, 5, place), _start(graph, node, 6, place))
        seen: list[str] = []
        for step in reversed(range(steps)) if backwards else range(steps):
            row = graph.op("Slice", projected, *(graph.integers(number) for number in (step, step + 1, 0)))
            state = cell(layer, graph.op("Squeeze", row, graph.integers(0)), state)
            seen.append(graph.op("Unsqueeze", str(state[0]), graph.integers(0, 1)))
        outputs.append(_joined(graph, seen[::-1] if backwards else seen, 0))
        hiddens.append(graph.op("Unsqueeze", str(state[0]), graph.integers(0)))
        cells += [graph.op("Unsqueeze", state[1], graph.integers(0))] if state[1] else []
    everything = [_joined(graph, outputs, 1), _joined(graph, hiddens, 0)]
    return (*everything, _joined(graph, cells, 0)) if cells else tuple(everything)


def _one_direction(
    graph: WorkingGraph, node: onnx.NodeProto, gates: int, place: int, cell: Cell
) -> tuple[_Layer, str]:
    """The weights of one direction, and its inputs multiplied for all steps at once."""
    weights, recurrent = (_of_direction(graph, node, index, place) for index in (1, 2))
    hidden = fixed_sizes(graph, node, node.input[2])[2]
    turned = [graph.op("Transpose", value, perm=[1, 0]) for value in (weights, recurrent)]
    projected = graph.op("MatMul", node.input[0], turned[0])
    bias = None
    if optional_input(node, 3):
        both = _of_direction(graph, node, 3, place)
        width = gates * hidden
        own, bias = (
            graph.op("Slice", both, *(graph.integers(number) for number in (start, start + width, 0)))
            for start in (0, width)
        )
        projected = graph.op("Add", projected, own)
    return _Layer(graph=graph, hidden=hidden, recurrent=turned[1], bias=bias), projected


def _of_direction(graph: WorkingGraph, node: onnx.NodeProto, index: int, place: int) -> str:
    """One direction's part of an input whose dimension 0 is the direction."""
    value = str(node.input[index])
    if graph.shape(value)[0] != 1:
        value = graph.op("Slice", value, *(graph.integers(number) for number in (place, place + 1, 0)))
    return graph.op("Squeeze", value, graph.integers(0))


def _start(graph: WorkingGraph, node: onnx.NodeProto, index: int, place: int) -> str | None:
    """The state to begin with; ``None`` where it is left out or plainly zero."""
    name = optional_input(node, index)
    if name is None or _is_zero(graph, name):
        return None
    return _of_direction(graph, node, index, place)


def _is_zero(graph: WorkingGraph, name: str) -> bool:
    if name in graph.constants:
        return not graph.constants[name].any()
    made = next((node for node in graph.nodes if name in node.output), None)
    if made is not None and made.op_type == "ConstantOfShape":
        value = attribute(made, "value")
        return value is None or not onnx.numpy_helper.to_array(value).any()
    moved = ("Expand", "Identity", "Reshape", "Slice", "Squeeze", "Transpose", "Unsqueeze")
    return made is not None and made.op_type in moved and _is_zero(graph, str(made.input[0]))


def _joined(graph: WorkingGraph, values: Sequence[str], axis: int) -> str:
    return values[0] if len(values) == 1 else graph.op("Concat", *values, axis=axis)


def _check(graph: WorkingGraph, node: onnx.NodeProto) -> None:
    directions = 2 if _text(attribute(node, "direction", b"forward")) == "bidirectional" else 1
    functions = [_text(name) for name in attribute(node, "activations", [])]
    unusual = [
        name
        for name, present in (
            ("lengths per row", optional_input(node, 4) is not None),
            ("a clip of its own", attribute(node, "clip") is not None),
            ("the batch as first dimension", bool(attribute(node, "layout", 0))),
            ("other activations", bool(functions) and functions != _DEFAULTS[node.op_type] * directions),
        )
        if present
    ]
    if unusual:
        raise ArtifactError(
            f"{described(node)} has {', '.join(unusual)}",
            hint="export it with the default activations, rows of one length and the steps first",
        )


def _text(value: bytes | str) -> str:
    return value.decode() if isinstance(value, bytes) else value
