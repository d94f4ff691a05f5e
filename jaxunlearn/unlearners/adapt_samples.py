"""The samples that adapt-then-unlearn learns from: a generator's own images, sorted."""

from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from jaxunlearn.data.sets import labels_of
from jaxunlearn.errors import RequestError
from jaxunlearn.latents import Guide, check_guide, draw_pool, images_of
from jaxunlearn.types import Apply, Batch, Gan, Key, Preparation, Sets, Subset, Variables

__all__ = ["Drawn", "draw_negatives", "draw_positives", "sorted_images"]


class Drawn(NamedTuple):
    """Images of the original generator, sorted by what the guide takes them for.

    Attributes:
      x: ``[P, ...]``.
      y: ``int32 [P]``, labels that a conditional generator was asked for.
      order: ``int32 [P]``: places of the negative samples (taken for a class to be
        forgotten), then those of the positive ones.
      size: ``int32 []``, number of negative samples.
      forgotten: ``bool [K]``, classes to be forgotten.
      guide: the guide's variables.
    """

    x: jax.Array
    y: jax.Array
    order: jax.Array
    size: jax.Array
    forgotten: jax.Array
    guide: Variables


def draw_negatives(drawn: Drawn, count: int, key: Key) -> Batch:
    """A batch of samples of the class."""
    place = jax.random.randint(key, (count,), 0, jnp.maximum(drawn.size, 1))
    return _batch(drawn, place)


def draw_positives(drawn: Drawn, count: int, key: Key, most: int) -> Batch:
    """A batch of the first ``most`` samples that do not show the class."""
    there = jnp.minimum(len(drawn.order) - drawn.size, most)
    place = drawn.size + jax.random.randint(key, (count,), 0, jnp.maximum(there, 1))
    return _batch(drawn, place)


def _batch(drawn: Drawn, place: jax.Array) -> Batch:
    rows = drawn.order[place]
    return Batch(drawn.x[rows], drawn.y[rows], jnp.ones(len(rows)), rows)


def sorted_images(gan: Gan, guide: Guide, count: int) -> Preparation:
    """Draws and sorts the samples; on the host only to tell that there are any."""
    known = partial(_sorted_pool, gan=gan, apply=guide.model.apply, count=count)

    def shapes(variables: Variables, sets: Sets) -> Any:
        check_guide(guide, gan)
        key = jax.eval_shape(lambda: jax.random.key(0))
        return jax.eval_shape(known, variables["ema"], guide.variables, sets.forget, key)

    def run(variables: Variables, sets: Sets, key: Key) -> Drawn:
        assert sets.forget is not None
        drawn = known(variables["ema"], guide.variables, sets.forget, key)
        found = int(drawn.size)
        if found in (0, count):
            wanted, seen = ("the generator draws", "none") if not found else (
                "leave others for the generator to draw", "all")  # fmt: skip
            raise RequestError(
                f"sets.forget: expected classes that {wanted}, got {labels_of(sets.forget)}, "
                f"which the guide sees in {seen} of {count} images"
            )
        return drawn

    return Preparation(run, shapes)


@partial(jax.jit, static_argnames=("gan", "apply", "count"))
def _sorted_pool(
    generator: Variables,
    guide: Variables,
    forget: Subset,
    key: Key,
    *,
    gan: Gan,
    apply: Apply,
    count: int,
) -> Drawn:
    # which labels the other classes have is not told to a method that sees no other set
    noise, asking = jax.random.split(key)
    asked = jax.random.randint(asking, (count,), 0, max(gan.num_classes, 1), jnp.int32)
    found = draw_pool(generator, guide, asked, noise, gan=gan, apply=apply)
    own = forget.examples.y[forget.indices]
    forgotten = jnp.zeros(found.logits.shape[1], bool).at[own].set(True)
    shows = forgotten[found.label]
    order = jnp.argsort(~shows).astype(jnp.int32)
    size = jnp.sum(shows, dtype=jnp.int32)
    return Drawn(images_of(gan, generator, found.w), found.y, order, size, forgotten, guide)
