"""Packages that needle can do without: loaded at the first use, and named when they are missing.

In: the name of a module. Out: the module.
Invariant: importing needle loads none of them (matplotlib alone takes longer than all of needle), and a
missing one is an error that says what to install.
Next: files.py.
"""

import importlib
from typing import Any

from needle.errors import NeedleError

_MISSING = "{package} is not installed: `pip install 'needle-dl[{extra}]'` installs it."


class MissingExtraError(NeedleError, ImportError):
    """A package of an extra is needed, but not installed."""


def load_extra(module: str, package: str, extra: str = "viz") -> Any:
    """The module, imported now. Raises MissingExtraError with the command that installs `package`."""
    try:
        return importlib.import_module(module)
    except ImportError as error:
        raise MissingExtraError(_MISSING.format(package=package, extra=extra)) from error
