"""Makes JAX models forget, and shows what they still know.

Names are imported when they are first used, so that ``jaxunlearn --help`` does not
wait for JAX, and so that no data set library is loaded before it is asked for.
"""

import importlib
from typing import TYPE_CHECKING, Any

__version__ = "0.1.0"

if TYPE_CHECKING:
    from jaxunlearn.attribution import (
        baselines,
        concept_maps,
        conductance,
        features,
        grad_cam,
        integrated_gradients,
        layer_integrated_gradients,
        lrp,
        quadrature,
        rules,
        seeds,
        structure,
    )
    from jaxunlearn.concepts import infer_concepts
    from jaxunlearn.config import (
        Config,
        DataConfig,
        GanConfig,
        ModelConfig,
        Request,
        TrainConfig,
    )
    from jaxunlearn.data.requests import (
        forget_class,
        forget_classes,
        forget_indices,
        forget_random,
    )
    from jaxunlearn.data.sets import make_sets, stack_sets, subset, whole
    from jaxunlearn.data.sources import load_dataset
    from jaxunlearn.experiment import run
    from jaxunlearn.fit import train, train_many
    from jaxunlearn.latents import Guide, invert
    from jaxunlearn.members import ensemble
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
    from jaxunlearn.runner import unlearn, unlearn_many, within
    from jaxunlearn.sharding import make_sharding
    from jaxunlearn.types import Batches, Gan, Info, Model, Needs, Sets, Unlearner
    from jaxunlearn.unlearners.adapt_unlearn import adapt_unlearn
    from jaxunlearn.unlearners.cascade import cascade
    from jaxunlearn.unlearners.concept_poison import concept_poison
    from jaxunlearn.unlearners.discriminator_ascent import discriminator_ascent
    from jaxunlearn.unlearners.finetune import finetune
    from jaxunlearn.unlearners.gan_retrain import gan_finetune, gan_retrain
    from jaxunlearn.unlearners.gradient_ascent import gradient_ascent
    from jaxunlearn.unlearners.neuron_path import neuron_path
    from jaxunlearn.unlearners.random_label import random_label
    from jaxunlearn.unlearners.retrain import retrain

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
    "latents": ["Guide", "invert"],
    "members": ["ensemble"],
    "experiment": ["run"],
    "fit": ["train", "train_many"],
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
    "runner": ["unlearn", "unlearn_many", "within"],
    "sharding": ["make_sharding"],
    "types": ["Batches", "Gan", "Info", "Model", "Needs", "Sets", "Unlearner"],
    "unlearners.adapt_unlearn": ["adapt_unlearn"],
    "unlearners.cascade": ["cascade"],
    "unlearners.concept_poison": ["concept_poison"],
    "unlearners.discriminator_ascent": ["discriminator_ascent"],
    "unlearners.finetune": ["finetune"],
    "unlearners.gan_retrain": ["gan_finetune", "gan_retrain"],
    "unlearners.gradient_ascent": ["gradient_ascent"],
    "unlearners.neuron_path": ["neuron_path"],
    "unlearners.random_label": ["random_label"],
    "unlearners.retrain": ["retrain"],
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
