"""Sources for streams, good and bad; imported by workers too, and so without JAX."""

import io
import os
import signal
import time

import numpy as np

rng = np.random.default_rng(0)
Y = rng.permutation(np.repeat(np.arange(4), (30, 50, 40, 60))).astype(np.int32)
CENTRES = rng.uniform(40, 215, (4, 6, 6, 1))
X = np.clip(CENTRES[Y] + rng.normal(0, 30, (180, 6, 6, 1)), 0, 255).astype(np.uint8)


class Records:
    """Images and labels; reading some position may do something else."""

    def __init__(self, at=None, act=None):
        self.at, self.act = at, act

    def __len__(self):
        return len(X)

    def __getitem__(self, position):
        if position == self.at:
            return self.act()
        return X[position], Y[position]


class Together(Records):
    """Reads several at once, and only so."""

    def __getitems__(self, positions):
        return [{"image": X[p], "label": Y[p]} for p in positions]

    def __getitem__(self, position):
        raise AssertionError("one by one")


def end_worker():
    os.kill(os.getpid(), signal.SIGKILL)


def hang():
    time.sleep(60)


def beyond():
    raise IndexError("list index out of range")


def leave():
    raise SystemExit(3)


def interrupt():
    raise KeyboardInterrupt


def undecodable():
    raise ValueError("no\nimage\nfile")


def of_another_size():
    return np.zeros((5, 5, 1), np.uint8), 0


def not_finite():
    return np.full((6, 6, 1), np.nan), 0


def as_npz(position):
    buffer = io.BytesIO()
    np.savez(buffer, x=X[position], y=Y[position])
    return buffer.getvalue()
