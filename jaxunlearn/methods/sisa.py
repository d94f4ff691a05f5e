"""SISA: networks that each saw a shard of the data, so that forgetting retrains a few of them.

The model is an ensemble, and has training of its own: it is made by the same method that makes it
forget::

    ensemble = sharded(model, shards=5, slices=4)
    method = ju.sisa(model, optimizer=optax.adam(1e-3), shards=5, slices=4, steps=400)
    original = ju.unlearn(method, None, Sets(retain=sets.train), key, steps=400).variables
    unlearned = ju.unlearn(method, original, sets, key, steps=400).variables
    ju.evaluate(ensemble, ...)
"""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from jaxunlearn.core.errors import ConfigError, expect_counts, expect_one_of, expect_optimizer
from jaxunlearn.core.trees import choose, ensemble, in_chunks, precise
from jaxunlearn.core.types import (
    Apply,
    Batches,
    Examples,
    Info,
    Inputs,
    Key,
    Model,
    Needs,
    Sets,
    Subset,
    Unlearner,
    Variables,
)
from jaxunlearn.data.batches import draw, mix_bits
from jaxunlearn.methods.retrain import learn_retained
from jaxunlearn.methods.shares import CHUNK
from jaxunlearn.models import functionalize
from jaxunlearn.training.descent import DescentState, descent

VOTES = ("mean", "majority")
"""Ways in which the networks of an ensemble decide."""

CHECKPOINTS, SEEN = "checkpoints", "seen"
"""Collections of an ensemble beside those of its networks."""


class Shards(NamedTuple):
    """State of sharded training.

    Attributes:
      networks: of each shard, variables and optimizer, leaves ``[S, ...]``.
      checkpoints: variables before each slice, leaves ``[S, R, ...]``.
      seen: ``uint32 [S, R, 2]``, fingerprints of what is retained of each slice.
      first: ``int32 [S]``, the first slice that is trained on anew; ``R``: none.
      retain: the examples.
      order: ``int32 [S, M]``, those of each shard, slice by slice.
      sizes: ``int32 [S, R]``, how many are in a shard's slices up to this one.
      key: of the order in which they are drawn.
    """

    networks: DescentState
    checkpoints: Variables
    seen: jax.Array
    first: jax.Array
    retain: Subset
    order: jax.Array
    sizes: jax.Array
    key: Key


def sharded(model: Model | Apply, shards: int, slices: int = 1, *, vote: str = "mean") -> Model:
    """Makes the ensemble of ``S`` networks whose variables :func:`sisa` trains.

    ``z = log mean_s softmax(f_s(x))``, or the logarithm of the share of networks whose largest
    logit it is. Its variables are those of the networks, leaves ``[S, ...]``, with
    ``"checkpoints"`` ``[S, R, ...]``, the networks before each slice, and ``"seen"``, fingerprints
    of what each slice holds. In training mode all networks learn from one batch.

    Args:
      model: see :func:`jaxunlearn.functionalize`; its variables have a collection ``"params"``.
      shards, slices: ``S``, ``R``.
      vote: ``"mean"`` of probabilities, or ``"majority"``.
    """
    expect_counts(shards=shards, slices=slices)
    expect_one_of(VOTES, vote=vote)
    model = functionalize(model)

    def decide(logits: jax.Array) -> jax.Array:
        logits = precise(logits)
        if vote == "mean":
            count = jnp.log(jnp.asarray(shards, logits.dtype))
            return jax.nn.logsumexp(jax.nn.log_softmax(logits), axis=0) - count
        won = jax.nn.one_hot(jnp.argmax(logits, axis=-1), logits.shape[-1], dtype=logits.dtype)
        return jnp.log(jnp.maximum(jnp.mean(won, axis=0), jnp.finfo(won.dtype).tiny))

    def init(key: Key) -> Variables:
        networks = jax.vmap(model.init)(_keys(key, shards))
        if not isinstance(networks, dict) or "params" not in networks:
            raise ConfigError("model: expected variables with a collection 'params', got others")
        held = jax.tree.map(lambda leaf: jnp.stack([leaf] * slices, axis=1), networks)
        return {**networks, CHECKPOINTS: held, SEEN: jnp.zeros((shards, slices, 2), jnp.uint32)}

    def apply(variables: Variables, x: Inputs) -> jax.Array:
        return decide(ensemble(model.apply, (0, None))(_networks(variables), x))

    def apply_train(variables: Variables, x: Inputs, key: Key) -> tuple[jax.Array, Variables]:
        over = ensemble(model.apply_train, (0, None, 0))
        logits, moved = over(_networks(variables), x, _keys(key, shards))
        return decide(logits), {**variables, **moved}

    return Model(init, apply, apply_train)


def sisa(
    model: Model | Apply,
    *,
    optimizer: optax.GradientTransformation,
    shards: int = 5,
    slices: int = 1,
    augment: str = "none",
    steps: int = 100,
) -> Unlearner:
    """Trains the networks of an ensemble, each on a shard, and retrains those that must forget.

    An example belongs to a shard and a slice of it by a hash of what it holds. Each of ``S``
    networks is trained on its own shard: ``steps / R`` steps on the first slice, as many on the
    first two, and so on to all ``R``, with the optimizer begun anew; before each slice a
    checkpoint is kept. The model remembers what each slice held. Where a slice holds something
    else now, the network goes back to the checkpoint before it, and is trained on from there;
    other networks stay bit-equal. Where that is the first slice, the network is drawn anew.

    Exact: with the same key the result is that of training without the forgotten examples from
    the start, bit for bit; with one shard and one slice it is :func:`jaxunlearn.retrain`. The
    ensemble is its own original: variables of another network are refused, ``None`` trains all
    of it (on ``Sets(retain=...)``). It pays where few examples are forgotten: a class lies in every
    shard. Shards are of unequal size, by chance. Data are to be normalised by statistics that do
    not depend on what is forgotten.

    Args:
      model: of one network, see :func:`jaxunlearn.functionalize`; :func:`sharded` makes the
        ensemble's.
      optimizer: any optax transformation.
      shards, slices: ``S``, ``R``.
      augment: a name in ``AUGMENTATIONS``.
      steps: how many the method will do, on each shard.

    Raises:
      ConfigError: variables that are not those of such an ensemble.

    Source: Bourtoule et al., "Machine unlearning", IEEE S&P 2021 (arXiv 1912.03817).
    """
    expect_counts(shards=shards, slices=slices, steps=steps)
    expect_optimizer(optimizer)
    model = functionalize(model)
    whole = sharded(model, shards, slices)
    learn = descent(learn_retained(model, augment), optimizer, Needs(retain=True)).step
    assert learn is not None
    length = -(-steps // slices)

    def begin(networks: Variables) -> optax.OptState:
        with jax.numpy_dtype_promotion("standard"):
            return jax.vmap(optimizer.init)(networks["params"])

    def init(variables: Variables, sets: Sets, key: Key) -> Shards:
        retain = sets.retain
        assert retain is not None
        fresh = whole.init(key)
        given = fresh if variables is None else variables
        _expect_sharded(given, fresh)
        shard, part, words = places_of(retain, shards, slices)
        # those of other shards come last, padding too
        own = shard[None] == jnp.arange(shards)[:, None]
        order = jnp.argsort(jnp.where(own, part[None], slices), axis=1, stable=True)
        inside = own[:, None] & (part[None, None] == jnp.arange(slices)[None, :, None])
        sizes = jnp.cumsum(jnp.sum(inside, axis=2, dtype=jnp.int32), axis=1, dtype=jnp.int32)
        seen = jnp.sum(jnp.where(inside[..., None], words[None, None], 0), axis=2, dtype=jnp.uint32)
        changed = jnp.any(seen != given[SEEN], axis=2)
        first = jnp.where(jnp.any(changed, axis=1), jnp.argmax(changed, axis=1), slices)
        # what knows of a changed slice is gone before the first step
        held = choose(first == 0, fresh[CHECKPOINTS], given[CHECKPOINTS])
        behind = jnp.arange(slices)[None] > first[:, None]
        back = _slice(held, jnp.minimum(first, slices - 1))
        repeated = jax.tree.map(lambda leaf: jnp.stack([leaf] * slices, axis=1), back)
        held = choose(behind, repeated, held)
        networks = choose(first < slices, back, _networks(given))
        return Shards(
            DescentState(networks, begin(networks)), held, seen, first.astype(jnp.int32), retain,
            order.astype(jnp.int32), sizes, key,
        )  # fmt: skip

    def step(state: Shards, batches: Batches, key: Key, count: jax.Array) -> tuple[Shards, Info]:
        stage = jnp.minimum(count // length, slices - 1)
        size = jax.lax.dynamic_index_in_dim(state.sizes, stage, axis=1, keepdims=False)
        active = (state.first <= stage) & (size > 0)
        begins = active & (count == stage * length)
        networks = state.networks
        before = jax.tree.map(lambda leaf: leaf[:, stage], state.checkpoints)
        held = jax.tree.map(
            lambda leaf, now: leaf.at[:, stage].set(now),
            state.checkpoints, choose(begins, networks.variables, before),
        )  # fmt: skip
        anew = choose(begins, begin(networks.variables), networks.opt_state)
        networks = networks._replace(opt_state=anew)

        def train(own: tuple[Any, ...]) -> tuple[DescentState, Info]:
            network, order, size, drawn, used = own
            batch = batches.retain
            if shards * slices > 1:  # one network alone learns from what the runner draws
                part = Subset(state.retain.examples, order, size)
                assert batch is not None
                place = count - stage * length
                batch = draw(part, jax.random.fold_in(drawn, stage), place, len(batch.y), Needs())
            return learn(network, Batches(retain=batch), used, count)

        def one(own: tuple[Any, ...]) -> tuple[DescentState, Info]:
            like = jax.eval_shape(train, own[1:])[1]
            blank = jax.tree.map(lambda leaf: jnp.zeros(leaf.shape, leaf.dtype), like)
            still = blank._replace(finite=jnp.asarray(True))
            return jax.lax.cond(own[0], train, lambda rest: (rest[0], still), own[1:])

        keys = _keys(state.key, shards), _keys(key, shards)
        networks, info = jax.lax.map(one, (active, networks, state.order, size, *keys))
        share = active.astype(jnp.float32) / jnp.maximum(jnp.sum(active), 1).astype(jnp.float32)
        metrics = {
            name: jnp.sum(share * value.astype(jnp.float32)) for name, value in info.metrics.items()
        }
        metrics["retrained"] = jnp.mean(active.astype(jnp.float32))
        state = state._replace(networks=networks, checkpoints=held)
        return state, Info(metrics, jnp.all(info.finite))

    def result(state: Shards) -> Variables:
        return {**state.networks.variables, CHECKPOINTS: state.checkpoints, SEEN: state.seen}

    return Unlearner(init, step, result, Needs(retain=True), name="sisa")


def places_of(part: Subset, shards: int, slices: int) -> tuple[jax.Array, jax.Array, jax.Array]:
    """Tells the shard and the slice of each example, by a hash of input and label as stored.

    Args:
      part: ``M`` examples.
      shards, slices: ``S``, ``R``.

    Returns:
      ``int32 [M]``, of which padding is in shard ``S``; ``int32 [M]``; ``uint32 [M, 2]``, whose
      sums tell sets of examples apart.
    """

    def one(rows: jax.Array) -> jax.Array:
        found = [hashed(part.examples, part.indices[rows], salt) for salt in range(4)]
        return jnp.stack(found, axis=1)

    words = in_chunks(one, len(part.indices), CHUNK)
    counted = jnp.arange(len(part.indices), dtype=jnp.int32) < part.size
    shard = (words[:, 0] % jnp.uint32(shards)).astype(jnp.int32)
    slice_ = (words[:, 1] % jnp.uint32(slices)).astype(jnp.int32)
    return jnp.where(counted, shard, shards), slice_, words[:, 2:]


def hashed(examples: Examples, positions: jax.Array, salt: int) -> jax.Array:
    """Computes a number of 32 bits of each example, ``uint32 [B]``; others for another salt."""
    count, total = len(positions), jnp.zeros(len(positions), jnp.uint32)
    for number, leaf in enumerate(jax.tree.leaves((examples.x, examples.y))):
        values = leaf[positions].reshape(count, -1)
        if values.dtype == bool or values.dtype.itemsize < 4:
            words = values.astype(jnp.float32 if values.dtype.kind == "f" else jnp.int32)
        else:
            words = values
        words = jax.lax.bitcast_convert_type(words, jnp.uint32).reshape(count, -1)
        places = jnp.arange(words.shape[1], dtype=jnp.uint32)
        marks = mix_bits(places + jnp.uint32((salt * 64 + number + 1) << 20))
        total += jnp.sum(mix_bits(words ^ marks[None]), axis=1, dtype=jnp.uint32)
    return mix_bits(total)


def _keys(key: Key, shards: int) -> Key:
    """Returns a key for each network; that of the first is the key itself."""
    others = [jax.random.fold_in(key, number) for number in range(1, shards)]
    return jnp.stack([key, *others])


def _networks(variables: Variables) -> Variables:
    return {name: own for name, own in variables.items() if name not in (CHECKPOINTS, SEEN)}


def _slice(held: Any, number: jax.Array) -> Any:
    """Takes of each shard's checkpoints the one of a number ``[S]``."""
    rows = jnp.arange(len(number))
    return jax.tree.map(lambda leaf: leaf[rows, number], held)


def _expect_sharded(given: Variables, fresh: Variables) -> None:
    forms = [
        (jax.tree.structure(one), [(leaf.shape, leaf.dtype) for leaf in jax.tree.leaves(one)])
        for one in (given, fresh)
    ]
    if forms[0] != forms[1]:
        raise ConfigError(
            "variables: expected those of an ensemble of these shards and slices, which sisa "
            "itself makes of None (see methods.sisa.sharded), got others"
        )
