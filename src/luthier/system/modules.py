"""Code of other packages, which a configuration may name (`kind: package.module:Class`): it is said what is imported before it
is."""

from __future__ import annotations

import importlib
from functools import cache
from importlib.machinery import ModuleSpec, PathFinder
from importlib.util import find_spec
from multiprocessing import parent_process
from types import ModuleType

from luthier.errors import EnvironmentProblem, UserError, excerpt
from luthier.system.streams import complain


@cache
def import_named(name: str, asked_by: str) -> ModuleType:
    """The module, imported after its name and file were said on standard error.

    Args:
        name: `package.module`
        asked_by: what of the configuration names it, for what is said

    Raises:
        UserError: there is no such module, or its own code fails.
        EnvironmentProblem: it needs a package that is not here.
    """
    package = name.partition(".")[0]
    spec = _found(name)
    if spec is None:
        fix = f"pip install the package that holds {name}" if package else ""
        raise UserError(asked_by, f"no module {excerpt(name)} can be imported", "package.module:Class", fix)
    if package != __name__.partition(".")[0] and parent_process() is None:
        complain(f"{asked_by}: runs the code of {name}, {spec.origin or 'a folder without code of its own'}")
    try:
        return importlib.import_module(name)
    except ModuleNotFoundError as error:
        needed = error.name or str(error)
        raise EnvironmentProblem(
            asked_by, f"{name} needs {needed}, which is not here", "", f"pip install the package that holds {needed}"
        ) from error
    except (Exception, SystemExit) as error:  # a stranger's code may raise anything
        found = f"the code of {name} fails: {type(error).__name__}: {excerpt(str(error))}"
        raise UserError(asked_by, found, "a module that can be imported", f"python -c 'import {name}'") from error


def _found(name: str) -> ModuleSpec | None:
    """Where a module lies, without running any code: asking Python for `a.b` would import `a`."""
    first, *rest = name.split(".")
    if not first.isidentifier():
        return None
    try:
        spec = find_spec(first)
    except ValueError:  # of a module that was made without one, as __main__
        return None
    path = first
    for part in rest:
        path = f"{path}.{part}"
        if spec is None or spec.submodule_search_locations is None:
            return None
        spec = PathFinder.find_spec(path, list(spec.submodule_search_locations))
    return spec
