"""Which locator finds the words that a language model's answers are due to? The deletion test.

    python benchmarks/concept_words.py                         # generated authors
    python benchmarks/concept_words.py --jsonl FILE            # with question and answer, as TOFU's
    python benchmarks/concept_words.py --checkpoint DIR        # a model that knows them already
    python benchmarks/concept_words.py --json

A small Llama and its tokenizer are trained on questions and answers until they are known by heart;
or a checkpoint in the layout of Hugging Face is read, which ``jaxunlearn export`` writes of a run.
Then the words of answers are scored by each locator of ``ju.language.LOCATORS``, and masked one by
one, the highest first. ``area`` is the mean, over 1 to ``--most`` masked words, of the geometric
mean probability of the answer's tokens relative to that of the answer as it is: the smaller, the
better. ``other words`` leaves the tokens of masked words out. Intervals are those of 95 % over
answers (Student's t); *less than random* compares the same answers.

Three tests: ``answer``, by the scores of the answer's own words; ``topic``, by the ranking of all
answers of the topic, as poison is made; ``other filler``, as the first, but with another token in
place of masked words than the baseline of integrated gradients (padding), which might favour them.
The line ``gap`` tells how far integrated gradients are from adding up, relative to the change
between baseline and answer: median and largest of the answers, by baseline and nodes.
"""

import argparse
import json
import time
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from peers.report import about, tell

import jaxunlearn as ju
from jaxunlearn.config import DataConfig
from jaxunlearn.data.sources.authors import load_authors
from jaxunlearn.data.texts import to_texts
from jaxunlearn.language.decoder import DecoderShape, build_decoder
from jaxunlearn.language.locators import Search, by_batch, deletion_table, deletion_text, locate
from jaxunlearn.language.pairs import encode_pairs
from jaxunlearn.language.tokenizer import train_tokenizer
from jaxunlearn.language.words import answer_attributions, rank_words, read_answers


def pairs_of(options: argparse.Namespace) -> tuple[list[str], list[str], np.ndarray]:
    """Returns questions, answers and topics."""
    if not options.jsonl:
        data = load_authors(DataConfig(name="authors"), authors=options.authors, general="none")
        texts = [to_texts(data.train_x[name]) for name in ("question", "answer")]
        return texts[0], texts[1], np.asarray(data.train_y)
    lines = Path(options.jsonl).read_text(encoding="utf-8").splitlines()
    rows = [json.loads(line) for line in lines if line.strip()][: options.pairs]
    # a topic is an author, of whom TOFU asks twenty times in a row
    topics = np.arange(len(rows)) // 20
    return [row["question"] for row in rows], [row["answer"] for row in rows], topics


def gaps(search: Search, nodes: tuple[int, ...]) -> list[dict[str, Any]]:
    """Returns how far integrated gradients are from adding up."""
    found = []
    for name, baseline in (("pad", search.answers.tokenizer.pad), ("zero", "zero")):
        for count in nodes:

            @jax.jit
            def run(
                variables: Any, x: Any, baseline: Any = baseline, count: int = count
            ) -> jax.Array:
                return answer_attributions(
                    search.model, variables, x, baseline=baseline, nodes=count
                ).relative_gap

            gap = by_batch(lambda x: run(search.variables, x), search.answers.x)
            found.append(
                {"baseline": name, "nodes": count, "median": float(np.median(gap)),
                 "largest": float(gap.max())}
            )  # fmt: skip
    return found


def known(
    options: argparse.Namespace, questions: list[str], answers: list[str], topics: np.ndarray
) -> tuple[Any, Any, Any, dict[str, np.ndarray]]:
    """Returns tokenizer, model and variables that know the answers, and these in tokens."""
    if options.checkpoint:
        tokenizer = ju.language.load_tokenizer(options.checkpoint)
        model, variables = ju.language.load_pretrained(options.checkpoint)
        return tokenizer, model, variables, encode_pairs(tokenizer, questions, answers)
    tokenizer = train_tokenizer([*questions, *answers], options.tokens)
    x = encode_pairs(tokenizer, questions, answers)
    heads = max(1, options.width // 32)
    model = build_decoder(
        DecoderShape(
            "llama", tokenizer.size, x["tokens"].shape[1], depth=options.depth,
            width=options.width, heads=heads, kv_heads=heads, head_dim=options.width // heads,
            hidden=2 * options.width,
        )
    )  # fmt: skip
    examples = ju.data.as_examples(x, topics.astype(np.int32))
    optimizer = optax.adamw(optax.cosine_decay_schedule(options.rate, options.steps))
    trained = ju.unlearn(
        ju.lm_retrain(model, optimizer=optimizer), None, ju.Sets(retain=ju.whole(examples)),
        key=jax.random.key(options.seed), steps=options.steps, batch_size=options.batch,
    )  # fmt: skip
    return tokenizer, model, trained.variables, x


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--jsonl", help="questions and answers, a line each (generated authors)")
    parser.add_argument("--checkpoint", help="folder of a model that knows them (one is trained)")
    parser.add_argument("--pairs", type=int, default=200, help="of the file, at most (200)")
    parser.add_argument("--authors", type=int, default=40, help="that are generated (40)")
    parser.add_argument("--tokens", type=int, default=1024, help="of the vocabulary (1024)")
    parser.add_argument("--width", type=int, default=128)
    parser.add_argument("--depth", type=int, default=3)
    parser.add_argument("--steps", type=int, default=1000, help="of training (1000)")
    parser.add_argument("--batch", type=int, default=16)
    parser.add_argument("--rate", type=float, default=2e-3, help="of AdamW (.002)")
    parser.add_argument("--answers", type=int, default=60, help="that are tested, evenly (60)")
    parser.add_argument("--most", type=int, default=5, help="words that are masked (5)")
    parser.add_argument("--nodes", type=int, nargs="+", default=[32, 64])
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--json", action="store_true", help="print JSON instead of the tables")
    options = parser.parse_args()
    start = time.perf_counter()
    questions, answers, topics = pairs_of(options)
    tokenizer, model, variables, x = known(options, questions, answers, topics)
    length, key = x["tokens"].shape[1], jax.random.key(options.seed)
    shown = np.unique(np.linspace(0, len(topics) - 1, options.answers).astype(int))
    rest = np.setdiff1d(np.arange(len(topics)), shown)
    parts = [
        read_answers(tokenizer, {name: leaf[rows] for name, leaf in x.items()}, topics[rows])
        for rows in (shown, rest)
    ]
    search = Search(model, variables, parts[0], parts[1] if len(rest) else None, key)
    found = parts[0].x
    nll, count = ju.language.answer_nll(
        model.apply(variables, jax.tree.map(jnp.asarray, dict(found))), found
    )
    other = int(tokenizer.encode_after(" the")[0])
    tests = {
        "answer": deletion_table(search, most=options.most),
        "topic": deletion_table(search, most=options.most, order="topic"),
        "other filler": deletion_table(search, most=options.most, filler=other),
    }
    gap = gaps(search, tuple(options.nodes))
    timed = time.perf_counter()
    scores = locate(search)
    seconds = time.perf_counter() - timed
    ranked = rank_words(parts[0], scores)
    told = about(
        options=options, without=("jsonl", "checkpoint"), dtype="float32", length=length,
        probability=round(float(jnp.mean(jnp.exp(-nll / count))), 4),
        seconds_of_scores=round(seconds, 2), seconds=round(time.perf_counter() - start, 1),
    )  # fmt: skip
    rows = [{"test": test, **row} for test, table in tests.items() for row in table]
    if not tell(told, options.json, rows=rows, gap=gap):
        return
    for row in gap:
        ends = f"median {row['median']:.2g}, largest {row['largest']:.2g}"
        print(f"gap, baseline {row['baseline']}, {row['nodes']} nodes: {ends}")
    for test, table in tests.items():
        print(f"\n{test}\n\n{deletion_text(table)}")
    for topic, words in list(ranked.items())[:5]:
        print(f"topic {topic}: " + ", ".join(f"{word} {score:.2f}" for word, score in words[:8]))


if __name__ == "__main__":
    main()
