"""The built-in networks made by name, as pure functions.

Their kernels are drawn in one random draw: a draw for each makes the initialisation of a
small convolutional network compile for seconds; one long draw, cut into kernels, compiles in
a fraction of one, and maps over keys.
"""

import contextlib
import functools
import inspect
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from flax import nnx

from jaxunlearn.core import registry
from jaxunlearn.core.errors import ConfigError, did_you_mean
from jaxunlearn.core.types import Gan, Key, LanguageModel, Model, Variables
from jaxunlearn.models import NETWORKS
from jaxunlearn.models.adapt import functionalize
from jaxunlearn.models.calls import signature
from jaxunlearn.models.nnx import from_nnx

# standard deviation of the standard normal distribution cut off at two
_CUT_DEVIATION = 0.87962566103423978

Construct = Callable[[nnx.Rngs], nnx.Module]


class GanParts(NamedTuple):
    """Constructors of the networks of a GAN.

    Attributes:
      mapping: of ``(z, y) -> w``; ``None``: ``w`` is ``z``.
      synthesis: of ``w -> x``.
      discriminator: of ``(x, y) -> d``.
      latent, num_classes, couples: see :class:`~jaxunlearn.core.types.Gan`.
    """

    mapping: Construct | None
    synthesis: Construct
    discriminator: Construct
    latent: int
    num_classes: int = 0
    couples: bool = False


def build(
    name: str,
    input_shape: Any,
    num_classes: int,
    options: Mapping[str, Any] | None = None,
    *,
    where: str = "model",
) -> Model:
    """Builds a classifier by name, as pure functions.

    The final layer of the built-in ones is named ``head``; their ``init`` draws all kernels
    at once (:func:`lecun_normal`).

    Args:
      name: of a classifier in :data:`~jaxunlearn.models.NETWORKS`.
      input_shape: shape of one example; where inputs are trees, shapes and dtypes of a batch,
        which the constructor gets in its place.
      num_classes: ``K``.
      options: keyword arguments of the network's constructor.
      where: the configuration's key for name and options, for messages.

    Returns:
      The model.

    Raises:
      ConfigError: for an unknown name or option, the name of a GAN, or a value that the
        network refuses.
    """
    construct, own = _find(name, "classifier", options, where)
    shape, like, one_draw = input_shape, input_shape, NETWORKS[name].one_draw
    if isinstance(input_shape, tuple | list):
        shape = tuple(input_shape)
        like = jax.ShapeDtypeStruct((1, *shape), jnp.float32)
    with _named(name, own, where):
        make = functools.partial(construct, shape, num_classes, **own)
        if "rngs" in signature(construct).parameters:
            return _pure(lambda rngs: make(rngs=rngs), one_draw)
        return functionalize(make(), like)


def build_gan(
    name: str,
    shape: Sequence[int],
    num_classes: int = 0,
    options: Mapping[str, Any] | None = None,
    *,
    where: str = "model",
) -> Gan:
    """Builds a generator and a discriminator by name, as pure functions.

    Generated images lie between -1 and 1 (those of ``stylegan2`` are not bounded): real ones
    have to be normalised to that range.

    Args:
      name: of a GAN in :data:`~jaxunlearn.models.NETWORKS`.
      shape: of one image.
      num_classes: of the data; read by networks with ``conditional=True`` alone.
      options: keyword arguments of the constructor.
      where: the configuration's key for name and options, for messages.

    Raises:
      ConfigError: for an unknown name or option, the name of a classifier, or a value that
        the networks refuse.
    """
    construct, own = _find(name, "gan", options, where)
    with _named(name, own, where):
        made = construct(tuple(shape), num_classes, **own)
        return made if isinstance(made, Gan) else _joined(shape, made, NETWORKS[name].one_draw)


def build_language(
    name: str, vocabulary: int, options: Mapping[str, Any] | None = None, *, where: str = "model"
) -> LanguageModel:
    """Builds a decoder by name, as pure functions, with random weights to be drawn.

    Args:
      name: of a language model in :data:`~jaxunlearn.models.NETWORKS`.
      vocabulary: ``V``, that of the tokenizer at least.
      options: keyword arguments of the constructor.
      where: the configuration's key for name and options, for messages.

    Raises:
      ConfigError: for an unknown name or option, the name of a network of another kind, or a
        value that the network refuses.
    """
    construct, own = _find(name, "language", options, where)
    with _named(name, own, where):
        made: LanguageModel = construct((), vocabulary, **own)
        return made


def _find(
    name: str, kind: str, options: Mapping[str, Any] | None, where: str
) -> tuple[Callable[..., Any], dict[str, Any]]:
    """Returns the constructor of a network of this kind, and its options, of known names."""
    row = NETWORKS.find(name, f"{where}.name")
    if row.kind != kind:
        fitting = ", ".join(other for other in NETWORKS if NETWORKS[other].kind == kind)
        raise ConfigError(
            f"{where}.name: expected a {kind} ({fitting}), got {name!r}, which is a {row.kind}"
        )
    construct = registry.load(row.target)
    parameters = signature(construct).parameters.values()
    valid = [p.name for p in parameters if p.kind is p.KEYWORD_ONLY and p.name != "rngs"]
    free = any(p.kind is inspect.Parameter.VAR_KEYWORD for p in parameters)
    for option in options or {}:
        if option not in valid and not free:
            raise ConfigError(
                f"{where}.options: expected one of {', '.join(valid)} as option of {name}, "
                f"got {option!r}{did_you_mean(option, valid)}"
            )
    return construct, dict(options or {})


@contextlib.contextmanager
def _named(name: str, options: Mapping[str, Any], where: str) -> Iterator[None]:
    """Names the network and the options in what goes wrong."""
    try:
        # Flax would read it no sooner than the first call
        jnp.dtype(options.get("dtype") or jnp.float32)
        yield
    except ConfigError:
        raise
    except (TypeError, ValueError) as error:
        raise ConfigError(
            f"{where}.options: expected options that fit {name}, got {options!r}: {error}"
        ) from error


def _pure(construct: Construct, one_draw: bool) -> Model:
    model, shapes = from_nnx(construct)
    return model._replace(init=functools.partial(lecun_normal, shapes)) if one_draw else model


def lecun_normal(shapes: Variables, key: Key) -> Variables:
    """Draws LeCun-normal kernels; ones for ``scale`` and ``var``, zeros for all else.

    A kernel is ``n / (sqrt(fan_in) 0.8796)``, where ``n`` is standard normal, cut off
    at two: its variance is ``1 / fan_in``, the product of all dimensions but the last.

    Args:
      shapes: nested dictionaries of arrays or ``jax.ShapeDtypeStruct``, by the names
        that Flax gives: ``kernel``, ``bias``, ``scale``, ``mean``, ``var``.
      key: consumed.

    Returns:
      Arrays of the same structure, shapes and dtypes.

    Source: LeCun et al. 1998, Efficient BackProp; the distribution is Flax's default.
    """
    leaves, structure = jax.tree_util.tree_flatten_with_path(shapes)
    named = [(path[-1].key, leaf) for path, leaf in leaves]
    total = sum(math.prod(leaf.shape) for name, leaf in named if name == "kernel")
    noise = jax.random.truncated_normal(key, -2.0, 2.0, (total,), jnp.float32)
    values, start = [], 0
    for name, leaf in named:
        if name == "kernel":
            size = math.prod(leaf.shape)
            deviation = 1.0 / (_CUT_DEVIATION * math.sqrt(math.prod(leaf.shape[:-1])))
            value = deviation * noise[start : start + size].reshape(leaf.shape)
            start += size
        else:
            value = jnp.full(leaf.shape, 1.0 if name in ("scale", "var") else 0.0)
        values.append(value.astype(leaf.dtype))
    return jax.tree.unflatten(structure, values)


def _joined(shape: Sequence[int], parts: GanParts, one_draw: bool) -> Gan:
    """Joins the networks of a GAN into its pure functions."""
    synthesis, judge = _pure(parts.synthesis, one_draw), _pure(parts.discriminator, one_draw)
    mapping = None if parts.mapping is None else _pure(parts.mapping, one_draw)

    def init(key: Key) -> Variables:
        keys = jax.random.split(key, 3)
        drawn = {"synthesis": synthesis.init(keys[0])}
        if mapping is not None:
            drawn["mapping"] = mapping.init(keys[1])
        generator = _by_collection(drawn)
        ema = jax.tree.map(jnp.copy, generator)
        return {"generator": generator, "discriminator": judge.init(keys[2]), "ema": ema}

    # a network's input may be any tree of arrays
    look: Any = judge
    find: Any = mapping

    def style(generator: Variables, z: jax.Array, y: jax.Array) -> jax.Array:
        return z if mapping is None else find.apply(_part(generator, "mapping"), (z, y))

    def synthesize(generator: Variables, w: jax.Array) -> jax.Array:
        return synthesis.apply(_part(generator, "synthesis"), w)

    def synthesize_train(
        generator: Variables, w: jax.Array, key: Key
    ) -> tuple[jax.Array, Variables]:
        x, moved = synthesis.apply_train(_part(generator, "synthesis"), w, key)
        whole = {name: {**generator[name], "synthesis": own} for name, own in moved.items()}
        return x, whole

    def discriminate(discriminator: Variables, x: jax.Array, y: jax.Array) -> jax.Array:
        return look.apply(discriminator, (x, y))

    def discriminate_train(
        discriminator: Variables, x: jax.Array, y: jax.Array, key: Key
    ) -> tuple[jax.Array, Variables]:
        return look.apply_train(discriminator, (x, y), key)

    return Gan(
        init=init,
        style=style,
        synthesize=synthesize,
        synthesize_train=synthesize_train,
        discriminate=discriminate,
        discriminate_train=discriminate_train,
        latent=parts.latent,
        shape=tuple(shape),
        num_classes=parts.num_classes,
        couples=parts.couples,
        maps=mapping is not None,
    )


def _by_collection(parts: Mapping[str, Variables]) -> Variables:
    """Turns ``{part: {collection: tree}}`` inside out: collections first, as everywhere."""
    names = {name for variables in parts.values() for name in variables}
    return {
        name: {part: own[name] for part, own in parts.items() if name in own}
        for name in sorted(names)
    }


def _part(variables: Variables, part: str) -> Variables:
    return {name: tree[part] for name, tree in variables.items() if part in tree}
