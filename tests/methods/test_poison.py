"""Poisoned batches: places, patches, labels and choices, by hand and against loops."""

import functools
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxunlearn.methods import shares
from jaxunlearn.methods.concept_poison import poison

KEY = jax.random.key(5)


def photographs(batch=3, height=6, width=8, colours=3):
    return jax.random.uniform(jax.random.key(0), (batch, height, width, colours))


def same(found, expected):
    jax.tree.map(np.testing.assert_array_equal, found, expected)


# every function is compiled but in one test, which compares them with themselves uncompiled
peaks = jax.jit(poison.peaks, static_argnums=(1, 2, 3))
anywhere = jax.jit(poison.anywhere, static_argnums=(1, 2, 3))
crop = jax.jit(poison.crop, static_argnums=2)
paste = jax.jit(poison.paste)
poison_labels = jax.jit(poison.poison_labels, static_argnums=(0, 3))
donor_positions = jax.jit(shares.donor_positions)
keep_share = jax.jit(shares.keep_share, static_argnums=(2, 4, 5))


# ---------------------------------------------------------------- places


def test_the_peak_is_the_middle_of_its_cell_moved_into_the_image():
    maps = jnp.zeros((3, 7, 7)).at[0, 3, 5].set(1).at[1, 0, 6].set(1).at[2, 6, 0].set(1)
    corners = peaks(maps, 1, 64, (224, 224, 3))
    # cells are 32 pixels wide: the middle of (3, 5) is (112, 176)
    same(corners, [[[80, 144]], [[0, 160]], [[160, 0]]])
    assert corners.dtype == jnp.int32


def test_maps_and_images_need_not_be_square():
    maps = jnp.zeros((1, 2, 4)).at[0, 1, 2].set(1)
    same(peaks(maps, 1, 3, (10, 24)), [[[6, 14]]])  # middle (7.5, 15)


def test_patches_of_several_peaks_do_not_touch_while_there_is_room():
    maps = jnp.arange(49.0).reshape(1, 7, 7)
    nine = np.asarray(peaks(maps, 9, 64, (224, 224)))[0]
    assert nine[:3].tolist() == [[160, 160], [160, 80], [160, 16]]
    for i in range(9):
        for j in range(i):
            assert (np.abs(nine[i] - nine[j]) >= 64).any()
    # then those whose middle is free, then the others, and never one twice
    more = np.asarray(peaks(maps, 49, 64, (224, 224)))[0]
    assert more[9].tolist() == [160, 112]
    pixel = np.asarray(peaks(maps, 49, 1, (7, 7)))[0]
    assert sorted(map(tuple, pixel)) == [(i, j) for i in range(7) for j in range(7)]
    beyond = np.asarray(peaks(maps, 60, 1, (7, 7)))[0]
    same(beyond[:49], pixel)


def test_of_equal_cells_the_first_in_row_order_and_nan_last():
    maps = jnp.stack([jnp.zeros((3, 3)), jnp.zeros((3, 3)).at[0, 0].set(jnp.nan)])
    same(peaks(maps, 2, 1, (3, 3)), [[[0, 0], [0, 1]], [[0, 1], [0, 2]]])
    lowest = jnp.full((1, 2, 2), -jnp.inf).at[0, 1, 0].set(-5.0)
    same(peaks(lowest, 1, 1, (2, 2)), [[[1, 0]]])


def test_the_peaks_of_random_maps_against_a_loop():
    maps = jax.random.normal(KEY, (20, 4, 5))
    found = np.asarray(peaks(maps, 3, 4, (16, 20)))
    for values, corners in zip(np.asarray(maps), found, strict=True):
        taken = []
        for flat in np.argsort(-values, axis=None):
            i, j = np.unravel_index(flat, values.shape)
            corner = np.array([4 * i, 4 * j])
            if len(taken) < 3 and all((np.abs(corner - t) >= 4).any() for t in taken):
                taken.append(corner)
        same(corners, np.stack(taken))


def test_the_middle_and_anywhere():
    same(poison.central(2, 4, (9, 28, 1)), [[[2, 12]], [[2, 12]]])
    same(poison.central(1, 9, (9, 28, 1)), [[[0, 9]]])
    corners = np.asarray(anywhere(KEY, 6000, 3, (5, 6)))
    assert corners.shape == (6000, 1, 2)
    assert corners.dtype == np.int32
    counts = np.zeros((3, 4))
    np.add.at(counts, tuple(corners[:, 0].T), 1)
    np.testing.assert_allclose(counts / 6000, 1 / 12, atol=0.015)
    same(anywhere(KEY, 2, 5, (5, 5)), np.zeros((2, 1, 2)))


# ---------------------------------------------------------------- patches


def test_a_patch_lies_where_its_corner_is():
    image = jnp.zeros((1, 4, 5, 1), jnp.uint8)
    patch = jnp.arange(1, 5, dtype=jnp.uint8).reshape(1, 1, 2, 2, 1)
    pasted = paste(image, patch, jnp.array([[[1, 2]]]))
    expected = np.zeros((4, 5))
    expected[1:3, 2:4] = [[1, 2], [3, 4]]
    same(pasted[0, ..., 0], expected)
    assert pasted.dtype == jnp.uint8


@pytest.mark.parametrize(
    ("corner", "row", "column"), [((0, 0), 0, 0), ((2, 3), 2, 3), ((9, 9), 2, 3), ((-1, 3), 0, 3)]
)
def test_a_corner_outside_is_moved_inside(corner, row, column):
    image, patch = jnp.zeros((1, 4, 5, 1)), jnp.ones((1, 1, 2, 2, 1))
    pasted = np.asarray(paste(image, patch, jnp.array([[corner]])))[0, ..., 0]
    assert pasted.sum() == 4
    assert (pasted[row : row + 2, column : column + 2] == 1).all()
    marked = jnp.asarray(pasted)[None, ..., None]
    same(crop(marked, jnp.array([[corner]]), 2), patch)


def test_later_patches_cover_earlier_ones():
    patches = jnp.stack([jnp.full((2, 2, 1), 1.0), jnp.full((2, 2, 1), 2.0)])[None]
    pasted = paste(jnp.zeros((1, 3, 3, 1)), patches, jnp.array([[[0, 0], [1, 1]]]))
    same(pasted[0, ..., 0], [[1, 1, 0], [1, 2, 2], [0, 2, 2]])


def test_what_is_cut_out_is_what_was_there():
    x, corners = photographs(), jnp.array([[[0, 0], [2, 3]], [[3, 5], [1, 1]], [[0, 5], [3, 0]]])
    cut = np.asarray(crop(x, corners, 3))
    assert cut.shape == (3, 2, 3, 3, 3)
    for b in range(3):
        for c in range(2):
            i, j = np.asarray(corners)[b, c]
            same(cut[b, c], np.asarray(x)[b, i : i + 3, j : j + 3])
    same(paste(x, crop(x, corners, 3), corners), x)


# ---------------------------------------------------------------- labels


def test_the_kinds_of_labels():
    labels, donors = jnp.array([1, 1, 1]), jnp.array([2, 0, 2])
    same(poison_labels("targeted", labels, donors, 3, KEY), donors)
    same(poison_labels("keep", labels, donors, 3, KEY), labels)
    many = jnp.full(8000, 1)
    drawn = poison_labels("random", many, many, 4, KEY)
    assert drawn.dtype == jnp.int32
    np.testing.assert_allclose(np.bincount(drawn, minlength=4) / 8000, 1 / 4, atol=0.02)
    for kind in poison.LABELS:
        short = jnp.zeros(2, jnp.uint8)
        assert poison_labels(kind, short, short, 3, KEY).dtype == jnp.int32


# ---------------------------------------------------------------- choices


SHARES = (0.1, 1 / 3, 0.5, 0.7, 1.0)
LABELS = np.random.default_rng(0).choice(4, 90, p=[0.5, 0.3, 0.2, 0.0])


@functools.cache
def kept_by_share():
    """Of the first 60 of 90 labels, for all shares in one program."""

    def all_of(labels, size):
        return [
            shares.keep_share(labels, size, share, KEY, shares.capacity_of(90, share, 4), 4)
            for share in SHARES
        ]

    return dict(zip(SHARES, jax.jit(all_of)(jnp.asarray(LABELS), jnp.int32(60)), strict=True))


@pytest.mark.parametrize("share", SHARES)
def test_the_share_of_each_class_is_exact(share):
    size, capacity = 60, shares.capacity_of(90, share, 4)
    positions, kept = kept_by_share()[share]
    counts = np.bincount(LABELS[:size], minlength=4)
    expected = [math.ceil(round(share * count, 9)) for count in counts]
    chosen = np.asarray(positions)[: int(kept)]
    assert positions.shape == (capacity,)
    assert len(set(chosen)) == int(kept) == sum(expected)
    same(np.bincount(LABELS[chosen], minlength=4), expected)
    assert chosen.max() < size
    same(positions[int(kept) :], np.resize(chosen, capacity - int(kept)))
    if share == 1:
        same(np.sort(chosen), np.arange(size))


def test_a_tenth_of_thirty_is_three():
    """.1 * 30 is 3.0000000000000004."""
    labels = jnp.zeros(30, jnp.int32)
    assert keep_share(labels, jnp.int32(30), 0.1, KEY, 13, 10)[1] == 3
    assert shares.capacity_of(30, 0.1, 10) == 13
    assert shares.capacity_of(30, 1e-9, 10) == 11
    assert shares.capacity_of(30, 1.0, 10) == 30


def test_which_are_kept_is_uniform_and_in_random_order():
    labels = jnp.array([0, 0, 1, 0, 0, 0, 1, 1, 1, 1])
    keep = functools.partial(shares.keep_share, capacity=6, num_classes=2)
    keys = jax.random.split(KEY, 4000)
    positions, kept = jax.jit(jax.vmap(lambda k: keep(labels, jnp.int32(7), 0.4, k)))(keys)
    same(kept, np.full(4000, 3))  # 2 of 5, 1 of 2
    chosen = np.asarray(positions)[:, :3]
    often = np.bincount(chosen.ravel(), minlength=10) / 4000
    np.testing.assert_allclose(often[[0, 1, 3, 4, 5]], 0.4, atol=0.03)
    np.testing.assert_allclose(often[[2, 6]], 0.5, atol=0.03)
    same(often[7:], 0)
    at = [np.isin(chosen[:, slot], [2, 6]).mean() for slot in range(3)]
    np.testing.assert_allclose(at, 1 / 3, atol=0.03)


def test_padding_does_not_change_the_choice():
    labels = np.random.default_rng(1).integers(0, 3, 40)
    longer = np.concatenate([labels, np.full(25, 1)])
    size = jnp.int32(40)
    short, kept = keep_share(jnp.asarray(labels), size, 0.5, KEY, 40, 3)
    long, again = keep_share(jnp.asarray(longer), size, 0.5, KEY, 60, 3)
    assert kept == again
    same(long[: int(kept)], short[: int(kept)])
    wanted = jnp.arange(9) % 3
    same(
        donor_positions(jnp.asarray(longer), size, wanted, KEY),
        donor_positions(jnp.asarray(labels), size, wanted, KEY),
    )


def test_nothing_is_kept_of_nothing():
    positions, kept = keep_share(jnp.ones(5, jnp.int32), jnp.int32(0), 0.5, KEY, 5, 3)
    assert kept == 0
    same(positions, np.zeros(5))


def test_donors_are_uniform_over_their_class_and_never_behind_the_end():
    labels = jnp.array([2, 0, 2, 1, 2, 0, 0, 2, 1])
    wanted = jnp.tile(jnp.array([0, 2]), 5000)
    found = np.asarray(donor_positions(labels, jnp.int32(6), wanted, KEY))
    assert found.dtype == np.int32
    often = np.bincount(found, minlength=9) / 5000
    np.testing.assert_allclose(often[[1, 5]], 1 / 2, atol=0.03)
    np.testing.assert_allclose(often[[0, 2, 4]], 1 / 3, atol=0.03)
    same(often[[3, 6, 7, 8]], 0)
    same(np.asarray(labels)[found], wanted)


def test_a_class_without_examples_has_no_donor():
    labels, largest = jnp.array([2, 0, 1]), jnp.iinfo(jnp.int32).max
    wanted = jnp.array([1, 5, -1, largest, 0])
    same(donor_positions(labels, jnp.int32(2), wanted, KEY), [-1, -1, -1, -1, 1])
    same(donor_positions(labels, jnp.int32(0), wanted, KEY), np.full(5, -1))


# ---------------------------------------------------------------- transforms


def batch(kind):
    """Arguments with a leading axis of three, and the function of one of them."""
    keys = jax.random.split(KEY, 3)
    x = jnp.stack([photographs(2), photographs(2) * 2, photographs(2) * 3])
    corners = jnp.array([[[[0, 0]], [[9, 2]]], [[[1, 5]], [[2, 2]]], [[[3, 3]], [[0, 4]]]])
    labels, sizes = jnp.array([[0, 1, 2, 0], [1, 1, 1, 1], [2, 2, 0, 1]]), jnp.array([4, 2, 3])
    return {
        "peaks": (lambda m: poison.peaks(m, 2, 3, (9, 9)), x.mean(-1)),
        "anywhere": (lambda k: poison.anywhere(k, 4, 3, (9, 7)), keys),
        "crop": (lambda x, c: poison.crop(x, c, 3), x, corners),
        "paste": (lambda x, c: poison.paste(x, x[:, None, :4, :4], c), x, corners),
        "labels": (lambda y, k: poison.poison_labels("random", y, y, 3, k), labels, keys),
        "share": (lambda y, n, k: shares.keep_share(y, n, 0.5, k, 4, 3), labels, sizes, keys),
        "donors": (lambda y, n, k: shares.donor_positions(y, n, y[:2], k), labels, sizes, keys),
    }[kind]


@pytest.mark.parametrize(
    "kind", ["peaks", "anywhere", "crop", "paste", "labels", "share", "donors"]
)
def test_compiled_and_mapped_as_in_a_loop(kind):
    """The same without compilation, compiled, and in two ways mapped over a leading axis."""
    fn, *args = batch(kind)
    rows = [fn(*(jax.tree.map(lambda a, i=i: a[i], args))) for i in range(len(args[0]))]
    stacked = jax.tree.map(lambda *xs: np.stack(xs), *rows)

    @jax.jit
    def all_of(args):
        alone = fn(*jax.tree.map(lambda a: a[0], args))
        return alone, jax.vmap(fn)(*args), jax.lax.map(lambda xs: fn(*xs), args)

    same(all_of(args), (rows[0], stacked, stacked))


# ---------------------------------------------------------------- mistakes


def test_the_pixels_of_a_patch():
    assert poison.patch_pixels(None, (224, 224, 3)) == 64
    assert poison.patch_pixels(None, (32, 48, 3)) == 9
    assert poison.patch_pixels(None, (2, 2)) == 1
    assert poison.patch_pixels(0.5, (28, 28, 1)) == 14
    assert poison.patch_pixels(1, (28, 40)) == 28
    for share in (0, 1.5, float("nan")):
        with pytest.raises(
            ValueError, match=r"patch: expected a share of .* above 0, at most 1, got"
        ):
            poison.patch_pixels(share, (28, 28))


def test_a_patch_that_does_not_fit_is_named():
    poison.check_patch(28, (28, 28, 1))
    message = r"patch: expected at most 28 pixels, as the images \[28, 28, 1\], got 40"
    with pytest.raises(ValueError, match=message):
        poison.check_patch(40, (28, 28, 1))
    with pytest.raises(ValueError, match="patch: expected at least 1 pixel, got 0"):
        poison.check_patch(0, (28, 28, 1))
    x, corners = photographs(), jnp.zeros((3, 1, 2), jnp.int32)
    for use in (
        lambda: poison.peaks(jnp.ones((3, 2, 2)), 1, 7, (6, 8)),
        lambda: poison.central(3, 7, (6, 8)),
        lambda: poison.anywhere(KEY, 3, 7, (6, 8)),
        lambda: poison.crop(x, corners, 7),
        lambda: poison.paste(x, jnp.ones((3, 1, 7, 7, 3)), corners),
    ):
        with pytest.raises(ValueError, match="patch: expected at most 6 pixels"):
            use()


def test_mistakes_are_named():
    x, corners = photographs(), jnp.zeros((3, 1, 2), jnp.int32)
    with pytest.raises(ValueError, match=r"maps: expected \[B, h, w\], got \(2, 2\)"):
        poison.peaks(jnp.ones((2, 2)), 1, 1, (6, 8))
    with pytest.raises(ValueError, match="count: expected a positive number, got 0"):
        poison.peaks(jnp.ones((3, 2, 2)), 0, 1, (6, 8))
    with pytest.raises(ValueError, match=r"images: expected \[B, H, W, C\], got \(6, 8, 3\)"):
        poison.crop(x[0], corners, 2)
    with pytest.raises(ValueError, match=r"corners: expected \[3, c, 2\], got \(2, 1, 2\)"):
        poison.crop(x, corners[:2], 2)
    with pytest.raises(ValueError, match=r"patches: expected shape \(3, 1, 2, 2, 3\), got"):
        poison.paste(x, jnp.ones((3, 1, 3, 2, 3)), corners)
    with pytest.raises(ValueError, match="patches: expected float32, as the images, got uint8"):
        poison.paste(x, jnp.ones((3, 1, 2, 2, 3), jnp.uint8), corners)
    with pytest.raises(
        ValueError, match=r"kind: expected one of .'targeted', 'random', 'keep'., got 'a'"
    ):
        poison.poison_labels("a", jnp.ones(2), jnp.ones(2), 3, KEY)
    labels, size = jnp.zeros(10, jnp.int32), jnp.int32(10)
    with pytest.raises(ValueError, match=r"share: expected a share above 0, at most 1, got 0"):
        shares.keep_share(labels, size, 0, KEY, 10, 2)
    with pytest.raises(ValueError, match="capacity: expected at least 7, got 5"):
        shares.keep_share(labels, size, 0.5, KEY, 5, 2)
