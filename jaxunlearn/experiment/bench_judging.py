"""Judgement of a bench's models: what is measured of each, beside the retrained ones."""

import math
from collections.abc import Sequence
from typing import Any

import jax
import numpy as np

from jaxunlearn.core.keys import Purpose, derive, new_key
from jaxunlearn.core.trees import member
from jaxunlearn.core.types import Key, Model, Sets, Subset, Variables
from jaxunlearn.data.sets import num_examples, whole
from jaxunlearn.data.streams import Stream
from jaxunlearn.engine.predict import Predictions, predict
from jaxunlearn.experiment.bench_cases import Case
from jaxunlearn.metrics.classification import ClassifierEvidence
from jaxunlearn.metrics.registry import measure

GAP = ("accuracy_forget", "accuracy_retain", "accuracy_test_retain", "auc_loss")
"""Metrics whose mean distance from the retrained models' is the gap."""
SHOWN = (*GAP, "accuracy_test_forget", "js_to_retrained")
"""Metrics that are always measured."""

Values = dict[str, float]


class Judge:
    """Judge of a bench's models: metrics of each by case and seed.

    Predictions are made on whole splits, which all requests divide among them.
    """

    def __init__(
        self, model: Model, cases: Sequence[Case], seeds: Sequence[int], originals: Variables,
        retrained: Variables, names: Sequence[str], spared: Sequence[str] = (),
        held_out: bool = False,
    ) -> None:  # fmt: skip
        """Takes the models apart.

        Args:
          originals, retrained: ``[seeds, ...]`` and ``[seeds * cases * retrained, ...]``.
          names: metrics; of requests in ``spared`` and all in turn but the last only usual ones.
          held_out: whether examples that no training saw stand for the test examples.
        """
        self.model, self.cases, self.names, self.held_out = model, cases, names, held_out
        self.seeds = range(len(seeds))
        self.keys = [derive(new_key(seed), Purpose.JUDGEMENT) for seed in seeds]
        last = {case.name: n for n, case in enumerate(cases)}.values()
        self.thorough = [
            n
            for n, case in enumerate(cases)
            if case.name not in spared and (case.turn is None or n in last)
        ]
        count = jax.tree.leaves(retrained)[0].shape[0] // (len(cases) * len(seeds))
        splits = [_Splits(model, member(originals, s)) for s in self.seeds]
        self.first: dict[tuple[int, int], ClassifierEvidence] = {}
        self.others: dict[tuple[int, int], list[ClassifierEvidence]] = {}
        for s in self.seeds:
            for c, case in enumerate(cases):
                self.first[c, s] = self._evidence(splits[s], case.judged, s)
                place = (s * len(cases) + c) * count
                theirs = [_Splits(model, member(retrained, place + n)) for n in range(count)]
                self.others[c, s] = [self._evidence(one, case.retraining, s) for one in theirs]

    def _evidence(self, splits: "_Splits", sets: Sets, seed: int) -> ClassifierEvidence:
        sets = _on_held_out(sets) if self.held_out else sets
        return SplitEvidence(self.model, splits, sets, self.keys[seed])

    def measure(self, evidence: ClassifierEvidence, case: int, seed: int) -> Values:
        """Measures one model, with its gap to the retrained ones."""
        own = self.names if case in self.thorough else SHOWN
        others = self.others[case, seed]
        found = measure(evidence, self.first[case, seed], others, names=own).values
        numbers = {k: float(v) for k, v in found.items() if isinstance(v, int | float)}
        return {k: v for k, v in numbers.items() if math.isfinite(v)}  # JSON has no NaN

    def originals(self) -> dict[int, list[Values]]:
        """Measures the originals, by case, one a seed."""
        return {
            c: [self.measure(self.first[c, s], c, s) for s in self.seeds]
            for c in range(len(self.cases))
        }

    def retrained(self) -> dict[int, list[list[Values]]]:
        """Measures the retrained models, by case, several a seed."""
        return {
            c: [[self.measure(one, c, s) for one in self.others[c, s]] for s in self.seeds]
            for c in range(len(self.cases))
        }

    def unlearned(self, variables: Variables, case: int, seed: int) -> Values:
        """Measures one model of a method."""
        splits = _Splits(self.model, variables)
        return self.measure(self._evidence(splits, self.cases[case].judged, seed), case, seed)


class _Splits:
    """Logits of a model on whole splits, each computed once."""

    def __init__(self, model: Model, variables: Variables) -> None:
        self.model, self.variables = model, variables
        self._known: dict[Any, np.ndarray] = {}

    def logits(self, part: Subset) -> np.ndarray:
        """Returns the logits of a subset, read of those of its whole split."""
        own = (part.examples.x, part.examples.y, part.examples.reader)
        # a stream has no arrays, and is known by itself
        leaves = jax.tree.leaves(own, is_leaf=lambda node: isinstance(node, Stream))
        key = tuple(id(leaf) for leaf in leaves)
        if key not in self._known:
            self._known[key] = predict(
                self.model.apply, self.variables, whole(part.examples)
            ).logits
        return self._known[key][np.asarray(part.indices)[: num_examples(part)]]


class SplitEvidence(ClassifierEvidence):
    """Evidence of a classifier whose predictions are parts of those on whole splits."""

    def __init__(self, model: Model, splits: _Splits, sets: Sets, key: Key) -> None:
        super().__init__(model, splits.variables, sets, key)
        self._splits = splits

    def predict(self, name: str) -> Predictions:
        """Returns predictions on one of the sets."""
        part = self.part(name)
        labels = np.asarray(part.examples.y)[np.asarray(part.indices)[: num_examples(part)]]
        return Predictions(self._splits.logits(part), labels)


def _on_held_out(sets: Sets) -> Sets:
    """Returns sets whose test examples are those that no training saw, for tuning."""
    return sets._replace(test_forget=sets.unseen, test_retain=sets.holdout)
