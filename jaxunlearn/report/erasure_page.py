"""The page of an erasure record: the same as the JSON beside it, for readers who build no models.

Each number stands beside a sentence that says what it is; whatever the page says is in the record.
"""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from jaxunlearn.core.errors import printable
from jaxunlearn.report.text import number

ALIKE, UNCLEAR, TRACE, BEYOND, UNKNOWN = "alike", "unclear", "trace", "beyond", "unknown"
"""Findings of a test: what a difference to the retrained models means."""

FINDINGS = {
    ALIKE: "no difference found",
    UNCLEAR: "not clear",
    TRACE: "a trace remains",
    BEYOND: "differs, otherwise",
    UNKNOWN: "cannot be told",
}

PLAIN = {
    "accuracy_forget": (
        "right answers on the forgotten examples",
        "Share of the forgotten examples that the model still labels correctly.",
    ),
    "accuracy_test_forget": (
        "right answers on others of that kind",
        "The same, of examples of the same kind that it was never trained on.",
    ),
    "accuracy_retain": (
        "right answers on the kept examples",
        "Share of the kept training examples that it labels correctly.",
    ),
    "accuracy_test_retain": (
        "right answers on new examples",
        "Share of new examples, of the kinds that were kept, that it labels correctly.",
    ),
    "accuracy_test": (
        "right answers on all new examples",
        "The same, of new examples of all kinds, the forgotten one included.",
    ),
    "js_to_retrained": (
        "answers unlike those of models that never saw them",
        "How far its answers on the forgotten examples lie from those of models that never saw "
        "them: 0 is the same, 0.693 as far apart as can be.",
    ),
    "loss_attack": (
        "guess whether it was trained on them",
        "A guess, by how sure the model is, whether an example was used for training; share of "
        "right guesses: 0.5 is a coin toss.",
    ),
    "attack_gap": (
        "the guess, beside a coin toss",
        "How much better or worse that guess is than a coin toss: 0 is no better.",
    ),
    "judged_unseen": (
        "forgotten examples taken for new",
        "Share of the forgotten examples that another guess takes for never seen.",
    ),
    "linear_probe": (
        "found inside by a simple classifier",
        "A very simple classifier reads what the model computes inside and says whether an example "
        "is of the forgotten kind; share of right answers: 0.5 is a coin toss. It finds what the "
        "model knows and no longer says.",
    ),
    "relearn_steps": (
        "steps to learn them again",
        "The model is shown the forgotten examples again: so many steps of training until it knows "
        "them. One that still holds something of them needs fewer.",
    ),
    "relearning": (
        "right answers while it learns them again",
        "How many of them it gets right meanwhile, on average: more is faster.",
    ),
    "exact_zeros": (
        "parts cut out",
        "How many of the numbers inside the model became exactly zero, as when parts of it are cut "
        "out.",
    ),
    "after_rounding_4": (
        "right answers after rounding",
        "Share of the forgotten kind that it labels correctly once the numbers inside it were "
        "rounded coarsely, which can uncover what was only covered.",
    ),
    "after_relearning_few": (
        "right answers after a few were shown again",
        "The same, after it was trained a little on 16 of the forgotten examples.",
    ),
    "after_tuning_others": (
        "right answers after training on others",
        "The same, after it was trained a little on examples that were kept.",
    ),
    "forget_share": (
        "pictures of it among those made",
        "Share of the pictures that the model makes which show what was to be forgotten.",
    ),
    "pul": (
        "part of these that was taken away",
        "By how many percent that share fell; below 0 it rose.",
    ),
    "inversion_forget": (
        "error in bringing back a forgotten picture",
        "How badly it reproduces a forgotten picture when one searches for the input that makes "
        "it: larger is safer.",
    ),
    "inversion_unseen": (
        "the same, of new pictures",
        "That error for pictures that it was never trained on, to compare with.",
    ),
    "fid": (
        "distance from real pictures",
        "How far the pictures that it makes are from kept real ones: 0 is not at all.",
    ),
    "membership_auc": (
        "guess whether it was trained on them",
        "A guess, by the part of the model that tells real pictures from made ones, whether a "
        "picture was used for training; share of right guesses: 0.5 is a coin toss.",
    ),
    "membership_gap": (
        "the guess, beside a coin toss",
        "How much better or worse that guess is than a coin toss: 0 is no better.",
    ),
    "discriminator_probe": (
        "found inside by a simple classifier",
        "A very simple classifier reads what that part computes inside and says whether a picture "
        "is of the forgotten kind; share of right answers: 0.5 is a coin toss.",
    ),
    "relearned_share": (
        "pictures of it after learning again",
        "After a little training on the forgotten pictures: share of the pictures that it makes "
        "which show them again.",
    ),
    "probability_forget": (
        "how likely it finds the forgotten answers",
        "Word by word, on average: 1 is certain.",
    ),
    "probability_paraphrase": (
        "the same in other words",
        "How likely it finds the forgotten answers in another wording.",
    ),
    "probability_retain": (
        "how likely it finds the kept answers",
        "Word by word, on average: 1 is certain.",
    ),
    "rouge_forget": (
        "words of the forgotten answers that it writes",
        "Share of the words of these answers that come, in order, in what it writes when asked.",
    ),
    "rouge_retain": (
        "words of the kept answers that it writes",
        "Share of the words of these answers that come, in order, in what it writes when asked.",
    ),
    "truth_ratio_forget": (
        "whether it knows them from wrong answers",
        "1: the forgotten answers are for it as likely as wrong ones; towards 0: it can tell.",
    ),
    "forget_quality": (
        "may it pass for one that never saw them",
        "How well it goes, by a statistical test, with models that never saw the texts: below 0.05 "
        "it is told apart.",
    ),
    "exact_memorisation": (
        "next words that it knows",
        "Share of the words of the forgotten answers that it would write next.",
    ),
    "extraction_strength": (
        "part of an answer that it completes",
        "Share of a forgotten answer that it writes to the end when it is given the rest.",
    ),
    "appearance_forget": (
        "words of the matter in its answers",
        "How often words that belong to the forgotten matter come in what it writes.",
    ),
    "utility": ("its use", "A mean of nine tests on what was kept: 1 is the best."),
    "attack_loss": (
        "guess whether it was trained on them",
        "A guess, by how likely the model finds a text, whether it was used for training; share of "
        "right guesses: 0.5 is a coin toss.",
    ),
    "privacy_leak": (
        "the guess, beside models that never saw them",
        "0 is no leak; far from 0, either way, draws attention to what was forgotten.",
    ),
    "probability_4_bits": (
        "how likely, after rounding",
        "How likely it finds the forgotten answers once the numbers inside it were rounded "
        "coarsely, which can uncover what was only covered.",
    ),
    "probability_relearned": (
        "how likely, after a few were shown again",
        "How likely it finds them after it was trained a little on a few others of them.",
    ),
    "probability_finetuned": (
        "how likely, after training on others",
        "How likely it finds them after it was trained a little on other texts.",
    ),
    "steps_to_relearn": (
        "steps to learn a few again",
        "So many steps of training until it knows a few of them again. One that still holds "
        "something of them needs fewer.",
    ),
}
"""Name and sentence of metrics for readers without knowledge of models.

The page shows these alone; the record holds all.
"""

_GROUPS = {
    "forgetting": "Does it still say what was to be forgotten?",
    "truth": "Is it still inside?",
    "privacy": "Can one tell that it was trained on it?",
    "utility": "What use is it still?",
}
_USE = "utility"


def to_page(record: Mapping[str, Any]) -> str:
    """Returns a record as a page in Markdown; the record's text is shown, never obeyed."""
    lines = [*_head(record), *_request(record), *_made(record), *_tests(record), *_limits(record)]
    lines += _versions(record)
    return printable("\n".join(lines).rstrip() + "\n")


def _head(record: Mapping[str, Any]) -> Iterator[str]:
    found = [one for one in record["findings"] if one["group"] != _USE]
    size = record["request"]["size"]
    yield f"# Erasure record: {record['request']['id']}"
    yield ""
    yield (
        f"The model `{record['model']}` of the run `{record['run']}` was made to forget "
        f"{size:,} training {_plural('example', size)}. It was compared, by "
        f"{_count(len(found), 'test')}, with {_count(record['retraining']['number'], 'model')} "
        "trained anew, which never saw them."
    )
    yield ""
    said = {
        ALIKE: "it differs from these by no more than these do from each other",
        UNCLEAR: "it differs by somewhat more, which may be chance",
        TRACE: "**it differs towards the model before: a trace of what was to be forgotten may "
        "remain**",
        BEYOND: "it differs in another way than the model before: no trace, but a sign that "
        "something was forgotten here",
        UNKNOWN: "this cannot be told",
    }
    for which, words in said.items():
        own = [one for one in found if one["finding"] == which]
        names = [_named(one) for one in own if one["name"] in PLAIN]
        rest = len(own) - len(names)
        further = f"{rest} for specialists, in `record.json`" if rest else ""
        if own:
            yield f"- In {len(own)} {words}: {'; '.join(filter(None, [*names, further]))}."
    yield ""
    yield (
        "A test that finds nothing does not prove that nothing is left. What was not tested, and "
        "how far the tests reach, stands below under *Limits*."
    )
    yield ""


def _named(row: Mapping[str, Any]) -> str:
    name = PLAIN[row["name"]][0]
    return f"{name} (after the attack {row['attack']})" if row.get("attack") else name


def _request(record: Mapping[str, Any]) -> Iterator[str]:
    asked, data = record["request"], record["request"]["data"]
    yield "## What was to be forgotten"
    yield ""
    yield f"- Request: `{asked['id']}`, {asked['text']}."
    yield f"- Examples: {asked['size']:,} of the {asked['of']:,} that the model was trained on."
    yield f"- Data set: `{data['name']}`, fingerprint `{data['fingerprint']}`."
    yield f"- Fingerprint of their positions in it: `{asked['indices_sha256']}`."
    yield f"- Fingerprint of their contents: `{asked['contents_sha256']}`."
    yield ""
    yield (
        "A fingerprint (SHA-256) is a number computed from data: the same data give the same one, "
        "and other data, for all practical purposes, never do. Who still has the examples can "
        "compute it and see that these are meant; who has the number alone cannot read the "
        "examples from it."
    )
    if record.get("trial"):
        yield ""
        one = record["trial"]
        yield f"The run holds several such models; this is that of {one['kind']} {one['number']}."
    yield ""


def _made(record: Mapping[str, Any]) -> Iterator[str]:
    method, models, again = record["method"], record["models"], record["retraining"]
    yield "## How it was done"
    yield ""
    about = f": {method['summary']}" if method.get("summary") else ""
    yield f"- Method: `{method['name']}`{about}."
    settings = ", ".join(f"{k} = {v}" for k, v in method["options"].items()) or "as they come"
    yield f"- Its settings: {settings}."
    yield f"- Model before, `{models['before']['place']}`: `{models['before']['weights_sha256']}`."
    yield f"- Model after, `{record['model']}`: `{models['after']['weights_sha256']}`."
    yield (
        f"- Models to compare with: {again['number']}, each trained from "
        f"{'a given model' if again['given_start'] else 'nothing'} on the {again['examples']:,} "
        f"examples that were kept, alone: {again['epochs']:g} passes through them, in the way the "
        "model before was trained on all. They never saw the forgotten examples, so that they "
        "show what a model looks like that has nothing to forget."
    )
    yield ""


def _tests(record: Mapping[str, Any]) -> Iterator[str]:
    yield "## What was tested"
    yield ""
    yield (
        "*Before*: the model as it was. *After*: the model that was made to forget. *Never saw*: "
        "the mean of the models that never saw the examples. ± tells how exactly a number is "
        "known: other examples, or in the column *never saw* other models of this kind, would "
        "give one within it 95 times in 100. *Chance*: how much two of these differ from each "
        "other, though neither has anything to forget; no smaller difference says anything."
    )
    yield ""
    yield from _rows(record["table"])
    for name, rows in record["attacks"].items():
        yield f"## After an attack: {rows['label']}"
        yield ""
        yield (
            f"All models were first put through `{name}`, an attempt to bring back what they do "
            "not show; then the same was tested again."
        )
        yield ""
        yield from _rows(rows["table"])


def _rows(rows: Sequence[Mapping[str, Any]]) -> Iterator[str]:
    rows = [row for row in rows if row["name"] in PLAIN]
    for group in (name for name in _GROUPS if any(row["group"] == name for row in rows)):
        own = [row for row in rows if row["group"] == group]
        several = any("over" in row for row in own)
        heads = ["test", "before", "after", "never saw", "chance", "finding"]
        if several:
            heads.insert(3, "after, all runs")
        yield f"### {_GROUPS[group]}"
        yield ""
        yield f"| {' | '.join(heads)} |"
        yield f"| :--- |{' ---: |' * (len(heads) - 2)} :--- |"
        for row in own:
            spec = row["format"]
            halves = row["over_examples"]
            cells = [
                PLAIN[row["name"]][0],
                number(row["original"], spec, halves.get("original")),
                number(row["unlearned"], spec, halves.get("unlearned")),
            ]
            over = row.get("over")
            if several:
                whole = over or {}
                cells.append(number(whole.get("unlearned"), spec, whole.get("unlearned_interval")))
            rest = row if over is None else {**over, "interval": over["retrained_interval"]}
            cells += [
                number(rest["retrained"], spec, rest["interval"]),
                number(rest["floor"], spec),
                FINDINGS[row["finding"]] if group != _USE else _use(row),
            ]
            yield f"| {' | '.join(cell.replace('|', '/') for cell in cells)} |"
        yield ""
        for row in own:
            name, means = PLAIN[row["name"]]
            yield f"- *{name}*: {means}"
        yield ""


def _use(row: Mapping[str, Any]) -> str:
    """Returns what a difference in use means: it is no trace of anything."""
    finding = row["finding"]
    return {ALIKE: "as never saw", TRACE: "differs", BEYOND: "differs"}.get(
        finding, FINDINGS[finding]
    )


def _limits(record: Mapping[str, Any]) -> Iterator[str]:
    yield "## Limits"
    yield ""
    for sentence in record["limits"]:
        yield f"- {sentence}"
    yield ""


def _versions(record: Mapping[str, Any]) -> Iterator[str]:
    yield "## How to check this record"
    yield ""
    made = ", ".join(f"{name} {value}" for name, value in record["versions"].items())
    yield (
        "The file `record.json` beside this page holds the same, every setting, and a seal: a "
        "fingerprint of the record that covers this page as well. `jaxunlearn verify` with the "
        "run's folder computes all fingerprints again; with `--metrics` the numbers too. Whoever "
        "may write to the folder could write another record with another seal: note the seal "
        "elsewhere if that matters."
    )
    yield ""
    yield (
        f"Sealed on {record['made']['date']} by jaxunlearn {record['made']['jaxunlearn']}. "
        f"Random choices follow from seed {record['seed']}. Made with {made}."
    )


def _plural(noun: str, number: int) -> str:
    return noun if number == 1 else f"{noun}s"


def _count(number: int, noun: str) -> str:
    return f"{number} {_plural(noun, number)}"
