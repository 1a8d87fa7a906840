"""From a forward ONNX graph to a training artifact; needs the extra ``lichen[models]``."""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from models.build.builder import build_artifact
    from models.build.inspection import inspect_model
    from models.build.keras_models import from_keras
    from models.build.sklearn_estimators import from_sklearn
    from models.build.torch_modules import from_torch
    from models.build.wrap import wrap_weights

__all__ = ["build_artifact", "from_keras", "from_sklearn", "from_torch", "inspect_model", "wrap_weights"]

_HOMES = {
    "build_artifact": "builder",
    "from_keras": "keras_models",
    "from_sklearn": "sklearn_estimators",
    "from_torch": "torch_modules",
    "inspect_model": "inspection",
    "wrap_weights": "wrap",
}


def __getattr__(name: str) -> Any:
    """Import a name when it is first used: opening this package must not need onnx."""
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from fl_protocol.errors import RuntimeUnavailable

    try:
        return getattr(import_module(f"{__name__}.{_HOMES[name]}"), name)
    except ImportError as error:
        raise RuntimeUnavailable(
            f"the builder cannot be imported: {error}", hint="pip install 'lichen[models]'"
        ) from None


def __dir__() -> list[str]:
    return list(__all__)
