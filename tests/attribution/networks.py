"""Small networks of every kind, as ``(fn, variables, x)``: what the contract table runs on."""

import jax
import jax.numpy as jnp
import nets
import numpy as np
from jax import lax


class Draws:
    """Random arrays from one seed."""

    def __init__(self, seed=0):
        self.rng = np.random.default_rng(seed)

    def __call__(self, *shape, scale=1.0):
        return nets.array(self.rng.normal(size=shape) * scale)

    def dense(self, n_in, n_out):
        return {"kernel": self(n_in, n_out, scale=n_in**-0.5), "bias": self(n_out, scale=0.1)}

    def conv(self, size, n_in, n_out, bias=True):
        kernel = self(size, size, n_in, n_out, scale=(size * size * n_in) ** -0.5)
        return {"kernel": kernel, "bias": self(n_out, scale=0.1)} if bias else {"kernel": kernel}

    def norm(self, n):
        # scales of both signs, as a trained batch norm may have
        return {
            "weight": 1 + self(n, scale=0.8),
            "bias": self(n, scale=0.2),
            "running_mean": self(n, scale=0.2),
            "running_var": jnp.exp(self(n, scale=0.3)),
        }


def _flat(x):
    return x.reshape(x.shape[0], -1)


def mlp(act=jax.nn.relu):
    draw = Draws(1)
    p = {"fc1": draw.dense(6, 8), "fc2": draw.dense(8, 7), "fc3": draw.dense(7, 3)}

    def fn(variables, x):
        p = variables["params"]
        return nets.dense(p["fc3"], act(nets.dense(p["fc2"], act(nets.dense(p["fc1"], x)))))

    return fn, {"params": p}, draw(4, 6)


def lenet():
    draw = Draws(2)
    p = {"conv1": draw.conv(3, 2, 4), "bn1": draw.norm(4), "conv2": draw.conv(3, 4, 5)}
    p |= {"bn2": draw.norm(5), "fc": draw.dense(20, 3)}

    def fn(variables, x):
        p = variables["params"]
        x = nets.max_pool(jax.nn.relu(nets.batch_norm(p["bn1"], nets.conv(p["conv1"], x, pad=1))))
        x = nets.max_pool(jax.nn.relu(nets.batch_norm(p["bn2"], nets.conv(p["conv2"], x, pad=1))))
        return nets.dense(p["fc"], _flat(x))

    return fn, {"params": p}, draw(3, 8, 8, 2)


def resnet():
    """An identity skip, a projected one with stride 2, batch norm throughout."""
    draw = Draws(3)
    p = {"stem": draw.conv(3, 2, 4, bias=False), "stem_bn": draw.norm(4)}
    for name, n_in, n_out in (("block1", 4, 4), ("block2", 4, 6)):
        p[name] = {
            "conv1": draw.conv(3, n_in, n_out, bias=False), "bn1": draw.norm(n_out),
            "conv2": draw.conv(3, n_out, n_out, bias=False), "bn2": draw.norm(n_out),
        }  # fmt: skip
    p["block2"] |= {"proj": draw.conv(1, 4, 6, bias=False), "proj_bn": draw.norm(6)}
    p["fc"] = draw.dense(6, 3)

    def block(p, x, stride):
        y = jax.nn.relu(nets.batch_norm(p["bn1"], nets.conv(p["conv1"], x, stride, pad=1)))
        y = nets.batch_norm(p["bn2"], nets.conv(p["conv2"], y, pad=1))
        if "proj" in p:
            x = nets.batch_norm(p["proj_bn"], nets.conv(p["proj"], x, stride))
        return jax.nn.relu(x + y)

    def fn(variables, x):
        p = variables["params"]
        x = jax.nn.relu(nets.batch_norm(p["stem_bn"], nets.conv(p["stem"], x, pad=1)))
        x = block(p["block2"], block(p["block1"], x, 1), 2)
        return nets.dense(p["fc"], jnp.mean(x, axis=(1, 2)))

    return fn, {"params": p}, draw(3, 8, 8, 2)


def avgpool():
    draw = Draws(4)
    p = {"conv1": draw.conv(3, 2, 4), "conv2": draw.conv(3, 4, 5), "fc": draw.dense(5, 3)}

    def fn(variables, x):
        p = variables["params"]
        x = nets.avg_pool(jax.nn.relu(nets.conv(p["conv1"], x, pad=1)), 3, 2, 1)
        x = jax.nn.silu(nets.conv(p["conv2"], x, pad=1))
        return nets.dense(p["fc"], jnp.mean(x, axis=(1, 2)))

    return fn, {"params": p}, draw(3, 8, 8, 2)


def group_norm():
    draw = Draws(5)
    p = {"conv": draw.conv(3, 2, 4), "scale": 1 + draw(4, scale=0.3), "shift": draw(4, scale=0.2)}
    p["fc"] = draw.dense(4, 3)

    def fn(variables, x):
        p = variables["params"]
        x = nets.conv(p["conv"], x, pad=1)
        grouped = x.reshape(*x.shape[:3], 2, 2)
        mean = jnp.mean(grouped, axis=(1, 2, 4), keepdims=True)
        var = jnp.var(grouped, axis=(1, 2, 4), keepdims=True)
        x = ((grouped - mean) * lax.rsqrt(var + 1e-5)).reshape(x.shape)
        x = jax.nn.relu(x * p["scale"][None, None, None] + p["shift"][None, None, None])
        return nets.dense(p["fc"], jnp.mean(x, axis=(1, 2)))

    return fn, {"params": p}, draw(3, 6, 6, 2)


def gated():
    """A recurrent network in a scan, with a gate: three steps over rows of the input."""
    draw = Draws(6)
    p = {"in": draw.dense(4, 5), "rec": draw.dense(5, 5), "gate": draw.dense(4, 5)}
    p["head"] = draw.dense(5, 3)

    def fn(variables, x):
        p = variables["params"]

        def step(h, row):
            new = jnp.tanh(nets.dense(p["in"], row) + nets.dense(p["rec"], h))
            return jax.nn.sigmoid(nets.dense(p["gate"], row)) * new, None

        h, _ = lax.scan(step, jnp.zeros((x.shape[0], 5), x.dtype), jnp.swapaxes(x, 0, 1))
        return nets.dense(p["head"], h)

    return fn, {"params": p}, draw(4, 3, 4)


def layer_norm(p, x):
    mean = jnp.mean(x, axis=-1, keepdims=True)
    var = jnp.mean(jnp.square(x), axis=-1, keepdims=True) - jnp.square(mean)
    y = (x - mean) * lax.rsqrt(var + 1e-6)
    return y * p["scale"][None, None] + p["bias"][None, None]


def attention(p, x, heads=2):
    batch, length, width = x.shape

    def split(name):
        y = x @ p[name]["kernel"] + p[name]["bias"][None, None]
        return y.reshape(batch, length, heads, width // heads)

    q, k, v = split("query"), split("key"), split("value")
    scores = jnp.einsum("bqhd,bkhd->bhqk", q, k) / (width // heads) ** 0.5
    y = jnp.einsum("bhqk,bkhd->bqhd", jax.nn.softmax(scores, axis=-1), v)
    return y.reshape(batch, length, width) @ p["out"]["kernel"] + p["out"]["bias"][None, None]


def vision_transformer():
    """Patches, a class token, positions, a pre-norm block with gelu."""
    draw = Draws(7)
    width = 8
    p = {"patch": draw.conv(4, 2, width), "token": draw(1, 1, width, scale=0.5)}
    p["position"] = draw(1, 5, width, scale=0.5)
    p |= {name: draw.dense(width, width) for name in ("query", "key", "value", "out")}
    p |= {"up": draw.dense(width, 12), "down": draw.dense(12, width)}
    for norm in ("norm1", "norm2", "norm"):
        p[norm] = {"scale": 1 + draw(width, scale=0.2), "bias": draw(width, scale=0.1)}
    p["head"] = draw.dense(width, 3)

    def fn(variables, x):
        p = variables["params"]
        x = nets.conv(p["patch"], x, stride=4).reshape(x.shape[0], 4, width)
        token = jnp.broadcast_to(p["token"], (x.shape[0], 1, width))
        x = jnp.concatenate([token, x], axis=1) + p["position"]
        x = x + attention(p, layer_norm(p["norm1"], x))
        h = layer_norm(p["norm2"], x) @ p["up"]["kernel"] + p["up"]["bias"][None, None]
        x = x + jax.nn.gelu(h) @ p["down"]["kernel"] + p["down"]["bias"][None, None]
        return nets.dense(p["head"], layer_norm(p["norm"], x)[:, 0])

    return fn, {"params": p}, draw(3, 8, 8, 2)


def every_step():
    """A step of every kind, from an image and a caption.

    Convolutions with batch norm, a max-pool, a skip, an average pool; rows of a table, a class
    token, a layer norm, attention; tokens picked by size, written, summed and multiplied over
    positions; a gate in a loop, a choice, an extreme over positions.
    """
    draw = Draws(8)
    width = 6
    p = {"conv1": draw.conv(3, 2, 4), "bn1": draw.norm(4), "conv2": draw.conv(3, 4, 4)}
    p |= {"patch": draw.dense(4, width), "table": draw(7, width), "token": draw(1, 1, width)}
    p |= {name: draw.dense(width, width) for name in ("query", "key", "value", "out", "rec")}
    p |= {"norm": {"scale": 1 + draw(width, scale=0.2), "bias": draw(width, scale=0.1)}}
    p |= {"gate": draw.dense(width, width), "other": draw.dense(width, width)}
    p["head"] = draw.dense(width, 3)

    def fn(variables, x):
        p = variables["params"]
        h = nets.max_pool(
            jax.nn.relu(nets.batch_norm(p["bn1"], nets.conv(p["conv1"], x["image"], pad=1)))
        )
        h = nets.avg_pool(h + jax.nn.silu(nets.conv(p["conv2"], h, pad=1)), 2, 2, 0)
        h = h.reshape(h.shape[0], 4, 4) @ p["patch"]["kernel"] + p["patch"]["bias"][None, None]
        token = jnp.broadcast_to(p["token"], (h.shape[0], 1, width))
        h = jnp.concatenate([token, h, p["table"][x["caption"]]], axis=1)
        h = h + attention(p, layer_norm(p["norm"], h))
        h = h.at[:, jnp.array([1])].set(jnp.sort(h[:, 2:3], axis=-1))
        h = h.at[:, jnp.array([3, 3])].add(jnp.cumprod(jnp.tanh(h[:, 4:6]), axis=1))

        def step(state, row):
            new = jnp.tanh(nets.dense(p["rec"], state) + row)
            return jax.nn.sigmoid(nets.dense(p["gate"], row)) * new, None

        state, _ = lax.scan(step, jnp.max(h, axis=1), jnp.swapaxes(h[:, :1], 0, 1))
        state = jnp.maximum(state, nets.dense(p["other"], h[:, 0]))
        return nets.dense(p["head"], state + jax.nn.logsumexp(h, axis=1))

    x = {"image": draw(3, 8, 8, 2), "caption": jnp.array([[1, 6, 0], [2, 2, 5], [3, 0, 4]])}
    return fn, {"params": p}, x


NETWORKS = {
    "mlp": mlp,
    "mlp_gelu": lambda: mlp(jax.nn.gelu),
    "lenet": lenet,
    "resnet": resnet,
    "avgpool": avgpool,
    "group_norm": group_norm,
    "gated": gated,
    "vision_transformer": vision_transformer,
    "every_step": every_step,
}
