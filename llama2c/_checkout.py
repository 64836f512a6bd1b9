"""Keeps a plain checkout from standing in front of the installed package.

`python -m llama2c` and `python -m pytest` put the current directory first on sys.path. In a clone
whose package was installed by `pip install .` they so find this source directory, which has no
compiled `_core`. `llama2c/__init__.py` then takes every submodule from the installed copy, not only
`_core`, so that Python and C always match. After an editable install `_core` lies here, and nothing
is redirected.
"""

import os
import sys
from collections.abc import Iterable
from importlib.machinery import EXTENSION_SUFFIXES


def package_path(own: Iterable[str]) -> list[str]:
    """The `__path__` to use: the package's own or, if no `_core` is there, an installed copy's."""
    own = list(own)
    if any(_has_core(directory) for directory in own):
        return own
    others = (os.path.join(entry, "llama2c") for entry in sys.path)
    installed = next(filter(_has_core, others), None)
    if installed is None:
        raise ImportError(
            f"llama2c is not built: {own[0]} is its source, and no installed copy is on sys.path;"
            " run `pip install .` in the checkout"
        )
    return [installed]


def _has_core(directory: str) -> bool:
    return any(os.path.isfile(os.path.join(directory, f"_core{suffix}")) for suffix in EXTENSION_SUFFIXES)
