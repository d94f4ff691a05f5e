"""Optimizers and augmentations of a training configuration; masks for any optimizer."""

import re
from collections.abc import Callable, Mapping
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from jaxunlearn.config import TrainConfig
from jaxunlearn.core.errors import ConfigError, brief, is_known
from jaxunlearn.core.trees import named_leaves, path_name, precise
from jaxunlearn.core.types import Apply, Key, Variables
from jaxunlearn.data.dataset import is_channels_first
from jaxunlearn.jaxprs.structure import structure
from jaxunlearn.training.descent import trained

OPTIMIZERS = ("sgd", "adam", "adamw")
SCHEDULES = ("constant", "cosine")


def make_optimizer(config: TrainConfig, steps: int) -> optax.GradientTransformation:
    """Makes the optimizer of a run of ``steps`` steps.

    ``sgd`` has Nesterov momentum; ``sgd`` and ``adam`` add ``weight_decay`` times the
    parameters to the gradient, ``adamw`` decouples it.

    Raises:
      ConfigError: unknown optimizer or schedule, or a rate that is not positive.
    """
    if is_known(config.learning_rate) and config.learning_rate <= 0:
        raise ConfigError(
            f"train.learning_rate: expected a positive number, got {config.learning_rate}"
        )
    if config.schedule not in SCHEDULES:
        raise ConfigError(
            f"train.schedule: expected one of {SCHEDULES}, got {brief(config.schedule)}"
        )
    if len(config.betas) != 2 or not all(0 <= beta < 1 for beta in config.betas):
        raise ConfigError(
            f"train.betas: expected two numbers from 0 to below 1, got {config.betas}"
        )
    b1, b2 = config.betas
    rate: optax.ScalarOrSchedule = config.learning_rate
    if config.schedule == "cosine":
        rate = optax.cosine_decay_schedule(config.learning_rate, steps)
    if config.optimizer == "adamw":
        return optax.adamw(rate, b1, b2, weight_decay=config.weight_decay)
    decay = optax.add_decayed_weights(config.weight_decay)
    if config.optimizer == "sgd":
        return optax.chain(decay, optax.sgd(rate, momentum=config.momentum, nesterov=True))
    if config.optimizer == "adam":
        return optax.chain(decay, optax.adam(rate, b1, b2))
    raise ConfigError(
        f"train.optimizer: expected one of {OPTIMIZERS}, got {brief(config.optimizer)}"
    )


Augment = Callable[[jax.Array, Key], jax.Array]


def crop_flip(x: jax.Array, key: Key, pad: int = 4) -> jax.Array:
    """Moves each image by up to ``pad`` pixels, filled with 0, and mirrors it with odds 1/2.

    Args:
      x: ``[B, H, W, C]``, normalised, so that 0 is the mean of the channel.
    """
    flip_key, move_key = jax.random.split(key)
    flip = jax.random.bernoulli(flip_key, 0.5, (x.shape[0], 1, 1, 1))
    x = jnp.where(flip, x[:, :, ::-1], x)
    padded = jnp.pad(x, ((0, 0), (pad, pad), (pad, pad), (0, 0)))
    corners = jax.random.randint(move_key, (x.shape[0], 2), 0, 2 * pad + 1)

    def cut(image: jax.Array, corner: jax.Array) -> jax.Array:
        return jax.lax.dynamic_slice(image, (corner[0], corner[1], 0), x.shape[1:])

    return jax.vmap(cut)(padded, corners)


def _unchanged(x: jax.Array, key: Key) -> jax.Array:
    del key
    return x


AUGMENTATIONS: dict[str, Augment] = {"none": _unchanged, "crop_flip": crop_flip}


def make_augment(name: str) -> Augment:
    """Returns the augmentation of that name; :class:`ConfigError` if there is none.

    It raises one itself, when it is traced, for what is not images ``[B, H, W, C]``.
    """
    if not isinstance(name, str) or name not in AUGMENTATIONS:
        raise ConfigError(
            f"train.augment: expected one of {list(AUGMENTATIONS)}, got {brief(name)}"
        )
    augment = AUGMENTATIONS[name]
    return augment if augment is _unchanged else partial(_on_images, name, augment)


def _on_images(name: str, augment: Augment, x: jax.Array, key: Key) -> jax.Array:
    shape = list(getattr(x, "shape", ()))[1:]
    if len(shape) != 3:
        got = shape if hasattr(x, "shape") else f"a {type(x).__name__}"
        raise ConfigError(f"augment: expected images [H, W, C] for {name!r}, got {got}")
    # taken for rows and columns, channels would be moved and mirrored
    if is_channels_first(shape):
        raise ConfigError(
            f"augment: expected images [H, W, C] for {name!r}, got {shape}, whose channels are "
            "the first axis"
        )
    return augment(x, key)


def only(
    optimizer: optax.GradientTransformation, part: Mapping[str, bool] | Callable[[Any], Any]
) -> optax.GradientTransformation:
    """Masks an optimizer: it trains some parameters, and leaves the others as they are.

    For any gradient method: ``random_label(model, optimizer=only(optax.adam(1e-3),
    matching("head")))``. The others get no update, no weight decay and no optimizer state, and
    the compiler leaves their gradients out.

    Args:
      part: ``params -> tree of bool`` like these, true where trained; :func:`matching` and
        :func:`part_mask` make one.
    """

    def labels(params: Any) -> Any:
        mask = part(params) if callable(part) else part
        return jax.tree.map(lambda kept: "trained" if kept else "kept", mask)

    # parameter plus -0 is the parameter, to the bit; plus 0 would turn -0 into 0
    rest = optax.stateless(
        lambda updates, _: jax.tree.map(lambda u: jnp.full_like(u, -0.0), updates)
    )
    return optax.multi_transform({"trained": optimizer, "kept": rest}, labels)


class Scaled(NamedTuple):
    """State of :func:`scaled`.

    Attributes:
      factors: trees like the parameters, ``[...]`` of a number for each, or truths.
      inner: state of the optimizer.
    """

    factors: Any
    inner: optax.OptState


def scaled(optimizer: optax.GradientTransformation) -> optax.GradientTransformation:
    """Multiplies each number of a gradient by a factor of its own before an optimizer reads it.

    For masks that are found in a method's ``init``: factors are all 1 at first, and are put into
    the state, ``state._replace(factors=mask)``. A parameter whose factor is 0 stays as it is, to
    the bit, whatever weight decay and momentum add.
    """

    def init(params: Any) -> Scaled:
        ones = jax.tree.map(lambda leaf: jnp.ones(leaf.shape, bool), params)
        return Scaled(ones, optimizer.init(params))

    def update(
        gradient: Any, state: optax.OptState, params: Any = None
    ) -> tuple[Any, optax.OptState]:
        assert isinstance(state, Scaled)
        gradient = jax.tree.map(lambda g, f: g * f.astype(g.dtype), gradient, state.factors)
        updates, inner = optimizer.update(gradient, state.inner, params)
        kept = jax.tree.map(
            lambda u, f: jnp.where(f != 0, u, jnp.full_like(u, -0.0)), updates, state.factors
        )
        return kept, state._replace(inner=inner)

    return optax.GradientTransformation(init, update)


def largest(values: jax.Array, count: int | jax.Array) -> jax.Array:
    """Returns the mask of exactly so many largest values; of equal ones the first.

    Bit by bit, by counting: nothing is sorted, and a tree of any size compiles at once.

    Args:
      values: ``[...]``, read in their order.
      count: from 0 to all.

    Returns:
      ``bool [...]``.
    """
    ranks = _as_ranks(values.reshape(-1))
    places = jnp.arange(ranks.size, dtype=jnp.uint32)
    wanted = jnp.asarray(count, jnp.int32)
    least = _last_that(lambda rank: _number(ranks >= rank) >= wanted, ranks.dtype)
    above, equal = ranks > least, ranks == least
    missing = wanted - _number(above)
    end = _last_that(lambda place: _number(equal & (places < place)) <= missing, places.dtype)
    return (above | (equal & (places < end))).reshape(values.shape)


def _as_ranks(values: jax.Array) -> jax.Array:
    """Returns unsigned integers in the order of floats."""
    values = precise(values)
    values = jnp.where(values == 0, jnp.zeros_like(values), values)  # of either sign
    kind = jnp.uint64 if values.dtype == jnp.float64 else jnp.uint32
    bits = jax.lax.bitcast_convert_type(values, kind)
    sign = jnp.asarray(1 << (values.dtype.itemsize * 8 - 1), kind)
    return jnp.where(bits < sign, bits | sign, ~bits)


def _number(truths: jax.Array) -> jax.Array:
    return jnp.sum(truths, dtype=jnp.int32)


def _last_that(holds: Callable[[jax.Array], jax.Array], kind: Any) -> jax.Array:
    """Returns the largest integer for which something holds that does so up to there, or 0."""
    bits = jnp.iinfo(kind).bits

    def further(turn: jax.Array, found: jax.Array) -> jax.Array:
        more = found | (jnp.ones((), kind) << (bits - 1 - turn).astype(kind))
        return jnp.where(holds(more), more, found)

    return jax.lax.fori_loop(0, bits, further, jnp.zeros((), kind))


def matching(*patterns: str) -> Callable[[Any], Any]:
    """Makes a mask of the parameters in whose key path some regular expression is found.

    Paths are those inside the trained part, ``fc1/kernel``.

    Raises:
      ConfigError: no pattern, or one that is no regular expression; when the mask is made of
        parameters: none of them matches.
    """
    try:
        compiled = [re.compile(pattern) for pattern in patterns]
    except (re.error, TypeError) as error:
        raise ConfigError(f"only: expected regular expressions, got {patterns}: {error}") from None
    if not compiled:
        raise ConfigError("only: expected at least one regular expression, got none")

    def mask(params: Any) -> Any:
        found = jax.tree_util.tree_map_with_path(
            lambda keys, _: any(one.search(path_name(keys)) for one in compiled), params
        )
        if not any(jax.tree.leaves(found)):
            raise ConfigError(
                f"only: expected patterns found in some of {list(named_leaves(params))}, "
                f"got {list(patterns)}"
            )
        return found

    return mask


PARTS = ("head", "last_block", "all")
"""Parts of a network that have a name."""


def part_mask(part: str | tuple[str, ...], apply: Apply, variables: Variables, x: Any) -> Any:
    """Makes a mask of the parameters of a part of a network, as :func:`only` takes it.

    ``"head"``: kernel and bias of the last linear unit. ``"last_block"``: these, and all
    parameters under the same top-level name as the unit before it
    (``params/stage3_block1/...``). ``"all"``: every parameter. Otherwise those in whose path
    one of the regular expressions is found; paths are those inside ``variables``.

    Args:
      apply: ``(variables, x) -> logits [B, K]``.
      variables: arrays, or their shapes and dtypes.
      x: inputs, or their shapes and dtypes.

    Raises:
      ValueError: no parameter belongs to the part.
    """
    params = trained(variables)
    prefix = "" if params is variables else "params/"
    paths = [prefix + path for path in named_leaves(params)]
    if part == "all":
        found = set(paths)
    elif isinstance(part, str):
        units = structure(apply, variables, x)
        head = units[-1]
        found = {path for path in paths if path in (head.kernel, head.bias)}
        before = next((u.kernel for u in reversed(units) if u.kernel != head.kernel), None)
        if part == "last_block" and before is not None:
            block = prefix + before.removeprefix(prefix).split("/")[0]
            found |= {path for path in paths if f"{path}/".startswith(f"{block}/")}
    else:
        found = {path for path in paths if any(re.search(pattern, path) for pattern in part)}
    if not found:
        raise ValueError(f"train: expected a part with parameters among {paths}, got {part!r}")
    return jax.tree_util.tree_map_with_path(
        lambda keys, _: prefix + path_name(keys) in found, params
    )
