"""What saving an unfinished model costs the training: the copy that is waited for, and the rest.

    python benchmarks/saves.py                     # 4 to 64 MB, then half a minute of training
    python benchmarks/saves.py --megabytes 256 --steps 0
    python benchmarks/saves.py --processes 2       # of one program, arrays over the devices of both

``save``: milliseconds of ``checkpoint.save``, which writes, reads back, compares and sums up;
``blocked``: of ``checkpoint.save_async`` until it returns, ``beside``: of what goes on after that.
Medians of rounds in which both run in turn.

Then an MLP is trained with and without saves in turn, at no interval but the one that keeps them
at 5 % of the time (``experiment.stages.SHARE``). ``saves``: how many, ``first``: seconds to the
first; ``share``: of the time that calls of the keeper took, ``with_beside``: with what went on
beside, all of which counts where the devices are the processor itself; ``ratio``: processor time
with saves over that without. Kills while saves are under way: ``benchmarks/soak.py``.
"""

import argparse
import socket
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from peers.report import about, tell

import jaxunlearn as ju
from jaxunlearn import checkpoint
from jaxunlearn.core.processes import join, meet, several, shared
from jaxunlearn.engine.driver import Progress
from jaxunlearn.engine.sharding import Sharding, make_sharding, place
from jaxunlearn.experiment import stages


def milliseconds(call: Callable[[], Any]) -> tuple[float, Any]:
    begin = time.perf_counter()
    made = call()
    return 1e3 * (time.perf_counter() - begin), made


def over_all() -> Sharding | None:
    return make_sharding("fsdp") if several() else None


def sizes(megabytes: float, rounds: int, folder: Path) -> dict[str, float]:
    """Times saves of twenty arrays."""
    count = int(megabytes * 1e6 / 4 / 20) // 8 * 8
    tree = {str(n): jnp.arange(count, dtype=jnp.float32) + n for n in range(20)}
    if several():
        tree = place(jax.tree.map(np.asarray, tree), over_all())
    path = folder / "saved"
    whole, blocked, beside = [], [], []
    for _ in range(rounds + 1):
        whole.append(milliseconds(lambda: checkpoint.save(path, tree, {}, overwrite=True))[0])
        spent, saving = milliseconds(lambda: checkpoint.save_async(path, tree, {}, overwrite=True))
        saving.result()
        blocked.append(spent)
        beside.append(1e3 * saving.seconds)
    found = {"save": whole, "blocked": blocked, "beside": beside}
    return {"megabytes": megabytes} | {k: statistics.median(v[1:]) for k, v in found.items()}


def trained(steps: int, width: int, folder: Path, *, saves: bool) -> dict[str, float]:
    """Trains for so many steps; with saves or without."""
    rng = np.random.default_rng(0)
    x, y = rng.normal(size=(512, width)).astype(np.float32), np.arange(512, dtype=np.int32) % 10
    model = ju.models.build("mlp", (width,), 10, {"features": (width, width)})
    method = ju.finetune(model)
    sets = ju.Sets(retain=ju.whole(ju.data.as_examples(x, y)))
    keeper = stages.Keeper(stages.Stage(folder / "model", {}))
    began, told, first = time.monotonic(), [], [0.0]

    def on_chunk(progress: Progress) -> None:
        before, begin = keeper.saving, time.perf_counter()
        keeper.keep(progress)
        spent = time.perf_counter() - begin
        saving = keeper.saving
        told.append((spent, saving if saving is not before else None))
        first[0] = first[0] or (time.monotonic() - began if saving is not None else 0.0)

    begin, processor = time.perf_counter(), time.process_time()
    ju.unlearn(
        method, jax.jit(model.init)(jax.random.key(0)), sets, jax.random.key(1), steps=steps,
        batch_size=64, on_chunk=on_chunk if saves else None, sharding=over_all(),
    )  # fmt: skip
    wall, processor = time.perf_counter() - begin, time.process_time() - processor
    checkpoint.wait(folder)
    made = [saving for _, saving in told if saving is not None]
    blocked = sum(spent for spent, _ in told)
    return {
        "seconds": wall, "processor": processor, "saves": len(made), "first": first[0],
        "share": blocked / wall, "with_beside": (blocked + sum(s.seconds for s in made)) / wall,
    }  # fmt: skip


def start(processes: int) -> int:
    """Starts this script so often; the first prints what it found."""
    with socket.socket() as one:
        one.bind(("127.0.0.1", 0))
        address = f"127.0.0.1:{one.getsockname()[1]}"
    words = [sys.executable, *sys.argv, "--joined", address]
    running = [subprocess.Popen([*words, str(number)]) for number in range(processes)]
    return max(one.wait() for one in running)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--megabytes", type=float, nargs="+", default=[4, 16, 64])
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--steps", type=int, default=3000, help="of training; 0: none")
    parser.add_argument("--width", type=int, default=768)
    parser.add_argument("--json", action="store_true")
    parser.add_argument("--processes", type=int, default=1)
    parser.add_argument("--joined", nargs=2, metavar=("HOST:PORT", "NUMBER"), help="by the script")
    options = parser.parse_args()
    if options.processes > 1 and not options.joined:
        sys.exit(start(options.processes))
    if options.joined:
        join(options.processes, options.joined[0], int(options.joined[1]))
    training = []
    with tempfile.TemporaryDirectory() as own:
        home = Path(shared(own))
        rows = [sizes(size, options.rounds, home) for size in options.megabytes]
        # the interval that their cost asks for, no longer one
        stages.SAVE_EVERY = stages.FIRST_SAVE
        for _ in range(options.rounds if options.steps else 0):
            with_saves = trained(options.steps, options.width, home, saves=True)
            without = trained(options.steps, options.width, home, saves=False)
            ratio = with_saves["processor"] / without["processor"]
            training.append({**with_saves, "ratio": ratio})
        meet("measured")
    medians = {k: statistics.median(one[k] for one in training) for k in (training or [{}])[0]}
    if jax.process_index() == 0 and tell(
        about("orbax-checkpoint", options=options), options.json, rows=rows, training=medians
    ):
        for row in (*rows, medians):
            print("  ".join(f"{name} {value:.4g}" for name, value in row.items()))


if __name__ == "__main__":
    main()
