"""Patches: the places they are cut from, and concepts planted in images."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxunlearn.concepts import make_bank, patch_bank, typical_patches
from jaxunlearn.concepts.patches import (
    _replicate,
    draw_images,
    make_grid,
    patch_features,
    pick_typical,
)

SIDE, PART = 12, 4


@pytest.mark.parametrize("height", [6, 12, 28])
@pytest.mark.parametrize("width", [6, 17])
@pytest.mark.parametrize("crop", [0.2, 0.4, 1.0])
@pytest.mark.parametrize("stride", [0.3, 1.0])
def test_places_cover_the_image(height, width, crop, stride):
    grid = make_grid(height, width, crop, stride)
    covered = np.zeros((height, width), bool)
    for row, column in grid.corner:
        assert 0 <= row <= height - grid.size
        assert 0 <= column <= width - grid.size
        covered[row : row + grid.size, column : column + grid.size] = True
    assert covered.all()
    assert grid.size == max(1, round(crop * min(height, width)))
    assert len(np.unique(grid.corner, axis=0)) == len(grid.corner)


def test_patches_are_cut_and_resized():
    images = jax.random.normal(jax.random.key(0), (5, 8, 8, 2))
    grid = make_grid(8, 8, 0.5, 1.0)

    def flat(variables, x):
        return x.reshape(x.shape[0], -1) * variables

    found = patch_features(flat, jnp.float32(2), images, grid, batch_size=3)
    assert found.shape == (5, 4, 128)
    for image in (0, 4):
        for place, (row, column) in enumerate(grid.corner):
            crop = images[image, row : row + 4, column : column + 4]
            wanted = 2 * jax.image.resize(crop, (8, 8, 2), "bilinear")
            np.testing.assert_allclose(found[image, place], wanted.reshape(-1), rtol=1e-5)


def test_typical_patches_are_the_strongest_of_different_images():
    grid = make_grid(4, 4, 0.5, 1.0)
    strength = np.zeros((3, 4, 2), np.float32)
    strength[0, 2, 0], strength[0, 3, 0], strength[2, 1, 0] = 5, 6, 4
    strength[1, 0, 1] = 1
    found = pick_typical(strength, grid, 2, np.array([10, 20, 30]))
    assert found.image[0].tolist() == [10, 30]
    assert found.image[1][0] == 20
    assert found.corner[0].tolist() == [[2, 2], [0, 2]]
    np.testing.assert_array_equal(found.strength, [[6, 4], [1, 0]])
    assert found.image.dtype == found.corner.dtype == np.int32
    assert found.strength.dtype == np.float32
    assert pick_typical(strength, grid, 8).image.shape == (2, 3), "no more than images"


def test_images_are_drawn_evenly_over_labels():
    labels = np.array([0] * 90 + [1] * 10)
    drawn = draw_images(100, 4, 43, labels, 0)
    assert len(drawn) == 10
    assert np.bincount(labels[drawn]).tolist() == [5, 5]
    assert len(draw_images(100, 4, 1, None, 0)) == 1


# ---- planted: four textures, a detector for each, and images that hold some of them

TEXTURES = np.stack(
    [
        np.indices((PART, PART))[0] % 2,
        np.indices((PART, PART))[1] % 2,
        np.indices((PART, PART)).sum(0) % 2,
        np.indices((PART, PART))[0] // 2,
    ]
).astype(np.float32)
TEXTURES -= TEXTURES.mean(axis=(1, 2), keepdims=True)
DETECTORS = jnp.asarray(TEXTURES.reshape(4, -1).T)
# each texture drives eight features of its own, unevenly
SPREAD = np.random.default_rng(5).uniform(0.5, 1.5, (4, 32))
SPREAD = jnp.asarray(SPREAD * np.kron(np.eye(4), np.ones((1, 8))), jnp.float32)


def detect(variables, x):
    """``[B, 32]``: how much of each texture is in the image, brought to the patch's size."""
    parts = jax.image.resize(x, (x.shape[0], PART, PART, 1), "linear", antialias=False)
    return jax.nn.relu(parts.reshape(x.shape[0], -1) @ variables) @ SPREAD


def planted_images(count=80):
    rng = np.random.default_rng(0)
    cells = SIDE // PART
    which = rng.integers(0, 5, (count, cells, cells))
    parts = np.concatenate([TEXTURES, np.zeros((1, PART, PART), np.float32)])[which]
    images = parts.transpose(0, 1, 3, 2, 4).reshape(count, SIDE, SIDE)
    return (images + 0.02 * rng.normal(size=images.shape)).astype(np.float32)[..., None], which


def found_bank(**options):
    images, which = planted_images()
    options = {"concepts": 4, "crop": PART / SIDE, "stride": 1.0, "typical": 5, **options}
    return *patch_bank(detect, DETECTORS, images, **options), which


def test_planted_concepts_are_found():
    bank, patches, which = found_bank()
    assert bank.vectors.shape == (4, 32)
    np.testing.assert_allclose(jnp.linalg.norm(bank.vectors, axis=1), 1, rtol=1e-5)
    wanted = SPREAD / jnp.linalg.norm(SPREAD, axis=1, keepdims=True)
    cosines = np.asarray(bank.vectors @ wanted.T)
    order = cosines.argmax(axis=1)
    assert sorted(order) == [0, 1, 2, 3]
    assert cosines.max(axis=1).min() > 0.95
    assert bank.useful.all()
    assert bank.accuracy.min() > 0.8
    # the patches shown hold the texture that the concept stands for
    assert patches.size == PART
    assert patches.image.shape == (4, 5)
    for concept in range(4):
        assert len(set(patches.image[concept])) == 5
        for image, (row, column) in zip(
            patches.image[concept], patches.corner[concept], strict=True
        ):
            assert which[image, row // PART, column // PART] == order[concept]
    assert (np.diff(patches.strength, axis=1) <= 0).all()


def test_the_margin_of_an_average_patch_is_zero():
    bank, _, _ = found_bank()
    images, _ = planted_images()
    grid = make_grid(SIDE, SIDE, PART / SIDE, 1.0)
    mean = patch_features(detect, DETECTORS, images, grid).mean(axis=(0, 1))
    np.testing.assert_allclose(bank.vectors @ mean, -bank.intercepts, rtol=0.15)


def test_a_direction_that_other_images_lack_is_told():
    images, _ = planted_images()
    grid = make_grid(SIDE, SIDE, PART / SIDE, 1.0)
    x = patch_features(detect, DETECTORS, images, grid).reshape(-1, 32)
    rng = np.random.default_rng(0)
    unit = np.asarray(SPREAD) / np.linalg.norm(SPREAD, axis=1, keepdims=True)
    vectors = np.concatenate([unit, rng.permuted(unit[:2], axis=1)]).astype(np.float32)
    quality = _replicate(vectors, x, 40, rng, 0)
    assert quality.p_value[:4].max() < 0.05
    assert quality.accuracy[:4].min() > quality.accuracy[4:].max()
    assert quality.p_value[4:].min() > 0.05


def test_noise_is_hardly_ever_a_concept():
    def blind(variables, x):
        return jax.nn.relu(x.reshape(x.shape[0], -1) @ variables)

    images = np.random.default_rng(0).normal(size=(60, 6, 6, 1))
    weights = jax.random.normal(jax.random.key(0), (36, 128))
    try:
        bank, _ = patch_bank(blind, weights, images, concepts=8, crop=1.0)
    except ValueError as error:
        assert "other images have too, got none" in str(error)  # noqa: PT017
    else:
        assert bank.useful.sum() <= 4


def test_the_same_seed_gives_the_same_bank():
    one, two = (found_bank(seed=3, patches=400) for _ in range(2))
    jax.tree.map(np.testing.assert_array_equal, one[0], two[0])
    np.testing.assert_array_equal(one[1].image, two[1].image)


def test_the_patches_of_any_bank():
    images, which = planted_images()
    bank = make_bank([f"texture {k}" for k in range(4)], SPREAD)
    found = typical_patches(
        bank, detect, DETECTORS, images, crop=PART / SIDE, stride=1.0, typical=3, patches=360
    )
    assert found.image.shape == (4, 3)
    assert len(np.unique(found.image)) <= 40, "of as many images as have 360 patches"
    for concept in range(4):
        row, column = found.corner[concept, 0] // PART
        assert which[found.image[concept, 0], row, column] == concept


def signed(variables, x):
    return x.reshape(x.shape[0], -1) @ variables


@pytest.mark.parametrize(
    ("fn", "shape", "options", "message"),
    [
        (signed, (9, 6, 6, 1), {"concepts": 3}, "expected none below 0 .*relu"),
        (detect, (9, 6, 6), {}, r"images: expected shape \[N, H, W, C\]"),
        (detect, (9, 6, 6, 1), {"concepts": 33}, "concepts: expected from 2 to 32"),
        (detect, (9, 6, 6, 1), {"concepts": 1}, "concepts: expected from 2 to 32"),
        (detect, (9, 6, 6, 1), {"crop": 0.0}, "crop: expected a share"),
        (detect, (9, 6, 6, 1), {"stride": 1.5}, "stride: expected a share"),
        (detect, (9, 6, 6, 1), {"held_out": 0.0}, "held_out: expected a share"),
        (detect, (9, 6, 6, 1), {"randoms": 10}, "randoms: expected at least 20"),
        (detect, (9, 6, 6, 1), {"typical": 0}, "typical: expected at least 1"),
        (detect, (9, 6, 6, 1), {"labels": np.zeros(4)}, r"labels: expected shape \[9\]"),
        (detect, (3, 6, 6, 1), {}, "images: expected at least 4"),
        (lambda v, x: x @ jnp.ones((1, 9)), (9, 6, 6, 1), {}, r"expected features \[B, n\]"),
        (lambda v, x: 0 * detect(v, x), (9, 6, 6, 1), {}, "got zeros only"),
        (lambda v, x: jnp.inf * detect(v, x), (9, 6, 6, 1), {}, "finite numbers"),
    ],
)
def test_mistakes(fn, shape, options, message):
    x = np.random.default_rng(0).normal(size=shape)
    variables = jnp.ones((36, 8)) if fn is signed else DETECTORS
    with pytest.raises(ValueError, match=message):
        patch_bank(fn, variables, x, **{"concepts": 4, **options})
