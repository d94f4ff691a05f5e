import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import jaxunlearn as ju
from jaxunlearn.config import TrainConfig
from jaxunlearn.config.overrides import load_config
from jaxunlearn.core.errors import ConfigError
from jaxunlearn.experiment.plan import make_plan
from jaxunlearn.training.descent import cross_entropy, trained, with_trained
from jaxunlearn.training.optimizers import crop_flip, make_augment, make_optimizer


def steps(config, gradients, total=10):
    optimizer, params = make_optimizer(config, total), jnp.ones(2)
    state, path = optimizer.init(params), []
    for gradient in gradients:
        with jax.numpy_dtype_promotion("standard"):  # as descent does: optax needs it
            updates, state = optimizer.update(jnp.full(2, gradient), state, params)
        params = optax.apply_updates(params, updates)
        path.append(float(params[0]))
    return path


def test_sgd_has_nesterov_momentum():
    config = TrainConfig(optimizer="sgd", learning_rate=0.1, momentum=0.5, schedule="constant")
    # v = g + .5 v;  step = -.1 (g + .5 v)
    np.testing.assert_allclose(steps(config, [1.0, 1.0]), [1 - 0.15, 1 - 0.15 - 0.175], rtol=1e-6)


def test_weight_decay_joins_the_gradient_or_stands_apart():
    sgd = TrainConfig(optimizer="sgd", learning_rate=0.1, momentum=0.0, schedule="constant")
    decayed = TrainConfig(**{**sgd.__dict__, "weight_decay": 0.5})
    np.testing.assert_allclose(steps(decayed, [0.0]), [1 - 0.1 * 0.5], rtol=1e-6)
    adamw = TrainConfig(**{**decayed.__dict__, "optimizer": "adamw"})
    np.testing.assert_allclose(steps(adamw, [0.0]), [1 - 0.1 * 0.5], rtol=1e-5)
    adam = TrainConfig(**{**decayed.__dict__, "optimizer": "adam"})
    np.testing.assert_allclose(steps(adam, [0.0]), [1 - 0.1], rtol=1e-4)


def test_cosine_ends_at_zero():
    config = TrainConfig(optimizer="sgd", learning_rate=0.1, momentum=0.0, schedule="cosine")
    path = steps(config, [1.0] * 5, total=4)
    assert path[0] == pytest.approx(0.9)
    assert path[4] == pytest.approx(path[3], abs=1e-7)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"optimizer": "lion"}, "got 'lion'"),
        ({"schedule": "step"}, "train.schedule: expected one of"),
        ({"learning_rate": 0.0}, "train.learning_rate: expected a positive number, got 0"),
    ],
)
def test_wrong_settings_are_named(change, message):
    with pytest.raises(ConfigError, match=message):
        make_optimizer(TrainConfig(**change), 10)


def test_cross_entropy_is_the_weighted_mean():
    logits = jnp.log(jnp.array([[0.5, 0.5], [0.9, 0.1], [0.2, 0.8]]))
    labels, weight = jnp.array([0, 1, 1]), jnp.array([1.0, 1.0, 0.0])
    wanted = -(np.log(0.5) + np.log(0.1)) / 2
    np.testing.assert_allclose(cross_entropy(logits, labels, weight), wanted, rtol=1e-6)
    np.testing.assert_allclose(cross_entropy(logits + 1e3, labels, weight), wanted, rtol=1e-4)


def test_collections_that_are_not_trained_stay_apart():
    variables = {"params": {"w": 1}, "batch_stats": {"m": 2}}
    assert trained(variables) == {"w": 1}
    assert with_trained(variables, {"w": 3}) == {"params": {"w": 3}, "batch_stats": {"m": 2}}
    assert trained([1, 2]) == [1, 2]
    assert with_trained([1, 2], [3, 4]) == [3, 4]


def test_crop_flip_moves_and_mirrors_whole_images():
    image = np.arange(1, 17, dtype=np.float32).reshape(1, 4, 4, 1)
    many = np.asarray(crop_flip(jnp.tile(image, (200, 1, 1, 1)), jax.random.key(0), pad=1))
    padded = np.pad(image[0], ((1, 1), (1, 1), (0, 0)))
    windows = [
        view[i : i + 4, j : j + 4]
        for view in (padded, padded[:, ::-1])
        for i in range(3)
        for j in range(3)
    ]
    found = {next(n for n, w in enumerate(windows) if (w == one).all()) for one in many}
    assert found == set(range(18)), "every shift and both mirror images, nothing else"


def test_unknown_augmentation():
    with pytest.raises(ConfigError, match="expected one of"):
        make_augment("blur")


CHANNELS_FIRST = {
    "rgb": ((3, 32, 32), "whose channels are the first axis"),
    "grey": ((1, 28, 28), "whose channels are the first axis"),
    "vectors": ((64,), r"for 'crop_flip', got \[64\]"),
    "maps": ((2, 8, 8, 3), r"got \[2, 8, 8, 3\]"),
}


@pytest.mark.parametrize("name", CHANNELS_FIRST)
def test_what_is_no_image_is_not_augmented(name):
    shape, message = CHANNELS_FIRST[name]
    x = jnp.zeros((4, *shape))
    with pytest.raises(ConfigError, match=r"augment: expected images \[H, W, C\].*" + message):
        make_augment("crop_flip")(x, jax.random.key(0))
    sets = ju.make_sets(x, np.arange(4) % 2, ju.forget_class(0))
    size = int(np.prod(shape))

    def flat(variables, x):
        return x.reshape(len(x), -1) @ variables["w"]

    model = ju.functionalize(flat, init=lambda key: {"w": jax.random.normal(key, (size, 2))})
    config = ju.TrainConfig(augment="crop_flip", batch_size=2)
    with pytest.raises(ConfigError, match=message):
        ju.train(model, sets.train, jax.random.key(0), config=config)
    method = ju.finetune(model, augment="crop_flip")
    with pytest.raises(ConfigError, match=message):
        ju.unlearn(method, model.init(jax.random.key(1)), sets, jax.random.key(0), steps=1)
    assert make_augment("none")(x, jax.random.key(0)) is x


def test_images_of_many_channels_are_augmented():
    for shape in ((4, 4, 13), (32, 32, 4), (2, 2, 1)):
        x = jnp.ones((2, *shape))
        assert make_augment("crop_flip")(x, jax.random.key(0)).shape == x.shape


@pytest.mark.parametrize("word", ["train.augment", "methods.finetune.augment"])
def test_a_run_refuses_to_augment_vectors_before_training(word, tmp_path):
    rng = np.random.default_rng(0)
    arrays = {f"{s}_x": rng.normal(size=(30, 4)).astype(np.float32) for s in ("train", "test")}
    labels = {f"{s}_y": np.arange(30) % 3 for s in ("train", "test")}
    np.savez(tmp_path / "own.npz", **arrays, **labels)
    words = [f"data.name={tmp_path / 'own.npz'}", "data.unseen=9", "methods=finetune"]
    words += ["request.classes=1", f"{word}=crop_flip"]
    with pytest.raises(ConfigError, match=r"expected images \[H, W, C\] for 'crop_flip', got"):
        make_plan(load_config(None, words), tmp_path)
