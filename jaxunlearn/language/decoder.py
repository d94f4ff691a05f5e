"""Decoders as pure functions: GPT-2, Llama, Mistral and Qwen2 in one, told apart by a shape.

A block computes ``y = x + attention(norm1(x))``, then ``y + mlp(norm2(y))``. GPT-2 has layer
norm, learned positions and ``down(act(up(h)))``; the others have the norm of mean squares,
rotations of queries and keys (:class:`Rope`) and ``down(act(gate(h)) * up(h))``. Query heads share
the keys and values of their group. Kernels are ``[in, out]``, found at paths such as
``params/blocks_0/attention/query/kernel``.

Legend: ``B`` texts, ``T`` tokens read, ``S`` places that are looked at, ``D`` width, ``H`` heads,
``G`` of them to one head of keys, ``E`` numbers of a head, ``V`` vocabulary.

Sources: Radford et al. 2019 (GPT-2); Touvron et al. 2023 (arXiv 2302.13971); Jiang et al. 2023
(arXiv 2310.06825); Yang et al. 2024 (arXiv 2407.10671); Su et al. 2021 (arXiv 2104.09864).
"""

import dataclasses
import functools
import math
from collections.abc import Callable, Iterator, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from jaxunlearn.core.errors import ConfigError, DataError
from jaxunlearn.core.types import Inputs, Key, LanguageModel, Variables
from jaxunlearn.engine.sharding import PRESETS, Rules, keep_divided

ARCHITECTURES = ("gpt2", "llama", "mistral", "qwen2")
"""The kinds of decoders, by the names of Hugging Face's ``model_type``."""

DECODER_RULES: Rules = PRESETS["fsdp_tensor"]
"""Rules for a mesh such as ``"data=2,model=4"``: heads, hidden numbers and tokens over ``model``,
so that each pair of kernels meets in one sum, the other dimension over ``data``."""

ROTATIONS = ("default", "linear", "llama3")

ACTIVATIONS: dict[str, Callable[[jax.Array], jax.Array]] = {
    "silu": jax.nn.silu,
    "gelu_tanh": functools.partial(jax.nn.gelu, approximate=True),
    "gelu": functools.partial(jax.nn.gelu, approximate=False),
    "relu": jax.nn.relu,
}

# scores of what is not looked at: far below any other, and a softmax of these alone is finite
_FAR = -1e9
# standard deviation of kernels and embeddings that are drawn
_DEVIATION = 0.02
# numbers drawn at once: a draw for each array compiles for long, one for all takes memory twice
_DRAWN = 2**26


class Rope(NamedTuple):
    """Rotations of queries and keys: at place ``p`` the pair ``i`` turns by ``p f_i``.

    ``f_i = theta ** (-2 i / E)``; ``"linear"`` divides all by ``factor``; ``"llama3"`` divides
    those of wavelengths above ``original / low``, leaves those below ``original / high``, and
    goes from one to the other in between.

    Attributes:
      theta: base of the frequencies.
      kind: one of :data:`ROTATIONS`.
      factor: by which the context was stretched.
      low, high: turns within the original context at which ``"llama3"`` changes.
      original: context before it was stretched, for ``"llama3"``.
    """

    theta: float = 10000.0
    kind: str = "default"
    factor: float = 1.0
    low: float = 1.0
    high: float = 4.0
    original: int = 0

    def frequencies(self, size: int) -> np.ndarray:
        """Returns ``f_i``, ``float32 [E / 2]``."""
        # in single precision step by step, as checkpoints were trained
        powers = np.arange(0, size, 2, dtype=np.float32) / np.float32(size)
        plain = np.float32(1) / np.power(np.float32(self.theta), powers)
        if self.kind == "default":
            return plain
        slow = plain / np.float32(self.factor)
        if self.kind == "linear":
            return slow
        turns = np.float32(self.original) * plain / np.float32(2 * math.pi)
        share = np.clip((turns - self.low) / (self.high - self.low), 0, 1).astype(np.float32)
        return (1 - share) * slow + share * plain


@dataclasses.dataclass(frozen=True)
class DecoderShape:
    """Sizes and kind of a decoder: all that its functions depend on, besides number types.

    Attributes:
      architecture: one of :data:`ARCHITECTURES`.
      vocabulary: tokens ``0 .. V - 1``.
      context: the longest text, in tokens.
      depth: number of blocks.
      width: of the residual stream, ``D``.
      heads: of queries.
      kv_heads: of keys and values; they divide ``heads``.
      head_dim: numbers of a head, ``E``.
      hidden: width inside the part of a block that reads each token alone.
      activation: one of :data:`ACTIVATIONS`.
      epsilon: added to variances in norms.
      rope: rotations; ``None`` for learned positions (GPT-2).
      tied: whether the head is the embedding of tokens.
      query_bias: whether queries, keys and values have biases.
      output_bias: whether attention's output has a bias.
      mlp_bias: whether the other kernels of a block have biases.
    """

    architecture: str
    vocabulary: int
    context: int
    depth: int
    width: int
    heads: int
    kv_heads: int
    head_dim: int
    hidden: int
    activation: str = "silu"
    epsilon: float = 1e-6
    rope: Rope | None = dataclasses.field(default_factory=Rope)
    tied: bool = False
    query_bias: bool = False
    output_bias: bool = False
    mlp_bias: bool = False

    def __post_init__(self) -> None:
        _expect_one_of("architecture", ARCHITECTURES, self.architecture)
        _expect_one_of("activation", ACTIVATIONS, self.activation)
        for name in _SIZES:
            size = getattr(self, name)
            if type(size) is not int or size < 1:
                raise ConfigError(f"{name}: expected a positive integer, got {size!r}")
        if self.heads % self.kv_heads:
            raise ConfigError(f"kv_heads: expected a divisor of {self.heads}, got {self.kv_heads}")
        if (self.rope is None) != (self.architecture == "gpt2"):
            raise ConfigError(f"rope: expected none for gpt2 alone, got {self.rope}")
        if self.rope is not None:
            _expect_one_of("rope.kind", ROTATIONS, self.rope.kind)
            if not self.rope.theta > 0:
                raise ConfigError(f"theta: expected a positive number, got {self.rope.theta}")
            if self.head_dim % 2:
                raise ConfigError(f"head_dim: expected an even number, got {self.head_dim}")

    @property
    def gated(self) -> bool:
        """Returns whether blocks have a gate: all but GPT-2's."""
        return self.architecture != "gpt2"

    def layout(self) -> dict[str, tuple[tuple[int, ...], str]]:
        """Returns shape and beginning of each parameter, by path inside ``"params"``.

        Beginnings are ``"normal"`` (of deviation .02), ``"residual"`` (the same over
        ``sqrt(2 L)``), ``"zeros"`` and ``"ones"``.
        """
        return dict(self._parameters())

    def _parameters(self) -> Iterator[tuple[str, tuple[tuple[int, ...], str]]]:
        inner, keys = self.heads * self.head_dim, self.kv_heads * self.head_dim
        into = "normal" if self.gated else "residual"
        yield "embed/embedding", ((self.vocabulary, self.width), "normal")
        if not self.gated:
            yield "positions/embedding", ((self.context, self.width), "normal")
        kernels = [
            ("attention/query", self.width, inner, self.query_bias, "normal"),
            ("attention/key", self.width, keys, self.query_bias, "normal"),
            ("attention/value", self.width, keys, self.query_bias, "normal"),
            ("attention/output", inner, self.width, self.output_bias, into),
            *([("mlp/gate", self.width, self.hidden, self.mlp_bias, "normal")] * self.gated),
            ("mlp/up", self.width, self.hidden, self.mlp_bias, "normal"),
            ("mlp/down", self.hidden, self.width, self.mlp_bias, into),
        ]
        for number in range(self.depth):
            block = f"blocks_{number}"
            for name, rows, columns, bias, begin in kernels:
                yield f"{block}/{name}/kernel", ((rows, columns), begin)
                if bias:
                    yield f"{block}/{name}/bias", ((columns,), "zeros")
            for name in ("norm1", "norm2"):
                yield from self._norm(f"{block}/{name}")
        yield from self._norm("norm")
        if not self.tied:
            yield "head/kernel", ((self.width, self.vocabulary), "normal")

    def _norm(self, path: str) -> Iterator[tuple[str, tuple[tuple[int, ...], str]]]:
        yield f"{path}/scale", ((self.width,), "ones")
        if not self.gated:
            yield f"{path}/bias", ((self.width,), "zeros")


_SIZES = ("vocabulary", "context", "depth", "width", "heads", "kv_heads", "head_dim", "hidden")


def _expect_one_of(name: str, known: Any, value: object) -> None:
    if value not in known:
        raise ConfigError(f"{name}: expected one of {', '.join(known)}, got {value!r}")


def build_decoder(
    shape: DecoderShape, *, dtype: Any = "float32", remat: bool = False
) -> LanguageModel:
    """Makes the pure functions of a decoder; equal arguments return the same object.

    Dropout is not used: training mode computes what inference mode does. ``init`` draws
    ``float32`` parameters.

    Args:
      shape: sizes and kind.
      dtype: of the computation, whatever the parameters have; norms, rotations and softmax
        are computed in ``float32``, logits are returned in it.
      remat: whether gradients recompute each block instead of keeping what is inside: less
        memory, a third more time.

    Raises:
      ConfigError: a shape that is none; from the functions made, a text beyond the context.
    """
    if not isinstance(shape, DecoderShape):
        raise ConfigError(f"shape: expected a DecoderShape, got {type(shape).__name__}")
    if type(remat) is not bool:
        raise ConfigError(f"remat: expected True or False, got {remat!r}")
    return _built(shape, number_type(dtype), remat)


Patch = Callable[[int, jax.Array], jax.Array]
"""``number, state [B, T, D] -> state`` that the stream goes on from."""


def _unpatched(number: int, own: jax.Array) -> jax.Array:
    del number
    return own


def number_type(dtype: Any) -> str:
    """Returns the name of a type that decoders compute in.

    Raises:
      ConfigError: it is none.
    """
    try:
        name = jnp.dtype(dtype).name
    except TypeError:
        name = str(dtype)
    _expect_one_of("dtype", ("float32", "bfloat16", "float16"), name)
    return name


@functools.cache
def _built(shape: DecoderShape, dtype_name: str, remat: bool) -> LanguageModel:
    dtype = jnp.dtype(dtype_name)

    def block(params: Any, x: jax.Array, turns: Any, visible: jax.Array) -> jax.Array:
        return _block(shape, params, x, turns, visible, None)[0]

    step = jax.checkpoint(block) if remat else block

    def embed(variables: Variables, tokens: jax.Array) -> jax.Array:
        # a token beyond the vocabulary becomes NaN, which is seen, and not another token
        table = variables["params"]["embed"]["embedding"]
        return jnp.take(table, tokens, axis=0, mode="fill").astype(dtype)

    def stream(
        params: Any, embeddings: jax.Array, mask: jax.Array, patch: Patch = _unpatched
    ) -> Iterator[jax.Array]:
        _expect_texts(shape, embeddings, mask)
        places = _places(mask)
        x = _with_positions(shape, params, embeddings.astype(dtype), places)
        turns = _turns(shape, places)
        causal = jnp.tril(jnp.ones((mask.shape[1],) * 2, bool))
        visible = causal[None] & mask[:, None, :]
        x = keep_divided(patch(0, x))
        yield x
        # a scan would need the parameters of blocks stacked, a copy of them all, and is no sooner
        # compiled: 32 blocks with their gradient take 9 s of one core, in a loop 6
        for number in range(shape.depth):
            made = step(params[f"blocks_{number}"], x, turns, visible)
            x = keep_divided(patch(number + 1, made))
            yield x

    def apply_embedded(variables: Variables, embeddings: jax.Array, mask: jax.Array) -> jax.Array:
        params = variables["params"]
        *_, last = stream(params, embeddings, mask)
        return _logits(shape, params, last)

    def apply(variables: Variables, x: Inputs) -> jax.Array:
        return apply_embedded(variables, embed(variables, x["tokens"]), x["mask"])

    def apply_train(variables: Variables, x: Inputs, key: Key) -> tuple[jax.Array, Variables]:
        del key  # nothing is drawn
        return apply(variables, x), variables

    def states(variables: Variables, x: Inputs) -> jax.Array:
        embeddings = embed(variables, x["tokens"])
        return jnp.stack(list(stream(variables["params"], embeddings, x["mask"])))

    def apply_patched(
        variables: Variables, x: Inputs, states: jax.Array, where: jax.Array
    ) -> jax.Array:
        def patch(number: int, own: jax.Array) -> jax.Array:
            return jnp.where(where[number, :, :, None], states[number].astype(own.dtype), own)

        params = variables["params"]
        *_, last = stream(params, embed(variables, x["tokens"]), x["mask"], patch)
        return _logits(shape, params, last)

    def empty_cache(batch: int, length: int) -> dict[str, Any]:
        room = jnp.zeros((batch, length, shape.kv_heads, shape.head_dim), dtype)
        return {
            "blocks": [(room, room) for _ in range(shape.depth)],
            "mask": jnp.zeros((batch, length), bool),
            "length": jnp.zeros((), jnp.int32),
        }

    def extend(
        variables: Variables, cache: Mapping[str, Any], x: Inputs
    ) -> tuple[jax.Array, dict[str, Any]]:
        params, mask, length = variables["params"], x["mask"], cache["length"]
        h = embed(variables, x["tokens"])
        before = jnp.sum(cache["mask"], axis=1, keepdims=True, dtype=jnp.int32)
        places = before + _places(mask)
        h = _with_positions(shape, params, h, places)
        turns = _turns(shape, places)
        seen = jax.lax.dynamic_update_slice(cache["mask"], mask, (jnp.zeros_like(length), length))
        own = length + jnp.arange(mask.shape[1], dtype=jnp.int32)
        causal = jnp.arange(seen.shape[1], dtype=jnp.int32)[None, :] <= own[:, None]
        visible = causal[None] & seen[:, None, :]
        blocks = []
        for number, past in enumerate(cache["blocks"]):
            part = params[f"blocks_{number}"]
            h, kept = _block(shape, part, h, turns, visible, (*past, length))
            blocks.append(kept)
        cache = {"blocks": blocks, "mask": seen, "length": length + mask.shape[1]}
        return _logits(shape, params, h), cache

    return LanguageModel(
        init=functools.partial(_init, shape),
        apply=apply,
        apply_train=apply_train,
        embed=embed,
        apply_embedded=apply_embedded,
        states=states,
        empty_cache=empty_cache,
        extend=extend,
        shape=shape,
        apply_patched=apply_patched,
    )


def _init(shape: DecoderShape, key: Key) -> Variables:
    values: dict[str, jax.Array] = {}
    layout, draws = shape.layout(), [dict[str, int]()]
    for path, (sizes, begin) in layout.items():
        if begin in ("ones", "zeros"):
            values[path] = jnp.ones(sizes) if begin == "ones" else jnp.zeros(sizes)
            continue
        size = math.prod(sizes)
        if sum(draws[-1].values()) + size > _DRAWN:
            draws.append({})
        draws[-1][path] = size
    for number, taken in enumerate(draws):
        noise = jax.random.normal(jax.random.fold_in(key, number), (sum(taken.values()),))
        start = 0
        for path, size in taken.items():
            sizes, begin = layout[path]
            residual = math.sqrt(2 * shape.depth) if begin == "residual" else 1.0
            values[path] = noise[start : start + size].reshape(sizes) * (_DEVIATION / residual)
            start += size
    return {"params": nested(values)}


def nested(values: Mapping[str, Any]) -> dict[str, Any]:
    """Makes a tree of dictionaries of values by path, ``blocks_0/norm1/scale``."""
    tree: dict[str, Any] = {}
    for path, value in values.items():
        *parents, name = path.split("/")
        node = tree
        for parent in parents:
            node = node.setdefault(parent, {})
        node[name] = value
    return tree


def _expect_texts(shape: DecoderShape, embeddings: jax.Array, mask: jax.Array) -> None:
    if mask.ndim != 2 or embeddings.shape[:2] != mask.shape:
        raise DataError(
            f"x: expected tokens and mask [B, T], got {list(embeddings.shape[:-1])} and "
            f"{list(mask.shape)}"
        )
    if mask.shape[1] > shape.context:
        raise ConfigError(
            f"x: expected texts of at most {shape.context} tokens, the model's context, "
            f"got {mask.shape[1]}"
        )


def _places(mask: jax.Array) -> jax.Array:
    """Counts real tokens before each, ``int32 [B, T]``; padding in front is at 0."""
    return jnp.maximum(jnp.cumsum(mask, axis=1, dtype=jnp.int32) - 1, 0)


def _with_positions(shape: DecoderShape, params: Any, x: jax.Array, places: jax.Array) -> jax.Array:
    if shape.rope is not None:
        return x
    return x + jnp.take(params["positions"]["embedding"], places, axis=0).astype(x.dtype)


def _turns(shape: DecoderShape, places: jax.Array) -> tuple[jax.Array, jax.Array] | None:
    """Computes cosines and sines of rotations, ``float32 [B, T, 1, E / 2]``."""
    if shape.rope is None:
        return None
    frequencies = shape.rope.frequencies(shape.head_dim)
    angles = places[:, :, None, None].astype(jnp.float32) * frequencies[None, None, None]
    return jnp.cos(angles), jnp.sin(angles)


def _rotated(x: jax.Array, turns: tuple[jax.Array, jax.Array] | None) -> jax.Array:
    """Turns pairs ``(x_i, x_{i + E / 2})``; ``[B, T, heads, E]``."""
    if turns is None:
        return x
    cos, sin = turns
    first, second = jnp.split(x.astype(jnp.float32), 2, axis=-1)
    turned = [first * cos - second * sin, second * cos + first * sin]
    return jnp.concatenate(turned, axis=-1).astype(x.dtype)


def _linear(params: Mapping[str, jax.Array], x: jax.Array) -> jax.Array:
    y = jnp.einsum("btd,df->btf", x, params["kernel"].astype(x.dtype))
    return y + params["bias"].astype(x.dtype)[None, None] if "bias" in params else y


def _norm(shape: DecoderShape, params: Mapping[str, jax.Array], x: jax.Array) -> jax.Array:
    h = x.astype(jnp.float32)
    if not shape.gated:
        h = h - jnp.mean(h, axis=-1, keepdims=True)
    h = h * jax.lax.rsqrt(jnp.mean(h * h, axis=-1, keepdims=True) + shape.epsilon)
    h = h.astype(x.dtype) * params["scale"].astype(x.dtype)[None, None]
    return h + params["bias"].astype(x.dtype)[None, None] if "bias" in params else h


def _logits(shape: DecoderShape, params: Any, x: jax.Array) -> jax.Array:
    h = _norm(shape, params["norm"], x)
    if shape.tied:
        logits = jnp.einsum("btd,vd->btv", h, params["embed"]["embedding"].astype(h.dtype))
    else:
        logits = _linear(params["head"], h)
    return logits.astype(jnp.float32)


def _block(
    shape: DecoderShape,
    params: Any,
    x: jax.Array,
    turns: Any,
    visible: jax.Array,
    past: tuple[jax.Array, jax.Array, jax.Array] | None,
) -> tuple[jax.Array, tuple[jax.Array, jax.Array]]:
    """Computes one block.

    Args:
      params: of the block.
      x: ``[B, T, D]``.
      turns: of :func:`_turns`.
      visible: ``bool [B, T, S]``, which places each token looks at.
      past: keys and values ``[B, S, heads, E]`` and the place from which these are written;
        ``None`` where the tokens look at each other alone, ``S = T``.

    Returns:
      ``[B, T, D]``, and the keys and values looked at.
    """
    attention = params["attention"]
    h = _norm(shape, params["norm1"], x)
    query, key, value = (
        _linear(attention[name], h).reshape(*x.shape[:2], -1, shape.head_dim)
        for name in ("query", "key", "value")
    )
    query, key = _rotated(query, turns), _rotated(key, turns)
    if past is not None:
        keys, values, begin = past
        start = (jnp.zeros_like(begin), begin, jnp.zeros_like(begin), jnp.zeros_like(begin))
        key = jax.lax.dynamic_update_slice(keys, key, start)
        value = jax.lax.dynamic_update_slice(values, value, start)
    mixed = _attend(query, key, value, visible)
    x = x + _linear(attention["output"], mixed)
    h = _norm(shape, params["norm2"], x)
    mlp = params["mlp"]
    if shape.gated:
        inner = _activated(shape, _linear(mlp["gate"], h)) * _linear(mlp["up"], h)
    else:
        inner = _activated(shape, _linear(mlp["up"], h))
    return x + _linear(mlp["down"], inner), (key, value)


def _activated(shape: DecoderShape, x: jax.Array) -> jax.Array:
    return ACTIVATIONS[shape.activation](x.astype(jnp.float32)).astype(x.dtype)


def _attend(query: jax.Array, key: jax.Array, value: jax.Array, visible: jax.Array) -> jax.Array:
    """Computes ``softmax(q k / sqrt(E)) v`` over visible places, ``[B, T, H E]``."""
    batch, length, heads, size = query.shape
    grouped = query.reshape(batch, length, key.shape[2], -1, size)
    scores = jnp.einsum("btkgd,bskd->bkgts", grouped, key).astype(jnp.float32) / size**0.5
    weights = jax.nn.softmax(jnp.where(visible[:, None, None], scores, _FAR), axis=-1)
    mixed = jnp.einsum("bkgts,bskd->btkgd", weights.astype(value.dtype), value)
    return mixed.reshape(batch, length, heads * size)


def _rotary(
    architecture: str,
    example: Any,
    vocabulary: int,
    *,
    depth: int = 2,
    width: int = 128,
    heads: int = 4,
    kv_heads: int | None = None,
    head_dim: int | None = None,
    hidden: int | None = None,
    context: int = 512,
    theta: float = 10000.0,
    tied: bool = False,
    dtype: Any = "float32",
    remat: bool = False,
) -> LanguageModel:
    """Builds a decoder with rotations of queries and keys; ``example`` is not read.

    Args:
      example: shape of one example.
      vocabulary, depth, width, heads, context, tied: see :class:`DecoderShape`.
      kv_heads: of keys and values; default ``heads``.
      head_dim: default ``width / heads``.
      hidden: default ``8 / 3 width``, up to a multiple of 16.
      theta: of :class:`Rope`.
      dtype, remat: see :func:`build_decoder`.
    """
    del example
    shape = DecoderShape(
        architecture=architecture,
        vocabulary=vocabulary,
        context=context,
        depth=depth,
        width=width,
        heads=heads,
        kv_heads=heads if kv_heads is None else kv_heads,
        head_dim=_head_dim(width, heads) if head_dim is None else head_dim,
        hidden=-(-8 * width // 48) * 16 if hidden is None else hidden,
        rope=Rope(theta=float(theta)),
        tied=tied,
        query_bias=architecture == "qwen2",
    )
    return build_decoder(shape, dtype=dtype, remat=remat)


llama = functools.partial(_rotary, "llama")
mistral = functools.partial(_rotary, "mistral")
qwen2 = functools.partial(_rotary, "qwen2")


def gpt2(
    example: Any,
    vocabulary: int,
    *,
    depth: int = 2,
    width: int = 128,
    heads: int = 4,
    hidden: int | None = None,
    context: int = 512,
    tied: bool = True,
    dtype: Any = "float32",
    remat: bool = False,
) -> LanguageModel:
    """Builds a GPT-2; ``example`` is not read.

    Args:
      example: shape of one example.
      vocabulary, depth, width, heads, context, tied: see :class:`DecoderShape`.
      hidden: default four times the width.
      dtype, remat: see :func:`build_decoder`.
    """
    del example
    shape = DecoderShape(
        architecture="gpt2",
        vocabulary=vocabulary,
        context=context,
        depth=depth,
        width=width,
        heads=heads,
        kv_heads=heads,
        head_dim=_head_dim(width, heads),
        hidden=4 * width if hidden is None else hidden,
        activation="gelu_tanh",
        epsilon=1e-5,
        rope=None,
        tied=tied,
        query_bias=True,
        output_bias=True,
        mlp_bias=True,
    )
    return build_decoder(shape, dtype=dtype, remat=remat)


def _head_dim(width: int, heads: int) -> int:
    for name, size in {"width": width, "heads": heads}.items():
        if type(size) is not int or size < 1:
            raise ConfigError(f"{name}: expected a positive integer, got {size!r}")
    if width % heads:
        raise ConfigError(f"heads: expected a divisor of the width {width}, got {heads}")
    return width // heads
