"""The networks of :mod:`nets` with names for their layers, as the reference taps them."""

import jax
import jax.numpy as jnp
import nets
from jax.ad_checkpoint import checkpoint_name as name


def mlp(activation):
    def apply(variables, x):
        p = variables["params"]
        h = name(activation(nets.dense(p["fc1"], x)), "act1")
        h = name(activation(nets.dense(p["fc2"], h)), "act2")
        return nets.dense(p["fc3"], h)

    return apply


def lenet_bn_maxpool(variables, x):
    p = variables["params"]
    x = nets.batch_norm(p["bn1"], nets.conv(p["conv1"], x, pad=2))
    x = nets.max_pool(name(jax.nn.relu(x), "relu1"))
    x = nets.batch_norm(p["bn2"], nets.conv(p["conv2"], x))
    x = name(nets.max_pool(name(jax.nn.relu(x), "relu2")), "pool2")
    x = name(jax.nn.relu(nets.dense(p["fc1"], x.reshape(x.shape[0], -1))), "relu3")
    return nets.dense(p["fc2"], x)


def avgpool_net(variables, x):
    p = variables["params"]
    x = name(jax.nn.relu(nets.conv(p["conv1"], x, pad=1)), "relu1")
    x = nets.avg_pool(x, 2, 2, 0)
    x = name(jax.nn.relu(nets.conv(p["conv2"], x, stride=2, pad=1)), "relu2")
    return nets.dense(p["fc"], jnp.mean(nets.avg_pool(x, 3, 2, 1), axis=(1, 2)))


NETS = {
    "mlp_relu": mlp(jax.nn.relu),
    "mlp_leaky": mlp(lambda x: jax.nn.leaky_relu(x, 0.1)),
    "lenet_bn_maxpool": lenet_bn_maxpool,
    "avgpool_net": avgpool_net,
}


def load(net):
    """Reference numbers, and in float64 ``(variables, x, target)``."""
    golden = nets.load(net)
    variables = nets.variables_of(golden, jnp.float64)
    x = nets.array(nets.channels_last(golden["x"]), jnp.float64)
    reference = {key: nets.channels_last(value) for key, value in nets.load(f"ig_{net}").items()}
    return reference, (variables, x, jnp.asarray(golden["target"]))
