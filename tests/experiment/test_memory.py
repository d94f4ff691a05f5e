"""Accounts of memory: by hand, beside what XLA says, and of what is not there."""

import functools
import json

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from rich.console import Console

import jaxunlearn as ju
from jaxunlearn.cli import main
from jaxunlearn.config import Config
from jaxunlearn.config.overrides import load_config
from jaxunlearn.core.errors import ConfigError
from jaxunlearn.engine.loop import Job, advance, init
from jaxunlearn.engine.sharding import abstract, make_sharding, replicate
from jaxunlearn.experiment.memory import account, parse_bytes, to_tables
from jaxunlearn.experiment.plan import make_plan
from jaxunlearn.jaxprs.liveness import peak
from jaxunlearn.language import DecoderShape, build_decoder
from tests import meshes

LLAMA = {
    "model_type": "llama", "vocab_size": 32000, "hidden_size": 4096, "intermediate_size": 11008,
    "num_hidden_layers": 2, "num_attention_heads": 32, "num_key_value_heads": 32,
    "max_position_embeddings": 4096, "hidden_act": "silu", "rms_norm_eps": 1e-5,
    "rope_theta": 10000.0, "tie_word_embeddings": False,
}  # fmt: skip
"""Llama 2 7B, but for its depth."""
AUTHORS = [
    "data.name=authors", "data.options.authors=5", "data.options.questions=4", "data.unseen=0",
    "request.share=.2", "methods=grad_diff", "methods.grad_diff.lora=8",
]  # fmt: skip


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A checkpoint of which there is nothing but its configuration."""
    home = tmp_path_factory.mktemp("llama")
    (home / "config.json").write_text(json.dumps(LLAMA))
    return home


def lives(fn, *shapes):
    args = [jax.ShapeDtypeStruct(shape, jnp.float32) for shape in shapes]
    return sum(peak(jax.make_jaxpr(fn)(*args)).values()) / 4


@pytest.mark.parametrize(
    ("fn", "shapes", "numbers"),
    [
        # one product, which the sum reads; then two at once
        (lambda x, w: jnp.sum(x @ w), [(8, 3), (3, 5)], 40),
        (lambda x, w: jnp.sum(x @ w @ w), [(8, 3), (3, 3)], 48),
        # computed where it is read, and so is what only changes form
        (lambda x: jnp.sum(2 * x + 1), [(8, 3)], 0),
        (lambda x, w: jnp.sum((x @ w).T.reshape(5, 2, 4)), [(8, 3), (3, 5)], 40),
        # not where a product reads it: both operands and the result
        (lambda x, w: jnp.sum((2 * x) @ w), [(8, 3), (3, 5)], 64),
        # costly and read twice: it is there, and made while the product is
        (lambda x, w: jnp.sum(y := jnp.exp(x @ w)) + jnp.max(y), [(8, 3), (3, 5)], 80),
        # the results are the caller's
        (lambda x, w: x @ w, [(8, 3), (3, 5)], 0),
        # a loop holds what it carries once, its counter, and what a turn needs
        (
            lambda x, w: jnp.sum(jax.lax.fori_loop(0, 4, lambda _, y: jnp.tanh(y @ w) @ w, x @ w)),
            [(8, 3), (3, 3)],
            24 + 48 + 1,
        ),
    ],
)
def test_peaks_by_hand(fn, shapes, numbers):
    assert lives(fn, *shapes) == numbers


def test_recomputation_lowers_the_peak():
    def layers(block):
        def loss(x, w):
            for _ in range(6):
                x = block(x, w)
            return jnp.sum(x)

        return jax.grad(loss, argnums=1)

    block = lambda x, w: jnp.tanh(jnp.tanh(jnp.tanh(x @ w) @ w) @ w)  # noqa: E731
    plain = lives(layers(block), (64, 8), (8, 8))
    again = lives(layers(jax.checkpoint(block)), (64, 8), (8, 8))
    assert again < 0.7 * plain


def test_numbers_of_a_classifier():
    """The embedded network: parameters, Adam's means, a copy of each by hand."""
    config = load_config("digits", ["methods=finetune", "methods.finetune.optimizer=adam"])
    found = account(config, memory=1e6)
    assert found["mesh"] == {"data": 1}
    size = 4 * found["parameters"]
    stage = found["stages"]["finetune"]
    assert stage["bytes"]["given"] == stage["bytes"]["model"] == size
    assert stage["bytes"]["optimizer"] - 2 * size in range(0, 65)
    assert stage["total"] == sum(stage["bytes"].values())
    assert stage["total"] == max(stage["phases"].values())
    assert found["stages"]["original"]["bytes"]["given"] == 0
    assert found["stages"]["judging"]["bytes"]["given"] == (1 + 3 + 1) * size
    assert not found["stages"]["judging"]["fits"]
    assert found["remat"] is None
    whole = sum(leaf.nbytes for leaf in jax.tree.leaves(ju.data.load_dataset(config.data)[:4]))
    assert stage["bytes"]["data"] == pytest.approx(whole, rel=0.1)


def test_classes_each_by_itself_share_a_program():
    words = ["methods=gradient_ascent", "retrained=1"]
    one = account(load_config("digits", words))["stages"]
    many = account(load_config("digits", [*words, "request.classes=", "request.each=true"]))
    grown, single = many["stages"]["gradient_ascent"]["bytes"], one["gradient_ascent"]["bytes"]
    assert grown["optimizer"] == 10 * single["optimizer"]
    assert grown["given"] == single["given"]
    # one after the other on a CPU
    assert many["stages"]["gradient_ascent"]["step"] == one["gradient_ascent"]["step"]
    others = many["stages"]["retrained, others"]["bytes"]["optimizer"]
    assert others == pytest.approx(9 * single["optimizer"], rel=1e-4)
    assert "retrained, others" not in one


def test_a_gan_has_a_plan():
    found = account(load_config("digits_gan_class", ["methods=gan_finetune"]))
    stage = found["stages"]["gan_finetune"]
    assert stage["fits"] is None
    given = stage["bytes"]["given"]
    # two means of each number but those of the moving average
    assert given < stage["bytes"]["optimizer"] < 2 * given
    assert stage["phase"] == "result"
    assert stage["bytes"]["model"] == 2 * given


@pytest.fixture(scope="module")
def plans(folder):
    """Accounts of adapters on one device and on eight, which are not there."""
    words = [*AUTHORS, f"language.base={folder}", "retrained=1"]
    one = account(load_config("tofu_llama", [*words, "mesh=single"]), devices=1, memory=80e9)
    return one, account(load_config("tofu_llama", words), devices=8, memory=80e9)


def test_a_folder_with_a_configuration_alone(plans, folder):
    before = sum(leaf.nbytes for leaf in jax.live_arrays())
    one, many = plans
    assert before < 1e8, "no model was made"
    block = 4 * 4096**2 + 3 * 4096 * 11008 + 2 * 4096
    assert one["parameters"] == 2 * block + 2 * 32000 * 4096 + 4096
    stage = one["stages"]["grad_diff"]["bytes"]
    assert stage["given"] == stage["model"] == 2 * one["parameters"], "two bytes each"
    # rank 8 on all kernels, single precision, and two means of each
    adapters = 4 * 8 * 2 * (4 * 2 * 4096 + 3 * (4096 + 11008))
    assert stage["adapters"] == adapters
    assert stage["optimizer"] - 2 * adapters in range(0, 65)
    assert "no tokenizer lies there" in " ".join(one["notes"])
    # what has no kernel is whole on all devices
    share = many["stages"]["grad_diff"]["bytes"]["model"] / stage["model"]
    assert share == pytest.approx(1 / 8, rel=1e-3)
    assert many["mesh"] == {"data": 8}
    assert one["remat"]["with"] < 0.8 * one["remat"]["without"]
    judged = one["stages"]["judging"]["phases"]
    assert judged["answers"] > judged["models"]


@pytest.mark.parametrize("which", [0, 1])
def test_tables_are_whole_on_a_narrow_terminal(plans, which, capsys):
    tables, notes = to_tables(plans[which])
    Console(width=80).print(*tables, *notes, sep="\n")
    shown = capsys.readouterr().out
    assert "grad_diff" in shown
    assert "\N{HORIZONTAL ELLIPSIS}" not in shown


def decoder_step(sharding, remat=False):
    shape = DecoderShape(
        "llama", 512, 64, depth=2, width=64, heads=4, kv_heads=4, head_dim=16, hidden=128
    )
    model = build_decoder(shape, remat=remat)
    method = ju.grad_diff(model, optimizer=optax.adam(1e-3))
    draw = np.random.default_rng(0).integers(0, 512, (32, 48))
    x = {"tokens": jnp.asarray(draw, jnp.int32), "mask": jnp.ones((32, 48), bool)}
    x["answer"] = x["mask"].at[:, 0].set(False)
    sets = ju.make_sets(x, np.arange(32) % 4, ju.forget_class(1), num_classes=4)
    shown = ju.core.types.Sets(forget=sets.forget, retain=sets.retain)
    job = Job(method, 16, sharding)
    like = jax.eval_shape(model.init, jax.random.key(0))
    state = jax.eval_shape(functools.partial(init, job=job._replace(sharding=None)), like, shown,
                           jax.random.key(0), None)  # fmt: skip
    given = (shown, jax.random.key(0), jnp.int32(0), jnp.int32(0))
    if sharding is not None:
        state, given = abstract(state, sharding), replicate(given, sharding)
    program = advance.lower(state, *given, job=job, length=1).compile().memory_analysis()
    local = job._replace(sharding=None, batch_size=16 // (8 if sharding else 1))
    trace = advance.trace(state, *given, job=local, length=1)
    return program.temp_size_in_bytes, sum(peak(trace.jaxpr).values())


@pytest.mark.parametrize("mesh", [None, "fsdp"])
def test_estimates_beside_those_of_the_compiler(mesh):
    told, estimated = decoder_step(None if mesh is None else make_sharding(mesh))
    assert 0.4 < estimated / told < 1.5


def test_a_step_holds_the_bytes_of_the_plan(monkeypatch, tmp_path):
    words = ["mesh=fsdp_tensor", "methods=finetune", "methods.finetune.optimizer=adam"]
    config = load_config("digits", words)
    planned, plan = account(config), make_plan(config, tmp_path)
    assert planned["mesh"] == {"data": 4, "model": 2}
    stage = planned["stages"]["finetune"]["bytes"]
    programs = meshes.watch(monkeypatch)
    ju.unlearn(
        plan.methods["finetune"][0], jax.jit(plan.model.init)(plan.key), plan.sets, plan.key,
        steps=1, batch_size=16, sharding=plan.sharding,
    )  # fmt: skip
    (program,) = meshes.steps_among(programs)
    held = meshes.expect_steps_in_place(program, plan.sharding)
    assert held == stage["model"] + stage["optimizer"]
    assert held < 3 * 4 * planned["parameters"] / 7


@pytest.mark.parametrize(("text", "size"), [("80GB", 80e9), ("1.5 gib", 1.5 * 2**30), ("7", 7)])
def test_sizes_as_texts(text, size):
    assert parse_bytes(text) == size


@pytest.mark.parametrize("text", ["80 G", "GB", "-3GB", "0", ""])
def test_texts_that_are_no_sizes(text):
    with pytest.raises(ConfigError, match="memory: expected a size such as 80GB"):
        parse_bytes(text)


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["mesh=data=3"], "mesh: expected axes for 8 devices, got 'data=3' = 3"),
        (["methods=nothing"], "methods: expected one of"),
        (["language.length=4097"], "expected at least 4097 tokens"),
        (["model.name=gpt2"], "model.name: expected llama"),
        (["model.options.remat=no"], "remat: expected True or False, got 'no'"),
    ],
)
def test_what_a_run_would_refuse(words, message, folder):
    config = load_config("tofu_llama", [*AUTHORS, f"language.base={folder}", *words])
    with pytest.raises(ConfigError, match=message):
        account(config, devices=8)


def test_no_devices():
    with pytest.raises(ValueError, match="devices: expected a positive number, got 0"):
        account(Config(), devices=0)


def test_on_the_command_line(capsys):
    words = ["plan", "digits", "methods=finetune", "--memory", "1MB"]
    assert main(words) == 1
    shown = capsys.readouterr().out
    assert "does not fit" in shown
    assert all(len(line) <= 80 for line in shown.splitlines())
    assert main([*words[:-1], "1GB", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["memory"] == 1e9
    assert main(["plan", "nothing_like_it"]) == 1
    assert "error: config" in capsys.readouterr().err
