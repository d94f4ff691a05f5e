"""One of several processes that train, forget and judge together; prints what came out as JSON.

``python two_processes.py PROCESSES NUMBER PORT RUNS [STEP]``: with a step, a run ends there.
"""

import json
import os
import sys

import jax
import numpy as np
import pytest

import jaxunlearn as ju
from jaxunlearn import checkpoint
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
from jaxunlearn.experiment import run, stages
from tests import toy
from tests.runs import hurry

CLASSIFIER = Config(
    name="classifier", mesh="fsdp", retrained=1, model=ModelConfig("mlp", {"features": (16,)}),
    train=TrainConfig(epochs=8, batch_size=64), methods={"random_label": {"steps": 3}},
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


def end_at(step):
    """Ends this process where the original is as far as that, as if it was killed."""

    def listener(name, progress):
        if name == "original" and progress is not None and progress.step >= step:
            checkpoint.wait()
            os._exit(7)

    return listener


def main(processes, number, port, runs, *step):
    """Does the same in any number of processes, on four devices altogether."""
    if processes > 1:
        join(processes, f"127.0.0.1:{port}", number)
    found = {}
    with pytest.MonkeyPatch.context() as patch:
        hurry(patch)
        if step:
            patch.setattr(stages, "SAVE_EVERY", 0)
            patch.setattr(stages, "SHARE", 1e9)
            run(CLASSIFIER, runs, listener=end_at(int(step[0])))
        found = {} if processes > 2 and step else direct()
        for config in (CLASSIFIER, GAN, LANGUAGE) if "ALL_KINDS" in os.environ else (CLASSIFIER,):
            report = run(config, runs)
            assert not report.get("failures"), report["failures"]
            found[config.name] = {row["metric"]: row["values"] for row in report["rows"]}
    found["first"] = shared(number)
    print("FOUND" + json.dumps(found))


def direct():
    """Returns what the functions of the library make."""
    sharding, sets, found = ju.make_sharding("fsdp"), toy.sets(), {}
    config = ju.TrainConfig(epochs=3, batch_size=32, learning_rate=5e-3)
    everything = ju.whole(sets.forget.examples)
    original = ju.train(toy.mlp(), everything, jax.random.key(7), config=config, sharding=sharding)
    found["loss"] = original.history["loss"].tolist()
    for name in ("random_label", "neuron_path"):
        made = ju.unlearn(
            toy.method(name), original.variables, sets, jax.random.key(1), batch_size=32,
            sharding=sharding, **toy.ROWS[name][1],
        )  # fmt: skip
        found[name] = weights(made)
    sharding, keys = ju.make_sharding("data"), jax.random.split(jax.random.key(5), 4)
    many = ju.train_many(toy.mlp(), everything, keys, config=config, sharding=sharding)
    found["losses"] = many.history["loss"].tolist()
    made = ju.unlearn_many(
        toy.method("neuron_path"), many.variables, sets, keys, stacked_variables=True,
        batch_size=32, sharding=sharding, **toy.ROWS["neuron_path"][1],
    )  # fmt: skip
    return found | {"many": weights(made)}


def weights(made):
    return np.asarray(gathered(made.variables)["params"]["fc1"]["kernel"]).tolist()


main(int(sys.argv[1]), int(sys.argv[2]), *sys.argv[3:])
