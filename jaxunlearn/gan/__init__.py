"""Where in a generator's latent space something lies, and what to put in its place."""

from jaxunlearn.gan.guide import Guide, Pool, check_guide, draw_pool, images_of, look, share_drawn
from jaxunlearn.gan.inversion import Inversion, invert, path_images, path_steps
from jaxunlearn.gan.substitutes import SUBSTITUTES, Known, substitute

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
