"""What a front door passes on to ``build_artifact``."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TypedDict

__all__ = ["BuildOptions"]


class BuildOptions(TypedDict, total=False):
    """The options of ``build_artifact`` that every front door takes; what they mean stands there."""

    optimizer: str
    metrics: Sequence[str] | None
    out: Path | str | None
    name: str | None
    train: Sequence[str] | None
    personal: Sequence[str] | None
    batch_norm: str | None
    correction: bool
    class_names: Sequence[str]
    normalisation: Mapping[str, float] | None
    runtimes: Sequence[str]
    batch: int
