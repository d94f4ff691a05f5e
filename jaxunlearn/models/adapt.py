"""From a network, however written, to pure functions of its variables.

The one door: nothing else in the library knows Flax. Variables are nested
dictionaries with string keys, ``{"params": ..., "batch_stats": ...}``; a
collection without entries is left out. Where users hold theirs in other
containers, they get them back in those.
"""

import functools
import inspect
import warnings
from collections.abc import Callable, Iterable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from jaxunlearn.core.errors import ConfigError, sentence
from jaxunlearn.core.types import Key, LanguageModel, Model, Variables
from jaxunlearn.core.variables import (
    advice_on,
    check_like,
    check_variables,
    children,
    in_form_of,
    is_class_of,
    is_kind,
)
from jaxunlearn.jaxprs.structure import sums_to_one
from jaxunlearn.models import frameworks
from jaxunlearn.models.calls import (
    KEYS,
    SWITCHES,
    UNSAID,
    Modes,
    arguments,
    checked_modes,
    fits,
    random_argument,
    signature,
    split_keys,
    with_axes,
)
from jaxunlearn.models.frameworks import Like, cannot_draw
from jaxunlearn.models.nnx import arrays_of, from_nnx, with_arrays


def functionalize(
    network: Any,
    sample_input: Any = None,
    *,
    init: Callable[[Key], Variables] | None = None,
    train: Mapping[str, Any] | None = None,
    test: Mapping[str, Any] | None = None,
    streams: Iterable[str] | None = None,
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
    * what ``hk.transform`` or ``hk.transform_with_state`` returns, with ``sample_input``
      where fresh variables are needed; variables are ``{"params": ..., "state": ...}``;
    * an Equinox module that takes one example (batches are mapped over), or the pair of one
      and its state, as ``eqx.nn.make_with_state`` makes it; or a constructor of either that can
      be called with ``key=`` alone. Its floating arrays are ``"params"``, other arrays
      ``"other"``;
    * a :class:`~jaxunlearn.core.types.Model`, returned as it is.

    Modules are put into training or inference mode, and arguments of their call that go by a
    usual name for it are set accordingly: ``train``, ``training``, ``is_training``,
    ``deterministic``, ``use_running_average``, ``inference``, ``mode="train"`` and others
    (``models.calls.SWITCHES``). Random streams and arguments named ``key`` or ``rng`` are fed in
    training alone. In NNX modules, ``nnx.Param`` is the collection ``"params"``,
    ``nnx.BatchStat`` ``"batch_stats"``, all else but random state ``"other"``. Batch
    normalisation with an ``axis_name`` takes its means over the batch.

    Args:
      network: see above.
      sample_input: a batch, any pytree of arrays or ``jax.ShapeDtypeStruct``; only shapes
        and dtypes are read, and only for Linen and Haiku. Or the shape of a batch of float32.
      init: ``key -> variables``, in place of the network's own.
      train, test: arguments of the network's call in training and in inference, where their
        names do not tell: ``train=dict(noisy=True), test=dict(noisy=False)``.
      streams: names of the random streams that training feeds. Default: for a Linen module
        all that it asks for, for a function none; a function gets them as ``rngs=``.

    Returns:
      The model; for an equal network the same functions, so that nothing is compiled
      twice (``nnx.Module``, Equinox and what has no hash apart). The 64 networks used last are
      kept alive for this. As under ``jax.jit``, what a function reads from outside is
      read once.

    Raises:
      ConfigError: for anything else; a constructor that does not return a module; or an
        argument of the call that may be a switch and is not known. ``init`` of the result
        raises it where fresh variables cannot be drawn.
    """
    modes = checked_modes(train, test, streams)
    network = frameworks.unbound_linen(network)
    advice = frameworks.foreign(network)
    if advice is not None:
        raise ConfigError(f"{_EXPECTED}, got {advice}")
    if isinstance(network, Model):
        if modes != UNSAID:
            raise ConfigError("network: expected none that is a Model with train, test or streams")
        model = network
    elif isinstance(network, nnx.Module):  # which may change: not remembered
        model = _from_instance(network, modes)
    elif frameworks.is_equinox(network):
        model = frameworks.from_equinox(network, modes)
    else:
        reads = frameworks.is_linen(network) or frameworks.is_haiku(network)
        sample = frameworks.like(sample_input) if reads and sample_input is not None else None
        own = (*(tuple(sorted(given.items())) for given in modes[:2]), modes.streams)
        try:
            hash((network, own))
        except TypeError:
            model = _make(network, sample, modes)
        else:
            model = _make_once(network, sample, own)
    return model if init is None else model._replace(init=init)


_EXPECTED = (
    "network: expected a function apply(variables, x), a Linen, NNX or Equinox module, a "
    "constructor of one of the last two that needs rngs or key alone, a Haiku pair or a Model"
)


def _make(network: Any, sample: Like | None, modes: Modes) -> Model:
    if frameworks.is_linen(network):
        return frameworks.from_linen(network, sample, modes)
    if frameworks.is_haiku(network):
        return frameworks.from_haiku(network, sample, modes)
    if not callable(network):
        raise ConfigError(f"{_EXPECTED}, got {type(network).__name__}")
    kind = network.func if isinstance(network, functools.partial) else network
    if isinstance(kind, type):
        if not issubclass(kind, nnx.Module) and not is_class_of(kind, "equinox", "Module"):
            raise ConfigError(f"expected an instance of {kind.__name__} as network, got the class")
    elif _is_apply(network, modes):
        return _from_function(network, modes)
    return _from_constructor(network, modes)


@functools.lru_cache(maxsize=64, typed=True)  # objects of different types may be equal
def _make_once(network: Any, sample: Like | None, own: tuple[Any, ...]) -> Model:
    return _make(network, sample, Modes(dict(own[0]), dict(own[1]), own[2]))


def _is_apply(call: Any, modes: Modes) -> bool:
    """Tells a function ``(variables, x)``, its other arguments apart, from a constructor.

    It can be called with two positional arguments, and neither is optional or takes random
    numbers: such are the arguments of a constructor, or of ``apply`` of a Haiku network.
    """
    own = signature(call)
    keyword = (inspect.Parameter.KEYWORD_ONLY, inspect.Parameter.VAR_KEYWORD)
    first = [p for p in own.parameters.values() if p.kind not in keyword][:2]
    if any(p.name in ("rngs", *KEYS) or p.default is not p.empty for p in first):
        return False
    told = {"mode", "rngs", *SWITCHES, *KEYS, *modes.train, *modes.test} - {p.name for p in first}
    names = [p.name for p in own.parameters.values() if p.annotation in (bool, "bool")]
    return fits(own, None, None, **{n: None for n in own.parameters if n in {*told, *names}})


def _from_constructor(call: Any, modes: Modes) -> Model:
    """Returns the model of the module that a function of ``rngs`` or of a key makes."""
    own = signature(call)
    names = [name for name in own.parameters if name in KEYS]
    keyed = None
    if not fits(own, rngs=None):
        if names and fits(own, **{names[0]: None}):
            keyed = lambda key: call(**{names[0]: key})  # noqa: E731
        elif not fits(own, None):
            raise ConfigError(
                f"{_EXPECTED}, got the arguments ({', '.join(own.parameters)}); others than "
                "variables and x are set by functionalize(..., train=dict(...), test=dict(...))"
            )
    elif inspect.isclass(call) and is_class_of(call, "equinox", "Module"):
        raise ConfigError(f"{_EXPECTED}, got {call.__name__} with the arguments {own}")
    if keyed is None:
        construct = (lambda rngs: call(rngs=rngs)) if fits(own, rngs=None) else call
        try:
            return from_nnx(construct, modes)[0]
        except Exception as error:
            if "rngs" in own.parameters or (isinstance(error, ConfigError) and modes != UNSAID):
                raise
            raise ConfigError(
                f"{_EXPECTED}, got a function of ({', '.join(own.parameters)}), for which "
                f"nnx.Rngs led to {type(error).__name__}: {sentence(error)}"
            ) from error
    made: list[Any] = []
    jax.eval_shape(lambda key: made.append(keyed(key)), jax.random.key(0))
    if isinstance(made[0], nnx.Module):
        return from_nnx(lambda rngs: keyed(rngs.params()), modes)[0]
    if frameworks.is_equinox(made[0]):
        return frameworks.from_equinox(frameworks.equinox_shapes(keyed), modes, keyed)
    raise ConfigError(
        f"{_EXPECTED}, got a function of {names[0]!r} that returns {type(made[0]).__name__}"
    )


def _from_instance(module: nnx.Module, modes: Modes) -> Model:
    graph, state = nnx.split(module)
    # a copy, since changing the mode would change the user's module
    model, _ = from_nnx(lambda rngs: nnx.merge(graph, state, copy=True), modes)
    return model._replace(
        init=cannot_draw(
            "expected a constructor `rngs -> nnx.Module` to draw fresh variables, got a "
            "module, whose own variables are `variables_of(module)`"
        )
    )


def _from_function(function: Callable[..., jax.Array], modes: Modes) -> Model:
    inference, training = arguments(function, 2, modes)

    def apply_train(variables: Variables, x: jax.Array, key: Key) -> tuple[jax.Array, Variables]:
        random = random_argument(function, key)
        if modes.streams is not None:
            random["rngs"] = split_keys(key, modes.streams)
        return function(variables, x, **random, **training), variables

    return Model(
        init=cannot_draw(
            "expected `init=` in functionalize(apply, init=...) to draw fresh variables, "
            "got a function alone"
        ),
        apply=lambda v, x: function(v, x, **random_argument(function, None), **inference),
        apply_train=with_axes(apply_train),
    )


def variables_of(held: Any) -> Variables:
    """Returns the variables of what users hold a network in, as plain nested dictionaries.

    Args:
      held: an ``nnx.Module`` or its ``nnx.State``; an Equinox module, or the pair of one and its
        state; a Flax ``TrainState``; the pair ``(params, state)`` of Haiku. Their arrays are
        shared, not copied.

    Returns:
      ``{"params": ..., "batch_stats": ..., "other": ...}``, empty ones left out; of a
      ``TrainState`` its ``params`` and each of its other fields that is a mapping.

    Raises:
      TypeError: for anything else.
    """
    if isinstance(held, nnx.Module | nnx.State):
        return arrays_of(held)
    if frameworks.is_equinox(held):
        return frameworks.equinox_arrays(held)
    if is_kind(held, "flax", "TrainState"):
        fields = _fields_of(held)
        return fields["params"] if "params" in children(fields["params"])[0] else fields
    if _is_pair(held):
        return dict(zip(("params", "state"), held, strict=True))
    mapping = ", which holds variables as they are: {'params': ...}"
    raise TypeError(
        "held: expected an NNX or Equinox module or their state, a TrainState or the pair "
        f"(params, state), got {type(held).__name__}{mapping if isinstance(held, Mapping) else ''}"
    )


def _is_pair(held: Any) -> bool:
    """Tells the pair ``(params, state)``, as ``init`` of a Haiku network returns it."""
    return type(held) is tuple and len(held) == 2 and all(isinstance(h, Mapping) for h in held)


def _fields_of(state: Any) -> dict[str, Any]:
    """Returns the fields of a training state that are variables."""
    others = {name: value for name, value in vars(state).items() if isinstance(value, Mapping)}
    others.pop("opt_state", None)
    return {"params": state.params, **{name: value for name, value in others.items() if value}}


def into(held: Any, variables: Variables) -> Any:
    """Returns what users hold a network in, with other variables: the way home.

    Args:
      held: what :func:`variables_of` takes, or variables in containers of the user's own. It is
        not changed. Random state, modes, optimizer state and step stay those of ``held``.
      variables: as methods return them, of ``held``'s names and shapes.

    Returns:
      An object of the same kind and form as ``held``.

    Raises:
      TypeError: variables that are none.
      ConfigError: the names or shapes of leaves differ.
    """
    variables = check_variables(variables)
    if isinstance(held, nnx.Module | nnx.State):
        return with_arrays(held, variables)
    if frameworks.is_equinox(held):
        return frameworks.equinox_with(held, variables)
    if is_kind(held, "flax", "TrainState"):
        own = variables_of(held)
        check_like(variables, own)
        made = in_form_of(own, variables)
        return held.replace(**({"params": made} if own is held.params else made))
    if frameworks.is_linen(held):
        raise TypeError("held: expected what holds variables, got a Linen module, which has none")
    if _is_pair(held) and isinstance(variables, Mapping):
        made = in_form_of(variables_of(held), variables)
        return made["params"], made["state"]
    check_like(variables, held)
    return in_form_of(held, variables)


def check_given(
    model: Model | LanguageModel, variables: Variables, inputs: Any, *, warn: bool = True
) -> list[Any]:
    """Checks variables against the network that they are for; nothing is computed.

    They are compared with what the network draws, where it can draw, and the network is traced.
    Warns of a network that ends in a softmax (:func:`warn_of_softmax`).

    Args:
      variables: arrays, or their shapes and dtypes.
      inputs: shapes and dtypes of a batch.
      warn: whether to look at the outputs at all.

    Returns:
      Shapes and dtypes of the outputs that were looked at.

    Raises:
      ConfigError: names the leaf that differs, or says what the network raised.
    """
    like = _drawn(model.init)
    try:
        if like is not None:
            check_like(variables, like, whole=False)
        return warn_of_softmax(model, inputs, variables) if warn else []
    except ConfigError as error:
        raise ConfigError(f"{error}{advice_on(variables)}") from error


@functools.lru_cache(maxsize=64)
def _drawn(init: Callable[[Key], Variables]) -> Variables | None:
    """Returns shapes and dtypes of what a network draws; ``None`` if it cannot."""
    try:
        return jax.eval_shape(init, jax.eval_shape(lambda: jax.random.key(0)))
    except Exception:  # of the user's own, which may need no tracing
        return None


def warn_of_softmax(
    model: Model | LanguageModel, inputs: Any, variables: Variables | None = None
) -> list[Any]:
    """Warns of a network that ends in a softmax, as far as its trace tells.

    Args:
      inputs: shapes and dtypes of a batch.
      variables: as in :func:`check_given`; ``None`` for those that the model would draw.

    Returns:
      Shapes and dtypes of its outputs.

    Raises:
      ConfigError: says what the network raised.
    """
    if variables is None:
        variables = jax.eval_shape(model.init, jax.eval_shape(lambda: jax.random.key(0)))
    wanted = "model, variables: expected a network and variables that go together"
    closed = _tried(lambda: jax.jit(model.apply).trace(variables, inputs), inputs, wanted).jaxpr
    if len(closed.out_avals) == 1 and sums_to_one(closed):
        warn_of_probabilities()
    return list(closed.out_avals)


def warn_of_probabilities() -> None:
    """Warns that a network returns probabilities, which losses and metrics take for logits."""
    warnings.warn(
        "model: expected logits, got outputs in [0, 1] that sum to 1: a softmax at the end "
        "squashes what losses and metrics read; leave it out (log-probabilities are fine)",
        stacklevel=4,
    )


def _tried(trace: Callable[[], Any], inputs: Any, wanted: str = "model: expected a network") -> Any:
    """Traces a network; what it raises is told with the shapes of its inputs."""
    try:
        return trace()
    except ConfigError:
        raise
    except Exception as error:
        shapes = ", ".join(str(leaf.shape) for leaf in jax.tree.leaves(inputs))
        raise ConfigError(
            f"{wanted} for inputs of shape {shapes}, got {type(error).__name__}: {sentence(error)}"
        ) from error


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
    logits = _tried(lambda: jax.eval_shape(model.apply, variables, x), x)
    trained, after = _tried(lambda: jax.eval_shape(model.apply_train, variables, x, key), x)
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
    largest = -1 if labels is None else int(np.max(np.asarray(labels)))
    if largest >= classes:
        raise ConfigError(
            f"model: expected logits for labels up to {largest}, got {classes} classes"
        )
    return classes


def _form(variables: Variables) -> Any:
    leaves, structure = jax.tree.flatten(variables)
    return structure, [(jnp.shape(leaf), jnp.result_type(leaf)) for leaf in leaves]
