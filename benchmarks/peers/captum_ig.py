"""The networks of ``integrated_gradients.py`` in torch, and captum's integrated gradients of them.

Networks are functions of their arrays here: captum asks for no more.
"""

from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from captum.attr import IntegratedGradients
from torch.nn import functional

Arrays = dict[str, Any]


def conv(p: Arrays, x: torch.Tensor, stride: int = 1) -> torch.Tensor:
    """Padded as ``SAME`` is: with a stride, more at the end."""
    pads: list[int] = []
    for size, kernel in zip(x.shape[:1:-1], p["kernel"].shape[:1:-1], strict=True):
        total = max((-(-size // stride) - 1) * stride + kernel - size, 0)
        pads += [total // 2, total - total // 2]
    if pads[::2] == pads[1::2]:
        return functional.conv2d(x, p["kernel"], p.get("bias"), stride, pads[::2])
    return functional.conv2d(functional.pad(x, pads), p["kernel"], p.get("bias"), stride)


def batch_norm(p: Arrays, stats: Arrays, x: torch.Tensor) -> torch.Tensor:
    moments = stats["mean"], stats["var"]
    return functional.batch_norm(x, *moments, p["scale"], p["bias"], eps=1e-5)


def head(p: Arrays, x: torch.Tensor) -> torch.Tensor:
    """Mean over pixels, and a dense layer."""
    return functional.linear(x.mean((2, 3)), p["head"]["kernel"], p["head"]["bias"])


def resnet(variables: Arrays, x: torch.Tensor) -> torch.Tensor:
    params, stats = variables["params"], variables["batch_stats"]

    def unit(conv_name: str, home: Any, moments: Any, x: Any, stride: int = 1) -> torch.Tensor:
        name = "bn_proj" if conv_name == "proj" else conv_name.replace("conv", "bn")
        return batch_norm(home[name], moments[name], conv(home[conv_name], x, stride))

    x = functional.relu(unit("conv1", params, stats, x))
    for name in sorted(n for n in params if n.startswith("stage")):
        home, moments = params[name], stats[name]
        stride = 2 if name.endswith("block1") and not name.startswith("stage1") else 1
        y = functional.relu(unit("conv1", home, moments, x, stride))
        y = unit("conv2", home, moments, y)
        x = functional.relu(y + (unit("proj", home, moments, x, stride) if "proj" in home else x))
    return head(params, x)


def stack(variables: Arrays, x: torch.Tensor) -> torch.Tensor:
    params = variables["params"]
    names = sorted(name for name in params if name.startswith("conv"))
    for i, name in enumerate(names):
        x = functional.relu(conv(params[name], x))
        x = functional.max_pool2d(x, 2) if i % 2 else x
    return head(params, x)


NETWORKS = {"resnet": resnet, "stack": stack}


def _moved(values: Any, kind: dict[str, Any]) -> Any:
    """Variables as torch wants them: kernels ``[out, in, ...]``."""
    if isinstance(values, dict):
        return {name: _moved(part, kind) for name, part in values.items()}
    array = np.asarray(values)
    order = {4: (3, 2, 0, 1), 2: (1, 0)}.get(array.ndim, tuple(range(array.ndim)))
    return torch.tensor(np.ascontiguousarray(array.transpose(order))).to(**kind)


class Captum:
    """A network with the given variables.

    Args:
      name: of the network.
      variables: of ours.
      dtype: ``"float32"`` or ``"float64"``.
      device: ``"cpu"`` or ``"cuda"``.
    """

    def __init__(self, name: str, variables: Any, dtype: str, device: str) -> None:
        self.kind = {"device": device, "dtype": getattr(torch, dtype)}
        arrays = _moved(variables, self.kind)
        self.apply: Callable[[torch.Tensor], torch.Tensor] = lambda x: NETWORKS[name](arrays, x)
        self.method = IntegratedGradients(self.apply)

    def inputs(self, x: np.ndarray, y: np.ndarray) -> tuple[torch.Tensor, torch.Tensor]:
        """``x [B, H, W, C]`` and labels as torch wants them."""
        moved = torch.tensor(np.ascontiguousarray(x.transpose(0, 3, 1, 2)))
        return moved.to(**self.kind), torch.tensor(y).to(self.kind["device"])

    def gradient(self, x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
        """The unit: forward pass, and gradient of the input."""
        x = x.detach().requires_grad_()
        chosen = self.apply(x).gather(1, y[:, None]).sum()
        return self._done(torch.autograd.grad(chosen, x)[0])

    def integrated(
        self, x: torch.Tensor, y: torch.Tensor, steps: int, together: int
    ) -> torch.Tensor:
        """Integrated gradients from zero, ``together`` steps at a time; Gauss-Legendre."""
        found = self.method.attribute(
            x, target=y, n_steps=steps, internal_batch_size=together * len(x)
        )
        return self._done(found)

    def _done(self, found: torch.Tensor) -> torch.Tensor:
        if found.is_cuda:
            torch.cuda.synchronize()
        return found


def channels_last(values: torch.Tensor) -> np.ndarray:
    return np.moveaxis(values.detach().cpu().numpy(), 1, -1)
