"""The ``tflite`` runtime: the interpreter of ``tflite_runtime``, one thread.

Google's last release of that name (2.14, October 2023) is for Python up to 3.11, also on 32-bit ARM. It does
not say so, but needs numpy 1.x: with 2.x it imports and then fails at its first model. A file that is no
model ends its process: what is opened must have been checked by its hash, in a process that may die.
"""

from importlib import import_module

import numpy as np

from fl_protocol.errors import RuntimeUnavailable
from models.runtime.artifact import TrainingArtifact
from models.runtime.session import Session
from models.runtime.tflite_graph import SUFFIX, check_built_for_tflite, open_in

__all__ = ["TfliteRuntime"]


class TfliteRuntime:
    """Opens artifacts that were built for TFLite; the package is imported when it is first used."""

    @property
    def name(self) -> str:
        """``tflite``."""
        return "tflite"

    @property
    def suffix(self) -> str:
        """``.tflite``."""
        return SUFFIX

    def open(self, artifact: TrainingArtifact) -> Session:
        """See ``Runtime.open``."""
        check_built_for_tflite(self.name, artifact)
        try:
            interpreter_class = import_module("tflite_runtime.interpreter").Interpreter
        except (ImportError, AttributeError) as error:
            raise RuntimeUnavailable(
                f"the tflite runtime cannot be imported: {error}",
                hint="pip install 'lichen[tflite]' (Python up to 3.11), or 'lichen[litert]' (64-bit)",
            ) from None
        try:
            return open_in(interpreter_class, self.name, artifact)
        except SystemError as error:
            # A C extension made for numpy 1.x, met by 2.x; only a real model finds that out.
            raise RuntimeUnavailable(
                f"the tflite runtime cannot work with numpy {np.__version__}: {error.__cause__ or error}",
                hint="it needs numpy 1.x: pip install 'lichen[tflite]' in an environment of its own",
            ) from None
