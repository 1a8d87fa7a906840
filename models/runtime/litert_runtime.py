"""The ``litert`` runtime: ``ai_edge_litert``, else ``tflite_runtime``, one thread.

Runs the artifact's ``.tflite`` files by direct tensor calls: the signature runner of tflite-runtime 2.14
allocates anew at each call and goes without XNNPACK (16 against 32 ms for a small CNN).
"""

from collections.abc import Mapping
from importlib import import_module
from typing import Any

import numpy as np

from fl_protocol.errors import ArtifactError, RuntimeUnavailable
from models.runtime.artifact import TrainingArtifact
from models.runtime.session import STEP, Array, GraphRunner, GraphSession, Session
from models.runtime.static_batch import StaticBatchSession

__all__ = ["LitertRuntime"]

_PACKAGES = ("ai_edge_litert", "tflite_runtime")
_ROWS_INPUT = "x"


class LitertRuntime:
    """Opens artifacts that were built for TFLite; the package is imported when it is first used."""

    @property
    def name(self) -> str:
        """``litert``."""
        return "litert"

    @property
    def suffix(self) -> str:
        """``.tflite``."""
        return ".tflite"

    def open(self, artifact: TrainingArtifact) -> Session:
        """See ``Runtime.open``."""
        if STEP + self.suffix not in artifact.manifest.files:
            raise ArtifactError(
                f"the artifact {artifact.manifest.name!r} holds no graphs for the litert runtime",
                hint="build it with --runtimes onnx,tflite",
            )
        loader = _Loader(_interpreter_class())
        session = GraphSession(self.name, artifact, loader.load, suffix=self.suffix)
        return StaticBatchSession(session, rows=loader.rows)


class _Loader:
    """Loads graphs; ``rows`` is the batch that the ones loaded so far are made for."""

    def __init__(self, interpreter_class: Any) -> None:
        self._interpreter_class = interpreter_class
        self.rows = 0

    def load(self, file: str, content: bytes) -> GraphRunner:
        """See ``GraphSession``."""
        try:
            interpreter = self._interpreter_class(model_content=content, num_threads=1)
            # Asked for now: with XNNPACK, allocating turns a scalar into a vector of one value.
            inputs = {entry["name"]: entry for entry in interpreter.get_input_details()}
            outputs = {entry["name"]: entry for entry in interpreter.get_output_details()}
            interpreter.allocate_tensors()
        except (ValueError, RuntimeError) as error:
            raise ArtifactError(f"{file}: the litert runtime cannot load it: {error}") from None
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
                raise ArtifactError(f"{file}: the litert runtime cannot run it: {error}") from None
            return {
                name: interpreter.get_tensor(entry["index"]).reshape(entry["shape"])
                for name, entry in outputs.items()
            }

        return run


def _interpreter_class() -> Any:
    reasons = []
    for package in _PACKAGES:
        try:
            module = import_module(f"{package}.interpreter")
        except ImportError as error:
            reasons.append(str(error))
            continue
        if package == "tflite_runtime" and np.lib.NumpyVersion(np.__version__) >= "2.0.0":
            # It imports and then fails at the first model, with a SystemError.
            reasons.append(f"tflite_runtime cannot work with numpy {np.__version__}, only with 1.x")
            continue
        return module.Interpreter
    raise RuntimeUnavailable(
        f"the litert runtime cannot be imported: {'; '.join(reasons)}",
        hint="pip install 'lichen[litert]' (64-bit), or 'lichen[tflite]' (32-bit, Python 3.11)",
    )


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
