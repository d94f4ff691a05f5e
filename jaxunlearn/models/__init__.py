"""Networks: the built-in ones by name, and the way from any network to pure functions."""

import importlib
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, NamedTuple

from jaxunlearn.core.registry import Registry

if TYPE_CHECKING:
    from jaxunlearn.models.adapt import check_model, functionalize, into, variables_of
    from jaxunlearn.models.builders import build, build_gan, build_language
    from jaxunlearn.models.classifiers import MLP, PaperCNN, ResNet
    from jaxunlearn.models.convolution import conv, max_pool

_HOME = {
    "adapt": ["check_model", "functionalize", "into", "variables_of"],
    "builders": ["build", "build_gan", "build_language"],
    "classifiers": ["MLP", "PaperCNN", "ResNet"],
    "convolution": ["conv", "max_pool"],
}
_WHERE = {name: home for home, names in _HOME.items() for name in names}

__all__ = [
    "MLP",
    "NETWORKS",
    "Network",
    "PaperCNN",
    "ResNet",
    "build",
    "build_gan",
    "build_language",
    "check_model",
    "conv",
    "functionalize",
    "into",
    "max_pool",
    "variables_of",
]


class Network(NamedTuple):
    """A row of :data:`NETWORKS`.

    Attributes:
      target: ``"module:constructor"``, imported when the network is built and called with
        ``(shape of one example, number of classes, **options)``; the options are its
        keyword-only arguments. A classifier's returns whatever :func:`functionalize` takes,
        or has an argument ``rngs`` and returns an ``nnx.Module``; a GAN's returns a
        :class:`~jaxunlearn.models.builders.GanParts` or a
        :class:`~jaxunlearn.core.types.Gan`; a decoder's, given the size of the vocabulary for
        the number of classes, a :class:`~jaxunlearn.core.types.LanguageModel`.
      summary: one line for ``jaxunlearn list``.
      kind: the name of the kind of model that it belongs to: ``"classifier"``, ``"gan"`` or
        ``"language"``.
      one_draw: whether its kernels are drawn LeCun-normal and all at once, which compiles
        sooner; otherwise the network initialises itself.
    """

    target: str | Callable[..., Any]
    summary: str
    kind: str = "classifier"
    one_draw: bool = False


NETWORKS = Registry(
    "networks",
    Network,
    {
        "mlp": Network(
            "jaxunlearn.models.classifiers:MLP",
            "dense layers with ReLU; for tabular data and the embedded digits",
            one_draw=True,
        ),
        "cnn": Network(
            "jaxunlearn.models.classifiers:PaperCNN",
            "two convolutions and two dense layers, the neuronal-path paper's for MNIST",
            one_draw=True,
        ),
        "resnet8": Network(
            "jaxunlearn.models.classifiers:ResNet8",
            "residual network small enough for CPUs",
            one_draw=True,
        ),
        "resnet18": Network(
            "jaxunlearn.models.classifiers:ResNet",
            "residual network with the CIFAR stem",
            one_draw=True,
        ),
        "text_transformer": Network(
            "jaxunlearn.models.text:TextTransformer",
            "encoder of tokens with a mask: embedding, blocks of attention, mean over words",
        ),
        "text_bag": Network(
            "jaxunlearn.models.text:TextBag",
            "mean of the embeddings of tokens with a mask, and one dense layer",
        ),
        "mlp_gan": Network(
            "jaxunlearn.models.gans:mlp_gan",
            "dense generator and discriminator; for the embedded digits",
            kind="gan",
            one_draw=True,
        ),
        "dcgan": Network(
            "jaxunlearn.models.gans:dcgan",
            "convolutional generator and discriminator, upsampling by sub-pixels",
            kind="gan",
            one_draw=True,
        ),
        "stylegan2": Network(
            "jaxunlearn.models.stylegan2:stylegan2",
            "mapping, modulated convolutions, residual discriminator",
            kind="gan",
        ),
        "gpt2": Network(
            "jaxunlearn.language.decoder:gpt2",
            "decoder of texts: learned positions, layer norms; OpenAI's GPT-2",
            kind="language",
        ),
        "llama": Network(
            "jaxunlearn.language.decoder:llama",
            "decoder of texts: rotations, gates, shared keys and values",
            kind="language",
        ),
        "mistral": Network(
            "jaxunlearn.language.decoder:mistral",
            "decoder of texts laid out as Mistral's",
            kind="language",
        ),
        "qwen2": Network(
            "jaxunlearn.language.decoder:qwen2",
            "decoder of texts: as llama, queries, keys and values with biases",
            kind="language",
        ),
    },
)
"""The networks by name, those of other packages included (group ``jaxunlearn.networks``)."""


def __getattr__(name: str) -> Any:
    # so that reading the names of the networks imports none of them, and no Flax
    if name not in _WHERE:
        raise AttributeError(f"module 'jaxunlearn.models' has no attribute {name!r}")
    return getattr(importlib.import_module(f"jaxunlearn.models.{_WHERE[name]}"), name)
