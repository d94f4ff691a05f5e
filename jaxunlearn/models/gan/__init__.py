"""The built-in generators and discriminators by name, as pure functions."""

import functools
import inspect
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from flax import nnx

from jaxunlearn.core.errors import ConfigError
from jaxunlearn.core.types import Gan, Key, Model, Variables
from jaxunlearn.models.adapt import functionalize
from jaxunlearn.models.build import lecun_normal
from jaxunlearn.models.gan.dcgan import (
    DCGanDiscriminator,
    DCGanGenerator,
    MLPDiscriminator,
    MLPGenerator,
)
from jaxunlearn.models.gan.stylegan2 import StyleDiscriminator, StyleMapping, StyleSynthesis

__all__ = ["GANS", "build_gan"]

Construct = Callable[[nnx.Rngs], nnx.Module]


class Networks(NamedTuple):
    """Constructors of the networks of a GAN.

    Attributes:
      mapping: of ``(z, y) -> w``; ``None``: ``w`` is ``z``.
      synthesis: of ``w -> x``.
      discriminator: of ``(x, y) -> d``.
      latent, num_classes, couples: see :class:`~jaxunlearn.core.types.Gan`.
      scaled: whether kernels are drawn with variance ``1 / fan_in``, all at once; else by
        the networks themselves.
    """

    mapping: Construct | None
    synthesis: Construct
    discriminator: Construct
    latent: int
    num_classes: int = 0
    couples: bool = False
    scaled: bool = True


def _mlp_gan(
    shape: tuple[int, ...],
    num_classes: int,
    *,
    latent: int = 32,
    features: Sequence[int] = (256, 256),
    dtype: Any = None,
) -> Networks:
    own: dict[str, Any] = {"features": features, "dtype": dtype}
    return Networks(
        None,
        lambda rngs: MLPGenerator(shape, latent, **own, rngs=rngs),
        lambda rngs: MLPDiscriminator(shape, **own, rngs=rngs),
        latent,
    )


def _dcgan(
    shape: tuple[int, ...],
    num_classes: int,
    *,
    latent: int = 64,
    width: int = 64,
    norm: str = "generator",
    dtype: Any = None,
) -> Networks:
    if norm not in ("generator", "both", "none"):
        raise ConfigError(f"expected 'generator', 'both' or 'none' as norm of dcgan, got {norm!r}")
    own: dict[str, Any] = {"width": width, "dtype": dtype}
    return Networks(
        None,
        lambda rngs: DCGanGenerator(shape, latent, **own, norm=norm != "none", rngs=rngs),
        lambda rngs: DCGanDiscriminator(shape, **own, norm=norm == "both", rngs=rngs),
        latent,
        couples=norm == "both",
    )


def _stylegan2(
    shape: tuple[int, ...],
    num_classes: int,
    *,
    latent: int = 512,
    style: int = 512,
    layers: int = 8,
    width: int = 256,
    group: int = 4,
    conditional: bool = False,
    dtype: Any = None,
) -> Networks:
    told = num_classes if conditional else 0
    own: dict[str, Any] = {"width": width, "dtype": dtype}
    return Networks(
        lambda rngs: StyleMapping(latent, style, told, layers=layers, dtype=dtype, rngs=rngs),
        lambda rngs: StyleSynthesis(shape, style, **own, rngs=rngs),
        lambda rngs: StyleDiscriminator(shape, told, **own, group=group, rngs=rngs),
        latent,
        told,
        couples=group > 1,
        scaled=False,
    )


GANS: Mapping[str, tuple[Callable[..., Networks], str]] = {
    "mlp_gan": (_mlp_gan, "dense generator and discriminator; for the embedded digits"),
    "dcgan": (_dcgan, "convolutional generator and discriminator, upsampling by sub-pixels"),
    "stylegan2": (_stylegan2, "mapping, modulated convolutions, residual discriminator"),
}
"""Name -> (constructor ``image shape, num_classes, *, options``, what it is)."""


def build_gan(
    name: str, shape: Sequence[int], num_classes: int = 0, options: Mapping[str, Any] | None = None
) -> Gan:
    """A built-in generator and discriminator as pure functions.

    Generated images lie between -1 and 1 (those of ``stylegan2`` are not bounded): real ones
    have to be normalised to that range.

    Args:
      name: one of ``GANS``.
      shape: of one image.
      num_classes: of the data; read by networks with ``conditional=True`` alone.
      options: keyword arguments of the constructor.

    Raises:
      ConfigError: for an unknown name or option, or a value that the networks refuse.
    """
    if name not in GANS:
        raise ConfigError(f"expected one of {', '.join(sorted(GANS))} as model, got {name!r}")
    constructor, options = GANS[name][0], dict(options or {})
    known = inspect.signature(constructor).parameters.values()
    valid = [p.name for p in known if p.kind is p.KEYWORD_ONLY]
    for option in options:
        if option not in valid:
            raise ConfigError(
                f"expected one of {', '.join(valid)} as option of {name}, got {option!r}"
            )
    try:
        jnp.dtype(options.get("dtype") or jnp.float32)
        return _functional(tuple(shape), constructor(tuple(shape), num_classes, **options))
    except (TypeError, ValueError) as error:
        if isinstance(error, ConfigError):
            raise
        raise ConfigError(f"expected options that fit {name}, got {options!r}: {error}") from error


def _functional(shape: tuple[int, ...], networks: Networks) -> Gan:
    synthesis, judge = (_pure(n, networks.scaled) for n in (networks.synthesis,
                                                           networks.discriminator))  # fmt: skip
    mapping = None if networks.mapping is None else _pure(networks.mapping, networks.scaled)

    def init(key: Key) -> Variables:
        keys = jax.random.split(key, 3)
        parts = {"synthesis": synthesis.init(keys[0])}
        if mapping is not None:
            parts["mapping"] = mapping.init(keys[1])
        generator = _joined(parts)
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
        init, style, synthesize, synthesize_train, discriminate, discriminate_train,
        networks.latent, shape, networks.num_classes, networks.couples,
        mapping is not None,
    )  # fmt: skip


def _pure(construct: Construct, scaled: bool) -> Model:
    model = functionalize(lambda rngs: construct(rngs))
    if not scaled:
        return model
    shapes = jax.eval_shape(model.init, jax.random.key(0))
    return model._replace(init=functools.partial(lecun_normal, shapes))


def _joined(parts: Mapping[str, Variables]) -> Variables:
    """``{part: {collection: tree}}`` turned inside out: collections first, as everywhere."""
    names = {name for variables in parts.values() for name in variables}
    return {
        name: {part: own[name] for part, own in parts.items() if name in own}
        for name in sorted(names)
    }


def _part(variables: Variables, part: str) -> Variables:
    return {name: tree[part] for name, tree in variables.items() if part in tree}
