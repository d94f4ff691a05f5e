"""The built-in classifiers of texts: a transformer encoder, and a bag of words."""

import functools
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx
from jax.ad_checkpoint import checkpoint_name

from jaxunlearn.core.errors import ConfigError

EMBEDDING = "embedding"
"""The name under which attributions find the embeddings of tokens."""

# scores of what is not looked at: far below any other, and a softmax of these alone is finite
_FAR = -1e9


class TextTransformer(nnx.Module):
    """Transformer encoder with masked mean pooling.

    ``embed + positions - block1 ... - norm - mean over words - fc1 - relu ... - head``, with
    blocks ``x + attention(norm1(x))``, ``x + mlp(norm2(x))``. Inputs are
    ``{"tokens": int [B, T], "mask": bool [B, T]}``, the mask true where a token counts; logits
    ``float32 [B, K]``. The sum of both embeddings is named :data:`EMBEDDING`. A text without
    any token is read as the mean of nothing, 0.

    Source: Vaswani et al. 2017 (arXiv 1706.03762), norms in front as in Xiong et al. 2020
    (arXiv 2002.04745).
    """

    def __init__(
        self,
        inputs: Any,
        num_classes: int,
        *,
        vocabulary: int = 8192,
        width: int = 64,
        blocks: int = 2,
        heads: int = 4,
        hidden: int | None = None,
        features: Sequence[int] = (128,),
        dropout: float = 0.1,
        dtype: Any = None,
        rngs: nnx.Rngs,
    ):
        """Draws the parameters.

        Args:
          inputs: shapes of a batch, ``{"tokens": [B, T], "mask": [B, T]}``; longer texts than
            ``T`` are refused afterwards.
          num_classes: ``K``.
          vocabulary: tokens ``0 .. V - 1``; a larger one makes the output NaN.
          width: of embeddings and blocks.
          blocks: how many; none leaves a bag of words, without positions.
          heads: of attention; they divide the width.
          hidden: width inside a block; default four times ``width``.
          features: widths of dense layers with ReLU between mean and head.
          dropout: share of numbers set to 0 in training, behind embeddings and in blocks.
          dtype: of the computation (``"bfloat16"``, say); parameters are float32.
          rngs: where the parameters come from.

        Raises:
          ConfigError: inputs that are no tokens with a mask, or numbers out of range.
        """
        length = _length_of(inputs)
        sizes = {"vocabulary": vocabulary, "width": width, "heads": heads}
        if hidden is not None:
            sizes["hidden"] = hidden
        for name, size in sizes.items():
            if type(size) is not int or size < 1:
                raise ConfigError(f"{name}: expected a positive integer, got {size!r}")
        if type(blocks) is not int or blocks < 0:
            raise ConfigError(f"blocks: expected an integer of 0 or more, got {blocks!r}")
        if width % heads:
            raise ConfigError(f"heads: expected a divisor of the width {width}, got {heads}")
        if not 0 <= dropout < 1:
            raise ConfigError(f"dropout: expected a share from 0 to below 1, got {dropout!r}")
        if not isinstance(features, Sequence) or any(type(n) is not int or n < 1 for n in features):
            raise ConfigError(f"features: expected widths such as (64,), got {features!r}")
        kind: dict[str, Any] = {"dtype": dtype, "rngs": rngs}
        self.length, self.blocks, self.depth = length, blocks, len(features)
        self.embed = nnx.Embed(vocabulary, width, embedding_init=_NORMAL, **kind)
        if blocks:
            self.positions = nnx.Embed(length, width, embedding_init=_NORMAL, **kind)
            self.norm = _layer_norm(width, rngs)
        self.dropout = nnx.Dropout(dropout, rngs=rngs)
        for number in range(1, blocks + 1):
            block = _Block(width, heads, hidden or 4 * width, dropout, dtype, rngs)
            setattr(self, f"block{number}", block)
        for number, size in enumerate(features, 1):
            setattr(self, f"fc{number}", nnx.Linear(width, size, **kind))
            width = size
        self.head = nnx.Linear(width, num_classes, **kind)

    def __call__(self, x: Mapping[str, jax.Array]) -> jax.Array:
        tokens, mask = x["tokens"], x["mask"]
        if tokens.shape[1] > self.length:
            raise ConfigError(
                f"x: expected texts of at most {self.length} tokens, as the network was built "
                f"for, got {tokens.shape[1]}"
            )
        h = self.embed(tokens)
        if self.blocks:
            h = h + self.positions(jnp.arange(tokens.shape[1], dtype=jnp.int32))[None]
        h = self.dropout(checkpoint_name(h, EMBEDDING))
        for number in range(1, self.blocks + 1):
            h = getattr(self, f"block{number}")(h, mask)
        if self.blocks:
            h = _normalise(self.norm, h)
        counted = mask.astype(h.dtype)
        count = jnp.maximum(jnp.sum(counted, axis=1, keepdims=True), jnp.ones((), h.dtype))
        h = jnp.sum(h * counted[:, :, None], axis=1) / count
        for number in range(1, self.depth + 1):
            h = nnx.relu(getattr(self, f"fc{number}")(h))
        return self.head(h).astype(jnp.float32)


# one dense layer on the mean of the embeddings: words in any order
TextBag = functools.partial(TextTransformer, blocks=0, features=(128,))

_NORMAL = nnx.initializers.normal(0.02)


class _Block(nnx.Module):
    """``y = x + out(attention(norm1(x)))``, then ``y + fc2(gelu(fc1(norm2(y))))``."""

    def __init__(
        self, width: int, heads: int, hidden: int, dropout: float, dtype: Any, rngs: nnx.Rngs
    ):
        kind: dict[str, Any] = {"dtype": dtype, "rngs": rngs}
        self.heads = heads
        self.norm1, self.norm2 = _layer_norm(width, rngs), _layer_norm(width, rngs)
        self.query, self.key, self.value, self.out = (
            nnx.Linear(width, width, **kind) for _ in range(4)
        )
        self.fc1, self.fc2 = nnx.Linear(width, hidden, **kind), nnx.Linear(hidden, width, **kind)
        self.dropout = nnx.Dropout(dropout, rngs=rngs)

    def __call__(self, x: jax.Array, mask: jax.Array) -> jax.Array:
        h = _normalise(self.norm1, x)
        query, key, value = (self._split(part(h)) for part in (self.query, self.key, self.value))
        scores = jnp.einsum("bqhd,bkhd->bhqk", query, key) / query.shape[-1] ** 0.5
        seen = jnp.where(mask[:, None, None], scores, jnp.asarray(_FAR, scores.dtype))
        weights = jax.nn.softmax(seen.astype(jnp.float32), axis=-1).astype(scores.dtype)
        mixed = jnp.einsum("bhqk,bkhd->bqhd", weights, value).reshape(x.shape)
        x = x + self.dropout(self.out(mixed))
        h = nnx.gelu(self.fc1(_normalise(self.norm2, x)))
        return x + self.dropout(self.fc2(h))

    def _split(self, h: jax.Array) -> jax.Array:
        return h.reshape(*h.shape[:2], self.heads, -1)


def _layer_norm(width: int, rngs: nnx.Rngs) -> nnx.LayerNorm:
    return nnx.LayerNorm(width, dtype=jnp.float32, rngs=rngs)


def _normalise(norm: nnx.LayerNorm, x: jax.Array) -> jax.Array:
    # in float32, whatever the network computes in: statistics want the digits
    return norm(x.astype(jnp.float32)).astype(x.dtype)


def _length_of(inputs: Any) -> int:
    """Returns the length of texts, of shapes and dtypes of a batch."""
    if not isinstance(inputs, Mapping) or not {"tokens", "mask"} <= set(inputs):
        got = ", ".join(inputs) if isinstance(inputs, Mapping) else f"{inputs!r}"
        raise ConfigError(f"inputs: expected tokens and mask of texts, got {got}")
    tokens, mask = inputs["tokens"], inputs["mask"]
    if tokens.ndim != 2 or mask.shape != tokens.shape or tokens.dtype.kind not in "iu":
        raise ConfigError(
            f"inputs: expected integer tokens [B, T] and a mask of this shape, got {tokens.dtype} "
            f"{list(tokens.shape)} and {list(mask.shape)}"
        )
    return int(tokens.shape[1])
