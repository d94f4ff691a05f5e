"""The functions and modules that the operations of a program belong to, by name.

An operation belongs to every Python function whose call it was made in (``gelu``, ``Block.mix``;
of a method ``__call__`` the class is meant, ``LayerNorm``), jitted or not, and to every
``jax.named_scope``, which is what the modules of Flax Linen and Equinox open.
"""

import dis
import functools
import re
from collections.abc import Iterator, Sequence
from types import CodeType
from typing import Any, NamedTuple

from jaxunlearn.jaxprs.primitives import Op

Stack = tuple[tuple[CodeType, int], ...]
"""Functions that wait for each other, outermost first, and where in its code each of them is."""


class _Caller(NamedTuple):
    """A call that operations were made in.

    Attributes:
      names: what it may be addressed by.
      call: the same for all operations of one call; for those of another one from the same
        place, too.
      inside: from the called function to the operation, or to the jitted function that it is
        part of; empty where ``call`` says it all.
      info: what the trace knows of the operation, or of that jitted call.
    """

    names: tuple[str, ...]
    call: Any
    inside: Stack = ()
    info: Any = None


def called(ops: Sequence[Op], name: str) -> list[tuple[str, tuple[Op, ...]]]:
    """Returns the calls of the functions, modules and scopes of a name.

    Of calls inside each other the outermost counts.

    Args:
      ops: in execution order.
      name: a regular expression that a name, or the end of a path of scopes such as
        ``Net/Block_0/LayerNorm_1``, matches as a whole.

    Returns:
      for each call the name that matched, and its operations.
    """
    pattern = re.compile(name)
    found: list[tuple[str, list[Op]]] = []
    run = list[_Caller]()
    for op in ops:
        match, caller = _first(pattern, op)
        if match is None or caller is None:
            run = []
        elif run and run[0].call == caller.call and not _begins_again(caller, run):
            found[-1][1].append(op)
            run.append(caller)
        else:
            found.append((match, [op]))
            run = [caller]
    return [(match, tuple(members)) for match, members in found]


def _begins_again(caller: _Caller, run: list[_Caller]) -> bool:
    """Tells that an operation belongs to another call, from the same place as the one before.

    As with ``for block in blocks: x = block(x)``: the first operation of the call is met once
    more, and the function, or what it has called, has no loop that holds all of them.
    """
    stack, first = caller.inside, run[0]
    if not stack or stack != first.inside or caller.info is first.info:
        return False
    for depth, (function, _) in enumerate(stack):
        here = {other.inside[depth : depth + 1] for other in run}
        if any(not one or one[0][0] is not function for one in here):
            break
        places = [one[0][1] for one in here]
        if any(start <= min(places) and max(places) <= end for start, end in _loops(function)):
            return False
        if len(here) > 1:
            break
    return True


@functools.lru_cache(maxsize=1024)
def _loops(function: CodeType) -> tuple[tuple[int, int], ...]:
    """Returns the first and the last place of each loop."""
    jumps = (one for one in dis.get_instructions(function) if "JUMP" in one.opname)
    ends = ((one.argval, one.offset) for one in jumps if isinstance(one.argval, int))
    return tuple((start, end) for start, end in ends if start < end)


class Own(NamedTuple):
    """Operations that are one step, because a rule of their own is given for it.

    Attributes:
      name: what the rule is given for.
      shown: the name in the program that it matched.
      ops: in execution order.
    """

    name: str
    shown: str
    ops: tuple[Op, ...]

    @property
    def whole(self) -> bool:
        """Tells that it is a call of a function or module, and not a primitive."""
        return self.name != self.ops[0].name


def own_steps(ops: Sequence[Op], given: Sequence[str]) -> list[Own]:
    """Returns what stands alone, because a rule is given for it by name.

    A name of a primitive among the operations means that; any other is looked for among the
    functions, modules and scopes. What lies inside one that is named is not seen; of two that
    overlap the name that comes first counts.
    """
    primitives = {op.name for op in ops}
    found: list[Own] = []
    taken: set[int] = set()
    for name in given:
        for shown, members in called(ops, name) if name not in primitives else ():
            outs = {out for op in members for out in op.outs}
            if taken.isdisjoint(outs):
                taken |= outs
                found.append(Own(name, shown, members))
    single = primitives.intersection(given)
    rest = (op for op in ops if op.name in single and taken.isdisjoint(op.outs))
    return found + [Own(op.name, op.name, (op,)) for op in rest]


def names(ops: Sequence[Op]) -> set[str]:
    """Returns all names that :func:`called` knows."""
    return {name for op in ops for caller in _callers(op) for name in caller.names}


def _first(pattern: re.Pattern[str], op: Op) -> tuple[str | None, _Caller | None]:
    for caller in _callers(op):
        for name in caller.names:
            if pattern.fullmatch(name):
                return name, caller
    return None, None


def _callers(op: Op) -> Iterator[_Caller]:
    """Yields the calls that an operation was made in, the outermost first."""
    outside: tuple[Any, ...] = ()
    path: list[str] = []
    for info in (*op.callers, op.source_info):
        # private parts of JAX: without them there are no names, and nothing else fails
        opened: tuple[Any, ...] = ()
        for scope in getattr(getattr(info, "name_stack", None), "stack", ()):
            name = getattr(scope, "name", None)
            if isinstance(name, str):
                opened = (*opened, id(scope))
                path.extend(name.split("/"))
                ends = tuple("/".join(path[k:]) for k in reversed(range(len(path))))
                yield _Caller(ends, (outside, opened))
        stack = _stack(info)
        for depth, (function, _) in enumerate(stack):
            call = (outside, tuple((id(f), place) for f, place in stack[:depth]), id(function))
            yield _Caller(_known_as(function.co_qualname), call, stack[depth:], info)
        outside = (*outside, id(info))


def _stack(info: Any) -> Stack:
    frames = getattr(getattr(info, "traceback", None), "raw_frames", None)
    if frames is None:
        return ()
    functions, places = frames()
    return tuple(zip(functions, places, strict=True))[::-1]


def _known_as(function: str) -> tuple[str, ...]:
    """Returns the names of a function: ``Block.mix`` and ``mix``, ``Norm`` for ``__call__``."""
    whole = function.rpartition("<locals>.")[2]
    owner, _, last = whole.rpartition(".")
    if not owner:
        return (last,)
    return (whole, owner) if last == "__call__" else (whole, last)
