"""Methods that differ in numbers: one program for many learning rates, weights, temperatures."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.typing import ArrayLike

from jaxunlearn.core.errors import brief, expect
from jaxunlearn.core.types import Batches, Info, Key, Sets, State, Unlearner, Variables


class Swept(NamedTuple):
    """Model of a sweep's member, or what is carried from step to step, with its own numbers.

    Attributes:
      options: the numbers by name.
      inner: variables, or a state, of the method that these numbers make.
    """

    options: Mapping[str, jax.Array]
    inner: Any


class Sweep(NamedTuple):
    """A method with the numbers of each member; :func:`sweep` makes one.

    Attributes:
      method: reads its numbers from what it is given: other ``options`` run the same program.
      options: arrays ``[R]`` by name.
    """

    method: Unlearner
    options: Mapping[str, jax.Array]


def sweep(make: Callable[..., Unlearner], **options: Sequence[float] | ArrayLike) -> Sweep:
    """Makes one method of many that differ in numbers, for ``unlearn_many``.

    Sixteen learning rates in one program, each with its own key::

        rates = sweep(lambda rate: ju.finetune(model, optimizer=optax.adam(rate)), rate=grid)
        many = ju.unlearn_many(rates, variables, sets, keys, steps=100)

    Every pair of values is a member of its own: for a grid, pass all its points.

    Args:
      make: of one number an option, returns the method. While the program is made it gets JAX
        scalars in place of numbers: what decides shapes, such as a rank, cannot be swept.
      options: ``[R]`` numbers by name, as many of each.

    Raises:
      TypeError: ``make`` returns no method.
      ValueError: no option, or others than ``R`` numbers of each.
    """
    arrays = {name: jnp.asarray(values) for name, values in options.items()}
    shapes = {name: array.shape for name, array in arrays.items()}
    if len(set(shapes.values())) != 1 or any(len(shape) != 1 for shape in shapes.values()):
        raise ValueError(f"options: expected as many numbers [R] of each, got {brief(shapes)}")
    first = make(**{name: array[0].item() for name, array in arrays.items()})
    expect("make", first, Unlearner)

    def init(variables: Swept, sets: Sets, key: Key, *prepared: Any) -> Swept:
        own = _made(make, variables.options)
        return Swept(variables.options, own.init(variables.inner, sets, key, *prepared))

    def step(state: Swept, batches: Batches, key: Key, count: jax.Array) -> tuple[Swept, Info]:
        own = _made(make, state.options).step
        assert own is not None
        inner, info = own(state.inner, batches, key, count)
        return state._replace(inner=inner), info

    def result(state: State) -> Variables:
        return _made(make, state.options).result(state.inner)

    steps = None if first.step is None else step
    return Sweep(first._replace(init=init, step=steps, result=result), arrays)


def _made(make: Callable[..., Unlearner], options: Mapping[str, jax.Array]) -> Unlearner:
    try:
        return make(**options)
    except jax.errors.ConcretizationTypeError as error:
        raise ValueError(
            f"make: expected a method that can be made of JAX scalars {list(options)}, got one "
            f"that needs plain numbers: {str(error).splitlines()[0]}"
        ) from None
