"""Do runs survive kills, and each other? Many times, at random points, drawn from a seed.

    nice python benchmarks/soak.py                          # 50, 20 and 20, about 6 minutes
    nice python benchmarks/soak.py --kinds language seeds each retraining bench --pairs 0 --saves 0
    nice python benchmarks/soak.py --kills 6 --saves 4 --pairs 2 --json
    nice python benchmarks/soak.py --together 50 --kills 0 --saves 0 --pairs 0

``kills``: a run of a kind is ended by SIGKILL at a random time after it started, and started
again, several times, until it is left to finish. Every model has to be bit-equal to that of a run
which nobody disturbed, every number of the report the same (but times), and nothing may be left
of the kills. Kinds: a classifier, a GAN, a language model; several seeds and several classes, whose
models are made many in one program; one that spends its time on retrained models; a bench.

``together``: the same with a run of a classifier by two processes, whose arrays lie over both
(``mesh=fsdp``): one of them is killed, or both. The one that is left has to end by itself, with
one line, and the two started again have to go on.

``saves``: a process that writes one checkpoint after the other to the same place is ended by
SIGKILL. What lies there, once mended, has to be one of them, bit-equal, and the next save has
to succeed.

``pairs``: two processes make the same run at once, the second begins at a random time. One
has to end well, the other well or with the line that says who works there; a third finds
every model, bit-equal.

Progress is saved ten times a second instead of every 30 seconds, programs are compiled once
for all, and no pictures are drawn, so that more of the time is that of making models. Each
process imports the library once, in a server that forks the others.
"""

import argparse
import atexit
import contextlib
import json
import multiprocessing
import os
import random
import shutil
import signal
import socket
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np

from jaxunlearn import checkpoint, experiment, report
from jaxunlearn.cli import main as command
from jaxunlearn.experiment import bench, stages, trial

CLASSIFIER = (
    "train.epochs=400", "model.options.features=(24,16)", "retrained=2",
    "methods=neuron_path,finetune", "methods.neuron_path.per_sample=6",
    "methods.neuron_path.neurons=6", "methods.finetune.steps=2000", "methods.finetune.chunk=20",
)  # fmt: skip
GAN = (
    "model.name=mlp_gan", "model.options.latent=8", "model.options.features=(32,32)",
    "train.epochs=30", "train.batch_size=64", "retrained=1", "gan.samples=300", "gan.inverted=2",
    "gan.inversion_steps=2", "gan.downstream_steps=5", "gan.classifier.options.features=(16,)",
    "gan.classifier_train.epochs=3", "methods=cascade", "methods.cascade.steps=20",
    "methods.cascade.pool=512", "methods.cascade.latents=16", "methods.cascade.references=64",
    "methods.cascade.inversion_steps=4", "methods.cascade.chunk=5", "request.classes=0",
)  # fmt: skip
SMALL = (
    "model.options.features=(24,16)",
    "methods.finetune.steps=600",
    "methods.finetune.chunk=20",
)
LANGUAGE = (
    "data.name=authors", "data.unseen=0", "data.options.authors=6", "data.options.questions=3",
    "data.options.facts=2", "data.options.perturbed=2", "model.name=llama",
    "model.options.depth=1", "model.options.width=16", "model.options.heads=2",
    "model.options.context=128", "train.epochs=60", "train.batch_size=4",
    "train.learning_rate=5e-3", "language.vocabulary=400", "language.generated=2",
    "language.answer_length=3", "language.relearning_steps=2", "language.relearning_examples=2",
    "retrained=2", "request.classes=0", "methods=npo", "methods.npo.steps=200",
    "methods.npo.learning_rate=1e-3",
)  # fmt: skip
SEEDS = (*SMALL, "methods=finetune", "train.epochs=200", "seeds=3", "retrained=2")
EACH = (
    *SMALL, "methods=finetune", "train.epochs=200", "retrained=2", "request.each=true",
    "request.classes=0,3,5",
)  # fmt: skip
RETRAINING = (
    "model.options.features=(24,16)", "train.epochs=150", "retrained=5", "methods=random_label",
    "methods.random_label.steps=5",
)  # fmt: skip
BENCH = (
    "bench_digits", "methods=finetune,scrub", "requests=class,random", "seeds=2", "retrained=2",
    "train.epochs=200", "share=0.5", "metrics=()", "preset=None",
    "model.options.features=(24,16)",
)  # fmt: skip
KINDS = {
    "classifier": CLASSIFIER, "gan": GAN, "language": LANGUAGE, "seeds": SEEDS, "each": EACH,
    "retraining": RETRAINING, "bench": BENCH,
}  # fmt: skip
COSTS = ("seconds", "speedup")
"""What names of numbers of the clock hold."""
TOGETHER = (
    "mesh=fsdp", "train.epochs=16", "model.options.features=(24,16)", "retrained=1",
    "methods=finetune", "methods.finetune.steps=60", "methods.finetune.chunk=10",
)  # fmt: skip
NAME = "soak"
"""Of a run's folder."""
MOST_KILLS = 8
"""Kills before a run is left to finish."""
WAIT = 60
"""Seconds after which a process that does not end counts as hanging."""


# what processes do


def make_run(words: list[str], runs: str, programs: str, log: str) -> None:
    """Makes a run as the command line does, its output in a file; ends with its status."""
    with open(log, "wb", buffering=0) as file:
        os.dup2(file.fileno(), 1)
        os.dup2(file.fileno(), 2)
    import jax

    jax.config.update("jax_compilation_cache_dir", programs)
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 0)
    os.environ["JAX_COMPILATION_CACHE_DIR"] = programs
    stages.SAVE_EVERY, stages.SHARE = 0.1, 1.0
    trial.REPEATS = 1
    trial._cold_compilation = contextlib.nullcontext  # type: ignore[assignment]
    report.save_png = lambda made, path: None
    experiment.draw_album = lambda made: []
    bench.save_bench = lambda *given, **more: None
    named = next((word for word in words if word.startswith("name=")), f"name={NAME}")
    status = command(["bench" if words[0] == BENCH[0] else "run", *words, named, "--runs", runs])
    if "--processes" in words:  # an end in which they wait for each other
        atexit._run_exitfuncs()
    os._exit(status)


def tree_of(number: int) -> dict[str, np.ndarray]:
    """Returns the arrays of the checkpoint of a number."""
    rng = np.random.default_rng(number)
    return {name: rng.normal(size=(200, 300)).astype(np.float32) for name in "abc"}


def save_forever(path: str) -> None:
    for number in range(1, 10**6):
        # every other one beside the program, as unfinished models are; the next waits for it
        save = checkpoint.save_async if number % 2 else checkpoint.save
        save(path, tree_of(number), {"n": number}, overwrite=True)


def save_once(path: str, number: int) -> None:
    checkpoint.clean(path)
    checkpoint.save(path, tree_of(number), {"n": number}, overwrite=True)


# what is made of them


class Soak:
    """Processes, their folders, and what is found wrong."""

    def __init__(self, home: Path, seed: int) -> None:
        self.home, self.draw = home, random.Random(seed)
        self.context = multiprocessing.get_context("forkserver")
        self.context.set_forkserver_preload(["__main__", "jaxunlearn.cli", "jaxunlearn.experiment"])
        self.wrong: list[str] = []
        self.whole: dict[str, dict[str, Any]] = {}
        self.seconds: dict[str, float] = {}

    def start(self, kind: str, folder: str, log: str = "log") -> Any:
        runs = self.home / folder
        runs.mkdir(exist_ok=True)
        given = (list(KINDS[kind]), str(runs), str(self.home / "programs"), str(runs / log))
        process = self.context.Process(target=make_run, args=given, daemon=True)
        process.start()
        return process

    def start_together(self, folder: str) -> list[Any]:
        """Starts two processes that make one run."""
        runs = self.home / folder
        runs.mkdir(exist_ok=True)
        with socket.socket() as one:
            one.bind(("127.0.0.1", 0))
            address = f"127.0.0.1:{one.getsockname()[1]}"
        started = []
        for number in range(2):
            words = [*TOGETHER, "--processes", "2", "--coordinator", address]
            words += ["--process-id", str(number)]
            given = (words, str(runs), str(self.home / "programs"), str(runs / f"log{number}"))
            # no daemon: the first starts a process of its own
            started.append(self.context.Process(target=make_run, args=given))
            started[-1].start()
        return started

    def together(self, count: int) -> dict[str, Any]:
        """Kills one or both of two processes so many times."""
        for name in ("together-first", "together-whole"):
            start = time.perf_counter()
            self.end_together(name, self.start_together(name))
            self.seconds["together"] = time.perf_counter() - start
        if self.wrong:
            raise RuntimeError("; ".join(self.wrong))
        self.whole["together"] = self.found("together-whole")
        self.compare("together", "together-first")
        done, runs, during, alone, slowest, begin = 0, 0, 0, 0, 0.0, time.perf_counter()
        while done < count:
            folder = f"together-killed-{runs}"
            for _ in range(min(self.draw.randint(1, MOST_KILLS), count - done)):
                started = self.start_together(folder)
                victims = self.draw.choice([[0], [1], [0, 1]])
                end = time.monotonic() + self.draw.uniform(0, self.seconds["together"])
                while time.monotonic() < end and all(one.is_alive() for one in started):
                    time.sleep(0.02)
                if all(process.is_alive() for process in started):
                    for number in victims:
                        os.kill(started[number].pid, signal.SIGKILL)
                    done += 1
                    alone += len(victims) == 1
                    start = time.perf_counter()
                    for number in {0, 1} - set(victims):
                        self.check_left(started[number], folder, number)
                    slowest = max(slowest, time.perf_counter() - start)
                for process in started:
                    process.join()
                during += any((self.home / folder).rglob("*.unfinished"))
                if not any(process.exitcode for process in started):
                    break  # it was done before the kill
            self.end_together(folder, self.start_together(folder))
            if not any(line.startswith(f"{folder}:") for line in self.wrong):
                self.compare("together", folder)
            if not any(line.startswith(f"{folder}:") for line in self.wrong):
                shutil.rmtree(self.home / folder)
            runs += 1
            print(f"{done} kills of {count}, {len(self.wrong)} faults", file=sys.stderr)
        return {
            "what": "kills of one or both of two processes", "times": done, "runs": runs,
            "of one alone": alone, "slowest end of the other": round(slowest, 1),
            "left unfinished models": during, "seconds": time.perf_counter() - begin,
        }  # fmt: skip

    def check_left(self, process: Any, folder: str, number: int) -> None:
        """Notes where a process whose other was killed does not end by itself with one line."""
        process.join(2 * WAIT)
        text = (self.home / folder / f"log{number}").read_text()
        lines = [line for line in text.splitlines() if line.startswith("error: ")]
        if process.exitcode is None:
            os.kill(process.pid, signal.SIGKILL)
            self.wrong.append(f"{folder}: process {number} goes on alone")
        elif process.exitcode != 1 or len(lines) != 1 or "Traceback" in text:
            self.wrong.append(f"{folder}: {number} ended with {process.exitcode}: {text[-500:]}")

    def end_together(self, folder: str, started: list[Any]) -> None:
        """Waits for two processes that nobody kills."""
        for number, process in enumerate(started):
            process.join(10 * WAIT)
            if process.exitcode != 0:
                text = (self.home / folder / f"log{number}").read_text()[-500:]
                self.wrong.append(f"{folder}: {number} ended with {process.exitcode}: {text}")
                if process.exitcode is None:
                    os.kill(process.pid, signal.SIGKILL)

    def reference(self, kind: str) -> None:
        """Makes the run that nobody disturbs, twice: the second time is that with programs."""
        for name in (f"{kind}-first", f"{kind}-whole"):
            start = time.perf_counter()
            process = self.start(kind, name)
            process.join()
            self.seconds[kind] = time.perf_counter() - start
            if process.exitcode != 0:
                raise RuntimeError((self.home / name / "log").read_text()[-3000:])
        self.whole[kind] = self.found(f"{kind}-whole")
        self.compare(kind, f"{kind}-first")

    def found(self, folder: str) -> dict[str, Any]:
        """Returns the bytes of all models and the numbers of the report, but those of cost."""
        home = self.home / folder / NAME
        models = {}
        for path in sorted(home.rglob("manifest.json")):
            tree, _ = checkpoint.load(path.parent)
            models[str(path.parent.relative_to(home))] = repr(sorted(_flat(tree).items()))
        if (home / "bench.json").exists():
            table = _without_costs(json.loads((home / "bench.json").read_text())["requests"])
            return {"models": models, "rows": json.dumps(table, sort_keys=True)}
        table = json.loads((home / "report.json").read_text())
        rows = {
            row["name"]: (row["values"], row.get("spread"), row.get("floor"))
            for row in table["rows"]
            if row["group"] != "cost" and "speed" not in row["name"]
        }
        return {"models": models, "rows": json.dumps(rows, sort_keys=True)}

    def compare(self, kind: str, folder: str) -> None:
        """Notes what is not as in the run that nobody disturbed, and what is left of kills."""
        try:
            found, wanted = self.found(folder), self.whole[kind]
        except Exception as error:
            self.wrong.append(f"{folder}: {type(error).__name__}: {error}")
            return
        for name, model in wanted["models"].items():
            if found["models"].get(name) != model:
                self.wrong.append(f"{folder}: {name} is another model")
        for name in found["models"].keys() - wanted["models"].keys():
            self.wrong.append(f"{folder}: {name} is a model of no run")
        if found["rows"] != wanted["rows"]:
            self.wrong.append(f"{folder}: the report has other numbers")
        ends = (".tmp", ".old", ".unfinished", ".lock")
        left = [p.name for p in (self.home / folder).rglob("*") if p.name.endswith(ends)]
        if left:
            self.wrong.append(f"{folder}: left over: {left}")

    def kills(self, kind: str, count: int) -> dict[str, Any]:
        """Kills runs so many times together."""
        done, runs, during = 0, 0, 0
        start = time.perf_counter()
        while done < count:
            folder = f"{kind}-killed-{runs}"
            for _ in range(min(self.draw.randint(1, MOST_KILLS), count - done)):
                process = self.start(kind, folder)
                time.sleep(self.draw.uniform(0, self.seconds[kind]))
                if process.is_alive():
                    os.kill(process.pid, signal.SIGKILL)
                    done += 1
                process.join()
                during += any((self.home / folder).rglob("*.unfinished"))
            self.finish(kind, folder)
            runs += 1
        return {
            "what": f"kills of a run ({kind})", "times": done, "runs": runs,
            "left unfinished models": during, "seconds": time.perf_counter() - start,
        }  # fmt: skip

    def finish(self, kind: str, folder: str) -> None:
        process = self.start(kind, folder)
        process.join()
        if process.exitcode != 0:
            text = (self.home / folder / "log").read_text()[-500:]
            self.wrong.append(f"{folder}: ended with {process.exitcode}: {text}")
        else:
            self.compare(kind, folder)
        if not any(line.startswith(f"{folder}:") for line in self.wrong):
            shutil.rmtree(self.home / folder)

    def saves(self, count: int) -> dict[str, Any]:
        """Kills processes that write checkpoints."""
        path, during, mended = self.home / "saves" / "c", 0, 0
        start = time.perf_counter()
        for number in range(count):
            process = self.context.Process(target=save_forever, args=(str(path),), daemon=True)
            process.start()
            deadline = time.monotonic() + 60
            while not path.exists() and time.monotonic() < deadline:
                time.sleep(0.01)
            time.sleep(self.draw.uniform(0, 0.5))
            os.kill(process.pid, signal.SIGKILL)
            process.join()
            during += any(one.name != "c" for one in path.parent.iterdir())
            mended += not path.exists()
            self.check_saved(path, f"kill {number}")
            again = self.context.Process(target=save_once, args=(str(path), 7))
            again.start()
            again.join()
            self.check_saved(path, f"save after kill {number}", 7)
            shutil.rmtree(path.parent)
        return {
            "what": "kills of a checkpoint", "times": count, "runs": count,
            "while it was written": during, "moved back": mended,
            "seconds": time.perf_counter() - start,
        }  # fmt: skip

    def check_saved(self, path: Path, when: str, wanted: int | None = None) -> None:
        """Notes what is not one of the checkpoints that were written."""
        try:
            checkpoint.clean(path)
            tree, record = checkpoint.load(path)
            sound = _flat(tree) == _flat(tree_of(record["n"]))
            if not sound or (wanted is not None and record["n"] != wanted):
                self.wrong.append(f"{when}: another checkpoint")
            if left := [one.name for one in path.parent.iterdir() if one.name != "c"]:
                self.wrong.append(f"{when}: left over: {left}")
        except Exception as error:
            self.wrong.append(f"{when}: {type(error).__name__}: {error}")

    def pairs(self, count: int) -> dict[str, Any]:
        """Makes the same run in two processes at once."""
        told, kinds = 0, list(self.whole)
        start = time.perf_counter()
        for number in range(count):
            kind = kinds[number % len(kinds)]
            folder = f"{kind}-pair-{number}"
            first = self.start(kind, folder, "first")
            time.sleep(self.draw.uniform(0, self.seconds[kind]))
            second = self.start(kind, folder, "second")
            for name, process in (("first", first), ("second", second)):
                process.join()
                text = (self.home / folder / name).read_text()
                refused = process.exitcode == 1 and f"{NAME}: in use by process" in text
                told += refused
                if "Traceback" in text or (process.exitcode != 0 and not refused):
                    self.wrong.append(
                        f"{folder}: {name} ended with {process.exitcode}: {text[-500:]}"
                    )
            if first.exitcode and second.exitcode:
                self.wrong.append(f"{folder}: neither ended well")
            self.finish(kind, folder)
        return {
            "what": "two processes at once", "times": count, "runs": count,
            "told of the other": told, "seconds": time.perf_counter() - start,
        }  # fmt: skip


def _without_costs(value: Any) -> Any:
    if isinstance(value, dict):
        kept = {k: v for k, v in value.items() if not any(word in k for word in COSTS)}
        return {name: _without_costs(inner) for name, inner in kept.items()}
    return [_without_costs(inner) for inner in value] if isinstance(value, list) else value


def _flat(tree: Any, prefix: str = "") -> dict[str, Any]:
    if isinstance(tree, dict):
        parts = [_flat(inner, f"{prefix}/{name}") for name, inner in tree.items()]
        return {name: leaf for part in parts for name, leaf in part.items()}
    return {prefix: (str(tree.dtype), tree.shape, hash(tree.tobytes()))}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--kills", type=int, default=50, help="of runs, shared by the kinds (50)")
    parser.add_argument("--saves", type=int, default=20, help="kills of checkpoints (20)")
    parser.add_argument("--pairs", type=int, default=20, help="of processes at once (20)")
    parser.add_argument("--together", type=int, default=0, help="kills of two processes (0)")
    parser.add_argument("--kinds", nargs="+", choices=KINDS, default=["classifier", "gan"])
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--json", action="store_true", help="print JSON instead of the table")
    options = parser.parse_args()
    start = time.perf_counter()
    with tempfile.TemporaryDirectory(prefix="jaxunlearn-soak-") as home:
        soak, rows = Soak(Path(home), options.seed), []

        def add(row: dict[str, Any]) -> None:
            rows.append({**row, "seconds": round(row["seconds"], 1)})
            print(*(f"{key} {value}" for key, value in rows[-1].items()), sep=", ", file=sys.stderr)

        if options.saves:
            add(soak.saves(options.saves))
        if options.kills or options.pairs:
            for kind in options.kinds:
                soak.reference(kind)
        for number, kind in enumerate(options.kinds):
            share = (options.kills + number) // len(options.kinds)
            if share:
                add(soak.kills(kind, share))
        if options.pairs:
            add(soak.pairs(options.pairs))
        if options.together:
            add(soak.together(options.together))
    from peers.report import about, tell  # JAX with it, which forked processes must not inherit

    told = about(seed=options.seed) | {
        "seconds of a run": {kind: round(value, 1) for kind, value in soak.seconds.items()},
        "seconds": round(time.perf_counter() - start, 1),
    }
    if tell(told, options.json, rows=rows, wrong=soak.wrong):
        for row in rows:
            print(", ".join(f"{key} {value}" for key, value in row.items()))
        print(*soak.wrong, f"{len(soak.wrong)} faults", sep="\n")
    sys.exit(1 if soak.wrong else 0)


if __name__ == "__main__":
    main()
