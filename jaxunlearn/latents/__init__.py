"""Where in a generator's latent space something lies, and what to put in its place."""

from jaxunlearn.latents.guide import Guide, check_guide, look
from jaxunlearn.latents.inversion import Inversion, invert
from jaxunlearn.latents.paths import path_images, path_steps
from jaxunlearn.latents.pool import Pool, draw_pool, images_of, share_drawn
from jaxunlearn.latents.substitutes import SUBSTITUTES, Known, substitute

__all__ = [
    "SUBSTITUTES",
    "Guide",
    "Inversion",
    "Known",
    "Pool",
    "check_guide",
    "draw_pool",
    "images_of",
    "invert",
    "look",
    "path_images",
    "path_steps",
    "share_drawn",
    "substitute",
]
