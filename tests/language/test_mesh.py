"""Decoders divided over eight devices: the same numbers, parameters in place, no second program."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import jaxunlearn as ju
from jaxunlearn.config import DataConfig
from jaxunlearn.config.overrides import load_config
from jaxunlearn.core.trees import named_leaves
from jaxunlearn.data.texts import to_texts
from jaxunlearn.engine import loop
from jaxunlearn.engine.sharding import (
    constrain,
    dividing,
    keep_divided,
    make_sharding,
    place,
    spec_of,
)
from jaxunlearn.experiment.plan import make_plan
from jaxunlearn.language import (
    DECODER_RULES,
    DecoderShape,
    build_decoder,
    generate,
    save_pretrained,
    train_tokenizer,
)
from jaxunlearn.metrics.language_attacks import score_tokens
from tests import toy
from tests.runs import hurry

SHAPE = DecoderShape(
    "llama", toy.WORDS, toy.TEXT + 8, depth=2, width=32, heads=4, kv_heads=4, head_dim=8, hidden=48
)
MESHES = {"fsdp": make_sharding("fsdp"), "tensor": make_sharding("data=2,model=4", DECODER_RULES)}
# each stands for its kind: fresh parameters, a reference and full gradients, adapters and a teacher
RUNS = {
    "retrain": ("fsdp", lambda m: ju.lm_retrain(m, optimizer=optax.sgd(0.5, momentum=0.9))),
    "full": ("fsdp", lambda m: ju.npo(m, optimizer=optax.sgd(0.5), retain="kl")),
    "adapters": ("tensor", lambda m: ju.npo(m, optimizer=optax.sgd(0.5), retain="kl", lora=8)),
}


@functools.cache
def model():
    return build_decoder(SHAPE)


@functools.cache
def original():
    return jax.jit(model().init)(jax.random.key(0))


@functools.cache
def texts():
    x = toy.text_sets().forget.examples.x
    return {name: x[name][:16] for name in ("tokens", "mask", "answer")}


def run(method, sharding=None, seed=3):
    return ju.unlearn(
        method, original(), toy.text_sets(), jax.random.key(seed), steps=2, batch_size=8,
        sharding=sharding,
    )  # fmt: skip


def close(one, two, tolerance=1e-5):
    for path, leaf in named_leaves(one).items():
        np.testing.assert_allclose(leaf, named_leaves(two)[path], atol=tolerance, err_msg=path)


def expect_in_place(variables, sharding, least=15):
    """Every parameter lies as the rules have it, and what divides is divided."""
    divided = 0
    for path, leaf in named_leaves(variables).items():
        planned = spec_of(path, leaf.shape, sharding)
        where = jax.sharding.NamedSharding(sharding.mesh, planned)
        assert leaf.sharding.is_equivalent_to(where, leaf.ndim), path
        divided += not leaf.sharding.is_fully_replicated
    assert divided >= least


@pytest.mark.parametrize("name", RUNS)
def test_eight_devices_equal_one(name):
    mesh, make = RUNS[name]
    method, sharding = make(model()), MESHES[mesh]
    many, alone = run(method, sharding), run(method)
    close(many.variables, alone.variables)
    for told, values in alone.history.items():
        np.testing.assert_allclose(many.history[told], values, rtol=1e-4, atol=1e-5)
    expect_in_place(many.variables, sharding)
    programs = [fn._cache_size() for fn in (loop.init, loop.advance, loop.result)]
    run(method, sharding, seed=5)
    assert [fn._cache_size() for fn in (loop.init, loop.advance, loop.result)] == programs


def test_answers_and_scores_of_a_divided_model():
    x, laid = texts(), place(original(), MESHES["fsdp"])
    asked = {name: x[name][:, :4] for name in ("tokens", "mask")}
    written = [
        generate(model(), variables, asked, jax.random.key(0), most=4, stop_token=1)
        for variables in (original(), laid)
    ]
    np.testing.assert_array_equal(*written)
    host = {name: np.asarray(leaf) for name, leaf in x.items()}
    alone, many = (score_tokens(model(), v, host) for v in (original(), laid))
    np.testing.assert_allclose(many.logprobs, alone.logprobs, atol=1e-5)
    np.testing.assert_allclose(many.deviations, alone.deviations, atol=1e-4)


def test_batches_stay_divided_beside_divided_parameters():
    """Else a compiler may gather the batch: every device would hold all activations."""
    sharding, x = MESHES["fsdp"], texts()

    def states(variables, x):
        with dividing(sharding):
            return model().states(constrain(variables, sharding), x)

    def shards(fn):
        made = jax.jit(fn)(place(original(), sharding), x)
        return made.sharding.shard_shape(made.shape)

    assert shards(states) == (SHAPE.depth + 1, 2, toy.TEXT, SHAPE.width)


def test_without_a_mesh_nothing_is_constrained():
    assert "sharding_constraint" not in str(jax.make_jaxpr(keep_divided)(jnp.ones((8, 2))))
    with dividing(MESHES["fsdp"]):
        assert "sharding_constraint" in str(jax.make_jaxpr(keep_divided)(jnp.ones((8, 2))))
        # six examples do not divide over eight devices
        assert "sharding_constraint" not in str(jax.make_jaxpr(keep_divided)(jnp.ones((6, 2))))


def test_the_configuration_of_a_checkpoint_of_ones_own(tmp_path, monkeypatch):
    """``tofu_llama`` at a tiny size, on all eight devices: read in slices, trained, judged."""
    hurry(monkeypatch)
    data = ju.data.load_dataset(DataConfig(name="authors", options={"authors": 3, "questions": 4}))
    words = [*to_texts(data.train_x["question"]), *to_texts(data.train_x["answer"])]
    tokenizer = train_tokenizer(words, 512)
    shape = dataclasses.replace(SHAPE, vocabulary=512, context=256, depth=1)
    network = build_decoder(shape)
    save_pretrained(tmp_path / "base", network, jax.jit(network.init)(jax.random.key(0)))
    tokenizer.save(tmp_path / "base")
    config = load_config("tofu_llama", [
        "data.name=authors", "data.options.authors=3", "data.options.questions=4", "data.unseen=0",
        f"language.base={tmp_path}/base", "request.share=.2", "train.epochs=1",
        "methods=grad_diff", "methods.grad_diff.lora=8", "methods.grad_diff.steps=2",
        "language.generated=2", "language.answer_length=4", "language.bits=",
    ])  # fmt: skip
    plan = make_plan(config, tmp_path)
    start = plan.kind.start(plan.model, plan.settings, plan.sharding)
    expect_in_place(start, plan.sharding, least=8)
    assert {leaf.dtype for leaf in jax.tree.leaves(start)} == {jnp.dtype("bfloat16")}
    made = ju.run(config, tmp_path)
    assert {"original", "grad_diff", "retrained"} <= set(made["columns"])
    assert not made.get("failures")
