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
    from jaxunlearn.config import Config, DataConfig, ModelConfig, Request, TrainConfig
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
    from jaxunlearn.members import ensemble
    from jaxunlearn.metrics.evaluate import evaluate
    from jaxunlearn.models import build, functionalize, variables_of
    from jaxunlearn.pictures import (
        save_concepts,
        save_confusions,
        save_heatmaps,
        save_maps,
        save_patches,
        save_path,
        save_poison,
    )
    from jaxunlearn.report import print_report
    from jaxunlearn.runner import unlearn, unlearn_many
    from jaxunlearn.sharding import make_sharding
    from jaxunlearn.types import Batches, Info, Model, Needs, Sets, Unlearner
    from jaxunlearn.unlearners.concept_poison import concept_poison
    from jaxunlearn.unlearners.finetune import finetune
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
    "config": ["Config", "DataConfig", "ModelConfig", "Request", "TrainConfig"],
    "data.requests": ["forget_class", "forget_classes", "forget_indices", "forget_random"],
    "data.sets": ["make_sets", "stack_sets", "subset", "whole"],
    "data.sources": ["load_dataset"],
    "members": ["ensemble"],
    "experiment": ["run"],
    "fit": ["train", "train_many"],
    "metrics.evaluate": ["evaluate"],
    "models": ["build", "functionalize", "variables_of"],
    "pictures": [
        "save_concepts",
        "save_confusions",
        "save_heatmaps",
        "save_maps",
        "save_patches",
        "save_path",
        "save_poison",
    ],
    "report": ["print_report"],
    "runner": ["unlearn", "unlearn_many"],
    "sharding": ["make_sharding"],
    "types": ["Batches", "Info", "Model", "Needs", "Sets", "Unlearner"],
    "unlearners.concept_poison": ["concept_poison"],
    "unlearners.finetune": ["finetune"],
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
    "Info",
    "Model",
    "ModelConfig",
    "Needs",
    "Request",
    "Sets",
    "TrainConfig",
    "Unlearner",
    "baselines",
    "build",
    "concept_maps",
    "concept_poison",
    "conductance",
    "ensemble",
    "evaluate",
    "features",
    "finetune",
    "forget_class",
    "forget_classes",
    "forget_indices",
    "forget_random",
    "functionalize",
    "grad_cam",
    "gradient_ascent",
    "infer_concepts",
    "integrated_gradients",
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
]


def __getattr__(name: str) -> Any:
    if name not in _WHERE:
        raise AttributeError(f"module 'jaxunlearn' has no attribute {name!r}")
    return getattr(importlib.import_module(f"jaxunlearn.{_WHERE[name]}"), name)


def __dir__() -> list[str]:
    return sorted(__all__)
