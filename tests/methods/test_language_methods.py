"""Every method for language models: one step against its formula, and what the formula implies."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import jaxunlearn as ju
from jaxunlearn.core.trees import named_leaves
from jaxunlearn.core.types import Batch, Batches
from jaxunlearn.language.likelihood import answer_nll
from jaxunlearn.methods.language.eul import fuse, input_grams
from jaxunlearn.methods.language.preference import _any
from jaxunlearn.methods.language.terms import reference_nll
from tests import toy

RATE = 0.1
SLOTS = {"forget": [3, 0, 7, 2], "retain": [5, 1, 0, 9]}


@functools.cache
def two_models():
    """An original, and a model that a method has brought some way from it."""
    draw = toy.language_model().init
    near = jax.tree.map(lambda a, b: a + 0.3 * b, draw(jax.random.key(0)), draw(jax.random.key(9)))
    return draw(jax.random.key(0)), near


def batch(name):
    """Four examples of a set, the last of which counts nothing."""
    part, slots = getattr(toy.text_sets(), name), jnp.asarray(SLOTS[name], jnp.int32)
    at = part.indices[slots]
    x = jax.tree.map(lambda leaf: leaf[at], part.examples.x)
    return Batch(x, part.examples.y[at], jnp.asarray([1.0, 1, 1, 0]), slots)


def step_of(name, **options):
    """One step of descent from the second model, and the state before it."""
    given = {"rate": RATE, **options}
    method = toy.LANGUAGE_METHODS[name](
        toy.language_model(), optimizer=optax.sgd(given.pop("rate")), **given
    )
    original, near = two_models()
    sets, key, more = toy.text_sets(), jax.random.key(4), ()
    if method.prepare is not None:
        more = (method.prepare.run(original, sets, key),)
    state = jax.jit(method.init)(original, sets, key, *more)
    before = state._replace(variables=near)
    if state.adapters is not None:
        grown = jax.tree.map(lambda leaf: leaf + 0.2, state.adapters.b)
        before = before._replace(adapters=state.adapters._replace(b=grown))
    batches = Batches(forget=batch("forget"), retain=batch("retain"))
    after, info = jax.jit(method.step)(before, batches, jax.random.key(5), jnp.int32(0))
    return before, after, info, method


# --- formulas, written anew: three examples, sliced to what stands before each token


def logps(variables, x):
    """log p of every word at every place but the first, ``[3, T - 1, V]``."""
    logits = toy.language_model().apply(variables, x)[:3, :-1]
    return logits - jax.scipy.special.logsumexp(logits, axis=-1, keepdims=True)


def own(table, x):
    """That of the words that stand there, and where these are an answer's."""
    tokens, answer = x["tokens"][:3, 1:], x["answer"][:3, 1:].astype(jnp.float32)
    rows, places = np.ogrid[:3, : tokens.shape[1]]
    return table[rows, places, tokens], answer


def per_token(values, answer):
    return (values * answer).sum() / answer.sum()


def mean_logp(variables, x):
    return per_token(*own(logps(variables, x), x))


def sums(variables, x):
    values, answer = own(logps(variables, x), x)
    return -(values * answer).sum(axis=1), answer.sum(axis=1)


def soft(z, beta):
    return -2 / beta * jnp.log(1 / (1 + jnp.exp(-beta * z)))


def kl(before, after, x):
    old, new = logps(before, x), logps(after, x)
    return per_token((jnp.exp(old) * (old - new)).sum(-1), own(old, x)[1])


def first(x):
    return {name: leaf[:, 0] for name, leaf in x["variants"]["perturbed"].items()}


def prefer(theta, old, x, other, beta=0.1):
    ours = sums(old, x)[0] - sums(theta, x)[0]
    theirs = sums(old, other)[0] - sums(theta, other)[0]
    return soft(theirs - ours, beta).mean()


def weighted(theta, x, weigh):
    values, answer = own(logps(theta, x), x)
    return per_token(weigh(jax.lax.stop_gradient(jnp.exp(values))) * values, answer)


def toward(theta, x, aim, skip=0):
    ours = logps(theta, x)
    onehot = jnp.arange(toy.WORDS)[None, None] == x["tokens"][:3, 1:, None]
    answer = own(ours, x)[1]
    answer = jnp.where(answer.cumsum(axis=1) > skip, answer, 0)
    return -per_token((aim(jax.lax.stop_gradient(ours), onehot) * ours).sum(-1), answer)


def states(theta, x, block):
    return toy.language_model().states(theta, x)[block + 1][:3]


def squared(ours, theirs, x):
    return per_token(((ours - theirs) ** 2).mean(-1), x["answer"][:3].astype(jnp.float32))


def eul(theta, old, f, r):
    before, after = logps(old, f), logps(theta, f)
    apart = (jnp.exp(before) * (before - after)).sum(-1)
    values, answer = own(after, f)
    climbed = per_token(jnp.minimum(apart, 0.5) + 0.2 * jnp.minimum(-values, 0.5), answer)
    return 0.8 * kl(old, theta, r) - mean_logp(theta, r) - climbed


FORMULAS = {
    "lm_retrain": ({}, lambda t, o, f, r, p: -mean_logp(t, r)),
    "lm_finetune": ({}, lambda t, o, f, r, p: -mean_logp(t, r)),
    "lm_gradient_ascent": ({}, lambda t, o, f, r, p: mean_logp(t, f)),
    "grad_diff": (
        {"forget_weight": 0.5, "retain_weight": 3.0},
        lambda t, o, f, r, p: 0.5 * mean_logp(t, f) - 3 * mean_logp(t, r),
    ),
    "grad_diff, kl": (
        {"retain": "kl", "retain_weight": 3.0},
        lambda t, o, f, r, p: mean_logp(t, f) + 3 * kl(o, t, r),
    ),
    "grad_diff, embedding": (
        {"retain": "embedding"},
        lambda t, o, f, r, p: mean_logp(t, f) + squared(states(t, r, 1), states(o, r, 1), r),
    ),
    "npo": (
        {"beta": 0.3},
        lambda t, o, f, r, p: soft(sums(t, f)[0] - sums(o, f)[0], 0.3).mean() - mean_logp(t, r),
    ),
    "simnpo": (
        {"beta": 2.5, "margin": 0.4},
        lambda t, o, f, r, p: (
            0.125 * soft(sums(t, f)[0] / sums(t, f)[1] - 0.4 / 2.5, 2.5).mean() - mean_logp(t, r)
        ),
    ),
    "wga": (
        {"power": 0.7},
        lambda t, o, f, r, p: weighted(t, f, lambda q: q**0.7) - mean_logp(t, r),
    ),
    "sat_imp": (
        {"saturation": 2.0, "importance": 1.5},
        lambda t, o, f, r, p: (
            0.1 * weighted(t, f, lambda q: q**2 * (1 - q) ** 1.5) - mean_logp(t, r)
        ),
    ),
    "undial": (
        {"strength": 3.0},
        lambda t, o, f, r, p: toward(
            t,
            f,
            lambda _, there: jax.nn.softmax(
                jnp.where(there, logps(o, f) - 3, logps(o, f)), axis=-1
            ),
        ),
    ),
    "ce_u": (
        {"skip": 1},
        lambda t, o, f, r, p: toward(
            t, f, lambda z, there: jax.nn.softmax(jnp.where(there, -1e9, z), axis=-1), skip=1
        ),
    ),
    "dpo": ({}, lambda t, o, f, r, p: prefer(t, o, f, first(f)) - mean_logp(t, r)),
    "idk_dpo": (
        {"retain_weight": 0.0},
        lambda t, o, f, r, p: prefer(
            t, o, f, {name: leaf[jnp.asarray(SLOTS["forget"])] for name, leaf in p.others.items()}
        ),
    ),
    "rmu": (
        {"retain_weight": 2.0},
        lambda t, o, f, r, p: (
            squared(states(t, f, 0), p[None, None], f)
            + 2 * squared(states(t, r, 0), states(o, r, 0), r)
        ),
    ),
    "eul": ({"cap": 0.5, "lora": 1}, lambda t, o, f, r, p: eul(t, o, f, r)),
    "task_vector": ({}, lambda t, o, f, r, p: -mean_logp(t, f)),
}


@pytest.mark.parametrize("name", FORMULAS)
def test_a_step_follows_the_formula(name):
    options, formula = FORMULAS[name]
    before, after, info, method = step_of(name.partition(",")[0], **options)
    original, near = two_models()
    forget, retain = batch("forget").x, batch("retain").x
    if before.adapters is not None:
        original, near = before.variables, method.result(before)
    value, slope = jax.jit(jax.value_and_grad(formula))(
        near, original, forget, retain, before.prepared
    )
    np.testing.assert_allclose(info.metrics["loss"], value, rtol=2e-5, atol=1e-6)
    if before.adapters is not None:
        pick = lambda tree: tree["blocks_1"]["mlp"]["down"]["kernel"]  # noqa: E731
        (a, b), whole = map(pick, before.adapters), pick(slope["params"])
        np.testing.assert_allclose(pick(after.adapters.a), a - RATE * 2 * whole @ b.T, atol=1e-6)
        np.testing.assert_allclose(pick(after.adapters.b), b - RATE * 2 * a.T @ whole, atol=1e-6)
        return
    frozen = "blocks_1|embedding|head" if name == "rmu" else "$."
    for path, leaf in named_leaves(near).items():
        moves = not any(part in path for part in frozen.split("|"))
        wanted = leaf - RATE * named_leaves(slope)[path] if moves else leaf
        np.testing.assert_allclose(
            named_leaves(after.variables)[path], wanted, atol=2e-6, err_msg=path
        )


def test_every_method_has_a_formula():
    missing = {"alt_po", "concept_words"}  # below, and in a file of its own
    assert {name.partition(",")[0] for name in FORMULAS} | missing == set(toy.LANGUAGE_METHODS)


# --- what the formulas imply


def change(name, **options):
    """The gradient of a method at the original, by its step."""
    method = toy.LANGUAGE_METHODS[name](
        toy.language_model(), optimizer=optax.sgd(1.0), retain_weight=0.0, **options
    )
    original = two_models()[0]
    state = jax.jit(method.init)(original, toy.text_sets(), jax.random.key(4))
    batches = Batches(forget=batch("forget"))
    after, info = jax.jit(method.step)(state, batches, jax.random.key(5), jnp.int32(0))
    return jax.tree.map(lambda a, b: a - b, original, after.variables), info.metrics


def close(a, b, **tolerance):
    jax.tree.map(lambda x, y: np.testing.assert_allclose(x, y, **tolerance), a, b)


def test_npo_begins_as_gradient_ascent_whatever_beta():
    original, x = two_models()[0], batch("forget").x
    ascent = jax.jit(jax.grad(lambda t: -sums(t, x)[0].mean()))(original)
    for beta in (0.1, 2.0):
        slope, metrics = change("npo", beta=beta)
        close(slope, ascent, atol=2e-6)
        np.testing.assert_allclose(metrics["forget"], 2 / beta * np.log(2), rtol=1e-6)


def test_npo_tends_to_gradient_ascent_as_beta_tends_to_nothing():
    near, x = two_models()[1], batch("forget").x
    ascent = jax.jit(jax.grad(lambda t: -sums(t, x)[0].mean()))(near)
    _, after, _, _ = step_of("npo", beta=1e-5, retain_weight=0.0)
    close(jax.tree.map(lambda a, b: (a - b) / RATE, near, after.variables), ascent, atol=2e-4)


def test_undial_without_strength_rests_at_the_teacher():
    slope, _ = change("undial", strength=0.0)
    close(slope, jax.tree.map(jnp.zeros_like, slope), atol=1e-6)


def test_weighted_ascent_without_weights_is_gradient_ascent():
    slope, _ = change("wga", power=0.0)
    other, _ = change("sat_imp", saturation=0.0, importance=0.0, forget_weight=1.0)
    close(slope, other, atol=1e-7)
    x = batch("forget").x
    close(slope, jax.jit(jax.grad(lambda t: mean_logp(t, x)))(two_models()[0]), atol=1e-6)


def test_a_pair_of_equal_answers_is_neither_preferred():
    x = batch("forget").x
    own_text = {name: x[name][:, None] for name in ("tokens", "mask", "answer")}
    same = {**x, "variants": {"perturbed": own_text}}
    sets = toy.text_sets()
    at = sets.forget.indices[jnp.asarray(SLOTS["forget"])]

    def repeated(leaf, new):
        return leaf[:, :1].at[at].set(new)

    stored = sets.forget.examples.x
    perturbed = jax.tree.map(repeated, dict(stored["variants"]["perturbed"]), own_text)
    examples = sets.forget.examples._replace(x={**stored, "variants": {"perturbed": perturbed}})
    sets = sets._replace(forget=sets.forget._replace(examples=examples))
    method = ju.dpo(toy.language_model(), optimizer=optax.sgd(1.0), beta=0.5, retain_weight=0.0)
    original, near = two_models()
    state = jax.jit(method.init)(original, sets, jax.random.key(4))._replace(variables=near)
    batches = Batches(forget=batch("forget")._replace(x=same))
    after, info = jax.jit(method.step)(state, batches, jax.random.key(5), jnp.int32(0))
    np.testing.assert_allclose(info.metrics["forget"], 2 / 0.5 * np.log(2), rtol=1e-6)
    close(after.variables, near, atol=1e-6)


def test_alternatives_are_drawn_among_those_that_there_are():
    answer = jnp.asarray([[[0, 1], [0, 0], [0, 1]], [[0, 0], [0, 1], [0, 0]]], bool)
    drawn = {tuple(_any({"answer": answer}, jax.random.key(n)).tolist()) for n in range(20)}
    assert drawn == {(0, 1), (2, 1)}


def test_alternatives_have_their_own_references():
    _, _, info, _ = step_of("alt_po", retain_weight=0.0)
    original, near = two_models()
    x, found = batch("forget").x, []
    for place in range(2):
        other = {name: leaf[:, place] for name, leaf in x["variants"]["perturbed"].items()}
        ours = sums(original, x)[0] - sums(near, x)[0]
        found.append(soft(sums(original, other)[0] - sums(near, other)[0] - ours, 0.1))
    means = [np.mean(rows) for rows in np.stack(np.meshgrid(*np.stack(found).T), -1).reshape(-1, 3)]
    assert np.min(np.abs(np.asarray(means) - float(info.metrics["forget"]))) < 1e-4


def test_references_are_those_of_each_slot_however_many_there_are():
    part, original = toy.text_sets().retain, two_models()[0]
    assert len(part.indices) == 26, "more than one chunk, the last not full"
    found = jax.jit(lambda v: reference_nll(toy.language_model(), v, part, lambda x, places: x))(
        original
    )
    x = jax.tree.map(lambda leaf: leaf[part.indices], part.examples.x)
    wanted, _ = answer_nll(toy.language_model().apply(original, x), x)
    np.testing.assert_allclose(found[:, 0], wanted, rtol=1e-5)


def test_rmu_moves_the_states_of_one_block_and_trains_no_other():
    """Under momentum and decay; what is behind stays what it was, bit for bit."""
    optimizer = optax.chain(optax.add_decayed_weights(1e-3), optax.sgd(0.3, momentum=0.9))
    method = ju.rmu(
        toy.language_model(), optimizer=optimizer, layer=0, coefficient=4.0, retain_weight=0.0,
        parts=(r"blocks_0/", r"embedding"),
    )  # fmt: skip
    original = two_models()[0]
    made = ju.unlearn(
        method, original, toy.text_sets(), jax.random.key(1), steps=300, batch_size=10
    )
    losses = made.history["forget"]
    assert losses[-1] < 0.01 * losses[0]
    x = batch("forget").x
    aim = states(made.variables, x, 0)[x["answer"][:3]].mean(axis=0)
    assert float(jnp.linalg.norm(aim)) == pytest.approx(4.0, rel=0.05)
    for path, leaf in named_leaves(original).items():
        same = np.array_equal(leaf, named_leaves(made.variables)[path])
        assert same == ("blocks_1" in path or "head" in path), path


def test_a_task_vector_goes_as_far_back_as_learning_goes_ahead():
    before, after, _, method = step_of("task_vector", amount=0.5)
    del before
    wanted = jax.tree.map(
        lambda old, new: old - 0.5 * (new - old), two_models()[0], after.variables
    )
    close(method.result(after), wanted, atol=1e-6)


def test_training_from_a_start_is_fine_tuning_of_it():
    start, sets, key = two_models()[1], toy.text_sets(), jax.random.key(6)
    options = {"optimizer": optax.adam(1e-2), "lora": 2}
    given = ju.lm_retrain(toy.language_model(), start=lambda: start, **options)
    made = ju.unlearn(given, None, sets, key, steps=2, batch_size=8)
    tuned = ju.lm_finetune(toy.language_model(), **options)
    wanted = ju.unlearn(tuned, start, sets, key, steps=2, batch_size=8)
    close(made.variables, wanted.variables, atol=1e-6)


# --- fusion of requests


def requests(count):
    rng = np.random.default_rng(count)
    draw = lambda *shape: jnp.asarray(rng.normal(size=shape), jnp.float32)  # noqa: E731
    original = {"down": {"kernel": draw(6, 4)}, "other": draw(3)}
    made = [{"down": {"kernel": draw(6, 4)}, "other": draw(3)} for _ in range(count)]
    return original, made, draw


def test_one_request_is_fused_to_itself():
    original, made, draw = requests(1)
    rows = draw(3, 6)  # fewer rows than columns: the Gram matrix is singular
    fused = fuse(original, made, [{"down/kernel": rows.T @ rows}], ridge=1e-3)
    np.testing.assert_allclose(fused["down"]["kernel"], made[0]["down"]["kernel"], rtol=1e-5)
    np.testing.assert_array_equal(fused["other"], original["other"])


def test_requests_that_read_other_directions_are_all_met():
    original, made, draw = requests(2)
    basis, _ = np.linalg.qr(draw(6, 6))
    inputs = [draw(5, 3) @ jnp.asarray(basis[:3]), draw(5, 3) @ jnp.asarray(basis[3:])]
    grams = [{"down/kernel": rows.T @ rows} for rows in inputs]
    fused = fuse(original, made, grams)
    for rows, one in zip(inputs, made, strict=True):
        wanted = rows @ one["down"]["kernel"]
        np.testing.assert_allclose(rows @ fused["down"]["kernel"], wanted, atol=1e-3)


def test_requests_that_compete_are_met_by_least_squares():
    original, made, draw = requests(3)
    inputs = [draw(9, 6) for _ in made]
    fused = fuse(original, made, [{"down/kernel": rows.T @ rows} for rows in inputs])
    answers = [rows @ one["down"]["kernel"] for rows, one in zip(inputs, made, strict=True)]
    wanted, *_ = np.linalg.lstsq(np.concatenate(inputs), np.concatenate(answers), rcond=None)
    np.testing.assert_allclose(fused["down"]["kernel"], wanted, atol=1e-4)


def test_gram_matrices_are_of_what_a_kernel_reads():
    model, variables = toy.language_model(), two_models()[0]
    x = {name: batch("forget").x[name] for name in ("tokens", "mask")}
    grams = input_grams(model, variables, x)
    assert set(grams) == {f"params/blocks_{n}/mlp/down/kernel" for n in range(2)}
    # what the last block's kernel reads is found from what it adds
    kernel = variables["params"]["blocks_1"]["mlp"]["down"]["kernel"]
    other = jax.tree.map(lambda leaf: leaf, variables)
    other["params"]["blocks_1"]["mlp"]["down"]["kernel"] = jnp.zeros_like(kernel)
    added = model.states(variables, x)[-1] - model.states(other, x)[-1]
    rows = np.linalg.solve(np.asarray(kernel).T, np.asarray(added)[np.asarray(x["mask"])].T).T
    np.testing.assert_allclose(
        grams["params/blocks_1/mlp/down/kernel"], rows.T @ rows, rtol=1e-3, atol=1e-3
    )


# --- what is refused


@pytest.mark.parametrize(
    ("name", "options", "message"),
    [
        ("grad_diff", {"retain": "kl_divergence"}, "retain: expected one of"),
        ("grad_diff", {"retain_weight": -1.0}, "retain_weight: expected a number of 0 or more"),
        ("npo", {"beta": 0.0}, "beta: expected a positive number, got 0.0"),
        ("simnpo", {"beta": float("nan")}, "beta: expected a positive number"),
        ("undial", {"strength": -1.0}, "strength: expected a number of 0 or more"),
        ("rmu", {"layer": 2}, "layer: expected one from 0 to 1, got 2"),
        ("rmu", {"coefficient": 0.0}, "coefficient: expected a positive number"),
        ("eul", {"cap": 0.0}, "cap: expected a positive number"),
        ("lm_retrain", {"lora": 2}, "lora: expected none for a model trained from scratch"),
        ("lm_finetune", {"lora": 0}, "lora: expected a positive number, got 0"),
    ],
)
def test_wrong_arguments(name, options, message):
    with pytest.raises(ValueError, match=message):
        toy.LANGUAGE_METHODS[name](toy.language_model(), **options)


def test_what_is_no_language_model():
    with pytest.raises(TypeError, match="model: expected LanguageModel, got Model"):
        ju.npo(toy.mlp())
    with pytest.raises(TypeError, match="tokenizer: expected that of the texts, got NoneType"):
        ju.idk_dpo(toy.language_model(), tokenizer=None)


def test_preference_needs_answers_to_prefer():
    x, y = toy.texts()
    bare = {name: x[name] for name in ("tokens", "mask", "answer")}
    sets = ju.make_sets(bare, y, ju.forget_class(1), num_classes=toy.NUM_CLASSES)
    with pytest.raises(ValueError, match="expected examples with perturbed answers"):
        ju.unlearn(ju.dpo(toy.language_model()), two_models()[0], sets, jax.random.key(0), steps=1)


def test_fusion_needs_a_matrix_for_each_request():
    original, made, _ = requests(2)
    with pytest.raises(ValueError, match="grams: expected one a request, at least one, got 1"):
        fuse(original, made, [{}])
    with pytest.raises(ValueError, match="grams: expected the same kernels"):
        fuse(original, made, [{}, {"down/kernel": jnp.eye(6)}])
