"""One of several processes that train, forget and judge together; prints what came out as JSON.

``python two_processes.py PROCESSES NUMBER PORT RUNS``.
"""

import json
import os
import sys

from tests import conftest

FLAGS = [flag for flag in conftest.FLAGS if "device_count" not in flag]
FLAGS += [f"--xla_force_host_platform_device_count={4 // int(sys.argv[1])}"]
os.environ["XLA_FLAGS"] = " ".join(FLAGS)

import jax
import numpy as np
import pytest

import jaxunlearn as ju
from jaxunlearn.config import (
    Config,
    DataConfig,
    GanConfig,
    LanguageConfig,
    ModelConfig,
    Request,
    TrainConfig,
)
from jaxunlearn.core.processes import gathered, join, shared
from jaxunlearn.experiment import run
from tests import toy
from tests.runs import hurry

CLASSIFIER = Config(
    name="classifier", mesh="fsdp", retrained=1, model=ModelConfig("mlp", {"features": (16,)}),
    train=TrainConfig(epochs=1, batch_size=64), methods={"random_label": {"steps": 3}},
)  # fmt: skip
GAN = Config(
    name="gan", mesh="fsdp", retrained=1, data=DataConfig("digits", unseen=100),
    model=ModelConfig("mlp_gan", {"latent": 8, "features": (32, 32)}),
    train=TrainConfig(epochs=6, batch_size=64, learning_rate=1e-3, betas=(0.5, 0.999)),
    kinds={
        "gan": GanConfig(
            classifier=ModelConfig(options={"features": (16,)}),
            classifier_train=TrainConfig(epochs=6, batch_size=64),
            samples=200, inverted=2, inversion_steps=2, downstream_steps=5,
        )
    },
    request=Request(classes=(5,)),
    methods={
        "cascade": {
            "steps": 4, "pool": 512, "latents": 16, "references": 64, "inversion_steps": 4,
        }
    },
)  # fmt: skip
LANGUAGE = Config(
    name="language", mesh="fsdp", retrained=2,
    data=DataConfig(
        "authors", unseen=0, options={"authors": 6, "questions": 3, "facts": 2, "perturbed": 2}
    ),
    model=ModelConfig("llama", {"depth": 1, "width": 16, "heads": 2, "context": 128}),
    train=TrainConfig(epochs=6, batch_size=4, learning_rate=5e-3),
    kinds={
        "language": LanguageConfig(
            vocabulary=400, generated=2, answer_length=3, relearning_steps=2,
            relearning_examples=2,
        )
    },
    request=Request(classes=(0,)), methods={"npo": {"steps": 3, "learning_rate": 1e-3}},
)  # fmt: skip


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
    with pytest.MonkeyPatch.context() as patch:
        hurry(patch)
        for config in (CLASSIFIER, GAN, LANGUAGE):
            report = run(config, runs)
            assert not report.get("failures"), report["failures"]
            found[config.name] = {row["metric"]: row["values"] for row in report["rows"]}
    found["first"] = shared(number)
    print("FOUND" + json.dumps(found))


main(int(sys.argv[1]), int(sys.argv[2]), sys.argv[3], sys.argv[4])
