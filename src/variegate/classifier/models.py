"""Classifiers by name: our own resnet-small, any timm model, weights from timm or from a safetensors file.

resnet-small is a CIFAR-style ResNet (arXiv 1512.03385, section 4.2): a 3x3 stem without pooling, so that small
images keep their detail. timm's ResNets keep their own stem at every size: at 64 px (builtin:meadow, 10 species, 5
images each, 300 steps, 2 seeds) resnet18 reached 69.0 % and resnet-small 69.1 %, in half the time.
"""

from __future__ import annotations

import difflib
import json
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file
from torch import nn
from torch.nn import functional as F

from variegate.errors import ModelError, Problem

OWN_MODEL = "resnet-small"
_WIDTHS = (32, 64, 128, 256)
_OWN_MEAN_STD = ((0.5, 0.5, 0.5), (0.25, 0.25, 0.25))  # of models that learn from nothing


@dataclass(frozen=True, slots=True)
class Classifier:
    """A network with the pixel scaling it expects: (pixels / 255 - mean) / std."""

    net: nn.Module  # float [B, 3, S, S] -> logits [B, num_classes]
    head: nn.Module  # the last layer, a part of `net`
    mean: tuple[float, ...]
    std: tuple[float, ...]


class ResNetSmall(nn.Module):
    """One residual block a stage, widths 32 to 256, 1.2 M parameters; made for images of 32 to 96 px.

    The stem halves images of more than 40 px, which makes 64 px as cheap as 32 px; larger ones are better served
    by a timm model.
    """

    def __init__(self, num_classes: int, size_px: int) -> None:
        super().__init__()
        stride = 2 if size_px > 40 else 1
        self.stem = nn.Conv2d(3, _WIDTHS[0], 3, stride, 1, bias=False)
        self.norm = nn.BatchNorm2d(_WIDTHS[0])
        pairs = zip((_WIDTHS[0], *_WIDTHS), _WIDTHS, strict=False)
        self.stages = nn.Sequential(
            *(_Block(before, after, 1 if k == 0 else 2) for k, (before, after) in enumerate(pairs))
        )
        self.head = nn.Linear(_WIDTHS[-1], num_classes)
        for layer in self.modules():
            if isinstance(layer, nn.Conv2d):
                nn.init.kaiming_normal_(layer.weight, mode="fan_out", nonlinearity="relu")
        for block in self.stages:  # every block starts as its shortcut: steadier first steps
            nn.init.zeros_(block.norm2.weight)

    def forward(self, pixels: torch.Tensor) -> torch.Tensor:
        maps = self.stages(F.relu(self.norm(self.stem(pixels)), inplace=True))
        return self.head(maps.mean(dim=(2, 3)))


class CosineHead(nn.Linear):
    """A last layer whose logits are cosines of features and class vectors, times `scale`, as LDAM has it.

    The scale stands here and not in the loss, so that a softmax of these logits is the classifier's probability.
    """

    def __init__(self, in_features: int, num_classes: int, scale: float) -> None:
        super().__init__(in_features, num_classes, bias=False)
        self.scale = scale

    def forward(self, features: torch.Tensor) -> torch.Tensor:
        with torch.autocast(features.device.type, enabled=False):  # in bf16 a cosine is off by up to 0.004, times 30
            return self.scale * F.linear(F.normalize(features.float()), F.normalize(self.weight))


class _Block(nn.Module):
    def __init__(self, before: int, after: int, stride: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(before, after, 3, stride, 1, bias=False)
        self.norm1 = nn.BatchNorm2d(after)
        self.conv2 = nn.Conv2d(after, after, 3, 1, 1, bias=False)
        self.norm2 = nn.BatchNorm2d(after)
        self.shortcut = nn.Identity()
        if stride != 1 or before != after:
            self.shortcut = nn.Sequential(nn.Conv2d(before, after, 1, stride, bias=False), nn.BatchNorm2d(after))

    def forward(self, maps: torch.Tensor) -> torch.Tensor:
        inner = F.relu(self.norm1(self.conv1(maps)), inplace=True)
        return F.relu(self.norm2(self.conv2(inner)).add_(self.shortcut(maps)), inplace=True)


def check_model_name(name: str, pretrained: bool | str) -> list[Problem]:
    """What is wrong with train.model and train.pretrained, as far as can be known without building the model."""
    import timm

    problems = []
    if name != OWN_MODEL and not timm.is_model(name):
        known = [OWN_MODEL, *timm.list_models()]
        near = difflib.get_close_matches(name, known, n=1)
        hint = f"did you mean {near[0]}?" if near else f"{OWN_MODEL}, or a name that timm.list_models() shows"
        problems.append(Problem("train.model", f"no model is called {name!r}", hint))
    elif name == OWN_MODEL and pretrained is True:
        remedy = "set train.pretrained to false or to a safetensors file"
        problems.append(Problem("train.pretrained", f"{OWN_MODEL} has no published weights", remedy))
    if isinstance(pretrained, str):
        path = Path(pretrained)
        if path.suffix != ".safetensors":
            text = f"{pretrained!r} is no .safetensors file, the only weight format read here"
            problems.append(Problem("train.pretrained", text, "convert it with safetensors.torch.save_file"))
        elif not path.is_file():
            problems.append(
                Problem("train.pretrained", f"there is no file {pretrained!r}", "give a path to a safetensors file")
            )
    return problems


def check_cosine_head(name: str) -> list[Problem]:
    """Whether a known model's last layer can become a CosineHead; builds it, without published weights, to see."""
    if name == OWN_MODEL:
        return []
    import timm

    with torch.random.fork_rng(devices=[]):
        return _head_problems(name, timm.create_model(name, num_classes=2).get_classifier())


def _head_problems(name: str, head: object) -> list[Problem]:
    if isinstance(head, nn.Linear):
        return []
    text = f"{name} ends in {type(head).__name__}, and train.loss ldam needs a linear last layer"
    return [Problem("train.loss", text, "choose another model, or balanced-softmax")]


def build_model(
    name: str,
    *,
    num_classes: int,
    size_px: int,
    pretrained: bool | str,
    seed: int,
    cosine_scale: float | None = None,
) -> Classifier:
    """A classifier whose fresh weights depend on `seed` alone; raises ModelError when name or weights do not fit.

    With `cosine_scale` its last layer becomes a CosineHead.
    """
    problems = check_model_name(name, pretrained)
    if problems:
        raise ModelError(problems)
    with torch.random.fork_rng(devices=[]):  # layers draw their first weights from torch's own generator
        torch.manual_seed(seed)
        classifier = (
            _own(num_classes, size_px)
            if name == OWN_MODEL
            else _from_timm(name, num_classes, size_px, pretrained is True)
        )
    if isinstance(pretrained, str):
        _load_body(classifier, Path(pretrained))
    return classifier if cosine_scale is None else _with_cosine_head(classifier, name, cosine_scale, seed)


def _with_cosine_head(classifier: Classifier, name: str, scale: float, seed: int) -> Classifier:
    old = classifier.head
    problems = _head_problems(name, old)
    if problems or not isinstance(old, nn.Linear):
        raise ModelError(problems)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        head = CosineHead(old.in_features, old.out_features, scale)
    place = next(name for name, module in classifier.net.named_modules() if module is old)
    classifier.net.set_submodule(place, head)
    return Classifier(classifier.net, head, classifier.mean, classifier.std)


def _own(num_classes: int, size_px: int) -> Classifier:
    net = ResNetSmall(num_classes, size_px)
    return Classifier(net, net.head, *_OWN_MEAN_STD)


def _from_timm(name: str, num_classes: int, size_px: int, pretrained: bool) -> Classifier:
    import timm

    config = timm.get_pretrained_cfg(name)
    options = {"img_size": size_px} if config is not None and config.fixed_input_size else {}
    try:
        net = timm.create_model(name, pretrained=pretrained, num_classes=num_classes, in_chans=3, **options)
    except (OSError, RuntimeError, ValueError, AssertionError, TypeError) as exc:
        if not pretrained:
            text = f"{name} cannot be built for images of {size_px} px: {exc}"
            raise ModelError(Problem("train.model", text, "choose another model or dataset.size_px")) from exc
        text = f"the weights of {name} could not be fetched: {_first_line(exc)}"
        remedy = "go online once, set train.pretrained to a safetensors file, or to false"
        raise ModelError(Problem("train.pretrained", text, remedy)) from exc
    head = net.get_classifier()
    if not isinstance(head, nn.Module):
        raise ModelError(Problem("train.model", f"{name} has more than one last layer", "choose another model"))
    mean, std = (tuple(config.mean), tuple(config.std)) if pretrained and config else _OWN_MEAN_STD
    return Classifier(net, head, mean, std)


def _load_body(classifier: Classifier, path: Path) -> None:
    """Load every weight but the head's; keys and shapes have to fit exactly."""
    try:
        given = load_file(path)
    except (SafetensorError, OSError) as exc:
        raise ModelError(
            Problem("train.pretrained", f"{path} cannot be read: {exc}", "is it a safetensors file?")
        ) from exc
    head = {f"{prefix}{key}" for prefix in _names_of(classifier) for key in classifier.head.state_dict()}
    own = {key: value for key, value in classifier.net.state_dict().items() if key not in head}
    given = {key: value for key, value in given.items() if key not in head}
    problems = [Problem(str(path), f"lacks {key}") for key in sorted(own.keys() - given.keys())]
    problems += [Problem(str(path), f"has {key}, which the model has not") for key in sorted(given.keys() - own.keys())]
    for key in sorted(own.keys() & given.keys()):
        if own[key].shape != given[key].shape:
            problems.append(
                Problem(str(path), f"{key} is {list(given[key].shape)}, the model's is {list(own[key].shape)}")
            )
    if problems:
        rest = [Problem(str(path), f"and {len(problems) - 10} more")] if len(problems) > 10 else []
        raise ModelError([*problems[:10], *rest])
    classifier.net.load_state_dict(given, strict=False)


def _names_of(classifier: Classifier) -> list[str]:
    return [f"{name}." for name, module in classifier.net.named_modules() if module is classifier.head]


def _first_line(exc: BaseException) -> str:
    lines = str(exc).strip().splitlines()
    return lines[0] if lines else type(exc).__name__


# ------------------------------------------------------------------------------------------------ saved models


def load_classifier(path: str | Path) -> tuple[nn.Module, dict]:
    """A trained model.safetensors of a run, ready to use, and what it was made with.

    The net takes float [B, 3, S, S] scaled as (pixels / 255 - mean) / std and gives logits; the second value has
    model, classes, size_px, mean, std. Raises ModelError for a file that train did not write.
    """
    try:
        with safe_open(path, "pt") as file:
            about = json.loads((file.metadata() or {})["variegate"])
    except (SafetensorError, OSError, KeyError, ValueError) as exc:
        raise ModelError(
            Problem(str(path), "is no model written by variegate train", "name a model.safetensors of a run")
        ) from exc
    built = build_model(
        about["model"],
        num_classes=len(about["classes"]),
        size_px=about["size_px"],
        pretrained=False,
        seed=0,
        cosine_scale=about.get("cosine_scale"),
    )
    built.net.load_state_dict(load_file(path), strict=True)
    return built.net.eval(), about
