"""A user's own network, named as ``package.module:factory``.

* :func:`load_factory`: imports it, from the installed packages or the current directory.
* :func:`use`: does so and lets bundles that name it be built in this process.

A bundle only *names* its factory. It is imported when the user names it too (``--module``), never because a bundle
says so: opening somebody's bundle must not run somebody's code.
"""

from __future__ import annotations

import importlib
import sys
from pathlib import Path

from subnets import architectures
from subnets.architectures import Factory
from subnets.errors import InputError


def load_factory(spec: str) -> Factory:
    """The callable that a user's ``package.module:factory`` stands for.

    Installed packages come first, then the current directory.

    Raises:
        InputError: it is not written so, cannot be imported, or is not callable.
    """
    module_name, _, attribute = spec.partition(":")
    if not attribute.isidentifier() or not all(part.isidentifier() for part in module_name.split(".")):
        raise InputError(f"--module '{spec}' is not package.module:factory; write for example --module my_nets:small")
    here = str(Path.cwd())
    if here not in sys.path:
        sys.path.append(here)  # behind, so that a file here cannot take the place of an installed package
    try:
        module = importlib.import_module(module_name)
    except ModuleNotFoundError as error:
        if error.name and (module_name == error.name or module_name.startswith(f"{error.name}.")):
            raise InputError(
                f"--module '{spec}': there is no module '{error.name}' in {here} or among the installed packages; "
                "run this where it lies, or install it"
            ) from None
        raise InputError(f"--module '{spec}': importing '{module_name}' needs '{error.name}'; install that") from None
    except Exception as error:  # it is the user's code, anything may come
        raise InputError(
            f"--module '{spec}': importing '{module_name}' failed ({type(error).__name__}: {error}); fix that first"
        ) from None
    factory = getattr(module, attribute, None)
    if not callable(factory):
        what = "no such name there" if factory is None else f"a {type(factory).__name__}"
        raise InputError(f"--module '{spec}': '{attribute}' in {module.__file__} is not a function ({what})")
    found: Factory = factory
    return found


def use(spec: str) -> Factory:
    """Imports a user's factory and registers it under its own name.

    Raises:
        as :func:`load_factory`.
    """
    factory = load_factory(spec)
    architectures.register(spec, factory)
    return factory
