"""Does ``neuron_path`` find the neurons that carry a class? Paths that were planted tell.

    python benchmarks/planted_paths.py                     # digits, an MLP, 5 seeds
    python benchmarks/planted_paths.py --wiring neurons    # planted neurons read all before them
    python benchmarks/planted_paths.py --json

An MLP is trained on all classes but one. Then neurons of each hidden layer are drawn, and the
network is trained on all classes with gradients masked to their weights: those between planted
neurons of neighbouring layers, from the input to the first of them and from the last of them
to the class's logit, and their biases (``--wiring neurons``: all incoming weights of planted
neurons). All that the network knows of the class lies in these weights: without them
it is the network that never saw the class. The class and the others weigh alike in the
loss, so that the one is learnt and the others stay.

``neuron_path`` then looks at unseen images of the class (and, where it says *specific*, of the
others), and its ranking of a layer's neurons is compared with the planted ones: precision
of the first half as many, precision (which is recall) of the first as many, and recall of the
first two times as many as were planted. Beside it:

* ``random``, expected; ``floor``: what 19 of 20 random rankings stay below, in the mean over seeds;
* ``magnitude``: the norm of the weights that an edit would take away;
* ``activation``: the mean activation on the class less that on the others;
* ``ablation``: how much the class's logit falls when the neuron is silenced, one by one: the
  best that can be hoped for of a method that asks which neurons speak for the class (the head of
  the table says which share of the planted ones do: the others fire on images of other
  classes and speak against it, or never fire);
* ``before``: the network in which nothing was planted yet; what is found there is chance.

The last columns: accuracy on test images when as many neurons as were planted are zeroed.
"""

import argparse
import time
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from peers.report import about, tell

import jaxunlearn as ju
from jaxunlearn.attribution.lrp.rules import Rules
from jaxunlearn.core.keys import Purpose, derive
from jaxunlearn.core.trees import member, named_leaves, path_name
from jaxunlearn.core.types import Batches, Key, Model, Needs, Sets, Subset, Unlearner, Variables
from jaxunlearn.data.batches import in_order
from jaxunlearn.data.examples import array_shape, inputs_like
from jaxunlearn.data.sets import divide, num_examples, stratified_mask
from jaxunlearn.engine.predict import predict
from jaxunlearn.methods.neuron_path import budget as budgets
from jaxunlearn.methods.neuron_path import weights as sites
from jaxunlearn.training import Context, accuracy, cross_entropy, descent

RULES: dict[str, Callable[[], Rules]] = {
    "epsilon": lambda: ju.rules.epsilon(0.1),  # as published
    "zero": lambda: ju.rules.zero(),
    "gamma": lambda: ju.rules.gamma(0.25),
    "zplus": lambda: ju.rules.zplus(),
    "alpha2_beta1": lambda: ju.rules.alpha_beta(2, 1),
}
SCORES = (("votes", 0.0), ("relevance", 0.0), ("votes", 1.0), ("relevance", 1.0))
BUDGETS = {"half": 0.5, "as many": 1.0, "twice": 2.0}
DRAWS = 2000

Orders = list[jax.Array]
"""For each layer ``int32 [seeds, n]``, neurons from the first to be edited to the last."""


class Planted(NamedTuple):
    """Networks with a planted path, one for each seed.

    Attributes:
      model, sets: what was trained on what.
      layers: hidden layers, with the weights that ``neuron_path`` edits.
      whole: the same layers with all weights that make a neuron, biases too.
      neurons: for each layer ``bool [seeds, n]``, the planted ones.
      counts: of each layer, how many these are.
      classes: ``bool [K]``, true for the planted class.
      before, after: variables with a leading axis of seeds.
    """

    model: Model
    sets: Sets
    layers: tuple[sites.Layer, ...]
    whole: tuple[sites.Layer, ...]
    neurons: Orders
    counts: list[int]
    classes: jax.Array
    before: Variables
    after: Variables


def digits(label: int) -> tuple[Sets, int]:
    """Returns the embedded digits, divided to forget a class, and the number of classes."""
    config = ju.data.DataConfig(name="digits")
    data = ju.data.load_dataset(config)
    held = stratified_mask(data.test_y, config.unseen, config.seed)
    return divide(data, held, [ju.data.forget_class(label)]), len(data.class_names)


def masked_training(model: Model, rate: float) -> Unlearner:
    """Returns training of those parameters for which ``variables["planted"]`` is true."""

    def objective(variables: Variables, batches: Batches, context: Context) -> Any:
        del context
        params = jax.tree.map(
            lambda leaf, free: jnp.where(free, leaf, jax.lax.stop_gradient(leaf)),
            variables["params"], variables["planted"],
        )  # fmt: skip
        losses, found = [], {}
        for name in ("forget", "retain"):
            batch = getattr(batches, name)
            logits = model.apply({"params": params}, batch.x)
            losses.append(cross_entropy(logits, batch.y, batch.weight))
            found[name] = accuracy(logits, batch)
        return sum(losses) / 2, (variables, found)

    return descent(objective, optax.adam(rate), Needs(forget=True, retain=True))


def plant(options: argparse.Namespace) -> Planted:
    """Trains all classes but one, then that one in drawn neurons, for each seed.

    Raises:
      RuntimeError: if any other weight changed.
    """
    sets, num_classes = digits(options.label)
    shape = array_shape(sets.retain)
    model = ju.models.build("mlp", shape, num_classes, {"features": options.features})
    seeds = jnp.stack([jax.random.key(seed) for seed in range(options.seeds)])

    def keys(purpose: Purpose) -> Key:
        return jax.vmap(lambda key: derive(key, purpose))(seeds)

    config = ju.TrainConfig(epochs=options.epochs, batch_size=64)
    before = ju.train_many(model, sets.retain, keys(Purpose.ORIGINAL), config=config).variables
    relevance, like = ju.lrp(model.apply, rules=ju.rules.zero()), inputs_like(sets.retain)

    def layers(weights: tuple[str, ...] | None, biases: bool = False) -> tuple[sites.Layer, ...]:
        one = member(before, 0)
        return sites.find_layers(model.apply, relevance, one, like, "all", weights, biases)

    whole, read = layers(("incoming", "class"), biases=True), layers(("outgoing",))
    counts = [max(round(options.share * layer.width), 1) for layer in whole]
    classes = jnp.arange(num_classes) == options.label

    def draw(key: Key, variables: Variables) -> tuple[Orders, Any]:
        neurons = [
            jax.random.permutation(derive(key, number), layer.width) < count
            for number, (layer, count) in enumerate(zip(whole, counts, strict=True))
        ]
        free = sites.masks_of(variables, whole, neurons, classes)
        if options.wiring == "path":
            out = sites.masks_of(variables, read, neurons, classes)
            free = {path: mask & out.get(path, True) for path, mask in free.items()}
        return neurons, jax.tree_util.tree_map_with_path(
            lambda place, leaf: jnp.broadcast_to(free.get(path_name(place), False), leaf.shape),
            variables,
        )["params"]

    neurons, masks = jax.jit(jax.vmap(draw))(keys(Purpose.PREPARATION), before)
    after = ju.unlearn_many(
        masked_training(model, options.rate), {**before, "planted": masks}, sets,
        keys(Purpose.METHOD), stacked_variables=True, steps=options.steps, batch_size=64,
    ).variables  # fmt: skip
    moved = jax.tree.map(
        lambda old, new, free: jnp.any((old != new) & ~free), before["params"], after["params"],
        masks,
    )  # fmt: skip
    if any(jax.tree.leaves(moved)):
        raise RuntimeError("expected planted weights alone to change, got others")
    after = {"params": after["params"]}
    return Planted(model, sets, layers(None), whole, neurons, counts, classes, before, after)


def path_method(planted: Planted, rules: Rules) -> Unlearner:
    """Returns the method; it counts votes and relevance alike, for the class and for the others."""
    return ju.neuron_path(
        planted.model, layers="all", per_sample=min(planted.counts), neurons=1,
        score="relevance", specificity=1.0, rules=rules, samples=64,
    )  # fmt: skip


def path_orders(planted: Planted, variables: Variables, method: Unlearner) -> dict[str, Orders]:
    """Rankings of ``neuron_path`` by each score, of what it counted over unseen images."""
    kept: list[Any] = []
    keys = jax.random.split(jax.random.key(0), len(planted.neurons[0]))
    ju.unlearn_many(
        method, variables, planted.sets, keys, stacked_variables=True, batch_size=64,
        on_chunk=lambda progress: kept.append(jax.tree.map(jnp.copy, progress.state)),
    )  # fmt: skip
    state, found = kept[-1], {}
    for score, specificity in SCORES:
        rank = jax.vmap(
            lambda own, other, s=score, c=specificity: budgets.rank_neurons(own, other, s, c).order
        )
        found[f"{score}, specific" if specificity else score] = [
            rank(own, other) for own, other in zip(state.unseen, state.holdout, strict=True)
        ]
    return found


def magnitude_orders(planted: Planted) -> Orders:
    """Neurons by the norm of the weights that would be edited."""

    def one(variables: Variables) -> Orders:
        leaves, orders = named_leaves(variables), []
        for layer in planted.layers:
            squares = jnp.zeros(layer.width)
            for place in layer.places:
                leaf = leaves[place.path]
                if place.classes is not None:
                    leaf = jnp.compress(planted.classes, leaf, axis=place.classes, size=1)
                axes = tuple(axis for axis in range(leaf.ndim) if axis != place.axis)
                squares += jnp.sum(leaf**2, axis=axes)
            orders.append(jnp.argsort(-squares))
        return orders

    return jax.jit(jax.vmap(one))(planted.after)


def activation_orders(planted: Planted) -> Orders:
    """Neurons by their mean activation on the class less that on the others."""
    unseen, holdout = everything(planted.sets.unseen), everything(planted.sets.holdout)

    def means(variables: Variables, x: jax.Array) -> list[jax.Array]:
        x, found = x.reshape(len(x), -1), []
        for number in range(1, len(planted.layers) + 1):
            own = variables["params"][f"fc{number}"]
            x = jax.nn.relu(x @ own["kernel"] + own["bias"])
            found.append(jnp.mean(x, axis=0))
        return found

    def one(variables: Variables) -> Orders:
        own, others = means(variables, unseen), means(variables, holdout)
        return [jnp.argsort(b - a) for a, b in zip(own, others, strict=True)]

    return jax.jit(jax.vmap(one))(planted.after)


def ablation_drops(planted: Planted) -> list[jax.Array]:
    """Computes the fall of the class's mean logit without a neuron, ``[seeds, n]`` by layer."""
    x = everything(planted.sets.unseen)

    def logit(variables: Variables) -> jax.Array:
        return jnp.mean(planted.model.apply(variables, x), axis=0) @ planted.classes.astype(x.dtype)

    def silenced(variables: Variables, place: int, neuron: jax.Array) -> jax.Array:
        chosen = [
            (jnp.arange(layer.width) == neuron) & (number == place)
            for number, layer in enumerate(planted.whole)
        ]
        masks = sites.masks_of(variables, planted.whole, chosen, planted.classes)
        return logit(sites.edit_weights(variables, masks, "zero", 1.0, None))

    def one(variables: Variables) -> list[jax.Array]:
        return [
            logit(variables)
            - jax.lax.map(lambda n, p=place: silenced(variables, p, n), jnp.arange(layer.width))
            for place, layer in enumerate(planted.whole)
        ]

    return jax.jit(jax.vmap(one))(planted.after)


def random_orders(planted: Planted) -> Orders:
    """Neurons in random order."""
    orders = []
    for number, own in enumerate(planted.neurons):
        keys = jax.random.split(jax.random.key(number), len(own))
        orders.append(jax.vmap(lambda k, n=own.shape[1]: jax.random.permutation(k, n))(keys))
    return orders


def everything(part: Subset) -> jax.Array:
    """Returns all inputs of a subset, in its order."""
    return in_order(part, jnp.int32(0), num_examples(part)).x


def compare(planted: Planted, orders: Orders) -> dict[str, Any]:
    """Computes precision and recall by layer and budget, with the deviation over own seeds."""
    found = {}
    for own, order, count, layer in zip(
        planted.neurons, orders, planted.counts, planted.layers, strict=True
    ):
        for name, part in BUDGETS.items():
            budget = max(round(part * count), 1)
            hits = jnp.sum(jnp.take_along_axis(own, order[:, :budget], axis=1), axis=1)
            found[f"{layer.name}, {name}"] = scored(np.asarray(hits, float), budget, count)
    return found


def scored(hits: np.ndarray, budget: int, count: int) -> dict[str, float]:
    return {
        "precision": hits.mean() / budget,
        "recall": hits.mean() / count,
        "deviation": hits.std(ddof=1) / count if len(hits) > 1 else 0.0,
    }


def chance(planted: Planted) -> tuple[dict[str, Any], dict[str, Any]]:
    """Returns the expected scores of random rankings, and those that 19 of 20 stay below."""
    rng, expected, floor = np.random.default_rng(0), {}, {}
    for own, count, layer in zip(planted.neurons, planted.counts, planted.layers, strict=True):
        for name, part in BUDGETS.items():
            budget, key = max(round(part * count), 1), f"{layer.name}, {name}"
            drawn = rng.hypergeometric(count, layer.width - count, budget, (DRAWS, len(own)))
            expected[key] = scored(np.array([budget * count / layer.width]), budget, count)
            floor[key] = scored(np.quantile(drawn.mean(axis=1), [0.95]), budget, count)
    return expected, floor


def forget(planted: Planted, orders: Orders) -> Variables:
    """Zeroes as many neurons as were planted."""

    def one(variables: Variables, own: Orders) -> Variables:
        chosen = [
            jnp.zeros(len(order), bool).at[order[:count]].set(True)
            for order, count in zip(own, planted.counts, strict=True)
        ]
        masks = sites.masks_of(variables, planted.layers, chosen, planted.classes)
        return sites.edit_weights(variables, masks, "zero", 1.0, None)

    return jax.vmap(one)(planted.after, orders)


def accuracies(planted: Planted, variables: Variables) -> dict[str, float]:
    """Returns mean accuracies on test images of the class and of the others."""
    parts = {"class": planted.sets.test_forget, "others": planted.sets.test_retain}
    members = [member(variables, seed) for seed in range(len(planted.neurons[0]))]
    return {
        name: float(np.mean([predict(planted.model.apply, one, p).accuracy for one in members]))
        for name, p in parts.items()
    }


def measure(planted: Planted, names: list[str], drops: list[jax.Array]) -> list[dict[str, Any]]:
    """Returns one row for each ranking; the first two are the networks without an edit."""
    rankings = {
        "planted neurons": [jnp.argsort(~own, axis=1) for own in planted.neurons],
        "random": random_orders(planted),
        "magnitude": magnitude_orders(planted),
        "activation": activation_orders(planted),
        "ablation": [jnp.argsort(-drop, axis=1) for drop in drops],
    }
    # one method for both networks, so that they share a program
    methods = {name: path_method(planted, RULES[name]()) for name in names}
    for name, method in methods.items():
        found = path_orders(planted, planted.after, method)
        rankings |= {f"{name}, {score}": orders for score, orders in found.items()}
    before = path_orders(planted, planted.before, methods[names[0]])
    rankings[f"before: {names[0]}, votes"] = before["votes"]
    expected, floor = chance(planted)
    networks = {"(before planting)": planted.before, "(planted, no edit)": planted.after}
    rows = [
        {"ranking": name, "found": {}, **accuracies(planted, variables)}
        for name, variables in networks.items()
    ]
    rows.append({"ranking": "floor", "found": floor})
    for name, orders in rankings.items():
        own = expected if name == "random" else compare(planted, orders)
        edited = forget(planted, orders)
        rows.append({"ranking": name, "found": own, **accuracies(planted, edited)})
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--features", type=int, nargs="+", default=[256, 128])
    parser.add_argument("--label", type=int, default=3, help="the class that is planted (3)")
    parser.add_argument("--share", type=float, default=0.125, help="of each layer's neurons (1/8)")
    parser.add_argument("--wiring", choices=("path", "neurons"), default="path")
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--epochs", type=float, default=40, help="of the other classes (40)")
    parser.add_argument("--steps", type=int, default=600, help="of the masked training (600)")
    parser.add_argument("--rate", type=float, default=1e-3, help="of the masked training (.001)")
    parser.add_argument("--rules", nargs="+", choices=RULES, default=list(RULES))
    parser.add_argument("--json", action="store_true", help="print JSON instead of the table")
    options = parser.parse_args()
    start = time.perf_counter()
    planted = plant(options)
    drops = ablation_drops(planted)
    rows = measure(planted, options.rules, drops)
    # rounding moves a logit, too
    speaking = [
        float(jnp.sum(own & (drop > 1e-4)) / jnp.sum(own))
        for own, drop in zip(planted.neurons, drops, strict=True)
    ]
    told = about(
        dtype="float32", options=options, planted=planted.counts,
        of_them_for_the_class=[round(share, 2) for share in speaking],
        seconds=round(time.perf_counter() - start, 1),
    )  # fmt: skip
    if tell(told, options.json, rows=rows):
        show(rows)


def show(rows: list[dict[str, Any]]) -> None:
    columns = list(next(row["found"] for row in rows if row["found"]))
    layers = list(dict.fromkeys(column.rsplit(", ")[0] for column in columns))
    print(f"{'':30}" + "".join(f"{layer:^30}" for layer in layers) + f"{'accuracy (test)':>18}")
    heads = f"{'P half':>9}{'P=R as many':>13}{'R twice':>8}" * len(layers)
    print(f"{'ranking':30}{heads}{'class':>9}{'others':>9}")
    for row in rows:
        cells = [score(row["found"][name], name) for name in columns if row["found"]]
        cells = cells or [" " * 30 * len(layers)]
        cells += [f"{row[name]:9.3f}" for name in ("class", "others") if name in row]
        print(f"{row['ranking']:30}{''.join(cells)}")


def score(found: dict[str, float], column: str) -> str:
    """Returns one cell: precision; with the deviation where it is recall, too; recall."""
    if column.endswith("as many"):
        return f"{found['precision']:8.2f} ±{found['deviation']:.2f}"
    return f"{found['precision']:9.2f}" if column.endswith("half") else f"{found['recall']:8.2f}"


if __name__ == "__main__":
    main()
