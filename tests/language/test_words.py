"""Concept words: scores by a closed form, words out of tokens, rankings."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxunlearn.core.types import LanguageModel
from jaxunlearn.language.words import answer_attributions, key_of, rank_words, read_answers

WORDS = ["<pad>", "<eos>", "Q:", " Who", " is", " Ada", "Ada", " Love", "lace", "'s", " wrote", "."]


class Pieces:
    """A tokenizer of a few pieces."""

    pad, eos, specials = 0, 1, frozenset({0, 1})

    def token_bytes(self, ids):
        return [b"" if i in self.specials else WORDS[i].encode() for i in np.asarray(ids)]


def bigrams():
    """A model without attention: the logits at t are ``e_t W``."""

    def embed(variables, tokens):
        return variables["params"]["table"][tokens]

    def apply_embedded(variables, embeddings, mask):
        del mask
        return embeddings @ variables["params"]["head"]

    def apply(variables, x):
        return apply_embedded(variables, embed(variables, x["tokens"]), x["mask"])

    keys = jax.random.split(jax.random.key(0))
    size = len(WORDS)
    params = {
        "table": jax.random.normal(keys[0], (size, 5)),
        "head": jax.random.normal(keys[1], (5, size)),
    }
    parts = dict.fromkeys(LanguageModel._fields)
    return LanguageModel(**{**parts, "embed": embed, "apply_embedded": apply_embedded,
                            "apply": apply}), {"params": params}  # fmt: skip


def texts(rows, prompt=3, length=10):
    """Texts whose first tokens are the prompt."""
    tokens, mask = np.zeros((len(rows), length), np.int32), np.zeros((len(rows), length), bool)
    for row, ids in enumerate(rows):
        tokens[row, : len(ids)], mask[row, : len(ids)] = ids, True
    return {"tokens": tokens, "mask": mask, "answer": mask & (np.arange(length) >= prompt)}


ROWS = [[2, 3, 4, 6, 7, 8, 9, 10, 11, 1], [2, 4, 3, 5, 10, 11, 1]]


@pytest.mark.parametrize("baseline", [0, "zero"])
def test_scores_of_a_model_that_reads_one_token_are_differences(baseline):
    model, variables = bigrams()
    x = texts(ROWS)
    found = jax.jit(lambda v, x: answer_attributions(model, v, x, baseline=baseline, nodes=48))(
        variables, x
    )
    table, head = variables["params"]["table"], variables["params"]["head"]
    start = jnp.zeros(5) if baseline == "zero" else table[0]
    wanted = np.zeros((2, 10))
    for row, ids in enumerate(ROWS):
        for t in range(3, len(ids) - 1):
            ends = [jax.nn.log_softmax(e @ head)[ids[t + 1]] for e in (table[ids[t]], start)]
            wanted[row, t] = ends[0] - ends[1]
    np.testing.assert_allclose(found.scores, wanted, atol=2e-4)
    np.testing.assert_allclose(found.gap, 0, atol=2e-4)
    np.testing.assert_allclose(found.score - found.baseline_score, wanted.sum(1), atol=2e-4)


def test_a_baseline_that_there_is_not():
    with pytest.raises(ValueError, match="baseline: expected one of"):
        answer_attributions(*bigrams(), texts(ROWS), baseline="mean")


def test_tokens_merge_to_words():
    answers = read_answers(Pieces(), texts(ROWS), [7, 9])
    assert [(w.text, w.key, w.start, w.stop) for w in answers.words[0]] == [
        ("Ada", "ada", 3, 4), ("Lovelace", "lovelace", 4, 6), ("'s", "", 6, 7),
        ("wrote", "wrote", 7, 8), (".", "", 8, 9),
    ]  # fmt: skip
    assert [key_of(w) for w in ("The", "(Hsiao", "Yu-Hwa's", "--", "1991.", "I'M", "'s")] == [
        "", "hsiao", "yu-hwa", "", "1991", "i'm", "",
    ]  # fmt: skip


def test_positive_scores_are_shared_within_an_answer_and_added_by_topic():
    x = texts([*ROWS, ROWS[1]])
    answers = read_answers(Pieces(), x, [7, 7, 9])
    given = [np.array([1.0, 3.0, 9.0, -2.0, 5.0]), np.array([-1.0, 4.0, 0.0]), np.zeros(3)]
    assert rank_words(answers, given) == {
        7: [("wrote", 1.0), ("lovelace", 0.75), ("ada", 0.25)], 9: []
    }  # fmt: skip
