"""One of several processes that train, forget and judge together; prints what came out as JSON.

``python two_processes.py PROCESSES NUMBER PORT RUNS``.
"""

import json
import os
import sys

os.environ["XLA_FLAGS"] = f"--xla_force_host_platform_device_count={4 // int(sys.argv[1])}"
os.environ["NPROC"] = "32"

import jax
import numpy as np

import jaxunlearn as ju
from jaxunlearn.config import ModelConfig
from jaxunlearn.core.processes import gathered, join, shared
from jaxunlearn.experiment import run
from tests import toy


def main(processes, number, port, runs):
    """Does the same in any number of processes, on four devices altogether."""
    if processes > 1:
        join(processes, f"127.0.0.1:{port}", number)
    sharding, sets, found = ju.make_sharding("fsdp"), toy.sets(), {}
    config = ju.TrainConfig(epochs=3, batch_size=32, learning_rate=5e-3)
    original = ju.train(
        toy.mlp(), ju.whole(sets.forget.examples), jax.random.key(7), config=config,
        sharding=sharding,
    )  # fmt: skip
    found["loss"] = original.history["loss"].tolist()
    for name in ("random_label", "neuron_path"):
        made = ju.unlearn(
            toy.method(name), original.variables, sets, jax.random.key(1), batch_size=32,
            sharding=sharding, **toy.ROWS[name][1],
        )  # fmt: skip
        weights = gathered(made.variables)["params"]["fc1"]["kernel"]
        found[name] = np.asarray(weights).tolist()
    report = run(
        ju.Config(
            name="small", mesh="fsdp", retrained=1, model=ModelConfig("mlp", {"features": (16,)}),
            train=ju.TrainConfig(epochs=1, batch_size=64), methods={"random_label": {"steps": 3}},
        ),
        runs,
    )  # fmt: skip
    found["run"] = {row["metric"]: row["values"] for row in report["rows"]}
    found["first"] = shared(number)
    print("FOUND" + json.dumps(found))


main(int(sys.argv[1]), int(sys.argv[2]), sys.argv[3], sys.argv[4])
