"""Modules of Flax NNX as pure functions, called as their signatures ask."""

import functools
import inspect
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from flax import nnx

from jaxunlearn.core.errors import ConfigError
from jaxunlearn.core.types import Key, Model, Variables

# arguments of a network's call that switch it between training and inference:
# their value in training
_SWITCHES = {
    "train": True,
    "training": True,
    "is_training": True,
    "deterministic": False,
    "use_running_average": False,
}


def signature(call: Any) -> inspect.Signature:
    """Returns the arguments of a callable; any, for one that does not tell them."""
    part = call if isinstance(call, functools.partial) else functools.partial(call)
    try:
        if isinstance(part.func, type):  # the metaclass of NNX hides the constructor's arguments
            own = functools.partial(part.func.__init__, None, *part.args, **part.keywords)  # type: ignore[misc]
            return inspect.signature(own)
        return inspect.signature(call)
    except (TypeError, ValueError):  # some callables have no signature
        return inspect.signature(lambda *args, **kwargs: None)


def switches(call: Any, train: bool) -> dict[str, bool]:
    """Returns the arguments of ``call`` that select the mode, set for ``train``."""
    parameters = signature(call).parameters
    return {name: value is train for name, value in _SWITCHES.items() if name in parameters}


def is_apply(call: Any) -> bool:
    """Tells a function ``(variables, x)``, mode switches apart, from a constructor.

    It can be called with two positional arguments, and neither is optional or named
    ``rngs``: such are the options of a constructor.
    """
    own = signature(call)
    keyword = (inspect.Parameter.KEYWORD_ONLY, inspect.Parameter.VAR_KEYWORD)
    first = [p for p in own.parameters.values() if p.kind not in keyword][:2]
    if any(p.name == "rngs" or p.default is not p.empty for p in first):
        return False
    return _fits(own, None, None, **switches(call, train=True))


def constructor(call: Any) -> Callable[[Any], Any] | None:
    """Returns ``rngs -> module`` if ``call`` can do with ``rngs`` alone, else ``None``."""
    own = signature(call)
    if _fits(own, rngs=None):
        return lambda rngs: call(rngs=rngs)
    return call if _fits(own, None) else None


def _fits(own: inspect.Signature, *args: Any, **kwargs: Any) -> bool:
    try:
        own.bind(*args, **kwargs)
    except TypeError:
        return False
    return True


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


def variables_of(module: nnx.Module) -> Variables:
    """Returns the variables of an ``nnx.Module`` as plain nested dictionaries.

    Args:
      module: any NNX module; its arrays are shared, not copied.

    Returns:
      ``{"params": ..., "batch_stats": ..., "other": ...}``, empty ones left out.
    """
    return _collect(nnx.split(module)[1])


def from_nnx(construct: Callable[[nnx.Rngs], nnx.Module]) -> tuple[Model, Variables]:
    """Builds the model of what ``construct`` makes, which is called once here, abstractly.

    Returns:
      The model, and its variables as ``jax.ShapeDtypeStruct``.
    """
    graphs: dict[bool, Any] = {}
    slots: list[_Slot] = []
    calls: list[Any] = []

    def describe(key: Key) -> Variables:
        module = _construct(construct, key)
        # of the base class: a network may have a `train` of its own
        nnx.Module.eval(module)
        graphs[False] = nnx.split(module)[0]
        nnx.Module.train(module)
        graphs[True], state = nnx.split(module)
        slots.extend(_slot(path, leaf) for path, leaf in nnx.to_flat_state(state))
        calls.append(type(module).__call__)
        return _collect(state)

    # Read off an abstract construction: nothing is drawn, and no module of the
    # user's is put into another mode.
    shapes = jax.eval_shape(describe, jax.random.key(0))
    (call,) = calls
    rngs = signature(call).parameters.get("rngs")

    def run(variables: Variables, x: jax.Array, key: Key | None) -> tuple[jax.Array, nnx.Module]:
        train = key is not None
        module = nnx.merge(graphs[train], _distribute(variables, slots, key))
        arguments: dict[str, Any] = dict(switches(call, train))
        if rngs is not None and (train or rngs.default is rngs.empty):
            stream = _stream(jax.random.key(0) if key is None else key, len(slots), ())
            arguments["rngs"] = nnx.Rngs(stream)
        return module(x, **arguments), module

    def apply_train(variables: Variables, x: jax.Array, key: Key) -> tuple[jax.Array, Variables]:
        logits, module = run(variables, x, key)
        return logits, _collect(nnx.split(module)[1])

    model = Model(
        init=lambda key: variables_of(_construct(construct, key)),
        apply=lambda variables, x: run(variables, x, None)[0],
        apply_train=apply_train,
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
