"""Networks and what was done to them as pictures: one call, one PNG.

Another picture is one file with its function ``save_<name>(path, ...)``, and one row: here in
:data:`PICTURES`, in an entry point of the group ``jaxunlearn.pictures``, or in the running
program::

    ju.pictures.PICTURES.register("waves", Picture("their_module:save_waves", "..."))
    ju.pictures.save_waves("waves.png", ...)

A module is imported when its picture is first drawn.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

from jaxunlearn.core.errors import did_you_mean
from jaxunlearn.core.registry import Registry, load

__all__ = ["PICTURES", "Picture"]


class Picture(NamedTuple):
    """Row of a picture.

    Attributes:
      target: its function, as ``"module:name"``; the first argument is the path of the PNG.
      summary: what it shows, in one line.
      draw: the function that draws it for a run, ``draw(path, view, label)``, as
        ``"module:name"``; empty: runs do not draw it. See :class:`jaxunlearn.kinds.View`.
      kind: of the models that runs draw it for.
      method: that it belongs to; empty: it shows all models of a run.
      ending: of the file by which a run knows that it was drawn; ``".json"``: its page draws it.
    """

    target: str | Callable[..., None]
    summary: str
    draw: str | Callable[..., None] = ""
    kind: str = ""
    method: str = ""
    ending: str = ".png"


_HERE, _DRAWN, _PREFIX = "jaxunlearn.pictures", "jaxunlearn.kinds", "save_"

PICTURES: Registry[Picture] = Registry(
    "pictures",
    Picture,
    {
        "answer_losses": Picture(
            f"{_HERE}.scores:save_scores",
            "losses of forgotten and of unseen answers",
            f"{_DRAWN}.language_pictures:draw_losses",
            "language",
            ending=".json",
        ),
        "bench": Picture(
            f"{_HERE}.bench:save_bench", "methods by gap to retrained models and time"
        ),
        "concepts": Picture(
            f"{_HERE}.concepts:save_concepts",
            "scores of concepts, as bars",
            f"{_DRAWN}.classifier_pictures:draw_concepts",
            "classifier",
            "concept_poison",
        ),
        "confusions": Picture(
            f"{_HERE}.confusions:save_confusions",
            "confusion matrices",
            f"{_DRAWN}.classifier_pictures:draw_confusions",
            "classifier",
        ),
        "exposed": Picture(
            f"{_HERE}.exposed:save_exposed",
            "images most and least exposed, by a value of each example",
            f"{_DRAWN}.classifier_pictures:draw_exposed",
            "classifier",
            ending=".json",
        ),
        "exposed_answers": Picture(
            f"{_HERE}.words:save_words",
            "forgotten answers that are most likely",
            f"{_DRAWN}.language_pictures:draw_exposed",
            "language",
            ending=".json",
        ),
        "exposed_images": Picture(
            f"{_HERE}.exposed:save_exposed",
            "forgotten images that a discriminator takes most for real",
            f"{_DRAWN}.gan_pictures:draw_exposed",
            "gan",
            ending=".json",
        ),
        "heatmaps": Picture(
            f"{_HERE}.heatmaps:save_heatmaps",
            "relevance of pixels and channels",
            f"{_DRAWN}.classifier_pictures:draw_heatmaps",
            "classifier",
            "neuron_path",
        ),
        "losses": Picture(
            f"{_HERE}.scores:save_scores",
            "losses of forgotten and of unseen examples",
            f"{_DRAWN}.classifier_pictures:draw_losses",
            "classifier",
        ),
        "maps": Picture(
            f"{_HERE}.heatmaps:save_maps",
            "places of concepts in images",
            f"{_DRAWN}.classifier_pictures:draw_maps",
            "classifier",
            "concept_poison",
        ),
        "metric_study": Picture(
            f"{_HERE}.metric_study:save_metric_study", "metrics judged: faithful and robust ones"
        ),
        "patches": Picture(
            f"{_HERE}.concepts:save_patches",
            "typical patches of concepts",
            f"{_DRAWN}.classifier_pictures:draw_patches",
            "classifier",
            "concept_poison",
        ),
        "path": Picture(
            f"{_HERE}.path:save_path",
            "neurons that carry a class, and their edits",
            f"{_DRAWN}.classifier_pictures:draw_path",
            "classifier",
            "neuron_path",
        ),
        "poison": Picture(
            f"{_HERE}.concepts:save_poison",
            "poisoned images and their donors",
            f"{_DRAWN}.classifier_pictures:draw_poison",
            "classifier",
            "concept_poison",
        ),
        "samples": Picture(
            f"{_HERE}.generated:save_samples",
            "images made of the same latents",
            f"{_DRAWN}.gan_pictures:draw_samples",
            "gan",
        ),
        "scores": Picture(
            f"{_HERE}.scores:save_scores",
            "a discriminator's scores of several sets",
            f"{_DRAWN}.gan_pictures:draw_scores",
            "gan",
        ),
        "strips": Picture(
            f"{_HERE}.generated:save_strips",
            "images along paths between latents",
            f"{_DRAWN}.gan_pictures:draw_strips",
            "gan",
        ),
        "words": Picture(
            f"{_HERE}.words:save_words",
            "words of answers, coloured by what these are due to",
            f"{_DRAWN}.language_pictures:draw_words",
            "language",
            "concept_words",
        ),
    },
)
"""Pictures by name; ``save_<name>`` of this room draws one."""


def __getattr__(name: str) -> Any:
    picture = name.removeprefix(_PREFIX)
    if picture == name or picture not in PICTURES:
        hint = did_you_mean(name, [_PREFIX + known for known in PICTURES])
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}{hint}")
    return load(PICTURES[picture].target)


def __dir__() -> list[str]:
    return sorted([*globals(), *(_PREFIX + name for name in PICTURES)])
