"""Our residual network in torch with zennit's composites: what ours is compared with.

Batch norm is folded by zennit's own canoniser, and the sum of a block is made a module as its
canoniser for torchvision does. Folding leaves the eps of batch norm behind, which
is set to zero meanwhile: the folded network is then the given one, exactly.
"""

import contextlib
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import torch
from peers.torch_resnet import Block, build
from torch import nn
from zennit import canonizers, composites, layer
from zennit.rules import Epsilon
from zennit.types import Linear


class Zennit:
    """The network with zennit's hooks.

    Args:
      variables: of our network.
      dtype: ``"float32"`` or ``"float64"``.
      device: ``"cpu"`` or ``"cuda"``.
      bounds: of the box rule.
    """

    def __init__(
        self, variables: Any, dtype: str, device: str, bounds: tuple[float, float]
    ) -> None:
        self.kind = {"device": device, "dtype": getattr(torch, dtype)}
        module, self.outputs = build(variables)
        self.module = module.to(**self.kind).eval().requires_grad_(False)
        self.norms = [m for m in self.module.modules() if isinstance(m, nn.BatchNorm2d)]
        self.bounds = bounds

    def composite(self, name: str) -> Any:
        def attributes(_: str, module: nn.Module) -> dict[str, Any] | None:
            if not isinstance(module, Block):
                return None
            return {"forward": module.forward_with_sum, "total": layer.Sum()}

        fold = [canonizers.SequentialMergeBatchNorm(), canonizers.AttributeCanonizer(attributes)]
        if name == "epsilon":
            rules = [*composites.layer_map_base(), (Linear, Epsilon())]
            return composites.LayerMapComposite(rules, canonizers=fold)
        box = dict(zip(("low", "high"), self.bounds, strict=True))
        options = box if name == "epsilon_gamma_box" else {}
        return composites.COMPOSITES[name](canonizers=fold, **options)

    @contextlib.contextmanager
    def hooked(self, name: str, capture: bool) -> Iterator[dict[str, torch.Tensor]]:
        """Puts a composite in place; yields what is captured: key -> output, with its gradient."""
        kept: dict[str, torch.Tensor] = {}

        def keep(key: str) -> Callable[..., None]:
            def hook(module: nn.Module, given: Any, output: torch.Tensor) -> None:
                output.retain_grad()
                kept[key] = output

            return hook

        with self.composite(name).context(self.module):
            before = [norm.eps for norm in self.norms]
            for norm in self.norms:
                norm.eps = 0.0
            captured = self.outputs.items() if capture else ()
            handles = [module.register_forward_hook(keep(key)) for key, module in captured]
            try:
                yield kept
            finally:
                for handle in handles:
                    handle.remove()
                for norm, eps in zip(self.norms, before, strict=True):
                    norm.eps = eps

    def inputs(self, x: np.ndarray, seed: np.ndarray) -> tuple[torch.Tensor, torch.Tensor]:
        """``x [B, H, W, C]`` and the seed as torch wants them."""
        moved = torch.tensor(x.transpose(0, 3, 1, 2).copy())
        return moved.to(**self.kind), torch.tensor(seed).to(**self.kind)

    def gradient(self, x: torch.Tensor, seed: torch.Tensor) -> torch.Tensor:
        """Forward and backward: with hooks in place, the relevance."""
        x = x.detach().requires_grad_()
        self.module(x).backward(seed)
        if x.is_cuda:
            torch.cuda.synchronize()
        return x.grad

    def relevance(
        self, name: str, x: np.ndarray, seed: np.ndarray
    ) -> tuple[np.ndarray, dict[str, np.ndarray]]:
        """Of the input and of every layer, features last."""
        with self.hooked(name, capture=True) as kept:
            first = self.gradient(*self.inputs(x, seed))
        layers = {key: _last(output.grad) for key, output in kept.items()}
        return _last(first), layers


def _last(values: torch.Tensor) -> np.ndarray:
    array = values.detach().cpu().numpy()
    return np.moveaxis(array, 1, -1) if array.ndim == 4 else array
