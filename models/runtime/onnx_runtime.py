"""The ``onnx`` runtime: the stock ONNX Runtime, one thread, tuned for small memory."""

from collections.abc import Mapping
from functools import cache
from typing import Any

from fl_protocol.errors import ArtifactError, RuntimeUnavailable
from models.runtime.artifact import TrainingArtifact
from models.runtime.session import Array, GraphRunner, GraphSession, Session

__all__ = ["OnnxRuntime"]

_ONLY_FATAL = 3
_AS_REQUESTED = 1
"""How an arena grows: not to the next power of two."""


class OnnxRuntime:
    """Opens artifacts in ``onnxruntime``, which is imported when it is first used."""

    @property
    def name(self) -> str:
        """``onnx``."""
        return "onnx"

    @property
    def suffix(self) -> str:
        """``.onnx``."""
        return ".onnx"

    def open(self, artifact: TrainingArtifact) -> Session:
        """See ``Runtime.open``."""
        try:
            import onnxruntime
        except ImportError as error:
            raise RuntimeUnavailable(
                f"the onnx runtime cannot be imported: {error}",
                hint="pip install 'lichen[onnx]' (64-bit only), or use the numpy runtime",
            ) from None
        return GraphSession(self.name, artifact, lambda file, content: _load(onnxruntime, file, content))


def _load(onnxruntime: Any, file: str, content: bytes) -> GraphRunner:
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    options.inter_op_num_threads = 1
    options.log_severity_level = _ONLY_FATAL
    # Measured on a small CNN: the memory pattern costs 10 MB and gains nothing, the arena saves 5 to 15.
    options.enable_mem_pattern = False
    options.enable_cpu_mem_arena = True
    # Rewriting for blocked channels gains nothing where the gradient wants them unblocked again.
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_ENABLE_EXTENDED
    if _shared_arena():
        options.add_session_config_entry("session.use_env_allocators", "1")
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    options.add_session_config_entry("session.inter_op.allow_spinning", "0")
    try:
        session = onnxruntime.InferenceSession(content, options, providers=["CPUExecutionProvider"])
    except Exception as error:  # onnxruntime's own exceptions have no common base but this
        raise ArtifactError(f"{file}: onnxruntime cannot load it: {error}") from None
    inputs = {entry.name for entry in session.get_inputs()}
    outputs = [entry.name for entry in session.get_outputs()]

    def run(feeds: Mapping[str, Array]) -> dict[str, Array]:
        missing = inputs - feeds.keys()
        if missing:
            raise ArtifactError(f"{file}: the graph needs {sorted(missing)}, which was not given")
        try:
            values = session.run(outputs, dict(feeds) if len(feeds) == len(inputs) else _only(feeds, inputs))
        except Exception as error:  # as above
            raise ArtifactError(f"{file}: onnxruntime cannot run it: {error}") from None
        return dict(zip(outputs, values, strict=True))

    return run


@cache
def _shared_arena() -> bool:
    """Whether all sessions of this process take their memory from one arena, made at the first call.

    A step and an evaluation never run at once, so that what one has left serves the other.
    """
    import onnxruntime

    try:
        memory = onnxruntime.OrtMemoryInfo(
            "Cpu", onnxruntime.OrtAllocatorType.ORT_ARENA_ALLOCATOR, 0, onnxruntime.OrtMemType.DEFAULT
        )
        limits = onnxruntime.OrtArenaCfg(0, _AS_REQUESTED, -1, -1)
        onnxruntime.create_and_register_allocator(memory, limits)
    except Exception:  # a version that cannot, or an application that has one already
        return False
    return True


def _only(feeds: Mapping[str, Array], names: set[str]) -> dict[str, Array]:
    return {name: array for name, array in feeds.items() if name in names}
