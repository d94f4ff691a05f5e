"""Built-in networks, and the way from any network to pure functions."""

from jaxunlearn.models.check import check_model
from jaxunlearn.models.cnn import PaperCNN
from jaxunlearn.models.conv import conv, max_pool
from jaxunlearn.models.functionalize import functionalize
from jaxunlearn.models.gans import GANS, build_gan
from jaxunlearn.models.mlp import MLP
from jaxunlearn.models.nnx_modules import variables_of
from jaxunlearn.models.registry import MODELS, build
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
