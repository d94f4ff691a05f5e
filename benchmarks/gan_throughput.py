"""How many images a second one training step of a GAN learns, ours and torch's side by side.

    python benchmarks/gan_throughput.py                     # 28x28, width 64, batch 64, all cores
    python benchmarks/gan_throughput.py --threads 1         # a core each, whatever else runs there
    python benchmarks/gan_throughput.py --dtype bfloat16 --batch 256 --width 128 --compile  # a GPU
    python benchmarks/gan_throughput.py --json

One step is one update of the discriminator, on a batch of real and one of generated images,
and one of the generator, both by Adam with rate 2e-4 and ``b1 = .5``; no R1. Four ways:

``ours, chunk``  ``gan_retrain`` as ``unlearn`` runs it: images as uint8 on the device, batches
                 drawn inside, chunks of steps in one program, the state donated, the
                 diagnostics of each chunk read.
``ours, step``   the same step as a program of its own, called from a loop in Python.
``torch, same``  the same networks and the same work: no gradient of the discriminator's
                 parameters where the generator learns.
``torch, plain`` DCGAN as it is usually written: 4x4 transposed convolutions of stride 2, the
                 same channels at the same resolutions, and that gradient computed as well.

``--compile`` adds the last two through ``torch.compile``. The ways of torch take their batches by
random indices from float32 images on the device and keep no moving average of the generator,
which ours does.

First, a step of ours and one of ``torch, same`` from the same parameters, images and latent
vectors are compared in float64 (in float32 some unit lies close enough to zero to be cut off
on one side alone): the losses and every gradient that Adam saw, the generator's being that of the
updated discriminator (``parity``: largest difference, relative to the largest entry of the array;
the worst array counts). Our images and logits are float32 all the same. Above
``TOLERANCE`` nothing is timed.

``same`` and ``plain``: how many times faster than that way, the median of the ratios within a
round, in which all ways run in turn; ``ms``: the median milliseconds of a step, compilation
apart. With one thread the clock is the processor's. Times on a shared CPU mean little: quote the
ratios. On a GPU float32 means TF32 in the products, for all ways.

Measured on one core (``--threads 1 --steps 4``), jax 0.10.2, torch 2.14.1, ours against same and
plain: .94 and .76 in chunks of 4, .76 and .60 as a program of its own, which maps its temporary
memory anew at each call (``docs/speed.md``).
"""

import argparse
import importlib.metadata
import importlib.util
import itertools
import statistics
import time
from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from peers.report import about, tell
from relevance import seconds, set_up

from jaxunlearn.core.types import Gan, Sets, Unlearner
from jaxunlearn.data.batches import draw_batches
from jaxunlearn.data.examples import as_examples
from jaxunlearn.data.sets import whole
from jaxunlearn.engine import loop
from jaxunlearn.engine.driver import CHUNK, loops_badly
from jaxunlearn.methods.gan_retrain import gan_retrain
from jaxunlearn.models import build_gan

RATE, BETAS, SLOPE = 2e-4, (0.5, 0.999), 0.2
EXAMPLES = 4096
TOLERANCE = 1e-3
KINDS = ("same", "plain")
NETWORKS = ("generator", "discriminator")

Run = Callable[[], Any]
Arrays = dict[str, dict[str, np.ndarray]]
"""Network -> name of an array -> the array."""


# --- ours


def our_gan(options: argparse.Namespace, dtype: str) -> Gan:
    own = {"latent": options.latent, "width": options.width, "norm": "generator", "dtype": dtype}
    return build_gan("dcgan", (options.size, options.size, options.channels), options=own)


def learning(gan: Gan) -> Unlearner:
    return gan_retrain(gan, optimizer=optax.adam(RATE, *BETAS))


def images(options: argparse.Namespace) -> np.ndarray:
    shape = (EXAMPLES, options.size, options.size, options.channels)
    return np.random.default_rng(0).integers(0, 256, shape, np.uint8)


def all_of(x: np.ndarray) -> Sets:
    return Sets(retain=whole(as_examples(x, np.zeros(len(x), np.int32), mean=127.5, std=127.5)))


def chunk_length(job: loop.Job, sets: Sets) -> int:
    """Steps in a program, as ``unlearn`` decides it."""
    return 1 if loops_badly(job, None, sets, jax.random.key(0), None) else CHUNK


def our_run(job: loop.Job, sets: Sets, steps: int, length: int, read: bool) -> Run:
    """``steps`` steps from where the last call stopped."""
    key = jax.random.key(0)
    state, done = loop.init(None, sets, key, None, job=job), 0

    def run() -> None:
        nonlocal state, done
        end = done + steps
        while done < end:
            count = min(length, end - done)
            state, infos = loop.advance(
                state, sets, key, np.int32(done), np.int32(count), job=job, length=length
            )
            if read:
                jax.device_get(infos)
            done += count
        jax.block_until_ready(state)

    return run


# --- torch


def sizes_of(variables: Any) -> list[int]:
    """Channels of the generator's maps, from the smallest to the largest map."""
    params = variables["generator"]["params"]["synthesis"]
    norms = sorted(name for name in params if name.startswith("norm"))
    return [len(params[name]["scale"]) for name in norms]


def torch_generator(plain: bool, sizes: list[int], options: argparse.Namespace) -> Any:
    from torch import nn

    side, latent = options.size >> (len(sizes) - 1), options.latent
    if plain:
        first = [
            nn.Unflatten(1, (latent, 1, 1)),
            nn.ConvTranspose2d(latent, sizes[0], side, bias=False),
        ]
    else:
        first = [nn.Linear(latent, sizes[0] * side**2), nn.Unflatten(1, (sizes[0], side, side))]
    layers = [*first, nn.BatchNorm2d(sizes[0]), nn.ReLU(True)]
    for wide, narrow in itertools.pairwise(sizes):
        if plain:
            layers.append(nn.ConvTranspose2d(wide, narrow, 4, 2, 1, bias=False))
        else:
            layers += [nn.Conv2d(wide, 4 * narrow, 3, padding=1), nn.PixelShuffle(2)]
        layers += [nn.BatchNorm2d(narrow), nn.ReLU(True)]
    return nn.Sequential(*layers, nn.Conv2d(sizes[-1], options.channels, 3, padding=1), nn.Tanh())


def torch_discriminator(downs: int, options: argparse.Namespace) -> Any:
    from torch import nn

    layers: list[Any] = []
    wide = options.channels
    for level in range(downs):
        narrow, wide = wide, options.width << level
        layers += [nn.Conv2d(narrow, wide, 4, 2, 1), nn.LeakyReLU(SLOPE, True)]
    head = nn.Linear(wide * (options.size >> downs) ** 2, 1)
    return nn.Sequential(*layers, nn.Flatten(), head, nn.Flatten(0))


class Peer:
    """Two networks in torch, and the loop that trains them.

    Args:
      kind: one of ``KINDS``.
      x: ``uint8 [N, H, W, C]``.
      sizes: channels of the generator's maps.
      dtype: ``"float32"``, ``"float64"``, or ``"bfloat16"`` by autocast.
      compiled: whether the networks go through ``torch.compile``.
    """

    def __init__(
        self,
        kind: str,
        x: np.ndarray,
        sizes: list[int],
        options: argparse.Namespace,
        dtype: str,
        compiled: bool = False,
    ) -> None:
        import torch

        self.torch, self.options, self.frugal = torch, options, kind == "same"
        self.device = "cuda" if jax.default_backend() == "gpu" else "cpu"
        self.half = dtype == "bfloat16"
        own = {
            "device": self.device,
            "dtype": torch.float64 if dtype == "float64" else torch.float32,
        }
        self.x = self.tensor(x.transpose(0, 3, 1, 2) / np.float32(127.5) - 1)
        self.generator = torch_generator(kind == "plain", sizes, options).to(**own)
        self.discriminator = torch_discriminator(len(sizes) - 1, options).to(**own)
        self.optimizers = {
            name: torch.optim.Adam(getattr(self, name).parameters(), RATE, BETAS)
            for name in NETWORKS
        }
        self.real = torch.ones(options.batch, **own)
        self.fake = torch.zeros(options.batch, **own)
        wrap = torch.compile if compiled else lambda network: network
        self.draw, self.judge = wrap(self.generator), wrap(self.discriminator)

    def tensor(self, values: np.ndarray) -> Any:
        return self.torch.tensor(np.ascontiguousarray(values), device=self.device)

    def autocast(self) -> Any:
        return self.torch.autocast(self.device, self.torch.bfloat16, enabled=self.half)

    def learn(self, x: Any, z: Any) -> tuple[Any, Any]:
        """One step of both networks; gives the generator's and the discriminator's loss."""
        cross_entropy = self.torch.nn.functional.binary_cross_entropy_with_logits
        generator, discriminator = self.optimizers.values()
        with self.autocast():
            made = self.draw(z)
            loss = cross_entropy(self.judge(x), self.real)
            loss = loss + cross_entropy(self.judge(made.detach()), self.fake)
        discriminator.zero_grad()
        loss.backward()
        discriminator.step()
        if self.frugal:
            self.discriminator.requires_grad_(False)
        with self.autocast():
            pull = cross_entropy(self.judge(made), self.real)
        generator.zero_grad()
        pull.backward()
        generator.step()
        if self.frugal:
            self.discriminator.requires_grad_(True)
        return pull.detach(), loss.detach()

    def run(self) -> None:
        torch, batch = self.torch, self.options.batch
        for _ in range(self.options.steps):
            chosen = torch.randint(len(self.x), (batch,), device=self.device)
            self.learn(self.x[chosen], torch.randn(batch, self.options.latent, device=self.device))
        if self.device == "cuda":
            torch.cuda.synchronize()

    def load(self, networks: Arrays) -> None:
        """Takes the parameters, as ``channels_first`` gives them."""
        for name, arrays in networks.items():
            parameters = getattr(self, name).parameters()
            for parameter, array in zip(parameters, arrays.values(), strict=True):
                parameter.data = self.tensor(array)

    def first_gradients(self) -> dict[str, list[np.ndarray]]:
        """What Adam saw in the first step: its first moment began at zero."""
        return {
            name: [
                optimizer.state[parameter]["exp_avg"].cpu().numpy() / (1 - BETAS[0])
                for parameter in getattr(self, name).parameters()
            ]
            for name, optimizer in self.optimizers.items()
        }


# --- parity


def channels_first(networks: dict[str, Any], side: int) -> Arrays:
    """Parameters as torch has them, in torch's order.

    Args:
      networks: ``{"generator": {layer: {name: array}}, "discriminator": ...}``.
      side: of the maps behind the first dense layer, and before the last.
    """

    def place(layer: str) -> tuple[int, bool]:
        """By level, normalisation last; what has no number stands at one of the ends."""
        kind = layer.rstrip("0123456789")
        ends = {"dense": 0, "image": 99, "head": 99}
        return ends.get(kind) or int(layer.removeprefix(kind) or 0), kind == "norm"

    return {
        network: {
            f"{layer} {name}": _moved(layer, np.asarray(params[layer][name]), side)
            for layer in sorted(params, key=place)
            for name in ("kernel", "scale", "bias")
            if name in params[layer]
        }
        for network, params in networks.items()
    }


def _moved(layer: str, array: np.ndarray, side: int) -> np.ndarray:
    if layer == "dense":  # its outputs are (row, column, channel)
        pixels = array.reshape(-1, side, side, array.shape[-1] // side**2)
        return pixels.transpose(3, 1, 2, 0).reshape(array.shape[::-1])
    if layer == "head" and array.ndim == 2:  # so are its inputs
        return array.reshape(side, side, -1).transpose(2, 0, 1).reshape(1, -1)
    if layer.startswith("up"):  # four channels in the order (row, column, channel), here too
        array = array.reshape(*array.shape[:-1], 4, -1).swapaxes(-1, -2).reshape(array.shape)
    return array.transpose(3, 2, 0, 1) if array.ndim == 4 else array


class Step(NamedTuple):
    """A step of ours: what went in, and losses and gradients."""

    variables: Any
    x: np.ndarray
    z: np.ndarray
    losses: list[float]
    gradients: dict[str, Any]


def our_step(x: np.ndarray, options: argparse.Namespace) -> Step:
    """The first step of ``gan_retrain``, in float64."""

    def wide(leaf: jax.Array) -> jax.Array:
        return leaf.astype(jnp.float64) if jnp.issubdtype(leaf.dtype, jnp.floating) else leaf

    with jax.enable_x64(True):
        gan = our_gan(options, "float64")
        method, sets = learning(gan), all_of(x)
        start = jax.jit(partial(method.init, None))(sets, jax.random.key(1))
        start = jax.tree.map(wide, start)
        zero = jnp.zeros((), jnp.int32)
        batches = draw_batches(sets, jax.random.key(2), zero, options.batch, method.needs)
        own = jax.random.key(3)
        after, info = jax.jit(method.step)(start, batches, own, zero)
        # the latent vectors are drawn inside the step
        z = jax.random.normal(jax.random.split(own, 4)[0], (options.batch, gan.latent))
    assert batches.retain is not None
    moments = {name: getattr(after.players, f"{name}_opt")[0].mu for name in NETWORKS}
    return Step(
        method.result(start),
        np.asarray(batches.retain.x, np.float64),
        np.asarray(z),
        [float(info.metrics[f"loss_{name}"]) for name in NETWORKS],
        jax.tree.map(lambda moment: np.asarray(moment) / (1 - BETAS[0]), moments),
    )


def parity(x: np.ndarray, options: argparse.Namespace) -> dict[str, float]:
    """How far a step of ours and one of ``torch, same`` lie apart.

    Raises:
      RuntimeError: if it is more than ``TOLERANCE``.
    """
    step = our_step(x, options)
    sizes = sizes_of(step.variables)
    side = options.size >> (len(sizes) - 1)

    def moved(networks: dict[str, Any]) -> Arrays:
        generator = networks["generator"]["synthesis"]
        return channels_first({**networks, "generator": generator}, side)

    peer = Peer("same", x, sizes, options, "float64")
    peer.load(moved({name: step.variables[name]["params"] for name in NETWORKS}))
    losses = peer.learn(peer.tensor(np.moveaxis(step.x, -1, 1)), peer.tensor(step.z))
    errors = {"losses": max(map(_difference, step.losses, map(float, losses)))}
    mine = moved(step.gradients)
    for name, theirs in peer.first_gradients().items():
        pairs = zip(mine[name].items(), theirs, strict=True)
        errors[name] = max(_difference(own, other) for (key, own), other in pairs if not idle(key))
    worst = max(errors, key=errors.__getitem__)
    if not errors[worst] < TOLERANCE:
        raise RuntimeError(f"{worst}: ours and torch differ by {errors[worst]:.1e}")
    return errors


def idle(name: str) -> bool:
    """Whether batch normalisation takes the parameter away: its gradient is rounding."""
    return name.endswith("bias") and name.startswith(("dense", "up"))


def _difference(mine: Any, theirs: Any) -> float:
    return float(np.max(np.abs(mine - theirs)) / np.max(np.abs(theirs)))


# --- the script


def runs_of(x: np.ndarray, options: argparse.Namespace, peers: bool) -> dict[str, Run]:
    """Name -> what is timed."""
    gan, sets = our_gan(options, options.dtype), all_of(x)
    job = loop.Job(learning(gan), options.batch)
    length = chunk_length(job, sets)
    runs = {
        "ours, chunk": our_run(job, sets, options.steps, length, True),
        "ours, step": our_run(job, sets, options.steps, 1, False),
    }
    sizes = sizes_of(jax.eval_shape(gan.init, jax.random.key(0)))
    for compiled in (False, True) if peers and options.compile else (False,) if peers else ():
        for kind in KINDS:
            peer = Peer(kind, x, sizes, options, options.dtype, compiled)
            runs[f"torch, {kind}{' compiled' if compiled else ''}"] = peer.run
    return runs


def measure(
    runs: dict[str, Run], options: argparse.Namespace, clock: Callable[[], float]
) -> list[dict[str, Any]]:
    """A row for every way, all of them measured in turn."""
    first = {name: seconds(run, clock) for name, run in runs.items()}
    times: dict[str, list[float]] = {name: [] for name in runs}
    for _ in range(options.rounds):
        for name, run in runs.items():
            times[name].append(seconds(run, clock))
    rows = []
    for name, own in times.items():
        middle = statistics.median(own)
        rate = options.batch * options.steps / middle
        row = {"way": name, "images_s": rate, "ms": 1e3 * middle / options.steps}
        for kind in KINDS:
            other = times.get(f"torch, {kind}")
            ratios = other and [b / a for a, b in zip(own, other, strict=True)]
            row[kind] = statistics.median(ratios) if ratios else None
        compiles = not name.startswith("torch") or name.endswith("compiled")
        rows.append(row | {"compile_s": first[name] - middle if compiles else None})
    return rows


def settings_of(
    options: argparse.Namespace, errors: dict[str, float] | None, clock: Any
) -> dict[str, Any]:
    shape = f"{options.size}x{options.size}x{options.channels}"
    told = about(
        "jaxlib", "flax", "optax",
        threads=options.threads or "all",
        torch="left out" if options.no_torch else "not installed",
        network=f"dcgan, width {options.width}, latent {options.latent}, images {shape}",
        dtype=options.dtype, batch=options.batch, steps=options.steps, rounds=options.rounds,
        clock=clock.__name__,
    )  # fmt: skip
    if errors is not None:
        told |= {"torch": importlib.metadata.version("torch"), "parity": errors}
    return told


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--batch", type=int, default=64)
    parser.add_argument("--width", type=int, default=64)
    parser.add_argument("--size", type=int, default=28, help="pixels a side (28), 32 say")
    parser.add_argument("--channels", type=int, default=1)
    parser.add_argument("--latent", type=int, default=64)
    parser.add_argument("--dtype", choices=("float32", "bfloat16"), default="float32")
    parser.add_argument("--steps", type=int, default=CHUNK, help=f"steps a run ({CHUNK})")
    parser.add_argument("--rounds", type=int, default=5, help="runs of each, in turn (5)")
    parser.add_argument("--threads", type=int, default=0, help="cores to use, 0 for all (0)")
    parser.add_argument("--compile", action="store_true", help="torch.compile as well")
    parser.add_argument("--no-torch", action="store_true", help="ours alone")
    parser.add_argument("--json", action="store_true", help="print JSON instead of the table")
    return parser.parse_args()


def main() -> None:
    options = arguments()
    set_up(options.threads)
    peers = not options.no_torch and importlib.util.find_spec("torch") is not None
    x, errors = images(options), None
    if peers:
        import torch

        if options.threads:
            torch.set_num_threads(options.threads)
        if jax.default_backend() == "gpu":
            torch.backends.cudnn.benchmark = True
            torch.set_float32_matmul_precision("high")  # TF32, as XLA, and torch in convolutions
        errors = parity(x, options)
    alone = options.threads == 1 and jax.default_backend() == "cpu"
    clock = time.process_time if alone else time.perf_counter
    rows = measure(runs_of(x, options, peers), options, clock)
    told = settings_of(options, errors, clock)
    if not options.json:
        for name, error in (told.pop("parity", None) or {}).items():
            told[f"parity of {name}"] = f"{error:.1e}"
    if tell(told, options.json, rows=rows):
        show(rows)


def show(rows: list[dict[str, Any]]) -> None:
    def cell(value: float | None, form: str) -> str:
        width = int(form.split(".")[0])
        return " " * width if value is None else f"{value:{form}}"

    print(f"{'way':22} {'images/s':>9} {'ms':>9} {'same':>6} {'plain':>6} {'compile s':>9}")
    for row in rows:
        print(
            f"{row['way']:22} {row['images_s']:9.0f} {row['ms']:9.2f} {cell(row['same'], '6.2f')} "
            f"{cell(row['plain'], '6.2f')} {cell(row['compile_s'], '9.1f')}"
        )


if __name__ == "__main__":
    main()
