"""All questions of speed on one accelerator, in one command of less than 25 minutes.

    python benchmarks/accelerator.py cifar10.npz             # writes accelerator.json and .md
    python benchmarks/accelerator.py digits.npz --small      # tries all of it on a CPU: 3 minutes
    python benchmarks/accelerator.py cifar10.npz --only step language
    python benchmarks/accelerator.py cifar10.npz --limits 312e12 2.04e12

The images are ``train_x, train_y, test_x, test_y`` of an ``.npz``; no data set library is needed
where it is read. Of any data set that runs read, here the scanned digits, it is written by

    python -c "import numpy as np, jaxunlearn as ju; d = ju.data.load_dataset(ju.data.DataConfig(
    name='digits')); np.savez('digits.npz', train_x=d.train_x, train_y=d.train_y,
    test_x=d.test_x, test_y=d.test_y)"

Questions, each by itself: one that fails becomes a row that says why, and those for which no time
is left (``--minutes``) are named. After each of them both files are written.

``step``        a training step of the network, in float32 and in bfloat16, in a chunk as runs
                take them and as a program of its own
``unlearning``  class 0 is forgotten: seconds of methods beside those of retraining, and the
                accuracy on the class and on the others (of test images)
``relevance``   relevance of every layer, against a gradient of the input
``integrated``  integrated gradients of 20 nodes, against a gradient of the input
``cascade``     a GAN forgets the class, its search for latents included, against a whole
                training, which is *projected* from its step
``ensembles``   many small networks in one program, against a loop over them
``language``    a training step of a decoder, of a few blocks of Llama's kind

``ms``: median, compilation apart. ``ratio``: how many times faster than what the row is held
against (above: slower, where it says *times a gradient*). ``flop``: operations in matrix products
and convolutions, counted in the trace. ``bytes``: read and written, as the compiler counts them
for one step, also where they come from a cache, so that their share may exceed 1. Shares are of
the device's limit: of its datasheet, of ``--limits``, or, for a device that is not in the table,
of what a product and a copy reach here. Where both shares are far below 1 the device waits.
"""

import argparse
import json
import math
import sys
import time
import traceback
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from peers.report import about
from peers.work import Limit, Work, limit_of, median_seconds, work_of

import jaxunlearn as ju
from jaxunlearn.attribution import lrp, starts
from jaxunlearn.attribution.ig import integrated_gradients, quadrature
from jaxunlearn.attribution.lrp import rules
from jaxunlearn.core.host import keep_memory
from jaxunlearn.core.types import Sets, Unlearner
from jaxunlearn.data.sets import num_examples
from jaxunlearn.engine import loop
from jaxunlearn.engine.driver import CHUNK, Outcome, loops_badly, visible_sets
from jaxunlearn.engine.predict import predict
from jaxunlearn.gan import Guide
from jaxunlearn.language import DecoderShape, build_decoder

Row = dict[str, Any]
FORGOTTEN = 0


class Sizes(NamedTuple):
    """How much of everything."""

    network: str = "resnet18"
    width: int = 64
    batch: int = 256
    epochs: float = 5
    attributed: int = 64
    rounds: int = 5
    gan_width: int = 64
    gan_batch: int = 128
    gan_epochs: float = 3
    # of the training that the cascade is held against
    gan_schedule: float = 25
    cascade: tuple[int, int, int] = (60, 2048, 128)
    """Steps, random latents searched, latents kept."""
    members: int = 16
    member_epochs: float = 5
    decoder: tuple[int, int, int, int] = (12, 768, 32000, 1024)
    """Blocks, width, vocabulary, tokens of a text."""
    texts: int = 16
    dtypes: tuple[str, ...] = ("float32", "bfloat16")
    methods: tuple[str, ...] = (
        "finetune", "gradient_ascent", "random_label", "neggrad_plus", "scrub", "salun", "ssd",
        "neuron_path",
    )  # fmt: skip
    matrix: int = 8192


SMALL = Sizes(
    "resnet8", 4, 16, 1, 4, 1, 4, 16, 0.2, 25, (2, 256, 16), 2, 0.2, (1, 16, 64, 8), 2,
    ("float32",), ("finetune", "ssd"), 256,
)  # fmt: skip


class Bench(NamedTuple):
    """What all questions read."""

    sizes: Sizes
    sets: Sets
    shape: tuple[int, ...]
    classes: int
    limit: Limit

    def model(self, dtype: str) -> Any:
        options = {"width": self.sizes.width, "dtype": dtype}
        return ju.models.build(self.sizes.network, self.shape, self.classes, options)

    def rated(self, case: str, dtype: str, seconds: float, work: Work | None, **more: Any) -> Row:
        """Returns a row, with what was reached of the device's limit."""
        row: Row = {"case": case, "dtype": dtype, "ms": 1e3 * seconds, **more}
        if work is not None:
            row |= {"flop": work.flop, "flop_s": work.flop / seconds}
            row["share_flop"] = row["flop_s"] / self.limit.flops[dtype]
            if work.bytes is not None:
                row |= {"bytes": work.bytes, "bytes_s": work.bytes / seconds}
                row["share_bytes"] = row["bytes_s"] / self.limit.bytes
        return row


# --- the questions


def timed_steps(
    bench: Bench, method: Unlearner, variables: Any, sets: Sets, batch: int, dtype: str, unit: float
) -> Iterator[Row]:
    """Times a method's steps in chunks, and one by one; ``unit`` examples or tokens a step."""
    sets, key = visible_sets(method.needs, sets), jax.random.key(0)
    job = loop.Job(method, batch)
    chunk = 1 if loops_badly(job, variables, sets, key, None) else CHUNK
    number = np.int32(0)
    state = loop.init(variables, sets, key, None, job=job)
    work = work_of(loop.advance, state, sets, key, number, np.int32(1), job=job, length=1)
    alone = None
    for case, length in (("alone", 1), ("chunk", chunk)):
        # the state is donated: each run goes on where the last one ended
        def run(length: int = length) -> Any:
            nonlocal state
            state, infos = loop.advance(
                state, sets, key, number, np.int32(length), job=job, length=length
            )
            return state, infos

        seconds = median_seconds(run, bench.sizes.rounds) / length
        alone = alone or seconds
        ratio = {"ratio": alone / seconds, "against": "a step alone", "units_s": unit / seconds}
        yield bench.rated(f"{case}, batch {batch}", dtype, seconds, work, **ratio)


def step(bench: Bench) -> Iterator[Row]:
    for dtype in bench.sizes.dtypes:
        model = bench.model(dtype)
        variables, batch = jax.jit(model.init)(jax.random.key(0)), bench.sizes.batch
        method = ju.finetune(model)
        yield from timed_steps(bench, method, variables, bench.sets, batch, dtype, batch)


def unlearning(bench: Bench) -> Iterator[Row]:
    sizes, sets, key = bench.sizes, bench.sets, jax.random.key(1)
    dtype = sizes.dtypes[-1]
    model = bench.model(dtype)
    config = ju.TrainConfig(epochs=sizes.epochs, batch_size=sizes.batch, learning_rate=1e-3)
    original = ju.train(model, sets.train, key, config=config)
    retrained = ju.train(model, sets.retain, key, config=config)
    yield accuracies(bench, model, "original", dtype, original, retrained)
    yield accuracies(bench, model, "retrained", dtype, retrained, retrained)
    # an epoch over what is smaller, the forgotten class, at least eight steps
    steps = max(8, math.ceil(num_examples(sets.forget) / sizes.batch))
    for name in sizes.methods:
        given = {"scrub": {"steps": steps}}.get(name, {})
        method = ju.methods.METHODS[name].factory(model, **given)
        many = {} if method.step is None or method.needs.once else {"steps": steps}
        outcome = ju.unlearn(method, original.variables, sets, key, batch_size=sizes.batch, **many)
        yield accuracies(bench, model, name, dtype, outcome, retrained)


def accuracies(
    bench: Bench, model: Any, name: str, dtype: str, outcome: Outcome, retrained: Outcome
) -> Row:
    ratio = retrained.seconds / outcome.seconds
    shown = {"forget": bench.sets.test_forget, "others": bench.sets.test_retain}
    found = {
        part: predict(model.apply, outcome.variables, given, bench.sizes.batch).accuracy
        for part, given in shown.items()
    }
    note = ", ".join(f"accuracy on {part} {value:.3f}" for part, value in found.items())
    more = {"ratio": ratio, "against": "retraining", "note": note, "steps": outcome.steps}
    return bench.rated(
        name, dtype, outcome.seconds, None, compile_s=outcome.compile_seconds, **more
    )


def attributed(bench: Bench, ways: dict[str, Callable[[Any], Any]]) -> Iterator[Row]:
    """Times ways to attribute logits, each beside the forward pass and a gradient of the input."""
    model, batch = bench.model("float32"), bench.sizes.attributed
    variables = jax.jit(model.init)(jax.random.key(0))
    rng = np.random.default_rng(0)
    x = jnp.asarray(rng.normal(size=(batch, *bench.shape)), jnp.float32)
    y = jnp.asarray(rng.integers(0, bench.classes, batch))

    def gradient(variables: Any, x: jax.Array, y: jax.Array) -> Any:
        logits, back = jax.vjp(lambda v: model.apply(variables, v), x)
        return logits, back(jax.nn.one_hot(y, bench.classes, dtype=logits.dtype))[0]

    unit = 0.0
    for name, function in {"gradient": lambda _: gradient, **ways}.items():
        jitted = jax.jit(function(model))
        work = work_of(jitted, variables, x, y)
        seconds = median_seconds(lambda f=jitted: f(variables, x, y), bench.sizes.rounds)
        unit = unit or seconds
        more = {"ratio": seconds / unit, "against": "times a gradient"}
        yield bench.rated(f"{name}, batch {batch}", "float32", seconds, work, **more)


def relevance(bench: Bench) -> Iterator[Row]:
    def way(own: Any) -> Callable[[Any], Any]:
        return lambda model: lambda v, x, y: lrp(model.apply, own)(v, x, starts.label(y))

    named = {"epsilon": rules.epsilon(), "epsilon_plus_flat": rules.epsilon_plus_flat()}
    yield from attributed(bench, {name: way(own) for name, own in named.items()})


def integrated(bench: Bench) -> Iterator[Row]:
    def way(chunk: int | None) -> Callable[[Any], Any]:
        rule = quadrature.gauss_legendre(20)
        return lambda model: integrated_gradients(model.apply, rule, chunk=chunk)

    chunks = {"20 nodes": None, "20 nodes, 5 at a time": 5}
    yield from attributed(bench, {name: way(chunk) for name, chunk in chunks.items()})


def cascade(bench: Bench) -> Iterator[Row]:
    sizes, dtype = bench.sizes, bench.sizes.dtypes[-1]
    own = {"width": sizes.gan_width, "dtype": dtype}
    gan = ju.models.build_gan("dcgan", bench.shape, bench.classes, own)
    middle = {"mean": 127.5, "std": 127.5}
    sets, batch, key = sets_of(bench.sets, middle), sizes.gan_batch, jax.random.key(2)
    adam = optax.adam(2e-4, b1=0.5)
    method = ju.gan_retrain(gan, optimizer=adam)
    rows = list(timed_steps(bench, method, None, Sets(retain=sets.retain), batch, dtype, batch))
    yield from ({**row, "case": f"training step, {row['case']}"} for row in rows)
    config = ju.TrainConfig(epochs=sizes.gan_epochs, batch_size=batch, learning_rate=2e-4)
    original = ju.train(gan, sets.train, key, config=config)
    looker = ju.models.build("mlp", bench.shape, bench.classes, {"features": (256, 64)})
    guided = ju.train(looker, sets.train, key, config=ju.TrainConfig(epochs=sizes.gan_epochs))
    steps, pool, latents = sizes.cascade
    guide = Guide(looker, guided.variables)
    made = ju.cascade(gan, guide=guide, steps=steps, pool=pool, latents=latents, ema=0.9)
    outcome = ju.unlearn(made, original.variables, sets, key, steps=steps, batch_size=batch)
    whole = sizes.gan_schedule * num_examples(sets.retain) / batch * rows[-1]["ms"] / 1e3
    more = {"ratio": whole / outcome.seconds, "steps": outcome.steps}
    more["against"] = f"{sizes.gan_schedule:g} epochs of retraining (projected)"
    yield bench.rated(
        f"cascade, {steps} steps",
        dtype,
        outcome.seconds,
        None,
        compile_s=outcome.compile_seconds,
        **more,
    )


def sets_of(sets: Sets, middle: dict[str, float]) -> Sets:
    """Returns the same images, normalised as those of a GAN."""
    x, y = (np.asarray(a) for a in sets.train.examples[:2])
    chosen = np.asarray(sets.train.indices)[: num_examples(sets.train)]
    return ju.make_sets(x[chosen], y[chosen], ju.forget_class(FORGOTTEN), **middle)


def ensembles(bench: Bench) -> Iterator[Row]:
    sizes = bench.sizes
    own = {"channels": (8, 16), "features": 32}
    model = ju.models.build("cnn", bench.shape, bench.classes, own)
    keys = jax.random.split(jax.random.key(3), sizes.members)
    config = ju.TrainConfig(epochs=sizes.member_epochs, learning_rate=3e-3)
    part = bench.sets.retain

    def one_by_one() -> list[Outcome]:
        return [ju.train(model, part, key, config=config) for key in keys]

    ways = {
        "loop": one_by_one,
        "one program": lambda: [ju.train_many(model, part, keys, config=config)],
    }
    compiling = {
        way: sum(outcome.compile_seconds for outcome in run()) for way, run in ways.items()
    }
    seconds = {way: sum(outcome.seconds for outcome in run()) for way, run in ways.items()}
    for way, own_seconds in seconds.items():
        more = {"ratio": seconds["loop"] / own_seconds, "against": "the loop"}
        more["compile_s"] = compiling[way]
        case = f"{sizes.members} networks, {way}"
        yield bench.rated(case, "float32", own_seconds, None, **more)


def language(bench: Bench) -> Iterator[Row]:
    depth, width, vocabulary, length = bench.sizes.decoder
    heads = max(2, width // 64)
    shape = DecoderShape(
        "llama", vocabulary=vocabulary, context=length, depth=depth, width=width, heads=heads,
        kv_heads=heads, head_dim=width // heads, hidden=3 * width,
    )  # fmt: skip
    rng, dtype = np.random.default_rng(0), bench.sizes.dtypes[-1]
    texts = 8 * bench.sizes.texts
    true = np.ones((texts, length), bool)
    tokens = rng.integers(0, vocabulary, true.shape).astype(np.int32)
    x = {"tokens": tokens, "mask": true, "answer": true}
    sets = ju.make_sets(x, np.arange(texts, dtype=np.int32) % 4, ju.forget_class(1), num_classes=4)
    model = build_decoder(shape, dtype=dtype)
    variables = jax.jit(model.init)(jax.random.key(0))
    method, batch = ju.lm_finetune(model), bench.sizes.texts
    unit = batch * length
    yield from timed_steps(bench, method, variables, sets, batch, dtype, unit)


QUESTIONS: dict[str, Callable[[Bench], Iterator[Row]]] = {
    "step": step, "unlearning": unlearning, "relevance": relevance, "integrated": integrated,
    "cascade": cascade, "ensembles": ensembles, "language": language,
}  # fmt: skip


# --- the script


def read(name: str) -> tuple[Sets, tuple[int, ...], int]:
    """Returns the sets of the request, the shape of an image, and the number of classes.

    The first half of the test images are those that no training saw.
    """
    data = ju.data.load_dataset(ju.data.DataConfig(name=name))
    half, classes = len(data.test_x) // 2, int(max(data.train_y.max(), data.test_y.max())) + 1
    sets = ju.make_sets(
        data.train_x, data.train_y, ju.forget_class(FORGOTTEN), num_classes=classes,
        unseen=(data.test_x[:half], data.test_y[:half]),
        test=(data.test_x[half:], data.test_y[half:]),
    )  # fmt: skip
    return sets, tuple(data.train_x.shape[1:]), classes


def answer(name: str, bench: Bench) -> Iterator[Row]:
    begin = time.perf_counter()
    try:
        for row in QUESTIONS[name](bench):
            yield {"question": name, **row}
    except Exception as error:  # the other questions are still asked
        words = " ".join(f"{type(error).__name__}: {error}".split())[:300]
        yield {"question": name, "case": "failed", "note": words, "trace": traceback.format_exc()}
    print(f"{name}: {time.perf_counter() - begin:.0f} s", file=sys.stderr, flush=True)


HEADS = ("question", "case", "dtype", "ms", "ratio", "against", "TFLOP/s", "share", "GB/s", "share",
         "note")  # fmt: skip


def table(told: dict[str, Any], rows: list[Row], skipped: list[str]) -> str:
    """Writes the Markdown."""

    def number(row: Row, name: str, form: str, scale: float = 1.0) -> str:
        value = row.get(name)
        return "" if value is None else format(value / scale, form)

    lines = [", ".join(f"{key} {value}" for key, value in told.items()), ""]
    lines += [
        f"| {' | '.join(HEADS)} |",
        f"|{' --- |' * 3}{' ---: |' * 2} --- |{' ---: |' * 4} --- |",
    ]
    for row in rows:
        cells = (
            row["question"], row["case"], row.get("dtype", ""), number(row, "ms", ".4g"),
            number(row, "ratio", ".3g"), row.get("against", ""),
            number(row, "flop_s", ".4g", 1e12), number(row, "share_flop", ".2f"),
            number(row, "bytes_s", ".4g", 1e9), number(row, "share_bytes", ".2f"),
            row.get("note", ""),
        )  # fmt: skip
        lines.append(f"| {' | '.join(cells)} |")
    if skipped:
        lines += ["", f"Not asked, for want of time: {', '.join(skipped)}."]
    return "\n".join(lines) + "\n"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    source = "an .npz with train_x, train_y, test_x, test_y (the scanned digits)"
    parser.add_argument("data", nargs="?", default="digits", help=source)
    parser.add_argument("--only", nargs="+", choices=QUESTIONS, default=list(QUESTIONS))
    parser.add_argument("--small", action="store_true", help="small networks: tries all on a CPU")
    parser.add_argument("--limits", type=float, nargs=2, help="the device's FLOP/s and bytes/s")
    parser.add_argument("--minutes", type=float, default=24, help="no question after these (24)")
    parser.add_argument("--out", type=Path, default=Path("accelerator"), help="without .json, .md")
    parser.add_argument("--json", action="store_true", help="print the JSON as well, at the end")
    options = parser.parse_args()
    keep_memory()  # as the commands do
    begin = time.perf_counter()
    sizes = SMALL if options.small else Sizes()
    sets, shape, classes = read(options.data)
    limit = limit_of(options.limits, sizes.matrix)
    bench = Bench(sizes, sets, shape, classes, limit)
    told = about(
        "jaxlib", "flax", "optax", platform=jax.default_backend(), data=Path(options.data).name,
        images=f"{num_examples(sets.train)} of {'x'.join(map(str, shape))}",
        sizes="small" if options.small else "whole", limit=limit.source,
        **{f"limit of {name}": f"{value:.3g} FLOP/s" for name, value in limit.flops.items()},
        **{"limit of memory": f"{limit.bytes:.3g} B/s"},
    )  # fmt: skip
    rows: list[Row] = []
    left = list(options.only)
    while left and time.perf_counter() - begin < 60 * options.minutes:
        rows += answer(left.pop(0), bench)
        found = {"about": told, "rows": rows, "skipped": left}
        Path(f"{options.out}.json").write_text(json.dumps(found, indent=2))
        Path(f"{options.out}.md").write_text(table(told, rows, left))
    print(json.dumps(found, indent=2) if options.json else table(told, rows, left))


if __name__ == "__main__":
    main()
