"""How long a training step of a residual network takes, ours and torch's side by side.

    python benchmarks/resnet_step.py                  # ResNet-18, batch 32, float32, all cores
    python benchmarks/resnet_step.py --threads 1      # a core each, whatever else runs there
    python benchmarks/resnet_step.py --convolutions   # each convolution by itself, as well
    python benchmarks/resnet_step.py --json

One step is the gradient of the cross-entropy in training mode, and an update by SGD with Nesterov
momentum .9. Three ways:

``ours, chunk``  ``finetune`` as ``unlearn`` runs it: batches drawn inside, chunks of steps in
                 one program.
``ours, step``   the same step as a program of its own, called from a loop in Python.
``torch``        the same network and loss, batches by random indices.

First the loss and every gradient of one batch are compared in float64 (``parity``: largest
difference, relative to the largest entry of the array; the worst array counts); above
``TOLERANCE`` nothing is timed.

``torch``: how many times faster than torch, the median of the ratios within a round, in which all
ways run in turn; ``ms``: the median milliseconds of a step, compilation apart; ``faults``: pages
of memory mapped anew in a step. With one thread the clock is the processor's. Times on a shared
CPU mean little: quote the ratios.

``--convolutions``: for each kind of convolution in the network its arithmetic, and what is reached
of it, in 1e9 operations a second: forward, the gradient of the input, that of the kernel.
"""

import argparse
import importlib.metadata
import importlib.util
import statistics
import time
from collections import Counter
from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.extend
import jax.numpy as jnp
import numpy as np
import optax
from peers.report import about, tell
from relevance import CLASSES, SHAPE, draw, network, seconds, set_up

from jaxunlearn.core.types import Model, Sets, Unlearner
from jaxunlearn.data.examples import as_examples
from jaxunlearn.data.sets import whole
from jaxunlearn.engine import loop
from jaxunlearn.methods.finetune import finetune
from jaxunlearn.models.convolution import Geometry, conv, kernel_gradient
from jaxunlearn.training.descent import trained, with_trained

RATE, MOMENTUM = 0.01, 0.9
EXAMPLES = 512
TOLERANCE = 1e-5

Run = Callable[[], Any]


def data() -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(0)
    x = rng.normal(size=(EXAMPLES, *SHAPE)).astype(np.float32)
    return x, rng.integers(0, CLASSES, EXAMPLES).astype(np.int32)


# --- the two libraries


def our_run(
    method: Unlearner, sets: Sets, variables: Any, options: argparse.Namespace, length: int
) -> Run:
    """``options.steps`` steps from where the last call stopped."""
    job, key = loop.Job(method, options.batch), jax.random.key(0)
    state, done = loop.init(variables, sets, key, None, job=job), 0

    def run() -> None:
        nonlocal state, done
        end = done + options.steps
        while done < end:
            count = min(length, end - done)
            state, infos = loop.advance(
                state, sets, key, np.int32(done), np.int32(count), job=job, length=length
            )
            done += count
        jax.block_until_ready((state, infos))

    return run


class Peer:
    """The network in torch, and the loop that trains it."""

    def __init__(self, variables: Any, dtype: str) -> None:
        import torch
        from peers.torch_resnet import build

        self.torch = torch
        self.device = "cuda" if jax.default_backend() == "gpu" else "cpu"
        self.dtype = getattr(torch, dtype)
        module, self.outputs = build(variables)
        self.module = module.to(device=self.device, dtype=self.dtype).train()
        self.optimizer = torch.optim.SGD(self.module.parameters(), RATE, MOMENTUM, nesterov=True)
        x, y = data()
        self.x = torch.tensor(x.transpose(0, 3, 1, 2).copy(), device=self.device, dtype=self.dtype)
        self.y = torch.tensor(y, device=self.device, dtype=torch.int64)

    def learn(self, chosen: Any) -> Any:
        loss = self.torch.nn.functional.cross_entropy(self.module(self.x[chosen]), self.y[chosen])
        self.optimizer.zero_grad()
        loss.backward()
        self.optimizer.step()
        return loss.detach()

    def run(self, options: argparse.Namespace) -> None:
        for _ in range(options.steps):
            self.learn(self.torch.randint(EXAMPLES, (options.batch,), device=self.device))
        if self.device == "cuda":
            self.torch.cuda.synchronize()


def parity(options: argparse.Namespace, variables: Any) -> float:
    """How far loss and gradients of kernels lie apart in float64.

    Raises:
      RuntimeError: if it is more than ``TOLERANCE``.
    """
    peer = Peer(variables, "float64")
    chosen = np.arange(min(options.batch, 8))
    loss = float(peer.learn(chosen))
    with jax.enable_x64(True):
        model = network(tuple(options.stages), options.width, jnp.float64)
        exact = jax.tree.map(lambda leaf: jnp.asarray(leaf, jnp.float64), variables)
        x, y = (a[chosen] for a in data())

        def objective(params: Any) -> jax.Array:
            own = with_trained(exact, params)
            logits, _ = model.apply_train(own, jnp.asarray(x, jnp.float64), jax.random.key(0))
            # logits are float32
            return optax.softmax_cross_entropy_with_integer_labels(logits, y).mean()

        mine, gradient = jax.jit(jax.value_and_grad(objective))(trained(exact))
    errors = [abs(float(mine) - loss) / abs(loss)]
    # modules in the order of the network, with the kernels of ours
    for path, module in kernels(peer.module).items():
        own: Any = gradient
        for name in path.split("/"):
            own = own[name]
        theirs = module.weight.grad.numpy()
        theirs = theirs.transpose(2, 3, 1, 0) if theirs.ndim == 4 else theirs.T
        errors.append(float(np.abs(own - theirs).max() / np.abs(theirs).max()))
    if not max(errors) < TOLERANCE:
        raise RuntimeError(f"ours and torch differ by {max(errors):.1e}")
    return max(errors)


def kernels(module: Any) -> dict[str, Any]:
    """Key of a kernel of ours -> torch's module."""
    first, *blocks, head = (m for m in module if hasattr(m, "weight") or len(list(m.children())))
    blocks = [block for block in blocks if hasattr(block, "conv1")]
    found, stage, number = {"conv1/kernel": first}, 0, 0
    for block in blocks:
        begins = not stage or block.conv1.stride != (1, 1)
        stage, number = (stage + 1, 1) if begins else (stage, number + 1)
        for name in ("conv1", "conv2", "proj"):
            if getattr(block, name) is not None:
                found[f"stage{stage}_block{number}/{name}/kernel"] = getattr(block, name)
    return {**found, "head/kernel": head.dense}


# --- each convolution


class Shape(NamedTuple):
    """Side and channels of the input, channels of the output, side of the kernel, stride."""

    side: int
    channels: int
    outputs: int
    kernel: int
    stride: int


def shapes_of(model: Model, variables: Any, batch: int) -> Counter[Shape]:
    """Counts the convolutions of the network, by shape."""
    x = jax.ShapeDtypeStruct((batch, *SHAPE), jnp.float32)
    found: Counter[Shape] = Counter()

    def look(jaxpr: Any) -> None:
        for eqn in jaxpr.eqns:
            if eqn.primitive.name == "conv_general_dilated":
                (_, side, _, channels), kernel = (v.aval.shape for v in eqn.invars)
                stride = eqn.params["window_strides"][0]
                found[Shape(side, channels, kernel[3], kernel[0], stride)] += 1
            for inner in jax.extend.core.jaxprs_in_params(eqn.params):
                look(inner)

    look(jax.make_jaxpr(model.apply)(variables, x).jaxpr)
    return found


def convolution_rows(
    counts: Counter[Shape], options: argparse.Namespace, clock: Callable[[], float], peers: bool
) -> list[dict[str, Any]]:
    """A row for every kind of convolution: 1e9 operations, and what is reached a second."""
    return [
        {**shape._asdict(), "times": times, **reached(shape, options, clock, peers)}
        for shape, times in counts.items()
    ]


def reached(
    shape: Shape, options: argparse.Namespace, clock: Callable[[], float], peers: bool
) -> dict[str, float]:
    side, channels, outputs, size, stride = shape
    rng, out = np.random.default_rng(0), -(-side // stride)
    low, odd = divmod(max((out - 1) * stride + size - side, 0), 2)
    pads = ((low, low + odd),) * 2
    x, k, g = (
        rng.normal(size=s).astype(np.float32)
        for s in (
            (options.batch, side, side, channels),
            (size, size, channels, outputs),
            (options.batch, out, out, outputs),
        )
    )
    geometry = Geometry((stride, stride), pads, (1, 1), None)
    forward = partial(conv, window_strides=(stride, stride), padding=pads)
    own: dict[str, tuple[Any, tuple[Any, ...]]] = {
        "forward": (forward, (x, k)),
        "input": (lambda x, k, g: jax.vjp(lambda x: forward(x, k), x)[1](g), (x, k, g)),
        "kernel": (lambda x, g: kernel_gradient(x, g, k.shape, geometry), (x, g)),
    }
    runs: dict[str, Run] = {}
    for name, (function, given) in own.items():
        compiled, placed = jax.jit(function), jax.device_put(given)
        runs[f"ours {name}"] = lambda compiled=compiled, placed=placed: jax.block_until_ready(
            compiled(*placed)
        )
    if peers:
        runs |= torch_convolution(x, k, g, stride, low, odd)
    flops = 2e-9 * np.prod(g.shape) * np.prod(k.shape[:3])
    for run in runs.values():
        run()
    times: dict[str, list[float]] = {name: [] for name in runs}
    for _ in range(options.rounds):
        for name, run in runs.items():
            times[name].append(seconds(run, clock))
    return {"gflop": flops} | {name: flops / min(own) for name, own in times.items()}


def torch_convolution(
    x: np.ndarray, k: np.ndarray, g: np.ndarray, stride: int, low: int, odd: int
) -> dict[str, Run]:
    import torch

    device = "cuda" if jax.default_backend() == "gpu" else "cpu"
    if odd:  # torch pads alike on both sides
        edges = (low, low + 1)
        x, low = np.pad(x, ((0, 0), edges, edges, (0, 0))), 0
    orders = (0, 3, 1, 2), (3, 2, 0, 1), (0, 3, 1, 2)
    x, k, g = (
        torch.tensor(a.transpose(o).copy(), device=device)
        for a, o in zip((x, k, g), orders, strict=True)
    )

    def backward(*mask: bool) -> Any:
        return torch.ops.aten.convolution_backward(
            g, x, k, None, [stride] * 2, [low] * 2, [1, 1], False, [0, 0], 1, mask
        )

    def timed(function: Run) -> Run:
        def run() -> None:
            function()
            if device == "cuda":
                torch.cuda.synchronize()

        return run

    return {
        "torch forward": timed(lambda: torch.conv2d(x, k, stride=stride, padding=low)),
        "torch input": timed(lambda: backward(True, False, False)),
        "torch kernel": timed(lambda: backward(False, True, False)),
    }


# --- the script


def faults() -> int:
    try:
        import resource
    except ImportError:  # not on Windows
        return 0
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt


def measure(
    runs: dict[str, Run], options: argparse.Namespace, clock: Callable[[], float]
) -> list[dict[str, Any]]:
    """A row for every way, all of them measured in turn."""
    first = {name: seconds(run, clock) for name, run in runs.items()}
    times: dict[str, list[float]] = {name: [] for name in runs}
    pages: dict[str, list[int]] = {name: [] for name in runs}
    for _ in range(options.rounds):
        for name, run in runs.items():
            before = faults()
            times[name].append(seconds(run, clock))
            pages[name].append(faults() - before)
    rows = []
    for name, own in times.items():
        other, middle = times.get("torch"), statistics.median(own)
        ratios = other and [b / a for a, b in zip(own, other, strict=True)]
        rows.append(
            {
                "way": name,
                "ms": 1e3 * middle / options.steps,
                "torch": statistics.median(ratios) if ratios else None,
                "faults": round(statistics.median(pages[name]) / options.steps),
                "compile_s": None if name == "torch" else first[name] - middle,
            }
        )
    return rows


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--batch", type=int, default=32)
    parser.add_argument("--stages", type=int, nargs="+", default=[2, 2, 2, 2])
    parser.add_argument("--width", type=int, default=64)
    parser.add_argument("--steps", type=int, default=4, help="steps a run, and of a chunk (4)")
    parser.add_argument("--rounds", type=int, default=5, help="runs of each, in turn (5)")
    parser.add_argument("--threads", type=int, default=0, help="cores to use, 0 for all (0)")
    parser.add_argument("--convolutions", action="store_true", help="each of them, as well")
    parser.add_argument("--no-torch", action="store_true", help="ours alone")
    parser.add_argument("--json", action="store_true", help="print JSON instead of the table")
    return parser.parse_args()


def main() -> None:
    options = arguments()
    set_up(options.threads)
    peers = not options.no_torch and importlib.util.find_spec("torch") is not None
    model = network(tuple(options.stages), options.width)
    variables = draw(model)
    host = jax.tree.map(np.asarray, variables)
    method = finetune(model, optimizer=optax.sgd(RATE, MOMENTUM, nesterov=True))
    sets = Sets(retain=whole(as_examples(*data())))
    runs = {
        "ours, chunk": our_run(method, sets, variables, options, options.steps),
        "ours, step": our_run(method, sets, variables, options, 1),
    }
    told: dict[str, Any] = {}
    if peers:
        import torch

        if options.threads:
            torch.set_num_threads(options.threads)
        told = {"torch": importlib.metadata.version("torch"), "parity": parity(options, host)}
        runs["torch"] = partial(Peer(host, "float32").run, options)
    alone = options.threads == 1 and jax.default_backend() == "cpu"
    clock = time.process_time if alone else time.perf_counter
    rows = measure(runs, options, clock)
    counts = shapes_of(model, variables, options.batch) if options.convolutions else Counter()
    parts = convolution_rows(counts, options, clock, peers)
    told = about("jaxlib", "flax", options=options, clock=clock.__name__, **told)
    if tell(told, options.json, rows=rows, convolutions=parts):
        show(rows, parts)


def show(rows: list[dict[str, Any]], parts: list[dict[str, Any]]) -> None:
    print(f"{'way':12} {'ms':>9} {'torch':>6} {'faults':>8} {'compile s':>9}")
    for row in rows:
        ratio = "" if row["torch"] is None else f"{row['torch']:.2f}"
        compiling = "" if row["compile_s"] is None else f"{row['compile_s']:.1f}"
        print(f"{row['way']:12} {row['ms']:9.1f} {ratio:>6} {row['faults']:8d} {compiling:>9}")
    if parts:
        names = [name for name in parts[0] if name.startswith(("ours ", "torch "))]
        heads = "".join(f"{name:>15}" for name in names)
        print(f"\n{'convolution':24} {'times':>5} {'GFLOP':>6}{heads}   GFLOP/s")
        for part in parts:
            size = "{kernel}x{kernel} / {stride}, {channels} -> {outputs}, {side}".format(**part)
            cells = "".join(f"{part[name]:15.0f}" for name in names)
            print(f"{size:24} {part['times']:5d} {part['gflop']:6.2f}{cells}")


if __name__ == "__main__":
    main()
