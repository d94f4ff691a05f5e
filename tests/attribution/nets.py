"""Networks as plain functions, and the reference numbers that belong to them.

The reference (zennit 0.5.1, float64) is channels first; the networks here are
channels last.
"""

import functools
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from jaxunlearn.attribution import lrp as transform

GOLDEN = Path(__file__).parent.parent / "golden" / "lrp"


@functools.cache
def load(name):
    """The arrays of one file, read once; nobody changes them."""
    with np.load(GOLDEN / f"{name}.npz") as archive:
        return dict(archive)


def array(values, dtype=jnp.float32):
    """An array on the device; ``jnp.asarray`` would compile a program for every shape."""
    return jax.device_put(np.asarray(values, dtype))


def draw(seed, *shape):
    return array(np.random.default_rng(seed).normal(size=shape))


def channels_last(array):
    return array.transpose(0, 2, 3, 1) if array.ndim == 4 else array


def variables_of(golden, dtype):
    """``{"params": {layer: {"kernel", "bias"}}}``, in Flax's layouts."""
    params = {}
    for key, value in golden.items():
        if not key.startswith("param/"):
            continue
        layer, name = key.removeprefix("param/").split(".")
        if name == "weight" and value.ndim > 1:
            name = "kernel"
            if layer == "fc1" and "param/conv2.weight" in golden:  # flattened as C, H, W
                value = value.reshape(32, 12, 3, 3).transpose(0, 2, 3, 1).reshape(32, -1)
            value = value.transpose(2, 3, 1, 0) if value.ndim == 4 else value.T
        params.setdefault(layer, {})[name] = array(value, dtype)
    return {"params": params}


def dense(p, x):
    return x @ p["kernel"] + p["bias"][None]


def conv(p, x, stride=1, pad=0):
    y = lax.conv_general_dilated(
        x,
        p["kernel"],
        (stride, stride),
        [(pad, pad)] * 2,
        dimension_numbers=("NHWC", "HWIO", "NHWC"),
    )
    return y + p["bias"][None, None, None] if "bias" in p else y


def batch_norm(p, x):
    scale = p["weight"] / jnp.sqrt(p["running_var"] + 1e-5)
    centred = x - p["running_mean"][None, None, None]
    return centred * scale[None, None, None] + p["bias"][None, None, None]


def max_pool(x, size=2):
    window = (1, size, size, 1)
    return lax.reduce_window(x, -jnp.inf, lax.max, window, window, "VALID")


def avg_pool(x, size, stride, pad):
    pads = ((0, 0), (pad, pad), (pad, pad), (0, 0))
    total = lax.reduce_window(x, 0.0, lax.add, (1, size, size, 1), (1, stride, stride, 1), pads)
    return total / (size * size)


def mlp_relu(variables, x):
    p = variables["params"]
    h = jax.nn.relu(dense(p["fc1"], x))
    return dense(p["fc3"], jax.nn.relu(dense(p["fc2"], h)))


def mlp_leaky(variables, x):
    p = variables["params"]
    h = jax.nn.leaky_relu(dense(p["fc1"], x), 0.1)
    z = dense(p["fc2"], h)
    return dense(p["fc3"], jnp.where(z >= 0, z, 0.1 * z))


def lenet_bn_maxpool(variables, x):
    p = variables["params"]
    x = max_pool(jax.nn.relu(batch_norm(p["bn1"], conv(p["conv1"], x, pad=2))))
    x = max_pool(jax.nn.relu(batch_norm(p["bn2"], conv(p["conv2"], x))))
    x = jax.nn.relu(dense(p["fc1"], x.reshape(x.shape[0], -1)))
    return dense(p["fc2"], x)


def avgpool_net(variables, x):
    p = variables["params"]
    x = avg_pool(jax.nn.relu(conv(p["conv1"], x, pad=1)), 2, 2, 0)
    x = avg_pool(jax.nn.relu(conv(p["conv2"], x, stride=2, pad=1)), 3, 2, 1)
    return dense(p["fc"], jnp.mean(x, axis=(1, 2)))


def lrp(fn, *rules, **options):
    """The transform as one program where all it is given are arrays: one for each operation else.

    Compiling many takes longer than one, which is nearly all of the time of a small network.
    """
    plain = transform(fn, *rules, **options)

    def relevance(*given, **named):
        arrays = {key: value for key, value in named.items() if all_arrays(value)}
        rest = {key: value for key, value in named.items() if key not in arrays}
        if not all_arrays(given):
            return plain(*given, **named)
        return jax.jit(lambda given, arrays: plain(*given, **arrays, **rest))(given, arrays)

    return relevance


def all_arrays(tree):
    return all(isinstance(leaf, jax.Array | np.ndarray) for leaf in jax.tree.leaves(tree))
