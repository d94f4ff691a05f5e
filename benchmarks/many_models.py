"""Whether training many models in one program pays, and on which back end.

    python benchmarks/many_models.py                          # the MLP on digits' shape, 8 models
    python benchmarks/many_models.py --model cnn --members 16 # on a GPU: the paper's network
    python benchmarks/many_models.py --json

The same oracles three ways, side by side in one process: one call of ``train`` a model
(``loop``), one program that goes through them one after the other (``in turn``, what CPUs
get), one that vectorises over them (``at once``, what accelerators get). Compilation
apart; medians of runs in turn; one thing to read: seconds a model.
"""

import argparse
import statistics
from collections.abc import Callable
from typing import Any

import jax
import numpy as np
import optax
from peers.report import about, tell

import jaxunlearn as ju
from jaxunlearn.core.types import Sets
from jaxunlearn.data.examples import as_examples
from jaxunlearn.engine.driver import Outcome

SHAPES = {"mlp": (8, 8, 1), "cnn": (28, 28, 1), "resnet8": (32, 32, 3), "resnet18": (32, 32, 3)}


def ways(
    name: str, members: int, steps: int, batch_size: int
) -> dict[str, Callable[[], list[Outcome]]]:
    """Name -> a function that trains all members and returns the outcomes."""
    rng = np.random.default_rng(0)
    x = rng.integers(0, 256, (2048, *SHAPES[name]), np.uint8)
    sets = Sets(retain=ju.whole(as_examples(x, rng.integers(0, 10, 2048))))
    model = ju.models.build(name, SHAPES[name], 10)
    method = ju.retrain(model, optimizer=optax.adam(1e-3))
    keys = jax.random.split(jax.random.key(0), members)
    size: dict[str, Any] = {"steps": steps, "batch_size": batch_size}

    def loop() -> list[Outcome]:
        return [ju.unlearn(method, None, sets, key, **size) for key in keys]

    def together(vectorise: bool) -> list[Outcome]:
        return [ju.unlearn_many(method, None, sets, keys, vectorise=vectorise, **size)]

    return {"loop": loop, "in turn": lambda: together(False), "at once": lambda: together(True)}


def measure(name: str, members: int, steps: int, batch_size: int, repeats: int) -> dict[str, Any]:
    """Seconds a model and seconds to compile for each way."""
    runs = ways(name, members, steps, batch_size)
    # the first call compiles
    compiling = {way: sum(o.compile_seconds for o in run()) for way, run in runs.items()}
    times: dict[str, list[float]] = {way: [] for way in runs}
    for _ in range(repeats):
        for way, run in runs.items():
            times[way].append(sum(outcome.seconds for outcome in run()))
    middle = {way: statistics.median(values) / members for way, values in times.items()}
    return {
        way: {
            "seconds_a_model": middle[way],
            "compile_seconds": compiling[way],
            "ratio_to_loop": middle["loop"] / middle[way],
        }
        for way in runs
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--model", choices=SHAPES, default="mlp")
    parser.add_argument("--members", type=int, default=8)
    parser.add_argument("--steps", type=int, default=64)
    parser.add_argument("--batch", type=int, default=128)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--json", action="store_true", help="print JSON instead of the table")
    options = parser.parse_args()
    found = measure(options.model, options.members, options.steps, options.batch, options.repeats)
    if not tell(about(options=options), options.json, ways=found):
        return
    print(f"{'way':10} {'s a model':>10} {'compile s':>10} {'faster than loop':>17}")
    for way, row in found.items():
        print(
            f"{way:10} {row['seconds_a_model']:10.3f} {row['compile_seconds']:10.1f} "
            f"{row['ratio_to_loop']:16.2f}x"
        )


if __name__ == "__main__":
    main()
