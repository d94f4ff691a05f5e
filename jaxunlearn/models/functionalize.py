"""From a network, however written, to pure functions of plain dictionaries.

The one door: nothing else in the library knows Flax. Variables are nested
dictionaries with string keys, ``{"params": ..., "batch_stats": ...}``; a
collection without entries is left out.
"""

import functools
import inspect
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from flax import nnx

from jaxunlearn.errors import ConfigError
from jaxunlearn.types import Key, Model, Variables

__all__ = ["functionalize", "variables_of"]

# arguments of a network's call that switch it between training and inference:
# their value in training
_SWITCHES = {
    "train": True,
    "training": True,
    "is_training": True,
    "deterministic": False,
    "use_running_average": False,
}


def functionalize(
    network: Any, sample_input: Any = None, *, init: Callable[[Key], Variables] | None = None
) -> Model:
    """A network as three pure functions, whatever it is written in.

    ``network`` is one of

    * a constructor of an ``nnx.Module``: a class or function with an argument
      named ``rngs``, or a function of one argument, called with ``nnx.Rngs``;
    * an ``nnx.Module``: it is not changed, and fresh variables cannot be drawn;
      its own are ``variables_of(module)``;
    * a Linen module, with ``sample_input`` to draw its variables;
    * a function ``apply(variables, x) -> logits``, in training as in inference,
      with ``init`` where fresh variables are needed;
    * a :class:`~jaxunlearn.types.Model`, returned as it is.

    Modules are put into training or inference mode, and arguments of their call
    named ``train``, ``training``, ``is_training``, ``deterministic`` and
    ``use_running_average`` are set accordingly. In NNX modules, ``nnx.Param`` is
    the collection ``"params"``, ``nnx.BatchStat`` ``"batch_stats"``, all else but
    random state ``"other"``.

    Args:
      network: see above.
      sample_input: a batch, an array or ``jax.ShapeDtypeStruct``; only its shape
        and dtype are read. Needed for Linen modules.
      init: ``key -> variables``, in place of the network's own.

    Returns:
      The model.

    Raises:
      ConfigError: for anything else, a Linen module without ``sample_input``, or
        a constructor that does not return an ``nnx.Module``. ``init`` of the
        result raises it where fresh variables cannot be drawn.
    """
    if isinstance(network, Model):
        return network if init is None else network._replace(init=init)
    if isinstance(network, nnx.Module):
        graph, state = nnx.split(network)
        # a copy, since changing the mode would change the user's module
        model = _from_nnx(lambda rngs: nnx.merge(graph, state, copy=True))
        model = model._replace(
            init=_cannot_draw(
                "expected a constructor `rngs -> nnx.Module` to draw fresh variables, got a "
                "module, whose own variables are `variables_of(module)`"
            )
        )
    elif _is_linen(network):
        model = _from_linen(network, sample_input, init)
    elif not callable(network):
        raise ConfigError(
            "expected an nnx.Module or its constructor, a Linen module, a function "
            f"apply(variables, x) or a Model as network, got {type(network).__name__}"
        )
    elif (construct := _constructor(network)) is not None:
        model = _from_nnx(construct)
    else:
        model = _from_function(network)
    return model if init is None else model._replace(init=init)


def variables_of(module: nnx.Module) -> Variables:
    """The variables of an ``nnx.Module`` as plain nested dictionaries.

    Args:
      module: any NNX module; its arrays are shared, not copied.

    Returns:
      ``{"params": ..., "batch_stats": ..., "other": ...}``, empty ones left out.
    """
    return _collect(nnx.split(module)[1])


def _cannot_draw(message: str) -> Callable[[Key], Variables]:
    def init(key: Key) -> Variables:
        raise ConfigError(message)

    return init


def _from_function(function: Callable[..., jax.Array]) -> Model:
    inference, training = _switches(function, train=False), _switches(function, train=True)
    return Model(
        init=_cannot_draw(
            "expected `init=` in functionalize(apply, init=...) to draw fresh variables, "
            "got a function alone"
        ),
        apply=lambda variables, x: function(variables, x, **inference),
        apply_train=lambda variables, x, key: (function(variables, x, **training), variables),
    )


def _parameters(function: Any) -> Mapping[str, inspect.Parameter]:
    kind = function
    while isinstance(kind, functools.partial):
        kind = kind.func
    try:
        if isinstance(kind, type):  # the metaclass of NNX hides the constructor's arguments
            _, *own = inspect.signature(kind.__init__).parameters.items()  # type: ignore[misc]
            return dict(own)
        return inspect.signature(function).parameters
    except (TypeError, ValueError):  # some callables have no signature
        return {}


def _switches(call: Any, train: bool) -> dict[str, bool]:
    """The arguments of ``call`` that select the mode, set for ``train``."""
    parameters = _parameters(call)
    return {name: value is train for name, value in _SWITCHES.items() if name in parameters}


# --- Flax NNX ---------------------------------------------------------------


class _Slot(NamedTuple):
    """One array of an NNX module: where it lies, and in which collection it goes."""

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
    """The module's state as our variables; random state is left out."""
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
    """The inverse of :func:`_collect`, with random state drawn from ``key``."""
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


def _constructor(network: Any) -> Callable[[nnx.Rngs], nnx.Module] | None:
    """``rngs -> module`` if ``network`` looks like a constructor, else ``None``."""
    parameters = _parameters(network)
    if "rngs" in parameters:
        return lambda rngs: network(rngs=rngs)
    positional = (inspect.Parameter.POSITIONAL_ONLY, inspect.Parameter.POSITIONAL_OR_KEYWORD)
    required = [p for p in parameters.values() if p.default is p.empty and p.kind in positional]
    return network if len(required) == 1 else None


def _from_nnx(construct: Callable[[nnx.Rngs], nnx.Module]) -> Model:
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
    jax.eval_shape(describe, jax.random.key(0))
    (call,) = calls
    rngs = _parameters(call).get("rngs")

    def run(variables: Variables, x: jax.Array, key: Key | None) -> tuple[jax.Array, nnx.Module]:
        train = key is not None
        module = nnx.merge(graphs[train], _distribute(variables, slots, key))
        arguments: dict[str, Any] = dict(_switches(call, train))
        if rngs is not None and (train or rngs.default is rngs.empty):
            stream = _stream(jax.random.key(0) if key is None else key, len(slots), ())
            arguments["rngs"] = nnx.Rngs(stream)
        return module(x, **arguments), module

    def apply_train(variables: Variables, x: jax.Array, key: Key) -> tuple[jax.Array, Variables]:
        logits, module = run(variables, x, key)
        return logits, _collect(nnx.split(module)[1])

    return Model(
        init=lambda key: variables_of(_construct(construct, key)),
        apply=lambda variables, x: run(variables, x, None)[0],
        apply_train=apply_train,
    )


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


# --- Flax Linen -------------------------------------------------------------


def _is_linen(network: Any) -> bool:
    # by name, so that Linen is imported only for those who use it
    return any(
        (kind.__module__, kind.__name__) == ("flax.linen.module", "Module")
        for kind in type(network).__mro__
    )


def _from_linen(network: Any, sample_input: Any, init: Callable[[Key], Variables] | None) -> Model:
    call = type(network).__call__
    inference, training = _switches(call, train=False), _switches(call, train=True)

    def own_init(key: Key) -> Variables:
        x = jnp.zeros(sample_input.shape, sample_input.dtype)
        return dict(network.init(key, x, **inference))

    def apply_train(variables: Variables, x: jax.Array, key: Key) -> tuple[jax.Array, Variables]:
        mutable = [name for name in variables if name != "params"]
        rngs = {"dropout": key}
        logits, updated = network.apply(variables, x, **training, mutable=mutable, rngs=rngs)
        return logits, {**variables, **updated}

    if init is None and sample_input is None:
        raise ConfigError(
            "expected `sample_input` (a batch, or its jax.ShapeDtypeStruct) for a Linen module, "
            "got None"
        )
    return Model(
        init=own_init,
        apply=lambda variables, x: network.apply(variables, x, **inference),
        apply_train=apply_train,
    )
