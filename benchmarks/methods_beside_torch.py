"""How long a step of gradient methods of unlearning takes, ours and torchunlearn's side by side.

    python benchmarks/methods_beside_torch.py                # ResNet-18, batch 32, all cores
    python benchmarks/methods_beside_torch.py --threads 1 --width 16
    python benchmarks/methods_beside_torch.py --methods salun bad_teacher --json

torchunlearn's methods are not in the wheel of its release; they are in its repository:

    pip install git+https://github.com/Harry24k/machine-unlearning-pytorch@405bab1

Without it, or without torch, ours are timed alone. Both sides have the same residual network,
parameters and shapes of batches, and SGD with Nesterov momentum .9 at a rate at which nothing
diverges.

``ours``  as ``unlearn`` runs it: batches drawn inside, chunks of ``--steps`` steps in one program.
``fit``   torchunlearn's own loop over as many steps, an epoch, as its user calls it: its
          ``MergedLoaders`` of two shuffled loaders of tensors in memory, without records or files.
``step``  its steps without the loop, on batches that are there already: cost, gradient, update.

``fit / ours``, ``step / ours``: how many times faster ours are, the median of the ratios within a
round, in which all three run in turn; ``ms``: the median milliseconds of a step, compilation
apart. With one thread the clock is the processor's. Times on a shared CPU mean little: quote the
ratios.

First the parameters after one step of plain SGD on one batch of ``PARITY`` examples are compared
in float64 (our logits are float32), drawn labels and random teachers the same on both sides.
``parity``: the largest difference relative to the largest update of the array, of the worst
array; above ``TOLERANCE`` nothing is timed. A mask of weights may differ where two of them are
as good as equal, in ``MASK`` of all at most. Running statistics are not compared: torch's hold
the unbiased variance.

What differs by definition, and how it is made equal here:

* Batch normalisation. ``fit`` runs every method in training mode; ours run gradient_ascent and
  neggrad_plus in inference mode. ``salun`` and ``bad_teacher`` pass both batches through the
  network as one, torchunlearn's one after the other. Where ``norms`` is ``running`` both sides use
  running statistics, with ``batch`` those of the batch.
* Wrong labels of random_label and salun: ours are never the true one, and of classes that occur;
  torchunlearn's are any.
* random_label: torchunlearn's objective with ``retain_lambda=.5`` is half of ours: its rate is
  doubled. It computes the sum of all ``|theta|`` even where its weight is 0, as NegGrad does.
* The mask of salun: ours is of the mean gradient, torchunlearn's of the mean over batches of the
  gradients' sizes; equal for one batch. It is found before anything is timed.
* l1_sparse: ours in the form ``subgradient``, with a schedule so long that the penalty stays; the
  default is another step, proximal, and a penalty that falls.
* bad_teacher: with all of the retain set, where the default is a share of it.

Left out: ``scrub``, since a step of torchunlearn's climbs on the forget batch and descends on the
retain batch at once, where ours, as the paper, does one or the other (and theirs has no
temperature); ``boundary_shrink``, since torchunlearn's takes the second largest logit instead of
an attack, and learns the retain set besides. Its other trainers have no method of ours.
"""

import argparse
import importlib.metadata
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
from relevance import CLASSES, SHAPE, draw, network, seconds, set_up
from resnet_step import MOMENTUM, Run, our_run

from jaxunlearn.core.types import Model, Sets, Unlearner
from jaxunlearn.data.batches import draw_batches
from jaxunlearn.data.examples import as_examples
from jaxunlearn.data.sets import whole
from jaxunlearn.methods.bad_teacher import bad_teacher
from jaxunlearn.methods.finetune import finetune
from jaxunlearn.methods.gradient_ascent import gradient_ascent
from jaxunlearn.methods.l1_sparse import l1_sparse
from jaxunlearn.methods.neggrad_plus import neggrad_plus
from jaxunlearn.methods.random_label import random_label, wrong_labels
from jaxunlearn.methods.salun import salun

RATE = 1e-5
PARITY, TOLERANCE, MASK = 8, 1e-5, 1e-4
INSTALL = "pip install git+https://github.com/Harry24k/machine-unlearning-pytorch@405bab1"

Data = dict[str, tuple[np.ndarray, np.ndarray]]


class Pair(NamedTuple):
    """A method of ours and what computes the same in torchunlearn.

    Attributes:
      ours: ``model, optimizer -> method``.
      theirs: name of the class; settings: its arguments.
      norms: ``"batch"`` or ``"running"``, the statistics that batch normalisation uses.
      scale: how many times larger our gradient is.
    """

    ours: Callable[..., Unlearner]
    theirs: str
    settings: dict[str, Any]
    norms: str = "batch"
    scale: float = 1.0


PAIRS = {
    "finetune": Pair(finetune, "Finetune", {}),
    "gradient_ascent": Pair(gradient_ascent, "NegGrad", {"retain_lambda": 0.0}, "running"),
    "random_label": Pair(random_label, "RandomLabel", {"retain_lambda": 0.5}, scale=2.0),
    "neggrad_plus": Pair(
        partial(neggrad_plus, retain_weight=0.95), "NegGrad", {"retain_lambda": 0.95}, "running"
    ),
    "l1_sparse": Pair(
        partial(l1_sparse, steps=10**6, gamma=1e-5, form="subgradient"),
        "L1Sparse", {"gamma": 1e-5},
    ),
    "salun": Pair(partial(salun, share=0.5), "SalUn", {"saliency_threshold": 0.5}, "running"),
    "bad_teacher": Pair(
        partial(bad_teacher, forget_weight=0.5, share=1.0),
        "BadTeacher", {"retain_lambda": 0.5, "forget_lambda": 0.5}, "running",
    ),
}  # fmt: skip


def data(count: int, method: Unlearner) -> Data:
    """Draws the sets that a method reads, of so many examples each."""
    rng = np.random.default_rng(0)

    def one() -> tuple[np.ndarray, np.ndarray]:
        x = rng.normal(size=(count, *SHAPE)).astype(np.float32)
        return x, rng.integers(0, CLASSES, count).astype(np.int32)

    return {name: one() for name in ("forget", "retain") if getattr(method.needs, name)}


def sets_of(given: Data) -> Sets:
    """Returns arrays of inputs and labels as the sets of ``unlearn``."""
    return Sets(**{name: whole(as_examples(*pair)) for name, pair in given.items()})


def our_network(options: argparse.Namespace, norms: str, dtype: Any = jnp.float32) -> Model:
    """Returns our network, in training mode too with running statistics where these are wanted."""
    model = network(tuple(options.stages), options.width, dtype)
    if norms == "batch":
        return model

    def apply_train(variables: Any, x: Any, key: Any) -> tuple[jax.Array, Any]:
        del key
        return model.apply(variables, x), variables

    return model._replace(apply_train=apply_train)


def missing() -> str | None:
    """Says what torchunlearn's methods lack to be run; ``None`` where they are there."""
    try:
        import torch  # noqa: F401
        import torchunlearn  # noqa: F401
    except ImportError as error:
        return f"cannot be imported, {error.name} is missing ({INSTALL})"
    return None


# --- parity


def widened(tree: Any) -> Any:
    """Returns floats as float64, all else as it is."""

    def wide(leaf: jax.Array) -> jax.Array:
        return leaf.astype(jnp.float64) if jnp.issubdtype(leaf.dtype, jnp.floating) else leaf

    return jax.tree.map(wide, tree)


def parity(pair: Pair, options: argparse.Namespace, variables: Any) -> tuple[float, float]:
    """Compares one step of both sides.

    Returns:
      The worst array's difference, and the share of weights that only one side left as they were.

    Raises:
      RuntimeError: if one of them is too large.
    """
    from peers.torchunlearn_methods import Peer, ordered, tensors

    key, zero = jax.random.key(1), jnp.int32(0)
    with jax.enable_x64(True):
        model, exact = our_network(options, pair.norms, jnp.float64), widened(variables)
        method = pair.ours(model, optimizer=optax.sgd(1.0))
        sets = sets_of(data(PARITY, method))
        state = widened(jax.jit(method.init)(exact, sets, key))
        batches = widened(draw_batches(sets, key, zero, PARITY, method.needs))
        after, _ = jax.jit(method.step)(state, batches, key, zero)
        ours, drawn = ordered(method.result(after)), {}
        if pair.theirs in ("RandomLabel", "SalUn"):
            label_key, _ = jax.random.split(key)
            drawn["labels"] = wrong_labels(batches.forget.y, state.prepared, label_key)
        if pair.theirs == "BadTeacher":
            drawn["teacher"] = state.prepared.random
        peer = Peer(exact, CLASSES, pair, pair.scale, 0.0, "float64")
    given = {name: (one.x, one.y) for name, one in batches._asdict().items() if one is not None}
    batch = tensors(given, "float64")
    peer.prepare([batch["Forget"]] if "Forget" in batch else [])
    peer.step_as(batch, **drawn)
    return compare(ours, peer.parameters(), ordered(exact))


def compare(ours: list[Any], theirs: list[Any], start: list[Any]) -> tuple[float, float]:
    """Compares parameters after a step; see :func:`parity`."""
    worst, apart, total = 0.0, 0, 0
    for mine, other, before in zip(ours, theirs, start, strict=True):
        errors = np.abs(mine - other) / (np.abs(other - before).max() or 1.0)
        masked = ((mine == before) != (other == before)) & (errors >= TOLERANCE)
        worst = max(worst, float(np.where(masked, 0, errors).max()))
        apart, total = apart + int(masked.sum()), total + masked.size
    if not worst < TOLERANCE:
        raise RuntimeError(f"ours and torchunlearn differ by {worst:.1e}")
    if apart > MASK * total:
        raise RuntimeError(f"one side alone moves {apart} of {total} weights")
    return worst, apart / total


# --- the script


def measure(
    runs: dict[str, Run], options: argparse.Namespace, clock: Callable[[], float]
) -> dict[str, Any]:
    """Milliseconds of a step of every way, and ratios; all run in turn."""
    first = {name: seconds(run, clock) for name, run in runs.items()}
    times: dict[str, list[float]] = {name: [] for name in runs}
    for _ in range(options.rounds):
        for name, run in runs.items():
            times[name].append(seconds(run, clock))
    middle = {name: statistics.median(own) for name, own in times.items()}
    row: dict[str, Any] = {f"{name}_ms": 1e3 * m / options.steps for name, m in middle.items()}
    for name in runs.keys() - {"ours"}:
        ratios = [b / a for a, b in zip(times["ours"], times[name], strict=True)]
        row[f"{name}_ratio"] = statistics.median(ratios)
    return row | {"compile_s": first["ours"] - middle["ours"]}


def runs_of(pair: Pair, options: argparse.Namespace, variables: Any, peers: bool) -> dict[str, Run]:
    optimizer = optax.sgd(RATE, MOMENTUM, nesterov=True)
    method = pair.ours(our_network(options, pair.norms), optimizer=optimizer)
    given = data(options.steps * options.batch, method)
    runs = {"ours": our_run(method, sets_of(given), variables, options, options.steps)}
    if peers:
        from peers.torchunlearn_methods import Peer, tensors

        peer = Peer(variables, CLASSES, pair, pair.scale * RATE, MOMENTUM, "float32")
        sets = tensors(given, "float32")
        peer.prepare([sets["Forget"]] if "Forget" in sets else [])
        runs |= peer.runs(sets, options.batch)
    return runs


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--methods", nargs="+", choices=PAIRS, default=list(PAIRS))
    parser.add_argument("--batch", type=int, default=32, help="of each set (32)")
    parser.add_argument("--stages", type=int, nargs="+", default=[2, 2, 2, 2])
    parser.add_argument("--width", type=int, default=64)
    parser.add_argument("--steps", type=int, default=8, help="steps a run, and of a chunk (8)")
    parser.add_argument("--rounds", type=int, default=5, help="runs of each, in turn (5)")
    parser.add_argument("--threads", type=int, default=0, help="cores to use, 0 for all (0)")
    parser.add_argument("--json", action="store_true", help="print JSON instead of the table")
    return parser.parse_args()


def main() -> None:
    options = arguments()
    set_up(options.threads)
    lacking = missing()
    told: dict[str, Any] = {"torchunlearn": lacking}
    if lacking is None:
        import torch
        import torchunlearn

        if options.threads:
            torch.set_num_threads(options.threads)
        told = {
            "torch": importlib.metadata.version("torch"), "torchunlearn": torchunlearn.__version__,
        }  # fmt: skip
    alone = options.threads == 1 and jax.default_backend() == "cpu"
    clock = time.process_time if alone else time.perf_counter
    variables = jax.tree.map(np.asarray, draw(network(tuple(options.stages), options.width)))
    rows = []
    for name in options.methods:
        pair = PAIRS[name]
        row: dict[str, Any] = {"method": name, "norms": pair.norms}
        if lacking is None:
            row["parity"], row["mask"] = parity(pair, options, variables)
        rows.append(
            row | measure(runs_of(pair, options, variables, lacking is None), options, clock)
        )
    told = about("jaxlib", "flax", "optax", options=options, without=("methods",),
                 clock=clock.__name__, **told)  # fmt: skip
    if tell(told, options.json, rows=rows):
        show(rows)


def show(rows: list[dict[str, Any]]) -> None:
    columns = {
        "ours ms": ("ours_ms", "9.1f"), "fit ms": ("fit_ms", "9.1f"),
        "step ms": ("step_ms", "9.1f"), "fit / ours": ("fit_ratio", "10.2f"),
        "step / ours": ("step_ratio", "11.2f"), "compile s": ("compile_s", "9.1f"),
        "parity": ("parity", "8.1e"), "mask": ("mask", "8.1e"),
    }  # fmt: skip
    shown = {head: field for head, field in columns.items() if field[0] in rows[0]}
    heads = (f"{head:>{form.split('.')[0]}}" for head, (_, form) in shown.items())
    print(f"{'method':16} {'norms':8}", *heads)
    for row in rows:
        cells = (f"{row[name]:{form}}" for name, form in shown.values())
        print(f"{row['method']:16} {row['norms']:8}", *cells)


if __name__ == "__main__":
    main()
