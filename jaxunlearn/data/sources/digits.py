"""The embedded digits: scikit-learn's, with a test split of our own."""

import numpy as np

from jaxunlearn.data.dataset import Dataset, make_dataset, resize_all

_TEST = 800


def load_digits(size: int | None) -> Dataset:
    """The 1,797 images of scikit-learn, 997 of them for training."""
    import sklearn.datasets

    images, y = sklearn.datasets.load_digits(return_X_y=True)
    x = np.rint(images.reshape(-1, 8, 8, 1) * (255 / 16)).astype(np.uint8)
    # RandomState, because its stream is frozen; a Generator's may change with NumPy
    shuffled = np.random.RandomState(0).permutation(len(y))
    by_class = shuffled[np.argsort(y[shuffled], kind="stable")]
    # every (N / 800)-th of the images sorted by class: in proportion, and 800 exactly
    steps = np.arange(len(y) + 1) * _TEST // len(y)
    test = np.zeros(len(y), bool)
    test[by_class[np.diff(steps) == 1]] = True
    arrays = {
        "train_x": resize_all(x[~test], size),
        "train_y": y[~test].astype(np.int32),
        "test_x": resize_all(x[test], size),
        "test_y": y[test].astype(np.int32),
    }
    return make_dataset(arrays, [str(digit) for digit in range(10)])
