"""From a network, however written, to pure functions of plain dictionaries.

The one door: nothing else in the library knows Flax. Variables are nested
dictionaries with string keys, ``{"params": ..., "batch_stats": ...}``; a
collection without entries is left out.
"""

import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx

from jaxunlearn.core.errors import ConfigError
from jaxunlearn.core.types import Key, Model, Variables
from jaxunlearn.models.nnx import constructor, from_nnx, is_apply, signature, switches


def functionalize(
    network: Any, sample_input: Any = None, *, init: Callable[[Key], Variables] | None = None
) -> Model:
    """Turns a network, whatever it is written in, into three pure functions.

    ``network`` is one of

    * a function ``apply(variables, x) -> logits``, in training as in inference,
      with ``init`` where fresh variables are needed;
    * a Linen module, with ``sample_input`` where fresh variables are needed;
    * a constructor of an ``nnx.Module``: a class or function that can be called with
      ``rngs=nnx.Rngs(...)`` alone, or with ``nnx.Rngs`` as its one argument;
    * an ``nnx.Module``: it is not changed, and fresh variables cannot be drawn;
      its own are ``variables_of(module)``;
    * a :class:`~jaxunlearn.core.types.Model`, returned as it is.

    Modules are put into training or inference mode, and arguments of their call
    named ``train``, ``training``, ``is_training``, ``deterministic`` and
    ``use_running_average`` are set accordingly. In NNX modules, ``nnx.Param`` is
    the collection ``"params"``, ``nnx.BatchStat`` ``"batch_stats"``, all else but
    random state ``"other"``.

    Args:
      network: see above.
      sample_input: a batch, any pytree of arrays or ``jax.ShapeDtypeStruct``; only shapes
        and dtypes are read, and only for Linen modules.
      init: ``key -> variables``, in place of the network's own.

    Returns:
      The model; for an equal network the same functions, so that nothing is compiled
      twice (``nnx.Module`` and what has no hash apart). The 64 networks used last are
      kept alive for this. As under ``jax.jit``, what a function reads from outside is
      read once.

    Raises:
      ConfigError: for anything else, or a constructor that does not return an
        ``nnx.Module``. ``init`` of the result raises it where fresh variables cannot
        be drawn.
    """
    if isinstance(network, Model):
        model = network
    elif isinstance(network, nnx.Module):  # which may change: not remembered
        model = _from_instance(network)
    else:
        like = None
        if sample_input is not None and _is_linen(network):
            leaves, form = jax.tree.flatten(sample_input)
            dtypes = [jax.dtypes.canonicalize_dtype(leaf.dtype) for leaf in leaves]
            shapes = [leaf.shape for leaf in leaves]
            like = form, tuple(map(jax.ShapeDtypeStruct, shapes, dtypes))
        try:
            hash(network)
        except TypeError:
            model = _make(network, like)
        else:
            model = _make_once(network, like)
    return model if init is None else model._replace(init=init)


# a tree that has a hash
_Like = tuple[Any, tuple[jax.ShapeDtypeStruct, ...]]


def _make(network: Any, like: _Like | None) -> Model:
    if _is_linen(network):
        return _from_linen(network, like)
    if not callable(network):
        raise ConfigError(
            "expected an nnx.Module or its constructor, a Linen module, a function "
            f"apply(variables, x) or a Model as network, got {type(network).__name__}"
        )
    kind = network.func if isinstance(network, functools.partial) else network
    if isinstance(kind, type):
        if not issubclass(kind, nnx.Module):
            raise ConfigError(f"expected an instance of {kind.__name__} as network, got the class")
    elif is_apply(network):
        return _from_function(network)
    construct = constructor(network)
    if construct is None:
        raise ConfigError(
            "expected a function apply(variables, x), or a constructor that needs rngs alone, "
            f"as network, got the arguments {signature(network)}"
        )
    return from_nnx(construct)[0]


# typed, since objects of different types may be equal (named tuples are)
_make_once = functools.lru_cache(maxsize=64, typed=True)(_make)


def _from_instance(module: nnx.Module) -> Model:
    graph, state = nnx.split(module)
    # a copy, since changing the mode would change the user's module
    model, _ = from_nnx(lambda rngs: nnx.merge(graph, state, copy=True))
    return model._replace(
        init=_cannot_draw(
            "expected a constructor `rngs -> nnx.Module` to draw fresh variables, got a "
            "module, whose own variables are `variables_of(module)`"
        )
    )


def _from_function(function: Callable[..., jax.Array]) -> Model:
    inference, training = switches(function, train=False), switches(function, train=True)
    return Model(
        init=_cannot_draw(
            "expected `init=` in functionalize(apply, init=...) to draw fresh variables, "
            "got a function alone"
        ),
        apply=lambda variables, x: function(variables, x, **inference),
        apply_train=lambda variables, x, key: (function(variables, x, **training), variables),
    )


def _cannot_draw(message: str) -> Callable[[Key], Variables]:
    def init(key: Key) -> Variables:
        raise ConfigError(message)

    return init


def _is_linen(network: Any) -> bool:
    # by name, so that Linen is imported only for those who use it
    return any(
        (kind.__module__, kind.__name__) == ("flax.linen.module", "Module")
        for kind in type(network).__mro__
    )


def _from_linen(network: Any, like: _Like | None) -> Model:
    call = type(network).__call__
    inference, training = switches(call, train=False), switches(call, train=True)

    def init(key: Key) -> Variables:
        assert like is not None
        form, leaves = like
        x = form.unflatten(jnp.zeros(leaf.shape, leaf.dtype) for leaf in leaves)
        return dict(network.init(key, x, **inference))

    def apply_train(variables: Variables, x: jax.Array, key: Key) -> tuple[jax.Array, Variables]:
        mutable = [name for name in variables if name != "params"]
        rngs = {"dropout": key}
        logits, updated = network.apply(variables, x, **training, mutable=mutable, rngs=rngs)
        return logits, {**variables, **updated}

    message = (
        "expected `sample_input` (a batch, or its jax.ShapeDtypeStruct) in "
        "functionalize(module, sample_input) to draw fresh variables, got a Linen module alone"
    )
    return Model(
        init=_cannot_draw(message) if like is None else init,
        apply=lambda variables, x: network.apply(variables, x, **inference),
        apply_train=apply_train,
    )


def check_model(
    model: Model,
    inputs: Any,
    num_classes: int | None = None,
    variables: Variables | None = None,
    labels: jax.Array | None = None,
) -> int:
    """Checks that a model maps its inputs to logits; nothing is computed.

    Args:
      model: the model.
      inputs: shape of one example; or a batch, any pytree of arrays or their shapes and
        dtypes (:func:`jaxunlearn.data.examples.inputs_like`).
      num_classes: ``K``; ``None`` accepts any.
      variables: arrays or ``jax.ShapeDtypeStruct``; ``None`` for those that the
        model would draw.
      labels: ``[N]``; where given, ``K`` must be large enough for them.

    Returns:
      ``K``.

    Raises:
      ConfigError: if the network refuses such inputs, its output is not
        ``[B, K]``, or training changes the structure of its variables.
    """
    x = inputs
    if isinstance(inputs, tuple | list) and all(isinstance(size, int) for size in inputs):
        x = jax.ShapeDtypeStruct((2, *inputs), jnp.float32)
    batch = jax.tree.leaves(x)[0].shape[0]
    shapes = ", ".join(str(leaf.shape) for leaf in jax.tree.leaves(x))
    key = jax.eval_shape(lambda: jax.random.key(0))
    if variables is None:
        variables = jax.eval_shape(model.init, key)
    try:
        logits = jax.eval_shape(model.apply, variables, x)
        trained, after = jax.eval_shape(model.apply_train, variables, x, key)
    except ConfigError:
        raise
    except (TypeError, ValueError, KeyError, AttributeError, AssertionError) as error:
        raise ConfigError(
            f"expected a network for inputs of shape {shapes}, got {type(error).__name__}: {error}"
        ) from error
    wanted = f"[{batch}, {'K' if num_classes is None else num_classes}]"
    for mode, output in (("inference", logits), ("training", trained)):
        shape = getattr(output, "shape", None)
        if shape is None:
            got: Any = type(output).__name__
        elif len(shape) == 2 and shape[0] == batch and num_classes in (None, shape[1]):
            got = None
        else:
            got = list(shape)
        if got is not None:
            raise ConfigError(
                f"expected logits of shape [B, K] = {wanted} for inputs of shape "
                f"{shapes}, got {got} in {mode} mode"
            )
    if _form(variables) != _form(after):
        raise ConfigError(
            "expected apply_train to return variables of the structure, shapes and dtypes "
            "that it was given, got others"
        )
    classes = int(logits.shape[1])
    if labels is not None and int(jnp.max(labels)) >= classes:
        raise ConfigError(
            f"model: expected logits for labels up to {int(jnp.max(labels))}, got {classes} classes"
        )
    return classes


def _form(variables: Variables) -> Any:
    leaves, structure = jax.tree.flatten(variables)
    return structure, [(jnp.shape(leaf), jnp.result_type(leaf)) for leaf in leaves]
