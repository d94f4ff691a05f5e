"""One door for networks of every make."""

import functools

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen, nnx

from jaxunlearn.core.errors import ConfigError
from jaxunlearn.core.types import Model
from jaxunlearn.models import check_model, functionalize, variables_of

X = jax.random.normal(jax.random.key(5), (6, 4))
KEY = jax.random.key(0)


class Nnx(nnx.Module):
    def __init__(self, classes: int = 3, *, rngs: nnx.Rngs):
        self.fc1 = nnx.Linear(4, 5, rngs=rngs)
        self.bn1 = nnx.BatchNorm(5, rngs=rngs)
        self.dropout = nnx.Dropout(0.5, rngs=rngs)
        self.head = nnx.Linear(5, classes, rngs=rngs)

    def __call__(self, x):
        return self.head(self.dropout(nnx.relu(self.bn1(self.fc1(x)))))


class Linen(linen.Module):
    @linen.compact
    def __call__(self, x, train: bool):
        x = linen.Dense(5, name="fc1")(x)
        x = linen.BatchNorm(use_running_average=not train, name="bn1")(x)
        x = linen.Dropout(0.5, deterministic=not train)(linen.relu(x))
        return linen.Dense(3, name="head")(x)


def function(variables, x):
    p, s = variables["params"], variables["batch_stats"]["bn1"]
    x = x @ p["fc1"]["kernel"] + p["fc1"]["bias"][None]
    x = (x - s["mean"][None]) / jnp.sqrt(s["var"] + 1e-5)[None]
    x = jax.nn.relu(x * p["bn1"]["scale"][None] + p["bn1"]["bias"][None])
    return x @ p["head"]["kernel"] + p["head"]["bias"][None]


def moved(model, variables):
    """Variables whose running statistics are not those of a fresh network."""
    return jax.jit(model.apply_train)(variables, X, KEY)[1]


def test_the_same_weights_give_the_same_logits():
    model = functionalize(Nnx)
    variables = moved(model, jax.jit(model.init)(KEY))
    expected = jax.jit(function)(variables, X)
    others = functionalize(Linen(), X), functionalize(function, init=model.init)
    for other in (model, *others):
        chex.assert_trees_all_close(jax.jit(other.apply)(variables, X), expected, atol=1e-5)
        chex.assert_trees_all_equal_structs(other.init(KEY), variables)


@pytest.mark.parametrize(
    "network",
    [
        Nnx,
        functools.partial(Nnx, 3),
        lambda rngs: Nnx(rngs=rngs),
        lambda streams: Nnx(rngs=streams),
        Linen(),
    ],
    ids=["class", "partial", "rngs", "one argument", "linen"],
)
def test_training_mode(network):
    model = functionalize(network, jax.ShapeDtypeStruct((1, 4), jnp.float32))
    variables = model.init(KEY)
    train = jax.jit(model.apply_train)
    logits, after = train(variables, X, KEY)
    chex.assert_trees_all_equal_shapes_and_dtypes(after, variables)
    chex.assert_trees_all_equal(after["params"], variables["params"])
    assert (after["batch_stats"]["bn1"]["mean"] != 0).all()
    # the key, and it alone, decides what is dropped
    chex.assert_trees_all_equal(train(variables, X, KEY)[0], logits)
    assert (train(variables, X, jax.random.key(1))[0] != logits).any()
    chex.assert_trees_all_equal(model.apply(variables, X), model.apply(variables, X))


def test_a_module_is_not_changed_and_cannot_be_drawn_again():
    module = Nnx(rngs=nnx.Rngs(KEY))
    model, variables = functionalize(module), variables_of(module)
    chex.assert_trees_all_equal(variables, functionalize(Nnx).init(KEY))
    chex.assert_trees_all_close(
        functionalize(Nnx).apply(variables, X), model.apply(variables, X), atol=1e-6
    )
    jax.jit(model.apply_train)(variables, X, KEY)
    assert not module.bn1.use_running_average
    assert not module.bn1.mean[...].any()
    with pytest.raises(ConfigError, match="variables_of"):
        model.init(KEY)
    chex.assert_trees_all_equal(
        functionalize(module, init=lambda key: variables).init(KEY), variables
    )


def test_drawing_maps_over_keys():
    model = functionalize(Nnx)
    keys = jax.random.split(KEY, 2)
    loop = jax.tree.map(lambda *leaves: jnp.stack(leaves), *map(model.init, keys))
    chex.assert_trees_all_close(jax.jit(jax.vmap(model.init))(keys), loop, rtol=1e-6)


def test_training_inside_scan_and_vmap():
    model = functionalize(Nnx)
    keys = jax.random.split(KEY, 2)
    many = jax.jit(jax.vmap(model.init))(keys)

    def train(variables, key):
        return jax.lax.scan(
            lambda v, k: model.apply_train(v, X, k)[::-1], variables, jax.random.split(key, 3)
        )

    mapped = jax.jit(jax.vmap(train))(many, keys)
    first = jax.jit(lambda many: train(jax.tree.map(lambda leaf: leaf[0], many), keys[0]))(many)
    mapped = jax.tree.map(lambda leaf: leaf[0], jax.device_get(mapped))
    chex.assert_trees_all_close(mapped, first, atol=1e-5)


def test_lists_and_bare_arrays():
    class Listed(nnx.Module):
        def __init__(self, rngs):
            self.layers = nnx.List([nnx.Linear(4, 4, rngs=rngs) for _ in range(11)])
            self.offset = jnp.ones((1, 4))

        def __call__(self, x):
            for layer in self.layers:
                x = layer(x)
            return x + self.offset

    model = functionalize(Listed)
    variables = jax.jit(model.init)(KEY)
    assert set(variables["params"]["layers"]) == {str(number) for number in range(11)}
    chex.assert_trees_all_equal(variables["other"], {"offset": jnp.ones((1, 4))})
    module = Listed(nnx.Rngs(KEY))
    chex.assert_trees_all_close(model.apply(variables, X), module(X), atol=1e-5)


@pytest.mark.parametrize(
    "apply",
    [
        lambda variables, x, train: x + float(train),
        lambda variables, x, deterministic=None: x + float(not deterministic),
        lambda variables, x, *, use_running_average: x + float(not use_running_average),
    ],
)
def test_arguments_of_the_call_are_set(apply):
    model = functionalize(apply)
    variables, x = {"params": {}}, jnp.zeros((1, 2))
    assert model.apply_train(variables, x, KEY)[0][0, 0] == 1
    assert model.apply(variables, x)[0, 0] == 0


def test_randomness_by_argument():
    class Noisy(nnx.Module):
        def __init__(self, rngs):
            self.head = nnx.Linear(4, 3, rngs=rngs)
            self.dropout = nnx.Dropout(0.5)

        def __call__(self, x, rngs=None):
            return self.head(self.dropout(x, rngs=rngs))

    model = functionalize(Noisy)
    variables = model.init(KEY)
    one, other = (model.apply_train(variables, X, jax.random.key(n))[0] for n in (0, 1))
    assert (one != other).any()
    model.apply(variables, X)


class Dense(linen.Module):
    features: int | list = 3

    @linen.compact
    def __call__(self, x):
        return linen.Dense(3, name="head")(x)


class Head(nnx.Module):
    def __init__(self, width=4, *, rngs):
        self.head = nnx.Linear(width, 3, rngs=rngs)

    def __call__(self, x):
        return self.head(x)


def make_head(width, classes=3, *, rngs):
    return Head(width, rngs=rngs)


class Callable:
    def __call__(self, params, inputs):
        return inputs @ params["params"]["head"]["kernel"]

    def method(self, variables, x):
        return self(variables, x)


def with_options(variables, x, temperature=1.0, *, rngs=None):
    return Callable()(variables, x) / temperature


KINDS = {
    "nnx class": (Head, True),
    "nnx factory": (lambda rngs: Head(rngs=rngs), True),
    "nnx factory of one argument": (lambda streams: Head(rngs=streams), True),
    "nnx factory with options": (lambda width=4, depth=1, rngs=None: Head(width, rngs=rngs), True),
    "nnx factory, options behind": (lambda rngs, width=4: Head(width, rngs=rngs), True),
    "nnx factory of anything": (lambda **options: Head(**options), True),
    "partial of class": (functools.partial(Head, 4), True),
    "partial of factory": (functools.partial(make_head, 4), True),
    "linen apply": (Dense().apply, False),
    "variables, x": (lambda variables, x: Callable()(variables, x), False),
    "params, inputs": (lambda params, inputs: Callable()(params, inputs), False),
    "options": (with_options, False),
    "jitted": (jax.jit(with_options), False),
    "partial of function": (functools.partial(with_options, temperature=1.0), False),
    "anything": (lambda *args: Callable()(*args), False),
    "callable object": (Callable(), False),
    "method": (Callable().method, False),
}


@pytest.mark.parametrize(("network", "draws"), KINDS.values(), ids=KINDS)
def test_functions_and_constructors_are_told_apart(network, draws):
    variables = functionalize(Head).init(KEY)
    model = functionalize(network)
    expected = X @ variables["params"]["head"]["kernel"]
    chex.assert_trees_all_close(model.apply(variables, X), expected, atol=1e-6)
    chex.assert_trees_all_close(model.apply_train(variables, X, KEY)[0], expected, atol=1e-6)
    if draws:
        chex.assert_trees_all_equal(model.init(KEY), variables)
    else:
        with pytest.raises(ConfigError, match="init="):
            model.init(KEY)


def test_linen_modules_of_trees():
    class Masked(linen.Module):
        @linen.compact
        def __call__(self, x):
            return linen.Dense(3)(jnp.where(x["mask"], x["values"], 0))

    x = {"values": X, "mask": X > 0}
    like = jax.tree.map(lambda leaf: jax.ShapeDtypeStruct((1, 4), leaf.dtype), x)
    model = functionalize(Masked(), like)
    assert functionalize(Masked(), like) is model
    assert check_model(model, x) == 3
    assert model.apply(model.init(KEY), x).shape == (len(X), 3)


@pytest.mark.parametrize("shape", [X.shape, list(X.shape), tuple(map(np.int64, X.shape))])
def test_the_shape_of_a_batch_is_a_sample(shape):
    drawn, expected = functionalize(Dense(3), shape).init(KEY), functionalize(Dense(3), X).init(KEY)
    chex.assert_trees_all_equal(drawn, expected)


@pytest.mark.parametrize(
    ("sample", "got"),
    [
        ((2, 4.5), r"got \(2, 4.5\)"), ("batch", "got 'batch'"), ((0, 4), r"got \(0, 4\)"),
        ([[1.0, 2.0]], r"got \[\[1.0"), (None, None), ({}, "no array"),
        (jnp.float32(3), "without axes"), ((True, 4), r"got \(True"),
    ],
)  # fmt: skip
def test_what_is_no_sample_is_named(sample, got):
    if got is None:
        functionalize(Dense(3), sample)
        return
    with pytest.raises(ConfigError, match=f"sample_input: expected a batch of .*{got}"):
        functionalize(Dense(3), sample)


def test_linen_without_a_sample_needs_variables_only():
    variables = functionalize(Linen(), X).init(KEY)
    logits = functionalize(Linen()).apply(variables, X)
    chex.assert_trees_all_close(logits, function(variables, X), atol=1e-5)
    drawn = functionalize(Linen(), init=lambda key: variables).init(KEY)
    chex.assert_trees_all_equal(drawn, variables)


def test_a_model_is_returned():
    model = functionalize(Nnx)
    assert functionalize(model) is model
    assert isinstance(functionalize(function), Model)


@pytest.mark.parametrize(
    "network", [function, Nnx, lambda rngs: Nnx(rngs=rngs), Dense().apply, Callable()]
)
def test_the_same_network_gives_the_same_functions(network):
    assert functionalize(network) is functionalize(network)

    def init(key):
        return {}

    assert functionalize(network, init=init) == functionalize(network, init=init)
    assert functionalize(network, init=init).apply is functionalize(network).apply


def test_equal_linen_modules_give_the_same_functions():
    x = jax.ShapeDtypeStruct(X.shape, X.dtype)
    assert functionalize(Dense(3), X) is functionalize(Dense(3), x)
    assert functionalize(Dense(3), X) != functionalize(Dense(4), X)
    assert functionalize(Dense(3), X) != functionalize(Dense(3))
    functionalize(Dense([3]))  # has no hash


def test_a_changed_module_is_read_anew():
    module = Nnx(rngs=nnx.Rngs(KEY))
    first = functionalize(module).apply(variables_of(module), X)
    module.bn1.epsilon = 9.0
    assert (functionalize(module).apply(variables_of(module), X) != first).any()


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: functionalize(3), "got int"),
        (lambda: functionalize(Linen()).init(KEY), "sample_input"),
        (lambda: functionalize(Linen), "instance of Linen"),
        (lambda: functionalize(lambda width, rngs: Nnx(width, rngs=rngs)), r"\(width, rngs\)"),
        (lambda: functionalize(lambda params, state, x: x), r"\(params, state, x\)"),
        (lambda: functionalize(lambda rngs: 3), "returns int"),
        (lambda: functionalize(function).init(KEY), "init="),
    ],
)
def test_mistakes_are_told(make, message):
    with pytest.raises(ConfigError, match=message):
        make()


@pytest.mark.parametrize(
    ("apply", "message"),
    [
        (lambda variables, x: x.sum(-1), r"got \[2\] in inference"),
        (lambda variables, x: x[:1], r"got \[1, 4\]"),
        (lambda variables, x: x, r"\[2, 3\].*got \[2, 4\]"),
        (lambda variables, x: (x, x), "got tuple"),
        (lambda variables, x: x @ jnp.ones((5, 3)), "inputs of shape"),
        (lambda variables, x: variables["kernel"] * x, "KeyError"),
    ],
)
def test_wrong_outputs_are_told(apply, message):
    model = functionalize(apply, init=lambda key: {"params": {}})
    with pytest.raises(ConfigError, match=message):
        check_model(model, (4,), 3)


def test_training_must_keep_the_structure():
    model = functionalize(lambda variables, x: x, init=lambda key: {"params": {}})
    model = model._replace(apply_train=lambda variables, x, key: (x, {}))
    with pytest.raises(ConfigError, match="structure"):
        check_model(model, (4,))
    variables = {"params": {}}
    assert check_model(functionalize(lambda variables, x: x), (4,), None, variables) == 4
