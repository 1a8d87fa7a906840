"""The ``litert`` runtime: the interpreter of ``ai_edge_litert``, one thread."""

from importlib import import_module

from fl_protocol.errors import RuntimeUnavailable
from models.runtime.artifact import TrainingArtifact
from models.runtime.session import Session
from models.runtime.tflite_graph import SUFFIX, check_built_for_tflite, open_in

__all__ = ["LitertRuntime"]


class LitertRuntime:
    """Opens artifacts that were built for TFLite; the package is imported when it is first used."""

    @property
    def name(self) -> str:
        """``litert``."""
        return "litert"

    @property
    def suffix(self) -> str:
        """``.tflite``."""
        return SUFFIX

    def open(self, artifact: TrainingArtifact) -> Session:
        """See ``Runtime.open``."""
        check_built_for_tflite(self.name, artifact)
        try:
            interpreter_class = import_module("ai_edge_litert.interpreter").Interpreter
        except ImportError as error:
            raise RuntimeUnavailable(
                f"the litert runtime cannot be imported: {error}",
                hint="pip install 'lichen[litert]' (64-bit only)",
            ) from None
        return open_in(interpreter_class, self.name, artifact)
