"""Exact checks of methods: closed forms in double precision, a module for each family.

Each module has ``CHECKS``: of a method's name, a function that returns rows ``(what, got, wanted,
tolerance)``. ``python -m tests.methods.exact`` prints them all.
"""

import importlib
import pkgutil


def checks():
    """Returns the function of each method that has one."""
    found = {}
    for module in pkgutil.iter_modules(__path__):
        if not module.name.startswith("_"):
            found |= importlib.import_module(f"{__name__}.{module.name}").CHECKS
    return found
