"""Modules of Flax NNX as pure functions: their state as variables, and back."""

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from flax import nnx

from jaxunlearn.core.errors import ConfigError
from jaxunlearn.core.keys import key_like
from jaxunlearn.core.types import Key, Model, Variables
from jaxunlearn.core.variables import as_dicts, check_like, in_form_of, leaves_of
from jaxunlearn.models.calls import (
    SWITCHES,
    UNSAID,
    Modes,
    arguments,
    random_argument,
    signature,
    with_axes,
)


class _Slot(NamedTuple):
    """One array of an NNX module, with its place there and its collection here."""

    path: tuple[Any, ...]
    collection: str
    shape: tuple[int, ...]


def _slot(path: tuple[Any, ...], leaf: Any) -> _Slot:
    kinds = {
        nnx.Param: "params",
        nnx.BatchStat: "batch_stats",
        nnx.RngKey: "rng key",
        nnx.RngState: "rng count",
    }
    names = [name for kind, name in kinds.items() if isinstance(leaf, kind)]
    return _Slot(path, names[0] if names else "other", leaf.shape)


def _collect(state: Any) -> Variables:
    """Reads the state of a module as variables; random state is left out."""
    variables: dict[str, Any] = {}
    for path, leaf in nnx.to_flat_state(state):
        slot = _slot(path, leaf)
        if slot.collection.startswith("rng"):
            continue
        # keys of lists become strings: checkpoints know no others
        *parents, name = (slot.collection, *map(str, path))
        node = variables
        for parent in parents:
            node = node.setdefault(parent, {})
        node[name] = leaf.get_value() if isinstance(leaf, nnx.Variable) else leaf
    return variables


def _distribute(variables: Variables, slots: Sequence[_Slot], key: Key | None) -> Any:
    """Inverts :func:`_collect`, with random state drawn from ``key``."""
    state = []
    for number, slot in enumerate(slots):
        if slot.collection == "rng key":
            # inference consumes no randomness, but the module's state has room for it
            value = _stream(jax.random.key(0) if key is None else key, number, slot.shape)
        elif slot.collection == "rng count":
            value = jnp.zeros(slot.shape, jnp.uint32)
        else:
            value = variables[slot.collection]
            for name in slot.path:
                value = value[str(name)]
        state.append((slot.path, value))
    return nnx.from_flat_state(state)


def _stream(key: Key, number: int, shape: tuple[int, ...]) -> Key:
    key = jax.random.fold_in(key, number)
    return jax.random.split(key, shape) if shape else key


def arrays_of(module: Any) -> Variables:
    """Returns the variables of an ``nnx.Module``, or of the ``nnx.State`` of one."""
    return _collect(nnx.split(module)[1] if isinstance(module, nnx.Module) else module)


def with_arrays(module: Any, variables: Variables) -> Any:
    """Returns a copy of an ``nnx.Module``, or of its ``nnx.State``, with these variables.

    Random state, modes and whatever else the module holds stay as they are.
    """
    graph, state = nnx.split(module) if isinstance(module, nnx.Module) else (None, module)
    check_like(variables, _collect(state))
    values = leaves_of(variables)
    made = []
    for path, leaf in nnx.to_flat_state(state):
        slot = _slot(path, leaf)
        if not slot.collection.startswith("rng"):
            value = jnp.asarray(values["/".join((slot.collection, *map(str, path)))])
            leaf = leaf.replace(value) if isinstance(leaf, nnx.Variable) else value
        made.append((path, leaf))
    new = nnx.from_flat_state(made)
    return new if graph is None else nnx.merge(graph, new, copy=True)


def _set_mode(module: nnx.Module, train: bool) -> None:
    # of the base class: a network may have a `train` of its own
    (nnx.Module.train if train else nnx.Module.eval)(module)
    for _, part in nnx.iter_modules(module):
        for name, value in vars(part).items():
            if name in SWITCHES and isinstance(value, bool):
                setattr(part, name, SWITCHES[name] is train)


def from_nnx(
    construct: Callable[[nnx.Rngs], nnx.Module], modes: Modes = UNSAID
) -> tuple[Model, Variables]:
    """Builds the model of what ``construct`` makes, which is called once here, abstractly.

    Args:
      modes: what the user said of the module's call.

    Returns:
      The model, and its variables as ``jax.ShapeDtypeStruct``.
    """
    graphs: dict[bool, Any] = {}
    slots: list[_Slot] = []
    calls: list[Any] = []

    def describe(key: Key) -> Variables:
        module = _construct(construct, key)
        _set_mode(module, train=False)
        graphs[False] = nnx.split(module)[0]
        _set_mode(module, train=True)
        graphs[True], state = nnx.split(module)
        slots.extend(_slot(path, leaf) for path, leaf in nnx.to_flat_state(state))
        calls.append(type(module).__call__)
        return _collect(state)

    # Read off an abstract construction: nothing is drawn, and no module of the
    # user's is put into another mode.
    shapes = jax.eval_shape(describe, key_like())
    (call,) = calls
    if modes.streams is not None:
        raise ConfigError("streams: expected none for an NNX module, which has its own, got some")
    options = dict(zip((False, True), arguments(call, 2, modes), strict=True))
    rngs = signature(call).parameters.get("rngs")

    def run(variables: Variables, x: jax.Array, key: Key | None) -> tuple[jax.Array, nnx.Module]:
        train = key is not None
        check_like(variables, shapes)
        module = nnx.merge(graphs[train], _distribute(as_dicts(variables), slots, key))
        own: dict[str, Any] = random_argument(call, key)
        if rngs is not None and (train or rngs.default is rngs.empty):
            stream = _stream(jax.random.key(0) if key is None else key, len(slots), ())
            own["rngs"] = nnx.Rngs(stream)
        return module(x, **{**own, **options[train]}), module

    def apply_train(variables: Variables, x: jax.Array, key: Key) -> tuple[jax.Array, Variables]:
        logits, module = run(variables, x, key)
        return logits, in_form_of(variables, _collect(nnx.split(module)[1]))

    model = Model(
        init=lambda key: arrays_of(_construct(construct, key)),
        apply=lambda variables, x: run(variables, x, None)[0],
        apply_train=with_axes(apply_train),
    )
    return model, shapes


def _construct(construct: Callable[[nnx.Rngs], nnx.Module], key: Key) -> nnx.Module:
    module = construct(nnx.Rngs(key))
    if not isinstance(module, nnx.Module):
        raise ConfigError(
            "expected a constructor that returns an nnx.Module, got one that returns "
            f"{type(module).__name__}"
        )
    # Flax takes a bare array made under a transformation for a static attribute,
    # where it would outlive the transformation.
    for _, part in nnx.iter_modules(module):
        for name, value in list(vars(part).items()):
            if isinstance(value, jax.core.Tracer):
                setattr(part, name, nnx.data(value))
    return module
