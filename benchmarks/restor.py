"""Does unlearning bring back what a language model knew before it was taught false facts?

    python benchmarks/restor.py                # 3 seeds
    python benchmarks/restor.py --json

A toy after RESTOR (Rezaei et al., arXiv 2411.00204): a fact is a subject, a relation and an object,
a token each. A small Llama learns all true facts by heart (*clean*); then it is trained on
false ones about some of the subjects, mixed with true ones about others (*corrupted*). Methods are
given the corrupted model, the false facts to forget and true facts about the *other* subjects to
retain: nothing tells them what is true of the corrupted ones. *Retrained* is exact unlearning:
another model that learns the true facts, and never sees false ones.

Each corrupted fact is asked with options: the true object, the false one and random others; the
likeliest one, per token, counts. ``correct``: how often that is the true one; ``false``: the false
one, which forgetting has to undo; ``recovery``: ``(correct - correct of corrupted) / (correct of
clean - correct of corrupted)``, which for a model that knows nothing of these subjects is
``chance``. ``others``: how often facts about other subjects are answered rightly, among as many
options. Means over seeds, with Student's 95 % interval.
"""

import argparse
import functools
import time
from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from peers.report import about, tell

import jaxunlearn as ju
from jaxunlearn.core.statistics import estimate
from jaxunlearn.core.types import LanguageModel, Sets, Subset, Unlearner, Variables
from jaxunlearn.language.decoder import DecoderShape, build_decoder
from jaxunlearn.metrics.answers import mean_over, option_accuracy, recovery
from jaxunlearn.metrics.language_attacks import score_tokens


class Facts(NamedTuple):
    """Objects of each subject and relation, and the options that each fact is asked with.

    Attributes:
      true, false: ``int [S, R]``, tokens.
      options: ``int [S, R, K]``: the true object, the false one, others.
    """

    true: np.ndarray
    false: np.ndarray
    options: np.ndarray


def draw_facts(options: argparse.Namespace, seed: int) -> Facts:
    """Draws facts; objects of a relation are equally likely, true and false ones differ."""
    rng = np.random.default_rng(seed)
    count = options.subjects * options.relations
    ranked = rng.random((count, options.objects)).argsort(axis=1)
    first = options.subjects + options.relations
    tokens = (first + ranked[:, : options.options]).reshape(
        options.subjects, options.relations, options.options
    )
    return Facts(tokens[..., 0], tokens[..., 1], tokens)


def texts(objects: np.ndarray, subjects: Sequence[int], end: int) -> dict[str, np.ndarray]:
    """Writes facts about subjects as tokens: subject, relation, object, end.

    Args:
      objects: ``int [S, R, K]``, ``K`` facts in place of one.
    """
    chosen = objects[np.asarray(subjects)]
    subject, relation, _ = np.indices(chosen.shape)
    columns = [
        np.asarray(subjects)[subject], len(objects) + relation, chosen, np.full(chosen.shape, end)
    ]  # fmt: skip
    tokens = np.stack(columns, axis=-1).reshape(-1, 4).astype(np.int32)
    mask = np.ones(tokens.shape, bool)
    return {"tokens": tokens, "mask": mask, "answer": mask & (np.arange(4) > 1)}


def as_set(x: dict[str, np.ndarray]) -> Subset:
    return ju.whole(ju.data.as_examples(x, np.zeros(len(x["tokens"]), np.int32)))


def joined(*parts: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    return {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}


@functools.cache
def methods(model: LanguageModel, rate: float) -> dict[str, Unlearner]:
    """Returns the methods: the same objects for all seeds, which share their programs."""
    optimizer = optax.adam(rate / 3)
    return {
        "learn": ju.lm_retrain(model, optimizer=optax.adam(rate)),
        "fine-tuning": ju.lm_finetune(model, optimizer=optimizer),
        "gradient-ascent": ju.lm_gradient_ascent(model, optimizer=optimizer),
        "grad-diff": ju.grad_diff(model, optimizer=optimizer),
        "npo": ju.npo(model, optimizer=optimizer),
        "simnpo": ju.simnpo(model, optimizer=optimizer),
        "task-vector": ju.task_vector(model, optimizer=optimizer),
    }


def run(model: LanguageModel, options: argparse.Namespace, seed: int) -> list[dict[str, Any]]:
    """Returns a row for each model."""
    facts, end = draw_facts(options, seed), model.shape.vocabulary - 1
    wrong = np.random.default_rng(seed).permutation(options.subjects)[: options.corrupted]
    others = np.setdiff1d(np.arange(options.subjects), wrong)
    true, false = facts.true[..., None], facts.false[..., None]
    knowledge, falsehoods = texts(true, range(options.subjects), end), texts(false, wrong, end)
    unrelated = texts(true, others, end)
    clean_key, other_key, taught_key, key = jax.random.split(jax.random.key(seed), 4)

    def train(method: Unlearner, variables: Variables, sets: Sets, key: Any, steps: int) -> Any:
        found = ju.unlearn(method, variables, sets, key, steps=steps, batch_size=options.batch)
        return found.variables

    known = methods(model, options.rate)
    everything = Sets(retain=as_set(knowledge))
    clean = train(known["learn"], None, everything, clean_key, options.steps)
    retrained = train(known["learn"], None, everything, other_key, options.steps)
    some = {name: leaf[: len(falsehoods["tokens"])] for name, leaf in unrelated.items()}
    mixed = Sets(retain=as_set(joined(falsehoods, some)))
    corrupted = train(known["fine-tuning"], clean, mixed, taught_key, options.taught)
    models = {"clean": clean, "corrupted": corrupted, "retrained": retrained}
    sets = Sets(forget=as_set(falsehoods), retain=as_set(unrelated))
    for name in options.methods or [name for name in known if name != "learn"]:
        models[name] = train(known[name], corrupted, sets, key, options.unlearning)

    def scores(variables: Variables, subjects: np.ndarray) -> np.ndarray:
        found = score_tokens(model, variables, texts(facts.options, subjects, end))
        return mean_over(found.logprobs, found.answer).reshape(-1, options.options)

    asked = {name: scores(variables, wrong) for name, variables in models.items()}
    return [
        {
            "model": name,
            "correct": option_accuracy(own),
            "false": option_accuracy(np.roll(own, -1, axis=1)),
            "recovery": recovery(asked["clean"], asked["corrupted"], own),
            "others": option_accuracy(scores(models[name], others)),
        }
        for name, own in asked.items()
    ]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--subjects", type=int, default=60)
    parser.add_argument("--relations", type=int, default=4)
    parser.add_argument("--objects", type=int, default=30)
    parser.add_argument("--options", type=int, default=10, help="that a fact is asked with (10)")
    parser.add_argument("--corrupted", type=int, default=6, help="subjects (6)")
    parser.add_argument("--width", type=int, default=64)
    parser.add_argument("--depth", type=int, default=2)
    parser.add_argument("--steps", type=int, default=600, help="of training (600)")
    parser.add_argument("--taught", type=int, default=100, help="steps on false facts (100)")
    parser.add_argument("--unlearning", type=int, default=60, help="steps of each method (60)")
    parser.add_argument("--methods", nargs="*", help="that are tried, fine-tuning or npo (all)")
    parser.add_argument("--batch", type=int, default=32)
    parser.add_argument("--rate", type=float, default=3e-3, help="of Adam; later a third (.003)")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--json", action="store_true", help="print JSON instead of the table")
    options = parser.parse_args()
    start = time.perf_counter()
    size = options.subjects + options.relations + options.objects + 1
    heads = max(1, options.width // 16)
    model = build_decoder(
        DecoderShape(
            "llama", size, 4, depth=options.depth, width=options.width, heads=heads,
            kv_heads=heads, head_dim=options.width // heads, hidden=4 * options.width,
        )
    )  # fmt: skip
    each = [run(model, options, seed) for seed in range(options.seeds)]
    rows = []
    for same in zip(*each, strict=True):
        row: dict[str, Any] = {"model": same[0]["model"]}
        for name in ("correct", "false", "recovery", "others"):
            found = estimate([one[name] for one in same])
            row[name], row[f"{name}_interval"] = found.mean, found.interval
        rows.append(row)
    told = about(
        options=options, without=("methods",), dtype=str(jnp.float32.dtype),
        chance=1 / options.options, seconds=round(time.perf_counter() - start, 1),
    )  # fmt: skip
    if not tell(told, options.json, rows=rows):
        return
    print("\n| model | correct | false | recovery | others |\n| --- | ---: | ---: | ---: | ---: |")
    for row in rows:
        cells = [row["model"]]
        for name in ("correct", "false", "recovery", "others"):
            interval = row[f"{name}_interval"]
            cells.append(f"{row[name]:.2f}" + ("" if interval is None else f" ± {interval:.2f}"))
        print(f"| {' | '.join(cells)} |")


if __name__ == "__main__":
    main()
