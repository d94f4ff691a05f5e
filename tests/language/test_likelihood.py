"""Likelihoods against a loop over tokens."""

import jax
import jax.numpy as jnp
import numpy as np

from jaxunlearn.language.likelihood import answer_nll, mean_nll, token_logprobs


def test_each_token_by_a_loop():
    rng = np.random.default_rng(0)
    logits = rng.normal(size=(2, 5, 7)).astype(np.float32)
    tokens = rng.integers(0, 7, (2, 5))
    answer = np.array([[0, 0, 1, 1, 0], [0, 1, 0, 0, 0]], bool)
    texts = {"tokens": jnp.asarray(tokens), "answer": jnp.asarray(answer)}
    found = token_logprobs(jnp.asarray(logits), texts)
    for row in range(2):
        for place in range(5):
            wanted = 0.0
            if answer[row, place]:
                wanted = jax.nn.log_softmax(logits[row, place - 1])[tokens[row, place]]
            np.testing.assert_allclose(found[row, place], wanted, rtol=1e-5)
    total, count = answer_nll(jnp.asarray(logits), texts)
    np.testing.assert_allclose(total, -found.sum(-1), rtol=1e-6)
    assert count.tolist() == [2, 1]
    weight = jnp.asarray([1.0, 0.0])
    np.testing.assert_allclose(
        mean_nll(jnp.asarray(logits), texts, weight), total[0] / 2, rtol=1e-6
    )


def test_an_answer_without_tokens_has_no_likelihood():
    texts = {"tokens": jnp.zeros((1, 3), int), "answer": jnp.zeros((1, 3), bool)}
    assert mean_nll(jnp.zeros((1, 3, 4)), texts) == 0
