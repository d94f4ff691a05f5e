"""What the library's convolution saves against XLA's own gradients.

    python benchmarks/conv_gradient.py             # about 6 minutes on 2 cores
    python benchmarks/conv_gradient.py --small     # about a minute
    python benchmarks/conv_gradient.py --json      # machine-readable

One training step (gradient and Adam) of the paper's MNIST network and of a small
ResNet, once as a compiled step called from Python, once inside ``lax.scan``; with
``jaxunlearn.models.conv`` and ``max_pool``, and with the plain operations. Both are
timed in turn; medians of milliseconds a step; compilation apart. ``error`` is the
largest difference of the two gradients, relative to the largest entry.

Measured on 2 cores with jax 0.10.2, milliseconds a step at batch 128: the paper's
network 390 (plain 520) from Python and 310 (plain above 10,000) in a scan; resnet8
450 (plain 380) and 330 (plain about 10,000).
"""

import argparse
import statistics
import time
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import nnx
from jax import lax
from peers.report import about, tell

from jaxunlearn.core.types import Model
from jaxunlearn.models import PaperCNN, ResNet, functionalize

Carry = Any

# runs of more seconds are not repeated
SLOW = 10.0


class PlainCNN(PaperCNN):
    """The same network with XLA's max-pooling."""

    def __call__(self, x: jax.Array) -> jax.Array:
        x = nnx.relu(self.conv2(nnx.relu(self.conv1(x))))
        x = nnx.max_pool(x, (2, 2), (2, 2))
        return self.head(nnx.relu(self.fc1(x.reshape(x.shape[0], -1))))


def plain(module: nnx.Module) -> nnx.Module:
    """The same network with XLA's convolution."""
    for _, part in nnx.iter_modules(module):
        if isinstance(part, nnx.Conv):
            part.conv_general_dilated = lax.conv_general_dilated
    return module


def networks(small: bool) -> dict[str, tuple[tuple[int, ...], Model, Model]]:
    """Name -> (shape of an image, ours, plain)."""
    cnn, resnet = ((28, 28, 1), 10), ((32, 32, 3), 10)
    sizes: dict[str, Any] = {"channels": (8, 16), "features": 64} if small else {}
    narrow: dict[str, Any] = {"stages": (1, 1, 1), "width": 8 if small else 16}
    return {
        "cnn": (
            cnn[0],
            functionalize(lambda rngs: PaperCNN(*cnn, **sizes, rngs=rngs)),
            functionalize(lambda rngs: plain(PlainCNN(*cnn, **sizes, rngs=rngs))),
        ),
        "resnet8": (
            resnet[0],
            functionalize(lambda rngs: ResNet(*resnet, **narrow, rngs=rngs)),
            functionalize(lambda rngs: plain(ResNet(*resnet, **narrow, rngs=rngs))),
        ),
    }


def loss_gradient(model: Model, variables: Any, x: jax.Array, y: jax.Array) -> tuple[Any, Any]:
    """The cross-entropy's gradient, and the variables with new batch statistics."""

    def loss(params: Any) -> tuple[jax.Array, Any]:
        logits, new = model.apply_train({**variables, "params": params}, x, jax.random.key(0))
        return optax.softmax_cross_entropy_with_integer_labels(logits, y).mean(), new

    return jax.grad(loss, has_aux=True)(variables["params"])


def training_step(model: Model, x: jax.Array, y: jax.Array) -> Callable[[Carry], Carry]:
    optimizer = optax.adam(1e-3)

    def step(carry: Carry) -> Carry:
        variables, state = carry
        gradient, new = loss_gradient(model, variables, x, y)
        updates, state = optimizer.update(gradient, state)
        return {**new, "params": optax.apply_updates(variables["params"], updates)}, state

    return step


def in_loop(step: Callable[[Carry], Carry], steps: int) -> Callable[[Carry], Carry]:
    compiled = jax.jit(step, donate_argnums=0)

    def run(carry: Carry) -> Carry:
        for _ in range(steps):
            carry = compiled(carry)
        return carry

    return run


def in_scan(step: Callable[[Carry], Carry], steps: int) -> Callable[[Carry], Carry]:
    def run(carry: Carry) -> Carry:
        return lax.scan(lambda c, _: (step(c), None), carry, None, length=steps)[0]

    return jax.jit(run, donate_argnums=0)


def seconds(run: Callable[[Carry], Carry], carry: Carry) -> float:
    copy = jax.block_until_ready(jax.tree.map(jnp.copy, carry))  # the step donates it
    start = time.perf_counter()
    jax.block_until_ready(run(copy))
    return time.perf_counter() - start


def measure(
    shape: tuple[int, ...], models: dict[str, Model], batch: int, steps: int, repeats: int
) -> list[dict[str, Any]]:
    """One row for the Python loop, one for the scan."""
    random = np.random.default_rng(0)
    x = jnp.asarray(random.random((batch, *shape), np.float32))
    y = jnp.asarray(random.integers(0, 10, batch), jnp.int32)
    variables = jax.jit(models["ours"].init)(jax.random.key(0))
    carry = (variables, optax.adam(1e-3).init(variables["params"]))
    gradients = {
        name: jax.jit(lambda v, model=model: loss_gradient(model, v, x, y)[0])(variables)
        for name, model in models.items()
    }
    largest = max(float(jnp.abs(leaf).max()) for leaf in jax.tree.leaves(gradients["plain"]))
    differences = jax.tree.map(lambda a, b: jnp.abs(a - b).max(), *gradients.values())
    error = max(map(float, jax.tree.leaves(differences))) / largest
    rows = []
    for place, make in (("loop", in_loop), ("scan", in_scan)):
        runs = {name: make(training_step(m, x, y), steps) for name, m in models.items()}
        first = {name: seconds(run, carry) for name, run in runs.items()}
        times: dict[str, list[float]] = {name: [] for name in models}
        for _ in range(repeats):
            for name, run in runs.items():
                if not times[name] or times[name][-1] < SLOW:
                    times[name].append(seconds(run, carry))
        middle = {name: statistics.median(values) for name, values in times.items()}
        rows.append(
            {
                "place": place,
                "ours_ms": 1e3 * middle["ours"] / steps,
                "plain_ms": 1e3 * middle["plain"] / steps,
                "ratio": middle["plain"] / middle["ours"],
                "ours_compile_s": first["ours"] - middle["ours"],
                "plain_compile_s": first["plain"] - middle["plain"],
                "error": error,
            }
        )
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--small", action="store_true", help="narrow networks, batches of 32")
    parser.add_argument("--batch", type=int, help="images a step (128; 32 with --small)")
    parser.add_argument("--steps", type=int, default=4, help="steps a run (4)")
    parser.add_argument("--repeats", type=int, default=3, help="runs of each, in turn (3)")
    parser.add_argument("--json", action="store_true", help="print JSON instead of the table")
    options = parser.parse_args()
    batch = options.batch or (32 if options.small else 128)
    rows = []
    for name, (shape, ours, other) in networks(options.small).items():
        models = {"ours": ours, "plain": other}
        for row in measure(shape, models, batch, options.steps, options.repeats):
            rows.append({"network": name, "batch": batch, **row})
    told = about(options=options, without=("batch",))
    if not tell(told, options.json, rows=rows):
        return
    print(
        f"{'network':8} {'batch':>5} {'in':>5} {'ours ms':>9} {'plain ms':>9} {'ratio':>6} "
        f"{'compile s: ours':>16} {'plain':>6} {'error':>8}"
    )
    for row in rows:
        print(
            f"{row['network']:8} {row['batch']:5d} {row['place']:>5} {row['ours_ms']:9.1f} "
            f"{row['plain_ms']:9.1f} {row['ratio']:6.1f} {row['ours_compile_s']:16.1f} "
            f"{row['plain_compile_s']:6.1f} {row['error']:8.1e}"
        )


if __name__ == "__main__":
    main()
