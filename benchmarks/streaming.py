"""Whether streamed sets keep up with resident ones, and how much memory they hold.

    python benchmarks/streaming.py                       # 1,281,167 images, 224 x 224 x 3
    python benchmarks/streaming.py --workers 0 2 --jpeg --width 256
    python benchmarks/streaming.py --workers 1 --jpeg --training-cores 1
    python benchmarks/streaming.py --json

The set has ImageNet's shape and is made up: a record is computed from its position, so that none
lies anywhere (193 GB if all did). Training on it, streamed, beside training on as many images as
``--resident`` says that lie on the device, the same steps of the same program of one chunk, in
turn in one process; compilation apart; medians of ratios. ``--jpeg``: records are JPEG files that
have to be decoded.

On CPU whoever reads takes processor time from the training. So that is measured beside the clock,
in all processes: where training keeps every core busy, the ratio of resident to streamed is the
best that the clock can show. ``--training-cores`` leaves the other cores to the workers, as a
machine with an accelerator does.

Memory in batches: rows on the host, as they are allocated and freed, or as they lie in memory
shared with workers; and how much more all processes together grow in the steps than they do with
resident images, which on CPU counts what lies on the device, too.
"""

import argparse
import contextlib
import ctypes
import gc
import io
import json
import os
import platform
import statistics
import time
import weakref
from pathlib import Path
from typing import Any

import jax
import numpy as np
import optax

import jaxunlearn as ju
from jaxunlearn.core.types import Model, Sets, Subset
from jaxunlearn.data import streams
from jaxunlearn.engine import Outcome

CLASSES = 1000
PATCH = 16


class Photos:
    """Images ``uint8 [size, size, 3]`` made of their positions."""

    def __init__(self, count: int, size: int, jpeg: bool) -> None:
        self.count, self.shape, self.jpeg = count, (size, size, 3), jpeg
        rng = np.random.default_rng(0)
        self.noise = rng.integers(0, 256, 2 * size * size * 3, np.uint8)
        self.files = [self._file(number) for number in range(64)] if jpeg else []

    def _file(self, number: int) -> bytes:
        from PIL import Image

        buffer = io.BytesIO()
        # neighbouring pixels of a photograph are alike
        small = Image.fromarray(self._pixels(number)[::8, ::8])
        small.resize(self.shape[:2]).save(buffer, "jpeg", quality=90)
        return buffer.getvalue()

    def _pixels(self, position: int) -> np.ndarray:
        start = position * 7919 % (len(self.noise) // 2)
        return self.noise[start : start + len(self.noise) // 2].reshape(self.shape)

    def __len__(self) -> int:
        return self.count

    def __getitem__(self, position: int) -> np.ndarray:
        if not 0 <= position < self.count:
            raise IndexError(position)
        if not self.jpeg:
            return self._pixels(position)
        from PIL import Image

        return np.asarray(Image.open(io.BytesIO(self.files[position % len(self.files)])))


def network(size: int, width: int) -> Model:
    """Returns a network of patches: two layers of each, their mean, a layer of classes."""
    side = size // PATCH

    def apply(variables: Any, x: jax.Array) -> jax.Array:
        params = variables["params"]
        cut = x.reshape(-1, side, PATCH, side, PATCH, 3).transpose(0, 1, 3, 2, 4, 5)
        h = jax.nn.relu(cut.reshape(len(x), side * side, -1) @ params["embed"])
        h = jax.nn.relu(h @ params["mix"])
        return h.mean(axis=1) @ params["head"]

    def init(key: jax.Array) -> Any:
        keys = jax.random.split(key, 3)
        shapes = {"embed": (PATCH * PATCH * 3, width), "mix": (width, width)}
        shapes["head"] = (width, CLASSES)
        return {
            "params": {
                name: jax.random.normal(own, shape) / np.sqrt(shape[0])
                for own, (name, shape) in zip(keys, shapes.items(), strict=True)
            }
        }

    return ju.functionalize(apply, init=init)


class Held:
    """Counts the bytes of rows on the host that exist at once."""

    def __init__(self) -> None:
        self.now = self.most = 0
        self._read = streams._Shared.read

    def __enter__(self) -> "Held":
        streams._Shared.read = lambda shared, positions: self._count(shared, positions)
        return self

    def __exit__(self, *_: object) -> None:
        streams._Shared.read = self._read

    def _count(self, shared: Any, positions: np.ndarray) -> list[np.ndarray]:
        made = self._read(shared, positions)
        self.now += made[0].nbytes
        self.most = max(self.most, self.now)
        weakref.finalize(made[0].base, self._free, made[0].nbytes)
        return made

    def _free(self, size: int) -> None:
        self.now -= size


def process_bytes(name: str, process: int | str = "self") -> int:
    """Returns what Linux says of a process's memory: ``VmRSS`` now, ``VmHWM`` at its peak."""
    try:
        text = Path(f"/proc/{process}/status").read_text()
    except OSError:
        return 0
    return int(text.split(f"{name}:")[1].split()[0]) * 1024


def forget_peak() -> None:
    """Lets the peak begin anew, where the kernel allows it, with nothing that is free kept."""
    gc.collect()
    with contextlib.suppress(OSError, AttributeError):
        # arrays get memory of their own, that ends with them: M_MMAP_THRESHOLD of glibc
        ctypes.CDLL(None).mallopt(-3, 2**18)
        ctypes.CDLL(None).malloc_trim(0)
    with contextlib.suppress(OSError):
        Path("/proc/self/clear_refs").write_text("5")


def workers_of(x: Any) -> list[int]:
    """Returns the ids of the processes that read a stream."""
    found = x._shared._workers if isinstance(x, streams.Stream) else None
    return [] if found is None else [one.process.pid for one in found._workers]


def processor_seconds(others: list[int]) -> float:
    """Returns the processor time of this process, all its threads, and some others."""
    ticks = 0
    for process in others:
        with contextlib.suppress(OSError):
            spent = Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()
            ticks += int(spent[11]) + int(spent[12])
    return time.process_time() + ticks / os.sysconf("SC_CLK_TCK")


def main() -> None:
    raw = argparse.RawDescriptionHelpFormatter
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=raw)
    parser.add_argument("--examples", type=int, default=1_281_167)
    parser.add_argument("--resident", type=int, default=512)
    parser.add_argument("--size", type=int, default=224, help="pixels a side, 16 times a number")
    parser.add_argument("--width", type=int, default=256)
    parser.add_argument("--batch", type=int, default=64)
    parser.add_argument("--steps", type=int, default=12)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--workers", type=int, nargs="+", default=[0, 2])
    parser.add_argument("--training-cores", type=int, help="the others are for the workers")
    parser.add_argument("--jpeg", action="store_true")
    parser.add_argument("--json", action="store_true")
    args = parser.parse_args()
    cores = sorted(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else [0]
    if args.training_cores:
        if not args.training_cores < len(cores):
            parser.error(f"--training-cores: expected fewer than the {len(cores)} that there are")
        os.sched_setaffinity(0, cores[: args.training_cores])

    model = network(args.size, args.width)
    method = ju.retrain(model, optimizer=optax.sgd(1e-3))
    variables = model.init(jax.random.key(0))
    labels = np.arange(args.examples, dtype=np.int32) % CLASSES
    photos = Photos(args.examples, args.size, args.jpeg)
    few = np.stack([photos[n] for n in range(args.resident)])

    def train(part: Subset) -> Outcome:
        return ju.unlearn(
            method, variables, Sets(retain=part), jax.random.key(1), steps=args.steps,
            batch_size=args.batch, chunk=1,
        )  # fmt: skip

    def every(x: Any, y: np.ndarray) -> Subset:
        return ju.whole(ju.data.as_examples(x, y))

    sets = {"resident": every(few, labels[: args.resident])}
    opened = {n: ju.data.stream(photos, workers=n, name="photos") for n in args.workers}
    sets |= {f"streamed, workers={n}": every(x, labels) for n, x in opened.items()}
    for part in sets.values():  # compiles, starts workers
        train(part)
        for one in workers_of(part.examples.x) if args.training_cores else ():
            os.sched_setaffinity(one, cores[args.training_cores :])
    rates: dict[str, list[float]] = {name: [] for name in sets}
    spent: dict[str, list[float]] = {name: [] for name in sets}
    for _ in range(args.rounds):
        for name, part in sets.items():
            before = processor_seconds(workers_of(part.examples.x))
            out = train(part)
            rates[name].append(out.examples / out.seconds)
            after = processor_seconds(workers_of(part.examples.x))
            spent[name].append((after - before) / out.examples)
    found: dict[str, dict[str, float]] = {}
    batch_bytes = args.batch * few[0].nbytes
    rng, usual = np.random.default_rng(0), 0
    for name, part in sets.items():
        x = part.examples.x
        found[name] = {
            "images_per_second": statistics.median(rates[name]),
            "ratio_to_resident": statistics.median(
                own / one for own, one in zip(rates[name], rates["resident"], strict=True)
            ),
            "processor_ms_per_image": 1e3 * statistics.median(spent[name]),
            "ratio_at_best": statistics.median(
                one / own for own, one in zip(spent[name], spent["resident"], strict=True)
            ),
        }
        others = [process_bytes("RssAnon", one) for one in workers_of(x)]
        forget_peak()
        before = process_bytes("VmRSS")
        with Held() as held:
            out = train(part)
        grown = process_bytes("VmHWM") - before
        grown += sum(process_bytes("RssAnon", one) for one in workers_of(x)) - sum(others)
        usual = grown if name == "resident" else usual
        if isinstance(x, streams.Stream):
            on_host = held.most
            if workers_of(x):
                gc.collect()
                on_host = sum(len(slot.memory) for slot in x._shared._workers._spare)
                grown += on_host  # which was there before
            rows = rng.integers(0, args.examples, (4, args.batch))
            start = time.perf_counter()
            for some in rows:
                x.read(some)
            found[name] |= {
                "reading_images_per_second": rows.size / (time.perf_counter() - start),
                "batches_on_host": on_host / batch_bytes,
                "process_batches": (grown - usual) / batch_bytes,
            }
    about = {
        "jax": jax.__version__, "python": platform.python_version(),
        "device": jax.devices()[0].device_kind, "cores": len(cores),
        "training_cores": args.training_cores or len(cores),
        "examples": args.examples, "bytes_of_all": args.examples * few[0].nbytes,
        "batch": [args.batch, *few.shape[1:]], "batch_bytes": batch_bytes, "jpeg": args.jpeg,
        "step_bytes": out.memory, "steps": args.steps, "width": args.width,
    }  # fmt: skip
    if args.json:
        print(json.dumps({"about": about, "ways": found}, indent=2))
        return
    print(f"{about}\n")
    columns = {
        "images/s": "images_per_second", "of resident": "ratio_to_resident",
        "processor ms": "processor_ms_per_image", "at best": "ratio_at_best",
        "reading alone": "reading_images_per_second", "on the host": "batches_on_host",
        "all": "process_batches",
    }  # fmt: skip
    print(" " * 24 + "".join(f"{title:>15}" for title in columns))
    for name, own in found.items():
        told = "".join(f"{own[one]:15.2f}" if one in own else "" for one in columns.values())
        print(f"{name:24}{told}")


if __name__ == "__main__":
    main()
