"""Networks of other people's packages, unchanged, small inputs, drawn parameters.

Each entry of ``NETWORKS`` builds one network when it is called; nothing is imported before. A
builder returns ``(fn, variables, x)``: ``fn(variables, x [B, ...]) -> logits [B, K]``.
"""

import os
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

os.environ.setdefault("KERAS_BACKEND", "jax")

CLASSES, BATCH, MANY = 10, 2, 16

Built = tuple[Callable[[Any, Any], jax.Array], Any, jax.Array]


class Network(NamedTuple):
    """A network that can be built.

    Attributes:
      name: of the network.
      packages: distributions to be installed, that of the network first.
      build: makes it.
    """

    name: str
    packages: tuple[str, ...]
    build: Callable[[], Built]


NETWORKS: list[Network] = []
DEEP: list[Network] = []
"""Networks of several depths, for what tracing and compiling takes."""


def add(
    name: str, *packages: str, to: list[Network] = NETWORKS
) -> Callable[[Callable[[], Built]], Callable[[], Built]]:
    """Enters a builder under a name."""

    def enter(build: Callable[[], Built]) -> Callable[[], Built]:
        to.append(Network(name, packages, build))
        return build

    return enter


def images(size: int = 32, channels_first: bool = False, count: int = BATCH) -> jax.Array:
    """Normal images ``[count, size, size, 3]``."""
    shape = (count, 3, size, size) if channels_first else (count, size, size, 3)
    return jnp.asarray(np.random.default_rng(1).normal(size=shape))


def series(length: int = 6, width: int = 8) -> jax.Array:
    """Normal sequences ``[B, length, width]``."""
    return jnp.asarray(np.random.default_rng(1).normal(size=(BATCH, length, width)))


def tokens(length: int = 8, vocabulary: int = 50) -> jax.Array:
    """Integers ``[B, length]``, none of which is a special one."""
    rng = np.random.default_rng(1)
    return jnp.asarray(rng.integers(5, vocabulary, (BATCH, length)), jnp.int32)


def draw(variables: Any, spread: float = 0.2) -> Any:
    """Adds noise to every array that is the same everywhere, and to every vector.

    A fresh network has biases of 0 and scales of 1: what they do is not seen.
    """
    rng = np.random.default_rng(0)

    def one(leaf: Any) -> Any:
        if not jnp.issubdtype(jnp.asarray(leaf).dtype, jnp.floating) or jnp.size(leaf) < 2:
            return leaf
        value = np.asarray(leaf, np.float64)
        if value.ndim > 1 and np.ptp(value) > 0:
            return jnp.asarray(value)
        return jnp.asarray(value + spread * rng.uniform(-1, 1, value.shape))

    return jax.tree.map(one, variables)


def settled(old: Any, update: Callable[..., Any], *args: Any) -> Any:
    """Returns the statistics that running means tend to, from two steps ``update(old, *args)``.

    Of a mean that goes the same share of its way each time: ``s + d^2 / (d - e)`` with the
    steps ``d`` and ``e``, whatever the share.
    """
    step = jax.jit(update)
    first = step(old, *args)
    second = step(first, *args)

    def limit(s: Any, one: Any, two: Any) -> Any:
        if not jnp.issubdtype(jnp.asarray(s).dtype, jnp.floating):
            return one
        d, e = one - s, two - one
        moves = jnp.abs(d - e) > 1e-12
        return jnp.where(moves, s + d * d / jnp.where(moves, d - e, 1), one)

    return jax.tree.map(limit, old, first, second)


# --- Flax: modules of the package in the smallest network around them


def _linen(module: Any, x: jax.Array, many: Any = None, **options: Any) -> Built:
    """Builds a Linen module; its batch statistics are those of ``many`` examples."""
    variables = draw(dict(module.init(jax.random.key(0), x, **options)))
    statistics = variables.pop("batch_stats", None)
    if statistics is not None:
        training = {"train": True} if "train" in options else {}

        def update(old: Any, given: Any, x: Any) -> Any:
            held = {**given, "batch_stats": old}
            return module.apply(held, x, **training, mutable=["batch_stats"])[1]["batch_stats"]

        variables["batch_stats"] = settled(statistics, update, variables, many)
    return lambda v, x: module.apply(v, x, **options), variables, x


def _flax_rnn(cell: str, both: bool = False) -> Callable[[], Built]:
    def build() -> Built:
        from flax import linen as nn

        class Net(nn.Module):
            @nn.compact
            def __call__(self, x: jax.Array) -> jax.Array:
                def make() -> Any:
                    return nn.RNN(getattr(nn, cell)(features=12, param_dtype=jnp.float64))

                h = nn.Bidirectional(make(), make())(x) if both else make()(x)
                return nn.Dense(CLASSES)(h[:, -1])

        return _linen(Net(), series())

    return build


for _cell in ("SimpleCell", "GRUCell", "MGUCell", "LSTMCell", "OptimizedLSTMCell"):
    add(f"nn.RNN({_cell})", "flax")(_flax_rnn(_cell))
add("nn.Bidirectional(LSTMCell)", "flax")(_flax_rnn("LSTMCell", both=True))


@add("nn.RNN(ConvLSTMCell)", "flax")
def _flax_conv_lstm() -> Built:
    from flax import linen as nn

    class Net(nn.Module):
        @nn.compact
        def __call__(self, x: jax.Array) -> jax.Array:
            cell = nn.ConvLSTMCell(features=4, kernel_size=(3, 3), param_dtype=jnp.float64)
            h = nn.RNN(cell)(x)
            return nn.Dense(CLASSES)(h[:, -1].mean(axis=(1, 2)))

    return _linen(Net(), jnp.asarray(np.random.default_rng(1).normal(size=(BATCH, 3, 8, 8, 3))))


def _flax_attention(norm: str) -> Callable[[], Built]:
    def build() -> Built:
        from flax import linen as nn

        class Net(nn.Module):
            @nn.compact
            def __call__(self, x: jax.Array) -> jax.Array:
                x = nn.Dense(16)(x)
                h = getattr(nn, norm)()(x)
                x = x + nn.MultiHeadDotProductAttention(num_heads=4)(h)
                h = getattr(nn, norm)()(x)
                x = x + nn.Dense(16)(nn.gelu(nn.Dense(32)(h)))
                return nn.Dense(CLASSES)(getattr(nn, norm)()(x).mean(axis=1))

        return _linen(Net(), series())

    return build


add("nn.MultiHeadDotProductAttention, LayerNorm", "flax")(_flax_attention("LayerNorm"))
add("nn.MultiHeadDotProductAttention, RMSNorm", "flax")(_flax_attention("RMSNorm"))


@add("nn.Embed of tokens, masked mean", "flax")
def _flax_text() -> Built:
    from flax import linen as nn

    class Net(nn.Module):
        @nn.compact
        def __call__(self, x: jax.Array) -> jax.Array:
            there = (x > 8)[..., None]
            h = nn.Embed(50, 16)(x) * there
            h = h.sum(axis=1) / jnp.maximum(there.sum(axis=1), 1)
            return nn.Dense(CLASSES)(nn.relu(nn.Dense(16)(h)))

    return _linen(Net(), tokens())


@add("convolutions, GroupNorm, autoencoder", "flax")
def _flax_autoencoder() -> Built:
    from flax import linen as nn

    class Net(nn.Module):
        @nn.compact
        def __call__(self, x: jax.Array) -> jax.Array:
            for width, stride in ((8, 1), (16, 2), (16, 2)):
                x = nn.relu(nn.GroupNorm(4)(nn.Conv(width, (3, 3), strides=stride)(x)))
            for width in (16, 8):
                x = nn.relu(nn.GroupNorm(4)(nn.ConvTranspose(width, (3, 3), strides=(2, 2))(x)))
            return nn.Conv(3, (3, 3))(x).reshape(x.shape[0], -1)[:, :CLASSES]

    return _linen(Net(), images(16))


@add("pre-activation, GroupNorm, standardised kernels", "flax")
def _flax_preactivation() -> Built:
    from flax import linen as nn

    class Net(nn.Module):
        @nn.compact
        def __call__(self, x: jax.Array) -> jax.Array:
            def conv(width: int, size: int) -> Any:
                return nn.WeightNorm(nn.Conv(width, (size, size), use_bias=False))

            x = conv(16, 3)(x)
            for _ in range(3):
                h = nn.relu(nn.GroupNorm(4)(x))
                h = conv(16, 1)(h)
                h = conv(16, 3)(nn.relu(nn.GroupNorm(4)(h)))
                x = x + conv(16, 1)(nn.relu(nn.GroupNorm(4)(h)))
            return nn.Dense(CLASSES)(nn.relu(nn.GroupNorm(4)(x)).mean(axis=(1, 2)))

    return _linen(Net(), images(16))


def _nnx(module: Any, x: jax.Array, call: Callable[[Any, Any], jax.Array] | None = None) -> Built:
    """Builds an NNX module, by its own ``split`` and ``merge``."""
    from flax import nnx

    module.eval()
    graph, parameters, rest = nnx.split(module, nnx.Param, ...)
    drawn = draw(nnx.to_pure_dict(parameters))

    def fn(variables: Any, x: Any) -> jax.Array:
        held, others = (jax.tree.map(lambda leaf: leaf, part) for part in (parameters, rest))
        nnx.replace_by_pure_dict(held, variables)
        merged = nnx.merge(graph, held, others)
        return merged(x) if call is None else call(merged, x)

    return fn, drawn, x


@add("nnx.RNN(GRUCell)", "flax")
def _nnx_rnn() -> Built:
    from flax import nnx

    class Net(nnx.Module):
        def __init__(self) -> None:
            rngs = nnx.Rngs(0)
            self.rnn = nnx.RNN(nnx.GRUCell(8, 12, param_dtype=jnp.float64, rngs=rngs))
            self.head = nnx.Linear(12, CLASSES, rngs=rngs)

        def __call__(self, x: jax.Array) -> jax.Array:
            return self.head(self.rnn(x)[:, -1])

    return _nnx(Net(), series())


@add("nnx.MultiHeadAttention, log_softmax", "flax")
def _nnx_attention() -> Built:
    from flax import nnx

    class Net(nnx.Module):
        def __init__(self) -> None:
            rngs = nnx.Rngs(0)
            self.attention = nnx.MultiHeadAttention(2, 8, decode=False, rngs=rngs)
            self.norm = nnx.LayerNorm(8, rngs=rngs)
            self.head = nnx.Linear(8, CLASSES, rngs=rngs)

        def __call__(self, x: jax.Array) -> jax.Array:
            h = self.norm(x + self.attention(x))
            return jax.nn.log_softmax(self.head(h.mean(axis=1)))

    return _nnx(Net(), series())


# --- Haiku


def _haiku(make: Callable[[Any], Any], x: jax.Array, many: Any = None) -> Built:
    """Builds a Haiku function ``make(hk) -> (x, training) -> logits``."""
    import haiku as hk

    net = hk.without_apply_rng(hk.transform_with_state(lambda x, t: make(hk)(x, t)))
    variables, state = net.init(jax.random.key(0), x, many is not None)
    variables = draw(variables)
    if many is not None:
        state = jax.jit(lambda v, s, x: net.apply(v, s, x, True)[1])(variables, state, many)
    return lambda v, x: net.apply(v[0], v[1], x, False)[0], (variables, state), x


def _haiku_nets(name: str, size: int = 32, **options: Any) -> Callable[[], Built]:
    def build() -> Built:
        def make(hk: Any) -> Any:
            return getattr(hk.nets, name)(num_classes=CLASSES, **options)

        return _haiku(make, images(size), images(size, count=MANY))

    return build


add("hk.nets.ResNet18", "dm-haiku")(_haiku_nets("ResNet18"))
add("hk.nets.ResNet50 (v2)", "dm-haiku")(_haiku_nets("ResNet50", resnet_v2=True))
for _depth in (18, 50, 152):
    add(f"ResNet-{_depth}", "dm-haiku", to=DEEP)(_haiku_nets(f"ResNet{_depth}"))
add("hk.nets.MobileNetV1", "dm-haiku")(_haiku_nets("MobileNetV1"))


def _haiku_rnn(cell: str) -> Callable[[], Built]:
    def build() -> Built:
        def make(hk: Any) -> Any:
            def run(x: jax.Array, training: bool) -> jax.Array:
                core = getattr(hk, cell)(12)
                first = core.initial_state(x.shape[0])
                out, _ = hk.dynamic_unroll(core, x, first, time_major=False)
                return hk.Linear(CLASSES)(out[:, -1])

            return run

        return _haiku(make, series())

    return build


for _cell in ("VanillaRNN", "GRU", "LSTM"):
    add(f"hk.{_cell}", "dm-haiku")(_haiku_rnn(_cell))


@add("hk.MultiHeadAttention of tokens", "dm-haiku")
def _haiku_transformer() -> Built:
    def make(hk: Any) -> Any:
        def run(x: jax.Array, training: bool) -> jax.Array:
            first = hk.initializers.RandomNormal(0.5)
            h = hk.Embed(50, 16)(x) + hk.get_parameter("place", (x.shape[1], 16), init=first)
            causal = jnp.tril(jnp.ones((1, 1, x.shape[1], x.shape[1])))
            for _ in range(2):
                g = hk.LayerNorm(-1, True, True)(h)
                scale = hk.initializers.VarianceScaling(1.0)
                h = h + hk.MultiHeadAttention(4, 4, w_init=scale)(g, g, g, mask=causal)
                g = hk.LayerNorm(-1, True, True)(h)
                h = h + hk.Linear(16)(jax.nn.gelu(hk.Linear(32)(g)))
            return hk.Linear(CLASSES)(hk.LayerNorm(-1, True, True)(h)[:, -1])

        return run

    return _haiku(make, tokens())


def _x_mlps(block: str, **options: Any) -> Callable[[], Built]:
    def build() -> Built:
        import x_mlps
        from einops import rearrange

        def make(hk: Any) -> Any:
            def run(x: jax.Array, training: bool) -> jax.Array:
                patches = rearrange(x, "b (h p) (w q) c -> b (h w) (p q c)", p=8, q=8)
                net = x_mlps.XMLP(
                    num_patches=16, dim=16, depth=2, block=getattr(x_mlps, block),
                    num_classes=CLASSES, **options,
                )  # fmt: skip
                return net(patches, is_training=training)

            return run

        return _haiku(make, images())

    return build


for _name, _block in (
    ("MLP-Mixer", "mlpmixer_block_factory"),
    ("ResMLP", "resmlp_block_factory"),
    ("gMLP", "gmlp_block_factory"),
    ("FNet", "fft_block_factory"),
):
    add(_name, "x-mlps", "dm-haiku")(_x_mlps(_block))


@add("gMLP language model", "mlp-gpt-jax", "dm-haiku")
def _gmlp() -> Built:
    from mlp_gpt_jax import TransformedMLPGpt

    net = TransformedMLPGpt(num_tokens=50, dim=16, seq_len=8, depth=2)
    x = tokens()
    variables = draw(net.init(jax.random.key(0), x[0]))

    def fn(v: Any, x: jax.Array) -> jax.Array:
        return jax.vmap(lambda one: net.apply(v, jax.random.key(0), one))(x)[:, -1]

    return fn, variables, x


# --- Equinox


def _equinox(module: Any, x: jax.Array, call: Callable[[Any, Any], Any] | None = None) -> Built:
    """Builds an Equinox module that takes one example."""
    import equinox as eqx

    module = eqx.nn.inference_mode(module)
    variables, static = eqx.partition(module, eqx.is_inexact_array)

    def fn(v: Any, x: jax.Array) -> jax.Array:
        whole = eqx.combine(v, static)
        return jax.vmap(lambda one: whole(one) if call is None else call(whole, one))(x)

    return fn, draw(variables), x


@add("eqx.nn.MLP", "equinox")
def _equinox_mlp() -> Built:
    import equinox as eqx

    return _equinox(eqx.nn.MLP(8, CLASSES, 16, 3, key=jax.random.key(0)), series(1)[:, 0])


def _equinox_rnn(cell: str) -> Callable[[], Built]:
    def build() -> Built:
        import equinox as eqx

        class Net(eqx.Module):
            cell: Any
            head: Any

            def __init__(self, key: Any) -> None:
                one, two = jax.random.split(key)
                self.cell = getattr(eqx.nn, cell)(8, 12, key=one)
                self.head = eqx.nn.Linear(12, CLASSES, key=two)

            def __call__(self, x: jax.Array) -> jax.Array:
                zero = jnp.zeros(12, x.dtype)
                first = (zero, zero) if cell == "LSTMCell" else zero
                last, _ = jax.lax.scan(lambda h, row: (self.cell(row, h), None), first, x)
                return self.head(last[0] if cell == "LSTMCell" else last)

        return _equinox(Net(jax.random.key(0)), series())

    return build


add("eqx.nn.GRUCell in scan", "equinox")(_equinox_rnn("GRUCell"))
add("eqx.nn.LSTMCell in scan", "equinox")(_equinox_rnn("LSTMCell"))


@add("PaLM", "palm-jax", "equinox")
def _palm() -> Built:
    from palm_jax import PaLM

    net = PaLM(num_tokens=50, dim=16, dim_head=8, depth=2, heads=2, key=jax.random.key(0))
    return _equinox(net, tokens(), lambda net, one: net(one)[-1])


# --- Equimo

_EQUIMO: dict[str, tuple[str, int, dict[str, Any]]] = {
    "ViT (registers)": ("VisionTransformer", 32, {
        "img_size": 32, "in_channels": 3, "dim": 32, "patch_size": 8, "num_heads": 2,
        "depths": [3],
    }),
    "ViT (DINOv3, rotary)": ("dinov3_vits16_pretrain_lvd1689m", 32, {
        "img_size": 32, "dim": 64, "depths": [3], "num_heads": 2, "num_classes": CLASSES,
    }),
    "ConvNeXt-T": ("convnext_t", 32, {}),
    "iFormer-T": ("iformer_t", 64, {}),
    "AttNet-XXS": ("attnet_xxs", 96, {}),
    "LowFormer-B0": ("lowformer_backbone_b0", 64, {"attention_type": "softmax"}),
    "ReduceFormer-B1": ("reduceformer_backbone_b1", 64, {}),
    "MobileNetV3-S": ("mobilenetv3_small", 64, {}),
    "MLLA": ("Mlla", 32, {
        "img_size": 32, "in_channels": 3, "dim": 16, "depths": [1, 2], "num_heads": [2, 4],
    }),
    "VSSD": ("Vssd", 32, {
        "img_size": 32, "in_channels": 3, "dim": 16, "depths": [1, 2], "num_heads": [2, 4],
        "attentions_layers": ("mamba2mixer", "attention"),
    }),
    "PartialFormer": ("PartialFormer", 56, {
        "img_size": 56, "in_channels": 3, "dim": 16, "num_heads": [1, 2], "depths": [1, 1],
        "foreground_ratios": (0.4, 0.1),
    }),
}  # fmt: skip


def _equimo(name: str, size: int, options: dict[str, Any]) -> Callable[[], Built]:
    def build() -> Built:
        import equimo.models as models

        key = jax.random.key(0)
        net = getattr(models, name)(**{"num_classes": CLASSES, "key": key, **options})
        return _equinox(net, images(size, channels_first=True), lambda net, one: net(one, key=key))

    return build


for _name, _options in _EQUIMO.items():
    add(_name, "equimo", "equinox")(_equimo(*_options))


# --- graphs: one graph of five nodes, features of the nodes are the data

_EDGES = np.array([[0, 1, 2, 3, 4, 0, 2, 0, 1, 2, 3, 4], [1, 2, 3, 4, 0, 2, 0, 0, 1, 2, 3, 4]])


def _jraph(make: Callable[[Any, Any], Any], edges: bool = True) -> Callable[[], Built]:
    """Builds a network ``make(jraph, layer) -> graph -> graph``, read out by the nodes' mean."""

    def build() -> Built:
        import haiku as hk
        import jraph

        x = series(5, 8)
        count = _EDGES.shape[1]

        def run(nodes: jax.Array) -> jax.Array:
            def layer(width: int) -> Any:
                return lambda v: jax.nn.relu(hk.Linear(width)(v))

            graph = jraph.GraphsTuple(
                nodes=nodes,
                edges=jnp.ones((count, 4), nodes.dtype) if edges else None,
                senders=jnp.asarray(_EDGES[0]),
                receivers=jnp.asarray(_EDGES[1]),
                n_node=jnp.array([5]),
                n_edge=jnp.array([count]),
                globals=jnp.ones((1, 4), nodes.dtype) if edges else None,
            )
            return hk.Linear(CLASSES)(make(jraph, layer)(graph).nodes.mean(axis=0))

        net = hk.without_apply_rng(hk.transform(run))
        variables = draw(net.init(jax.random.key(0), x[0]))
        return lambda v, x: jax.vmap(lambda one: net.apply(v, one))(x), variables, x

    return build


def _joined(layer: Any, width: int) -> Any:
    return lambda *parts: layer(width)(jnp.concatenate(parts, axis=-1))


add("graph convolution", "jraph", "dm-haiku")(
    _jraph(lambda j, layer: j.GraphConvolution(layer(12), add_self_edges=True), edges=False)
)
add("graph attention", "jraph", "dm-haiku")(
    _jraph(
        lambda j, layer: j.GAT(
            layer(12), lambda s, r, e: jax.nn.leaky_relu((s * r).sum(-1, keepdims=True))
        ),
        edges=False,
    )
)
add("graph network", "jraph", "dm-haiku")(
    _jraph(lambda j, layer: j.GraphNetwork(*(_joined(layer, 12) for _ in range(3))))
)
add("interaction network", "jraph", "dm-haiku")(
    _jraph(lambda j, layer: j.InteractionNetwork(_joined(layer, 12), _joined(layer, 12)))
)


def _jraphx(name: str) -> Callable[[], Built]:
    def build() -> Built:
        from flax import nnx
        from jraphx.nn import models

        net = getattr(models, name)(8, 12, 2, CLASSES, rngs=nnx.Rngs(0))
        edges = jnp.asarray(_EDGES)

        def call(net: Any, x: jax.Array) -> jax.Array:
            return jax.vmap(lambda one: net(one, edges).mean(axis=0))(x)

        return _nnx(net, series(5, 8), call)

    return build


for _name in ("GCN", "GAT", "GraphSAGE", "GIN"):
    add(_name, "jraphx", "flax")(_jraphx(_name))


# --- image networks of other packages


def _keras(name: str, size: int = 32, **options: Any) -> Callable[[], Built]:
    def build() -> Built:
        import keras

        keras.config.set_floatx("float64")
        keras.utils.set_random_seed(0)
        net = getattr(keras.applications, name)(
            weights=None, input_shape=(size, size, 3), classes=CLASSES,
            classifier_activation=None, **options,
        )  # fmt: skip
        trained = draw([v.value for v in net.trainable_variables])
        held = [v.value for v in net.non_trainable_variables]

        def update(old: Any, trained: Any, x: Any) -> Any:
            return net.stateless_call(trained, old, x, training=True)[1]

        norms = [
            layer for layer in net.layers if isinstance(layer, keras.layers.BatchNormalization)
        ]
        for layer in norms:
            layer.momentum = 0.0  # one step gives the statistics; its own float32 allows no limit
        if norms:
            held = jax.jit(update)(held, trained, images(size, count=MANY))

        def fn(v: Any, x: Any) -> jax.Array:
            return net.stateless_call(v[0], v[1], x, training=False)[0]

        return fn, (trained, held), images(size)

    return build


for _name in ("VGG16", "ResNet50V2", "DenseNet121", "MobileNetV2", "EfficientNetB0"):
    add(_name, "keras")(_keras(_name))
add("MobileNetV3Small", "keras")(_keras("MobileNetV3Small"))
add("ConvNeXtTiny", "keras")(_keras("ConvNeXtTiny"))
add("Xception", "keras")(_keras("Xception", 71))


def _flaxmodels(name: str) -> Callable[[], Built]:
    def build() -> Built:
        import flaxmodels

        net = getattr(flaxmodels, name)(
            output="logits", pretrained=None, normalize=False, num_classes=CLASSES, dtype="float64"
        )
        return _linen(net, images(), images(count=MANY), train=False)

    return build


add("ResNet18", "flaxmodels")(_flaxmodels("ResNet18"))


def _jax_resnet(name: str) -> Callable[[], Built]:
    def build() -> Built:
        import jax_resnet

        net = getattr(jax_resnet, name)(n_classes=CLASSES)
        return _linen(net, images(), images(count=MANY))

    return build


add("ResNetD18", "jax-resnet")(_jax_resnet("ResNetD18"))
add("ResNeSt50Fast", "jax-resnet")(_jax_resnet("ResNeSt50Fast"))


def _vitax(depth: int) -> Callable[[], Built]:
    def build() -> Built:
        from flax import nnx
        from vitax.models.vit import VisionTransformer

        net = VisionTransformer(
            CLASSES, img_size=32, patch_size=8, num_layers=depth, num_heads=2, mlp_dim=64,
            hidden_size=32, fsdp=False, rngs=nnx.Rngs(0),
        )  # fmt: skip
        return _nnx(net, images())

    return build


add("ViT", "vitax", "flax")(_vitax(3))
for _depth in (6, 12, 24):
    add(f"ViT, {_depth} blocks", "vitax", "flax", to=DEEP)(_vitax(_depth))


@add("ViT", "attnax")
def _attnax() -> Built:
    from attnax import VisionTransformer, VisionTransformerConfig
    from flax import nnx

    config = VisionTransformerConfig(
        image_size=32, patch_size=8, d_model=32, num_heads=2, num_layers=2, num_classes=CLASSES
    )
    return _nnx(VisionTransformer(nnx.Rngs(0), config), images())


# --- language and vision of transformers (4, the last with Flax)


def _transformers(
    name: str, config: str, options: dict[str, Any], kind: str
) -> Callable[[], Built]:
    def build() -> Built:
        import transformers

        transformers.logging.set_verbosity_error()
        made = getattr(transformers, config)(num_labels=CLASSES, **options)
        net = getattr(transformers, name)(made, seed=0, dtype=jnp.float64)
        x = images(32, channels_first=True) if kind == "image" else tokens()
        variables = net.params
        if kind == "causal":
            return lambda v, x: net(input_ids=x, params=v).logits[:, -1], draw(variables), x
        if kind == "text":
            return lambda v, x: net(input_ids=x, params=v).logits, draw(variables), x
        if "batch_stats" in variables:
            return _linen_batch_norm(net, variables)
        return lambda v, x: net(pixel_values=x, params=v).logits, draw(variables), x

    return build


def _linen_batch_norm(net: Any, variables: Any) -> Built:
    module = net.module
    params = draw(variables["params"])

    def update(old: Any, params: Any, x: Any) -> Any:
        held = {"params": params, "batch_stats": old}
        out = module.apply(held, x, deterministic=False, mutable=["batch_stats"])
        return out[1]["batch_stats"]

    state = settled(variables["batch_stats"], update, params, images(count=MANY))
    held = {"params": params, "batch_stats": state}
    return lambda v, x: module.apply(v, x, deterministic=True).logits, held, images()


_SMALL = {
    "vocab_size": 50, "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4,
    "intermediate_size": 64, "max_position_embeddings": 32,
}  # fmt: skip
_GPT = {"vocab_size": 50, "n_positions": 32, "n_embd": 32, "n_layer": 2, "n_head": 4}
_PICTURE = {"image_size": 32, "patch_size": 8}
_TRANSFORMERS: list[tuple[str, str, dict[str, Any], str]] = [
    ("FlaxViTForImageClassification", "ViTConfig", {**_SMALL, **_PICTURE}, "image"),
    ("FlaxDinov2ForImageClassification", "Dinov2Config", {**_SMALL, **_PICTURE}, "image"),
    ("FlaxBeitForImageClassification", "BeitConfig", {**_SMALL, **_PICTURE}, "image"),
    ("FlaxResNetForImageClassification", "ResNetConfig",
     {"embedding_size": 16, "hidden_sizes": [16, 32], "depths": [2, 2]}, "image"),
    ("FlaxRegNetForImageClassification", "RegNetConfig",
     {"embedding_size": 16, "hidden_sizes": [16, 32], "depths": [2, 2], "groups_width": 8},
     "image"),
    ("FlaxBertForSequenceClassification", "BertConfig", _SMALL, "text"),
    ("FlaxDistilBertForSequenceClassification", "DistilBertConfig",
     {"vocab_size": 50, "dim": 32, "n_layers": 2, "n_heads": 4, "hidden_dim": 64}, "text"),
    ("FlaxRobertaForSequenceClassification", "RobertaConfig", _SMALL, "text"),
    ("FlaxAlbertForSequenceClassification", "AlbertConfig", {**_SMALL, "embedding_size": 16},
     "text"),
    ("FlaxElectraForSequenceClassification", "ElectraConfig", {**_SMALL, "embedding_size": 16},
     "text"),
    ("FlaxRoFormerForSequenceClassification", "RoFormerConfig", _SMALL, "text"),
    ("FlaxGPT2LMHeadModel", "GPT2Config", _GPT, "causal"),
    ("FlaxGPTNeoForCausalLM", "GPTNeoConfig",
     {**_SMALL, "num_layers": 2, "num_heads": 4, "attention_types": [[["global", "local"], 1]]},
     "causal"),
    ("FlaxGPTJForCausalLM", "GPTJConfig", {**_GPT, "rotary_dim": 4}, "causal"),
    ("FlaxOPTForCausalLM", "OPTConfig", {**_SMALL, "ffn_dim": 64, "word_embed_proj_dim": 32},
     "causal"),
    ("FlaxBloomForCausalLM", "BloomConfig",
     {"vocab_size": 50, "hidden_size": 32, "n_layer": 2, "n_head": 4}, "causal"),
    ("FlaxLlamaForCausalLM", "LlamaConfig", _SMALL, "causal"),
    ("FlaxMistralForCausalLM", "MistralConfig", {**_SMALL, "num_key_value_heads": 2}, "causal"),
    ("FlaxGemmaForCausalLM", "GemmaConfig",
     {**_SMALL, "num_key_value_heads": 2, "head_dim": 8}, "causal"),
]  # fmt: skip
for _name, *_rest in _TRANSFORMERS:
    add(_name.removeprefix("Flax"), "transformers", "flax")(_transformers(_name, *_rest))


@add("Mamba-2 language model", "mamba2-jax", "flax")
def _mamba2() -> Built:
    from flax import nnx
    from mamba2_jax import Mamba2Config, Mamba2ForCausalLM

    config = Mamba2Config(
        vocab_size=50, hidden_size=16, state_size=8, head_dim=8, chunk_size=4, num_hidden_layers=2
    )
    net = Mamba2ForCausalLM(config, rngs=nnx.Rngs(0))
    return _nnx(net, tokens(), lambda net, x: net(x)["logits"][:, -1])


@add("mixture of experts language model", "nano-moe-jax", "flax")
def _nano_moe() -> Built:
    from nano_moe.config import NanoMoEConfig
    from nano_moe.model import NanoMoE

    net = NanoMoE(NanoMoEConfig(vocab_size=50, d_model=16, n_heads=2, n_layers=2, block_size=8))
    fn, variables, x = _linen(net, tokens())
    return lambda v, x: fn(v, x)[0][:, -1], variables, x
