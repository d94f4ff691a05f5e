"""A step that is affine in the data, as functions that rules compose.

``z = D (W a) + c``: one linear operation with kernel ``W``, then a chain of
scalings ``D`` and shifts ``c`` by constants (bias, batch norm in inference).
"""

from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp

from jaxunlearn.jaxprs.primitives import Axis, Op
from jaxunlearn.jaxprs.program import Program, bind, where
from jaxunlearn.jaxprs.steps import Step
from jaxunlearn.jaxprs.units import carry_all, made_axes, varies


@dataclass(frozen=True, repr=False)
class Affine:
    """An affine step, with the values of one forward pass.

    Attributes:
      program: the traced function.
      step: the step, of kind ``linear`` or ``pool``.
      env: the values of the forward pass.
    """

    program: Program
    step: Step
    env: dict[int, Any]

    def __repr__(self) -> str:
        return f"Affine({self.step.key})"  # not the whole program

    @property
    def nonnegative(self) -> bool:
        """Whether the input is known to have no negative element."""
        return self.step.nonnegative

    def forward(self, a: jax.Array, kernel: jax.Array | None = None) -> jax.Array:
        """``D (W a)``, shaped like ``z``; or ``V a`` for a folded kernel ``V``.

        Args:
          a: shaped like the step's input.
          kernel: shaped like :meth:`kernel`, from which it is derived.
        """
        op = self.step.ops[0]
        ins = [a if v == self.step.ins[0] else self.env[v] for v in op.ins]
        if kernel is not None and self.step.dims is not None:
            ins[self.step.dims.kernel] = kernel
        (y,) = bind(op, ins)
        for following in self.step.ops[1:]:
            y = self._apply(following, y, scale=kernel is None, shift=False)
        result: jax.Array = y
        return result

    def transpose(self, s: jax.Array, kernel: jax.Array | None = None) -> jax.Array:
        """``W' D s``, shaped like the input; or ``V' s`` for a folded kernel ``V``."""
        a = self.env[self.step.ins[0]]
        (back,) = jax.linear_transpose(lambda v: self.forward(v, kernel), a)(s)
        transposed: jax.Array = back
        return transposed

    def linear(self) -> jax.Array:
        """``D (W a)`` of the forward pass: ``z - c`` without the subtraction's rounding."""
        y = self.env[self.step.ops[0].outs[0]]
        for following in self.step.ops[1:]:
            y = self._apply(following, y, scale=True, shift=False)
        result: jax.Array = y
        return result

    def bias(self) -> jax.Array:
        """``c``, shaped like ``z``."""
        y = jnp.zeros_like(self.env[self.step.ops[0].outs[0]])
        for following in self.step.ops[1:]:
            y = self._apply(following, y, scale=True, shift=True)
        return y

    def kernel(self) -> jax.Array:
        """``D W``: the kernel with every scaling folded in, whatever its sign.

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

    def _constant(self, op: Op) -> int:
        return next(v for v in op.ins if v not in self.program.data)

    def _apply(self, op: Op, y: jax.Array, scale: bool, shift: bool) -> jax.Array:
        """One operation of the chain, or its scaling or its shift alone."""
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
        (out,) = bind(op, [y if v in self.program.data else self.env[v] for v in op.ins])
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
        """The factor of a scaling, laid out to multiply the kernel.

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
