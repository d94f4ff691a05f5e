"""A rule of relevance propagation: what it is given, and what it gives back.

In the formulas ``a`` is what a unit reads, ``z = W a + c = D (W0 a) + c`` what it yields: one
linear operation with kernel ``W0``, then a chain of scalings ``D`` and shifts ``c`` by constants
(bias, batch norm in inference), folded together. ``R`` is the relevance of ``z``,
``x+ = max(x, 0)``, ``x- = min(x, 0)`` and ``stab(z) = z + eps sign(z)`` with ``sign(0) = +1``. A
rule returns the relevance of ``a``.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from jaxunlearn.jaxprs.flatten import bind
from jaxunlearn.jaxprs.primitives import Axis, Op
from jaxunlearn.jaxprs.program import Program, where, wide
from jaxunlearn.jaxprs.steps import Step
from jaxunlearn.jaxprs.units import carry_all, made_axes, varies


def widened(env: dict[int, Any]) -> dict[int, Any]:
    """Returns the values of a forward pass, those of half precision as float32.

    Relevance is computed from these: what a network in bfloat16 says of its input is then not
    rounded anew at every step.
    """

    def wider(value: Any) -> Any:
        dtype = getattr(value, "dtype", None)
        narrow = dtype is not None and jnp.issubdtype(dtype, jnp.floating) and wide(dtype) != dtype
        return jnp.asarray(value, wide(dtype)) if narrow else value

    return {number: wider(value) for number, value in env.items()}


def as_floats(value: Any, like: jax.Array) -> Any:
    """Returns integers, such as the bytes of an image, as the floats that relevance is."""
    return value if jnp.issubdtype(value.dtype, jnp.inexact) else value.astype(like.dtype)


def bind_wide(op: Op, ins: list[Any]) -> list[Any]:
    """Applies an operation of the forward pass to widened values, without narrowing the result."""
    types = {key: op.params.get(key) for key in ("new_dtype", "preferred_element_type")}
    floats = {
        key: wide(dtype)
        for key, dtype in types.items()
        if dtype is not None and jnp.issubdtype(dtype, jnp.floating)
    }
    return bind(op._replace(params=op.params | floats) if floats else op, ins)


@dataclass(frozen=True, repr=False)
class Affine:
    """An affine step, with the values of one forward pass.

    Attributes:
      program: the traced function.
      step: the step, of kind ``linear``, ``pool`` or ``affine``.
      env: the values of the forward pass, :func:`widened`.
    """

    program: Program
    step: Step
    env: dict[int, Any]

    def __repr__(self) -> str:
        return f"Affine({self.step.key})"  # not the whole program

    @property
    def nonnegative(self) -> bool:
        """Tells that the input is known to have no negative element."""
        return self.step.nonnegative

    @property
    def rounding(self) -> float:
        """Returns the relative error that the values of the forward pass were rounded to."""
        types = {self.program.avals[op.outs[0]].dtype for op in self.step.ops}
        floats = [dtype for dtype in types if jnp.issubdtype(dtype, jnp.floating)]
        return max((float(jnp.finfo(dtype).eps) for dtype in floats), default=0.0)

    def forward(self, a: jax.Array, kernel: jax.Array | None = None) -> jax.Array:
        """Computes ``D (W0 a)``, shaped like ``z``; or ``V a`` for a folded kernel ``V``.

        Args:
          a: shaped like the step's input.
          kernel: shaped like :meth:`kernel`, from which it is derived.
        """
        op, y = self.step.ops[0], a
        if self.step.kind != "affine":
            ins = [a if v == self.step.ins[0] else self.env[v] for v in op.ins]
            if kernel is not None and self.step.dims is not None:
                ins[self.step.dims.kernel] = kernel
            (y,) = bind_wide(op, ins)
        for following in self._constants:
            y = self._apply(following, y, scale=kernel is None, shift=False)
        return y

    def transpose(self, s: jax.Array, kernel: jax.Array | None = None) -> jax.Array:
        """Computes ``W0' D s``, shaped like the input; or ``V' s`` for a folded kernel ``V``."""
        a = as_floats(self.env[self.step.ins[0]], s)
        (back,) = jax.linear_transpose(lambda v: self.forward(v, kernel), a)(s)
        transposed: jax.Array = back
        return transposed

    def linear(self) -> jax.Array:
        """Returns ``D (W0 a)`` of the forward pass: ``z - c`` without its rounding."""
        y: jax.Array = self._first
        for following in self._constants:
            y = self._apply(following, y, scale=True, shift=False)
        return y

    def bias(self) -> jax.Array:
        """Computes ``c``, shaped like ``z``."""
        y = jnp.zeros_like(self._first)
        for following in self._constants:
            y = self._apply(following, y, scale=True, shift=True)
        return y

    def kernel(self) -> jax.Array:
        """Computes ``W = D W0``: the kernel with every scaling folded in, whatever its sign.

        Raises:
          NotImplementedError: a pool or sum has no kernel; ``transpose(s)`` still works.
        """
        op, dims = self.step.ops[0], self.step.dims
        if dims is None:
            raise NotImplementedError(
                f"the operation at {where(op)} has no kernel: only rules that need none "
                "(epsilon, norm) go through it"
            )
        kernel: jax.Array = self.env[op.ins[dims.kernel]]
        axes = made_axes(op, self.program, dims)
        for following in self.step.ops[1:]:
            axes = carry_all(following, self.program, axes)
            kernel = self._fold(following, kernel, axes)
        return kernel

    @property
    def _constants(self) -> tuple[Op, ...]:
        """Returns the scalings and shifts by constants."""
        return self.step.ops[self.step.kind != "affine" :]

    @property
    def _first(self) -> Any:
        """Returns the value that they are applied to."""
        step = self.step
        return self.env[step.ins[0] if step.kind == "affine" else step.ops[0].outs[0]]

    def _constant(self, op: Op) -> int:
        return next(v for v in op.ins if v not in self.program.data)

    def _apply(self, op: Op, y: jax.Array, scale: bool, shift: bool) -> jax.Array:
        """Applies one operation of the chain, or its scaling or its shift alone."""
        if scale and shift:
            return self._bind(op, y)
        shape, kind = self.program.shape(op.outs[0]), op.row.affine
        if self._flips(op):
            y = -y if scale else y
        elif kind == "through" or (kind == "scale" and scale):
            return self._bind(op, y)
        return y if y.shape == shape else jnp.broadcast_to(y, shape)

    def _flips(self, op: Op) -> bool:
        """Tells that the sign of the data is turned: ``-y`` or ``constant - y``."""
        subtracted = op.name == "sub" and op.ins[1] in self.program.data
        return op.row.affine == "flip" or subtracted

    def _bind(self, op: Op, y: jax.Array) -> jax.Array:
        (out,) = bind_wide(op, [y if v in self.program.data else self.env[v] for v in op.ins])
        value: jax.Array = out
        return value

    def _fold(self, op: Op, kernel: jax.Array, axes: dict[int, Axis]) -> jax.Array:
        if self._flips(op):
            return -kernel
        if op.row.affine != "scale":
            return kernel
        factor = self._per_neuron(op, kernel, axes)
        return kernel / factor if op.name == "div" else kernel * factor

    def _per_neuron(self, op: Op, kernel: jax.Array, axes: dict[int, Axis]) -> jax.Array:
        """Returns the factor of a scaling, laid out to multiply the kernel.

        Args:
          axes: dimension of the kernel -> where its neurons run along the scaled value.
        """
        rank = len(self.program.shape(op.outs[0]))
        sizes, source = varies(self.program, self._constant(op), rank)
        factor = jnp.asarray(self.env[source], kernel.dtype)
        made = {axis.dim: d for d, axis in axes.items()}
        wide = [d for d, size in enumerate(sizes) if size > 1]
        order = sorted(wide, key=lambda d: made[d])
        factor = jnp.reshape(factor, [sizes[d] for d in wide])
        factor = jnp.transpose(factor, [wide.index(d) for d in order])
        shape = [1] * kernel.ndim
        for d in order:
            shape[made[d]] = sizes[d]
        return jnp.reshape(factor, shape)


class Loss(NamedTuple):
    """Relevance that a rule absorbs, element by element of the outputs of its step.

    A cause that absorbs nothing may be the scalar 0, which costs nothing.

    Attributes:
      bias: by the bias, batch norm's shift included.
      stabilizer: by what keeps a denominator from zero.
      dead: by units without any contribution to share it among (a window of zeros).
    """

    bias: jax.Array
    stabilizer: jax.Array
    dead: jax.Array


def no_loss(like: jax.Array) -> Loss:
    """Returns a loss of nothing, of the type of an array."""
    nothing = jnp.zeros((), like.dtype)
    return Loss(nothing, nothing, nothing)


class Propagated(NamedTuple):
    """The result of a rule that says more than the relevance.

    Attributes:
      relevance: of ``a``.
      loss: what was absorbed on the way, for the ledger.
    """

    relevance: jax.Array
    loss: Loss


Propagate = Callable[[Affine, jax.Array, jax.Array, jax.Array], jax.Array | Propagated]
"""``(affine, a, z, R of z) -> R of a``; ``a`` and ``z`` are those of the forward pass."""


class Rule(NamedTuple):
    """A rule for one linear unit.

    Attributes:
      name: for messages.
      propagate: :data:`Propagate`, pure.
      by_value: whether what an input gets is a multiple of its value. Where it is not (flat),
        it cannot be shared out by value further down: a constant that is added to what the unit
        reads, such as the mean in a normalisation of the input, then takes nothing.
    """

    name: str
    propagate: Propagate
    by_value: bool = True


def stabilize(z: jax.Array, eps: float | jax.Array) -> jax.Array:
    """Returns ``z + eps sign(z)`` with ``sign(0) = +1``: never zero for ``eps > 0``."""
    return z + jnp.where(z >= 0, eps, -eps).astype(z.dtype)


def share(
    portion: jax.Array,
    linear: jax.Array,
    shift: jax.Array | None,
    eps: float | jax.Array,
    *,
    drop: bool = False,
) -> tuple[jax.Array, Loss]:
    """Returns ``s = portion / stab(linear + shift)``, and what of the portion is not passed on.

    What is passed on is ``linear * s``: the contributions to a unit sum to ``linear``.

    Args:
      portion: the relevance to be shared out.
      linear: the sum of the contributions that share it.
      shift: what stands in the denominator beside them; ``None`` for nothing.
      eps: the stabiliser; 0 drops what sits on a denominator of zero.
      drop: whether a positive one does so, too.
    """
    z = linear if shift is None else linear + shift
    exact = isinstance(eps, float | int) and eps == 0
    dead = linear == 0
    below = z if exact else stabilize(z, eps)
    if exact or drop:
        empty = dead if shift is None else z == 0
        below = jnp.where(empty, jnp.inf, below)  # compiles faster than a choice of the quotient
        dead = dead if shift is None else dead | empty
    s = portion / below
    nothing = no_loss(z).dead
    return s, Loss(
        bias=nothing if shift is None else jnp.where(dead, 0, shift * s),
        stabilizer=nothing if exact else jnp.where(dead, 0, (below - z) * s),
        dead=jnp.where(dead, portion, 0),
    )
