"""The words of the library as types.

Shapes, here and everywhere: ``N`` examples of a split, ``M`` capacity of a
subset, ``B`` examples of a batch, ``K`` classes, ``...`` the shape of one
example (images are ``H, W, C``).
"""

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax
import numpy as np

from jaxunlearn.core.trees import to_device

Key = jax.Array
"""A typed key, ``jax.random.key(seed)``."""

Variables = Any
"""What a model computes with: a mapping ``{"params": ..., <other collections>}``
whose other collections (batch statistics, say) are not trained; or any pytree
without a ``"params"`` entry, all of which is trained."""

Inputs = Any
"""A pytree of arrays with one leading axis: images ``[B, H, W, C]``, or tokens with a mask."""

State = Any
"""A pytree that an unlearner carries from step to step."""

Apply = Callable[[Variables, Inputs], jax.Array]
"""``apply(variables, x [B, ...]) -> logits [B, K]``, in inference mode."""


class Model(NamedTuple):
    """A network as pure functions; :func:`jaxunlearn.functionalize` makes one.

    Attributes:
      init: ``key -> variables``, freshly drawn.
      apply: ``variables, x -> logits``, in inference mode.
      apply_train: ``variables, x, key -> (logits, variables)``, in training mode;
        the variables returned differ in the collections that are not trained
        (running batch statistics); the key feeds dropout.
    """

    init: Callable[[Key], Variables]
    apply: Apply
    apply_train: Callable[[Variables, Inputs, Key], tuple[jax.Array, Variables]]


class Gan(NamedTuple):
    """A generator and a discriminator as pure functions; ``ju.models.build_gan`` makes one.

    Its variables are ``{"generator": ..., "discriminator": ..., "ema": ...}``, each laid out
    like those of a :class:`Model`; ``"ema"`` is a moving average of the generator, which is
    what images are taken from. ``Z`` is the size of a latent vector ``z``, drawn from the
    standard normal distribution, ``W`` that of a style ``w``.

    Attributes:
      init: ``key -> variables``, freshly drawn; ``"ema"`` equals ``"generator"``.
      style: ``generator, z [B, Z], y int [B] -> w [B, W]``; ``z`` itself where the generator
        has no mapping network. Networks without labels do not read ``y``.
      synthesize: ``generator, w -> x [B, ...]``, in inference mode.
      synthesize_train: ``generator, w, key -> (x, generator)``, in training mode; the variables
        returned differ in the collections that are not trained; the key feeds noise.
      discriminate: ``discriminator, x, y -> d [B]``, the logit of being real, in inference mode.
      discriminate_train: ``discriminator, x, y, key -> (d, discriminator)``.
      latent: ``Z``.
      shape: of one image.
      num_classes: of the labels that the networks read; 0 if they read none.
      couples: whether an image's logit depends on the others of its batch (batch
        normalisation, standard deviation over the batch): then real and generated images
        are passed separately.
      maps: whether the generator has a mapping network, so that ``w`` is not ``z``.
    """

    init: Callable[[Key], Variables]
    style: Callable[[Variables, jax.Array, jax.Array], jax.Array]
    synthesize: Callable[[Variables, jax.Array], jax.Array]
    synthesize_train: Callable[[Variables, jax.Array, Key], tuple[jax.Array, Variables]]
    discriminate: Callable[[Variables, jax.Array, jax.Array], jax.Array]
    discriminate_train: Callable[
        [Variables, jax.Array, jax.Array, Key], tuple[jax.Array, Variables]
    ]
    latent: int
    shape: tuple[int, ...]
    num_classes: int
    couples: bool
    maps: bool


class LanguageModel(NamedTuple):
    """A decoder as pure functions; ``ju.language.build_decoder`` and ``load_pretrained`` make one.

    Its inputs are a mapping with ``"tokens"`` ``int32 [B, T]`` and ``"mask"`` ``bool [B, T]``, true
    where a token is real: rows may be padded on either side, and positions are counted by the
    mask. Other entries of the mapping are not read. ``V`` tokens of the vocabulary, ``D`` width,
    ``L`` blocks. Computation is causal: what stands at ``t`` reads tokens up to ``t``.

    Attributes:
      init: ``key -> {"params": ...}``, freshly drawn.
      apply: ``variables, x -> logits [B, T, V]``; those at ``t`` are of the token at ``t + 1``.
      apply_train: ``variables, x, key -> (logits, variables)``, in training mode.
      embed: ``variables, tokens [B, T] -> [B, T, D]``, embeddings of tokens alone.
      apply_embedded: ``variables, embeddings [B, T, D], mask -> logits``.
      states: ``variables, x -> [L + 1, B, T, D]``, the residual stream: of the embeddings, and
        behind each block.
      empty_cache: ``batch, length -> cache`` of keys and values, for generation.
      extend: ``variables, cache, x -> (logits [B, T, V], cache)``: reads ``T`` more tokens behind
        those in the cache, whose places hold ``mask``, too.
      shape: sizes and kind of the network, hashable; see ``ju.language.DecoderShape``.
      apply_patched: ``variables, x, states [L + 1, B, T, D], where bool [L + 1, B, T] -> logits``:
        the residual stream goes on from these states where ``where`` says so; ``None`` for a
        network that cannot.
    """

    init: Callable[[Key], Variables]
    apply: Apply
    apply_train: Callable[[Variables, Inputs, Key], tuple[jax.Array, Variables]]
    embed: Callable[[Variables, jax.Array], jax.Array]
    apply_embedded: Callable[[Variables, jax.Array, jax.Array], jax.Array]
    states: Callable[[Variables, Inputs], jax.Array]
    empty_cache: Callable[[int, int], Any]
    extend: Callable[[Variables, Any, Inputs], tuple[jax.Array, Any]]
    shape: Any
    apply_patched: Callable[[Variables, Inputs, jax.Array, jax.Array], jax.Array] | None = None


class Examples(NamedTuple):
    """Labelled examples as they lie on the device, shared by many subsets.

    Attributes:
      x: any pytree of arrays ``[N, ...]`` with one leading axis, as stored: bytes of images,
        ``{"tokens": int [N, T], "mask": bool [N, T]}``.
      y: ``int32 [N]``, class labels; ``[N, ...]`` where a kind of model says so.
      reader: turns the stored ``x`` of a batch into what the network takes; see
        :mod:`jaxunlearn.data.examples`. Its arrays are leaves, its function is static.
    """

    x: Inputs
    y: jax.Array
    reader: jax.tree_util.Partial


class Subset(NamedTuple):
    """Some of the examples: the first ``size`` of ``indices``.

    ``size`` is an array, not a shape, so that subsets of different sizes and
    one capacity run in one compiled program and map over a leading axis.

    Attributes:
      examples: those that it is a part of, shared with other subsets.
      indices: ``int32 [M]``, positions in ``examples``; those behind ``size``
        are padding and repeat valid ones.
      size: ``int32 []``, between 0 and ``M``.
    """

    examples: Examples
    indices: jax.Array
    size: jax.Array


class Batch(NamedTuple):
    """Examples drawn from a subset, as the network takes them.

    Attributes:
      x: what the reader made of the examples: ``float32 [B, ...]``, or any pytree of arrays
        with the leading axis ``B``.
      y: ``int32 [B]``, or ``[B, ...]`` as in :class:`Examples`; all ``-1`` for a method that
        declared not to need labels.
      weight: ``float32 [B]``, 1 for an example that counts, 0 for padding.
      slot: ``int32 [B]``, places in the subset, from 0 to ``size - 1``: where ``init``,
        which sees the whole subset in its order, computed something of each example.
    """

    x: Inputs
    y: jax.Array
    weight: jax.Array
    slot: jax.Array


class Sets(NamedTuple):
    """What a request to forget makes of the data; a field may be ``None``.

    Attributes:
      forget: training examples to be forgotten.
      retain: all other training examples.
      unseen: examples of what is to be forgotten that no training saw.
      holdout: examples of everything else that no training saw.
      test_forget: test examples of what is to be forgotten (evaluation only).
      test_retain: all other test examples (evaluation only).
    """

    forget: Subset | None = None
    retain: Subset | None = None
    unseen: Subset | None = None
    holdout: Subset | None = None
    test_forget: Subset | None = None
    test_retain: Subset | None = None

    @property
    def train(self) -> Subset:
        """Returns all training examples, those to be forgotten and those to be retained."""
        parts = [part for part in (self.forget, self.retain) if part is not None]
        if not parts:
            raise ValueError("sets: expected forget or retain, got neither")
        # they share all examples, but where one alone was read out of a stream
        part = max(parts, key=lambda part: len(part.examples.y))
        count = len(part.examples.y)
        places = to_device(np.arange(count, dtype=np.int32))
        return Subset(part.examples, places, to_device(count, np.int32))


class Batches(NamedTuple):
    """One step's batch of each set that the unlearner declared."""

    forget: Batch | None = None
    retain: Batch | None = None
    unseen: Batch | None = None
    holdout: Batch | None = None


class Needs(NamedTuple):
    """What an unlearner may see; the runner passes nothing else.

    Attributes:
      forget, retain, unseen, holdout: whether the set is passed.
      labels: whether labels are passed with the examples.
      once: a single pass: every step brings examples not seen before, the last
        batch is padded with weight 0, and the number of steps follows from the
        size of the sets. Otherwise the sets are shuffled and repeated for as
        many steps as the caller asks.
      samples: with ``once``, at most so many examples of each set, drawn at
        random; ``None`` for all.
      original: whether an objective reads the original's variables in every step.
    """

    forget: bool = False
    retain: bool = False
    unseen: bool = False
    holdout: bool = False
    labels: bool = True
    once: bool = False
    samples: int | None = None
    original: bool = False


class Info(NamedTuple):
    """Diagnostics of one step: read by a person or a stop rule, never carried.

    Attributes:
      metrics: named scalars (``loss``, ``accuracy``, ...).
      finite: ``bool []``, whether loss and update were finite.
    """

    metrics: dict[str, jax.Array]
    finite: jax.Array


class Preparation(NamedTuple):
    """What a method finds out on the host, before its compiled part.

    For fits by libraries that know arrays only (scikit-learn), on the sets that the
    method declared. Its time counts as the method's.

    Attributes:
      run: ``variables, sets, key -> prepared``, any pytree of arrays, whose shapes do not
        depend on values; of several members it is run for each.
      shapes: ``variables, sets -> prepared`` as ``jax.ShapeDtypeStruct``; it is given shapes and
        dtypes of the sets that the method declared, and of the model these or arrays. Raises
        what ``run`` would, as far as that can be told.
    """

    run: Callable[[Variables, "Sets", Key], Any]
    shapes: Callable[[Variables, "Sets"], Any]


class Unlearner(NamedTuple):
    """A method that makes a model forget, as pure functions.

    Attributes:
      init: ``variables, sets, key -> state``; all that is computed before the loop. With a
        preparation: ``variables, sets, key, prepared -> state``.
      step: ``state, batches, key, count -> (state, info)``; compiled once. The runner hands
        out a key of each step's own and ``count``, ``int32 []``, the steps done before: no
        state carries a key that changes, or a counter. ``None``: all is computed in ``init``,
        and ``needs.once`` is set.
      result: ``state -> variables`` of the same structure, shapes and dtypes as
        those given to ``init``.
      needs: which sets ``init`` and ``step`` may see.
      prepare: what is found out before ``init``, where that cannot be compiled.
      remarks: ``diagnostics of the last step -> sentences``, what a person should be told of
        the outcome; the runner warns of each.
      model: the network whose variables it changes, where they can be checked against one.
      forgets: requests that it suits, ``"class"``, ``"items"``; others are refused.
      name: what messages call it.
    """

    init: Callable[..., State]
    step: Callable[[State, Batches, Key, jax.Array], tuple[State, Info]] | None
    result: Callable[[State], Variables]
    needs: Needs
    prepare: Preparation | None = None
    remarks: Callable[[Mapping[str, float]], list[str]] | None = None
    model: Model | LanguageModel | None = None
    forgets: tuple[str, ...] = ("class", "items")
    name: str = "the method"
