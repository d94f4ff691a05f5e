"""Methods of torchunlearn on our residual network, with the parameters of ours."""

from collections.abc import Callable
from typing import Any
from unittest import mock

import jax
import numpy as np
import torch
import torchunlearn
from peers.torch_resnet import build
from torch import nn
from torch.utils.data import DataLoader, TensorDataset
from torchunlearn.utils.data import MergedLoaders

Batch = dict[str, tuple[torch.Tensor, torch.Tensor]]
"""Images ``[B, C, H, W]`` and labels ``int64 [B]``, by ``"Forget"`` and ``"Retain"``."""


class Held(nn.BatchNorm2d):
    """Batch normalisation that uses its running statistics in training mode, too."""

    def train(self, mode: bool = True) -> "Held":
        del mode
        super().train(False)
        return self


def wrapped(variables: Any, classes: int, dtype: str, held: bool) -> Any:
    """Returns the network as torchunlearn takes one."""
    module, _ = build(variables)
    for part in module.modules():
        if held and isinstance(part, nn.BatchNorm2d):
            part.__class__ = Held
    device = "cuda" if jax.default_backend() == "gpu" else "cpu"
    return torchunlearn.RobModel(module.to(device=device, dtype=getattr(torch, dtype)), classes)


def ordered(variables: Any) -> list[np.ndarray]:
    """Returns our parameters in torch's order and layout, in float64."""
    return [leaf.detach().numpy() for leaf in build(variables)[0].parameters()]


def tensors(sets: dict[str, tuple[Any, Any]], dtype: str) -> Batch:
    """Returns our images and labels as torch has them."""
    return {
        name.capitalize(): (
            torch.tensor(np.asarray(x).transpose(0, 3, 1, 2).copy(), dtype=getattr(torch, dtype)),
            torch.tensor(np.asarray(y), dtype=torch.int64),
        )
        for name, (x, y) in sets.items()
    }


class Peer:
    """A trainer of torchunlearn, and the ways to run it.

    Args:
      variables, classes: of our network.
      pair: with ``theirs``, name of the class, ``settings``, its arguments, and ``norms``.
      rate, momentum: of SGD, Nesterov's where there is momentum.
    """

    def __init__(
        self, variables: Any, classes: int, pair: Any, rate: float, momentum: float, dtype: str
    ) -> None:
        self.wrap = lambda given: wrapped(given, classes, dtype, pair.norms == "running")
        network = self.wrap(variables)
        self.trainer = getattr(torchunlearn, pair.theirs)(network, **pair.settings)
        nesterov = momentum > 0
        optimizer = torch.optim.SGD(network.parameters(), rate, momentum, nesterov=nesterov)
        self.trainer.setup(optimizer=optimizer)

    def prepare(self, forget: list[Any]) -> None:
        """Finds in batches of the forget set what a method has to know before its first step."""
        if hasattr(self.trainer, "compute_saliency_mask"):
            self.trainer.compute_saliency_mask(forget)

    def step(self, batch: Batch) -> None:
        """Does one step as ``fit`` does it, without its loop."""
        self.trainer.dict_record.clear()
        self.trainer.rmodel.train()
        # more than cost, gradient and update: SalUn masks in here
        self.trainer._update_weight(batch)

    def step_as(self, batch: Batch, labels: Any = None, teacher: Any = None) -> None:
        """Does one step with wrong labels and the variables of a random teacher that were drawn."""
        if teacher is not None:
            self.trainer._bad_teacher = self.wrap(teacher).eval()
        wrong = None if labels is None else torch.tensor(np.asarray(labels), dtype=torch.int64)
        with mock.patch.object(torch, "randint_like", return_value=wrong):
            self.step(batch)

    def runs(self, sets: Batch, size: int) -> dict[str, Callable[[], None]]:
        """Returns an epoch by ``fit``, and its steps alone on batches that are there already."""
        loaders = {
            name: DataLoader(TensorDataset(*pair), batch_size=size, shuffle=True, drop_last=True)
            for name, pair in sets.items()
        }
        ready = list(MergedLoaders(loaders))

        def fit() -> None:
            self.trainer.fit(MergedLoaders(loaders), n_epochs=1, record_type=None)
            wait()

        def step() -> None:
            for batch in ready:
                self.step(batch)
            wait()

        return {"fit": fit, "step": step}

    def parameters(self) -> list[np.ndarray]:
        return [leaf.detach().cpu().numpy() for leaf in self.trainer.rmodel.parameters()]


def wait() -> None:
    if torch.cuda.is_available():
        torch.cuda.synchronize()
