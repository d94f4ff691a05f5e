"""Rows of attacks on each example, for several unlearned models beside several retrained ones.

Members are models of one request that differ by chance: seeds, or random halves of the training
split. Three of each side are the least; a few dozen are needed for values to mean much.
"""

import functools
from collections.abc import Sequence
from typing import Any

import numpy as np

from jaxunlearn.metrics import exposure
from jaxunlearn.metrics.classification import ClassifierEvidence, Kept
from jaxunlearn.metrics.distances import auc
from jaxunlearn.metrics.registry import Metric, Missing

Members = Sequence[ClassifierEvidence | Kept]


def margins(members: Members, retrained: Members, part: str) -> list[np.ndarray]:
    """Returns ``phi [N, M]`` of both sides, as many models of each; the first of the larger side.

    Raises:
      Missing: fewer than three models on a side.
    """
    count = min(len(members), len(retrained))
    if count < 3:
        raise Missing("three models of each side")
    return [np.stack([one.margins[part] for one in side[:count]]) for side in (members, retrained)]


def lira(members: Members, retrained: Members) -> np.ndarray:
    """Computes U-LiRA's accuracy on each forget example, ``[M]``; .5 is ideal."""
    return exposure.unlearning_lira(*margins(members, retrained, "forget"))


def exposed(members: Members, retrained: Members, percent: float) -> float:
    """Computes a percentile over the forget examples of U-LiRA's accuracy; .5 is ideal."""
    return float(np.percentile(lira(members, retrained), percent))


def epsilon(members: Members, retrained: Members) -> np.ndarray:
    """Estimates the privacy loss of each forget example, ``[M]``; see ``exposure.privacy_loss``.

    An example that is told without a mistake, whose loss is infinite, counts as ``log N``: with
    ``N`` models on each side no other can have more than ``log (N - 1)``.
    """
    own, other = margins(members, retrained, "forget")
    losses = exposure.privacy_loss(own, other)
    return np.where(np.isinf(losses), np.log(len(own)), losses)


def forgetting_quality(members: Members, retrained: Members) -> float:
    """Computes the score of the NeurIPS 2023 challenge; see ``exposure.challenge_score``."""
    ratios = []
    for part in ("retain", "test_retain"):
        ours, theirs = (
            float(np.mean([one.accuracies[part] for one in side])) for side in (members, retrained)
        )
        ratios.append(ours / theirs if theirs else 0.0)
    own, other = margins(members, retrained, "forget")
    losses = exposure.privacy_loss(own, other)
    return exposure.challenge_score(losses, *ratios)


def efficacy(members: Members, retrained: Members, which: str) -> float:
    """Computes the AUC of RULI's efficacy score over forget examples; .5 is ideal.

    Half of the models of each side fit the densities, the others are judged. ``"vulnerable"`` and
    ``"protected"`` are the half of the forget examples whose retrained margins are lowest and
    highest: an example that models without it get wrong is told most easily once it is known.
    """
    own, other = margins(members, retrained, "forget")
    half = len(own) // 2
    if half < 3:
        raise Missing("six models of each side")
    parts = exposure.split_by_exposure(-other.mean(0))
    chosen = parts.vulnerable if which == "vulnerable" else parts.protected
    own, other = own[:, chosen], other[:, chosen]
    scores = [
        exposure.density_ratio(side[half:], own[:half], other[:half]) for side in (own, other)
    ]
    return auc(scores[0].ravel(), scores[1].ravel())


def divergence(members: Members, retrained: Members, part: str) -> np.ndarray:
    """Computes KLoM of each example of a set, ``[M]``; see ``exposure.margin_divergence``."""
    return exposure.margin_divergence(*margins(members, retrained, part))


def most_divergent(members: Members, retrained: Members, part: str, percent: float) -> float:
    """Computes a percentile of KLoM over a set; 0 is ideal."""
    return float(np.percentile(divergence(members, retrained, part), percent))


def _row(
    label: str, group: str, ideal: str, function: Any, each: bool = False, **given: Any
) -> Metric:
    needs = ("margins", "accuracies") if function is forgetting_quality else ("margins",)
    return Metric(
        label, group, ideal, ".3f", functools.partial(function, **given), needs, "ensemble",
        each, extra=True,
    )  # fmt: skip


_SETS = {"forget": "forget", "retain": "retain", "test": "test_retain"}
ROWS = {
    "lira": _row(
        "likelihood-ratio attack on each example", "privacy", "0.5", lira, each=True
    )._replace(short="U-LiRA"),
    "lira_95": _row(
        "likelihood-ratio attack, 95th percentile", "privacy", "0.5", exposed, percent=95
    ),
    "epsilon": _row(
        "privacy loss of each example", "privacy", "small", epsilon, each=True
    )._replace(short="eps-hat"),
    "efficacy_vulnerable": _row(
        "told from retrained, vulnerable half", "privacy", "0.5", efficacy, which="vulnerable"
    ),
    "efficacy_protected": _row(
        "told from retrained, protected half", "privacy", "0.5", efficacy, which="protected"
    ),
    "forgetting_quality": _row(
        "score of the NeurIPS 2023 challenge", "privacy", "large", forgetting_quality
    ),
    **{
        f"klom_{name}": _row(
            f"KLoM, {name}", "truth", "small", divergence, each=True, part=part
        )
        for name, part in _SETS.items()
    },
    **{
        f"klom_{name}_{percent}": _row(
            f"KLoM, {name}, {percent}th percentile", "truth", "small", most_divergent,
            part=part, percent=percent,
        )
        for name, part in _SETS.items()
        for percent in (95, 99)
    },
}  # fmt: skip
"""Attacks that need many models."""
