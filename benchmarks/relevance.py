"""What relevance propagation costs, ours and zennit's on the same weights.

    python benchmarks/relevance.py                             # ResNet-18, batch 8, one thread
    python benchmarks/relevance.py --batches 8 64 256 --threads 0     # a GPU, or all cores
    python benchmarks/relevance.py --json

The unit is a library's own forward pass and gradient of the input: a ratio of 2
says that a relevance costs two of these. ``ours`` returns the relevance of the input and of
every layer; ``captured`` is zennit with the relevance of every layer kept, ``zennit``
with that of the input alone. Where torch and zennit are installed both libraries run in
turn in one process, and first their relevances are compared in float64, layer by layer
(``error``: largest difference, relative to the largest entry of the layer; the worst layer
counts). A time is the shortest of ``--rounds``, compilation apart; with one thread it is the
processor's, so that other programs do not count. Batch normalisation has drawn
statistics, and scales of both signs.

Measured on one core, jax 0.10.2, torch 2.13.0, zennit 0.5.1, batch 8, ratios of ours and of
zennit with and without capture: epsilon 1.10, 3.05, 3.03; epsilon_plus_flat 1.58, 4.23,
4.20; epsilon_alpha2_beta1 2.21, 6.84, 6.81; epsilon_gamma_box 2.18, 8.08, 8.20. The units are
178 ms (ours) and 150 ms (torch); the relevances differ by 3e-11 at most.
"""

import argparse
import importlib.metadata
import importlib.util
import os
import time
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from peers.report import about, tell

from jaxunlearn.attribution import Relevance, lrp, starts
from jaxunlearn.attribution.lrp import rules
from jaxunlearn.core.host import keep_memory
from jaxunlearn.core.types import Model
from jaxunlearn.models import ResNet, functionalize

BOUNDS, CLASSES, SHAPE = (-2.0, 2.0), 10, (32, 32, 3)
COMPOSITES: dict[str, Callable[[], Any]] = {
    "epsilon": lambda: rules.epsilon(),
    "epsilon_plus_flat": lambda: rules.epsilon_plus_flat(),
    "epsilon_alpha2_beta1": lambda: rules.epsilon_alpha2_beta1(),
    "epsilon_gamma_box": lambda: rules.epsilon_gamma_box(*BOUNDS),
}
TOLERANCE = 1e-6
LIBRARIES = ("ours", "captured", "zennit")

Run = Callable[[], Any]


def network(stages: tuple[int, ...], width: int, dtype: Any = jnp.float32) -> Model:
    """Our residual network; batch normalisation computes in ``dtype`` as all else does."""

    def make(rngs: nnx.Rngs) -> ResNet:
        module = ResNet(SHAPE, CLASSES, stages=stages, width=width, rngs=rngs)
        for _, part in nnx.iter_modules(module):
            if isinstance(part, nnx.BatchNorm):
                part.dtype = dtype
        return module

    return functionalize(make)


def draw(model: Model) -> Any:
    """Variables as after a training: no statistic is 0 or 1, some scales are negative."""
    rng = np.random.default_rng(0)
    ranges = {"scale": (0.5, 1.5), "bias": (-0.2, 0.2), "mean": (-0.3, 0.3), "var": (0.5, 2.0)}

    def one(path: Any, leaf: jax.Array) -> jax.Array:
        name = str(path[-1].key)
        if name not in ranges:
            return leaf
        values = rng.uniform(*ranges[name], leaf.shape)
        if name == "scale":
            values *= rng.choice([-1, 1], leaf.shape, p=[0.2, 0.8])
        return jnp.asarray(values, leaf.dtype)

    return jax.tree_util.tree_map_with_path(one, jax.jit(model.init)(jax.random.key(0)))


def examples(batch: int) -> tuple[np.ndarray, np.ndarray]:
    """Images within the bounds of the box rule, and labels."""
    rng = np.random.default_rng(1)
    return rng.uniform(*BOUNDS, (batch, *SHAPE)), np.arange(batch) % CLASSES


def input_gradient(model: Model) -> Callable[[Any, jax.Array, jax.Array], Any]:
    """The unit: the logits, and the gradient of one for each image."""

    def both(variables: Any, x: jax.Array, seed: jax.Array) -> Any:
        logits, back = jax.vjp(lambda v: model.apply(variables, v), x)
        return logits, back(seed)[0]

    return both


def parity(
    stages: tuple[int, ...], width: int, variables: Any, names: list[str], peer: Callable[..., Any]
) -> dict[str, float]:
    """Composite -> the worst layer's difference from zennit, in float64.

    Raises:
      RuntimeError: if one is above ``TOLERANCE``.
    """
    x, y = examples(2)
    other = peer("float64")
    errors = {}
    with jax.enable_x64(True):
        model = network(stages, width, jnp.float64)
        exact = jax.tree.map(lambda leaf: jnp.asarray(leaf, jnp.float64), variables)
        for name in names:
            compute = jax.jit(lrp(model.apply, COMPOSITES[name]()))
            mine: Relevance = compute(exact, jnp.asarray(x), starts.label(y))
            first, layers = other.relevance(name, x, np.eye(CLASSES)[y])
            if set(layers) != set(mine.neurons):
                raise RuntimeError(f"expected layers {set(mine.neurons)}, got {set(layers)}")
            errors[name] = max(
                _difference(mine.input, first),
                *(_difference(mine.neurons[key], value) for key, value in layers.items()),
            )
            if not errors[name] < TOLERANCE:
                raise RuntimeError(f"{name}: the libraries differ by {errors[name]:.1e}")
    return errors


def _difference(mine: Any, theirs: np.ndarray) -> float:
    return float(np.abs(np.asarray(mine) - theirs).max() / np.abs(theirs).max())


def our_runs(model: Model, variables: Any, batch: int, names: list[str]) -> dict[str, Run]:
    """Name -> what is timed; compiled by its first call."""
    images, y = examples(batch)
    x = jnp.asarray(images, jnp.float32)
    seed = jax.nn.one_hot(y, CLASSES, dtype=jnp.float32)
    labels = starts.label(y)
    unit = jax.jit(input_gradient(model))
    runs: dict[str, Run] = {"unit": lambda: jax.block_until_ready(unit(variables, x, seed))}
    for name in names:
        compute = jax.jit(lrp(model.apply, COMPOSITES[name]()))
        runs[name] = lambda compute=compute: jax.block_until_ready(compute(variables, x, labels))
    return runs


def seconds(run: Run, clock: Callable[[], float]) -> float:
    start = clock()
    run()
    return clock() - start


def measure(
    model: Model,
    variables: Any,
    batch: int,
    names: list[str],
    rounds: int,
    clock: Callable[[], float],
    peer: Any,
) -> dict[str, Any]:
    """Shortest seconds of every run of both libraries, in turn."""
    runs = our_runs(model, variables, batch, names)
    first = {name: seconds(run, clock) for name, run in runs.items()}
    times: dict[tuple[str, str], list[float]] = {}
    images, y = examples(batch)
    given = None if peer is None else peer.inputs(images, np.eye(CLASSES)[y])

    def note(library: str, name: str, run: Run) -> None:
        times.setdefault((library, name), []).append(seconds(run, clock))

    for _ in range(rounds):
        for name, run in runs.items():
            note("ours", name, run)
            if given is None:
                continue
            if name == "unit":
                note("zennit", name, lambda: peer.gradient(*given))
                continue
            for library, capture in (("captured", True), ("zennit", False)):
                with peer.hooked(name, capture):  # setting the hooks is not timed
                    note(library, name, lambda: peer.gradient(*given))
    best = {key: min(values) for key, values in times.items()}
    return {"best": best, "compile": {name: first[name] - best["ours", name] for name in runs}}


def rows_of(batch: int, found: dict[str, Any], errors: dict[str, float]) -> list[dict[str, Any]]:
    """One row for each composite, and one for the unit."""
    best, rows = found["best"], []
    for name, compiling in found["compile"].items():
        row: dict[str, Any] = {"batch": batch, "composite": name, "compile_s": compiling}
        for library in LIBRARIES:
            unit = best.get(("ours" if library == "ours" else "zennit", "unit"))
            if (library, name) in best:
                row[f"{library}_ms"] = 1e3 * best[library, name]
                row[f"{library}_ratio"] = best[library, name] / unit
        row["error"] = errors.get(name)
        rows.append(row)
    return rows


def set_up(threads: int) -> None:
    """Keeps memory as the commands do and limits threads, for both libraries.

    Before the first computation. ``GLIBC_TUNABLES=glibc.malloc.check=0`` in the environment leaves
    memory as it is.
    """
    keep_memory()
    if not threads:
        return
    if threads == 1:
        one = "--xla_cpu_multi_thread_eigen=false intra_op_parallelism_threads=1"
        os.environ["XLA_FLAGS"] = f"{os.environ.get('XLA_FLAGS', '')} {one}"
    if hasattr(os, "sched_setaffinity"):
        os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[:threads])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--batches", type=int, nargs="+", default=[8])
    parser.add_argument("--stages", type=int, nargs="+", default=[2, 2, 2, 2])
    parser.add_argument("--width", type=int, default=64)
    parser.add_argument("--composites", nargs="+", choices=COMPOSITES, default=list(COMPOSITES))
    parser.add_argument("--rounds", type=int, default=5, help="runs of each, in turn (5)")
    parser.add_argument("--threads", type=int, default=1, help="cores to use, 0 for all (1)")
    parser.add_argument("--alone", action="store_true", help="without zennit")
    parser.add_argument("--json", action="store_true", help="print JSON instead of the table")
    options = parser.parse_args()
    set_up(options.threads)
    stages, names = tuple(options.stages), options.composites
    peers = not options.alone and all(map(importlib.util.find_spec, ("torch", "zennit")))
    model = network(stages, options.width)
    variables = draw(model)
    errors, peer = {}, None
    if peers:
        import torch
        from peers.zennit_resnet import Zennit

        if options.threads:
            torch.set_num_threads(options.threads)
        device = "cuda" if jax.default_backend() == "gpu" else "cpu"
        host = jax.tree.map(np.asarray, variables)
        errors = parity(
            stages, options.width, variables, names, lambda d: Zennit(host, d, device, BOUNDS)
        )
        peer = Zennit(host, "float32", device, BOUNDS)
    alone = options.threads == 1 and jax.default_backend() == "cpu"
    clock = time.process_time if alone else time.perf_counter
    rows = []
    for batch in options.batches:
        found = measure(model, variables, batch, names, options.rounds, clock, peer)
        rows += rows_of(batch, found, errors)
    told = about(
        "jaxlib", "flax", *(("torch", "zennit") if peers else ()),
        threads=options.threads or "all",
        network=f"resnet {'-'.join(map(str, options.stages))}, width {options.width}",
        images="x".join(map(str, SHAPE)), dtype="float32", rounds=options.rounds,
        clock=clock.__name__,
    )  # fmt: skip
    if tell(told, options.json, rows=rows):
        show(rows)


def show(rows: list[dict[str, Any]]) -> None:
    heads = "".join(f"{f'{name} ms':>14} {'ratio':>6}" for name in LIBRARIES)
    print(f"{'batch':>5} {'composite':22}{heads} {'compile s':>10} {'error':>8}")
    for row in rows:
        line = f"{row['batch']:5d} {row['composite']:22}"
        for name in LIBRARIES:
            there = f"{name}_ms" in row
            line += f"{row[f'{name}_ms']:14.1f} {row[f'{name}_ratio']:6.2f}" if there else " " * 21
        error = "" if row["error"] is None else f"{row['error']:8.1e}"
        print(f"{line} {row['compile_s']:10.1f} {error:>8}")


if __name__ == "__main__":
    main()
