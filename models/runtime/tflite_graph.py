"""Running a ``.tflite`` file in an interpreter: one for all packages that bring one.

By direct tensor calls: the signature runner of tflite-runtime 2.14 allocates anew at each call and goes
without XNNPACK (16 against 32 ms for a small CNN). Whatever is set is checked first: an interpreter takes
an array of another shape for what it is not, and may write past its end.
"""

import contextlib
import ctypes
from collections.abc import Mapping
from typing import Any

import numpy as np

from fl_protocol.errors import ArtifactError
from models.runtime.artifact import TrainingArtifact
from models.runtime.native_chatter import without_info_lines
from models.runtime.session import STEP, Array, GraphRunner, GraphSession, Session
from models.runtime.static_batch import StaticBatchSession

__all__ = ["SUFFIX", "check_built_for_tflite", "open_in"]

SUFFIX = ".tflite"
_ROWS_INPUT = "x"


def check_built_for_tflite(runtime: str, artifact: TrainingArtifact) -> None:
    """See that there is a step graph; before an interpreter is looked for, which would not help.

    Raises:
        ArtifactError: the artifact was built without.
    """
    if STEP + SUFFIX not in artifact.manifest.files:
        raise ArtifactError(
            f"the artifact {artifact.manifest.name!r} holds no graphs for the {runtime} runtime",
            hint="build it with --runtimes onnx,tflite",
        )


def open_in(interpreter_class: Any, runtime: str, artifact: TrainingArtifact) -> Session:
    """A session named ``runtime``, each of its graphs in an ``interpreter_class`` of one thread.

    Raises:
        ArtifactError: the interpreter cannot read the step graph.
    """
    loader = _Loader(interpreter_class, runtime)
    session = GraphSession(runtime, artifact, loader.load, suffix=SUFFIX, one_at_a_time=True)
    return StaticBatchSession(session, rows=loader.rows)


class _Loader:
    """Loads graphs; ``rows`` is the batch that the ones loaded so far are made for."""

    def __init__(self, interpreter_class: Any, runtime: str) -> None:
        self._interpreter_class = interpreter_class
        self._runtime = runtime
        self.rows = 0

    def load(self, file: str, content: bytes) -> GraphRunner:
        """See ``GraphSession``."""
        _trim()
        try:
            with without_info_lines():
                interpreter = self._interpreter_class(model_content=content, num_threads=1)
                # Asked for now: with XNNPACK, allocating turns a scalar into a vector of one value.
                inputs = {entry["name"]: entry for entry in interpreter.get_input_details()}
                outputs = {entry["name"]: entry for entry in interpreter.get_output_details()}
                interpreter.allocate_tensors()
        except (ValueError, RuntimeError) as error:
            raise ArtifactError(f"{file}: the {self._runtime} runtime cannot load it: {error}") from None
        _trim()
        if _ROWS_INPUT not in inputs or not len(inputs[_ROWS_INPUT]["shape"]):
            raise ArtifactError(f"{file}: the graph has no input {_ROWS_INPUT!r} with rows")
        rows = int(inputs[_ROWS_INPUT]["shape"][0])
        if self.rows not in (0, rows):
            raise ArtifactError(f"{file} is made for {rows} rows, another graph for {self.rows}")
        self.rows = rows

        def run(feeds: Mapping[str, Array]) -> dict[str, Array]:
            for name, entry in inputs.items():
                interpreter.set_tensor(entry["index"], _checked(file, entry, feeds.get(name)))
            try:
                interpreter.invoke()
            except (ValueError, RuntimeError) as error:
                raise ArtifactError(f"{file}: the {self._runtime} runtime cannot run it: {error}") from None
            return {
                name: interpreter.get_tensor(entry["index"]).reshape(entry["shape"])
                for name, entry in outputs.items()
            }

        return run


def _trim() -> None:
    """Give back what a graph that was let go held, and what allocating one took in passing.

    Once glibc has freed a block as large as these, it takes the next ones from its heap, and keeps them:
    7 MiB where a small CNN is trained after it was evaluated.
    """
    with contextlib.suppress(OSError, AttributeError):  # another C library has no such call
        ctypes.CDLL(None).malloc_trim(0)


def _checked(file: str, declared: Mapping[str, Any], array: Array | None) -> Array:
    name, shape = declared["name"], tuple(int(dim) for dim in declared["shape"])
    if array is None:
        raise ArtifactError(f"{file}: the graph needs {name!r}, which was not given")
    if array.shape != shape or array.dtype != np.dtype(declared["dtype"]):
        raise ArtifactError(
            f"{file}: the input {name!r} is {array.dtype}{list(array.shape)}, the graph wants "
            f"{np.dtype(declared['dtype'])}{list(shape)}"
        )
    return array
