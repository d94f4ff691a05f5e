"""How a network wants to be called, read off its signature."""

import functools
import inspect
from collections.abc import Callable
from typing import Any

__all__ = ["constructor", "is_apply", "signature", "switches"]

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
    """The arguments of a callable; those of anything for one that does not tell them."""
    part = call if isinstance(call, functools.partial) else functools.partial(call)
    try:
        if isinstance(part.func, type):  # the metaclass of NNX hides the constructor's arguments
            own = functools.partial(part.func.__init__, None, *part.args, **part.keywords)  # type: ignore[misc]
            return inspect.signature(own)
        return inspect.signature(call)
    except (TypeError, ValueError):  # some callables have no signature
        return inspect.signature(lambda *args, **kwargs: None)


def switches(call: Any, train: bool) -> dict[str, bool]:
    """The arguments of ``call`` that select the mode, set for ``train``."""
    parameters = signature(call).parameters
    return {name: value is train for name, value in _SWITCHES.items() if name in parameters}


def is_apply(call: Any) -> bool:
    """Whether ``call`` is a function ``(variables, x)``, mode switches apart.

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
    """``rngs -> module`` if ``call`` can be called with ``rngs`` alone, else ``None``."""
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
