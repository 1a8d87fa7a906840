"""Open a training artifact and run its graphs. Needs neither onnx nor the builder."""

from models.runtime.artifact import TrainingArtifact
from models.runtime.choose import PREFERENCE, RUNTIMES, RuntimeTrial, open_session, runtimes_for, try_runtime
from models.runtime.flat import join_flat, split_flat
from models.runtime.session import Batch, Runtime, Session, StepResult, zero_slots
from models.runtime.tflite_rows import fixed_rows

__all__ = [
    "PREFERENCE",
    "RUNTIMES",
    "Batch",
    "Runtime",
    "RuntimeTrial",
    "Session",
    "StepResult",
    "TrainingArtifact",
    "fixed_rows",
    "join_flat",
    "open_session",
    "runtimes_for",
    "split_flat",
    "try_runtime",
    "zero_slots",
]
