"""Ordinary mistakes in Python: what was expected, and what was given."""

import functools
import inspect
import re

import jax
import numpy as np
import optax
import pytest

import jaxunlearn as ju
from jaxunlearn import attribution
from jaxunlearn.core.errors import ConfigError, DataError
from tests import toy

KEY = jax.random.key(0)
X, Y = np.zeros((8, 6, 6, 1), np.float32), np.arange(8) % 4
REQUEST = ju.forget_class(1)


def narrow(variables, x):
    return x.reshape(len(x), -1)[:, :2] * variables["w"]


NARROW = ju.functionalize(narrow)
TWO = {"w": jax.numpy.ones((1, 2))}
CASES = {
    "request": (lambda: ju.make_sets(X, Y, 2), TypeError, "request: expected Request, got int"),
    "classes": (lambda: ju.forget_class([1, 2]), TypeError, "use forget_classes"),
    "unseen": (lambda: ju.make_sets(X, Y, REQUEST, unseen=X), DataError, r"expected \(x, y\)"),
    "shapes": (
        lambda: ju.make_sets(X, Y, REQUEST, test=(X[:, :5], Y)),
        DataError,
        r"test: expected examples \[6, 6, 1\] as in training, got \[5, 6, 1\]",
    ),
    "nan": (lambda: ju.make_sets(X * np.nan, Y, REQUEST), DataError, "expected finite numbers"),
    "part": (
        lambda: ju.train(toy.mlp(), toy.sets().forget.examples, KEY),
        TypeError,
        "part: expected Subset, got Examples; sets.train",
    ),
    "config": (
        lambda: ju.train(toy.mlp(), toy.sets().retain, KEY, config={"epochs": 1}),
        TypeError,
        "config: expected TrainConfig, got dict",
    ),
    "epochs": (
        lambda: ju.train(toy.mlp(), toy.sets().retain, KEY, config=ju.TrainConfig(epochs=-1)),
        ConfigError,
        "expected positive epochs",
    ),
    "momentum": (
        lambda: ju.train(toy.mlp(), toy.sets().retain, KEY, config=ju.TrainConfig(momentum=-1.0)),
        ConfigError,
        r"config\.momentum: expected a number from 0 to below 1, got -1\.0",
    ),
    "weight decay": (
        lambda: ju.train(toy.mlp(), toy.sets().retain, KEY, config=ju.TrainConfig(weight_decay=-1)),
        ConfigError,
        r"config\.weight_decay: expected a number >= 0, got -1",
    ),
    "too many epochs": (
        lambda: ju.train(toy.mlp(), toy.sets().retain, KEY, config=ju.TrainConfig(epochs=1e300)),
        ConfigError,
        r"config\.epochs: expected at most 1,000,000, got 1e\+300",
    ),
    "too large a batch": (
        lambda: ju.train(
            toy.mlp(), toy.sets().retain, KEY, config=ju.TrainConfig(batch_size=3_000_000_000)
        ),
        ConfigError,
        r"config\.batch_size: expected at most 1,000,000",
    ),
    "beyond float32": (
        lambda: ju.make_sets(X.astype(np.float64) + 1e300, Y, REQUEST),
        DataError,
        "more than float32",
    ),
    "no examples": (lambda: ju.make_sets(X[:0], Y[:0], REQUEST), DataError, "without any"),
    "too few classes": (
        lambda: ju.train(
            ju.functionalize(narrow, init=lambda key: {"w": jax.numpy.ones((1, 2))}),
            toy.sets().retain,
            KEY,
        ),
        ConfigError,
        "expected logits for labels up to 3, got 2 classes",
    ),
    **{
        f"too few outputs, {name}": (
            lambda name=name: ju.unlearn(getattr(ju, name)(NARROW), TWO, toy.sets(), KEY, steps=1),
            ConfigError,
            rf"sets\.{part}: expected labels from 0 to 1, as the network has 2 outputs, got [123]",
        )
        for name, part in [("finetune", "retain"), ("random_label", "retain")]
    },
    "too few outputs, many": (
        lambda: ju.unlearn_many(ju.finetune(NARROW), TWO, toy.sets(), KEY[None], steps=1),
        ConfigError,
        r"sets\.retain: expected labels from 0 to 1",
    ),
    "too few outputs, link": (
        lambda: ju.unlearn(
            ju.chain(ju.gradient_ascent(NARROW), ju.finetune(NARROW)), TWO, toy.sets(), KEY, steps=1
        ),
        ConfigError,
        r"expected labels from 0 to 1",
    ),
    "alike": (
        lambda: ju.unlearn(ju.finetune(NARROW), TWO, ju.make_sets(X, Y % 2, REQUEST), KEY, steps=1),
        DataError,
        r"sets\.retain: expected examples that differ, got 8 alike",
    ),
    "alike, trained": (
        lambda: ju.train(toy.mlp(), ju.make_sets(X, Y, REQUEST).train, KEY),
        DataError,
        r"sets\.retain: expected examples that differ, got 8 alike",
    ),
    "swapped": (
        lambda: ju.unlearn(toy.trained().variables, toy.method("finetune"), toy.sets(), KEY),
        TypeError,
        "unlearner: expected Unlearner, got dict",
    ),
    "list of sets": (
        lambda: ju.unlearn_many(toy.method("finetune"), {}, [toy.sets()], KEY[None]),
        TypeError,
        "sets: expected Sets, got list; make_sets or stack_sets",
    ),
    "sharding": (
        lambda: ju.unlearn(toy.method("finetune"), {}, toy.sets(), KEY, sharding="fsdp"),
        TypeError,
        "sharding: expected Sharding, got str; make_sharding",
    ),
    "evaluate": (
        lambda: ju.evaluate(narrow, {"original": {"w": jax.numpy.ones((1, 2))}}, [], toy.sets()),
        ConfigError,
        "got 2 classes",
    ),
}


@pytest.mark.parametrize("name", CASES)
def test_a_mistake_is_named(name):
    call, kind, message = CASES[name]
    with pytest.raises(kind, match=message):
        call()


RULES = attribution.rules
FACTORIES = {
    **{
        f"rules.{name}": getattr(RULES, name)
        for name in (
            "epsilon", "zero", "norm", "wsquare", "flat", "zplus", "alpha_beta", "gamma",
            "epsilon_plus", "epsilon_plus_flat", "epsilon_alpha2_beta1",
            "epsilon_alpha2_beta1_flat",
        )
    },
    **{
        f"rules.{name}": functools.partial(getattr(RULES, name), **{"low": 0.0, "high": 1.0})
        for name in ("zbox", "epsilon_gamma_box")
    },
    **{
        f"quadrature.{name}": getattr(attribution.quadrature, name)
        for name in ("automatic", "gauss_legendre", "midpoint", "right_riemann", "trapezoid")
    },
    "starts.argmax": attribution.starts.argmax,
    "starts.label": functools.partial(attribution.starts.label, y=1),
    "starts.margin": functools.partial(attribution.starts.margin, y=1),
    "lrp": functools.partial(attribution.lrp, narrow),
    "smoothgrad": functools.partial(attribution.smoothgrad, narrow),
    "integrated_gradients": functools.partial(attribution.integrated_gradients, narrow),
    "conductance": functools.partial(attribution.conductance, narrow, "hidden"),
    "blurred": functools.partial(attribution.baselines.blurred, sigma=1.0),
    "noise": functools.partial(attribution.baselines.noise, KEY),
    "sampled": functools.partial(attribution.baselines.sampled, KEY, np.ones((2, 3))),
    **{
        name: functools.partial(getattr(ju, name), narrow)
        for name in ("neuron_path", "finetune", "random_label", "gradient_ascent", "concept_poison")
    },
    "retrain": functools.partial(ju.retrain, narrow, optimizer=optax.sgd(0.1)),
    "forget_random": functools.partial(ju.data.forget_random, 0.5),
}  # fmt: skip
NO_FACTOR = ["three", float("nan"), np.ones(3), [1, 2], 1j]
"""What is no number, no flag and no word that any argument knows."""
FREE = {"rules", "inferred", "class_names", "multiply_by_inputs", "key", "y", "examples"}


def numeric(factory):
    """Lists the arguments that are numbers, flags or optimizers."""
    kinds = ("float", "int", "bool", "GradientTransformation")
    for parameter in inspect.signature(factory).parameters.values():
        if parameter.name not in FREE and any(kind in str(parameter.annotation) for kind in kinds):
            yield parameter


@pytest.mark.parametrize("name", FACTORIES)
def test_an_argument_that_is_no_number_is_named(name):
    factory, seen = FACTORIES[name], 0
    for parameter in numeric(factory):
        arrays = "ndarray" in str(parameter.annotation)
        for value in NO_FACTOR:
            if arrays and isinstance(value, np.ndarray | list):
                continue
            with pytest.raises((TypeError, ValueError)) as found:
                factory(**{parameter.name: value})
            text, seen = str(found.value), seen + 1
            assert re.match(r"[\w, ]+: expected .+, got .", text), text
            assert parameter.name in text or "nodes" in text
            assert "\n" not in text
            assert len(text) < 250
    assert seen


def test_numbers_of_any_type_are_numbers():
    for number in (0.25, np.float32(0.25), np.array(0.25), jax.numpy.float32(0.25)):
        assert RULES.gamma(number).name == "gamma(0.25)"
    assert RULES.alpha_beta(np.int64(1), 0).name == "alpha_beta(1, 0)"
    ju.neuron_path(toy.mlp(), neurons=np.int32(3), specificity=np.int64(1))
    for wrong in (True, 1e300, float("inf"), -1):
        with pytest.raises(ValueError, match="eps: expected a positive number, got"):
            RULES.epsilon(wrong)
