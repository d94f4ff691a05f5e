"""Methods with teachers, features or penalties."""

import functools
from statistics import NormalDist

import jax
import jax.numpy as jnp
import numpy as np
import optax
import scipy.optimize

import jaxunlearn as ju
from jaxunlearn.core.types import Batch, Batches, Sets
from jaxunlearn.methods.dlfd import sinkhorn_plan, transport
from jaxunlearn.methods.duck import nearest_wrong
from jaxunlearn.methods.jit_unlearn import mean_slopes
from jaxunlearn.methods.terms import cosines
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

    decayed = optax.chain(optax.add_decayed_weights(0.1), optax.sgd(RATE, momentum=0.9))
    masked = ju.duck(model, optimizer=ju.training.only(decayed, ju.training.matching("w")))
    _, head = stepped(masked, variables, sets, batches, 2)

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
        (
            "masked weights under decay and momentum, bit by bit",
            equal(head.variables["params"]["v"], v) and not equal(head.variables["params"]["w"], w),
            True,
            0,
        ),
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

    def by_hand(weight):
        return 0.5 - 1.5 * weight / (13 - weight) * (1 - (1 - RATE * (13 - weight)) ** 3)

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


def _cost(a, b):
    """1 - cos, of all pairs of rows."""
    length = jnp.linalg.norm(a, axis=1)[:, None] * jnp.linalg.norm(b, axis=1)[None]
    return jnp.maximum(1 - a @ b.T / length, 0)


def _plan(cost, blur, turns):
    """Sinkhorn's scalings as products."""
    kernel, (rows, columns) = jnp.exp(-cost / blur), cost.shape

    def turn(_, u):
        return 1 / rows / (kernel @ (1 / columns / (kernel.T @ u)))

    u = jax.lax.fori_loop(0, turns, turn, jnp.ones(rows))
    return u[:, None] * kernel / columns / (kernel.T @ u)[None]


def dlfd():
    turned = np.array([[0.0, 1.0], [1.0, 0.0]])
    matched = sinkhorn_plan(jnp.asarray(1 - turned), 0.01, 50)
    same = transport(jnp.asarray(turned), jnp.asarray(turned[::-1]))

    model, variables, x, y = regression()
    w = np.array(variables["params"]["w"])
    x_r = np.clip(np.random.default_rng(5).normal(size=x.shape), -0.8, 0.8)
    y_r = y[::-1].copy()
    sets = Sets(forget=toy.exact_subset(x, y), retain=toy.exact_subset(x_r, y_r))
    batches = Batches(forget=whole(x, y), retain=whole(x_r, y_r))
    options = {"noise_steps": 2, "noise_rate": 0.05, "blur": 0.5, "iterations": 200, "steps": 3,
               "skip_below": 0.0}  # fmt: skip

    def made(transports, loss_weights=(0.5, 1.5)):
        return ju.dlfd(model, optimizer=optax.sgd(RATE), transports=transports,
                       loss_weights=loss_weights, **options)  # fmt: skip

    def loss(w, x):
        z = x @ w
        return jnp.mean(jax.nn.logsumexp(z, axis=1) - z[jnp.arange(len(y)), y_r])

    # scored as what no training saw: behind the first step it is fine-tuning
    alike, both = sets._replace(holdout=sets.forget), batches._replace(holdout=batches.forget)
    skipping = ju.dlfd(model, optimizer=optax.sgd(RATE), **options | {"skip_below": 0.1},
                       request="items")  # fmt: skip
    (_, after_one), (_, after_two) = (
        stepped(skipping, variables, alike, both, count) for count in (1, 2)
    )
    one = np.asarray(after_one.variables["params"]["w"])

    @jax.jit
    def by_hand(noisy):
        hand = jnp.asarray(w)
        for number in range(3):
            noise = jnp.zeros_like(x_r)
            for _ in range(2):
                z = x @ hand
                plan = _plan(_cost((x_r + noise) @ hand, z), 0.5, 200)

                def gain(noise, plan=plan, z=z, hand=hand, number=number):
                    far = 3 * jnp.sum(plan * _cost((x_r + noise) @ hand, z))
                    return noisy * far - (0.5 + number / 2) * loss(hand, x_r + noise)

                noise = noise + 0.05 * jnp.sign(jax.grad(gain)(noise))
            hand = hand - RATE * jax.grad(loss)(hand, x_r + noise)
        return hand

    _, end = stepped(made("noisy"), variables, sets, batches, 3)
    _, clean = stepped(made("clean"), variables, sets, batches, 3)
    # without the loss the published form has nothing to climb: the noise stays 0
    _, still = stepped(made("clean", (0.0, 0.0)), variables, sets, batches, 1)

    z, z_forget = jnp.asarray(x_r @ w), jnp.asarray(x @ w)
    ahead = np.random.default_rng(6).normal(size=z.shape)

    @jax.jit
    def regularised(far):
        cost = _cost(z + far * ahead, z_forget)
        plan = sinkhorn_plan(cost, 0.5, 2000)
        return jnp.sum(plan * cost) + 0.5 * jnp.sum(plan * jnp.log(plan))

    change = (regularised(1e-5) - regularised(-1e-5)) / 2e-5
    along = jax.grad(lambda far: transport(z + far * ahead, z_forget, blur=0.5, iterations=2000))
    in_noise, official = (
        jax.jit(jax.grad(lambda noise, on=on: transport((x_r + on * noise) @ w, z_forget)))
        for on in (1.0, 0.0)
    )
    none = jnp.zeros(x.shape)
    return [
        ("plan of the cost [[1, 0], [0, 1]]", matched, turned / 2, 1e-15),
        ("its transport", same, 0.0, 1e-15),
        ("plan by products", sinkhorn_plan(_cost(z, z_forget), 0.5, 200),
         _plan(_cost(z, z_forget), 0.5, 200), 1e-12),
        ("slope of the regularised distance", jax.jit(along)(0.0), change, 1e-8),
        ("slope of the transport in the noise above 0", bool(abs(in_noise(none)).max() > 1e-3),
         True, 0),
        ("the same without noise in it, as published", official(none), none, 0),
        ("one step as published, without the loss: no noise", still.variables["params"]["w"],
         w - RATE * slope(w, x_r, y_r), 1e-12),
        ("three steps by hand", end.variables["params"]["w"], by_hand(1.0), 1e-12),
        ("three steps by hand, as published", clean.variables["params"]["w"], by_hand(0.0), 1e-12),
        ("second step where an attack fails: no noise", after_two.variables["params"]["w"],
         one - RATE * slope(one, x_r, y_r), 1e-12),
        ("original after three steps, bit by bit", bool((w == variables["params"]["w"]).all()),
         True, 0),
    ]  # fmt: skip


def just_in_time():
    rng = np.random.default_rng(7)
    x, y = rng.normal(size=(3, 5)), np.zeros(3, np.int32)
    sets, batches = Sets(forget=toy.exact_subset(x, y)), Batches(forget=whole(x, y))
    scaled = ju.functionalize(lambda v, x: v["params"]["c"] * x, sample_input=jnp.zeros((1, 5)))
    linear = ju.functionalize(lambda v, x: x @ v["params"]["w"], sample_input=jnp.zeros((1, 5)))
    one = {"params": {"c": jnp.asarray(-2.5)}}
    method = ju.just_in_time(scaled, optimizer=optax.sgd(RATE))
    _, info = jax.jit(method.step)(method.init(one, sets, KEY), batches, KEY, jnp.int32(0))

    w, noises = rng.normal(size=(5, 4)), 6
    given = {"params": {"w": jnp.asarray(w)}}
    draw = jax.random.normal(jax.random.fold_in(KEY, 0), (noises * 3, 5), jnp.float64)
    near = np.clip(np.tile(x, (noises, 1)) + 0.5 * np.asarray(draw), x.min(), x.max())
    e = near - np.tile(x, (noises, 1))
    unit = -(e @ w) / np.linalg.norm(e @ w, axis=1, keepdims=True)
    weighed = unit / np.linalg.norm(e, axis=1, keepdims=True) / noises
    slopes = {"stopped": np.tile(x, (noises, 1)).T @ weighed, "true": -e.T @ weighed}
    moved = {}
    for name in slopes:
        method = ju.just_in_time(linear, optimizer=optax.sgd(RATE), noises=noises, gradient=name)
        end, _ = jax.jit(method.step)(method.init(given, sets, KEY), batches, KEY, jnp.int32(0))
        moved[name] = (w - np.asarray(end.variables["params"]["w"])) / RATE
    hidden = {
        "v": jnp.asarray(rng.normal(size=(5, 16))),
        "w": jnp.asarray(rng.normal(size=(16, 4))),
    }
    deeper = lambda p, x: jax.nn.relu(x @ p["v"]) @ p["w"]  # noqa: E731

    @functools.partial(jax.jit, static_argnums=(0, 3))
    def down(apply, variables, noise, gradient):
        """The mean slope at one example over all noise."""
        near = x[:1] + noise
        return jax.grad(lambda p: mean_slopes(apply, p, x[:1], near, gradient).sum())(variables)

    plain = lambda p, x: x @ p  # noqa: E731
    pair = {name: down(plain, w, np.stack([e[0], -e[0]]), name) for name in slopes}
    many = rng.normal(size=(20000, 5))
    drawn = {name: down(plain, w, many, name) for name in slopes}
    behind = [
        np.concatenate(jax.tree.leaves(jax.tree.map(jnp.ravel, down(deeper, hidden, many, name))))
        for name in slopes
    ]
    cosine = lambda a, b: np.sum(a * b) / np.linalg.norm(a) / np.linalg.norm(b)  # noqa: E731
    return [
        ("loss of f = c x is |c| an example", info.metrics["slope"], 2.5, 1e-12),
        ("and their sum over the batch", info.metrics["loss"], 7.5, 1e-12),
        ("slope as published, -W e x' / (|W e| |e|)", moved["stopped"], slopes["stopped"], 1e-12),
        ("true slope, W e e' / (|W e| |e|)", moved["true"], slopes["true"], 1e-12),
        ("slope as published, of noise and its opposite", pair["stopped"], np.zeros((5, 4)), 1e-15),
        ("true slope of the same, W e e' / (|W e| |e|)", pair["true"],
         -e[:1].T @ weighed[:1] * noises, 1e-12),
        ("mean over 20,000 draws as published, of the true one",
         np.linalg.norm(drawn["stopped"]) / np.linalg.norm(drawn["true"]), 0.0, 0.02),
        ("cosine of the true one with W", cosine(drawn["true"], w), 1.0, 0.05),
        ("cosine of both behind rectifiers below .5", bool(cosine(*behind) < 0.5), True, 0),
        ("forget set after a step, bit by bit",
         bool((np.asarray(sets.forget.examples.x) == x).all()), True, 0),
    ]  # fmt: skip


def attack_loss():
    """Scores are normal, those of the forget set with a shift that alone is trained."""
    grid = np.array([NormalDist(0, 1).inv_cdf((n + 0.5) / 64) for n in range(64)])

    def scores(mean, forgotten):
        return np.stack([grid + mean, np.full(64, forgotten)], axis=1)

    def apply(variables, x):
        z = x[:, :1] + x[:, 1:] * variables["params"]["shift"]
        return jnp.concatenate([z, jnp.zeros_like(z)], axis=1)

    model = ju.functionalize(apply, sample_input=jnp.zeros((1, 2)))
    y, given = np.zeros(64, np.int32), {"params": {"shift": jnp.zeros((1, 1))}}
    parts = {"forget": scores(3.0, 1.0), "retain": scores(3.0, 0.0), "holdout": scores(1.0, 0.0)}
    sets = Sets(**{name: toy.exact_subset(x, y) for name, x in parts.items()})
    batches = Batches(**{name: whole(x, y) for name, x in parts.items()})
    rows = []
    for attack in ("logistic", "gaussian"):
        method = ju.attack_loss(model, optimizer=optax.sgd(2.0), attack=attack)
        path, state, step = [], method.init(given, sets, KEY), jax.jit(method.step)
        for count in range(600):
            state, info = step(state, batches, KEY, jnp.int32(count))
            path.append(float(state.variables["params"]["shift"][0, 0]))
        left = parts["forget"][:, 0] + path[-1]
        above = left[:, None] - parts["holdout"][:, 0][None]
        auc = np.mean((above > 1e-9) + 0.5 * (np.abs(above) <= 1e-9))
        rows += [
            (f"{attack}: forget mean at the hold-out mean", left.mean(), 1.0, 1e-9),
            (f"{attack}: lowest forget mean on the way", 3 + min(path), 1.0, 1e-9),
            (f"{attack}: AUC of the scores", auc, 0.5, 1e-9),
            (f"{attack}: what the attack sees", info.metrics["advantage"], 0.0, 1e-9),
        ]

    kind, variables, x, labels = regression()
    w, rng = np.array(variables["params"]["w"]), np.random.default_rng(8)
    retained, unseen = rng.normal(size=x.shape), rng.normal(size=x.shape)
    three = {"forget": x, "retain": retained, "holdout": unseen}
    sets = Sets(**{name: toy.exact_subset(part, labels) for name, part in three.items()})
    batches = Batches(**{name: whole(part, labels) for name, part in three.items()})
    method = ju.attack_loss(kind, optimizer=optax.sgd(RATE), attack_weight=5.0)
    _, end = stepped(method, variables, sets, batches, 1)
    own = np.eye(3, dtype=bool)[labels]

    def score(x):
        z = x @ w
        return z[own] - np.log(np.sum(np.where(own, 0, np.exp(z)), axis=1))

    s, known, unknown = score(x), score(retained), score(unseen)
    both, member = np.concatenate([known, unknown]), np.repeat([1.0, 0.0], 4)
    design = np.stack([(both - both.mean()) / both.std(), np.ones(8)], axis=1)

    def penalised(line):
        z = design @ line
        return np.mean(np.logaddexp(0, z) - member * z) + 0.005 * line[0] ** 2

    line = scipy.optimize.minimize(penalised, np.zeros(2), method="BFGS", tol=1e-12).x
    probability = lambda s: 1 / (1 + np.exp(  # noqa: E731
        -(line[0] * (s - both.mean()) / both.std() + line[1])))  # fmt: skip
    judged, wanted = probability(s), np.sort(probability(unknown))
    down_s = 2 / 4 * (judged - wanted[np.argsort(np.argsort(judged))])
    down_s *= judged * (1 - judged) * line[0] / both.std()
    others = np.where(own, 0, np.exp(x @ w))
    down_z = down_s[:, None] * (own - others / others.sum(1, keepdims=True))
    hand = w - RATE * (slope(w, retained, labels) + 5 * x.T @ down_z)
    return [*rows, ("one step by hand", end.variables["params"]["w"], hand, 1e-7)]


CHECKS = {
    "bad_teacher": bad_teacher,
    "scrub": scrub,
    "duck": duck,
    "pbu": pbu,
    "dlfd": dlfd,
    "just_in_time": just_in_time,
    "attack_loss": attack_loss,
}
