"""Calls of a network: the arguments that tell training from inference, keys, named axes."""

import functools
import inspect
import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from types import CodeType
from typing import Any, NamedTuple, get_args

import jax
import jax.numpy as jnp

from jaxunlearn.core.errors import ConfigError, brief

SWITCHES = {
    "train": True,
    "training": True,
    "is_train": True,
    "is_training": True,
    "train_mode": True,
    "training_mode": True,
    "deterministic": False,
    "use_running_average": False,
    "inference": False,
    "is_inference": False,
    "inference_mode": False,
    "eval": False,
    "is_eval": False,
    "evaluate": False,
    "eval_mode": False,
    "test": False,
    "testing": False,
    "is_test": False,
    "test_mode": False,
}
"""Arguments that switch a network between training and inference: their value in training."""

KEYS = ("key", "rng", "prng_key", "rng_key", "dropout_key", "dropout_rng")
"""Arguments that take a random key."""

_TRAINING = ("train", "training")
_INFERENCE = ("eval", "test", "inference", "evaluation", "testing", "infer", "predict", "valid")
# options that say what is returned, whatever the mode
_OTHER = re.compile("(return|output|capture|mutable|verbose|debug|sow)(_|$)")


class Modes(NamedTuple):
    """Arguments that users gave for the two modes, where names alone do not tell them.

    Attributes:
      train, test: keyword arguments of the network's call in training and in inference.
      streams: names of the random streams that training feeds.
    """

    train: Mapping[str, Any] = {}
    test: Mapping[str, Any] = {}
    streams: tuple[str, ...] | None = None


UNSAID = Modes()


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


def fits(own: inspect.Signature, *args: Any, **kwargs: Any) -> bool:
    """Tells whether a call with such arguments has all that it needs, and no more."""
    try:
        own.bind(*args, **kwargs)
    except TypeError:
        return False
    return True


def random_argument(call: Any, key: Any) -> dict[str, Any]:
    """Returns the argument of a call that takes a random key, if there is one.

    Args:
      key: ``None`` in inference: an argument with a default is left out then.
    """
    own = signature(call).parameters
    for name in KEYS:
        if name in own and (key is not None or own[name].default is inspect.Parameter.empty):
            return {name: key}
    return {}


def arguments(
    call: Any, taken: int, modes: Modes = UNSAID, *, free: tuple[str, ...] = ()
) -> tuple[dict[str, Any], dict[str, Any]]:
    """Returns the keyword arguments of a network's call in inference, and in training.

    Args:
      call: the network, as it is called.
      taken: how many positional arguments it is called with.
      modes: what the user said of them.
      free: further names that the caller takes.

    Raises:
      ConfigError: an argument that may be a switch, or needs a value, is not known by its name
        and is not among ``modes``; or these name an argument that the call has not.
    """
    where = getattr(inspect.unwrap(getattr(call, "func", call)), "__qualname__", "the network")
    own = list(signature(call).parameters.values())
    positional = [p for p in own if p.kind in (p.POSITIONAL_ONLY, p.POSITIONAL_OR_KEYWORD)]
    skipped = {p.name for p in positional[:taken]}
    rest = {p.name: p for p in own if p.name not in skipped}
    _expect_known(modes, rest, where, free)
    both: tuple[dict[str, Any], dict[str, Any]] = {}, {}
    for name, parameter in rest.items():
        found = _values(call, parameter, where, name in modes.train and name in modes.test)
        for values, value in zip(both, found or (), strict=False):
            values[name] = value
    return {**both[0], **modes.test}, {**both[1], **modes.train}


def _expect_known(
    modes: Modes, own: Mapping[str, inspect.Parameter], where: str, free: tuple[str, ...]
) -> None:
    if any(p.kind is p.VAR_KEYWORD for p in own.values()):
        return
    for name in {**modes.train, **modes.test}:
        if name not in own and name not in free:
            known = ", ".join(own) or "none"
            raise ConfigError(f"train, test: expected arguments of {where} ({known}), got {name!r}")


def _values(
    call: Any, parameter: inspect.Parameter, where: str, given: bool
) -> tuple[Any, Any] | None:
    """Returns the value of an argument in inference and in training; ``None`` for its default."""
    name, default = parameter.name, parameter.default
    variadic = parameter.kind in (parameter.VAR_POSITIONAL, parameter.VAR_KEYWORD)
    if given or variadic or name in (*KEYS, "rngs"):
        return None
    if name == "mode" or (isinstance(default, str) and default in (*_TRAINING, *_INFERENCE)):
        return _words(call, parameter, where)
    if name in SWITCHES:
        return not SWITCHES[name], SWITCHES[name]
    boolean = isinstance(default, bool) or parameter.annotation in (bool, "bool")
    if default is parameter.empty or (boolean and not _OTHER.match(name)):
        raise ConfigError(_unknown(parameter, where))
    return None


def _unknown(parameter: inspect.Parameter, where: str) -> str:
    name = parameter.name
    return (
        f"network: expected to know the argument {name!r} of {where}, which may tell training from "
        f"inference; say functionalize(..., train=dict({name}=...), test=dict({name}=...))"
    )


def _words(call: Any, parameter: inspect.Parameter, where: str) -> tuple[str, str]:
    """Returns the words for inference and training, of those that the network itself uses."""
    used = [word for word in get_args(parameter.annotation) if isinstance(word, str)]
    used = used or list(_texts(getattr(inspect.unwrap(call), "__code__", None)))
    if isinstance(parameter.default, str):
        used = [parameter.default, *used]
    train = [word for word in dict.fromkeys(used) if word in _TRAINING]
    test = [word for word in dict.fromkeys(used) if word in _INFERENCE]
    if len(train) > 1 or len(test) > 1 or not used[isinstance(parameter.default, str) :]:
        raise ConfigError(_unknown(parameter, where))
    if not train and not test:
        raise ConfigError(_unknown(parameter, where))
    # a network that compares with one word alone takes any other for the opposite
    return (test or ["eval"])[0], (train or ["train"])[0]


def _texts(code: CodeType | None) -> Iterator[str]:
    """Yields the texts that a function, and those within it, compare with."""
    for value in code.co_consts if code is not None else ():
        for item in value if isinstance(value, tuple | frozenset) else (value,):
            if isinstance(item, CodeType):
                yield from _texts(item)
            elif isinstance(item, str):
                yield item


def with_axes(run: Callable[..., Any]) -> Callable[..., Any]:
    """Returns a function in which a named axis that nobody maps over is an axis of length 1.

    Batch normalisation with an ``axis_name`` takes means over it; in a step of one device the
    batch is whole already.
    """

    def call(*args: Any, bound: tuple[str, ...] = ()) -> Any:
        try:
            return run(*args)
        except NameError as error:
            name = unbound(error)
            if name is None or name in bound:
                raise
        once = jax.vmap(lambda _: call(*args, bound=(*bound, name)), axis_name=name, axis_size=1)(
            jnp.zeros(1, jnp.int32)
        )
        return jax.tree.map(lambda leaf: leaf[0], once)

    return call


def unbound(error: NameError) -> str | None:
    """Returns the axis that JAX says nobody maps over; ``None`` if it says something else."""
    found = re.search(r"unbound axis name: (\S+?)\.?(\s|$)", str(error))
    return found[1] if found else None


def split_keys(key: jax.Array, names: tuple[str, ...]) -> dict[str, jax.Array]:
    """Returns a key for each stream; the first is the key itself."""
    return {
        name: key if number == 0 else jax.random.fold_in(key, number)
        for number, name in enumerate(names)
    }


def checked_modes(
    train: Mapping[str, Any] | None, test: Mapping[str, Any] | None, streams: Iterable[str] | None
) -> Modes:
    """Returns what the user said of the two modes.

    Raises:
      ConfigError: they are no dictionaries of names, or no names.
    """
    for name, given in (("train", train), ("test", test)):
        if given is not None and not isinstance(given, Mapping):
            raise ConfigError(f"{name}: expected a dictionary of arguments, got {brief(given)}")
    if streams is not None and (
        isinstance(streams, str) or not all(isinstance(name, str) for name in streams)
    ):
        raise ConfigError(f"streams: expected a tuple of names, got {brief(streams)}")
    return Modes(train or {}, test or {}, None if streams is None else tuple(streams))
