"""Methods with data of their own, or with training of their own."""

import jax
import jax.numpy as jnp
import numpy as np
import optax

import jaxunlearn as ju
from jaxunlearn.core.types import Batches, Sets
from jaxunlearn.methods.gkt import attention, generate, passes
from jaxunlearn.methods.sisa import places_of
from jaxunlearn.methods.unsir import raise_noise
from tests import toy
from tests.methods.exact.baselines import RATE, regression, slope
from tests.methods.exact.teachers import KEY, equal, softmax, whole


def unsir():
    """Of three classes no retained example has the last: noise is made of it."""
    model, variables, x, _ = regression()
    y, w = np.array([0, 1, 1, 0], np.int32), np.array(variables["params"]["w"])
    count, penalty = 6, 0.1
    labels = jnp.full(count, 2)
    start = np.random.default_rng(1).normal(size=(count, 5))
    rates = {"rate": 0.1, "norm_weight": penalty}

    def raised(steps, **options):
        return raise_noise(
            lambda x: x @ variables["params"]["w"], jnp.asarray(start), labels, steps=steps,
            **{**rates, **options},
        )  # fmt: skip

    losses = np.asarray(raised(40)[1])
    noise, first, second = start.copy(), np.zeros_like(start), np.zeros_like(start)
    for turn in range(1, 4):
        p = softmax(noise @ w)
        p[:, 2] -= 1
        gradient = 2 * penalty * noise / count - p @ w.T / count
        first, second = 0.9 * first + 0.1 * gradient, 0.999 * second + 0.001 * gradient**2
        unbiased = first / (1 - 0.9**turn), second / (1 - 0.999**turn)
        noise = noise - 0.1 * unbiased[0] / (np.sqrt(unbiased[1]) + 1e-8)

    method = ju.unsir(
        model, optimizer=optax.sgd(RATE), noises=1, noise_share=0.5, share=1.0, impair=0.5, steps=2
    )
    sets = Sets(retain=toy.exact_subset(x, y))
    found = method.prepare.run(variables, sets, KEY)
    state = method.init(variables, sets, KEY, found)
    made, batch = np.asarray(state.prepared.noise), Batches(retain=whole(x, y))
    impaired, _ = method.step(state, batch, KEY, jnp.int32(0))
    repaired, _ = method.step(impaired, batch, KEY, jnp.int32(1))
    mixed = np.concatenate([made, made, x[2:]])
    hand = w - RATE * slope(w, mixed, np.array([2, 2, 1, 0]))
    return [
        ("steps of noise that raise the loss", np.sum(np.diff(losses) > 0), 40, 0),
        ("three steps of noise", raised(3)[0], noise, 1e-12),
        ("classes without retained examples", found, np.array([False, False, True]), 0),
        ("one step on rows half of which are noise", impaired.variables["params"]["w"], hand, 1e-9),
        (
            "one step of repair",
            repaired.variables["params"]["w"],
            hand - RATE * slope(hand, x, y),
            1e-9,
        ),
    ]


def gkt():
    """Of a softmax regression the attention is that of the input itself: it pulls nowhere."""
    model, variables, x, y = regression()
    w, drawn = np.array(variables["params"]["w"]), np.random.default_rng(1).normal(size=(5, 3))
    model = model._replace(init=lambda key: {"params": {"w": jnp.asarray(drawn)}})
    limit = 0.2
    method = ju.gkt(model, optimizer=optax.sgd(RATE), student_steps=1, limit=limit, latent=4)
    state = method.init(variables, Sets(unseen=toy.exact_subset(x, y % 2 + 1)), KEY)
    state = state._replace(classes=jnp.asarray([False, True, False]))
    batches = Batches(unseen=whole(np.tile(x, (16, 1)), np.tile(y, 16)))
    state, _ = method.step(state, batches, KEY, jnp.int32(0))
    z = jax.random.normal(jax.random.fold_in(state.order, 0), (64, 4), jnp.float64)
    made = np.asarray(generate(state.generator, z, (5,)))
    teacher = softmax(made @ w)
    kept = np.asarray(passes(made @ w, state.classes, limit)) > 0
    pull = made[kept].T @ (softmax(made @ drawn) - teacher)[kept] / kept.sum() / 3
    stepped, told = method.step(state, batches, KEY, jnp.int32(1))
    same = state._replace(student=variables)
    still, at_goal = method.step(same, batches, KEY, jnp.int32(1))
    images = np.random.default_rng(2).normal(size=(2, 3, 4, 5))

    def maps(v, x):  # a 1x1 convolution
        return jnp.einsum("bhwc,ck->bhwk", x, v["params"]["w"]).mean((1, 2))

    seen = attention(maps, variables, jnp.asarray(images))
    squares = np.square(images @ w).mean(-1).reshape(2, -1)
    squares /= np.linalg.norm(squares, axis=1, keepdims=True)
    return [
        ("inputs that pass, of 64", float(told.metrics["passed"]) * 64, kept.sum(), 0),
        ("likeliest of those is under the limit", bool(teacher[kept, 1].max() <= limit), True, 0),
        ("and of the others above", bool(teacher[~kept, 1].min() > limit), True, 0),
        ("one step of the student", stepped.student["params"]["w"], drawn - RATE * pull, 1e-12),
        ("attention over positions", seen[0], squares, 1e-12),
        ("loss of a student that is the teacher: it leaks", at_goal.metrics["loss"], 0.0, 0),
        ("which stays", still.student["params"]["w"], w, 1e-15),
        ("the teacher does not move", equal(stepped.original, variables), True, 0),
    ]


def condense():
    """Three linear layers, one for each part; buckets of one example, and of many."""
    rng = np.random.default_rng(0)
    params = {name: jnp.asarray(rng.normal(size=size)) for name, size in SIZES.items()}
    x, y = rng.normal(size=(12, 4)), np.repeat([0, 1, 2], 4).astype(np.int32)
    model = ju.functionalize(_three_layers, sample_input=jnp.zeros((1, 4)))
    variables, forgotten = {"params": params}, np.isin(np.arange(12), [1, 6])
    sets = Sets(
        forget=toy.exact_subset(x[forgotten], y[forgotten]),
        retain=toy.exact_subset(x[~forgotten], y[~forgotten]),
    )

    def begun(size):
        optimizer = optax.chain(optax.add_decayed_weights(0.1), optax.sgd(RATE, momentum=0.9))
        method = ju.condense(
            model, optimizer=optimizer, bucket_size=size, condense_steps=25 if size == 1 else 0,
            rounds=2, opening=1, steps=4,
        )  # fmt: skip
        found = method.prepare.run(variables, sets, KEY)
        return method, method.init(variables, sets, KEY, found), found

    method, state, _ = begun(1)
    condensed = state.prepared.condensed.part
    images = np.asarray(condensed.examples.x)[np.asarray(condensed.indices)[: int(condensed.size)]]
    batch = Batches(retain=whole(x[~forgotten], y[~forgotten]))
    hand, speed, rests = dict(params), dict.fromkeys(params, 0.0), True
    for count, name in enumerate(("first", "last", "first", "middle")):
        own = jax.grad(_loss)(hand, x[~forgotten], y[~forgotten])[name] + 0.1 * hand[name]
        speed[name] = 0.9 * speed[name] + own
        hand[name] = hand[name] - RATE * speed[name]
        before = state.variables["params"]
        state, _ = method.step(state, batch, KEY, jnp.int32(count))
        others = [each for each in params if each != name]
        rests &= equal(*({n: v[n] for n in others} for v in (before, state.variables["params"])))
    made = state.variables["params"]
    _, coarse, found = begun(4)
    bucket, at = np.asarray(found.retain), np.asarray(found.forget)
    alone = [n for n in np.unique(bucket) if n not in at]
    kept = [x[~forgotten][bucket == n].mean(0) for n in alone]
    kept += list(x[~forgotten][~np.isin(bucket, alone)])
    reduced = coarse.prepared.reduced.part
    shown = np.asarray(reduced.examples.x)[np.asarray(reduced.indices)[: int(reduced.size)]]
    return [
        ("condensed set of buckets of one example", images, x[~forgotten], 0),
        (
            "parts fine-tuned on it in turn",
            jax.tree.leaves(state.variables)[0],
            hand["first"],
            1e-9,
        ),
        ("the middle", made["middle"], hand["middle"], 1e-9),
        ("the final part", made["last"], hand["last"], 1e-9),
        ("parts that rest are bit-equal", rests, True, 0),
        ("weights of 1 / n, and examples of touched buckets", shown, np.array(kept), 1e-12),
    ]


SIZES = {"first": (4, 5), "middle": (5, 6), "last": (6, 3)}


def _three_layers(variables, x):
    params = variables["params"]
    return jnp.tanh(jnp.tanh(x @ params["first"]) @ params["middle"]) @ params["last"]


def _loss(params, x, y):
    logits = _three_layers({"params": params}, jnp.asarray(x))
    return -jnp.mean(jax.nn.log_softmax(logits)[jnp.arange(len(y)), y])


def sisa():
    """Three shards of two slices; one example is forgotten."""
    model, _, _, _ = regression()
    model = model._replace(init=lambda key: {"params": {"w": jax.random.normal(key, (5, 3))}})
    rng = np.random.default_rng(0)
    x, y = rng.normal(size=(24, 5)), rng.integers(0, 3, 24).astype(np.int32)
    steps, forgotten, kept = 4, 4, np.arange(24) != 4  # in a second slice; 5 is in a first one

    def made(variables, rows, key=KEY, batch=8, shards=3, slices=2):
        optimizer = optax.sgd(RATE)
        method = ju.sisa(model, optimizer=optimizer, shards=shards, slices=slices, steps=steps)
        sets = Sets(retain=toy.exact_subset(x[rows], y[rows]))
        return ju.unlearn(method, variables, sets, key, steps=steps, batch_size=batch).variables

    def network(variables, number):
        return {name: leaf[number] for name, leaf in _flat(variables).items()}

    shard, part, _ = (np.asarray(found) for found in places_of(toy.exact_subset(x, y), 3, 2))
    others = [number for number in range(3) if number != shard[forgotten]]
    original = made(None, np.arange(24))
    unlearned, sooner = made(original, kept), made(original, np.arange(24) != 5)
    elsewhere = made(original, kept, jax.random.key(1))
    untouched = all(equal(network(original, n), network(elsewhere, n)) for n in others)
    # rows of a batch that every set divides: each step sees all of it
    own, first = np.flatnonzero(kept & (shard == shard[forgotten])), part[forgotten]
    slices = [own[part[own] <= number] for number in range(2)]
    batch = int(np.lcm.reduce([max(len(rows), 1) for rows in slices]))
    again = made(original, kept, jax.random.key(1), batch)
    w = np.asarray(again["checkpoints"]["params"]["w"][shard[forgotten], first])
    for rows in slices[first:]:
        for _ in range(steps // 2 if len(rows) else 0):
            w = w - RATE * slope(w, x[rows], y[rows])
    one = made(None, kept, shards=1, slices=1)
    retrained = ju.unlearn(
        ju.retrain(model, optimizer=optax.sgd(RATE)), None,
        Sets(retain=toy.exact_subset(x[kept], y[kept])), KEY, steps=steps, batch_size=8,
    )  # fmt: skip
    given = original["checkpoints"]["params"]["w"][shard[forgotten], first]
    begun = again["checkpoints"]["params"]["w"][shard[forgotten], first]
    return [
        ("of a second slice: trained without it", equal(unlearned, made(None, kept)), True, 0),
        (
            "of a first slice: trained without it",
            equal(sooner, made(None, np.arange(24) != 5)),
            True,
            0,
        ),
        ("networks of other shards are bit-equal", untouched, True, 0),
        ("the checkpoint it goes back to", bool((given == begun).all()), True, 0),
        ("the network of its shard", again["params"]["w"][shard[forgotten]], w, 1e-12),
        (
            "one shard, one slice: retrained",
            equal(one["params"]["w"][0], retrained.variables["params"]["w"]),
            True,
            0,
        ),
    ]


def _flat(variables):
    return {
        jax.tree_util.keystr(path): leaf
        for path, leaf in jax.tree_util.tree_leaves_with_path(variables)
    }


CHECKS = {"unsir": unsir, "gkt": gkt, "condense": condense, "sisa": sisa}
