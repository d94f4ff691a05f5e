"""Makes JAX models forget, and shows what they still know.

The names that most users need are here, and every method under its own: ``ju.neuron_path``, or
``ju.NAME`` of a registered one. The others are in rooms: ``ju.attribution``, ``ju.pictures`` and
so on. All are imported when they are first used, so that ``jaxunlearn --help`` does not wait for
JAX, and so that no data set library is loaded before it is asked for.
"""

import importlib
from typing import TYPE_CHECKING, Any

__version__ = "0.2.0"

if TYPE_CHECKING:
    from jaxunlearn import attribution as attribution
    from jaxunlearn import checkpoint as checkpoint
    from jaxunlearn import concepts as concepts
    from jaxunlearn import data as data
    from jaxunlearn import gan as gan
    from jaxunlearn import kinds as kinds
    from jaxunlearn import language as language
    from jaxunlearn import methods as methods
    from jaxunlearn import metrics as metrics
    from jaxunlearn import models as models
    from jaxunlearn import pictures as pictures
    from jaxunlearn import report as report
    from jaxunlearn import training as training
    from jaxunlearn.attribution import integrated_gradients, lrp, starts
    from jaxunlearn.attribution.lrp import rules
    from jaxunlearn.config import Config, TrainConfig
    from jaxunlearn.core.types import Model, Needs, Sets, Subset, Unlearner
    from jaxunlearn.data.requests import forget_class
    from jaxunlearn.data.sets import make_sets, whole
    from jaxunlearn.engine import Outcome, chain, stop, sweep, unlearn, unlearn_many
    from jaxunlearn.engine.sharding import make_sharding
    from jaxunlearn.experiment import run
    from jaxunlearn.kinds.evaluate import evaluate
    from jaxunlearn.kinds.training import train, train_many
    from jaxunlearn.methods import register_method
    from jaxunlearn.methods.adapt_unlearn import adapt_unlearn as adapt_unlearn
    from jaxunlearn.methods.cascade import cascade as cascade
    from jaxunlearn.methods.concept_poison import concept_poison as concept_poison
    from jaxunlearn.methods.discriminator_ascent import discriminator_ascent as discriminator_ascent
    from jaxunlearn.methods.finetune import finetune as finetune
    from jaxunlearn.methods.gan_retrain import gan_finetune as gan_finetune
    from jaxunlearn.methods.gan_retrain import gan_retrain as gan_retrain
    from jaxunlearn.methods.gradient_ascent import gradient_ascent as gradient_ascent
    from jaxunlearn.methods.neuron_path import neuron_path as neuron_path
    from jaxunlearn.methods.random_label import random_label as random_label
    from jaxunlearn.methods.retrain import retrain as retrain
    from jaxunlearn.methods.word_poison import word_poison as word_poison
    from jaxunlearn.models import functionalize, into, variables_of
    from jaxunlearn.report import print_report

_ROOMS = (
    "attribution", "checkpoint", "concepts", "config", "data", "gan", "kinds", "language",
    "methods", "metrics", "models", "pictures", "report", "training",
)  # fmt: skip
_HOME = {
    "attribution": ["integrated_gradients", "lrp", "starts"],
    "attribution.lrp": ["rules"],
    "config": ["Config", "TrainConfig"],
    "core.types": ["Model", "Needs", "Sets", "Subset", "Unlearner"],
    "data.requests": ["forget_class"],
    "data.sets": ["make_sets", "whole"],
    "engine": ["Outcome", "chain", "stop", "sweep", "unlearn", "unlearn_many"],
    "engine.sharding": ["make_sharding"],
    "experiment": ["run"],
    "kinds.evaluate": ["evaluate"],
    "kinds.training": ["train", "train_many"],
    "methods": ["register_method"],
    "models": ["functionalize", "into", "variables_of"],
    "report": ["print_report"],
}
_WHERE = {name: home for home, names in _HOME.items() for name in names}

__all__ = [
    "Config", "Model", "Needs", "Outcome", "Sets", "Subset", "TrainConfig", "Unlearner",
    "attribution", "chain", "checkpoint", "concepts", "config", "data", "evaluate", "forget_class",
    "functionalize", "gan", "integrated_gradients", "into", "kinds", "language", "lrp",
    "make_sets", "make_sharding", "methods", "metrics", "models", "pictures", "print_report",
    "register_method", "report", "rules", "run", "starts", "stop", "sweep", "train", "train_many",
    "training", "unlearn", "unlearn_many", "variables_of", "whole",
]  # fmt: skip


def __getattr__(name: str) -> Any:
    if name in _ROOMS:
        return importlib.import_module(f"jaxunlearn.{name}")
    if name in _WHERE:
        return getattr(importlib.import_module(f"jaxunlearn.{_WHERE[name]}"), name)
    from jaxunlearn.core.errors import did_you_mean
    from jaxunlearn.methods import METHODS

    if name.startswith("_") or name not in METHODS:
        hint = did_you_mean(name, [*__all__, *METHODS])
        raise AttributeError(f"module 'jaxunlearn' has no attribute {name!r}{hint}")
    return METHODS[name].factory


def __dir__() -> list[str]:
    from jaxunlearn.methods import METHODS

    return sorted([*__all__, *METHODS])
