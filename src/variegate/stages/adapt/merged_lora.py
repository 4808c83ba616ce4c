"""LoRA layers computed as one product, x (W + s B A), instead of three and a sum: what a layer costs on a CPU is its passes over
its inputs and outputs.

Gradients stay as small as LoRA's own: with t = s g B^T and u = x A^T they are dA = t^T x and dB = s g^T u, so no gradient of W is
ever made (arXiv 2106.09685, section 4.1, differentiated).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any

import torch
from torch import nn
from torch.nn import functional as F


@contextmanager
def merged_products(net: nn.Module, adapter: str) -> Iterator[None]:
    """Compute the linear and plain convolution layers of a net that carry this LoRA (peft's, no dropout) merged, for a block."""
    changed = [(layer, product) for layer in net.modules() if (product := _product_of(layer)) is not None]
    for layer, product in changed:
        vars(layer)["forward"] = partial(product, *_parts(layer, adapter))
    try:
        yield
    finally:
        for layer, _ in changed:
            del vars(layer)["forward"]  # the class's own again


def _product_of(layer: nn.Module) -> Callable[..., torch.Tensor] | None:
    from peft.tuners.lora import Conv2d, Linear

    if isinstance(layer, Linear):
        return _linear
    if isinstance(layer, Conv2d):
        base: Any = layer.get_base_layer()
        plain = (base.groups, base.dilation, base.padding_mode) == (1, (1, 1), "zeros")
        if plain and not isinstance(base.padding, str):
            return _convolution
    return None


def _parts(layer: Any, adapter: str) -> tuple[Any, nn.Parameter, nn.Parameter, float]:
    return layer.get_base_layer(), layer.lora_A[adapter].weight, layer.lora_B[adapter].weight, layer.scaling[adapter]


def _linear(base: Any, a: torch.Tensor, b: torch.Tensor, scale: float, x: torch.Tensor) -> torch.Tensor:
    return _Linear.apply(x, base.weight, base.bias, a, b, scale)


def _convolution(base: Any, a: torch.Tensor, b: torch.Tensor, scale: float, x: torch.Tensor) -> torch.Tensor:
    return _Convolution.apply(x, base.weight, base.bias, a, b, scale, base.stride, base.padding)


class _Linear(torch.autograd.Function):
    """x [..., in], W [out, in], A [r, in], B [out, r]."""

    @staticmethod
    def forward(ctx: Any, x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None, a: torch.Tensor,
                b: torch.Tensor, scale: float) -> torch.Tensor:  # fmt: skip
        x, a, b = (part.to(weight.dtype) for part in (x, a, b))
        merged = torch.addmm(weight, b, a, alpha=scale)
        ctx.save_for_backward(x, merged, a, b)
        ctx.scale = scale
        return F.linear(x, merged, bias)

    @staticmethod
    def backward(ctx: Any, gradient: torch.Tensor) -> Any:
        x, merged, a, b = ctx.saved_tensors
        rows, inputs = gradient.flatten(0, -2), x.flatten(0, -2)
        towards_x = (rows @ merged).view(x.shape) if ctx.needs_input_grad[0] else None
        towards_a, towards_b = (rows @ b).t() @ inputs, rows.t() @ (inputs @ a.t())
        return towards_x, None, None, *_scaled(ctx.scale, towards_a, towards_b), None


class _Convolution(torch.autograd.Function):
    """x [N, in, h, w], W [out, in, k, k], A [r, in, k, k], B [out, r, 1, 1]."""

    @staticmethod
    def forward(ctx: Any, x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None, a: torch.Tensor,
                b: torch.Tensor, scale: float, stride: Any, padding: Any) -> torch.Tensor:  # fmt: skip
        x, a, b = (part.to(weight.dtype) for part in (x, a, b))
        merged = torch.addmm(weight.flatten(1), b.flatten(1), a.flatten(1), alpha=scale).view(weight.shape)
        ctx.save_for_backward(x, merged, a, b)
        ctx.scale, ctx.stride, ctx.padding = scale, stride, padding
        return F.conv2d(x, merged, bias, stride, padding)

    @staticmethod
    def backward(ctx: Any, gradient: torch.Tensor) -> Any:
        x, merged, a, b = ctx.saved_tensors
        back: Callable[..., Any] = partial(_gradients, stride=ctx.stride, padding=ctx.padding)
        towards_x = back(gradient, x, merged, of_input=True)[0] if ctx.needs_input_grad[0] else None
        inner = F.conv2d(gradient, b.transpose(0, 1))
        towards_a = back(inner, x, a, of_input=False)[1]
        reduced = F.conv2d(x, a, None, ctx.stride, ctx.padding)
        towards_b = gradient.transpose(0, 1).flatten(1) @ reduced.transpose(0, 1).flatten(1).t()
        return towards_x, None, None, *_scaled(ctx.scale, towards_a, towards_b.view(b.shape)), None, None, None


def _gradients(gradient: torch.Tensor, x: torch.Tensor, weight: torch.Tensor, *, stride: Any, padding: Any,
               of_input: bool) -> Any:  # fmt: skip
    """Of a convolution, towards its input or its weights."""
    asked = (of_input, not of_input, False)
    return torch.ops.aten.convolution_backward(
        gradient, x, weight, None, stride, padding, (1, 1), False, (0, 0), 1, asked
    )


def _scaled(scale: float, *gradients: torch.Tensor) -> tuple[torch.Tensor, ...]:
    return tuple(scale * gradient.float() for gradient in gradients)
