"""The ``numpy`` runtime: interprets an artifact's graphs in plain NumPy.

Slow beside an ML runtime, but it runs wherever NumPy does and is the reference for the others. In double
precision it is what golden steps are recorded with.
"""

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from fl_protocol.errors import ArtifactError
from models.runtime.artifact import TrainingArtifact
from models.runtime.numpy_ops import KERNELS, PLAIN
from models.runtime.onnx_reader import Attribute, Graph, Node, Value, read_model
from models.runtime.session import Array, GraphRunner, GraphSession, Session

__all__ = ["Call", "NumpyGraph", "NumpyRuntime", "checked_input"]

_ONNX_FLOAT, _ONNX_DOUBLE = 1, 11
_LEFT_OUT = ""
"""The name of an optional input that a node leaves out."""
# What a kernel raises on arrays or attributes that do not fit each other.
MISFITS = (ValueError, TypeError, IndexError, KeyError, AttributeError, OverflowError, MemoryError)


class NumpyRuntime:
    """Opens artifacts in NumPy; ``precision`` is float32, or float64 to record or to check with."""

    def __init__(self, precision: type[np.floating[Any]] = np.float32) -> None:
        self._precision = precision

    @property
    def name(self) -> str:
        """``numpy``."""
        return "numpy"

    @property
    def suffix(self) -> str:
        """``.onnx``."""
        return ".onnx"

    def open(self, artifact: TrainingArtifact) -> Session:
        """See ``Runtime.open``."""
        return GraphSession(self.name, artifact, self._load)

    def _load(self, file: str, content: bytes) -> GraphRunner:
        try:
            return NumpyGraph(read_model(content), precision=self._precision)
        except ArtifactError as error:
            raise ArtifactError(f"{file}: {error}") from None


class Call(NamedTuple):
    """One operator, its names resolved to places; ``done_with`` is what nobody reads afterwards."""

    node: Node
    function: Callable[..., Any]
    reads: tuple[int, ...]
    writes: int
    done_with: tuple[int, ...]


class NumpyGraph:
    """A graph made ready to run: names resolved once, intermediates freed after their last use.

    Values have places: ``start`` holds the inputs', then the constants, and ``calls`` fill the others.

    Raises:
        ArtifactError: an operator without a kernel, or nodes that are not in topological order.
    """

    def __init__(self, graph: Graph, *, precision: type[np.floating[Any]] = np.float32) -> None:
        self.inputs = graph.inputs
        self._precision = np.dtype(precision)
        self._wide = self._precision != np.float32
        self._places: dict[str, int] = {}
        constants = {name: self._widen(array) for name, array in graph.constants.items()}
        for name in [value.name for value in graph.inputs] + list(constants) + [_LEFT_OUT]:
            if name in self._places:
                raise ArtifactError(f"the value {name!r} is defined twice")
            self._places[name] = len(self._places)
        self.start: list[Array | None] = [*[None] * len(graph.inputs), *constants.values(), None]
        resolved = [self._resolve(node) for node in graph.nodes]
        try:
            self.outputs = [(value.name, self._places[value.name]) for value in graph.outputs]
        except KeyError as missing:
            raise ArtifactError(f"nothing computes the output {missing}") from None
        self.calls = self._with_ends_of_life(resolved)
        self.start += [None] * (len(self._places) - len(self.start))

    def __call__(self, feeds: Mapping[str, Array]) -> dict[str, Array]:
        """Run the graph.

        Raises:
            ArtifactError: an input is missing, of another type or shape, or an operator fails.
        """
        values = list(self.start)
        for place, declared in enumerate(self.inputs):
            given = checked_input(declared, feeds.get(declared.name))
            values[place] = self._widen(given) if self._wide else given
        with np.errstate(all="ignore"):
            for node, function, reads, writes, done_with in self.calls:
                try:
                    if len(reads) == 2:
                        first, second = reads
                        result = function(values[first], values[second])
                    elif len(reads) == 1:
                        result = function(values[reads[0]])
                    else:
                        result = function(*[values[place] for place in reads])
                    values[writes] = result if isinstance(result, np.ndarray) else np.asarray(result)
                except MISFITS as error:
                    raise ArtifactError(f"node {node.name!r} ({node.op}): {error}") from None
                for place in done_with:
                    values[place] = None
        return {name: np.asarray(values[place]) for name, place in self.outputs}

    def _resolve(self, node: Node) -> Call:
        kernel = KERNELS.get(node.op)
        if kernel is None:
            raise ArtifactError(
                f"node {node.name!r}: the numpy runtime has no operator {node.op!r}",
                hint="train with the onnx runtime here: pip install 'lichen[onnx]'",
            )
        try:
            reads = tuple(self._places[name] for name in node.inputs)
        except KeyError as missing:
            raise ArtifactError(f"node {node.name!r} reads {missing} before anything computes it") from None
        if len(node.outputs) != 1 or node.outputs[0] in self._places:
            raise ArtifactError(f"node {node.name!r} must compute one value that nothing else computes")
        attributes = {key: self._widen_attribute(node.op, key, it) for key, it in node.attributes.items()}
        writes = self._places[node.outputs[0]] = len(self._places)
        function = PLAIN.get(node.op) or partial(kernel, attributes)
        return Call(node=node, function=function, reads=reads, writes=writes, done_with=())

    def _with_ends_of_life(self, calls: Sequence[Call]) -> list[Call]:
        kept = set(range(len(self.start))) | {place for _, place in self.outputs}
        ended: list[Call] = []
        for call in reversed(calls):
            done_with = {place for place in call.reads if place not in kept}
            kept |= done_with
            ended.append(
                Call(
                    node=call.node,
                    function=call.function,
                    reads=call.reads,
                    writes=call.writes,
                    done_with=tuple(sorted(done_with)),
                )
            )
        return ended[::-1]

    def _widen(self, array: Array) -> Array:
        return array.astype(self._precision) if array.dtype == np.float32 != self._precision else array

    def _widen_attribute(self, op: str, key: str, attribute: Attribute) -> Attribute:
        if self._precision != np.float32 and op == "Cast" and key == "to" and attribute == _ONNX_FLOAT:
            return _ONNX_DOUBLE
        return attribute


def checked_input(declared: Value, array: NDArray[Any] | None) -> NDArray[Any]:
    """What was given for an input.

    Raises:
        ArtifactError: nothing, or another type or shape than the graph declares.
    """
    if array is not None and array.shape == declared.shape and array.dtype == declared.dtype:
        return array
    if array is None:
        raise ArtifactError(f"the graph needs the input {declared.name!r}, which was not given")
    wide = declared.dtype == np.float32 and array.dtype == np.float64
    fits = len(array.shape) == len(declared.shape) and all(
        size in (None, given) for size, given in zip(declared.shape, array.shape, strict=True)
    )
    if not fits or (array.dtype != declared.dtype and not wide):
        raise ArtifactError(
            f"the input {declared.name!r} is {array.dtype}{list(array.shape)}, the graph wants "
            f"{declared.dtype}{[size if size is not None else 'any' for size in declared.shape]}"
        )
    return array
