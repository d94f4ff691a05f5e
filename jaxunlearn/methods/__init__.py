"""Methods: one file each, and one row here; ``ju.NAME`` is the factory of each."""

import inspect
from collections.abc import Callable, Mapping
from types import MappingProxyType
from typing import NamedTuple

from jaxunlearn.core.registry import Registry, load
from jaxunlearn.core.types import Unlearner

__all__ = ["FACTS", "METHODS", "Method", "method_options", "register_method"]

FACTS = {
    "steps": "how many steps the method will do",
    "class_names": "names of the labels",
    "request": "'class' or 'items': what is to be forgotten",
    "guide": "a classifier of the images that a GAN makes",
    "tokenizer": "that of the texts of a language model",
}
"""Facts of a run that a method may ask for: each is given to its factory under this name."""


TRAITS = {
    "one_shot": "a single pass over what it reads, or a closed form",
    "exact": "equals retraining, in the case that its docstring names",
    "label_free": "reads no labels",
    "zero_shot": "reads no example that the model was trained on",
}
"""Traits that methods may have beside the requests that they suit."""


class Method(NamedTuple):
    """Row of the registry.

    Attributes:
      target: ``"module:factory"``, or the factory itself; it takes a network and keyword
        arguments and returns an :class:`~jaxunlearn.core.types.Unlearner`.
      summary: one line for ``jaxunlearn list``.
      kind: of models, a name in ``KINDS``.
      forgets: requests that it suits: ``"class"``, ``"items"``.
      takes: facts of the run, names in :data:`FACTS`, that the factory is given where the user
        has not given them.
      traits: names in :data:`TRAITS`.
      tune: options that are worth tuning with the ends of their ranges, searched on a log scale
        where both are positive; a learning rate need not be named.
    """

    target: str | Callable[..., Unlearner]
    summary: str
    kind: str = "classifier"
    forgets: tuple[str, ...] = ("class", "items")
    takes: tuple[str, ...] = ()
    traits: tuple[str, ...] = ()
    tune: Mapping[str, tuple[float, float]] = MappingProxyType({})

    @property
    def factory(self) -> Callable[..., Unlearner]:
        """Returns the factory; imports it where it was named."""
        return load(self.target)


METHODS = Registry(
    "methods",
    Method,
    {
        "retrain": Method(
            "jaxunlearn.methods.retrain:retrain",
            "train from scratch on the retain set",
            traits=("exact",),
        ),
        "finetune": Method("jaxunlearn.methods.finetune:finetune", "fine-tune on the retain set"),
        "gradient_ascent": Method(
            "jaxunlearn.methods.gradient_ascent:gradient_ascent", "climb the loss of the forget set"
        ),
        "random_label": Method(
            "jaxunlearn.methods.random_label:random_label",
            "fine-tune with wrong labels on the forget set",
            tune={"forget_weight": (0.1, 10.0)},
        ),
        "bad_teacher": Method(
            "jaxunlearn.methods.bad_teacher:bad_teacher",
            "imitate a random network on the forget set, the original on the retain set",
            traits=("label_free",),
            tune={"forget_weight": (0.1, 0.9)},
        ),
        "scrub": Method(
            "jaxunlearn.methods.scrub:scrub",
            "away from the original on the forget set, towards it on the retain set, in turns",
            takes=("request", "steps"),
            tune={"kl_weight": (0.001, 1.0), "temperature": (1.0, 4.0)},
        ),
        "duck": Method(
            "jaxunlearn.methods.duck:duck",
            "draw features to the nearest centroid of a wrong class",
            tune={"forget_weight": (0.1, 10.0)},
        ),
        "pbu": Method(
            "jaxunlearn.methods.pbu:pbu",
            "climb the loss of the forget set, held where its Fisher information is large",
            tune={"forget_weight": (1.0, 1000.0), "fisher_weight": (1.0, 1000.0)},
        ),
        "neggrad_plus": Method(
            "jaxunlearn.methods.neggrad_plus:neggrad_plus",
            "climb the loss of the forget set, descend that of the retain set",
            tune={"retain_weight": (0.9, 0.999)},
        ),
        "salun": Method(
            "jaxunlearn.methods.salun:salun",
            "wrong labels, learned by the weights that the forget set depends on most",
            tune={"share": (0.1, 0.9), "forget_weight": (0.1, 10.0)},
        ),
        "l1_sparse": Method(
            "jaxunlearn.methods.l1_sparse:l1_sparse",
            "fine-tune on the retain set while weights are shrunk to 0",
            takes=("steps",),
            tune={"gamma": (1e-5, 1e-1)},
        ),
        "boundary_shrink": Method(
            "jaxunlearn.methods.boundary:boundary_shrink",
            "give what is to be forgotten to the class across the nearest boundary",
            tune={"bound": (0.03, 3.0)},
        ),
        "boundary_expand": Method(
            "jaxunlearn.methods.boundary:boundary_expand",
            "give what is to be forgotten to one more class, and cut that off",
            traits=("label_free",),
        ),
        "cf_k": Method(
            "jaxunlearn.methods.cf_k:cf_k", "fine-tune the last layers on the retain set"
        ),
        "eu_k": Method(
            "jaxunlearn.methods.cf_k:eu_k",
            "train the last layers from scratch on the retain set",
            traits=("exact",),
        ),
        "msg": Method(
            "jaxunlearn.methods.msg:msg",
            "draw weights of small gradients anew, then fine-tune",
            tune={"share": (0.05, 0.9), "others": (0.01, 1.0)},
        ),
        "ct": Method(
            "jaxunlearn.methods.ct:ct", "turn spatial kernels over, then fine-tune (images)"
        ),
        "unsir": Method(
            "jaxunlearn.methods.unsir:unsir",
            "learn noise as the class, then repair on the retain set",
            forgets=("class",),
            takes=("steps",),
            tune={"noise_share": (0.1, 0.5), "impair": (0.2, 0.8)},
        ),
        "dlfd": Method(
            "jaxunlearn.methods.dlfd:dlfd",
            "fine-tune on retained examples moved away from the forget set by optimal transport",
            takes=("request", "steps"),
            tune={
                "transport_weight": (0.3, 10.0),
                "noise_rate": (0.01, 1.0),
                "skip_below": (0.01, 0.3),
            },
        ),
        "just_in_time": Method(
            "jaxunlearn.methods.jit_unlearn:just_in_time",
            "smooth the network around the forget set, in one pass over it",
            traits=("one_shot", "label_free"),
            tune={"sigma": (0.01, 1.5)},
        ),
        "attack_loss": Method(
            "jaxunlearn.methods.attack_loss:attack_loss",
            "let an attack score the forget set as it scores examples that no training saw",
            forgets=("items",),
            tune={"attack_weight": (1.0, 1000.0)},
        ),
        "gkt": Method(
            "jaxunlearn.methods.gkt:gkt",
            "distil into a fresh network on generated inputs that are not of the class",
            forgets=("class",),
            traits=("zero_shot",),
            tune={"limit": (0.0001, 0.01), "attention_weight": (1.0, 250.0)},
        ),
        "condense": Method(
            "jaxunlearn.methods.condense:condense",
            "fine-tune parts in turn on a retain set condensed to a few images",
            takes=("steps",),
        ),
        "sisa": Method(
            "jaxunlearn.methods.sisa:sisa",
            "train networks on shards, retrain those that must forget (its own original)",
            takes=("steps",),
            traits=("exact",),
        ),
        "ssd": Method(
            "jaxunlearn.methods.ssd:ssd",
            "shrink weights that the forget set depends on more than all examples do",
            traits=("one_shot",),
            tune={"threshold": (1.0, 10.0), "dampening": (0.05, 1.0)},
        ),
        "loss_free_ssd": Method(
            "jaxunlearn.methods.ssd:loss_free_ssd",
            "shrink weights as ssd does, found without labels",
            traits=("one_shot", "label_free"),
            tune={"threshold": (1.0, 10.0), "dampening": (0.05, 1.0)},
        ),
        "fisher": Method(
            "jaxunlearn.methods.fisher:fisher",
            "add noise to weights that the retain set does not depend on",
            traits=("one_shot", "label_free"),
            tune={"noise": (1e-9, 1e-3)},
        ),
        "ntk": Method(
            "jaxunlearn.methods.ntk:ntk",
            "move as retraining would, were the network linear in its weights",
            traits=("one_shot", "exact"),
            tune={"scale": (0.03, 30.0), "ridge": (1e-4, 1.0)},
        ),
        "influence": Method(
            "jaxunlearn.methods.influence:influence",
            "one Newton step on the curvature of the retain set",
            traits=("one_shot", "exact"),
            tune={"scale": (0.1, 10.0), "damping": (1e-4, 1.0)},
        ),
        "first_order": Method(
            "jaxunlearn.methods.features_and_labels:first_order",
            "one step of the gradient that corrected features or labels change",
            traits=("one_shot",),
            tune={"rate": (1e-6, 1e-1)},
        ),
        "second_order": Method(
            "jaxunlearn.methods.features_and_labels:second_order",
            "one Newton step on the data with corrected features or labels",
            traits=("one_shot", "exact"),
            tune={"scale": (0.1, 10.0), "damping": (1e-4, 1.0)},
        ),
        "datamodel": Method(
            "jaxunlearn.methods.datamodel:datamodel",
            "learn what a retrained network is predicted to say",
            traits=("exact",),
            tune={"ridge": (0.01, 100.0), "retain_weight": (0.3, 10.0)},
        ),
        "neuron_path": Method(
            "jaxunlearn.methods.neuron_path:neuron_path",
            "zero the neurons most relevant to a class, found on unseen images (paper 1)",
            forgets=("class",),
            traits=("one_shot", "zero_shot"),
        ),
        "concept_poison": Method(
            "jaxunlearn.methods.concept_poison:concept_poison",
            "fine-tune on copies with another class's concept and label (paper 2)",
            forgets=("class",),
            takes=("class_names",),
        ),
        "word_poison": Method(
            "jaxunlearn.methods.word_poison:word_poison",
            "fine-tune on copies with another class's concept words and label (paper 2)",
            forgets=("class",),
        ),
        "cascade": Method(
            "jaxunlearn.methods.cascade:cascade",
            "substitutes for the generator, a fake label for the discriminator (paper 3)",
            kind="gan",
            takes=("guide", "request", "steps"),
        ),
        "adapt_unlearn": Method(
            "jaxunlearn.methods.adapt_unlearn:adapt_unlearn",
            "away from a GAN adapted to the class, on generated images (Adapt then Unlearn)",
            kind="gan",
            forgets=("class",),
            takes=("guide",),
        ),
        "discriminator_ascent": Method(
            "jaxunlearn.methods.discriminator_ascent:discriminator_ascent",
            "climb the discriminator's loss on the forget set",
            kind="gan",
        ),
        "gan_retrain": Method(
            "jaxunlearn.methods.gan_retrain:gan_retrain",
            "train both networks from scratch on the retain set",
            kind="gan",
        ),
        "gan_finetune": Method(
            "jaxunlearn.methods.gan_retrain:gan_finetune",
            "go on learning on the retain set",
            kind="gan",
        ),
        "lm_retrain": Method(
            "jaxunlearn.methods.language.finetune:lm_retrain",
            "train a language model on the retain set, from scratch or a start",
            kind="language",
        ),
        "lm_finetune": Method(
            "jaxunlearn.methods.language.finetune:lm_finetune",
            "go on learning the answers of the retain set",
            kind="language",
        ),
        "lm_gradient_ascent": Method(
            "jaxunlearn.methods.language.likelihoods:lm_gradient_ascent",
            "climb the loss of the answers to be forgotten",
            kind="language",
        ),
        "grad_diff": Method(
            "jaxunlearn.methods.language.likelihoods:grad_diff",
            "climb the loss to be forgotten, descend that of what is retained",
            kind="language",
        ),
        "npo": Method(
            "jaxunlearn.methods.language.likelihoods:npo",
            "negative preference optimisation against the original",
            kind="language",
        ),
        "simnpo": Method(
            "jaxunlearn.methods.language.likelihoods:simnpo",
            "negative preference optimisation by length, without a reference",
            kind="language",
        ),
        "wga": Method(
            "jaxunlearn.methods.language.likelihoods:wga",
            "gradient ascent, each token weighted by its probability",
            kind="language",
        ),
        "sat_imp": Method(
            "jaxunlearn.methods.language.likelihoods:sat_imp",
            "gradient ascent, tokens weighted by saturation and importance",
            kind="language",
        ),
        "undial": Method(
            "jaxunlearn.methods.language.likelihoods:undial",
            "distil the original with lowered logits of what is to be forgotten",
            kind="language",
        ),
        "ce_u": Method(
            "jaxunlearn.methods.language.likelihoods:ce_u",
            "learn its own predictions without the tokens to be forgotten",
            kind="language",
        ),
        "task_vector": Method(
            "jaxunlearn.methods.language.finetune:task_vector",
            "learn what is to be forgotten, go the other way",
            kind="language",
        ),
        "dpo": Method(
            "jaxunlearn.methods.language.preference:dpo",
            "prefer a wrong answer to the right one",
            kind="language",
        ),
        "alt_po": Method(
            "jaxunlearn.methods.language.preference:alt_po",
            "prefer one of several alternatives to the right answer",
            kind="language",
        ),
        "idk_dpo": Method(
            "jaxunlearn.methods.language.preference:idk_dpo",
            "prefer to say that one does not know",
            kind="language",
            takes=("tokenizer",),
        ),
        "rmu": Method(
            "jaxunlearn.methods.language.rmu:rmu",
            "turn the states of what is to be forgotten into a random vector",
            kind="language",
        ),
        "concept_words": Method(
            "jaxunlearn.methods.language.concept_words:concept_words",
            "fine-tune on answers without their concept words, or on others (paper 2)",
            kind="language",
            takes=("tokenizer", "class_names"),
        ),
        "eul": Method(
            "jaxunlearn.methods.language.eul:eul",
            "light adapters by a selective teacher, fused over requests",
            kind="language",
        ),
    },
)


def register_method(
    name: str,
    target: str | Callable[..., Unlearner],
    *,
    summary: str = "",
    kind: str = "classifier",
    forgets: tuple[str, ...] = ("class", "items"),
    takes: tuple[str, ...] = (),
    traits: tuple[str, ...] = (),
    tune: Mapping[str, tuple[float, float]] | None = None,
) -> None:
    """Adds a method: ``jaxunlearn run methods=NAME`` then finds it; see :class:`Method`.

    Raises:
      ConfigError: the name is taken.
      ValueError: a fact that no run has, a request that nobody makes, or an unknown trait.
    """
    known = {"takes": FACTS, "forgets": ("class", "items"), "traits": TRAITS}
    for word, given in {"takes": takes, "forgets": forgets, "traits": traits}.items():
        if unknown := set(given) - set(known[word]):
            raise ValueError(f"{word}: expected some of {list(known[word])}, got {sorted(unknown)}")
    row = Method(
        target, summary, kind, tuple(forgets), tuple(takes), tuple(traits), dict(tune or {})
    )
    METHODS.register(name, row)


def method_options(name: str) -> dict[str, inspect.Parameter]:
    """Returns the keyword arguments that a method's factory takes, by name."""
    parameters = inspect.signature(METHODS.find(name).factory).parameters
    return {key: p for key, p in parameters.items() if p.kind is p.KEYWORD_ONLY}
