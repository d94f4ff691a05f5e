"""Memory that a program needs between its arguments and its results, told from its trace.

Operations run in the order of the trace. A value holds memory from the operation that makes it to
the last that reads it, unless it is computed within the operations that read it: what works
element by element, and only moves elements, is (a compiler fuses it), but where a product, a
convolution or a loop reads it whole, and where it is costly and read more than once. Arguments and
results hold no memory here: they are the caller's to count.

It is an estimate: a compiler may order, fuse and repeat operations as it likes.
"""

import math
from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from jaxunlearn.jaxprs import loops
from jaxunlearn.jaxprs.flatten import Flattener
from jaxunlearn.jaxprs.primitives import COSTLY, DRAWN, MOVED, READERS, RUNS_AGAIN, VIEWS, Op

Sized = Callable[[Any], tuple[str, float]]
"""``shape and dtype of a value -> (what it is counted as, its bytes)``."""


def bytes_of(aval: Any) -> int:
    """Returns the bytes of a value of some shape and dtype."""
    return math.prod(aval.shape) * aval.dtype.itemsize


def _whole(aval: Any) -> tuple[str, float]:
    return "values", bytes_of(aval)


def peak(closed: Any, sized: Sized = _whole) -> dict[str, float]:
    """Returns the bytes that a program holds when it holds the most, by what they are.

    Args:
      closed: a closed jaxpr.
      sized: see :data:`Sized`.
    """
    flat = Flattener()
    args = [flat.new(var.aval) for var in closed.jaxpr.invars]
    results = flat.inline(closed, args)
    return _sweep(flat, results, sized)


def _sweep(flat: Flattener, results: Sequence[int], sized: Sized) -> dict[str, float]:
    ops = flat.ops
    reads: dict[int, int] = defaultdict(int)
    whole = set[int]()  # values that some operation needs to be there
    for op in reversed(ops):
        view = op.name in VIEWS
        if not _reads_within(op) or (view and not whole.isdisjoint(op.outs)):
            whole.update(op.ins)
        for value in op.ins:
            # a view is read as often as what reads it
            reads[value] += max(1, sum(reads[out] for out in op.outs)) if view else 1
    held = {
        value
        for op in ops
        if op.name not in VIEWS
        for value in op.outs
        if not _made_within(op) or value in whole or (op.name in COSTLY and reads[value] > 1)
    }
    own = set(results)
    last: dict[int, int] = {}
    for place in range(len(ops) - 1, -1, -1):
        op = ops[place]
        # what is computed where it is read needs its operands until then
        until = [place if v in held or v in own else last.get(v, place) for v in op.outs]
        for value in op.ins:
            last[value] = max(last.get(value, 0), *until)
    ends: dict[int, list[int]] = defaultdict(list)
    for value, place in last.items():
        ends[place].append(value)
    now: dict[str, float] = defaultdict(float)
    live: dict[int, tuple[str, float]] = {}
    most: Mapping[str, float] = {}
    for place, op in enumerate(ops):
        if op.name in RUNS_AGAIN:  # what it carries on takes the place of what it got
            _drop(ends.pop(place, []), live, now)
        for value in op.outs:
            if value in held and value not in own:
                live[value] = sized(flat.avals[value])
                now[live[value][0]] += live[value][1]
        inside = _inside(op, sized)
        total = sum(now.values()) + sum(inside.values())
        if total > sum(most.values()):
            most = {what: now[what] + inside.get(what, 0) for what in {*now, *inside}}
        unread = [value for value in op.outs if value not in last]
        _drop([*ends.get(place, []), *unread], live, now)
    return {what: size for what, size in most.items() if size > 0}


def _drop(values: Sequence[int], live: dict[int, tuple[str, float]], now: dict[str, float]) -> None:
    for value in values:
        if value in live:
            what, size = live.pop(value)
            now[what] -= size


def _made_within(op: Op) -> bool:
    """Tells whether results can be computed within the operations that read them."""
    return op.row.elementwise or op.name in MOVED or op.name in VIEWS or op.name in DRAWN


def _reads_within(op: Op) -> bool:
    """Tells whether operands can be computed within this operation."""
    return _made_within(op) or op.name in READERS or op.row.reduces or op.row.role == "max"


def _inside(op: Op, sized: Sized) -> dict[str, float]:
    """Returns what a loop or a branch holds inside when it holds the most."""
    p = op.params
    if op.name == "scan":
        return peak(p["jaxpr"], sized)
    if op.name == "while":
        return peak(p["body_jaxpr"], sized)
    if op.name == "cond":
        chosen = loops.platform(p)
        branches = p["branches"] if chosen is None else [p["branches"][chosen]]
        found = [peak(branch, sized) for branch in branches]
        return max(found, key=lambda one: sum(one.values()))
    return {}
