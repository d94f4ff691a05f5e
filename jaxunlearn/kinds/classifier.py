"""Classifiers: networks that give logits ``[B, K]``, one label for each example."""

import functools
from collections.abc import Mapping
from typing import Any

from jaxunlearn.config import DEFAULT_METHODS, Config, ModelConfig, TrainConfig
from jaxunlearn.core.types import Examples, Key, Model, Sets, Unlearner, Variables
from jaxunlearn.data.dataset import Dataset
from jaxunlearn.data.examples import inputs_like
from jaxunlearn.data.words import is_text, read_words
from jaxunlearn.kinds import Kind
from jaxunlearn.methods import METHODS
from jaxunlearn.methods.retrain import retrain
from jaxunlearn.metrics.classification import ClassifierEvidence
from jaxunlearn.metrics.robustness import ATTACKS
from jaxunlearn.models import build, check_model, functionalize
from jaxunlearn.models.adapt import check_given, warn_of_probabilities, warn_of_softmax
from jaxunlearn.models.frameworks import is_equinox, is_haiku
from jaxunlearn.training.optimizers import make_optimizer

USUAL = (
    "finetune", "gradient_ascent", "random_label", "neuron_path", "concept_poison", "word_poison",
)  # fmt: skip
"""Methods of a run that names none, on any data: the papers', and what they are compared with."""


class Classifier(Kind):
    """Kind of the networks that ``functionalize`` takes."""

    name = "classifier"
    summary = "one label for each example"
    evidence = ClassifierEvidence
    attacks = ATTACKS

    def owns(self, model: Any) -> bool:
        known = isinstance(model, Model) or is_haiku(model) or is_equinox(model)
        return known or (callable(model) and not isinstance(model, tuple))

    def given(self, model: Any) -> Model:
        return functionalize(model)

    def read(self, data: Dataset, settings: Any = None) -> Dataset:
        """Returns the data set; of texts with the reader of their words."""
        return read_words(data) if is_text(data) else data

    def build(self, config: ModelConfig, x: Any, data: Dataset, settings: Any = None) -> Model:
        shape, num_classes = tuple(x.shape[1:]) if hasattr(x, "shape") else x, len(data.class_names)
        model = build(config.name, shape, num_classes, config.options)
        check_model(model, x, num_classes)
        return model

    def recipe(
        self, model: Model, train: TrainConfig, examples: int, settings: Any = None
    ) -> tuple[Unlearner, int]:
        return _recipe(model, train, examples)

    def check_examples(self, model: Model, examples: Examples) -> None:
        check_model(model, inputs_like(examples, 2), labels=examples.y)
        warn_of_softmax(model, inputs_like(examples, 2))

    def observe(
        self, model: Model, variables: Variables, sets: Sets, key: Key, *, settings: Any = None
    ) -> ClassifierEvidence:
        """Returns the evidence; :class:`ConfigError` where predictions do not suit the labels."""
        found = ClassifierEvidence(model, variables, sets, key)
        examples = found.part("forget").examples
        check_given(model, variables, inputs_like(examples, 2), warn=False)
        check_model(model, inputs_like(examples, 2), variables=variables, labels=examples.y)
        if found.predictions["forget"].are_probabilities:
            warn_of_probabilities()
        return found

    def default_methods(self, config: Config) -> Mapping[str, Mapping[str, Any]]:
        if config.data.name == Config().data.name:
            return DEFAULT_METHODS
        # all of the field's methods are a bench's matter; those of other packages were asked for
        return {
            name: own
            for name, own in super().default_methods(config).items()
            if name in USUAL or not str(METHODS[name].target).startswith("jaxunlearn.")
        }


@functools.lru_cache(maxsize=32)
def _recipe(model: Model, train: TrainConfig, examples: int) -> tuple[Unlearner, int]:
    # one object for equal settings, so that a second call finds the compiled program
    steps = max(1, round(train.epochs * examples / train.batch_size))
    return retrain(model, optimizer=make_optimizer(train, steps), augment=train.augment), steps


CLASSIFIER = Classifier()
