"""Methods that compute the new model, most of them without a step: against retraining, by hand."""

import jax
import jax.numpy as jnp
import numpy as np
import optax

import jaxunlearn as ju
from jaxunlearn.core.types import Batches, Sets
from jaxunlearn.engine.loop import init_key
from jaxunlearn.methods.features_and_labels import certified_noise, gradient_residual
from jaxunlearn.methods.ntk import trapezium_factor
from jaxunlearn.methods.ssd import adaptive_threshold, batch_importance
from jaxunlearn.training.curvature import losses_of
from jaxunlearn.training.per_example import mean_importance
from tests import toy
from tests.methods.exact.baselines import RATE, regression
from tests.methods.exact.teachers import KEY, equal, softmax, stepped, whole

RIDGE = 0.7


def made(method, variables, sets):
    """The kernel that a method without steps makes."""
    return np.asarray(ju.unlearn(method, variables, sets, KEY).variables["params"]["w"])


def linear():
    """A linear network of 6 inputs and 3 outputs."""
    return ju.functionalize(lambda v, x: x @ v["params"]["w"], sample_input=jnp.zeros((1, 6)))


def labelled(count=30, seed=0):
    """Inputs ``[count, 6]`` and labels of three classes."""
    rng = np.random.default_rng(seed)
    return rng.normal(size=(count, 6)), rng.integers(0, 3, count).astype(np.int32)


def solved(x, targets, ridge=RIDGE):
    """The minimum of ``|x w - t|^2 + ridge |w|^2``."""
    return np.linalg.solve(x.T @ x + ridge * np.eye(x.shape[1]), x.T @ targets)


def squares(variables, batch):
    """Half the squared error to labels as rows of 0 and 1."""
    left = batch.x @ variables["params"]["w"] - jax.nn.one_hot(batch.y, 3, dtype=batch.x.dtype)
    return jnp.sum(left**2, axis=1) / 2


def parted(x, y, forgotten=5):
    """The first examples are to be forgotten."""
    return Sets(
        forget=toy.exact_subset(x[:forgotten], y[:forgotten]),
        retain=toy.exact_subset(x[forgotten:], y[forgotten:]),
    )


def weights(w):
    return {"params": {"w": jnp.asarray(w)}}


def gradients(w, x, y):
    """The gradient of each example's cross-entropy, by hand."""
    return x[:, :, None] * (softmax(x @ w) - np.eye(w.shape[1])[y])[:, None]


def ssd():
    two = ju.functionalize(lambda v, x: x @ v["params"]["w"].T, sample_input=jnp.zeros((1, 2)))
    w = np.array([[2.0, -2.0], [-2.0, 2.0]])
    apart = Sets(
        forget=toy.exact_subset(np.eye(2)[:1], np.array([0], np.int32)),
        retain=toy.exact_subset(np.eye(2)[1:], np.array([1], np.int32)),
    )
    shrunk = made(ju.ssd(two, threshold=1.5), weights(w), apart) / w
    opposite = toy.exact_subset(np.array([[1.0, 0], [1, 0]]), np.array([0, 1], np.int32))
    losses, blank = losses_of(two), weights(np.zeros((2, 2)))
    each = mean_importance(lambda v, b: losses(v, b).sum(), blank, opposite)
    together = batch_importance(losses, blank, (opposite,), KEY, size=2)

    x, y = labelled()
    w = np.random.default_rng(1).normal(size=(6, 3))
    own = np.mean(gradients(w, x[:5], y[:5]) ** 2, axis=0)
    all_of = np.mean(gradients(w, x, y) ** 2, axis=0)
    hand = np.where(own > 1.3 * all_of, w * np.minimum(0.9 * all_of / own, 1), w)
    sets, model = parted(x, y), linear()
    got = made(ju.ssd(model, threshold=1.3, dampening=0.9), weights(w), sets)
    turned = Sets(
        forget=toy.exact_subset(x[4::-1], y[4::-1]), retain=toy.exact_subset(x[:4:-1], y[:4:-1])
    )
    again = made(ju.ssd(model, threshold=1.3, dampening=0.9), weights(w), turned)
    batch = [np.mean(gradients(w, a, b), axis=0) ** 2 for a, b in ((x[:5], y[:5]), (x, y))]
    by_batch = ju.ssd(model, threshold=1.3, importance="batch", importance_batch=30)
    batch_hand = np.where(batch[0] > 1.3 * batch[1], w * batch[1] / batch[0], w)
    least = np.percentile(own / all_of, 100 - np.log(1 + 100 / 6))
    return [
        ("factors of both inputs", shrunk, [[0.5, 1.0], [0.5, 1.0]], 1e-12),
        ("importance of each of two opposite examples", each["w"][:, 0], [0.25, 0.25], 1e-12),
        ("of their batch", together["w"][:, 0], [0.0, 0.0], 1e-12),
        ("five of thirty, by hand", got, hand, 1e-12),
        ("weights shrunk, of 18", np.sum(got != w), np.sum(own > 1.3 * all_of), 0),
        ("the same in another order", again, got, 1e-12),
        ("one batch of all, by hand", made(by_batch, weights(w), sets), batch_hand, 1e-12),
        ("adaptive threshold",
         adaptive_threshold(jnp.asarray(own), jnp.asarray(all_of), jnp.asarray(1 / 6)), least,
         1e-12),
    ]  # fmt: skip


def loss_free_ssd():
    x, y = labelled()
    w = np.random.default_rng(1).normal(size=(6, 3))
    each = np.abs(2 * x[:, :, None] * (x @ w)[:, None])
    own, all_of = each[:5].mean(0), each.mean(0)
    hand = np.where(own > 1.1 * all_of, w * all_of / own, w)
    method = ju.loss_free_ssd(linear(), threshold=1.1)
    got = made(method, weights(w), parted(x, y))
    other = made(method, weights(w), parted(x, y[::-1]))
    return [
        ("mean |2 (W x) x'|, by hand", got, hand, 1e-12),
        ("with other labels the same, bit by bit", bool((got == other).all()), True, 0),
    ]


def fisher():
    """Linear regression with unit noise: the gradient of the logarithm of its density is x."""
    x = np.random.default_rng(0).normal(size=(40, 6)) * [1, 2, 3, 4, 5, 0]
    model = ju.functionalize(
        lambda v, x: x @ v["params"]["w"].mean(1), sample_input=jnp.zeros((1, 6))
    )
    draws = 10_000

    def losses(variables, batch):
        return jnp.sum(batch.x @ variables["params"]["w"], axis=1)

    sets = Sets(retain=toy.exact_subset(x, np.zeros(40, np.int32)))
    start = weights(np.zeros((6, draws)))
    method = ju.fisher(model, noise=0.1, largest=50.0, form="empirical", losses=losses)
    moved = made(method, start, sets)
    wanted = 0.1 * np.minimum(1 / (np.mean(x**2, axis=0) + 1e-8), 50)

    model, variables, x, y = regression()
    w = np.array(variables["params"]["w"])
    p = softmax(x @ w)
    spread = np.mean(x[:, :, None] ** 2 * (p * (1 - p))[:, None], axis=0)
    many = [
        made(ju.fisher(model, noise=a), variables, Sets(retain=toy.exact_subset(x, y))) - w
        for a in (1e-6, 4e-6)
    ]
    normal = many[0] / np.sqrt(1e-6 * np.minimum(1 / (spread + 1e-8), 1e3))
    return [
        ("variance of 10,000 draws against a / F", moved.var(1) / wanted, np.ones(6), 0.03),
        ("their mean, in deviations", moved.mean(1) / np.sqrt(wanted), np.zeros(6), 0.03),
        ("twice the deviation", many[1], 2 * many[0], 1e-12),
        ("expected information by hand: what is left is drawn", normal, _drawn(w.shape), 1e-9),
    ]


def _drawn(shape):
    """The numbers that the method draws for its only leaf."""
    _, draw = jax.random.split(init_key(KEY))
    return np.asarray(jax.random.normal(jax.random.fold_in(draw, 0), shape, jnp.float64))


def ntk():
    x, y = labelled()
    labels, model = np.eye(3)[y], linear()
    w, retrained = (solved(x[n:], labels[n:], 0.3 * (30 - n)) for n in (0, 5))
    got = made(ju.ntk(model, ridge=0.3), weights(w), parted(x, y))
    start = np.random.default_rng(2).normal(size=w.shape)
    w_from, retrained_from = (
        start + solved(x[n:], labels[n:] - x[n:] @ start, 0.3 * (30 - n)) for n in (0, 5)
    )
    got_from = made(ju.ntk(model, ridge=0.3, start=weights(start)), weights(w_from), parted(x, y))
    in_chunks = made(ju.ntk(model, ridge=0.3, chunk=7), weights(w), parted(x, y))
    # of examples that are alike one is read, and stands for all of them
    places = np.array([0, 0, 0, 1, 1])
    alike = parted(x[places], y[places], 3)
    inits = [jax.jit(ju.ntk(model, samples=count).init) for count in (5, 1)]
    full, read = (init(weights(w), alike, KEY)["params"]["w"] for init in inits)
    d, e = {"a": jnp.array([3.0, 4])}, {"a": jnp.array([-10.0, 0])}
    angle = np.arccos(-0.6) - np.pi / 2
    return [
        ("retrained ridge regression", got, retrained, 1e-14),
        ("the same from another start", got_from, retrained_from, 1e-13),
        ("in chunks of 7", in_chunks, got, 1e-13),
        ("one of three and of two that are alike", read, full, 1e-13),
        ("trapezium", trapezium_factor(d, e), (5 + 2 * np.sin(angle) * 10) / 5, 1e-12),
    ]


def influence():
    x, y = labelled()
    labels, model = np.eye(3)[y], linear()

    def losses(variables, batch):
        return squares(variables, batch) + RIDGE / 2 * jnp.sum(variables["params"]["w"] ** 2)

    w, retrained = (solved(x[n:], labels[n:], RIDGE * (30 - n)) for n in (0, 5))
    options = {"damping": 0.0, "curvature": "hessian", "iterations": 40, "losses": losses}
    got = made(ju.influence(model, **options), weights(w), parted(x, y))
    half = made(ju.influence(model, scale=0.5, **options), weights(w), parted(x, y))

    # softmax regression, against a dense matrix
    w = np.random.default_rng(1).normal(size=(6, 3))
    dense = _gauss_newton(w, x[5:]) + 0.1 * np.eye(18)
    own, kept = (gradients(w, x[s], y[s]).sum(0) for s in (slice(5), slice(5, None)))
    v = (own / 30 - 5 / (30 * 25) * kept).ravel()
    solution = np.linalg.solve(dense, v).reshape(w.shape)
    moves = [
        made(ju.influence(model, damping=0.1, curvature=kind, iterations=60), weights(w),
             parted(x, y)) - w
        for kind in ("gauss_newton", "hessian")
    ]  # fmt: skip
    return [
        ("retrained ridge regression", got, retrained, 1e-13),
        ("half of the way", half, (solved(x, labels, RIDGE * 30) + retrained) / 2, 1e-13),
        ("H^-1 v against numpy, Gauss-Newton", moves[0], solution, 1e-10),
        ("H^-1 v against numpy, Hessian", moves[1], solution, 1e-10),
    ]


def _gauss_newton(w, x):
    """The mean Hessian of a softmax regression, ``[inputs K, inputs K]``."""
    p = softmax(x @ w)
    bent = p[:, :, None] * np.eye(w.shape[1]) - p[:, :, None] * p[:, None]
    return np.einsum("bi,bkl,bj->ikjl", x, bent, x).reshape(w.size, w.size) / len(x)


def first_order():
    x, y = labelled()
    w = np.random.default_rng(1).normal(size=(6, 3))
    right = (y + 1) % 3

    def relabel(batch):
        return batch._replace(y=(batch.y + 1) % 3)

    def of_two(labels):
        """Labels of which each has one wrong one."""
        return (labels % 2).astype(np.int32)

    model, sets = linear(), parted(x, y)
    g = [gradients(w, x[:5], labels[:5]).sum(0) for labels in (y, right)]
    deleted = made(ju.first_order(model, rate=RATE), weights(w), sets)
    corrected = made(ju.first_order(model, rate=RATE, correction=relabel), weights(w), sets)
    pair = ju.functionalize(lambda v, x: x @ v["params"]["w"][:, :2])
    drawn = made(
        ju.first_order(pair, rate=RATE, correction="random_label"), weights(w),
        parted(x, of_two(y)),
    )  # fmt: skip
    own, wrong = (gradients(w[:, :2], x[:5], labels[:5]).sum(0)
                  for labels in (of_two(y), 1 - of_two(y)))  # fmt: skip
    hand = w.copy()
    hand[:, :2] -= RATE * (wrong - own)
    return [
        ("deletion is one step uphill", deleted, w + RATE * g[0], 1e-12),
        ("labels corrected, by hand", corrected, w - RATE * (g[1] - g[0]), 1e-12),
        ("the only wrong label", drawn, hand, 1e-12),
    ]


def second_order():
    x, y = labelled()
    x[5:, 2] = 0
    labels, model = np.eye(3)[y], linear()
    w = solved(x, labels)
    options = {"damping": 0.0, "ridge": RIDGE, "curvature": "hessian", "iterations": 40,
               "losses": squares}  # fmt: skip

    def moved(**more):
        return made(ju.second_order(model, **options, **more), weights(w), parted(x, y))

    relabelled, removed = labels.copy(), x.copy()
    relabelled[:5] = np.eye(3)[(y[:5] + 1) % 3]
    removed[:, 2] = 0
    featureless = moved(correction=lambda batch: batch._replace(x=batch.x.at[:, 2].set(0)))
    old = w + np.linalg.solve(x.T @ x + RIDGE * np.eye(6), x[:5].T @ (x[:5] @ w - labels[:5]))
    rows = [
        ("deletion: retrained ridge regression", moved(), solved(x[5:], labels[5:]), 1e-13),
        ("labels corrected",
         moved(correction=lambda batch: batch._replace(y=(batch.y + 1) % 3)),
         solved(x, relabelled), 1e-13),
        ("a feature removed", featureless, solved(removed, labels), 1e-13),
        ("its weights", featureless[2], np.zeros(3), 1e-14),
        ("with the curvature of all data deletion errs",
         bool(np.abs(old - solved(x[5:], labels[5:])).max() > 1e-3), True, 0),
    ]  # fmt: skip
    return rows + _certificates()


def _certificates():
    """Logistic regression on rows of length 1, a few of which are deleted."""
    rng = np.random.default_rng(3)
    x = rng.normal(size=(200, 6))
    x /= np.linalg.norm(x, axis=1, keepdims=True)
    y = (x @ rng.normal(size=6) + 0.3 * rng.normal(size=200) > 0).astype(np.int32)
    model = ju.functionalize(
        lambda v, x: jnp.stack([0 * x[:, 0], x @ v["params"]["w"]], axis=1),
        sample_input=jnp.zeros((1, 6)),
    )
    noise = rng.normal(size=6) * 0.1

    def fitted(x, y):
        w = np.zeros(6)
        for _ in range(30):
            p = 1 / (1 + np.exp(-x @ w))
            gradient = x.T @ (p - y) + w + noise
            w -= np.linalg.solve(x.T @ ((p * (1 - p))[:, None] * x) + np.eye(6), gradient)
        return w

    sets, w = parted(x, y, 1), fitted(x, y)
    first = made(ju.first_order(model, rate=0.05), weights(w), sets)
    second = made(ju.second_order(model, ridge=1.0, damping=0.0, iterations=20), weights(w), sets)

    def left(w, part=slice(1, None)):
        parts = [toy.exact_subset(x[part], y[part])]
        own = {"w": jnp.asarray(noise)}
        return float(gradient_residual(losses_of(model), weights(w), parts, ridge=1.0, noise=own))

    hand = x[1:].T @ (1 / (1 + np.exp(-x[1:] @ first)) - y[1:]) + first + noise
    return [
        ("residual of what was fitted", left(w, slice(None)), 0.0, 1e-12),
        ("of the first order, by hand", left(first), np.linalg.norm(hand), 1e-12),
        ("of the second, a hundredth of it at most", left(second) < left(first) / 100, True, 0),
        ("c for epsilon .1, delta .01", certified_noise(0.1, 0.1, 0.01), 3.1656, 5e-5),
    ]


def datamodel():
    x, y = labelled()
    labels, model = np.eye(3)[y], linear()
    w, retrained = solved(x, labels), solved(x[5:], labels[5:])
    sets = parted(x, y)
    method = ju.datamodel(model, optimizer=optax.sgd(RATE / 10), ridge=RIDGE, outputs="labels")
    start = method.init(weights(w), sets, KEY)
    # the block formula, of what is left out together
    inverse = np.linalg.inv(x.T @ x + RIDGE * np.eye(6))
    own = x[:5]
    left = np.linalg.solve(np.eye(5) - own @ inverse @ own.T, labels[:5] - own @ w)
    block = x @ w - x @ inverse @ own.T @ left
    found = np.concatenate([start.prepared.forget, start.prepared.retain])
    made = ju.unlearn(method, weights(w), sets, KEY, steps=2000, batch_size=25)

    batches = Batches(forget=whole(x[:5], y[:5]), retain=whole(x[5:], y[5:]))
    begin, end = stepped(method, weights(w), sets, batches, 2)
    hand = w
    for _ in range(2):
        errors = x @ hand - block
        errors = errors / np.where(np.arange(30) < 5, 5, 25)[:, None]
        hand = hand - RATE / 10 * 2 * x.T @ errors

    # the mean of the original's logits in the place of each label
    mean = np.stack([(x @ w)[y == label].mean(0) for label in range(3)])
    by_logits = ju.datamodel(model, ridge=RIDGE).init(weights(w), sets, KEY).prepared
    change = solved(x[5:], mean[y[5:]]) - solved(x, mean[y])
    return [
        ("block formula", found, block, 1e-13),
        ("outputs of a retrained ridge regression", found, x @ retrained, 1e-13),
        ("a student fitted to it is the retrained model", made.variables["params"]["w"],
         retrained, 1e-10),
        ("two steps by hand", end.variables["params"]["w"], hand, 1e-12),
        ("original before them, bit by bit", equal(begin.variables, weights(w)), True, 0),
        ("of mean logits", by_logits.forget, x[:5] @ (w + change), 1e-13),
    ]  # fmt: skip


CHECKS = {
    "ssd": ssd,
    "loss_free_ssd": loss_free_ssd,
    "fisher": fisher,
    "ntk": ntk,
    "influence": influence,
    "first_order": first_order,
    "second_order": second_order,
    "datamodel": datamodel,
}
