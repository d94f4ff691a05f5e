"""Networks of Linen, Haiku and Equinox as pure functions; none is imported before it is used."""

import functools
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from jaxunlearn.core.errors import ConfigError, brief
from jaxunlearn.core.trees import named_leaves
from jaxunlearn.core.types import Key, Model, Variables
from jaxunlearn.core.variables import as_dicts, check_like, in_form_of, is_kind, leaves_of
from jaxunlearn.models.calls import (
    SWITCHES,
    Modes,
    arguments,
    random_argument,
    signature,
    split_keys,
    unbound,
    with_axes,
)


class Like(NamedTuple):
    """Shapes and dtypes of a batch, as a tree that has a hash."""

    form: Any
    leaves: tuple[jax.ShapeDtypeStruct, ...]

    def zeros(self) -> Any:
        """Returns a batch of zeros."""
        return self.form.unflatten(jnp.zeros(leaf.shape, leaf.dtype) for leaf in self.leaves)


def like(sample: Any) -> Like:
    """Reads shapes and dtypes off a batch, or takes the shape of one of float32.

    Raises:
      ConfigError: neither.
    """
    if isinstance(sample, tuple | list) and sample and all(map(_is_size, sample)):
        sample = jax.ShapeDtypeStruct(tuple(map(int, sample)), jnp.float32)
    leaves, form = jax.tree.flatten(sample)
    wrong = [leaf for leaf in leaves if not _is_array(leaf)]
    if wrong or not leaves or any(len(leaf.shape) < 1 for leaf in leaves):
        got = brief(sample) if wrong else "arrays without axes" if leaves else "no array"
        raise ConfigError(
            "sample_input: expected a batch of examples, or its shape, such as (1, 28, 28, 1), "
            f"got {got}"
        )
    dtypes = [jax.dtypes.canonicalize_dtype(leaf.dtype) for leaf in leaves]
    return Like(form, tuple(map(jax.ShapeDtypeStruct, [leaf.shape for leaf in leaves], dtypes)))


def cannot_draw(message: str) -> Callable[[Key], Variables]:
    """Returns an ``init`` that says why it draws nothing."""

    def init(key: Key) -> Variables:
        raise ConfigError(message)

    return init


def is_linen(network: Any) -> bool:
    """Tells an instance of a Linen module."""
    return any(
        (kind.__module__, kind.__name__) == ("flax.linen.module", "Module")
        for kind in type(network).__mro__
    )


def unbound_linen(network: Any) -> Any:
    """Returns the Linen module whose ``apply`` this is, under ``jit`` too; else what was given."""
    inner = network
    while hasattr(inner, "__wrapped__") and not is_linen(getattr(inner, "__self__", None)):
        inner = inner.__wrapped__
    module = getattr(inner, "__self__", None)
    if is_linen(module) and getattr(inner, "__name__", "") == "apply":
        return module
    return network


def from_linen(network: Any, sample: Like | None, modes: Modes) -> Model:
    """Returns the model of a Linen module.

    Every stream that it asks for is fed in training. A switch among the fields of the module
    is set, too, where the call has no such argument.
    """
    free = ("rngs", "method", "mutable")
    call = type(network).__call__
    inference, training = arguments(call, 2, modes, free=free)
    fields = {
        name: in_training
        for name, in_training in SWITCHES.items()
        if isinstance(getattr(network, name, None), bool) and name not in training
    }
    test = network.clone(**{name: not value for name, value in fields.items()})
    train = network.clone(**fields)
    # Linen draws from "params" for a stream that it was not given
    streams = ("dropout", "params") if modes.streams is None else modes.streams

    def init(key: Key) -> Variables:
        assert sample is not None
        own = {name: value for name, value in inference.items() if name != "rngs"}
        return dict(test.init(key, sample.zeros(), **random_argument(call, None), **own))

    def apply(variables: Variables, x: jax.Array) -> jax.Array:
        return test.apply(as_dicts(variables), x, **random_argument(call, None), **inference)

    def apply_train(variables: Variables, x: jax.Array, key: Key) -> tuple[jax.Array, Variables]:
        given = as_dicts(variables)
        options = {
            "mutable": [name for name in given if name != "params"],
            "rngs": split_keys(key, streams),
            **training,
        }
        logits, updated = train.apply(given, x, **random_argument(call, key), **options)
        return logits, in_form_of(variables, {**given, **updated})

    message = (
        "expected `sample_input` (a batch, or its jax.ShapeDtypeStruct) in functionalize(module, "
        "sample_input), or init=, to draw fresh variables, got a Linen module alone"
    )
    draw = cannot_draw(message) if sample is None else with_axes(init)
    return Model(draw, apply, with_axes(apply_train))


def is_haiku(network: Any) -> bool:
    """Tells what ``hk.transform`` and ``hk.transform_with_state`` return."""
    return is_kind(network, "haiku", "Transformed", "TransformedWithState")


def from_haiku(network: Any, sample: Like | None, modes: Modes) -> Model:
    """Returns the model of a transformed pair; its variables are ``{"params", "state"}``."""
    stateful = is_kind(network, "haiku", "TransformedWithState")
    names = list(signature(network.apply).parameters)
    before = 2 if stateful else 1
    keyed = names[before : before + 1] == ["rng"]
    if modes.streams is not None:
        raise ConfigError("streams: expected none for a Haiku network, which has one, got some")
    function = functools.partial(network.apply, *[None] * (before + keyed))
    inference, training = arguments(function, 1, modes)

    def init(key: Key) -> Variables:
        assert sample is not None
        # in training mode: in the other one, averages are read before they are there
        drawn = network.init(key, sample.zeros(), **training)
        params, state = drawn if stateful else (drawn, {})
        return {"params": params, "state": state} if state else {"params": params}

    def call(
        variables: Variables, x: jax.Array, key: Key | None, options: Mapping[str, Any]
    ) -> tuple[jax.Array, Variables]:
        given = as_dicts(variables)
        own = [given.get("params", {}), *([given.get("state", {})] if stateful else [])]
        found = network.apply(*own, *([key] if keyed else []), x, **options)
        if not stateful:
            return found, variables
        logits, state = found
        made = {**given, "state": state} if state else given
        return logits, in_form_of(variables, made)

    message = (
        "expected `sample_input` (a batch, or its jax.ShapeDtypeStruct) in functionalize(pair, "
        "sample_input), or init=, to draw fresh variables, got a transformed pair alone"
    )
    return Model(
        init=cannot_draw(message) if sample is None else with_axes(init),
        apply=lambda variables, x: call(variables, x, None, inference)[0],
        apply_train=with_axes(lambda variables, x, key: call(variables, x, key, training)),
    )


def is_equinox(network: Any) -> bool:
    """Tells an Equinox module, or the pair of one and its state, as ``make_with_state`` returns."""
    if type(network) is tuple and len(network) == 2:
        return is_kind(network[0], "equinox", "Module") and is_kind(network[1], "equinox", "State")
    return is_kind(network, "equinox", "Module")


def equinox_arrays(network: Any) -> Variables:
    """Returns the arrays of an Equinox module, or of it and its state, as variables."""
    return _nested({name: leaf for name, leaf in _placed(network) if name is not None})


def equinox_with(network: Any, variables: Variables) -> Any:
    """Returns an Equinox module, or it and its state, with these variables."""
    check_like(variables, equinox_arrays(network))
    values = leaves_of(variables)
    leaves = [leaf if name is None else values[name] for name, leaf in _placed(network)]
    return jax.tree.unflatten(jax.tree.structure(network), leaves)


def equinox_shapes(construct: Callable[[Key], Any]) -> Any:
    """Returns what a constructor makes, with shapes and dtypes in place of arrays."""
    import equinox

    return equinox.filter_eval_shape(construct, jax.random.key(0))


def _placed(network: Any) -> list[tuple[str | None, Any]]:
    """Returns the leaves of a module, with the names of those that are variables.

    Floating arrays are ``params``, other arrays ``other``, those of the state ``state``.
    """
    module, state = network if type(network) is tuple else (network, None)
    found: list[tuple[str | None, Any]] = []
    for name, leaf in named_leaves(module).items():
        if not _is_array(leaf):
            found.append((None, leaf))
        elif jnp.issubdtype(leaf.dtype, jnp.inexact):
            found.append((f"params/{name}", leaf))
        else:
            found.append((f"other/{name}", leaf))
    return found + [(f"state/{name}", leaf) for name, leaf in named_leaves(state).items()]


def _nested(leaves: Mapping[str, Any]) -> Variables:
    tree: dict[str, Any] = {}
    for path, leaf in leaves.items():
        *parents, name = path.split("/")
        node = tree
        for parent in parents:
            node = node.setdefault(parent, {})
        node[name] = leaf
    return tree


def from_equinox(
    network: Any, modes: Modes, construct: Callable[[Key], Any] | None = None
) -> Model:
    """Returns the model of an Equinox module, which takes one example: batches are mapped over.

    Args:
      network: the module, or it and its state; shapes and dtypes suffice for its arrays.
      modes: what the user said of its call.
      construct: ``key -> network``, where fresh variables are drawn.
    """
    import equinox

    if modes.streams is not None:
        raise ConfigError("streams: expected none for an Equinox module, which has one, got some")
    stateful = type(network) is tuple
    call = type(network[0] if stateful else network).__call__
    inference, training = arguments(call, 3 if stateful else 2, modes)
    keyed = bool(random_argument(call, ()))
    # the module's own arrays are let go
    network = jax.tree.map(lambda leaf: _shape(leaf) if _is_array(leaf) else leaf, network)

    def run(
        variables: Variables, x: Any, key: Key | None, options: Mapping[str, Any]
    ) -> tuple[jax.Array, Variables]:
        made = equinox_with(network, variables)
        module, state = made if stateful else (made, None)
        module = equinox.nn.inference_mode(module, key is None)

        def one(example: Any, state: Any, key: Key | None) -> Any:
            own = {**random_argument(call, key), **options}
            if stateful:
                return module(example, state, **own)
            return module(example, **own), None

        keys = None
        if keyed and key is not None:
            keys = jax.random.split(key, jax.tree.leaves(x)[0].shape[0])
        axes = (0, None, None if keys is None else 0)

        def mapped(axis: str | None) -> Any:
            named: dict[str, Any] = {} if axis is None else {"axis_name": axis}
            return jax.vmap(one, in_axes=axes, out_axes=(0, None), **named)(x, state, keys)

        try:
            logits, after = mapped(None)
        except NameError as error:  # the examples are the axis that batch normalisation names
            axis = unbound(error)
            if axis is None:
                raise
            made = equinox_with(network, variables)  # a state that was written to is used up
            state = made[1] if stateful else None
            logits, after = mapped(axis)
        if not stateful:
            return logits, variables
        return logits, in_form_of(variables, equinox_arrays((made[0], after)))

    message = (
        "expected a constructor `key -> module`, or init=, to draw fresh variables, got an Equinox "
        "module, whose own variables are `ju.variables_of(module)`"
    )
    return Model(
        init=cannot_draw(message)
        if construct is None
        else lambda key: equinox_arrays(construct(key)),
        apply=lambda variables, x: run(variables, x, None, inference)[0],
        apply_train=with_axes(lambda variables, x, key: run(variables, x, key, training)),
    )


def _is_size(value: Any) -> bool:
    whole = isinstance(value, int | np.integer) and not isinstance(value, bool)
    return whole and int(value) > 0


def _is_array(leaf: Any) -> bool:
    return hasattr(leaf, "shape") and hasattr(leaf, "dtype")


def _shape(leaf: Any) -> jax.ShapeDtypeStruct:
    return jax.ShapeDtypeStruct(leaf.shape, leaf.dtype)


_ADVICE = {
    ("keras", "Model", "Layer", "Operation"): (
        "a Keras model, whose variables lie outside JAX's functions; give `lambda variables, x: "
        "model.stateless_call(variables['params'], variables['state'], x)[0]`"
    ),
    ("tf_keras", "Model", "Layer"): "a Keras 2 model, which does not run on JAX",
    ("torch", "Module"): "a PyTorch module, which does not run on JAX",
    ("flax", "TrainState"): "a training state; give its module, and ju.variables_of(state) later",
}


def foreign(network: Any) -> str | None:
    """Returns what is known of a network that cannot be taken, and what to give instead."""
    for (package, *kinds), advice in _ADVICE.items():
        if is_kind(network, package, *kinds):
            return advice
    if hasattr(network, "_original_fn"):
        return "the apply or init of a Haiku pair; give the pair that hk.transform returns"
    inner = getattr(network, "__wrapped__", None)
    if inner is not None and is_equinox(inner):
        return (
            "an Equinox module under a transformation (vmap, jit); give the module itself, which "
            "takes one example: batches are mapped over"
        )
    return None
