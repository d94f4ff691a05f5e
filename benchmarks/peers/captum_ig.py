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


def dense(p: Arrays, x: torch.Tensor) -> torch.Tensor:
    return functional.linear(x, p["kernel"], p["bias"])


def lenet(variables: Arrays, x: torch.Tensor) -> torch.Tensor:
    params = variables["params"]
    for name in ("conv1", "conv2"):
        x = functional.max_pool2d(functional.relu(conv(params[name], x)), 2)
    x = x.permute(0, 2, 3, 1).reshape(len(x), -1)
    return dense(params["fc2"], functional.relu(dense(params["fc1"], x)))


def mlp(variables: Arrays, x: torch.Tensor) -> torch.Tensor:
    params, x = variables["params"], x.reshape(len(x), -1)
    for name in ("fc1", "fc2"):
        x = functional.relu(dense(params[name], x))
    return dense(params["fc3"], x)


def layer_norm(p: Arrays, x: torch.Tensor) -> torch.Tensor:
    return functional.layer_norm(x, x.shape[-1:], p["scale"], p["bias"], 1e-6)


def vit(variables: Arrays, x: torch.Tensor, heads: int = 4) -> torch.Tensor:
    params = variables["params"]
    patch = params["patch"]
    x = functional.conv2d(x, patch["kernel"], patch["bias"], patch["kernel"].shape[2:])
    x = x.flatten(2).transpose(1, 2) + params["position"]

    def parted(name: str, h: torch.Tensor) -> torch.Tensor:
        return dense(params[name], h).reshape(*h.shape[:2], heads, -1).transpose(1, 2)

    for i in range(sum(name.startswith("query") for name in params)):
        h = layer_norm(params[f"before{i}"], x)
        q, k, v = (parted(f"{name}{i}", h) for name in ("query", "key", "value"))
        h = functional.scaled_dot_product_attention(q, k, v).transpose(1, 2).reshape(x.shape)
        x = x + dense(params[f"out{i}"], h)
        h = dense(params[f"up{i}"], layer_norm(params[f"between{i}"], x))
        x = x + dense(params[f"down{i}"], functional.gelu(h, approximate="tanh"))
    return dense(params["head"], layer_norm(params["last"], x).mean(1))


NETWORKS = {"resnet": resnet, "stack": stack, "lenet": lenet, "mlp": mlp, "vit": vit}


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
