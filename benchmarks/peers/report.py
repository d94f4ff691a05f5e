"""Head and form of what every script prints: machine, versions and settings; JSON or a table."""

import argparse
import importlib.metadata
import json
import os
import platform
from typing import Any

import jax

import jaxunlearn


def about(
    *packages: str,
    options: argparse.Namespace | None = None,
    without: tuple[str, ...] = (),
    **more: Any,
) -> dict[str, Any]:
    """Returns machine, versions and settings of a measurement.

    Args:
      packages: whose versions are told besides that of JAX and of the library.
      options: of the script, all of which are told but ``json``.
      without: names of other options that are not told.
      more: what else is to be told, behind these.
    """
    given = {} if options is None else vars(options)
    return {
        "device": jax.devices()[0].device_kind,
        "cores": os.cpu_count(),
        "python": platform.python_version(),
        "jax": jax.__version__,
        "jaxunlearn": jaxunlearn.__version__,
        **{name: importlib.metadata.version(name) for name in packages},
        **{name: value for name, value in given.items() if name not in ("json", *without)},
        **more,
    }


def tell(told: dict[str, Any], as_json: bool, **found: Any) -> bool:
    """Prints all as JSON, or the head alone; tells whether a table has to follow."""
    if as_json:
        print(json.dumps({"about": told, **found}, indent=2))
    else:
        print(", ".join(f"{key} {value}" for key, value in told.items()))
    return not as_json
