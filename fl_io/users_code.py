"""Code of the user's, by its name ``module:name``: imported, and made where it is a class."""

import importlib
import sys
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from fl_protocol.errors import ConfigError

__all__ = ["imported", "look_in", "made"]


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


def look_in(folder: str) -> None:
    """Look for modules of the user's in ``folder`` too, after all other places."""
    if folder and folder not in sys.path:
        sys.path.append(folder)  # last, so that a folder called models or tests hides nothing


def _loaded(name: str, what: str, folder: str, *, call: bool) -> Any:
    module_name, _, called = name.partition(":")
    if not module_name or not called:
        form = "module:Class" if call else "module:function"
        raise ConfigError(f"{name!r} names no {what}", hint=f"write {form}")
    look_in(folder)
    try:
        found = getattr(importlib.import_module(module_name), called)
        value = found() if call else found
    except MemoryError:
        raise
    except Exception as error:  # whatever a user's module raises as it is loaded is our caller's news
        then = f", then in {folder}," if folder else ""
        hint = f"python looks for it on its path (PYTHONPATH){then} and needs its packages installed"
        raise ConfigError(
            f"the {what} {name!r} cannot be {'made' if call else 'loaded'}: {type(error).__name__}: {error}",
            hint=_meant(module_name, called, folder, error) or hint,
        ) from error
    if not call and not callable(value):
        raise ConfigError(f"{name!r} is no {what}: it cannot be called")
    return value


def _meant(module_name: str, called: str, folder: str, error: Exception) -> str:
    """What to write in place of a name that is not there; empty where the error is another."""
    module = sys.modules.get(module_name)
    if module is not None and not hasattr(module, called):
        own = [word for word, value in vars(module).items() if callable(value) and not word.startswith("_")]
        near = _nearest(called, own)
        has = f"{module_name} has {', '.join(sorted(own)[:8]) or 'nothing that can be called'}"
        return f"did you mean {module_name}:{near}?" if near else has
    if isinstance(error, ModuleNotFoundError) and error.name == module_name and folder:
        near = _nearest(module_name, (path.stem for path in Path(folder).glob("*.py")))
        return f"did you mean {near}:{called}?" if near else ""
    return ""


def _nearest(word: str, known: Iterable[str]) -> str:
    import difflib  # only a faulty name needs it, and the agent's memory is counted

    return next(iter(difflib.get_close_matches(word, list(known), 1)), "")
