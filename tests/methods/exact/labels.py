"""Methods with changed labels, masks or structure."""

import jax
import jax.numpy as jnp
import numpy as np
import optax

import jaxunlearn as ju
from jaxunlearn.core.types import Batches, Sets
from jaxunlearn.methods.boundary import expanded_logits, sign_attack
from jaxunlearn.methods.ct import swap_axes
from jaxunlearn.training.optimizers import largest
from tests import toy
from tests.methods.exact.baselines import RATE, quadratics, regression, slope, walked
from tests.methods.exact.teachers import KEY, equal, softmax, stepped, whole

TWO = np.array([0, 1, 0, 1], np.int32)
"""Labels of two classes, of which each has one wrong one."""


def decayed():
    """An optimizer that moves weights of no gradient, too."""
    return optax.chain(optax.add_decayed_weights(0.1), optax.sgd(RATE, momentum=0.9))


def decayed_by_hand(w, slope_at, steps, mask=True):
    """Weights behind some steps of :func:`decayed`, which move some of them."""
    trace = np.zeros_like(w)
    for _ in range(steps):
        trace = 0.9 * trace + slope_at(w) + 0.1 * w
        w = np.where(mask, w - RATE * trace, w)
    return w


def neggrad_plus():
    model, variables, losses, sets = quadratics()
    method = ju.neggrad_plus(model, optimizer=optax.sgd(0.5), losses=losses)
    made = ju.unlearn(method, variables, sets, KEY, steps=100, batch_size=2)
    try:
        ju.neggrad_plus(model, retain_weight=0.5)
        refused = False
    except ValueError as error:
        refused = "above 0.5" in str(error)

    model, variables, x, y = regression()
    sets = Sets(forget=toy.exact_subset(x, y), retain=toy.exact_subset(-x, y))
    own = walked(
        ju.neggrad_plus(model, optimizer=optax.sgd(RATE), retain_weight=0.8), sets, steps=2
    )
    w = np.array(variables["params"]["w"])
    for _ in range(2):
        w = w - RATE * (0.8 * slope(w, -x, y) - 0.2 * slope(w, x, y))
    return [
        ("fixed point of two parabolas", made.variables["params"]["theta"], -7 / 6, 1e-12),
        ("a weight of 1/2 is refused", refused, True, 0),
        ("two steps by hand", own, w, 1e-12),
    ]


def salun():
    model, variables, x, _ = regression()
    w = np.array(variables["params"]["w"])
    sets = Sets(forget=toy.exact_subset(x, TWO), retain=toy.exact_subset(-x, TWO))
    made = walked(ju.salun(model, optimizer=decayed()), sets, steps=2)
    salient = np.zeros(w.size, bool)
    salient[np.argsort(-np.abs(slope(w, x, TWO)).ravel(), kind="stable")[: w.size // 2]] = True
    salient = salient.reshape(w.shape)

    def slope_at(w):
        return slope(w, -x, TWO) + slope(w, x, 1 - TWO)

    hand = decayed_by_hand(w, slope_at, 2, salient)
    ties = largest(jnp.array([2.0, 1, 2, 2, 3]), 3)
    return [
        ("two steps on half of the weights", made, hand, 1e-12),
        ("all others after decay and momentum, bit by bit",
         bool((made == w)[~salient].all()), True, 0),
        ("weights moved, of 15", np.sum(made != w), 7, 0),
        ("of equal ones the first are chosen", np.flatnonzero(ties), [0, 2, 4], 0),
    ]  # fmt: skip


def l1_sparse():
    model, variables, x, y = regression()
    w = np.array(variables["params"]["w"])
    sets = Sets(retain=toy.exact_subset(x, y))
    one, start, _, parabolas = quadratics()

    def at(minimum, **options):
        def losses(v, batch):
            return (v["params"]["theta"] - minimum) ** 2 / 2 + 0 * batch.weight

        method = ju.l1_sparse(one, losses=losses, gamma=0.3, **options)
        made = ju.unlearn(method, start, parabolas, KEY, steps=options["steps"], batch_size=2)
        return made.variables["params"]["theta"]

    full = {"optimizer": optax.sgd(1.0), "learning_rate": 1.0}
    small = {"optimizer": optax.sgd(0.1), "learning_rate": 0.1, "steps": 40}
    method = ju.l1_sparse(
        model, steps=4, optimizer=optax.sgd(RATE), learning_rate=RATE, gamma=0.7, penalised=0.5
    )
    hand = w
    for weight in (0.7, 0.35, 0.0, 0.0):
        hand = hand - RATE * slope(hand, x, y)
        hand = np.sign(hand) * np.maximum(np.abs(hand) - RATE * weight, 0)
    subgradient = ju.l1_sparse(
        model, steps=3, optimizer=optax.sgd(RATE), gamma=0.3, form="subgradient"
    )
    descended = w
    for weight in (0.3, 0.2, 0.1):
        descended = descended - RATE * (slope(descended, x, y) + weight * np.sign(descended))
    return [
        ("a minimum at .2 shrunk by .3", at(0.2, steps=1, **full), 0.0, 0),
        ("a minimum at -1 shrunk by .3", at(-1.0, steps=1, **full), -0.7, 1e-12),
        ("proximal steps reach 0", bool(at(0.0, **small) == 0), True, 0),
        (
            "subgradients reach 0, as public code adds them",
            bool(at(0.0, form="subgradient", **small) == 0),
            False,
            0,
        ),
        ("four steps, two of them penalised", walked(method, sets, steps=4), hand, 1e-12),
        ("three steps of subgradients", walked(subgradient, sets), descended, 1e-12),
    ]


def boundary_shrink():
    w = jnp.array([1.0, -2.0, 0.5])
    linear = lambda v, x: jnp.stack([0 * x[:, 0], x @ v["params"]["w"]], axis=1)  # noqa: E731
    margins = jnp.array([0.01, 0.34, 0.349999, 0.350001, 0.36, 3.0])
    x = margins[:, None] * w[None] / (w @ w)
    ones = jnp.ones(6, jnp.int32)
    attacked = sign_attack(linear, {"params": {"w": w}}, x, ones, 0.1)
    turned = jnp.argmax(linear({"params": {"w": w}}, attacked), axis=1) == 0

    model, variables, x, _ = regression()
    w = np.array(variables["params"]["w"])
    y = (x @ w).argmax(1).astype(np.int32)
    sets, batches = Sets(forget=toy.exact_subset(x, y)), Batches(forget=whole(x, y))
    method = ju.boundary_shrink(model, optimizer=optax.sgd(RATE), bound=0.2)
    _, end = stepped(method, variables, sets, batches, 3)
    errors = softmax(x @ w) - np.eye(3)[y]
    nearest = ((x + 0.2 * np.sign(errors @ w.T)) @ w).argmax(1)
    hand = w
    for _ in range(3):
        hand = hand - RATE * slope(hand, x, nearest)
    return [
        ("margins below .1 |w|_1 = .35 turn", jnp.flatnonzero(turned), [0, 1, 2], 0),
        ("three steps by hand", end.variables["params"]["w"], hand, 1e-12),
        ("labels that turned, of 4", np.sum(nearest != y), 2, 0),
        ("original after them, bit by bit", equal(end.original, variables), True, 0),
    ]


def boundary_expand():
    model, variables, x, y = regression()
    w = np.array(variables["params"]["w"])
    sets, batches = Sets(forget=toy.exact_subset(x, y)), Batches(forget=whole(x, y))
    method = ju.boundary_expand(model, optimizer=optax.sgd(RATE))
    start, end = stepped(method, variables, sets, batches, 2)
    row = start.variables["params"]["row"]
    wide, bias = np.column_stack([w, row["weights"]]), np.zeros(4)
    for _ in range(2):
        errors = (softmax(x @ wide + bias) - np.eye(4)[[3] * 4]) / 4
        wide = wide - RATE * x.T @ errors
        bias[3] -= RATE * errors[:, 3].sum()
    still = ju.boundary_expand(model, optimizer=optax.sgd(0.0))
    _, unmoved = stepped(still, variables, sets, batches, 2)
    far = ju.boundary_expand(model, optimizer=optax.sgd(1.0))
    _, trained = stepped(far, variables, sets, batches, 100)
    params = trained.variables["params"]
    wider = expanded_logits(model.apply, {"params": params["network"]}, params["row"], x)
    own = end.variables["params"]
    return [
        ("two steps by hand", method.result(end)["params"]["w"], wide[:, :3], 1e-12),
        ("weights of the class", own["row"]["weights"], wide[:, 3], 1e-12),
        ("its bias", own["row"]["bias"], bias[3], 1e-12),
        ("before the cut all are of the class", jnp.argmax(wider, axis=1), [3] * 4, 0),
        ("behind it logits [4, 3]", model.apply(far.result(trained), x).shape, (4, 3), 0),
        ("with rate 0 nothing changes, bit by bit", equal(still.result(unmoved), variables),
         True, 0),
    ]  # fmt: skip


def two_layers():
    """A network tanh(x v + a) w + b, how it is drawn, and a retain set of it."""
    rng = np.random.default_rng(3)

    def drawn(key):
        v, w = (0.1 * n * jax.random.normal(key, (n, n - 1)) for n in (5, 4))
        return {"params": {"w": w, "v": v, "a": jnp.ones(4), "b": jnp.zeros(3)}}

    def apply(variables, x):
        p = variables["params"]
        return jnp.tanh(x @ p["v"] + p["a"][None]) @ p["w"] + p["b"][None]

    model = ju.functionalize(apply, init=drawn)
    x, y = rng.normal(size=(4, 5)), np.array([0, 1, 2, 1], np.int32)
    return model, drawn(jax.random.key(9)), x, y


def last_layer_by_hand(variables, start, x, y, steps):
    """The last layer of :func:`two_layers` behind some steps of decay and momentum."""
    p = variables["params"]
    h = np.append(np.tanh(x @ np.asarray(p["v"]) + np.asarray(p["a"])), np.ones((4, 1)), axis=1)
    last = np.vstack([start["params"]["w"], start["params"]["b"]])
    last = decayed_by_hand(last, lambda w: slope(w, h, y), steps)
    return last[:-1], last[-1]


def cf_k():
    model, variables, x, y = two_layers()
    sets, batches = Sets(retain=toy.exact_subset(x, y)), Batches(retain=whole(x, y))
    _, end = stepped(ju.cf_k(model, optimizer=decayed()), variables, sets, batches, 3)
    w, b = last_layer_by_hand(variables, variables, x, y, 3)
    made, given = end.variables["params"], variables["params"]
    return [
        ("three steps of the last kernel", made["w"], w, 1e-12),
        ("three steps of its bias", made["b"], b, 1e-12),
        ("the first layer after decay and momentum, bit by bit",
         equal([made["v"], made["a"]], [given["v"], given["a"]]), True, 0),
    ]  # fmt: skip


def eu_k():
    model, variables, x, y = two_layers()
    sets, batches = Sets(retain=toy.exact_subset(x, y)), Batches(retain=whole(x, y))
    _, end = stepped(ju.eu_k(model, optimizer=decayed()), variables, sets, batches, 3)
    w, b = last_layer_by_hand(variables, model.init(KEY), x, y, 3)
    made, given = end.variables["params"], variables["params"]
    runs = {"key": KEY, "steps": 5, "batch_size": 3}
    anew = ju.unlearn(ju.eu_k(model, optimizer=decayed(), layers=2), variables, sets, **runs)
    retrained = ju.unlearn(ju.retrain(model, optimizer=decayed()), variables, sets, **runs)
    return [
        ("three steps of a kernel drawn anew", made["w"], w, 1e-12),
        ("three steps of its bias", made["b"], b, 1e-12),
        ("the first layer after decay and momentum, bit by bit",
         equal([made["v"], made["a"]], [given["v"], given["a"]]), True, 0),
        ("all layers: the retrained model, bit by bit", equal(anew.variables, retrained.variables),
         True, 0),
    ]  # fmt: skip


def msg():
    model, variables, x, y = two_layers()
    sets = Sets(forget=toy.exact_subset(x, y), retain=toy.exact_subset(-x, y))
    batches = Batches(forget=whole(x, y), retain=whole(-x, y))
    method = ju.msg(model, optimizer=optax.sgd(RATE))
    start, end = stepped(method, variables, sets, batches, 1)

    def gradient(params, x):
        def loss(params):
            chosen = jax.nn.log_softmax(model.apply({"params": params}, x))[jnp.arange(4), y]
            return -jnp.mean(chosen)

        return jax.grad(loss)(params)

    given, begun = variables["params"], start.variables["params"]
    apart = jax.tree.map(jnp.subtract, gradient(given, jnp.asarray(-x)), gradient(given, x))
    further = gradient(begun, jnp.asarray(-x))
    rows = []
    for name, count in (("v", 6), ("w", 4)):
        small = np.zeros(given[name].size, bool)
        small[np.argsort(np.abs(np.ravel(apart[name])))[:count]] = True
        small = small.reshape(given[name].shape)
        hand = begun[name] - RATE * np.where(small, 1, 0.1) * further[name]
        rows += [
            (f"numbers of {name} drawn anew", np.sum(begun[name] != given[name]), count, 0),
            (
                f"places drawn anew are those of the smallest, {name}",
                np.flatnonzero(begun[name] != given[name]),
                np.flatnonzero(small),
                0,
            ),
            (f"one step of {name}", end.variables["params"][name], hand, 1e-12),
        ]
    hand = begun["a"] - RATE * 0.1 * further["a"]
    return [*rows, ("one step of a bias", end.variables["params"]["a"], hand, 1e-12)]


def ct():
    rng = np.random.default_rng(4)
    layout = ("NHWC", "HWIO", "NHWC")

    def apply(variables, x):
        p = variables["params"]
        h = jax.lax.conv_general_dilated(x, p["k"], (1, 1), "SAME", dimension_numbers=layout)
        return jnp.tanh(h).mean((1, 2)) @ p["w"]

    params = {"k": rng.normal(size=(3, 3, 2, 4)), "w": rng.normal(size=(4, 3))}
    variables = jax.tree.map(jnp.asarray, {"params": params})
    x, y = jnp.asarray(rng.normal(size=(4, 5, 5, 2))), np.array([0, 1, 2, 1], np.int32)
    sets, batches = Sets(retain=toy.exact_subset(x, y)), Batches(retain=whole(x, y))
    once = swap_axes(apply, variables, x)
    _, end = stepped(ju.ct(apply, optimizer=optax.sgd(RATE)), variables, sets, batches, 1)

    def loss(params):
        logits = apply({"params": params}, x)
        return -jnp.mean(jax.nn.log_softmax(logits)[jnp.arange(4), y])

    turned = {"k": jnp.asarray(params["k"].transpose(1, 0, 2, 3)), "w": variables["params"]["w"]}
    slopes = jax.grad(loss)(turned)
    hand = jax.tree.map(lambda p, g: p - RATE * g, turned, slopes)
    turned_images = apply(once, x.transpose(0, 2, 1, 3))
    return [
        ("twice is the original, bit by bit", equal(swap_axes(apply, once, x), variables), True, 0),
        ("of images turned over the same logits", turned_images, apply(variables, x), 1e-12),
        ("one step of the kernel", end.variables["params"]["k"], hand["k"], 1e-12),
        ("one step of the head", end.variables["params"]["w"], hand["w"], 1e-12),
    ]


CHECKS = {
    "neggrad_plus": neggrad_plus,
    "salun": salun,
    "l1_sparse": l1_sparse,
    "boundary_shrink": boundary_shrink,
    "boundary_expand": boundary_expand,
    "cf_k": cf_k,
    "eu_k": eu_k,
    "msg": msg,
    "ct": ct,
}
