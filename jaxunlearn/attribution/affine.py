"""A step that is affine in the data, as functions that rules compose.

``z = D (W a) + c``: one linear operation with kernel ``W``, then a chain of
scalings ``D`` and shifts ``c`` by constants (bias, batch norm in inference).
"""

from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp

from jaxunlearn.attribution.trace import Op, Program, bind, names, where
from jaxunlearn.attribution.units import Step

__all__ = ["Affine"]

_SCALES = names("mul div neg sub")
_SHIFTS = names("add add_any sub")


@dataclass(frozen=True)
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

    def bias(self) -> jax.Array:
        """``c``, shaped like ``z``."""
        aval = self.program.avals[self.step.ops[0].outs[0]]
        y = jnp.zeros(aval.shape, aval.dtype)
        for following in self.step.ops[1:]:
            y = self._apply(following, y, scale=True, shift=True)
        return y

    def kernel(self) -> jax.Array:
        """``D W``: the kernel with every scaling folded in, whatever its sign.

        Raises:
          NotImplementedError: if a scaling differs between positions of one
            feature, which no kernel can express; ``transpose(s)`` still can.
        """
        op, dims = self.step.ops[0], self.step.dims
        assert dims is not None, "a pool has no kernel"
        kernel: jax.Array = self.env[op.ins[dims.kernel]]
        moved = False
        for following in self.step.ops[1:]:
            if following.name in _SCALES:
                kernel = self._fold(following, kernel, moved)
            moved = moved or following.name not in _SCALES | _SHIFTS | {"convert_element_type"}
        return kernel

    def _constant(self, op: Op) -> int:
        return next(v for v in op.ins if v not in self.program.data)

    def _apply(self, op: Op, y: jax.Array, scale: bool, shift: bool) -> jax.Array:
        """One operation of the chain, or its scaling or its shift alone."""
        if scale and shift:
            return self._bind(op, y)
        shape = self.program.shape(op.outs[0])
        if op.name == "neg" or (op.name == "sub" and op.ins[1] in self.program.data):
            y = -y if scale else y
        elif op.name not in _SHIFTS and (scale or op.name not in _SCALES):
            return self._bind(op, y)
        return y if y.shape == shape else jnp.broadcast_to(y, shape)

    def _bind(self, op: Op, y: jax.Array) -> jax.Array:
        (out,) = bind(op, [y if v in self.program.data else self.env[v] for v in op.ins])
        value: jax.Array = out
        return value

    def _fold(self, op: Op, kernel: jax.Array, moved: bool) -> jax.Array:
        if op.name == "neg" or (op.name == "sub" and op.ins[1] in self.program.data):
            return -kernel
        if op.name == "sub":
            return kernel
        factor = self._per_neuron(op, kernel.ndim, kernel.dtype, moved)
        return kernel / factor if op.name == "div" else kernel * factor

    def _per_neuron(self, op: Op, rank: int, dtype: Any, moved: bool) -> jax.Array:
        """The factor of a scaling, laid out to multiply the kernel."""
        dims = self.step.dims
        assert dims is not None
        value = self._constant(op)
        shape, factor = self._unbroadcast(value, len(self.program.shape(op.outs[0])))
        factor = jnp.asarray(factor, dtype)
        wide = [d for d, size in enumerate(shape) if size > 1]
        if not wide:
            return jnp.reshape(factor, ())
        if moved or any(d not in dims.made for d in wide):
            raise NotImplementedError(
                f"the scaling at {where(op)} differs between positions of one feature or follows "
                "a change of layout: only rules that need no folded kernel (epsilon) go through it"
            )
        order = sorted(wide, key=lambda d: dims.made[d])
        factor = jnp.transpose(
            jnp.reshape(factor, [shape[d] for d in wide]), [wide.index(d) for d in order]
        )
        sizes = [1] * rank
        for d in order:
            sizes[dims.made[d]] = shape[d]
        return jnp.reshape(factor, sizes)

    def _unbroadcast(self, value: int, rank: int) -> tuple[list[int], jax.Array]:
        """A constant before it was broadcast: sizes along ``rank`` dimensions, and itself."""
        made_by = next((op for op in self.program.ops if value in op.outs), None)
        if made_by is not None and made_by.name == "broadcast_in_dim":
            source = made_by.ins[0]
            shape = [1] * rank
            sizes = self.program.shape(source)
            for d, size in zip(made_by.params["broadcast_dimensions"], sizes, strict=True):
                shape[d] = size
            return shape, self.env[source]
        return list(self.program.shape(value)) or [1] * rank, self.env[value]
