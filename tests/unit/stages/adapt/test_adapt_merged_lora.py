"""LoRA computed as one product a layer learns what peft's three products learn."""

from __future__ import annotations

from contextlib import nullcontext
from pathlib import Path

import pytest
import torch
from adapting import fit_of, trainee_of, values_of
from torch import nn
from torch.nn import functional as F

from variegate.stages.adapt import trainee as trainee_module
from variegate.stages.adapt.merged_lora import merged_products


class Net(nn.Module):
    """A strided convolution, one with reflected edges, a 1x1, and a linear layer."""

    def __init__(self) -> None:
        super().__init__()
        self.strided = nn.Conv2d(3, 8, 3, stride=2, padding=1)
        self.reflected = nn.Conv2d(8, 8, 3, padding=1, padding_mode="reflect")
        self.pointwise = nn.Conv2d(8, 6, 1, bias=False)
        self.linear = nn.Linear(6, 5)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        maps = F.silu(self.pointwise(F.silu(self.reflected(F.silu(self.strided(x))))))
        return self.linear(maps.flatten(2).transpose(1, 2))


def with_lora() -> nn.Module:
    from peft import LoraConfig, inject_adapter_in_model

    torch.manual_seed(0)
    targets = ["strided", "reflected", "pointwise", "linear"]
    net = inject_adapter_in_model(LoraConfig(r=2, lora_alpha=6.0, target_modules=targets), Net(), "variegate")
    for name, parameter in net.named_parameters():
        if ".lora_B." in name:
            nn.init.normal_(parameter, std=0.3)
    return net


def test_outputs_and_gradients_are_those_of_three_products() -> None:
    net, x = with_lora(), torch.randn(4, 3, 8, 8, generator=torch.Generator().manual_seed(1), requires_grad=True)
    learned = [p for name, p in net.named_parameters() if ".lora_" in name]
    plain = net(x)
    wanted = torch.autograd.grad(plain.square().sum(), [x, *learned])
    with merged_products(net, "variegate"):
        assert "forward" in vars(net.linear) and "forward" not in vars(net.reflected)
        merged = net(x)
        found = torch.autograd.grad(merged.square().sum(), [x, *learned])
    assert "forward" not in vars(net.linear), "what it changed is put back"
    assert torch.allclose(merged, plain, atol=1e-5)
    for one, other in zip(found, wanted, strict=True):
        assert torch.allclose(one, other, rtol=1e-4, atol=1e-4)


def test_in_bf16_gradients_reach_fp32_parameters() -> None:
    net = with_lora()
    for name, parameter in net.named_parameters():
        if ".lora_" not in name:
            parameter.data = parameter.data.bfloat16()
    learned = {name: p for name, p in net.named_parameters() if ".lora_" in name}
    x = torch.randn(4, 3, 8, 8, generator=torch.Generator().manual_seed(1)).bfloat16()
    with torch.autocast("cpu", torch.bfloat16), merged_products(net, "variegate"):
        found = torch.autograd.grad(net(x).float().square().sum(), list(learned.values()))
    whole = with_lora()
    parameters = dict(whole.named_parameters())
    wanted = torch.autograd.grad(whole(x.float()).square().sum(), [parameters[name] for name in learned])
    for name, one, other in zip(learned, found, wanted, strict=True):
        assert one.dtype == torch.float32
        assert F.cosine_similarity(one.flatten(), other.flatten(), dim=0) > 0.99, name


@pytest.mark.parametrize(("dropout", "is_merged"), [(0.0, True), (0.2, False)])
def test_while_learning_layers_are_merged_unless_they_drop_inputs(
    tiny_sd: Path, dropout: float, is_merged: bool
) -> None:
    from peft.tuners.lora import LoraLayer

    with trainee_of(tiny_sd, dropout=dropout, targets="all") as trainee:
        layers = [layer for layer in trainee.unet.modules() if isinstance(layer, LoraLayer)]
        with trainee.computing(training=True):
            assert layers and all(("forward" in vars(layer)) == is_merged for layer in layers)
        assert not any("forward" in vars(layer) for layer in layers)


@pytest.mark.parametrize("targets", ["attention", "all"])
def test_a_model_learns_the_same_either_way(tiny_sd: Path, monkeypatch: pytest.MonkeyPatch, targets: str) -> None:
    def learned() -> dict[str, torch.Tensor]:
        with trainee_of(tiny_sd, targets=targets) as trainee:
            fit_of(trainee).run(3)
            return values_of(trainee)

    merged = learned()
    monkeypatch.setattr(trainee_module, "merged_products", lambda net, adapter: nullcontext())
    for name, value in learned().items():
        assert torch.allclose(merged[name], value, atol=2e-3), name  # three steps of 1e-2
