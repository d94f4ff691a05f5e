r"""What devices send to each other in a training step: read in compiled programs, and by formula.

    python benchmarks/communication.py              # eight virtual devices, small networks
    python benchmarks/communication.py --paper      # formulas for large ones, nothing is compiled
    python benchmarks/communication.py --weak       # the same work on each of 1, 2, 4, 8 devices

The first compiles a step of a residual network (``finetune``), of StyleGAN2 (``gan_finetune``) and
of a decoder (``lm_finetune``, all parameters) for each mesh, and reads in its text what is gathered
and summed. ``gathered`` and ``summed``: bytes of the arrays that are put together, and that
are summed, over one axis (``data`` for parameters and gradients, ``model`` for activations; scalars
count). ``sent``: bytes that a device sends in rings, over each axis; ``once`` and ``twice``:
the same over ``data`` by :func:`sent_by_formula`, for parameters and gradients alone, where
divided parameters are gathered so often each time that a step reads them: for the way there, or
for the way back anew. A step of StyleGAN2 reads its discriminator three times (real images,
generated ones, the generator's lesson) and sums two gradients of it, one for real and one for
generated images; a kernel that doubles the side is exchanged as the four it stands for
(:func:`read_by`). XLA on CPUs sums a gradient whole where accelerators leave each device its part,
half the bytes: the formula counts as CPUs do.

``--paper``: bytes a device sends for a step of ResNet-50, StyleGAN2 (1024 x 1024) and Llama 2 7B,
with each device's batch fixed, and the milliseconds for them and for the arithmetic at the rates
given. Gradients count as left in parts there, where parameters lie in parts.

``--weak``: the batch of each device stays, and devices become more. On a machine whose cores the
virtual devices share a step takes at least work x devices / cores, so what counts is processor
time: ``efficiency`` is that of one device, times the number of devices, over that of the step: 1
where dividing costs nothing in arithmetic, copies and waiting. Links between devices are not seen:
``sent`` is what each device sends in a step, read in the compiled program. Medians of rounds in
which all numbers of devices take steps in turn.
"""

import argparse
import math
import os
import re
import statistics
import time
from collections import Counter
from typing import Any, NamedTuple

os.environ.setdefault("XLA_FLAGS", "--xla_force_host_platform_device_count=8")
os.environ.setdefault("NPROC", "32")

import jax
import jax.numpy as jnp
import numpy as np
import optax
from peers.report import about, tell

import jaxunlearn as ju
from jaxunlearn.core.trees import named_leaves
from jaxunlearn.core.types import Sets, Unlearner
from jaxunlearn.engine.communication import read_collectives
from jaxunlearn.engine.driver import visible_sets
from jaxunlearn.engine.loop import Job, advance, init
from jaxunlearn.engine.sharding import (
    PRESETS,
    Sharding,
    abstract,
    make_sharding,
    place,
    replicate,
    spec_of,
)
from jaxunlearn.jaxprs.liveness import bytes_of
from jaxunlearn.language import DecoderShape, build_decoder

MESHES = tuple(name for name in PRESETS if name != "single")
OPTIMIZER = optax.adam(1e-4)


class Case(NamedTuple):
    """A method, the shapes of what it starts from, its sets."""

    method: Unlearner
    like: Any
    sets: Sets


def images(side: int, low: float) -> Sets:
    """Returns sets of random images, from ``low`` to 1."""
    x = np.random.default_rng(0).uniform(low, 1, (128, side, side, 3)).astype(np.float32)
    y = np.arange(128, dtype=np.int32) % 4
    part = (x, y)
    return ju.make_sets(*part, ju.forget_class(1), unseen=part, test=part, num_classes=4)


def texts(vocabulary: int, length: int) -> Sets:
    """Returns sets of random texts."""
    rng = np.random.default_rng(0)
    true = np.ones((128, length), bool)
    tokens = rng.integers(0, vocabulary, true.shape).astype(np.int32)
    x = {"tokens": tokens, "mask": true, "answer": true}
    part = (x, np.arange(128, dtype=np.int32) % 4)
    return ju.make_sets(*part, ju.forget_class(1), unseen=part, test=part, num_classes=4)


def build(name: str, width: int) -> Case:
    """Returns a small case."""
    if name == "resnet":
        options = {"width": width, "stages": (1, 1)}
        model = ju.models.build("resnet8", (16, 16, 3), 8, options)
        made = ju.finetune(model, optimizer=OPTIMIZER)
        return Case(made, jax.eval_shape(model.init, jax.random.key(0)), images(16, 0.0))
    if name == "stylegan2":
        options = {"latent": width, "style": width, "layers": 2, "width": width}
        gan = ju.models.build_gan("stylegan2", (16, 16, 3), 4, options)
        made = ju.gan_finetune(gan, optimizer=OPTIMIZER)
        return Case(made, jax.eval_shape(gan.init, jax.random.key(0)), images(16, -1.0))
    shape = DecoderShape(
        "llama", vocabulary=8 * width, context=32, depth=2, width=width, heads=8, kv_heads=8,
        head_dim=max(2, width // 8), hidden=3 * width,
    )  # fmt: skip
    language = build_decoder(shape)
    made = ju.lm_finetune(language, optimizer=OPTIMIZER)
    like = jax.eval_shape(language.init, jax.random.key(0))
    return Case(made, like, texts(shape.vocabulary, 32))


def compiled(case: Case, sharding: Sharding, batch: int) -> Any:
    """Compiles a step; nothing is computed."""
    method = case.method
    sets, key = visible_sets(method.needs, case.sets), jax.random.key(0)
    job = Job(method, batch, sharding)
    state = jax.eval_shape(lambda v: init(v, sets, key, None, job=job), case.like)
    whole = Sharding(sharding.mesh, ())
    number = jnp.int32(0)
    given = abstract((sets, key, number, number), whole)
    return advance.lower(abstract(state, sharding), *given, job=job, length=1).compile()


def divisors(path: str, leaf: Any, sharding: Sharding) -> tuple[int, int]:
    """Returns by how much the axis of batches, and the other, divide a parameter."""
    axes = [axis for axis in spec_of(path, leaf.shape, sharding) if axis is not None]
    first, *rest = sharding.mesh.axis_names
    size = sharding.mesh.shape
    return size[first] if first in axes else 1, math.prod(size[a] for a in rest if a in axes)


class Reads(NamedTuple):
    """Parameters of a network, as a step exchanges them.

    Attributes:
      parameters: shapes by path.
      reads: how often a step goes through the network.
      gradients: how many of them are summed apart.
    """

    parameters: dict[str, Any]
    reads: int = 1
    gradients: int = 1


UP = re.compile(r"synthesis/up\d+/kernel$")
"""Kernels of StyleGAN2 that double the side: 3 x 3 to four channels for one."""


def read_by(like: Any) -> list[Reads]:
    """Returns how often a step reads the networks of a model, those of a GAN apart."""
    leaves = {
        path: jax.ShapeDtypeStruct((*v.shape[:-1], 4 * v.shape[-1]), v.dtype)
        if UP.search(path) else v
        for path, v in trained(like).items()
    }  # fmt: skip
    of = {
        name: {path: v for path, v in leaves.items() if path.startswith(name)}
        for name in ("generator", "discriminator")
    }
    if not all(of.values()):
        return [Reads(leaves)]
    return [Reads(of["generator"]), Reads(of["discriminator"], 3, 2)]


def sent_by_formula(
    networks: list[Reads], sharding: Sharding, gathers: int = 1, *, in_parts: bool = False
) -> float:
    """Returns the bytes that a device sends for parameters of ``b`` bytes and their gradients.

    Over ``d`` devices that share no example: ``r g (d - 1) / d b / a`` to put a divided parameter
    together ``g`` times for each of ``r`` reads, where ``a`` is by how much the other axis divides
    it, and for each gradient ``2 (d - 1) / d b / a``; half of that if each device is left its part.
    """
    first = sharding.mesh.axis_names[0]
    devices, sent = sharding.mesh.shape[first], 0.0
    for network in networks:
        for path, leaf in network.parameters.items():
            own, other = divisors(path, leaf, sharding)
            part = bytes_of(leaf) / other * (devices - 1) / devices
            sent += part * network.reads * (gathers if own > 1 else 0)
            sent += part * network.gradients * (1 if own > 1 and in_parts else 2)
    return sent


def trained(like: Any) -> dict[str, Any]:
    """Returns the parameters that have gradients."""
    leaves = named_leaves(like)
    return {p: leaf for p, leaf in leaves.items() if "params" in p.split("/") and p[:4] != "ema/"}


def count(name: str, mesh: str, width: int, batch: int) -> dict[str, Any]:
    """Compares a compiled step with the formula."""
    case, sharding = build(name, width), make_sharding(mesh)
    found = read_collectives(compiled(case, sharding, batch).as_text())
    first = sharding.mesh.axis_names[0]
    parameters = trained(case.like)
    kinds: Counter[str] = Counter()
    for one in found:
        kinds[one.kind] += one.bytes
    row: dict[str, Any] = {
        "network": name, "mesh": mesh, "axes": dict(sharding.mesh.shape),
        "parameters": sum(map(bytes_of, parameters.values())), "exchanges": len(found),
        "gathered": kinds["all-gather"], "summed": kinds["all-reduce"] + kinds["reduce-scatter"],
        "other": kinds["all-to-all"] + kinds["collective-permute"],
    }  # fmt: skip
    if len(sharding.mesh.axis_names) > 1:  # told by the size of the group that exchanges
        size = sharding.mesh.shape[first]
        own = [one for one in found if one.group != sharding.mesh.size // size]
        row["sent"] = sum(one.sent for one in own)
        row["sent_model"] = sum(one.sent for one in found) - row["sent"]
    else:
        row["sent"], row["sent_model"] = sum(one.sent for one in found), 0.0
    once, twice = (sent_by_formula(read_by(case.like), sharding, number) for number in (1, 2))
    return {**row, "once": once, "twice": twice}


class Part(NamedTuple):
    """A network of a large model on paper.

    Attributes:
      parameters: shapes by path.
      passes: of a step, each there and back.
      gradients: of them are summed apart.
      exchanged: bytes, of one example and pass, of what layers divided over ``model`` exchange.
      flops: of one example in a forward pass.
    """

    parameters: dict[str, Any]
    passes: int
    gradients: int
    exchanged: float
    flops: float


def products(jaxpr: Any) -> tuple[float, float]:
    """Returns the bytes that products of a trace read of activations, and their operations."""
    read = flops = 0.0
    for eqn in getattr(jaxpr, "jaxpr", jaxpr).eqns:
        for value in eqn.params.values():
            if hasattr(value, "eqns") or hasattr(value, "jaxpr"):
                inner = products(value)
                read, flops = read + inner[0], flops + inner[1]
        if eqn.primitive.name in ("conv_general_dilated", "dot_general"):
            x, kernel = (v.aval for v in eqn.invars)
            out = eqn.outvars[0].aval
            read += x.size * x.dtype.itemsize
            flops += 2.0 * out.size * kernel.size / kernel.shape[-1]
    return read, flops


def resnet50() -> Part:
    """Returns ResNet-50 at 224 x 224 (He et al. 2016): stages of bottleneck blocks."""
    shapes: dict[str, tuple[int, ...]] = {}
    read = flops = 0.0

    def conv(name: str, side: int, size: int, wide: int, out: int, stride: int = 1) -> int:
        nonlocal read, flops
        shapes[f"params/{name}/kernel"] = (size, size, wide, out)
        shapes.update({f"params/bn_{name}/{what}": (out,) for what in ("scale", "bias")})
        read += 4.0 * side**2 * wide
        flops += 2.0 * (side // stride) ** 2 * size**2 * wide * out
        return side // stride

    side, wide = conv("stem", 224, 7, 3, 64, 2) // 2, 64
    for stage, blocks in enumerate((3, 4, 6, 3)):
        inner = 64 * 2**stage
        for block in range(blocks):
            stride, name = 2 if stage and not block else 1, f"stage{stage}_{block}"
            if not block:
                conv(f"{name}_proj", side, 1, wide, 4 * inner, stride)
            conv(f"{name}_a", side, 1, wide, inner)
            side = conv(f"{name}_b", side, 3, inner, inner, stride)
            conv(f"{name}_c", side, 1, inner, 4 * inner)
            wide = 4 * inner
    shapes |= {"params/head/kernel": (2048, 1000), "params/head/bias": (1000,)}
    like = {path: jax.ShapeDtypeStruct(shape, jnp.float32) for path, shape in shapes.items()}
    return Part(like, 1, 1, read, flops)


def stylegan2() -> list[Part]:
    """Returns generator and discriminator of StyleGAN2, 1024 x 1024, as ``gan_finetune`` steps.

    Of 512 channels up to 32 pixels, half as many for each doubling.
    """
    gan = ju.models.build_gan("stylegan2", (1024, 1024, 3), 0, {"width": 512})
    like = jax.eval_shape(gan.init, jax.random.key(0))
    z, y = jax.ShapeDtypeStruct((1, gan.latent), jnp.float32), jax.ShapeDtypeStruct((1,), jnp.int32)
    x = jax.ShapeDtypeStruct((1, *gan.shape), jnp.float32)

    def generate(variables: Any, z: Any, y: Any) -> jax.Array:
        return gan.synthesize(variables, gan.style(variables, z, y))

    found = (
        products(jax.make_jaxpr(generate)(like["generator"], z, y)),
        products(jax.make_jaxpr(gan.discriminate)(like["discriminator"], x, y)),
    )
    return [Part(*reads, *told) for reads, told in zip(read_by(like), found, strict=True)]


def llama(length: int) -> Part:
    """Returns Llama 2 7B in bfloat16: two sums of ``[B, T, D]`` in a block and a pass."""
    shape = DecoderShape(
        "llama", vocabulary=32000, context=4096, depth=32, width=4096, heads=32, kv_heads=32,
        head_dim=128, hidden=11008,
    )  # fmt: skip
    like = {
        f"params/{path}": jax.ShapeDtypeStruct(sizes, jnp.bfloat16)
        for path, (sizes, _) in shape.layout().items()
    }
    size = sum(leaf.size for leaf in like.values())
    # a sum that all get sends twice
    return Part(like, 1, 1, 2 * 2 * shape.depth * length * shape.width * 2, 2.0 * size * length)


def on_paper(options: argparse.Namespace) -> list[dict[str, Any]]:
    """Returns rows of bytes and milliseconds for large models."""
    models = {
        "ResNet-50": ([resnet50()], 64),
        "StyleGAN2": (stylegan2(), 4),
        "Llama 2 7B": ([llama(4096)], 1),
    }
    rows = []
    for name, (parts, batch) in models.items():
        size = sum(
            bytes_of(leaf) / (4 if UP.search(path) else 1)
            for part in parts for path, leaf in part.parameters.items()
        )  # fmt: skip
        exchanged = sum(bytes_of(leaf) for part in parts for leaf in part.parameters.values())
        for devices in (8, 256):
            for mesh in MESHES:
                sharding = make_sharding(mesh, devices=devices)
                model = math.prod(list(sharding.mesh.shape.values())[1:])
                own = between = flops = whole = 0.0
                for part in parts:
                    own += sent_by_formula([Reads(*part[:3])], sharding, 2, in_parts=True)
                    if model > 1:
                        shown = batch * model * part.exchanged
                        between += 2 * part.passes * shown * (model - 1) / model
                    flops += batch * part.flops * 3 * part.passes
                    whole += sum(
                        bytes_of(leaf) for path, leaf in part.parameters.items()
                        if max(divisors(path, leaf, sharding)) == 1
                    )  # fmt: skip
                links = options.inside if devices <= options.machine else options.across
                rows.append({
                    "model": name, "batch": batch, "parameters": size, "devices": devices,
                    "mesh": mesh, "axes": dict(sharding.mesh.shape), "whole": whole / exchanged,
                    "sent": own, "sent_model": between,
                    "ms": 1e3 * own / links + 1e3 * between / options.inside,
                    "arithmetic_ms": 1e3 * flops / options.flops,
                })  # fmt: skip
    return rows


class Stepped:
    """A method on so many devices, that takes steps one at a time."""

    def __init__(self, case: Case, sharding: Sharding, batch: int) -> None:
        sets = visible_sets(case.method.needs, case.sets)
        self.sets, self.key = replicate((sets, jax.random.key(0)), sharding)
        self.job = Job(case.method, batch * sharding.mesh.size, sharding)
        variables = jax.tree.map(lambda leaf: np.zeros(leaf.shape, leaf.dtype), case.like)
        given = place(variables, sharding), self.sets, self.key, None
        self.state, self.done = init(*given, job=self.job), 0
        arguments = self.state, self.sets, self.key, np.int32(0), np.int32(1)
        program = advance.lower(*arguments, job=self.job, length=1).compile()
        self.sent = sum(one.sent for one in read_collectives(program.as_text()))
        self.spent: list[float] = []

    def step(self) -> None:
        begin = time.process_time()
        arguments = self.state, self.sets, self.key, np.int32(self.done), np.int32(1)
        self.state, _ = jax.block_until_ready(advance(*arguments, job=self.job, length=1))
        self.spent.append(time.process_time() - begin)
        self.done += 1


def weak(options: argparse.Namespace) -> list[dict[str, Any]]:
    """Returns processor time of a step on more and more devices, each with the same work."""
    rows = []
    for name in options.networks:
        case = build(name, options.width)
        for mesh in options.meshes:
            least = 4 if mesh == "fsdp_tensor" else 2
            numbers = [1, *(n for n in (2, 4, 8) if least <= n <= jax.device_count())]
            runs = {
                n: Stepped(
                    case,
                    make_sharding(mesh if n > 1 else "data", devices=jax.devices()[:n]),
                    options.batch,
                )
                for n in numbers
            }
            for _ in range(options.steps + 1):
                for run in runs.values():
                    run.step()
            found = {n: statistics.median(run.spent[1:]) for n, run in runs.items()}
            rows += [
                {
                    "network": name, "mesh": mesh, "devices": n, "processor_ms": 1e3 * found[n],
                    "efficiency": n * found[1] / found[n], "sent": run.sent,
                }
                for n, run in runs.items()
            ]  # fmt: skip
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--networks", nargs="+", default=["resnet", "stylegan2", "decoder"])
    parser.add_argument("--meshes", nargs="+", default=list(MESHES), choices=MESHES)
    parser.add_argument("--width", type=int, default=64)
    parser.add_argument("--batch", type=int, default=32, help="of all devices; of each, --weak")
    parser.add_argument("--paper", action="store_true")
    parser.add_argument("--weak", action="store_true")
    parser.add_argument("--steps", type=int, default=5, help="timed, --weak")
    parser.add_argument("--inside", type=float, default=450e9, help="bytes/s of a machine's links")
    parser.add_argument("--across", type=float, default=50e9, help="bytes/s between machines")
    parser.add_argument("--machine", type=int, default=8, help="devices of a machine")
    parser.add_argument("--flops", type=float, default=200e12, help="operations/s of a device")
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()
    if options.paper:
        rows = on_paper(options)
    elif options.weak:
        rows = weak(options)
    else:
        pairs = [(name, mesh) for name in options.networks for mesh in options.meshes]
        rows = [count(*pair, options.width, options.batch) for pair in pairs]
    if tell(about(options=options, devices=jax.device_count()), options.json, rows=rows):
        names = list(rows[0])
        print("| " + " | ".join(names) + " |\n|" + " --- |" * len(names))
        for row in rows:
            print("| " + " | ".join(_shown(row[name]) for name in names) + " |")


def _shown(value: Any) -> str:
    if isinstance(value, dict):
        return " x ".join(str(size) for size in value.values())
    return f"{value:,.4g}" if isinstance(value, float) and value < 1e4 else (
        value if isinstance(value, str) else f"{value:,.0f}"
    )  # fmt: skip


if __name__ == "__main__":
    main()
