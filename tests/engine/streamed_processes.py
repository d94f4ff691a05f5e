"""One of several processes that stream: each reads its part; prints what came out as JSON.

``python streamed_processes.py PROCESSES NUMBER PORT WORKERS BAD``: from the position ``BAD`` on
the source has no records, though its length says so.
"""

import json
import sys
import time

import jax
import numpy as np

import jaxunlearn as ju
from jaxunlearn.core.processes import gathered, join
from jaxunlearn.engine.predict import predict
from tests import toy
from tests.data.stream_sources import X, Y


class Read:
    """Images that count who asks for them."""

    def __init__(self, ends):
        self.ends, self.count = ends, 0

    def __len__(self):
        return len(X)

    def __getitem__(self, position):
        self.count += 1
        if position >= self.ends:
            raise IndexError("no such record")
        return X[position]


def weights(made):
    return np.asarray(gathered(made.variables)["params"]["fc1"]["kernel"]).tolist()


def main(processes, number, port, workers, ends):
    """Does the same in any number of processes, on four devices altogether."""
    if processes > 1:
        join(processes, f"127.0.0.1:{port}", number)
    sharding, key = ju.make_sharding("fsdp"), jax.random.key(7)
    source = Read(int(ends))
    x = ju.data.stream(source, workers=int(workers), name="photos")
    sets = ju.make_sets(x, Y, ju.forget_class(1))
    config = ju.TrainConfig(epochs=3, batch_size=32, learning_rate=5e-3)
    print(f"BEGUN{time.time()}", flush=True)
    source.count = 0
    original = ju.train(toy.mlp(), sets.train, key, config=config, sharding=sharding)
    read = source.count
    found = {"loss": original.history["loss"].tolist(), "original": weights(original)}
    for name in ("finetune", "loss_free_ssd"):  # by batches; and before the first step
        made = ju.unlearn(
            toy.method(name), original.variables, sets, key, batch_size=32, sharding=sharding,
            **toy.ROWS[name][1],
        )  # fmt: skip
        found[name] = weights(made)
    found["logits"] = predict(
        toy.mlp().apply, gathered(original.variables), sets.forget, 32
    ).logits.tolist()
    if not int(workers):
        assert read == 32 * original.steps // processes, read
    print("FOUND" + json.dumps(found))


main(int(sys.argv[1]), int(sys.argv[2]), *sys.argv[3:])
