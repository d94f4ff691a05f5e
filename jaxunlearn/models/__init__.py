"""Built-in networks, and the way from any network to pure functions."""

from jaxunlearn.models.adapt import check_model, functionalize
from jaxunlearn.models.build import MODELS, build
from jaxunlearn.models.classifiers import MLP, PaperCNN
from jaxunlearn.models.conv import conv, max_pool
from jaxunlearn.models.gan import GANS, build_gan
from jaxunlearn.models.nnx import variables_of
from jaxunlearn.models.resnet import ResNet

__all__ = [
    "GANS",
    "MLP",
    "MODELS",
    "PaperCNN",
    "ResNet",
    "build",
    "build_gan",
    "check_model",
    "conv",
    "functionalize",
    "max_pool",
    "variables_of",
]
