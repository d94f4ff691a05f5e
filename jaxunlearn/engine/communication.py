"""What devices send to each other: batches kept in place, and what a compiled program says.

Where parameters are divided along the axis of the batch a compiler has a choice: gather the
parameters of a layer, or the batch. The second costs every device the activations of the whole
batch; :func:`dividing_products` takes the choice away.
"""

import math
import re
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.extend.core import Jaxpr, Literal

from jaxunlearn.engine.sharding import Sharding, keep_divided

_PRODUCTS = ("dot_general", "conv_general_dilated", "custom_vjp_call")
_CALLS = ("pjit", "jit")


def dividing_products(step: Callable[..., Any], sharding: Sharding | None) -> Callable[..., Any]:
    """Returns ``step(state, batches, ...)`` that keeps products of a batch divided as it is.

    Followed through the trace of the step: what has the leading axis of a batch and is computed
    from it is of the batch, but for products that sum over it; and so are random numbers drawn
    for as many rows, the latent vectors of a GAN. Products inside loops and branches are left to
    the compiler.
    """
    if sharding is None or sharding.mesh.shape[sharding.mesh.axis_names[0]] == 1:
        return step

    def divided(*arguments: Any) -> Any:
        flat, tree = jax.tree.flatten(arguments)
        counts = [len(jax.tree.leaves(argument)) for argument in arguments]
        of_batch = [n == 1 for n, count in enumerate(counts) for _ in range(count)]
        closed, shapes = jax.make_jaxpr(
            lambda *leaves: step(*jax.tree.unflatten(tree, leaves)), return_shape=True
        )(*flat)
        drawn = {leaf.shape[:1] for leaf, own in zip(flat, of_batch, strict=True) if own} - {()}
        made = _evaluate(closed.jaxpr, closed.consts, flat, of_batch, drawn)[0]
        return jax.tree.unflatten(jax.tree.structure(shapes), made)

    return divided


def _evaluate(
    jaxpr: Jaxpr,
    consts: Sequence[Any],
    arguments: Sequence[Any],
    of_batch: Sequence[bool],
    drawn: set[tuple[int, ...]],
) -> tuple[list[Any], list[bool]]:
    """Computes a trace, and tells which results are of the batch.

    Args:
      drawn: leading axes of which random numbers are.
    """
    values = dict(zip(jaxpr.constvars, consts, strict=True))
    values |= dict(zip(jaxpr.invars, arguments, strict=True))
    marked = {v for v, own in zip(jaxpr.invars, of_batch, strict=True) if own}

    def read(atom: Any) -> Any:
        return atom.val if isinstance(atom, Literal) else values[atom]

    def is_marked(atom: Any) -> bool:
        return not isinstance(atom, Literal) and atom in marked

    def rows(atom: Any) -> tuple[int, ...]:
        return tuple(atom.aval.shape[:1])

    for eqn in jaxpr.eqns:
        inputs = [read(atom) for atom in eqn.invars]
        if eqn.primitive.name in _CALLS:
            inner = eqn.params["jaxpr"]
            marks = [is_marked(atom) for atom in eqn.invars]
            made, told = _evaluate(inner.jaxpr, inner.consts, inputs, marks, drawn)
        else:
            sizes = {rows(atom) for atom in eqn.invars if is_marked(atom)} - {()}
            if eqn.primitive.name == "random_bits":
                sizes = drawn
            if eqn.primitive.name == "concatenate" and eqn.params["dimension"] == 0:
                sizes = {rows(eqn.outvars[0])} if all(map(is_marked, eqn.invars)) else set()
            found = eqn.primitive.bind(*inputs, **eqn.primitive.get_bind_params(eqn.params))
            made = list(found) if eqn.primitive.multiple_results else [found]
            kept = not _sums_over_batch(eqn, is_marked)
            told = [kept and rows(variable) in sizes for variable in eqn.outvars]
            if eqn.primitive.name in _PRODUCTS:
                pairs = zip(made, told, strict=True)
                made = [keep_divided(a) if own and jnp.ndim(a) > 1 else a for a, own in pairs]
        for variable, value, own in zip(eqn.outvars, made, told, strict=True):
            values[variable] = value
            if own:
                marked.add(variable)
    return [read(atom) for atom in jaxpr.outvars], [is_marked(atom) for atom in jaxpr.outvars]


def _sums_over_batch(eqn: Any, is_marked: Callable[[Any], bool]) -> bool:
    """Tells whether an equation contracts, or moves, the leading axis of what is of the batch."""
    if eqn.primitive.name == "dot_general":
        contracted = eqn.params["dimension_numbers"][0]
        pairs = zip(eqn.invars, contracted, strict=True)
        return any(is_marked(atom) and 0 in axes for atom, axes in pairs)
    if eqn.primitive.name == "conv_general_dilated":
        numbers = eqn.params["dimension_numbers"]
        return bool(numbers.lhs_spec[0] != numbers.out_spec[0])
    if eqn.primitive.name == "transpose":
        return bool(eqn.params["permutation"][:1] != (0,))
    return False


class Collective(NamedTuple):
    """Exchange between devices in a compiled program.

    Attributes:
      kind: ``all-gather``, ``all-reduce``, ``reduce-scatter``, ``all-to-all`` or
        ``collective-permute``.
      shapes: ``(dtype, dimensions)`` of each array that it makes.
      bytes: of what is put together or summed, whole.
      group: devices that exchange with each other.
    """

    kind: str
    shapes: tuple[tuple[str, tuple[int, ...]], ...]
    bytes: int
    group: int

    @property
    def sent(self) -> float:
        """Returns the bytes that each device sends, in a ring of ``n``.

        ``(n - 1) / n`` of all, twice that for a sum that all get; what is passed on, once.
        """
        if self.kind == "collective-permute":
            return float(self.bytes)
        times = 2 if self.kind == "all-reduce" else 1
        return times * self.bytes * (self.group - 1) / self.group


_COLLECTIVE = re.compile(
    r"^\s*(?:ROOT )?\S+ = (?P<made>.*?) (?P<kind>all-gather|all-reduce|reduce-scatter|all-to-all|"
    r"collective-permute)(?P<start>-start)?\((?P<rest>.*)"
)
_ARRAY = re.compile(r"\b(pred|[sufc]\d\w*|bf16)\[([\d,]*)\]")
_LISTED = re.compile(r"replica_groups=(?:\{\{(?P<first>[\d,]*)\}|\[\d+,(?P<size>\d+)\])")
_NAMED = re.compile(r"replica_groups=mesh\[(?P<axes>[^\]]*)\] ?\{(?P<over>[^}]*)\}")


def read_collectives(text: str) -> list[Collective]:
    """Lists what devices exchange, in the order of a compiled program's text.

    Args:
      text: ``jitted.lower(...).compile().as_text()``. What is in a loop counts once.
    """
    found = []
    for line in text.splitlines():
        told = _COLLECTIVE.search(line)
        if told is None:
            continue
        kind, made = told["kind"], _ARRAY.findall(told["made"])
        if told["start"] and kind in ("all-gather", "collective-permute"):
            made = made[len(made) // 2 :]  # behind the operands
        shapes = tuple(
            (dtype, tuple(map(int, filter(None, dims.split(","))))) for dtype, dims in made
        )
        group = _group_size(told["rest"])
        size = sum(math.prod(dims) * _width(dtype) for dtype, dims in shapes)
        size *= group if kind == "reduce-scatter" else 1
        if group > 1:
            found.append(Collective(kind, shapes, size, group))
    return found


def _group_size(text: str) -> int:
    """Reads how many devices exchange with each other; pairs, where no groups are told."""
    if named := _NAMED.search(text):
        sizes = dict(re.findall(r"'(\w+)'=(\d+)", named["axes"]))
        return math.prod(int(sizes[axis]) for axis in re.findall(r"'(\w+)'", named["over"]))
    if listed := _LISTED.search(text):
        return int(listed["size"] or listed["first"].count(",") + 1)
    return 2


def _width(dtype: str) -> int:
    bits = re.search(r"\d+", dtype)
    return 1 if bits is None else max(int(bits[0]) // 8, 1)
