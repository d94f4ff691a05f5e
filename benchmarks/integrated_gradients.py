"""What integrated gradients cost, ours and captum's on the same weights; how exact they are.

    python benchmarks/integrated_gradients.py             # cost: batch 8, one thread
    python benchmarks/integrated_gradients.py --error     # completeness and error: 3 minutes
    python benchmarks/integrated_gradients.py --threads 0 --batches 64    # a GPU, or all cores
    python benchmarks/integrated_gradients.py --json

Cost. The unit is a library's own forward pass and gradient of the input. ``chunk`` nodes are one
batch: none is our default, 1 keeps the memory of one gradient, and captum without
``internal_batch_size`` takes all. The quadrature is Gauss-Legendre, captum's: where torch
and captum are installed both libraries run in turn in one process, and first
their attributions are compared in float64 (``parity``: largest difference, relative to the largest
entry), so that their errors are equal; ``ours automatic`` lets the trace choose. ``error`` is the
distance from the attributions of 16 times as many nodes, as below. A time is the shortest of
``--rounds``, compilation apart; with one thread it is the processor's, so that other
programs do not count.

Error. On the networks of the tests, inputs drawn, baseline zero, argmax as target:
the relative gap (median, and share of the inputs above a thousandth) as it is and with
``complete=True``, and the distance of the attributions from the exact ones,
``sum|a - a*| / sum|a*|`` in the mean over inputs; ``closer`` is the share of inputs that completion
brings closer. Exact is the midpoint rule with ``--exact`` nodes; its own gap is the last
column, and where the errors are that small, they are its.

Measured on one core, jax 0.10.2, torch 2.14.1, captum 0.9.0, batch 8, 20 nodes, in milliseconds; by
default, node by node, 4 nodes at a time; captum node by node, 4 at a time and all at once:
mlp .5, .4, .7; 9.1, 5.4, 4.3. lenet 50, 52, 50; 89, 59, 66. vit 105, 107, 148; 276, 229, 217.
resnet 2097, 2353, 2116; 2280, 1995, 2755. The attributions differ by 7e-9 at most.

Of 32 Gauss-Legendre nodes the median gap is .6 to 4.7 % on the networks with relu (a thousandth
takes about 512 nodes on the first four); on the smooth ones it is rounding. Completion closes it
to rounding but for 0 to 4 % of the inputs. It makes parts add up, hardly more exact: the errors
go from .024, .020, .018, .013 and .048 to .021, .018, .018, .013 and .048, as the table goes.
"""

import argparse
import importlib.metadata
import importlib.util
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from peers.report import about, tell
from relevance import CLASSES, SHAPE, examples, input_gradient, seconds, set_up
from relevance import network as resnet

from jaxunlearn.attribution.ig import integrated_gradients, quadrature
from jaxunlearn.core.types import Model
from jaxunlearn.models import conv, functionalize, max_pool

NETWORKS = ("resnet", "stack", "lenet", "mlp", "vit")
SIZES = {"lenet": (28, 28, 1), "mlp": (28, 28, 1)}
SMOOTH = ("mlp_gelu", "gated", "vision_transformer")
CASES = ("mlp_relu", "mlp_leaky", "lenet_bn_maxpool", "avgpool_net", "resnet", *SMOOTH)
TOLERANCE = 1e-6
TARGET = 1e-3
RULES = {"gauss_legendre": quadrature.gauss_legendre, "midpoint": quadrature.midpoint}

Run = Callable[[], Any]


class Stack(nnx.Module):
    """Six 3x3 convolutions, max-pooling behind every second one, and a dense layer."""

    def __init__(self, width: int, *, rngs: nnx.Rngs) -> None:
        channels = SHAPE[-1]
        for i in range(6):
            outputs = width * 2 ** (i // 2)
            options: dict[str, Any] = {"conv_general_dilated": conv, "rngs": rngs}
            setattr(self, f"conv{i + 1}", nnx.Conv(channels, outputs, (3, 3), **options))
            channels = outputs
        self.head = nnx.Linear(channels, CLASSES, rngs=rngs)

    def __call__(self, x: jax.Array) -> jax.Array:
        for i in range(6):
            x = nnx.relu(getattr(self, f"conv{i + 1}")(x))
            x = max_pool(x) if i % 2 else x
        return self.head(x.mean((1, 2)))


class LeNet(nnx.Module):
    """Two 5x5 convolutions with max-pooling, two dense layers; of 28x28x1."""

    def __init__(self, *, rngs: nnx.Rngs) -> None:
        options: dict[str, Any] = {"conv_general_dilated": conv, "rngs": rngs}
        self.conv1 = nnx.Conv(1, 20, (5, 5), **options)
        self.conv2 = nnx.Conv(20, 50, (5, 5), **options)
        self.fc1 = nnx.Linear(7 * 7 * 50, 500, rngs=rngs)
        self.fc2 = nnx.Linear(500, CLASSES, rngs=rngs)

    def __call__(self, x: jax.Array) -> jax.Array:
        x = max_pool(nnx.relu(self.conv1(x)))
        x = max_pool(nnx.relu(self.conv2(x)))
        return self.fc2(nnx.relu(self.fc1(x.reshape(len(x), -1))))


class Mlp(nnx.Module):
    """Dense layers 784-300-100-10 with relu."""

    def __init__(self, *, rngs: nnx.Rngs) -> None:
        self.fc1 = nnx.Linear(784, 300, rngs=rngs)
        self.fc2 = nnx.Linear(300, 100, rngs=rngs)
        self.fc3 = nnx.Linear(100, CLASSES, rngs=rngs)

    def __call__(self, x: jax.Array) -> jax.Array:
        x = nnx.relu(self.fc1(x.reshape(len(x), -1)))
        return self.fc3(nnx.relu(self.fc2(x)))


class VisionTransformer(nnx.Module):
    """Patches of 4x4 pixels of 32x32x3, four blocks of width 64 with four heads, gelu."""

    WIDTH, HEADS, BLOCKS = 64, 4, 4

    def __init__(self, *, rngs: nnx.Rngs) -> None:
        width = self.WIDTH
        self.patch = nnx.Conv(3, width, (4, 4), (4, 4), padding="VALID", rngs=rngs)
        self.position = nnx.Param(jnp.zeros((1, 64, width)))
        for i in range(self.BLOCKS):
            for name in ("query", "key", "value", "out"):
                setattr(self, f"{name}{i}", nnx.Linear(width, width, rngs=rngs))
            setattr(self, f"up{i}", nnx.Linear(width, 4 * width, rngs=rngs))
            setattr(self, f"down{i}", nnx.Linear(4 * width, width, rngs=rngs))
            for name in ("before", "between"):
                setattr(self, f"{name}{i}", nnx.LayerNorm(width, rngs=rngs))
        self.last = nnx.LayerNorm(width, rngs=rngs)
        self.head = nnx.Linear(width, CLASSES, rngs=rngs)

    def __call__(self, x: jax.Array) -> jax.Array:
        x = self.patch(x).reshape(len(x), -1, self.WIDTH) + self.position[...]
        for i in range(self.BLOCKS):
            part = {name: getattr(self, f"{name}{i}") for name in BLOCK}
            h = part["before"](x)
            q, k, v = (self._heads(part[name](h)) for name in ("query", "key", "value"))
            weights = jax.nn.softmax(jnp.einsum("bqhd,bkhd->bhqk", q, k) / q.shape[-1] ** 0.5)
            x = x + part["out"](jnp.einsum("bhqk,bkhd->bqhd", weights, v).reshape(x.shape))
            x = x + part["down"](nnx.gelu(part["up"](part["between"](x))))
        return self.head(self.last(x).mean(1))

    def _heads(self, x: jax.Array) -> jax.Array:
        return x.reshape(*x.shape[:2], self.HEADS, -1)


BLOCK = ("query", "key", "value", "out", "up", "down", "before", "between")
MODULES = {"lenet": LeNet, "mlp": Mlp, "vit": VisionTransformer}


def network(name: str, options: argparse.Namespace, dtype: Any = jnp.float32) -> Model:
    if name == "resnet":
        return resnet(tuple(options.stages), options.width, dtype)
    if name == "stack":
        return functionalize(lambda rngs: Stack(options.width, rngs=rngs))
    return functionalize(lambda rngs: MODULES[name](rngs=rngs))


def inputs(name: str, batch: int) -> tuple[np.ndarray, np.ndarray]:
    """Images of the size that a network takes, and labels."""
    x, y = examples(batch)
    height, width, channels = SIZES.get(name, SHAPE)
    return np.ascontiguousarray(x[:, :height, :width, :channels]), y


def draw(model: Model) -> Any:
    """Variables as after a training: no statistic is 0 or 1, some scales are negative."""
    rng = np.random.default_rng(0)
    ranges = {"scale": (0.5, 1.5), "bias": (-0.2, 0.2), "mean": (-0.3, 0.3), "var": (0.5, 2.0)}

    def one(path: Any, leaf: Any) -> jax.Array:
        name = str(path[-1].key)
        if name in ranges:
            values = rng.uniform(*ranges[name], leaf.shape)
        else:
            values = rng.normal(size=leaf.shape) * (2 / np.prod(leaf.shape[:-1])) ** 0.5
        if name == "position":
            values = rng.normal(size=leaf.shape) / 2
        if name == "scale":
            values *= rng.choice([-1, 1], leaf.shape, p=[0.2, 0.8])
        return jnp.asarray(values, leaf.dtype)

    shapes = jax.eval_shape(model.init, jax.random.key(0))  # to compile it takes longer than all
    return jax.tree_util.tree_map_with_path(one, shapes)


# --- cost


class Way(NamedTuple):
    """How the integral is computed: ours, if not captum's; ``automatic``: nodes by the trace."""

    captum: bool
    chunk: int | None
    complete: bool = False
    automatic: bool = False

    @property
    def label(self) -> str:
        more = " complete" if self.complete else " automatic" if self.automatic else ""
        return ("captum" if self.captum else "ours") + more

    def rule(self, steps: int) -> Any:
        return (quadrature.automatic if self.automatic else quadrature.gauss_legendre)(steps)


def ways(options: argparse.Namespace, peers: bool) -> list[Way]:
    ours = [
        Way(False, None),
        Way(False, None, complete=True),
        Way(False, None, automatic=True),
        *(Way(False, c) for c in options.chunks),
    ]
    theirs = dict.fromkeys([*options.chunks, options.steps])
    return ours + [Way(True, chunk) for chunk in theirs if peers]


def errors_of(
    model: Model, variables: Any, given: tuple[Any, Any], options: argparse.Namespace
) -> dict[bool, float]:
    """Returns by ``Way.automatic`` the mean ``sum|a - a*| / sum|a*|``; exact is 16 times finer."""

    def found(rule: Any) -> np.ndarray:
        attribute = jax.jit(integrated_gradients(model.apply, rule))
        return np.asarray(attribute(variables, *given).attribution).reshape(len(given[1]), -1)

    exact = found(quadrature.midpoint(16 * options.steps))
    ways = {
        own: found(Way(False, None, automatic=own).rule(options.steps)) for own in (True, False)
    }
    scale = np.abs(exact).sum(1)
    return {own: float(np.mean(np.abs(a - exact).sum(1) / scale)) for own, a in ways.items()}


def parity(name: str, options: argparse.Namespace, variables: Any, peer: Any) -> float:
    """Returns the difference from captum in float64.

    Raises:
      RuntimeError: if it is above ``TOLERANCE``.
    """
    from peers.captum_ig import channels_last

    x, y = inputs(name, 2)
    theirs = channels_last(peer.integrated(*peer.inputs(x, y), options.steps, 1))
    with jax.enable_x64(True):
        exact = jax.tree.map(lambda leaf: jnp.asarray(leaf, jnp.float64), variables)
        rule = quadrature.gauss_legendre(options.steps)
        attribute = jax.jit(integrated_gradients(network(name, options, jnp.float64).apply, rule))
        mine = np.asarray(attribute(exact, jnp.asarray(x), y).attribution)
    error = float(np.abs(mine - theirs).max() / np.abs(theirs).max())
    if not error < TOLERANCE:
        raise RuntimeError(f"{name}: the libraries differ by {error:.1e}")
    return error


def our_run(model: Model, variables: Any, given: tuple[Any, Any], way: Way, steps: int) -> Run:
    attribute = jax.jit(
        integrated_gradients(model.apply, way.rule(steps), chunk=way.chunk, complete=way.complete)
    )
    return lambda: jax.block_until_ready(attribute(variables, *given))


def runs_of(
    name: str, made: Any, batch: int, options: argparse.Namespace
) -> tuple[dict[Any, Run], dict[bool, float]]:
    """Returns the runs: of a way, or ``"ours"`` and ``"captum"`` for the units; and the errors."""
    model, variables, peer, _ = made
    images, y = inputs(name, batch)
    given = jnp.asarray(images, jnp.float32), jnp.asarray(y)
    seed = jax.nn.one_hot(y, CLASSES, dtype=jnp.float32)
    unit = jax.jit(input_gradient(model))
    runs: dict[Any, Run] = {"ours": lambda: jax.block_until_ready(unit(variables, given[0], seed))}
    for way in ways(options, peer is not None):
        if not way.captum:
            runs[way] = our_run(model, variables, given, way, options.steps)
    if peer is not None:
        moved = peer.inputs(images, y)
        runs["captum"] = lambda: peer.gradient(*moved)
        for way in ways(options, True):
            if way.captum:
                runs[way] = lambda way=way: peer.integrated(*moved, options.steps, way.chunk)
    return runs, errors_of(model, variables, given, options)


def cost(
    name: str, batch: int, options: argparse.Namespace, clock: Callable[[], float], made: Any
) -> Iterator[dict[str, Any]]:
    """Returns a row for every way, all of them measured in turn."""
    runs, off = runs_of(name, made, batch, options)
    first = {key: seconds(run, clock) for key, run in runs.items()}
    times: dict[Any, list[float]] = {key: [] for key in runs}
    for _ in range(options.rounds):
        for key, run in runs.items():
            times[key].append(seconds(run, clock))
    best = {key: min(values) for key, values in times.items()}
    for key, found in best.items():
        row: dict[str, Any] = {"network": name, "batch": batch, "ms": 1e3 * found}
        row["compile_s"] = None if "captum" in getattr(key, "label", key) else first[key] - found
        if isinstance(key, str):
            yield row | {"way": f"{key} unit", "chunk": None, "ratio": 1.0}
            continue
        row |= {"way": key.label, "chunk": key.chunk, "parity": made[3]}
        row["ratio"] = found / best["captum" if key.captum else "ours"]
        yield row | {"error": None if key.complete else off[key.automatic]}


def costs(options: argparse.Namespace, clock: Callable[[], float]) -> list[dict[str, Any]]:
    rows: list[dict[str, Any]] = []
    for name in options.networks:
        model = network(name, options)
        variables = draw(model)
        peer, difference = None, None
        if has_peers(options):
            from peers.captum_ig import Captum

            device = "cuda" if jax.default_backend() == "gpu" else "cpu"
            host = jax.tree.map(np.asarray, variables)
            exact = Captum(name, host, "float64", device)
            difference = parity(name, options, variables, exact)
            peer = Captum(name, host, "float32", device)
        made = model, variables, peer, difference
        for batch in options.batches:
            rows += cost(name, batch, options, clock, made)
    return rows


# --- error


class Case(NamedTuple):
    """A network of the tests: whether its gradient has no steps, and what it is called with."""

    smooth: bool
    fn: Callable[[Any, jax.Array], jax.Array]
    variables: Any
    x: jax.Array


def cases(names: list[str], count: int) -> dict[str, Case]:
    """Inputs are normal, of the spread of those that come with the network; all in float64."""
    sys.path.insert(0, str(Path(__file__).parent.parent / "tests" / "attribution"))
    import named_nets
    import nets
    import networks

    def one(name: str) -> Case:
        if name in named_nets.NETS:
            fn, (_, (variables, x, _)) = getattr(nets, name), named_nets.load(name)
        else:
            fn, variables, x = networks.NETWORKS[name]()
        drawn = float(jnp.std(x)) * np.random.default_rng(2).normal(size=(count, *x.shape[1:]))
        wide = jax.tree.map(lambda leaf: jnp.asarray(leaf, jnp.float64), variables)
        return Case(name in SMOOTH, fn, wide, jnp.asarray(drawn))

    return {name: one(name) for name in names}


def error(case: Case, rule: str, steps: int, exact: Any) -> dict[str, Any]:
    """Returns how far the attributions are from adding up, and from the exact ones."""
    total = np.abs(exact.attribution).reshape(len(case.x), -1).sum(1)
    row: dict[str, Any] = {"rule": rule, "exact_gap": float(np.median(exact.relative_gap))}
    errors = []
    for name, complete in (("plain", False), ("complete", True)):
        attribute = integrated_gradients(case.fn, RULES[rule](steps), complete=complete)
        found = jax.jit(attribute)(case.variables, case.x)
        off = np.abs(found.attribution - exact.attribution).reshape(len(case.x), -1).sum(1)
        errors.append(off / total)
        row[f"{name}_gap"] = float(np.median(found.relative_gap))
        row[f"{name}_above"] = float(np.mean(found.relative_gap > TARGET))
        row[f"{name}_error"] = float(errors[-1].mean())
    return row | {"closer": float(np.mean(errors[1] < errors[0]))}


def errors(options: argparse.Namespace) -> list[dict[str, Any]]:
    rows = []
    with jax.enable_x64(True):
        for name, case in cases(options.networks, options.examples).items():
            fine = integrated_gradients(case.fn, quadrature.midpoint(options.exact))
            exact = jax.tree.map(np.asarray, jax.jit(fine)(case.variables, case.x))
            for rule in RULES:
                head = {"network": name, "smooth": case.smooth, "steps": options.steps}
                rows.append(head | error(case, rule, options.steps, exact))
    return rows


# --- the script


def has_peers(options: argparse.Namespace) -> bool:
    return not options.alone and all(map(importlib.util.find_spec, ("torch", "captum")))


def settings(options: argparse.Namespace, clock: Any) -> dict[str, Any]:
    peers = ("torch", "captum") if has_peers(options) and not options.error else ()
    run: dict[str, Any] = {
        "network": f"resnet {'-'.join(map(str, options.stages))}, stack of 6; "
        f"width {options.width}",
        "images": "x".join(map(str, SHAPE)),
        "dtype": "float32",
        "rounds": options.rounds,
        "clock": clock.__name__,
    }
    if options.error:
        run = {"dtype": "float64", "inputs": options.examples, "exact": options.exact}
    threads = options.threads or "all"
    return about("jaxlib", "flax", *peers, threads=threads, steps=options.steps, **run)


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--error", action="store_true", help="completeness and error, not cost")
    parser.add_argument("--steps", type=int, help="nodes (20 for cost, 32 for error)")
    parser.add_argument("--networks", nargs="+", help="some of those of the table (all)")
    parser.add_argument("--batches", type=int, nargs="+", default=[8])
    parser.add_argument("--chunks", type=int, nargs="+", default=[1, 4], help="nodes at a time")
    parser.add_argument("--stages", type=int, nargs="+", default=[2, 2, 2, 2])
    parser.add_argument("--width", type=int, default=64)
    parser.add_argument("--rounds", type=int, default=5, help="runs of each, in turn (5)")
    parser.add_argument("--threads", type=int, default=1, help="cores to use, 0 for all (1)")
    parser.add_argument("--examples", type=int, default=200, help="inputs of --error (200)")
    parser.add_argument("--exact", type=int, default=4096, help="nodes taken as exact (4096)")
    parser.add_argument("--alone", action="store_true", help="without captum")
    parser.add_argument("--json", action="store_true", help="print JSON instead of the table")
    options = parser.parse_args()
    options.steps = options.steps or (32 if options.error else 20)
    known = CASES if options.error else NETWORKS
    options.networks = options.networks or list(known)
    if unknown := set(options.networks).difference(known):
        parser.error(f"--networks: expected some of {', '.join(known)}, got {', '.join(unknown)}")
    return options


def main() -> None:
    options = arguments()
    set_up(options.threads)
    if has_peers(options) and options.threads:
        import torch

        torch.set_num_threads(options.threads)
    alone = options.threads == 1 and jax.default_backend() == "cpu"
    clock = time.process_time if alone else time.perf_counter
    rows = errors(options) if options.error else costs(options, clock)
    if tell(settings(options, clock), options.json, rows=rows):
        (show_errors if options.error else show_costs)(rows)


def show_costs(rows: list[dict[str, Any]]) -> None:
    print(
        f"{'network':8} {'batch':>5} {'way':14} {'chunk':>5} {'ms':>9} {'ratio':>6} "
        f"{'error':>8} {'compile s':>9} {'parity':>8}"
    )

    def cell(value: Any, form: str) -> str:
        width = int(form.split(".")[0])
        return " " * width if value is None else f"{value:{form}}"

    for row in rows:
        print(
            f"{row['network']:8} {row['batch']:5d} {row['way']:14} {cell(row['chunk'], '5')} "
            f"{row['ms']:9.1f} {row['ratio']:6.2f} "
            f"{cell(row.get('error'), '8.1e')} {cell(row['compile_s'], '9.1f')} "
            f"{cell(row.get('parity'), '8.1e')}"
        )


def show_errors(rows: list[dict[str, Any]]) -> None:
    print(
        f"{'network':18} {'':6} {'rule':14} {'gap':>8} {'above':>6} {'complete':>8} {'above':>6} "
        f"{'error':>8} {'complete':>8} {'closer':>6} {'exact gap':>9}"
    )
    for row in rows:
        kind = "smooth" if row["smooth"] else ""
        print(
            f"{row['network']:18} {kind:6} {row['rule']:14} {row['plain_gap']:8.1e} "
            f"{row['plain_above']:6.1%} {row['complete_gap']:8.1e} {row['complete_above']:6.1%} "
            f"{row['plain_error']:8.1e} {row['complete_error']:8.1e} {row['closer']:6.0%} "
            f"{row['exact_gap']:9.1e}"
        )


if __name__ == "__main__":
    main()
