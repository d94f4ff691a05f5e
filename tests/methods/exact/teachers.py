"""Methods with teachers, features or penalties."""

import jax
import jax.numpy as jnp
import numpy as np
import optax

import jaxunlearn as ju
from jaxunlearn.core.types import Batch, Batches, Sets
from jaxunlearn.methods.duck import cosines, nearest_wrong
from tests import toy
from tests.methods.exact.baselines import RATE, regression, slope

KEY = jax.random.key(0)


def softmax(z):
    """Of rows, by hand."""
    p = np.exp(z - z.max(1, keepdims=True))
    return p / p.sum(1, keepdims=True)


def stepped(method, variables, sets, batches, steps):
    """The states of a method before the first and behind the last of some steps."""
    start = method.init(variables, sets, KEY)
    state = start
    for count in range(steps):
        key = jax.random.fold_in(KEY, count)
        state, _ = jax.jit(method.step)(state, batches, key, jnp.int32(count))
    return start, state


def whole(x, y):
    """All of a set in one batch, in its order."""
    count = len(x)
    return Batch(jnp.asarray(x), jnp.asarray(y), jnp.ones(count), jnp.arange(count))


def equal(one, other):
    """Whether two trees are the same bit by bit."""
    return all(jax.tree.leaves(jax.tree.map(lambda a, b: bool((a == b).all()), one, other)))


def pull(teacher, w, x, temperature=1.0):
    """The gradient of the mean of KL(teacher || softmax(x w / T)), by hand."""
    student, wanted = softmax(x @ w / temperature), softmax(teacher / temperature)
    return x.T @ (student - wanted) / len(x) / temperature


def bad_teacher():
    """A softmax regression; of one-hot inputs every example has weights of its own."""
    model, variables, x, y = regression()
    w = np.array(variables["params"]["w"])
    drawn = np.random.default_rng(1).normal(size=w.shape)
    model = model._replace(init=lambda key: {"params": {"w": jnp.asarray(drawn)}})
    sets = Sets(forget=toy.exact_subset(x, y), retain=toy.exact_subset(-x, y))
    method = ju.bad_teacher(
        model, optimizer=optax.sgd(RATE), forget_weight=0.3, temperature=2.0, share=1.0
    )
    batches = Batches(forget=whole(x, y), retain=whole(-x, y))
    start, end = stepped(method, variables, sets, batches, 2)
    hand = w
    for _ in range(2):
        stay, away = pull(-x @ w, hand, -x, 2.0), pull(x @ drawn, hand, x, 2.0)
        hand = hand - RATE * (0.7 * stay + 0.3 * away)

    eye = np.eye(5)
    apart = Sets(
        forget=toy.exact_subset(eye[:2], np.zeros(2, np.int32)),
        retain=toy.exact_subset(eye[2:], np.zeros(3, np.int32)),
    )
    made = ju.unlearn(
        ju.bad_teacher(model, optimizer=optax.sgd(8.0), share=1.0), variables, apart, KEY,
        steps=1000, batch_size=6,
    )  # fmt: skip
    fitted = np.asarray(made.variables["params"]["w"])
    return [
        ("two steps by hand", end.variables["params"]["w"], hand, 1e-12),
        ("teachers after them, bit by bit",
         equal((start.original, start.prepared), (end.original, end.prepared))
         and equal(end.original, variables), True, 0),
        ("start loss on retain", made.history["kl_retain"][0], 0.0, 1e-15),
        ("predictions on forget are the random teacher's", softmax(fitted[:2]),
         softmax(drawn[:2]), 1e-9),
        ("predictions on retain are the original's", softmax(fitted[2:]), softmax(w[2:]), 1e-9),
    ]  # fmt: skip


def scrub():
    model, variables, x, y = regression()
    w = np.array(variables["params"]["w"])
    sets = Sets(forget=toy.exact_subset(x, y), retain=toy.exact_subset(-x, y))
    batches = Batches(forget=whole(x, y), retain=whole(-x, y))
    options = {"loss_weight": 0.9, "kl_weight": 0.5, "temperature": 2.0, "max_share": 0.5}

    def made(turns, **more):
        return ju.scrub(
            model, optimizer=optax.sgd(RATE), rounds=1, max_rounds=1, turns=turns, **options, **more
        )

    def by_hand(kinds):
        hand = w
        for kind in kinds:
            if kind == "max":
                hand = hand + RATE * 4 * pull(x @ w, hand, x, 2.0)
            else:
                stay = 4 * pull(-x @ w, hand, -x, 2.0)
                hand = hand - RATE * (0.9 * slope(hand, -x, y) + 0.5 * stay)
        return hand

    start, end = stepped(made("rounds", steps=6), variables, sets, batches, 6)
    _, taking_turns = stepped(made("steps", steps=6), variables, sets, batches, 6)
    # the step behind the first, as if it came first: S = T
    start, _ = stepped(made("steps", steps=6), variables, sets, batches, 0)
    state, _ = made("steps", steps=6).step(start, batches, KEY, jnp.int32(1))
    void = np.abs(np.asarray(state.variables["params"]["w"]) - w).max() / RATE
    divergence = np.sum(softmax(x @ w) * np.log(
        softmax(x @ w) / softmax(x @ np.asarray(end.variables["params"]["w"]))
    ))  # fmt: skip
    return [
        ("a round: min, three max, two min", end.variables["params"]["w"],
         by_hand(["min"] + ["max"] * 3 + ["min"] * 2), 1e-12),
        ("step by step: min, max, ...", taking_turns.variables["params"]["w"],
         by_hand(["min", "max"] * 3), 1e-12),
        ("gradient of a max step at S = T", void, 0.0, 1e-15),
        ("divergence from the teacher above 0", divergence > 1e-3, np.True_, 0),
        ("teacher after six steps, bit by bit", equal(end.original, variables), True, 0),
    ]  # fmt: skip


def duck():
    """The features are x v, of a linear network with two layers."""
    rng = np.random.default_rng(2)
    v, w = rng.normal(size=(5, 4)), rng.normal(size=(4, 3))
    x_f, x_r = rng.normal(size=(4, 5)), rng.normal(size=(6, 5))
    y_f, y_r = np.array([0, 1, 2, 1], np.int32), np.array([0, 1, 2, 2, 1, 0], np.int32)
    model = ju.functionalize(
        lambda p, x: (x @ p["params"]["v"]) @ p["params"]["w"], sample_input=jnp.zeros((1, 5))
    )
    variables = {"params": {"v": jnp.asarray(v), "w": jnp.asarray(w)}}
    sets = Sets(forget=toy.exact_subset(x_f, y_f), retain=toy.exact_subset(x_r, y_r))
    batches = Batches(forget=whole(x_f, y_f), retain=whole(x_r, y_r))
    start, end = stepped(ju.duck(model, optimizer=optax.sgd(RATE)), variables, sets, batches, 2)

    centroids = np.stack([(x_r @ v)[y_r == label].mean(0) for label in range(3)])
    unit = lambda a: a / np.linalg.norm(a, axis=-1, keepdims=True)  # noqa: E731
    near = unit(x_f @ v) @ unit(centroids).T
    near[np.arange(4), y_f] = -2
    wanted = unit(centroids)[near.argmax(1)]
    own_v, own_w = v, w
    for _ in range(2):
        z = x_f @ own_v
        length = np.linalg.norm(z, axis=1, keepdims=True)
        cosine = np.sum(unit(z) * wanted, 1, keepdims=True)
        down_z = -(wanted - cosine * unit(z)) / length / 4
        p = softmax(x_r @ own_v @ own_w / 2)
        p[np.arange(6), y_r] -= 1
        p = 1.4 * p / 2 / 6
        slope_v, slope_w = x_f.T @ down_z + x_r.T @ (p @ own_w.T), (x_r @ own_v).T @ p
        own_v, own_w = own_v - RATE * slope_v, own_w - RATE * slope_w

    targets = start.prepared
    parallel = nearest_wrong(targets.centroids, jnp.arange(3), targets.centroids)
    own = cosines(7.0 * targets.centroids[parallel], targets.centroids[parallel])
    return [
        ("two steps by hand, features", end.variables["params"]["v"], own_v, 1e-12),
        ("two steps by hand, head", end.variables["params"]["w"], own_w, 1e-12),
        ("centroids of the original", targets.centroids, centroids, 1e-12),
        ("nearest wrong centroids", targets.nearest, near.argmax(1), 0),
        ("never the true class", bool((np.asarray(targets.nearest) != y_f).all()), True, 0),
        ("distance of parallel features", 1 - own, np.zeros(3), 1e-15),
        ("centroids after two steps, bit by bit", equal(start.prepared, end.prepared), True, 0),
    ]


def pbu():
    """The forget loss (theta - 2)^2 / 2 of two examples with squared gradients of mean 3."""
    x = 2 + np.sqrt(0.75) * np.array([[1.0], [-1.0]])
    y = np.zeros(2, np.int32)
    model = ju.functionalize(lambda v, x: x * v["params"]["t"], sample_input=jnp.zeros((1, 1)))
    variables = {"params": {"t": jnp.full(1, 0.5)}}

    def losses(variables, batch):
        return jnp.square(variables["params"]["t"] - batch.x[:, 0]) / 2

    def ended(form, weight, steps=400, **more):
        method = ju.pbu(
            model, optimizer=optax.sgd(RATE), forget_weight=weight, fisher_weight=2.0,
            distance_weight=0.5, form=form, losses=losses, **more,
        )  # fmt: skip
        batches = Batches(forget=whole(x, y))
        start, end = stepped(method, variables, Sets(forget=toy.exact_subset(x, y)), batches, steps)
        return start, float(end.variables["params"]["t"][0])

    # 2 (b F + g) = 13: of a curvature below it the end is a point, above it there is none
    start, end = ended("proximal", 1.0)
    _, repository = ended("repository", 1.0)
    _, shrunk = ended("repository", 0.0)
    _, below = ended("proximal", 12.0, 3)
    _, above = ended("proximal", 14.0, 3)
    by_hand = lambda weight: [  # noqa: E731
        0.5 + (2 - 0.5) * -weight / (13 - weight) * (1 - (1 - RATE * (13 - weight)) ** 3)
    ][0]

    kind, start_at, inputs, labels = regression()
    method = ju.pbu(kind, optimizer=optax.sgd(1e-5), fisher_weight=90.0)
    sets = Sets(forget=toy.exact_subset(inputs, labels))
    first, last = stepped(method, start_at, sets, Batches(forget=whole(inputs, labels)), 2)
    w = np.array(start_at["params"]["w"])
    p = softmax(inputs @ w)
    fisher = np.mean([
        sum(p[i, k] * np.outer(inputs[i], np.eye(3)[k] - p[i]) ** 2 for k in range(3))
        for i in range(4)
    ], axis=0)  # fmt: skip
    hand = w
    for _ in range(2):
        back = 2 * (90 * fisher + 4001) * (hand - w)
        hand = hand - 1e-5 * (-721 * slope(hand, inputs, labels) + back)
    return [
        ("Fisher information of the losses", start.prepared["t"], [3.0], 1e-12),
        ("end of the proximal form", end, 0.375, 1e-12),
        ("end of the repository's form", repository, 0.125, 1e-12),
        ("the repository's form with a = 0", shrunk, 3.5 / 13, 1e-12),
        ("a h = 12 < 2 (b F + g) = 13: three steps", below, by_hand(12.0), 1e-9),
        ("a h = 14 > 13: three steps, each longer", above, by_hand(14.0), 1e-9),
        ("Fisher information of a softmax regression", first.prepared["w"], fisher, 1e-12),
        ("two steps by hand", last.variables["params"]["w"], hand, 1e-12),
        ("original after two steps, bit by bit", equal(last.original, start_at), True, 0),
    ]


CHECKS = {"bad_teacher": bad_teacher, "scrub": scrub, "duck": duck, "pbu": pbu}
