"""Rules for what is no linear unit: primitives, softmax, functions, modules and scopes."""

import jax
import jax.numpy as jnp
import nets
import numpy as np
import pytest
from flax import linen, nnx
from jax.extend.core import Primitive
from jax.interpreters import mlir

from jaxunlearn.attribution import lrp, starts
from jaxunlearn.attribution.lrp import rules

X = jnp.array([[0.5, -1.0, 2.0], [1.5, 0.3, -0.7]])
W = nets.draw(3, 3, 2)
START = jnp.array([[1.0, -2.0], [0.5, 0.0]])
REST = ("", rules.epsilon(1e-9))


def recorded(propagate):
    """Returns the rule, and what it was given."""
    seen = []

    def rule(operation, relevance):
        seen.append(operation)
        return propagate(operation, relevance)

    return rules.operation(rule), seen


def whole(r):
    """Checks that input and ledger are the start."""
    np.testing.assert_allclose(r.gap, 0, atol=1e-5)
    return r


def third(operation, relevance):
    del operation
    return [relevance[0] / 3]


# name of the operation, the function, and what it computes from and to
CHAINS = {
    "exp": lambda v, x: jnp.log1p(jnp.exp(x)) @ v,
    "log1p": lambda v, x: jnp.log1p(jnp.exp(x)) @ v,
    "add": lambda v, x: (x * 2 + 1) @ v,
    "mul": lambda v, x: (x * 2 + 1) @ v,
    "max": lambda v, x: jax.nn.relu(2 * x) @ v,
    "tanh": lambda v, x: jax.nn.gelu(x) @ v,
    "logistic": lambda v, x: jax.nn.silu(x) @ v,
    "neg": lambda v, x: -(x @ v),
    "sub": lambda v, x: (x @ v - 1) * 3,
    "div": lambda v, x: jnp.mean(x[:, :, None] * v[None], axis=1),
    "reduce_sum": lambda v, x: jnp.mean(x[:, :, None] * v[None], axis=1),
    "dot_general": lambda v, x: jax.nn.relu(x) @ v + 1,
}


@pytest.mark.parametrize("name", CHAINS)
def test_a_primitive_with_a_rule_is_a_step_wherever_it_stands(name):
    """The rule is met, and a third of what arrives at the primitive is passed on by it."""

    def divide(operation, relevance):
        return [jnp.ones_like(v) * jnp.sum(relevance[0]) / v.size / 3 for v in operation.operands]

    rule, seen = recorded(divide)
    r = whole(lrp(CHAINS[name], [(name, rule), REST])(W, X, start=START))
    (operation,) = seen
    assert operation.name == name
    assert name in r.ledger
    np.testing.assert_allclose(operation.bind(*operation.operands), operation.outs, rtol=1e-6)
    assert float(jnp.max(jnp.abs(r.ledger[name].total))) > 0.1


def test_own_rules_in_chains_by_hand():
    """Behind the operation relevance passes, at it a third is left."""
    half = [("exp", rules.operation(third)), REST]
    r = lrp(lambda v, x: jnp.log1p(jnp.exp(x)), half)({}, X, start=X)
    np.testing.assert_allclose(r.input, X / 3, rtol=1e-6)
    r = lrp(lambda v, x: jax.nn.relu(2 * x), [("max", rules.operation(third)), REST])(
        {}, X, start=X
    )
    np.testing.assert_allclose(r.input, X / 3, rtol=1e-6)
    r = lrp(lambda v, x: x * 2 + 1, [("add", rules.operation(third)), REST])({}, X, start=X)
    np.testing.assert_allclose(r.input, X / 3, rtol=1e-6)


def gradient(operation, relevance):
    return jax.vjp(operation.bind, *operation.operands)[1](relevance)


def written_out(v, x):
    e = jnp.exp(x - jnp.max(x, axis=-1, keepdims=True))
    return e / jnp.sum(e, axis=-1, keepdims=True)


@pytest.mark.parametrize(
    "softmax",
    [
        lambda v, x: jax.nn.softmax(x, axis=-1),
        written_out,
        lambda v, x: jax.nn.softmax(x, axis=-1, where=jnp.array([[True, True, False]])),
    ],
)
def test_softmax_takes_a_rule(softmax):
    rule, seen = recorded(gradient)
    r = whole(jax.jit(lrp(softmax, [("softmax", rule), REST]))({}, X, start=X))
    np.testing.assert_allclose(r.input, jax.vjp(lambda x: softmax({}, x), X)[1](X)[0], atol=1e-6)
    assert [one.name for one in seen] == ["softmax"]
    # a rule for a maximum elsewhere leaves the shift inside alone
    net = lambda v, x: softmax(v, jax.nn.relu(x) * 2)  # noqa: E731
    with_max = lrp(net, [("max", rules.operation(lambda op, r: r)), REST])({}, X, start=X)
    np.testing.assert_allclose(with_max.input, lrp(net, [REST])({}, X, start=X).input, rtol=1e-6)


# --- functions, modules, scopes


def gate(x, y):
    return jax.nn.sigmoid(x) * y


def gated(v, x):
    return gate(gate(x, 2 * x), x) @ v


def twice(x):
    """A loop inside: one step; and the place of a call in a loop outside: as many steps."""
    for _ in range(2):
        x = jnp.tanh(jnp.exp(x) * 0.5)
    return x


def looped(v, x):
    for _ in range(3):
        x = twice(x)
    return x @ v


def activated(v, x):
    for _ in range(3):
        x = jax.nn.relu(jax.nn.gelu(x))
    return x @ v


def scoped(v, x):
    with jax.named_scope("head"):
        return jnp.tanh(x @ v) * 2


class Normed(linen.Module):
    @linen.compact
    def __call__(self, x):
        for _ in range(2):
            x = linen.gelu(linen.Dense(2)(linen.LayerNorm()(x)))
        return x


class Block(nnx.Module):
    def __init__(self, rngs):
        self.norm = nnx.RMSNorm(3, rngs=rngs)
        self.dense = nnx.Linear(3, 3, rngs=rngs)

    def __call__(self, x):
        return x + self.mix(self.norm(x))

    def mix(self, x):
        return jax.nn.silu(self.dense(x))


class Blocks(nnx.Module):
    def __init__(self, rngs):
        self.blocks = nnx.List([Block(rngs), Block(rngs)])

    def __call__(self, x):
        for block in self.blocks:
            x = block(x)
        return x[:, :2]


def linen_case():
    module = Normed()
    return module.apply, jax.jit(module.init)(jax.random.key(0), X)


def nnx_case():
    graph, state = nnx.split(Blocks(nnx.Rngs(0)))
    return lambda state, x: nnx.merge(graph, state)(x), state


FUNCTIONS = [
    (lambda: (lambda v, x: jax.nn.gelu(jax.nn.gelu(x)) @ v, W), "gelu", ["gelu"] * 2),
    (lambda: (lambda v, x: jax.nn.relu(x) @ v, W), "relu", ["relu"]),
    (lambda: (lambda v, x: jax.jit(jnp.tanh)(jax.jit(gate)(x, x)) @ v, W), "gate", ["gate"]),
    (lambda: (gated, W), "gate", ["gate"] * 2),
    (lambda: (scoped, W), "head", ["head"]),
    (lambda: (activated, W), "gelu", ["gelu"] * 3),
    (lambda: (activated, W), "activated", ["activated"]),
    (lambda: (lambda v, x: twice(x) @ v, W), "twice", ["twice"]),
    (linen_case, "gelu", ["gelu"] * 2),
    (linen_case, "LayerNorm", ["LayerNorm"] * 2),
    (linen_case, "LayerNorm_1", ["LayerNorm_1"]),
    (linen_case, r"Normed/(LayerNorm|Dense)_0", ["Normed/LayerNorm_0", "Normed/Dense_0"]),
    (nnx_case, "RMSNorm", ["RMSNorm"] * 2),
    (nnx_case, "mix", ["mix"] * 2),
    (nnx_case, "Block", ["Block"] * 2),
]


@pytest.mark.parametrize(("make", "name", "expected"), FUNCTIONS)
def test_rules_for_functions_modules_and_scopes(make, name, expected):
    fn, variables = make()

    def divide(operation, relevance):
        share = jnp.sum(relevance[0], axis=1, keepdims=True)
        count = sum(v.shape[1] for v in operation.operands)
        return [jnp.ones_like(v) * share / count / 2 for v in operation.operands]

    rule, seen = recorded(divide)
    r = whole(lrp(fn, [(name, rule), REST])(variables, X, start=START))
    assert [one.name for one in seen[::-1]] == expected
    keys = [key for key in r.ledger if key.partition("#")[0] in expected]
    assert len(keys) == len(expected)
    for one in seen:
        np.testing.assert_allclose(one.bind(*one.operands), one.outs, atol=1e-6)


def test_the_gradient_as_every_rule_is_the_gradient():
    fn, variables = linen_case()
    back = lambda affine, a, z, relevance: affine.transpose(relevance)  # noqa: E731
    both = [("LayerNorm", rules.operation(gradient)), ("gelu", rules.operation(gradient))]
    r = jax.jit(lrp(fn, [*both, ("", back)]))(variables, X, start=START)
    expected = jax.vjp(lambda x: fn(variables, x), X)[1](START)[0]
    np.testing.assert_allclose(r.input, expected, atol=1e-6)


# --- what an operation carries


@pytest.mark.parametrize(
    ("name", "fn"),
    [
        ("cumsum", lambda v, x: jnp.cumsum(x, axis=1)),
        ("reduce_sum", lambda v, x: jnp.sum(x, axis=1, keepdims=True)),
        ("rev", lambda v, x: x[:, ::-1]),
        (
            "conv_general_dilated",
            lambda v, x: jax.lax.conv(x[:, None], v[None, None, :, 0], (1,), "SAME")[:, 0],
        ),
    ],
)
def test_a_linear_operation_takes_one_line(name, fn):
    by_value = rules.operation(lambda op, r: [op.ins[0] * op.transpose(*r)])
    start = jnp.ones(fn(W, X).shape)
    r = whole(lrp(fn, [(name, by_value)])(W, X, start=start))
    np.testing.assert_allclose(r.input, X * jax.vjp(lambda x: fn(W, x), X)[1](start)[0], atol=1e-5)


def test_the_transpose_of_a_product_in_either_operand():
    def halves(op, relevance):
        s = relevance[0] / op.outs[0]
        return [v * op.transpose(s, operand=i) / 2 for i, v in enumerate(op.operands)]

    net = lambda v, x: jnp.tanh(x @ v) * (x @ v)  # noqa: E731
    r = whole(lrp(net, [("mul", rules.operation(halves)), REST])(W, X, start=START))
    np.testing.assert_allclose(r.input, lrp(net, [REST])(W, X, start=START).input, rtol=1e-5)


def test_the_transpose_of_what_is_not_linear_is_refused():
    back = rules.operation(lambda op, r: [op.transpose(*r)])
    for net, name in ((lambda v, x: jnp.exp(x), "exp"), (lambda v, x: jax.nn.gelu(x), "gelu")):
        with pytest.raises(ValueError, match=f"expected an operation that is linear.*got {name}"):
            lrp(net, [(name, back)])({}, X)
    with pytest.raises(ValueError, match="s: expected 1 arrays, got 2"):
        lrp(lambda v, x: -x, [("neg", rules.operation(lambda op, r: op.transpose(*r, *r)))])({}, X)


# --- operations that are not covered


def new_primitive(name, fn):
    primitive = Primitive(name)
    primitive.def_impl(fn)

    def shaped(*avals):
        like = jax.eval_shape(fn, *avals)
        return jax.core.ShapedArray(like.shape, like.dtype)

    primitive.def_abstract_eval(shaped)
    mlir.register_lowering(primitive, mlir.lower_fun(fn, multiple_results=False))
    return primitive


TWIST = new_primitive("twist", lambda x: x[:, ::-1] ** 3)
WIDEN = new_primitive("widen", lambda x: jnp.concatenate([x, x], axis=1))


@pytest.mark.parametrize("primitive", [TWIST, WIDEN])
def test_behind_an_operation_that_is_not_covered_the_ledger_adds_up(primitive):
    v = {"a": nets.draw(1, 3, 4), "b": nets.draw(2, 4 if primitive is TWIST else 8, 2)}
    v |= {"c": nets.draw(5, 4), "d": nets.draw(6, 2)}

    def net(v, x):
        h = jax.nn.relu(x @ v["a"] + v["c"][None]) * 2 + x[:, :1]
        return primitive.bind(h) @ v["b"] + v["d"][None]

    with pytest.raises(NotImplementedError, match=f"'{primitive.name}'.*rules.operation"):
        lrp(net)(v, X)

    def back(operation, relevance):
        (x,) = operation.operands
        return [jnp.sum(relevance[0], axis=1, keepdims=True) * x / jnp.sum(x, 1, keepdims=True)]

    taught = lrp(net, [(primitive.name, rules.operation(back)), ("", rules.epsilon(0.1))])
    for r in (whole(taught(v, X)), whole(jax.jit(taught)(v, X))):
        assert set(r.ledger) == {"a", "add", primitive.name, "b"}
        np.testing.assert_allclose(r.ledger[primitive.name].total, 0, atol=1e-5)
        assert np.all(np.abs(r.ledger["a"].bias) > 1e-3)


# --- what is told


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ([("logistc", rules.operation(third)), REST], "got 'logistc'; did you mean 'logistic'"),
        ([("maximum", rules.operation(third)), REST], "expected the name of a primitive, function"),
        ([("gatee", rules.operation(third)), REST], "did you mean 'gate'"),
        ([("softmax", rules.operation(third)), REST], "got 'softmax'"),
        ([("fc3/kernel", rules.zero()), REST], "linear units, got 'fc3/kernel'; did you mean 'fc2"),
        ([("exp", rules.zero()), REST], "linear units, got 'exp'"),
        ([(2, rules.zero()), REST], "linear units, got 2; there are 2"),
        ([(("fc1", -1), rules.zero()), REST], r"linear units, got \('fc1', -1\)"),
    ],
)
def test_patterns_that_nothing_matches_are_told(wrong, message):
    v = {"fc1/kernel": W, "fc2/kernel": nets.draw(4, 2, 2)}
    net = lambda v, x: gate(x @ v["fc1/kernel"], 1.0) @ v["fc2/kernel"]  # noqa: E731
    with pytest.raises(ValueError, match=message):
        jax.eval_shape(lrp(net, wrong), v, X)


def test_assignments_for_networks_of_any_kind_fit_a_dense_one():
    for rule in (rules.epsilon_plus_flat(), rules.epsilon_gamma_box(-1, 1)):
        jax.eval_shape(lrp(lambda v, x: x @ v, rule), W, X)


@pytest.mark.parametrize(
    ("result", "found"),
    [
        (lambda r: r[0], "a list of relevances for tanh.*got "),
        (lambda r: None, "a list of relevances for tanh.*got NoneType"),
        (lambda r: [r[0][:1]], r"relevance \[\(2, 3\)\] for tanh, got \[\(1, 3\)\]"),
        (lambda r: [r[0], r[0]], r"relevance \[\(2, 3\)\] for tanh, got \[\(2, 3\), \(2, 3\)\]"),
        (lambda r: [1.0], r"relevance \[\(2, 3\)\] for tanh, got \['float'\]"),
    ],
)
def test_what_a_rule_returns_is_checked(result, found):
    wrong = rules.operation(lambda op, r: result(r))
    with pytest.raises(ValueError, match=found):
        jax.eval_shape(lrp(lambda v, x: jnp.tanh(x), [("tanh", wrong)]), {}, X)


# --- conservation, half precision


FOLD = new_primitive("fold", lambda x: x.reshape(-1))
UNFOLD = new_primitive("unfold", lambda x: x.reshape(2, -1))


def test_a_gap_is_told():
    """Relevance is doubled where nobody can tell the examples."""
    fold = rules.operation(lambda op, r: [r[0].reshape(op.ins[0].shape) * 2])
    unfold = rules.operation(lambda op, r: [r[0].reshape(-1)])
    net = lambda v, x: UNFOLD.bind(FOLD.bind(x)) @ v  # noqa: E731
    relevance = lrp(net, [("fold", fold), ("unfold", unfold), REST])
    with pytest.warns(UserWarning, match="input and ledger miss the start by up to 1"):
        relevance(W, X, start=START[:1] + 0 * START)
    r = jax.jit(relevance)(W, X, start=START[:1] + 0 * START)
    np.testing.assert_allclose(r.gap, [1, 1], rtol=1e-5)
    with pytest.warns(UserWarning, match="2 of 2 examples"):
        r.check()
    jax.jit(lrp(lambda v, x: jnp.tanh(x) @ v))(W, X).check()


@pytest.mark.parametrize(
    ("rule", "dtype"),
    [
        (rules.epsilon(), jnp.bfloat16),
        (rules.alpha_beta(), jnp.bfloat16),
        (rules.gamma(), jnp.float16),
    ],
)
def test_relevance_of_half_precision_is_carried_in_float32(rule, dtype):
    """In a deep network the relevance is as exact as its forward pass, and adds up."""
    depth, width = 4, 16
    v = [nets.draw(k, width, width) / np.sqrt(width) for k in range(depth)]
    x = jnp.abs(nets.draw(50, 4, width))

    def net(v, x):
        for k, w in enumerate(v):
            h = jax.nn.relu(x @ w)
            x = jnp.concatenate([h[:, 8:], x[:, :8]], axis=1) + h if k % 3 == 2 else h + x
        return x

    half = jax.tree.map(lambda part: part.astype(dtype), (v, x))
    again = jax.tree.map(lambda part: part.astype(jnp.float32), half)
    start = starts.label(3)
    relevance = jax.jit(lrp(net, rule))
    r, expected = relevance(*half, start=start), relevance(*again, start=start)
    assert r.logits.dtype == dtype
    for leaf in jax.tree.leaves((r.input, r.neurons, r.inputs, r.ledger, r.total)):
        assert leaf.dtype == jnp.float32
    np.testing.assert_allclose(r.gap, 0, atol=1e-4)
    scale = float(jnp.max(jnp.abs(expected.input)))
    np.testing.assert_allclose(r.input, expected.input, atol=8 * jnp.finfo(dtype).eps * scale)


# --- as the manual has them


def of_unit(affine, a, z, relevance):
    del a, z
    return affine.transpose(relevance)


SENT = {
    "guided": lambda x, r: jnp.where(x > 0, jnp.maximum(r, 0), 0),
    "deconvnet": lambda x, r: jnp.maximum(r, 0),
}


@pytest.mark.parametrize("name", SENT)
@pytest.mark.parametrize("relu", ["relu", "max"])
def test_guided_backpropagation_and_deconvnet(name, relu):
    sent = SENT[name]
    v = {"a": nets.draw(1, 3, 3, 2, 4), "b": nets.draw(2, 3, 3, 4, 4), "c": nets.draw(3, 4, 3)}

    @jax.custom_vjp
    def changed(x):
        return jax.nn.relu(x)

    changed.defvjp(lambda x: (jax.nn.relu(x), x), lambda x, r: (sent(x, r),))

    def net(v, x, relu=jax.nn.relu):
        h = relu(nets.conv({"kernel": v["a"]}, x))
        h = h[:, 1:-1, 1:-1] + relu(nets.conv({"kernel": v["b"]}, h))
        h = jax.lax.reduce_window(h, -jnp.inf, jax.lax.max, (1, 2, 2, 1), (1, 2, 2, 1), "VALID")
        return jnp.mean(h, axis=(1, 2)) @ v["c"]

    own = [
        (relu, rules.operation(lambda op, r: [sent(op.ins[0], r[0])])),
        ("add", rules.operation(lambda op, r: list(r) * len(op.data))),
        ("reduce_sum", of_unit),
        ("", of_unit),
    ]
    x, start = nets.draw(9, 2, 8, 8, 2), nets.draw(8, 2, 3)
    found = jax.jit(lrp(net, own))(v, x, start=start).input
    expected = jax.jit(lambda x: jax.vjp(lambda x: net(v, x, changed), x)[1](start)[0])(x)
    np.testing.assert_allclose(found, expected, atol=1e-5)
    assert np.any(found != 0)
