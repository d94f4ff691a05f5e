"""Methods with teachers, features or penalties: what each does that the others do not."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import jaxunlearn as ju
from jaxunlearn.core.errors import ConfigError
from jaxunlearn.data.requests import forget_indices
from jaxunlearn.engine.predict import predict
from jaxunlearn.methods import METHODS
from jaxunlearn.methods.attack_loss import fit_logistic, membership, scaled_confidences
from jaxunlearn.methods.duck import nearest_wrong
from jaxunlearn.methods.jit_unlearn import mean_slopes
from jaxunlearn.methods.scrub import is_max_step, rewound_to
from jaxunlearn.methods.terms import cosines
from tests import toy

KEY = jax.random.key(1)


def accuracies(variables, sets):
    return [
        predict(toy.mlp().apply, variables, part).accuracy for part in (sets.forget, sets.retain)
    ]


def forgotten(method, steps=60, sets=None):
    """The outcome, and accuracies on what is to be forgotten and what is retained."""
    sets = sets or toy.sets()
    out = ju.unlearn(method, toy.trained().variables, sets, KEY, steps=steps, batch_size=32)
    return out, accuracies(out.variables, sets)


@pytest.mark.parametrize(
    ("method", "options", "message"),
    [
        (ju.bad_teacher, {"forget_weight": 1.5}, "forget_weight: expected a number from 0 to 1"),
        (ju.bad_teacher, {"temperature": 0}, "temperature: expected a positive number, got 0"),
        (ju.bad_teacher, {"share": 0}, "share: expected a share above 0"),
        (ju.scrub, {"kl_weight": -1}, "kl_weight: expected a number of 0 or more"),
        (ju.scrub, {"loss_weight": 0, "kl_weight": 0}, "expected one that is positive, got 0"),
        (ju.scrub, {"rounds": 0}, "rounds: expected a positive number"),
        (ju.scrub, {"max_rounds": -1}, "max_rounds: expected a number of 0 or more"),
        (ju.scrub, {"turns": "epochs"}, r"turns: expected one of \('rounds', 'steps'\)"),
        (ju.scrub, {"max_share": 2}, "max_share: expected a share above 0"),
        (ju.scrub, {"rewind": "yes"}, "rewind: expected True or False"),
        (ju.duck, {"temperature": float("nan")}, "temperature: expected a positive number"),
        (ju.duck, {"retain_weight": -1}, "retain_weight: expected a number of 0 or more"),
        (ju.pbu, {"distance_weight": -1}, "distance_weight: expected a number of 0 or more"),
        (ju.pbu, {"form": "repo"}, r"form: expected one of \('proximal', 'repository'\)"),
        (ju.dlfd, {"noise_steps": 0}, "noise_steps: expected a positive number"),
        (ju.dlfd, {"noise_rate": 0}, "noise_rate: expected a positive number"),
        (ju.dlfd, {"blur": -1}, "blur: expected a positive number"),
        (ju.dlfd, {"loss_weights": 1.0}, "loss_weights: expected two numbers, got 1.0"),
        (ju.dlfd, {"transports": "no"}, r"transports: expected one of \('noisy', 'clean'\)"),
        (ju.dlfd, {"skip_below": 0.6}, "skip_below: expected a number from 0 to 0.5"),
        (ju.dlfd, {"request": "all"}, r"request: expected one of \('class', 'items'\)"),
        (ju.scrub, {"request": "all"}, r"request: expected one of \('class', 'items'\)"),
        (ju.just_in_time, {"sigma": 0}, "sigma: expected a positive number"),
        (ju.just_in_time, {"noises": 2.5}, "noises: expected a positive number"),
        (ju.just_in_time, {"gradient": "all"}, r"gradient: expected one of \('stopped', 'true'\)"),
        (ju.attack_loss, {"attack": "svm"}, r"attack: expected one of \('logistic', 'gaussian'\)"),
        (ju.attack_loss, {"attack_weight": -1}, "attack_weight: expected a number of 0 or more"),
    ],
)
def test_bad_arguments_are_named(method, options, message):
    with pytest.raises(ValueError, match=message):
        method(toy.mlp(), **options)


def make_any(name, options, steps):
    fixed = {"steps": steps} if "steps" in METHODS[name].takes else {}
    fixed |= {"noise_steps": 2} if name == "dlfd" else {}
    fixed |= {"noises": 2} if name == "just_in_time" else {}
    return METHODS[name].factory(toy.mlp(), optimizer=optax.sgd(1e-3), **fixed, **options)


@pytest.mark.parametrize("name", ["bad_teacher", "scrub", "pbu", "dlfd", "just_in_time"])
def test_options_worth_tuning_are_swept_in_one_program(name):
    ends = METHODS[name].tune
    # 50 examples of the class are one batch of the single pass
    steps = None if name == "just_in_time" else 3
    sweep = ju.sweep(lambda **own: make_any(name, own, 3), **ends)
    given, keys = toy.trained().variables, jnp.stack([KEY, KEY])
    many = ju.unlearn_many(sweep, given, toy.sets(), keys, steps=steps, batch_size=50).variables
    own = {option: pair[1] for option, pair in ends.items()}
    one = ju.unlearn(make_any(name, own, 3), given, toy.sets(), KEY, steps=steps, batch_size=50)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a[1], b, atol=1e-5), many, one.variables)


def test_a_bad_teacher_leaves_random_predictions_on_the_class():
    optimizer = optax.adam(5e-3)
    out, (forget, retain) = forgotten(ju.bad_teacher(toy.mlp(), optimizer=optimizer), 80)
    assert forget < 0.3
    assert retain > 0.9
    assert out.history["kl_retain"][0] < 1e-6 < out.history["kl_forget"][0]
    assert out.history["kl_forget"][-1] < out.history["kl_forget"][0] / 2


def test_a_share_of_the_retain_set_is_all_that_a_bad_teacher_uses():
    """Images of a share that nobody draws may be anything."""
    sets = toy.sets()
    method = ju.bad_teacher(toy.mlp(), share=0.1)
    state = jax.jit(method.init)(toy.trained().variables, sets, KEY)
    kept = state.prepared.retain.part
    assert int(kept.size) == 13
    found = {bytes(np.asarray(one)) for one in kept.examples.x[: int(kept.size)]}
    own = {bytes(np.asarray(one)) for one in sets.retain.examples.x[sets.retain.indices]}
    assert len(found) == 13
    assert found < own
    other = jax.jit(method.init)(toy.trained().variables, sets, jax.random.key(2)).prepared
    assert (other.retain.part.examples.x != kept.examples.x).any()
    assert (other.random["params"]["fc1"]["kernel"]
            != state.prepared.random["params"]["fc1"]["kernel"]).any()  # fmt: skip


def test_a_network_that_cannot_be_drawn_has_no_random_teacher():
    method = ju.bad_teacher(toy.mlp().apply)
    with pytest.raises(ConfigError, match="init"):
        ju.unlearn(method, toy.trained().variables, toy.sets(), KEY, steps=1)


@pytest.mark.parametrize(
    ("turns", "share", "rounds", "pattern"),
    [
        ("rounds", 0.4, 2, "-++---++--" + "-" * 5),
        ("rounds", 0.01, 1, "-+---" + "-" * 10),
        ("rounds", 1.0, 3, "-++++" * 3),
        ("steps", 0.5, 3, "-+-+-" * 3),
        ("steps", 1.0, 1, "-++++" + "-" * 10),
        ("rounds", 0.4, 0, "-" * 15),
    ],
)
def test_max_steps_of_scrub(turns, share, rounds, pattern):
    found = [bool(is_max_step(jnp.int32(n), 5, share, turns, rounds)) for n in range(15)]
    assert "".join("-+"[one] for one in found) == pattern


def test_scrub_forgets_and_repairs_in_its_last_round():
    method = ju.scrub(toy.mlp(), optimizer=optax.adam(4e-3), steps=60, temperature=1.0)
    out, (forget, retain) = forgotten(method)
    assert forget < 0.3
    assert retain > 0.9
    # as many max steps as the class has of all examples, in the first two of three rounds
    share = 50 / 180
    assert out.history["max_step"].sum() == 2 * round(20 * share)
    assert not out.history["max_step"][40:].any()


def test_rewinding_finds_the_round_of_nearest_error():
    """A model calls what lies below its threshold 0, and the rest 1."""
    x = np.arange(4.0, dtype=np.float32)[:, None]
    model = ju.functionalize(
        lambda v, x: jnp.where(x < v["params"]["t"], jnp.float32([[1, 0]]), jnp.float32([[0, 1]]))
    )
    forget, unseen = (
        ju.whole(ju.data.as_examples(x, np.array(y, np.int32))) for y in ([1] * 4, [1, 1, 0, 0])
    )
    rounds = {"t": jnp.float32([0.0, 1.5, 2.5, 4.5])}  # forget errors 0, .5, .75, 1
    given = {"params": {"t": jnp.float32(9)}}
    # errors of the last of them on unseen examples: .5, .75, .5
    for last, wanted in ((3, 1), (2, 2), (0, 0)):
        found = rewound_to(model, given, rounds, jnp.int32(last), forget, unseen)
        assert int(found) == wanted


def test_duck_moves_features_to_the_centroid_of_another_class():
    out, (forget, retain) = forgotten(ju.duck(toy.mlp(), optimizer=optax.adam(5e-3)))
    assert forget < 0.1
    assert retain > 0.95
    assert out.history["distance"][-1] < out.history["distance"][0] / 4


def test_features_and_centroids_that_are_zero_are_left_out():
    centroids = jnp.float32([[0, 0], [1, 0], [0, 1]])
    features, labels = jnp.float32([[2, 1], [-1, -1], [0, 0]]), jnp.int32([1, 2, 1])
    assert nearest_wrong(features, labels, centroids).tolist() == [2, 1, 2]
    slope = jax.grad(lambda a: cosines(a, centroids[1]))(jnp.zeros(2))
    assert slope.tolist() == [0, 0]


def test_pbu_forgets_the_class_and_collapses_later():
    """Without retained examples nothing else holds it: a stop rule is needed."""
    method = ju.pbu(toy.mlp(), optimizer=optax.adam(1e-3), fisher_weight=10.0,
                    distance_weight=1.0, forget_weight=50.0)  # fmt: skip
    sets, given = toy.sets(), toy.trained().variables
    run = lambda **more: ju.unlearn(  # noqa: E731
        method, given, sets, KEY, steps=300, batch_size=32, chunk=4, **more
    )
    stopped = run(stop=ju.stop.within(accuracy_forget=0.05))
    (forget, retain), (_, late) = (accuracies(out.variables, sets) for out in (stopped, run()))
    assert stopped.steps < 100
    assert forget < 0.1
    assert retain > 0.7
    assert late < retain - 0.1


def test_noise_of_dlfd_moves_away_from_the_forget_set():
    """The transport grows by it; as published it depends on chance."""
    options = {"optimizer": optax.sgd(1e-3), "noise_steps": 5, "noise_rate": 0.05,
               "loss_weights": (0.1, 0.1), "skip_below": 0.0, "steps": 4}  # fmt: skip
    told = {}
    for kind in ("noisy", "clean"):
        out, _ = forgotten(ju.dlfd(toy.mlp(), transports=kind, **options), 4)
        told[kind] = out.history["transport"] - out.history["transport_before"]
    assert (told["noisy"] > 0).all()
    assert (told["noisy"] > told["clean"]).all()


def test_inputs_that_noise_cannot_move_are_refused():
    tokens = toy.text_classifier()
    given = toy.trained_on_questions().variables
    for method in (ju.dlfd(tokens), ju.just_in_time(tokens)):
        with pytest.raises(ConfigError, match="x: expected inputs of floats, which noise can move"):
            ju.unlearn(method, given, toy.question_sets(), KEY, batch_size=8,
                       steps=None if method.needs.once else 2)  # fmt: skip


def test_just_in_time_smooths_the_network_in_one_pass():
    sets, given = toy.sets(), toy.trained().variables
    slopes = {}
    for gradient in ("stopped", "true"):
        method = ju.just_in_time(toy.mlp(), optimizer=optax.sgd(3e-3), sigma=0.1, gradient=gradient)
        out = ju.unlearn(method, given, sets, KEY, batch_size=8)
        assert out.steps == 7
        slopes[gradient] = out.history["slope"]
    assert slopes["true"][-3:].mean() < slopes["true"][:3].mean()
    np.testing.assert_allclose(slopes["true"][0], slopes["stopped"][0], rtol=1e-5)


def test_inputs_that_noise_left_alone_have_no_slope():
    x = jnp.float32([[0, 0], [0, 0], [3, 4]])
    moved = jnp.concatenate([x, x + jnp.float32([[1, 0], [0, 1], [0, 2]])])
    apply = lambda v, x: x * v[None]  # noqa: E731
    v = jnp.float32([2, 0])
    assert mean_slopes(apply, v, x, moved, "true").tolist() == [1, 0, 0]
    slope = jax.grad(lambda v: mean_slopes(apply, v, x, moved, "true").sum())(v)
    assert slope.tolist() == [0.5, 0]


def test_momentum_stops_where_a_smaller_set_ends():
    """In one program with a larger set a member has steps without examples."""
    method = ju.just_in_time(toy.mlp(), optimizer=optax.sgd(1e-4, momentum=0.9), noises=2)
    requests = [toy.sets(ju.forget_class(label)) for label in (0, 3)]
    keys = jax.random.split(KEY, 2)
    given = toy.trained().variables
    many = ju.unlearn_many(
        method, given, ju.data.stack_sets(requests), keys, batch_size=16
    ).variables
    for number, (sets, key) in enumerate(zip(requests, keys, strict=True)):
        one = ju.unlearn(method, given, sets, key, batch_size=16).variables
        jax.tree.map(
            lambda a, b, n=number: np.testing.assert_allclose(a[n], b, atol=1e-5), many, one
        )


def test_attack_loss_lowers_what_the_attack_sees_of_items():
    sets = toy.sets(forget_indices(range(0, 180, 5)))
    method = ju.attack_loss(toy.mlp(), optimizer=optax.adam(1e-3), attack_weight=20.0)
    out, (_, retain) = forgotten(method, 60, sets)
    before, after = (np.abs(out.history["advantage"][part]).mean() for part in
                     (slice(0, 10), slice(-10, None)))  # fmt: skip
    assert after < before
    assert retain > 0.95


def test_scaled_confidences_are_log_odds_of_the_label():
    logits, labels = jax.random.normal(KEY, (5, 3)), jnp.int32([0, 1, 2, 0, 1])
    p = jax.nn.softmax(logits)[jnp.arange(5), labels]
    np.testing.assert_allclose(scaled_confidences(logits, labels), jnp.log(p / (1 - p)), atol=1e-5)


def test_the_logistic_attack_counts_both_sides_alike():
    members, others = jnp.float32([1.0, 2.0, 3.0] * 5), jnp.float32([-1.0, -2.0, -3.0])
    a, b = fit_logistic(members, others)
    assert a > 0.5
    assert abs(float(b)) < 1e-4
    for kind in ("logistic", "gaussian"):
        judged = membership(kind, jnp.float32([-2.0, 0.0, 2.0]), members, others)
        np.testing.assert_allclose(judged[1], 0.5, atol=1e-4)
        assert judged[0] < 0.2
        assert judged[2] > 0.8
