"""Variables of a network in whatever containers: read by name, checked, and put back.

Users hold variables in dictionaries, in Flax's ``FrozenDict``, in mappings, named tuples and
modules of their own. Here they are compared by the names of their leaves, ``params/fc1/kernel``,
which do not tell the container, and what is computed of them goes back into the containers in
which they came.
"""

import os
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxunlearn.core.errors import ConfigError, did_you_mean
from jaxunlearn.core.trees import named_leaves, path_name

_OWN = {
    "Outcome": "give its .variables",
    "Model": "which holds functions; its .init(key) draws variables",
    "Gan": "which holds functions; its .init(key) draws variables",
}
_HELD = {
    ("flax", "Module"): "; give ju.variables_of(module)",
    ("flax", "State"): "; give ju.variables_of(state)",
    ("flax", "TrainState"): "; give ju.variables_of(state)",
    ("equinox", "Module"): "; give ju.variables_of(module)",
}


def advice_on(variables: Any) -> str:
    """Returns what to give in the place of a module or a training state; nothing for others.

    A function of the user's own may take one as its variables.
    """
    if type(variables) is tuple and len(variables) == 2:
        if is_kind(variables[0], "equinox", "Module") and is_kind(variables[1], "equinox", "State"):
            return "; give ju.variables_of((module, state))"
        # of a function of the user's own the pair may be the variables
        if all(isinstance(part, Mapping) for part in variables):
            return "; of Haiku give ju.variables_of((params, state))"
    return next((advice for kind, advice in _HELD.items() if is_kind(variables, *kind)), "")


def is_kind(value: Any, package: str, *names: str) -> bool:
    """Tells whether an object's class is, or derives from, one of a package, without importing it.

    Args:
      package: the first part of the module's name.
      names: of classes; any of them.
    """
    return is_class_of(type(value), package, *names)


def is_class_of(kind: type, package: str, *names: str) -> bool:
    """Tells the same of a class."""
    return any(k.__module__.split(".")[0] == package and k.__name__ in names for k in kind.__mro__)


def children(tree: Any) -> tuple[dict[str, Any], Any]:
    """Takes the uppermost container of a tree apart.

    Returns:
      What it holds by name, in the order of the tree, and the structure that puts a list of
      such together again; no names and ``None`` for a leaf.
    """
    form: Any
    pairs, form = jax.tree_util.tree_flatten_with_path(tree, is_leaf=lambda node: node is not tree)
    if len(pairs) == 1 and not pairs[0][0]:
        return {}, None
    names = [path_name(path) for path, _ in pairs]
    if isinstance(tree, Mapping):  # which JAX may know without its keys
        own = {place: str(key) for key, place in form.unflatten(range(len(pairs))).items()}
        names = [own.get(place, name) for place, name in enumerate(names)]
    return dict(zip(names, (child for _, child in pairs), strict=True)), form


def as_dicts(tree: Any) -> Any:
    """Returns a tree with dictionaries for its mappings and named tuples, all else as it is."""
    if not isinstance(tree, Mapping) and not hasattr(tree, "_fields"):
        return tree
    held, form = children(tree)
    return tree if form is None else {name: as_dicts(child) for name, child in held.items()}


def leaves_of(variables: Any) -> dict[str, Any]:
    """Returns the leaves by name, whatever the containers."""
    return named_leaves(as_dicts(variables))


def in_form_of(like: Any, made: Any) -> Any:
    """Returns the leaves of ``made`` in the containers of ``like``, and of its dtypes.

    Raises:
      ConfigError: the names of the leaves differ.
    """
    form: Any
    before, form = jax.tree.flatten(like)
    after = jax.tree.leaves(made)
    if form != jax.tree.structure(made):
        # a tree of the same form that holds the places of its leaves
        places, values = leaves_of(form.unflatten(range(len(before)))), leaves_of(made)
        _expect_names(dict.fromkeys(places, ""), values, "variables", whole=True)
        after = [values[name] for name in sorted(places, key=places.__getitem__)]
    return form.unflatten([_of_dtype(new, old) for new, old in zip(after, before, strict=True)])


def _of_dtype(leaf: Any, like: Any) -> Any:
    wanted = jnp.result_type(like)
    inexact = jnp.issubdtype(wanted, jnp.inexact) and jnp.issubdtype(leaf.dtype, jnp.inexact)
    return leaf.astype(wanted) if inexact and leaf.dtype != wanted else leaf


def check_variables(variables: Any, *, name: str = "variables") -> Any:
    """Returns variables whose leaves are arrays; numbers become arrays of a fixed type.

    Raises:
      TypeError: for what is held in the place of variables (an outcome, a model, a path), and
        for a leaf that is no array, with its path.
    """
    for kind, advice in _OWN.items():
        if is_kind(variables, "jaxunlearn", kind):
            raise TypeError(
                f"{name}: expected those of a model, got {type(variables).__name__}; {advice}"
            )
    if isinstance(variables, str | os.PathLike):
        raise TypeError(
            f"{name}: expected those of a model, got a path; ju.checkpoint.load reads them"
        )
    if isinstance(variables, list | tuple) and any(
        is_kind(v, "jaxunlearn", "Outcome") for v in variables
    ):
        raise TypeError(
            f"{name}: expected those of one model, got a {type(variables).__name__} of "
            f"{len(variables)} outcomes; give one's .variables"
        )
    for path, leaf in named_leaves(variables).items():
        if not _is_array(leaf):
            raise TypeError(
                f"{name}: expected arrays in containers that JAX knows, got "
                f"{type(leaf).__name__}{f' at {path}' if path else ''}{advice_on(variables)}"
            )
    return jax.tree.map(_settled, variables)


def _is_array(leaf: Any) -> bool:
    if isinstance(leaf, bool | int | float | complex):
        return True
    dtype = getattr(leaf, "dtype", None)
    return hasattr(leaf, "shape") and getattr(dtype, "kind", "V") not in "OUSMm"


def _settled(leaf: Any) -> Any:
    """Returns an array whose type no computation widens, which a loop could not carry."""
    if isinstance(leaf, np.ndarray | np.generic | jax.ShapeDtypeStruct):
        return leaf
    if isinstance(leaf, jax.Array) and not leaf.weak_type:
        return leaf
    return jax.lax.convert_element_type(leaf, jnp.result_type(leaf))


def check_like(variables: Any, like: Any, *, name: str = "variables", whole: bool = True) -> None:
    """Checks variables against those of the network, by name, shape and kind of number.

    Args:
      like: what the network has, arrays or ``jax.ShapeDtypeStruct``.
      whole: whether a leaf that the network has not is an error, too.

    Raises:
      ConfigError: names the first leaf that differs.
    """
    wanted, got = leaves_of(like), leaves_of(variables)
    described = {path: _described(leaf) for path, leaf in wanted.items()}
    _expect_names(described, got, name, whole)
    for path, leaf in wanted.items():
        if jnp.shape(leaf) != jnp.shape(got[path]):
            stacked = jnp.shape(got[path])[1:] == jnp.shape(leaf)
            raise ConfigError(
                f"{name}: expected {described[path]} at {path}, as the network has, got "
                f"{list(jnp.shape(got[path]))}{'; are these several models?' if stacked else ''}"
            )
        kinds = [jnp.issubdtype(jnp.result_type(one), jnp.inexact) for one in (leaf, got[path])]
        if kinds[0] != kinds[1]:
            raise ConfigError(
                f"{name}: expected {described[path]} at {path}, as the network has, got "
                f"{jnp.result_type(got[path])}"
            )


def _described(leaf: Any) -> str:
    return f"{jnp.result_type(leaf)} {list(jnp.shape(leaf))}"


def _expect_names(
    wanted: Mapping[str, str], got: Mapping[str, Any], name: str, whole: bool
) -> None:
    """Raises :class:`ConfigError` for the first name that is missing, or too many."""
    for path, described in wanted.items():
        if path in got:
            continue
        hint = did_you_mean(path, set(got) - set(wanted))
        if {other.split("/")[0] for other in got} == {"0", "1"}:
            hint = ""  # a pair, of which nothing is near by name
        elif got and all(f"params/{other}" in wanted for other in got):
            hint = "; did you mean {'params': ...}?"
        what = f"{path} ({described})" if described else path
        raise ConfigError(f"{name}: expected {what}, as the network has, got none{hint}")
    for path in got:
        if whole and path not in wanted:
            raise ConfigError(f"{name}: expected no {path}, which the network has not")
