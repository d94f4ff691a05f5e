"""A run on a GAN, from the configuration to the report, and what a user may get wrong."""

import dataclasses
import json
import shutil

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxunlearn as ju
from jaxunlearn import checkpoint
from jaxunlearn.cli import main
from jaxunlearn.config import Config, DataConfig, GanConfig, ModelConfig, Request, TrainConfig
from jaxunlearn.core.errors import ConfigError, RequestError
from jaxunlearn.data.examples import as_examples
from jaxunlearn.engine.driver import Resume
from jaxunlearn.metrics.generation import Extent, GanEvidence, logits_of
from jaxunlearn.metrics.registry import measure
from tests import toy
from tests.runs import hurry

CASCADE = {"steps": 4, "pool": 512, "latents": 16, "references": 64, "inversion_steps": 4}
CONFIG = Config(
    name="tiny",
    data=DataConfig(name="digits", unseen=100),
    model=ModelConfig(name="mlp_gan", options={"latent": 8, "features": (64, 64)}),
    train=TrainConfig(epochs=60, batch_size=64, learning_rate=1e-3, betas=(0.5, 0.999)),
    kinds={
        "gan": GanConfig(
            r1=0.5,
            classifier=ModelConfig(options={"features": (32, 16)}),
            classifier_train=TrainConfig(epochs=10, batch_size=64),
            samples=300,
            inverted=4,
            inversion_steps=4,
            downstream_steps=5,
        )
    },
    request=Request(classes=(0,)),
    methods={"cascade": CASCADE, "items_label": {"method": "cascade", **CASCADE, "label": "soft"}},
    retrained=1,
)


@pytest.fixture(scope="module", autouse=True)
def quick():
    """Models are made, judged and drawn as ever, but timed once, not cold."""
    with pytest.MonkeyPatch.context() as patch:
        hurry(patch, report=True, pictures=True)
        yield


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    runs = tmp_path_factory.mktemp("runs")
    return runs, ju.run(CONFIG, runs)


def test_the_table_holds_the_metrics_of_gans(made):
    _, report = made
    rows = {row["name"]: row["values"] for row in report["rows"]}
    assert set(rows) >= {
        "forget_share", "pul", "membership_auc", "membership_gap", "inversion_forget", "fid",
        "ret_fid", "kid", "classifier_score", "precision", "recall", "density", "coverage",
        "downstream", "relearned_share", "discriminator_probe", "path_length", "speedup",
    }  # fmt: skip
    assert "accuracy_forget" not in rows
    for name, values in rows.items():
        assert set(values) >= {"cascade"}, name
        assert all(np.isfinite(value) for value in values.values()), name
    assert rows["pul"]["original"] == 0
    before, after = rows["forget_share"]["original"], rows["forget_share"]["cascade"]
    assert rows["pul"]["cascade"] == pytest.approx(100 * (before - after) / before)
    assert any("C-FID: 16 features of a classifier (mlp" in note for note in report["notes"])


def test_an_erasure_record_is_verified_and_a_purge_takes_guides_and_samples(made, tmp_path, capsys):
    shutil.copytree(made[0] / "tiny", tmp_path / "tiny")
    home = tmp_path / "tiny"
    page = (home / "erasure/cascade/record.md").read_text()
    assert "rests on 300 images that it made" in page
    assert "cannot be told" in page, "one model to compare with"
    assert main(["verify", str(home)]) == 0
    assert main(["purge", str(home)]) == 0
    out = capsys.readouterr().out
    for name in ("original", "helpers/guide", "helpers/judge", "pictures/samples.png"):
        assert f"removed {name}: " in out
        assert not (home / name).exists()
    assert (home / "unlearned/items_label").exists()
    assert main(["verify", str(home)]) == 0
    assert "the forgotten examples are those of the records" in capsys.readouterr().out


def test_pictures_are_drawn(made):
    runs, report = made
    drawn = {path.name for path in (runs / "tiny/pictures").iterdir()}
    assert drawn == {
        "samples.png", "strips.png", "scores.png", "scores.json", "exposed_images.json"
    }  # fmt: skip
    assert not any("no picture" in note for note in report["notes"])


def test_asked_for_again_nothing_is_made_again(made):
    runs, report = made
    told = []
    again = ju.run(CONFIG, runs, listener=lambda name, progress: told.append((name, progress)))
    assert told
    assert all(progress is None for _, progress in told)
    assert again["rows"] == report["rows"]


def test_guide_and_judge_are_two(made):
    runs, _ = made
    kernels = [
        checkpoint.load(runs / f"tiny/helpers/{name}")[0]["params"]["fc1"]["kernel"]
        for name in ("guide", "judge")
    ]
    assert (kernels[0] != kernels[1]).any()
    accuracy = json.loads((runs / "tiny/helpers/judge/record.json").read_text())
    assert accuracy["accuracy_test"] > 0.5


def test_each_class_by_itself(tmp_path, monkeypatch):
    hurry(monkeypatch)
    config = dataclasses.replace(
        CONFIG, request=Request(each=True, classes=(0, 6)), methods={"cascade": CASCADE}
    )
    report = ju.run(config, tmp_path)
    row = next(row for row in report["rows"] if row["name"] == "forget_share")
    assert len(row["each"]["cascade"]) == 2


MISTAKES = [
    ({"methods": {"finetune": {}}}, "expected one of .*cascade.* for the model mlp_gan"),
    ({"methods": {"cascade": {"mode": "x"}}}, "methods.cascade: mode: expected one of"),
    ({"methods": {"cascade": {"stop": {"forget_share": "x"}}}}, "methods.cascade.stop: expected"),
    ({"methods": {"cascade": {"chunk": 0}}}, "methods.cascade.chunk: expected a positive"),
    ({"model": ModelConfig(name="dcgan", options={"width": 0})}, "positive integer as width"),
    ({"model": ModelConfig(name="mlp_gan", options={"widht": 1})}, "as option of mlp_gan"),
    ({"train": TrainConfig(augment="crop_flip")}, "train.augment: expected 'none' for a GAN"),
    ({"kinds": {"gan": GanConfig(samples=3)}}, "gan.samples: expected 7 or more, got 3"),
    ({"kinds": {"gan": GanConfig(r1=-1.0)}}, "gan.r1: expected a number >= 0"),
    ({"kinds": {"gan": GanConfig(ema=1.5)}}, "gan.ema: expected a number from 0 to below 1"),
    (
        {"kinds": {"gan": GanConfig(classifier=ModelConfig(name="dcgan"))}},
        "gan.classifier.name: expected a classifier",
    ),
    (
        {"model": ModelConfig(name="mlp"), "methods": {"cascade": {}}},
        "expected one of .*finetune.* for the model mlp",
    ),
]


@pytest.mark.parametrize(("change", "message"), MISTAKES, ids=[m[:25] for _, m in MISTAKES])
def test_mistakes_cost_no_work(change, message, tmp_path):
    with pytest.raises(ConfigError, match=message):
        ju.run(dataclasses.replace(CONFIG, **change), tmp_path)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("chunk", [1, 4])
def test_a_killed_training_continues_bit_for_bit(tmp_path, chunk):
    """The state is saved after some steps and read from disk by a second training."""
    import optax

    method = ju.gan_retrain(toy.gan(), optimizer=optax.adam(1e-3), r1=0.2, r1_every=3)
    everything = ju.Sets(retain=ju.whole(toy.sets(gan=True).forget.examples))
    arguments = (method, None, everything, jax.random.key(1))
    options = {"steps": 12, "batch_size": 16, "chunk": chunk}

    def save(progress):
        if progress.step == 8:
            checkpoint.save(tmp_path / "state", progress.state, {"step": progress.step})

    whole = ju.unlearn(*arguments, on_chunk=save, **options)

    def resume(fresh):
        state, record = checkpoint.load(tmp_path / "state", fresh)
        blank = {name: np.zeros(8, np.float32) for name in whole.history}
        return Resume(state, record["step"], 0.0, blank)

    rest = ju.unlearn(*arguments, resume=resume, **options)
    jax.tree.map(np.testing.assert_array_equal, rest.variables, whole.variables)
    for name, values in whole.history.items():
        np.testing.assert_array_equal(rest.history[name][8:], values[8:])


def evidence(sets, variables, extent):
    return GanEvidence(toy.gan(), variables, sets, jax.random.key(0), toy.guide(), extent)


def measured(**changes):
    sets, original = toy.sets(gan=True), toy.trained_gan().variables
    extent = Extent(samples=200, inverted=4, inversion_steps=3, downstream_steps=0)
    own = evidence(sets, {**original, **changes}, extent)
    return measure(own, evidence(sets, original, extent)).values


def test_too_few_retained_images_are_told():
    sets = toy.sets(gan=True)
    few = sets.retain._replace(size=jnp.asarray(5, jnp.int32))
    extent = Extent(samples=50, inverted=0, downstream_steps=0)
    with pytest.raises(RequestError, match=r"expected more than 6 images .* got 5"):
        evidence(sets._replace(retain=few), toy.trained_gan().variables, extent)


def test_membership_is_the_order_of_logits():
    """A discriminator whose logit is turned round turns the area round."""
    from sklearn.metrics import roc_auc_score

    values = measured()
    discriminator = toy.trained_gan().variables["discriminator"]
    sets = toy.sets(gan=True)
    ours, theirs = (
        logits_of(toy.gan(), discriminator, part) for part in (sets.forget, sets.test_forget)
    )
    labels = np.repeat([1, 0], [len(ours), len(theirs)])
    expected = roc_auc_score(labels, np.concatenate([ours, theirs]))
    assert values["membership_auc"] == pytest.approx(expected)
    assert values["membership_gap"] == pytest.approx(abs(expected - 0.5))
    head = discriminator["params"]["head"]
    turned = {"head": jax.tree.map(jnp.negative, head)}
    params = {**discriminator["params"], **turned}
    flipped = measured(discriminator={**discriminator, "params": params})
    assert flipped["membership_auc"] == pytest.approx(1 - expected)


def test_evaluate_judges_gans():
    original = toy.trained_gan()
    sets = toy.sets(gan=True)
    with pytest.raises(ValueError, match="judge: expected a Guide"):
        ju.evaluate(toy.gan(), {"original": original}, [original.variables], sets)


def test_images_out_of_range_are_told():
    everything = ju.whole(toy.sets(gan=False).forget.examples)
    config = TrainConfig(epochs=0.1, batch_size=16, learning_rate=1e-3)
    key = jax.random.key(0)
    ju.train(toy.gan(), ju.whole(toy.sets(gan=True).forget.examples), key, config=config)
    x, y, _ = everything.examples
    wide = ju.whole(as_examples(x, y, mean=9, std=100))
    with pytest.warns(UserWarning, match="part: expected images between -1 and 1"):
        ju.train(toy.gan(), wide, key, config=config)
    with pytest.raises(ConfigError, match=r"gan: expected images \[8, 8, 1\], got \[6, 6, 1\]"):
        ju.train(ju.models.build_gan("mlp_gan", (8, 8, 1)), everything, key, config=config)
