"""What a network does and what was done to it, as pictures: one call, one PNG."""

from jaxunlearn.pictures.concepts import save_concepts, save_maps, save_patches
from jaxunlearn.pictures.confusions import save_confusions
from jaxunlearn.pictures.heatmaps import save_heatmaps
from jaxunlearn.pictures.path import save_path
from jaxunlearn.pictures.poison import save_poison
from jaxunlearn.pictures.samples import save_samples
from jaxunlearn.pictures.scores import save_scores
from jaxunlearn.pictures.strips import save_strips

__all__ = [
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
]
