r"""What a step of a decoder is estimated to need, beside what XLA's compiler allots it.

    python benchmarks/memory_estimates.py
    python benchmarks/memory_estimates.py --width 4096 --hidden 11008 --vocabulary 32000 \
        --length 256 --batch 8 --depths 1 2 --heads 32 --dtype bfloat16 --training lora \
        --tpu v5:2x2x1

Of ``grad_diff`` with Adam, all parameters (*full*) or adapters of rank 8 on all kernels (*lora*),
with and without recomputation. ``estimate``: the peak from the trace, as ``jaxunlearn plan``
counts it; ``allotted``: ``temp_size_in_bytes`` of the compiled step; ``ratio``: one over the
other; ``arguments``: what is counted to the byte, over what the compiler says.
With ``--devices`` parameters are divided over so many virtual devices (``fsdp``), and so is the
batch. ``--tpu`` compiles for a machine that need not be there, with the package libtpu; XLA on
CPUs takes recomputed values for those that it has already, so that there nothing is saved.
"""

import argparse
import os
import sys
from typing import Any, NamedTuple

if "--devices" in sys.argv:  # before jax is imported
    count = sys.argv[sys.argv.index("--devices") + 1]
    os.environ.setdefault("XLA_FLAGS", f"--xla_force_host_platform_device_count={count}")
    os.environ.setdefault("NPROC", "32")
if "--tpu" in sys.argv:
    os.environ.setdefault("JAX_PLATFORMS", "cpu")
    os.environ.setdefault("TPU_SKIP_MDS_QUERY", "1")
    os.environ.setdefault("TPU_ACCELERATOR_TYPE", "v5p-8")
    os.environ.setdefault("TPU_WORKER_HOSTNAMES", "localhost")
    os.environ.setdefault("TPU_WORKER_ID", "0")

import jax
import jax.numpy as jnp
import optax
from jax.sharding import SingleDeviceSharding
from peers.report import about, tell

import jaxunlearn as ju
from jaxunlearn.core.trees import named_leaves
from jaxunlearn.core.types import Examples, LanguageModel, Sets, Subset
from jaxunlearn.engine.loop import Job, advance, init
from jaxunlearn.engine.sharding import Sharding, abstract, make_sharding, spec_of
from jaxunlearn.jaxprs.liveness import bytes_of, peak
from jaxunlearn.language import DecoderShape, build_decoder

ALL = (r"(query|key|value|output|gate|up|down)/kernel$",)


class Step(NamedTuple):
    """A step of training: the network, its batch, and where it is done."""

    model: LanguageModel
    training: str
    batch: int
    length: int
    sharding: Sharding | None
    device: Any


def texts(count: int, length: int) -> Sets:
    """Returns shapes of texts."""
    kinds = {"tokens": jnp.int32, "mask": jnp.bool_, "answer": jnp.bool_}
    x = {name: jax.ShapeDtypeStruct((count, length), kind) for name, kind in kinds.items()}
    places = jax.ShapeDtypeStruct((count,), jnp.int32)
    examples = Examples(x, places, jax.tree_util.Partial(lambda stored: stored))
    part = Subset(examples, places, jax.ShapeDtypeStruct((), jnp.int32))
    return Sets(forget=part, retain=part)


def measure(step: Step, dtype: str) -> dict[str, float]:
    """Estimates a step, and compiles it."""
    lora: dict[str, Any] = {"lora": 8, "lora_on": ALL} if step.training == "lora" else {}
    method = ju.grad_diff(step.model, optimizer=optax.adam(1e-3), **lora)
    like = jax.tree.map(
        lambda leaf: jax.ShapeDtypeStruct(leaf.shape, dtype),
        jax.eval_shape(step.model.init, jax.random.key(0)),
    )
    sets, key = texts(64, step.length), jax.eval_shape(lambda: jax.random.key(0))
    number = jax.ShapeDtypeStruct((), jnp.int32)
    parts = 1 if step.sharding is None else step.sharding.mesh.size
    job = Job(method, step.batch // parts)
    state = init.trace(like, sets, key, None, job=job).out_info
    given = (sets, key, number, number)
    jaxpr = advance.trace(state, *given, job=job, length=1).jaxpr
    shares = {
        leaf.shape: share(path, leaf, step.sharding) for path, leaf in named_leaves(like).items()
    }

    def sized(aval: Any) -> tuple[str, float]:
        return "all", bytes_of(aval) * shares.get(tuple(aval.shape), 1)

    estimate = sum(peak(jaxpr, sized).values())
    counted = sum(bytes_of(v) * share(p, v, step.sharding) for p, v in named_leaves(state).items())
    counted += sum(bytes_of(leaf) for leaf in jax.tree.leaves(given))
    if step.sharding is not None:
        largest = max(bytes_of(leaf) for leaf in jax.tree.leaves(like))
        estimate += 2 * largest
        whole = Sharding(step.sharding.mesh, ())
        state, given = abstract(state, step.sharding), abstract(given, whole)
    elif step.device is not None:
        state, given = jax.tree.map(
            lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=step.device),
            (state, given),
        )
    own = job._replace(batch_size=step.batch, sharding=step.sharding)
    platforms = None if step.device is None else ("tpu",)
    lowered = advance.trace(state, *given, job=own, length=1).lower(lowering_platforms=platforms)
    told = lowered.compile().memory_analysis()
    return {
        "estimate": estimate, "allotted": told.temp_size_in_bytes,
        "ratio": estimate / told.temp_size_in_bytes,
        "arguments": counted / told.argument_size_in_bytes,
    }  # fmt: skip


def share(path: str, leaf: Any, sharding: Sharding | None) -> float:
    """Returns which share of a parameter lies on one device."""
    if sharding is None or not leaf.shape:
        return 1.0
    axes = [axis for axis in spec_of(path, leaf.shape, sharding) if axis is not None]
    return 1 / sharding.mesh.size if axes else 1.0


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    for name, default in {
        "width": 256, "hidden": 640, "heads": 8, "vocabulary": 1024, "length": 128, "batch": 16,
    }.items():  # fmt: skip
        parser.add_argument(f"--{name}", type=int, default=default)
    parser.add_argument("--depths", type=int, nargs="+", default=[4])
    parser.add_argument("--dtype", default="float32")
    parser.add_argument("--training", nargs="+", default=["full", "lora"])
    parser.add_argument("--devices", type=int, default=1)
    parser.add_argument("--tpu", metavar="TOPOLOGY", help="such as v5:2x2x1")
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()
    sharding = make_sharding("fsdp") if options.devices > 1 else None
    device = None
    if options.tpu:
        from jax.experimental import topologies

        found = topologies.get_topology_desc(platform="tpu", topology_name=options.tpu)
        device = SingleDeviceSharding(found.devices[0])
    rows = []
    for depth in options.depths:
        shape = DecoderShape(
            "llama", options.vocabulary, options.length, depth=depth, width=options.width,
            heads=options.heads, kv_heads=options.heads, head_dim=options.width // options.heads,
            hidden=options.hidden,
        )  # fmt: skip
        for remat in (False, True):
            model = build_decoder(shape, dtype=options.dtype, remat=remat)
            for training in options.training:
                step = Step(model, training, options.batch, options.length, sharding, device)
                names = {"depth": depth, "remat": remat, "training": training}
                rows.append({**names, **measure(step, options.dtype)})
    if tell(about(options=options), options.json, rows=rows):
        print(f"\n{'depth':>5} {'remat':>5} {'training':8} {'estimate':>10} {'allotted':>10} "
              f"{'ratio':>5} {'arguments':>9}")  # fmt: skip
        for row in rows:
            sizes = " ".join(f"{row[name] / 1e6:7,.1f} MB" for name in ("estimate", "allotted"))
            print(f"{row['depth']:5} {row['remat']!s:>5} {row['training']:8} {sizes} "
                  f"{row['ratio']:5.2f} {row['arguments']:9.3f}")  # fmt: skip


if __name__ == "__main__":
    main()
