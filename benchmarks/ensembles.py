"""Whether ensembles and gradients of each example pay, on the scanned digits.

    python benchmarks/ensembles.py                       # 128 MLPs, 64 small CNNs, gradients
    python benchmarks/ensembles.py --only mlp --members 16 --epochs 5
    python benchmarks/ensembles.py --json

Many models that each know a random half of the training images, three ways side by side in one
process: the same compiled training called in a Python loop (``loop``), one call of ``train_many``
(``one program``), and, with ``--at-once``, the members vectorised, which is what accelerators get.
Then the gradient of each example: ``per_example_gradients`` beside a loop of batches of one.
Compilation apart; medians of rounds in turn.
"""

import argparse
import json
import os
import platform
import statistics
import time
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

import jaxunlearn as ju
from jaxunlearn.core.host import keep_memory
from jaxunlearn.core.types import Batch, Subset
from jaxunlearn.data.examples import fetch
from jaxunlearn.data.sets import random_subsets, request
from jaxunlearn.engine import Outcome, unlearn_many
from jaxunlearn.kinds import kind_of
from jaxunlearn.training import cross_entropy, per_example_gradients
from jaxunlearn.training.descent import trained, with_trained

NETWORKS: dict[str, tuple[str, dict[str, Any], int]] = {
    "mlp": ("mlp", {}, 128),
    "cnn": ("cnn", {"channels": (8, 16), "features": 32}, 64),
}
"""Network, its options, and how many of them."""


def digits(size: int | None) -> Subset:
    """Returns the training images of the scanned digits, or the first of them."""
    data = ju.data.load_dataset(ju.data.DataConfig(name="digits"))
    sets = ju.make_sets(data.train_x[:size], data.train_y[:size], ju.forget_class(3))
    return sets.train


def ensembles(
    name: str, part: Subset, members: int, epochs: float, rounds: int, at_once: bool
) -> dict[str, dict[str, float]]:
    """Returns seconds of each way to train all members, and of compiling it."""
    network, options, _ = NETWORKS[name]
    model = ju.models.build(network, (8, 8, 1), 10, options)
    halves = random_subsets(part, members)
    keys = jax.random.split(jax.random.key(0), members)
    config = ju.TrainConfig(epochs=epochs, learning_rate=3e-3)
    method, steps = kind_of(model).recipe(model, config, int(halves.size[0]), None)
    alone = [request(ju.Sets(retain=halves), n).retain for n in range(members)]

    def loop() -> list[Outcome]:
        return [
            ju.train(model, half, key, config=config) for half, key in zip(alone, keys, strict=True)
        ]

    def together() -> list[Outcome]:
        return [ju.train_many(model, halves, keys, config=config)]

    def vectorised() -> list[Outcome]:
        sets = ju.Sets(retain=halves)
        size = {"steps": steps, "batch_size": config.batch_size}
        return [unlearn_many(method, None, sets, keys, vectorise=True, **size)]

    ways = {"loop": loop, "one program": together}
    if at_once:
        ways["at once"] = vectorised
    # the first call compiles
    compiling = {way: sum(o.compile_seconds for o in run()) for way, run in ways.items()}
    times: dict[str, list[float]] = {way: [] for way in ways}
    walls: dict[str, list[float]] = {way: [] for way in ways}
    for _ in range(rounds):
        for way, run in ways.items():
            start = time.perf_counter()
            times[way].append(sum(outcome.seconds for outcome in run()))
            walls[way].append(time.perf_counter() - start)
    middle = {way: statistics.median(own) for way, own in times.items()}
    return {
        way: {
            "seconds": middle[way],
            "wall_seconds": statistics.median(walls[way]),
            "compile_seconds": compiling[way],
            "ratio_to_loop": statistics.median(
                one / own for one, own in zip(times["loop"], times[way], strict=True)
            ),
        }
        for way in ways
    }


def gradients(name: str, part: Subset, rounds: int) -> dict[str, dict[str, float]]:
    """Returns microseconds an example of Fisher information and norms, both ways."""
    network, options, _ = NETWORKS[name]
    model = ju.models.build(network, (8, 8, 1), 10, options)
    variables, count = model.init(jax.random.key(0)), int(part.size)

    def loss(variables: Any, batch: Batch) -> jax.Array:
        return cross_entropy(model.apply(variables, batch.x), batch.y, batch.weight)

    def one(variables: Any, part: Subset, n: jax.Array) -> Any:
        at = part.indices[n][None]
        batch = Batch(fetch(part.examples, at), part.examples.y[at], jnp.ones(1), at)
        return jax.grad(lambda own: loss(with_trained(variables, own), batch))(trained(variables))

    def square(total: Any, variables: Any, part: Subset, n: jax.Array) -> Any:
        return jax.tree.map(lambda t, g: t + g * g, total, one(variables, part, n))

    def norm(variables: Any, part: Subset, n: jax.Array) -> jax.Array:
        squares = [jnp.sum(g * g) for g in jax.tree.leaves(one(variables, part, n))]
        return jnp.sqrt(sum(squares[1:], squares[0]))

    step, length = jax.jit(square, donate_argnums=0), jax.jit(norm)

    def fisher_loop() -> Any:
        total = jax.tree.map(jnp.zeros_like, trained(variables))
        for n in range(count):
            total = step(total, variables, part, n)
        return jax.tree.map(lambda leaf: leaf / count, total)

    def norm_loop() -> Any:
        return [length(variables, part, n) for n in range(count)]

    def chunked(reduce: str) -> Callable[[], Any]:
        return lambda: per_example_gradients(loss, variables, part, reduce=reduce)

    pairs = {"fisher": (fisher_loop, chunked("mean_square")), "norm": (norm_loop, chunked("norm"))}
    return {what: _beside(*pair, count, rounds) for what, pair in pairs.items()}


def _beside(
    loop: Callable[[], Any], ours: Callable[[], Any], count: int, rounds: int
) -> dict[str, float]:
    found = [jax.tree.leaves(jax.block_until_ready(run())) for run in (loop, ours)]
    if len(found[0]) != len(found[1]):  # one number an example
        found = [[np.stack(own) if len(own) > 1 else np.asarray(own[0])] for own in found]
    gap = max(float(np.abs(a - b).max() / np.abs(a).max()) for a, b in zip(*found, strict=True))
    times: list[list[float]] = [[], []]
    for _ in range(rounds):
        for own, run in zip(times, (loop, ours), strict=True):
            start = time.perf_counter()
            jax.block_until_ready(run())
            own.append(1e6 * (time.perf_counter() - start) / count)
    return {
        "loop_us": statistics.median(times[0]),
        "us": statistics.median(times[1]),
        "ratio_to_loop": statistics.median(a / b for a, b in zip(*times, strict=True)),
        "largest_gap": gap,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--only", choices=NETWORKS)
    parser.add_argument("--members", type=int, help="default: 128 MLPs, 64 CNNs")
    parser.add_argument("--epochs", type=float, default=20)
    parser.add_argument("--examples", type=int, help="default: all 997 images")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--at-once", action="store_true", help="the members vectorised, too")
    parser.add_argument("--json", action="store_true", help="print JSON instead of the table")
    options = parser.parse_args()
    keep_memory()  # as the commands do
    part, ways, rows = digits(options.examples), {}, {}
    for name in [options.only] if options.only else NETWORKS:
        members = options.members or NETWORKS[name][2]
        ways[f"{members} {name}"] = ensembles(
            name, part, members, options.epochs, options.rounds, options.at_once
        )
        rows[name] = gradients(name, part, options.rounds)
    about = {**vars(options), "device": jax.devices()[0].device_kind, "cores": os.cpu_count(),
             "python": platform.python_version(), "jax": jax.__version__,
             "dtype": "float32", "images": int(part.size)}  # fmt: skip
    if options.json:
        print(json.dumps({"about": about, "ways": ways, "gradients": rows}, indent=2))
        return
    print(", ".join(f"{key} {value}" for key, value in about.items() if key != "json"))
    print(f"{'ensemble':12} {'way':12} {'s':>8} {'wall s':>8} {'compile s':>10} {'of loop':>9}")
    for name, found in ways.items():
        for way, row in found.items():
            print(
                f"{name:12} {way:12} {row['seconds']:8.2f} {row['wall_seconds']:8.2f} "
                f"{row['compile_seconds']:10.1f} {row['ratio_to_loop']:8.2f}x"
            )
    print(f"{'gradients':12} {'of each':12} {'loop us':>8} {'us':>8} {'gap':>10} {'of loop':>9}")
    for name, pairs in rows.items():
        for what, row in pairs.items():
            print(
                f"{name:12} {what:12} {row['loop_us']:8.1f} {row['us']:8.1f} "
                f"{row['largest_gap']:10.0e} {row['ratio_to_loop']:8.1f}x"
            )


if __name__ == "__main__":
    main()
