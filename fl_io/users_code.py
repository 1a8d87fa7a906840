"""Code of the user's, by its name ``module:name``: imported, and made where it is a class."""

import importlib
import sys
from typing import Any

from fl_protocol.errors import ConfigError

__all__ = ["imported", "made"]


def imported(name: str, *, what: str, folder: str = "") -> Any:
    """What the ``module`` has under ``name``, which can be called; the module is looked for on Python's path,
    or else in ``folder``. ``what`` is its part in a sentence, as "trainer".

    Raises:
        ConfigError: there is none, its module cannot be loaded, or it cannot be called.
        MemoryError: its packages take more memory than there is.
    """
    return _loaded(name, what, folder, call=False)


def made(name: str, *, what: str, folder: str = "") -> Any:
    """An object of the class ``module:name``, made without arguments. As ``imported``."""
    return _loaded(name, what, folder, call=True)


def _loaded(name: str, what: str, folder: str, *, call: bool) -> Any:
    module_name, _, called = name.partition(":")
    if not module_name or not called:
        form = "module:Class" if call else "module:function"
        raise ConfigError(f"{name!r} names no {what}", hint=f"write {form}")
    if folder and folder not in sys.path:
        sys.path.append(folder)  # last, so that a folder called models or tests hides nothing
    try:
        found = getattr(importlib.import_module(module_name), called)
        value = found() if call else found
    except MemoryError:
        raise
    except Exception as error:  # whatever a user's module raises as it is loaded is our caller's news
        then = f", then in {folder}," if folder else ""
        raise ConfigError(
            f"the {what} {name!r} cannot be {'made' if call else 'loaded'}: {type(error).__name__}: {error}",
            hint=f"python looks for it on its path (PYTHONPATH){then} and needs its packages installed",
        ) from error
    if not call and not callable(value):
        raise ConfigError(f"{name!r} is no {what}: it cannot be called")
    return value
