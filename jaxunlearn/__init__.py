"""Makes JAX models forget, and shows what they still know.

Names are imported when they are first used, so that ``jaxunlearn --help`` does not
wait for JAX, and so that no data set library is loaded before it is asked for.
"""

import importlib
from typing import TYPE_CHECKING, Any

__version__ = "0.1.0"

if TYPE_CHECKING:
    from jaxunlearn.attribution import (
        concept_maps,
        conductance,
        features,
        grad_cam,
        integrated_gradients,
        layer_integrated_gradients,
        lrp,
        structure,
    )
    from jaxunlearn.attribution import starts as seeds
    from jaxunlearn.attribution.ig import baselines, quadrature
    from jaxunlearn.attribution.lrp import rules
    from jaxunlearn.concepts import infer_concepts
    from jaxunlearn.config import Config, DataConfig, GanConfig, ModelConfig, Request, TrainConfig
    from jaxunlearn.core.trees import ensemble
    from jaxunlearn.core.types import Batches, Gan, Info, Model, Needs, Sets, Unlearner
    from jaxunlearn.data.requests import forget_class, forget_classes, forget_indices, forget_random
    from jaxunlearn.data.sets import make_sets, stack_sets, subset, whole
    from jaxunlearn.data.sources import load_dataset
    from jaxunlearn.engine import unlearn, unlearn_many, within
    from jaxunlearn.engine.sharding import make_sharding
    from jaxunlearn.experiment import run
    from jaxunlearn.gan import Guide, invert
    from jaxunlearn.kinds.training import train, train_many
    from jaxunlearn.methods.adapt_unlearn import adapt_unlearn
    from jaxunlearn.methods.cascade import cascade
    from jaxunlearn.methods.concept_poison import concept_poison
    from jaxunlearn.methods.discriminator_ascent import discriminator_ascent
    from jaxunlearn.methods.finetune import finetune
    from jaxunlearn.methods.gan_retrain import gan_finetune, gan_retrain
    from jaxunlearn.methods.gradient_ascent import gradient_ascent
    from jaxunlearn.methods.neuron_path import neuron_path
    from jaxunlearn.methods.random_label import random_label
    from jaxunlearn.methods.retrain import retrain
    from jaxunlearn.metrics.evaluate import evaluate
    from jaxunlearn.models import build, build_gan, functionalize, variables_of
    from jaxunlearn.pictures import (
        save_concepts,
        save_confusions,
        save_heatmaps,
        save_maps,
        save_patches,
        save_path,
        save_poison,
        save_samples,
        save_scores,
        save_strips,
    )
    from jaxunlearn.report import print_report

_HOME = {
    "attribution": [
        "baselines",
        "concept_maps",
        "conductance",
        "features",
        "grad_cam",
        "integrated_gradients",
        "layer_integrated_gradients",
        "lrp",
        "quadrature",
        "rules",
        "seeds",
        "structure",
    ],
    "concepts": ["infer_concepts"],
    "config": ["Config", "DataConfig", "GanConfig", "ModelConfig", "Request", "TrainConfig"],
    "data.requests": ["forget_class", "forget_classes", "forget_indices", "forget_random"],
    "data.sets": ["make_sets", "stack_sets", "subset", "whole"],
    "data.sources": ["load_dataset"],
    "gan": ["Guide", "invert"],
    "core.trees": ["ensemble"],
    "experiment": ["run"],
    "kinds.training": ["train", "train_many"],
    "metrics.evaluate": ["evaluate"],
    "models": ["build", "build_gan", "functionalize", "variables_of"],
    "pictures": [
        "save_concepts",
        "save_confusions",
        "save_heatmaps",
        "save_maps",
        "save_patches",
        "save_path",
        "save_poison",
        "save_samples",
        "save_scores",
        "save_strips",
    ],
    "report": ["print_report"],
    "engine": ["unlearn", "unlearn_many", "within"],
    "engine.sharding": ["make_sharding"],
    "core.types": ["Batches", "Gan", "Info", "Model", "Needs", "Sets", "Unlearner"],
    "methods.adapt_unlearn": ["adapt_unlearn"],
    "methods.cascade": ["cascade"],
    "methods.concept_poison": ["concept_poison"],
    "methods.discriminator_ascent": ["discriminator_ascent"],
    "methods.finetune": ["finetune"],
    "methods.gan_retrain": ["gan_finetune", "gan_retrain"],
    "methods.gradient_ascent": ["gradient_ascent"],
    "methods.neuron_path": ["neuron_path"],
    "methods.random_label": ["random_label"],
    "methods.retrain": ["retrain"],
}
_WHERE = {name: home for home, names in _HOME.items() for name in names}

__all__ = [
    "Batches",
    "Config",
    "DataConfig",
    "Gan",
    "GanConfig",
    "Guide",
    "Info",
    "Model",
    "ModelConfig",
    "Needs",
    "Request",
    "Sets",
    "TrainConfig",
    "Unlearner",
    "adapt_unlearn",
    "baselines",
    "build",
    "build_gan",
    "cascade",
    "concept_maps",
    "concept_poison",
    "conductance",
    "discriminator_ascent",
    "ensemble",
    "evaluate",
    "features",
    "finetune",
    "forget_class",
    "forget_classes",
    "forget_indices",
    "forget_random",
    "functionalize",
    "gan_finetune",
    "gan_retrain",
    "grad_cam",
    "gradient_ascent",
    "infer_concepts",
    "integrated_gradients",
    "invert",
    "layer_integrated_gradients",
    "load_dataset",
    "lrp",
    "make_sets",
    "make_sharding",
    "neuron_path",
    "print_report",
    "quadrature",
    "random_label",
    "retrain",
    "rules",
    "run",
    "save_concepts",
    "save_confusions",
    "save_heatmaps",
    "save_maps",
    "save_patches",
    "save_path",
    "save_poison",
    "save_samples",
    "save_scores",
    "save_strips",
    "seeds",
    "stack_sets",
    "structure",
    "subset",
    "train",
    "train_many",
    "unlearn",
    "unlearn_many",
    "variables_of",
    "whole",
    "within",
]


def __getattr__(name: str) -> Any:
    if name not in _WHERE:
        raise AttributeError(f"module 'jaxunlearn' has no attribute {name!r}")
    return getattr(importlib.import_module(f"jaxunlearn.{_WHERE[name]}"), name)


def __dir__() -> list[str]:
    return sorted(__all__)
