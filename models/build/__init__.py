"""From a forward ONNX graph to a training artifact; needs the extra ``lichen[models]``."""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from models.build.builder import build_artifact

__all__ = ["build_artifact"]


def __getattr__(name: str) -> Any:
    """Import the builder when it is first used: opening this package must not need onnx."""
    if name != "build_artifact":
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from fl_protocol.errors import RuntimeUnavailable

    try:
        from models.build.builder import build_artifact
    except ImportError as error:
        raise RuntimeUnavailable(
            f"the builder cannot be imported: {error}", hint="pip install 'lichen[models]'"
        ) from None
    return build_artifact
