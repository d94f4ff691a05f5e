"""Our residual network in torch, module for module, with the parameters of ours."""

from typing import Any

import numpy as np
import torch
from torch import nn


class Same(nn.Conv2d):
    """A convolution that pads as ``SAME`` does: with a stride, more at the end."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        pads: list[int] = []
        for size, kernel, stride in zip(x.shape[:1:-1], self.kernel_size, self.stride, strict=True):
            total = max((-(-size // stride) - 1) * stride + kernel - size, 0)
            pads += [total // 2, total - total // 2]
        if pads[::2] == pads[1::2]:
            return nn.functional.conv2d(x, self.weight, self.bias, self.stride, pads[::2])
        return super().forward(nn.functional.pad(x, pads))


class Block(nn.Module):
    """Two convolutions beside a shortcut; registered in the order zennit folds in."""

    def __init__(self, parts: dict[str, nn.Module]) -> None:
        super().__init__()
        self.conv1, self.bn1, self.relu1 = parts["conv1"], parts["bn1"], nn.ReLU()
        self.conv2, self.bn2, self.relu2 = parts["conv2"], parts["bn2"], nn.ReLU()
        self.proj, self.bn_proj = parts.get("proj"), parts.get("bn_proj")

    def branches(self, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        y = self.bn2(self.conv2(self.relu1(self.bn1(self.conv1(x)))))
        return (x if self.proj is None else self.bn_proj(self.proj(x))), y

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        shortcut, y = self.branches(x)
        return self.relu2(shortcut + y)

    def forward_with_sum(self, x: torch.Tensor) -> torch.Tensor:
        return self.relu2(self.total(torch.stack(self.branches(x), dim=-1)))


class Head(nn.Module):
    """Mean over pixels, and a dense layer."""

    def __init__(self, dense: nn.Linear) -> None:
        super().__init__()
        self.pool, self.dense = nn.AdaptiveAvgPool2d(1), dense

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.dense(self.pool(x).flatten(1))


def _array(values: Any) -> torch.Tensor:
    return torch.tensor(np.asarray(values, np.float64))


def _conv(params: Any, stride: int) -> nn.Module:
    kernel = _array(params["kernel"]).permute(3, 2, 0, 1).contiguous()
    made = Same(kernel.shape[1], kernel.shape[0], tuple(kernel.shape[2:]), stride, bias=False)
    made.weight.data = kernel
    return made


def _batch_norm(params: Any, stats: Any) -> nn.Module:
    made = nn.BatchNorm2d(len(params["scale"]), eps=1e-5)
    made.weight.data, made.bias.data = _array(params["scale"]), _array(params["bias"])
    made.running_mean, made.running_var = _array(stats["mean"]), _array(stats["var"])
    return made


def build(variables: Any) -> tuple[nn.Sequential, dict[str, nn.Module]]:
    """The network, and the module whose output is that of each of our units, by key."""
    params, stats = variables["params"], variables["batch_stats"]
    outputs: dict[str, nn.Module] = {}

    def block(home: Any, moments: Any, prefix: str, stride: int) -> dict[str, nn.Module]:
        parts: dict[str, nn.Module] = {}
        for conv, norm in (("conv1", "bn1"), ("conv2", "bn2"), ("proj", "bn_proj")):
            if conv in home:
                parts[conv] = _conv(home[conv], 1 if conv == "conv2" else stride)
                parts[norm] = _batch_norm(home[norm], moments[norm])
                outputs[f"params/{prefix}{conv}/kernel"] = parts[norm]
        return parts

    stem = {part: {n: params[n] for n in names} for part, names in {"p": ("conv1", "bn1")}.items()}
    first = block(stem["p"], stats, "", 1)
    layers: list[nn.Module] = [first["conv1"], first["bn1"], nn.ReLU()]
    for name in sorted(n for n in params if n.startswith("stage")):
        stride = 2 if name.endswith("block1") and not name.startswith("stage1") else 1
        layers.append(Block(block(params[name], stats[name], f"{name}/", stride)))
    dense = nn.Linear(*params["head"]["kernel"].shape)
    dense.weight.data = _array(params["head"]["kernel"]).T.contiguous()
    dense.bias.data = _array(params["head"]["bias"])
    outputs["params/head/kernel"] = dense
    return nn.Sequential(*layers, Head(dense)), outputs
