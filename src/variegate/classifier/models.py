"""Classifiers by name: nets for small images, any timm model, weights from timm or from a safetensors file.

resnet-small is a CIFAR-style ResNet (arXiv 1512.03385, section 4.2): a 3x3 stem without pooling, so that small
images keep their detail. timm's ResNets keep their own stem at every size: at 64 px resnet18 is no better than
resnet-small and takes twice the time (docs/log.md).
preact-resnet18 and -34 (arXiv 1603.05027) and wide-resnet-28-10 and -28-2 (arXiv 1605.07146) are the nets of the MixUp
papers; timm has their blocks, but no stem for small images.
"""

from __future__ import annotations

import difflib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file, save
from torch import nn
from torch.nn import functional as F

from variegate.errors import ModelError, Problem
from variegate.files import about_weights
from variegate.recipe import TrainSection

OWN_MODEL = "resnet-small"
_WIDTHS = (32, 64, 128, 256)
_PREACT: dict[str, tuple[tuple[int, ...], tuple[int, ...], int]] = {  # blocks and widths of the stages, stem's width
    "preact-resnet18": ((2, 2, 2, 2), (64, 128, 256, 512), 64),
    "preact-resnet34": ((3, 4, 6, 3), (64, 128, 256, 512), 64),
    "wide-resnet-28-2": ((4, 4, 4), (32, 64, 128), 16),
    "wide-resnet-28-10": ((4, 4, 4), (160, 320, 640), 16),
}
OWN_MODELS = (OWN_MODEL, *_PREACT)  # those that timm has not
_OWN_MEAN_STD = ((0.5, 0.5, 0.5), (0.25, 0.25, 0.25))  # of models that learn from nothing


@dataclass(frozen=True, slots=True)
class Classifier:
    """A network with the pixel scaling it expects: (pixels / 255 - mean) / std."""

    net: nn.Module  # float [B, 3, S, S] -> logits [B, num_classes]
    heads: tuple[nn.Module, ...]  # the last layer, a part of `net`; two of a distilled one, whose logits are their mean
    mean: tuple[float, ...]
    std: tuple[float, ...]

    @property
    def head(self) -> nn.Module:
        """The last layer; of two the one that learned from labels."""
        return self.heads[0]

    def scaled(self, images: torch.Tensor) -> torch.Tensor:
        """Images float [B, 3, S, S] in [0, 1] as the net takes them."""
        mean = images.new_tensor(self.mean).view(1, 3, 1, 1)
        std = images.new_tensor(self.std).view(1, 3, 1, 1)
        return (images - mean) / std


class ResNetSmall(nn.Module):
    """One residual block a stage, widths 32 to 256, 1.2 M parameters; made for images of 32 to 96 px.

    Larger images are better served by a timm model.
    """

    def __init__(self, num_classes: int, size_px: int) -> None:
        super().__init__()
        self.stem = _stem(_WIDTHS[0], size_px)
        self.norm = nn.BatchNorm2d(_WIDTHS[0])
        pairs = zip((_WIDTHS[0], *_WIDTHS), _WIDTHS, strict=False)
        self.stages = nn.Sequential(
            *(_Block(before, after, 1 if k == 0 else 2) for k, (before, after) in enumerate(pairs))
        )
        self.head = nn.Linear(_WIDTHS[-1], num_classes)
        for layer in self.modules():
            if isinstance(layer, nn.Conv2d):
                nn.init.kaiming_normal_(layer.weight, mode="fan_out", nonlinearity="relu")
            elif isinstance(layer, _Block):  # every block starts as its shortcut: steadier first steps
                nn.init.zeros_(layer.norm2.weight)

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


def _stem(width: int, size_px: int) -> nn.Conv2d:
    """A 3x3 convolution that halves images of more than 40 px, which makes 64 px as cheap as 32 px."""
    return nn.Conv2d(3, width, 3, 2 if size_px > 40 else 1, 1, bias=False)


class _Block(nn.Module):
    def __init__(self, before: int, after: int, stride: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(before, after, 3, stride, 1, bias=False)
        self.norm1 = nn.BatchNorm2d(after)
        self.conv2 = nn.Conv2d(after, after, 3, 1, 1, bias=False)
        self.norm2 = nn.BatchNorm2d(after)
        self.shortcut: nn.Module = nn.Identity()
        if stride != 1 or before != after:
            self.shortcut = nn.Sequential(nn.Conv2d(before, after, 1, stride, bias=False), nn.BatchNorm2d(after))

    def forward(self, maps: torch.Tensor) -> torch.Tensor:
        inner = F.relu(self.norm1(self.conv1(maps)), inplace=True)
        return F.relu(self.norm2(self.conv2(inner)).add_(self.shortcut(maps)), inplace=True)


def check_model_name(name: str, pretrained: bool | str) -> list[Problem]:
    """What is wrong with train.model and train.pretrained, as far as can be known without building the model."""
    problems = []
    if name not in OWN_MODELS:
        problems = _unknown_name(name)
    elif pretrained is True:
        remedy = "set train.pretrained to false or to a safetensors file"
        problems.append(Problem("train.pretrained", f"{name} has no published weights", remedy))
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


def _unknown_name(name: str) -> list[Problem]:
    import timm

    if timm.is_model(name):
        return []
    near = difflib.get_close_matches(name, [*OWN_MODELS, *timm.list_models()], n=1)
    hint = f"did you mean {near[0]}?" if near else f"{', '.join(OWN_MODELS)}, or a name of timm.list_models()"
    return [Problem("train.model", f"no model is called {name!r}", hint)]


def _head_problems(name: str, heads: Sequence[nn.Module]) -> list[Problem]:
    if len(heads) == 1 and isinstance(heads[0], nn.Linear):
        return []
    ends = " and ".join(type(head).__name__ for head in heads)
    text = f"{name} ends in {ends}, and train.loss ldam needs one linear last layer"
    return [Problem("train.loss", text, "choose another model, or balanced-softmax")]


def check_net(section: TrainSection, size_px: int) -> None:
    """Raise ModelError where a net of a known name cannot be built for the recipe, or cannot take a batch of its images, or
    has not the stages or the last layer that the recipe speaks of.

    Allocates no weights of timm's nets, but where shapes alone say no it is tried for real: they are of many hands. Our own are
    built: that takes less than what torch loads for weights without memory.
    """

    def built() -> Classifier:
        scale = section.cosine_scale
        return build_model(section.model, num_classes=2, size_px=size_px, pretrained=False, seed=0, cosine_scale=scale)

    device = "cpu" if section.model in OWN_MODELS else "meta"
    with torch.device(device):
        classifier = built()
    if section.mode == "last-stages" or section.mix == "manifold-mixup":
        stages_of(classifier.net)
        learned_parts(classifier, section.mode, section.last_stages)
    batch = min(section.batch, 2)  # a norm may want more than one image
    if not _forward_problem(classifier.net, batch, size_px, device):
        return
    problem = _forward_problem(built().net, batch, size_px, "cpu")
    if problem:
        text = f"{section.model} cannot learn from {batch} images of {size_px} px: {problem}"
        raise ModelError(Problem("train.model", text, "choose another model, or raise dataset.size_px or train.batch"))


def _forward_problem(net: nn.Module, batch: int, size_px: int, device: str) -> str:
    """Why a net in training does not give two logits for each image; empty where it does."""
    try:
        with torch.no_grad():
            logits = net.train()(torch.zeros(batch, 3, size_px, size_px, device=device))
    except (RuntimeError, ValueError, AssertionError, TypeError, IndexError, ZeroDivisionError) as exc:
        return _first_line(exc)
    shape = tuple(logits.shape) if isinstance(logits, torch.Tensor) else type(logits).__name__
    return "" if shape == (batch, 2) else f"it gives {shape} for 2 classes"


@lru_cache(maxsize=8)
def fetch_weights(name: str, size_px: int) -> None:
    """Have timm's weights at hand; raises ModelError where they cannot be fetched."""
    with torch.random.fork_rng(devices=[]):
        _from_timm(name, 2, size_px, True)


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
            _own(name, num_classes, size_px)
            if name in OWN_MODELS
            else _from_timm(name, num_classes, size_px, pretrained is True)
        )
    if isinstance(pretrained, str):
        _load_body(classifier, Path(pretrained))
        mean, std = _scaling(name, Path(pretrained))
        classifier = replace(classifier, mean=mean, std=std)
    return classifier if cosine_scale is None else _with_cosine_head(classifier, name, cosine_scale, seed)


def _with_cosine_head(classifier: Classifier, name: str, scale: float, seed: int) -> Classifier:
    old = classifier.head
    problems = _head_problems(name, classifier.heads)
    if problems or not isinstance(old, nn.Linear):
        raise ModelError(problems)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        head = CosineHead(old.in_features, old.out_features, scale)
    place = next(name for name, module in classifier.net.named_modules() if module is old)
    classifier.net.set_submodule(place, head)
    return replace(classifier, heads=(head,))


def _own(name: str, num_classes: int, size_px: int) -> Classifier:
    if name == OWN_MODEL:
        net = ResNetSmall(num_classes, size_px)
        return Classifier(net, (net.head,), *_OWN_MEAN_STD)
    return _preact(name, num_classes, size_px)


def _preact(name: str, num_classes: int, size_px: int) -> Classifier:
    """timm's pre-activation net of basic blocks with the stem for small images and a linear head."""
    from timm.layers import BatchNormAct2d, ClassifierHead, create_conv2d
    from timm.models.resnetv2 import ResNetV2

    layers, channels, stem = _PREACT[name]
    net = ResNetV2(
        list(layers), channels, num_classes, stem_chs=stem,
        basic=True, bottle_ratio=1.0, conv_layer=create_conv2d, norm_layer=BatchNormAct2d,
    )  # fmt: skip
    net.set_submodule("stem", _stem(stem, size_px))
    net.head = ClassifierHead(net.num_features, num_classes)
    for layer in net.modules():
        if isinstance(layer, nn.Conv2d):
            nn.init.kaiming_normal_(layer.weight, mode="fan_out", nonlinearity="relu")
    return Classifier(net, (net.head.fc,), *_OWN_MEAN_STD)


def _from_timm(name: str, num_classes: int, size_px: int, pretrained: bool) -> Classifier:
    import timm

    config = timm.get_pretrained_cfg(name)
    options: dict[str, Any] = {"img_size": size_px} if config is not None and config.fixed_input_size else {}
    try:
        net = timm.create_model(name, pretrained=pretrained, num_classes=num_classes, in_chans=3, **options)
    except (OSError, RuntimeError, ValueError, AssertionError, TypeError) as exc:
        if not pretrained:
            text = f"{name} cannot be built for images of {size_px} px: {exc}"
            raise ModelError(Problem("train.model", text, "choose another model or dataset.size_px")) from exc
        text = f"the weights of {name} could not be fetched: {_first_line(exc)}"
        remedy = "go online once, set train.pretrained to a safetensors file, or to false"
        raise ModelError(Problem("train.pretrained", text, remedy)) from exc
    found = getattr(net, "get_classifier", lambda: None)()
    heads = found if isinstance(found, tuple) else (found,)  # distilled nets have two
    if not all(isinstance(head, nn.Module) for head in heads):
        raise ModelError(Problem("train.model", f"{name} has no last layer of its own", "choose another model"))
    mean, std = _published_scaling(name) if pretrained else _OWN_MEAN_STD
    return Classifier(net, heads, mean, std)


def _published_scaling(name: str) -> tuple[tuple[float, ...], tuple[float, ...]]:
    import timm

    config = timm.get_pretrained_cfg(name)
    return (tuple(config.mean), tuple(config.std)) if config else _OWN_MEAN_STD


def _scaling(name: str, path: Path) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """(mean, std) that the weights of a file learned with: a run's own are in the file, others are a published model's."""
    about = about_weights(path)
    if "mean" in about:
        return tuple(about["mean"]), tuple(about["std"])
    return _OWN_MEAN_STD if name in OWN_MODELS else _published_scaling(name)


def _load_body(classifier: Classifier, path: Path) -> None:
    """Load every weight but the head's; keys and shapes have to fit exactly."""
    try:
        given = load_file(path)
    except (SafetensorError, OSError) as exc:
        raise ModelError(
            Problem("train.pretrained", f"{path} cannot be read: {exc}", "is it a safetensors file?")
        ) from exc
    heads = tuple(f"{name}." for name, module in classifier.net.named_modules() if module in classifier.heads)
    own = {key: value for key, value in classifier.net.state_dict().items() if not key.startswith(heads)}
    given = {key: value for key, value in given.items() if not key.startswith(heads)}
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


def _first_line(exc: BaseException) -> str:
    lines = str(exc).strip().splitlines()
    return lines[0] if lines else type(exc).__name__


# ------------------------------------------------------------------------------------------------ parts of a net


def stages_of(net: nn.Module) -> list[nn.Module]:
    """What a net's body repeats: the stages of a ResNet (4; 3 of a wide one), the blocks of a ViT, in order.

    Raises ModelError for a net that is not built of such parts.
    """
    return _stages(net)[1]


def learned_parts(classifier: Classifier, mode: str, last_stages: int) -> list[nn.Module]:
    """The parts that `train.mode` lets learn; the rest stays as it is, running statistics included.

    last-stages: so many of the last stages and all that follows them, as in Diff-Mix's presets for ResNet-50. norms:
    scales and shifts of the norms (arXiv 2003.00152) and the head. Raises ModelError where the net has fewer stages.
    """
    net, heads = classifier.net, classifier.heads
    if mode == "full":
        return [net]
    if mode == "linear-probe":
        return list(heads)
    if mode == "norms":
        return [module for module in net.modules() if module in heads or _is_norm(module)]
    names, stages = _stages(net)
    if last_stages > len(stages):
        text = f"{last_stages} of the last stages should learn and {type(net).__name__} has {len(stages)}"
        raise ModelError(Problem("train.last_stages", text, "lower it, or set train.mode=full"))
    children = list(net.named_children())
    end = max(place for place, (name, _) in enumerate(children) if name in names)
    return [*stages[len(stages) - last_stages :], *(module for _, module in children[end + 1 :])]


def _stages(net: nn.Module) -> tuple[list[str], list[nn.Module]]:
    """Names of the children that hold the stages, and the stages."""
    children = dict(net.named_children())
    for name in ("stages", "blocks", "layers"):
        stages = children.get(name)
        if isinstance(stages, nn.Sequential | nn.ModuleList) and len(stages):
            return [name], list(stages.children())
    names = [name for name in children if name.startswith("layer") and name.removeprefix("layer").isdecimal()]
    if not names:
        text = f"{type(net).__name__} has no stages or blocks to tell apart"
        raise ModelError(Problem("train.model", text, "use another model, or neither last-stages nor manifold-mixup"))
    return names, [children[name] for name in names]


def _is_norm(module: nn.Module) -> bool:
    """Whether it is a norm with parameters of its own; classes are told by name, timm has a score of them."""
    return "norm" in type(module).__name__.lower() and any(True for _ in module.parameters(recurse=False))


# ------------------------------------------------------------------------------------------------ saved models


def model_bytes(state: Mapping[str, torch.Tensor], about: Mapping[str, Any]) -> bytes:
    """Weights with what is needed to rebuild the net: a model.safetensors as `load_classifier` reads it.

    `about` has model, classes, size_px, mean, std.
    """
    return save(dict(state), {"variegate": json.dumps(about, sort_keys=True)})


def load_classifier(path: str | Path) -> tuple[nn.Module, dict]:
    """A trained model.safetensors of a run, ready to use, and what it was made with.

    The net takes float [B, 3, S, S] scaled as (pixels / 255 - mean) / std and gives logits; the second value has
    model, classes, size_px, mean, std. Raises ModelError for a file that train did not write.
    """
    classifier, about = open_classifier(path)
    return classifier.net, about


def open_classifier(path: str | Path) -> tuple[Classifier, dict]:
    """As `load_classifier`, with the head and the scaling at hand."""
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
    built.net.eval()
    return replace(built, mean=tuple(about["mean"]), std=tuple(about["std"])), about
