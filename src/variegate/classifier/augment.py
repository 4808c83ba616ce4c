"""Change a batch of images at random, as tensors: warps and colours, torchvision's policies, MixUp and CutMix.

`classic` draws from the generator it is given. torchvision's transforms only know torch's global generator, so they
run inside `own_randomness`, which seeds it and puts it back. MixUp and CutMix are torchvision's: they keep soft labels.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import torch
from torch.nn import functional as F

Batch = tuple[torch.Tensor, torch.Tensor]  # images float [B, 3, S, S] in [0, 1], targets float [B, C]

MAX_TURN = math.radians(15)
MAX_ZOOM = 1.2  # scales from 1 / 1.2 to 1.2, evenly in the logarithm
MAX_SHIFT = 0.1  # of the edge
MAX_BRIGHTNESS, MAX_CONTRAST, MAX_SATURATION = 0.2, 0.2, 0.2
LUMA = (0.299, 0.587, 0.114)
MIXUP_ALPHA, CUTMIX_ALPHA = 0.8, 1.0
CMO_CHANCE = 0.5  # that a batch gets patches, as in the released code


@contextmanager
def own_randomness(seed: int, device: torch.device) -> Iterator[None]:
    """Seed torch's global generators inside the block only (dropout, torchvision), and restore them after it."""
    devices = [device] if device.type == "cuda" else []
    with torch.random.fork_rng(devices=devices):
        torch.manual_seed(seed)
        yield


def make_augment(name: str) -> Callable[[torch.Tensor, torch.Generator], torch.Tensor]:
    """The augmentation a recipe names: uint8 [B, S, S, 3] in, float [B, 3, S, S] in [0, 1] out."""
    if name == "none":
        return lambda pixels, generator: to_unit(pixels)
    if name == "classic":
        return lambda pixels, generator: classic(to_unit(pixels), generator)
    from torchvision.transforms import v2

    policy = {"randaugment": v2.RandAugment, "trivialaugment": v2.TrivialAugmentWide}[name]
    transform = v2.Compose([v2.RandomHorizontalFlip(), policy(interpolation=v2.InterpolationMode.BILINEAR)])

    def each(pixels: torch.Tensor, generator: torch.Generator) -> torch.Tensor:
        # One image at a time: given a batch, these transforms would draw one operation for all of it.
        changed = [transform(image) for image in pixels.permute(0, 3, 1, 2)]
        return torch.stack(changed).to(torch.float32, memory_format=torch.channels_last).div_(255.0)

    return each


def make_mix(name: str, alpha: float | None = None) -> Callable[[torch.Tensor, torch.Tensor], Batch]:
    """The batch mixing a recipe names, its share of Beta(alpha, alpha); rows of targets keep their mass."""
    if name == "none":
        return lambda images, targets: (images, targets)
    from torchvision.transforms import v2

    mixes = {"mixup": v2.MixUp(alpha=alpha or MIXUP_ALPHA), "cutmix": v2.CutMix(alpha=alpha or CUTMIX_ALPHA)}
    chosen = [mixes[part] for part in name.split("+")]
    mix = chosen[0] if len(chosen) == 1 else v2.RandomChoice(chosen)
    return lambda images, targets: tuple(mix(images, targets))


def paste_patches(
    images: torch.Tensor, targets: torch.Tensor, patches: torch.Tensor, patch_targets: torch.Tensor
) -> Batch:
    """CutMix with a second batch (CMO, arXiv 2112.00412): image i gets a box of patch i, and the box's share of its label.

    torchvision's CutMix pastes from the batch rolled by one, so the two batches take turns and every other one is kept.
    """
    from torchvision.transforms import v2

    both = (torch.stack(pair, dim=1).flatten(0, 1) for pair in ((patches, images), (patch_targets, targets)))
    mixed, rows = v2.CutMix(alpha=CUTMIX_ALPHA)(*both)
    return mixed[1::2], rows[1::2]


def to_unit(pixels: torch.Tensor) -> torch.Tensor:
    """uint8 [B, S, S, 3] to float [B, 3, S, S] in [0, 1], channels-last."""
    return pixels.permute(0, 3, 1, 2).to(torch.float32).div_(255.0)


def classic(images: torch.Tensor, generator: torch.Generator) -> torch.Tensor:
    """Flip, turn, zoom, shift and recolour every image on its own; float [B, 3, S, S] in [0, 1] in and out."""
    count = len(images)

    def uniform(low: float, high: float) -> torch.Tensor:
        return (torch.rand(count, generator=generator) * (high - low) + low).to(images.device)

    flip = torch.where(uniform(0.0, 1.0) < 0.5, -1.0, 1.0)
    turn, zoom = uniform(-MAX_TURN, MAX_TURN), torch.exp(uniform(-math.log(MAX_ZOOM), math.log(MAX_ZOOM)))
    shift_x, shift_y = uniform(-2 * MAX_SHIFT, 2 * MAX_SHIFT), uniform(-2 * MAX_SHIFT, 2 * MAX_SHIFT)
    cos, sin = torch.cos(turn) / zoom, torch.sin(turn) / zoom
    # Rows of the map from output to input coordinates, both in [-1, 1]; the flip acts on the input.
    rows = [torch.stack([cos * flip, -sin * flip, shift_x], 1), torch.stack([sin, cos, shift_y], 1)]
    grid = F.affine_grid(torch.stack(rows, 1), list(images.shape), align_corners=False)
    warped = F.grid_sample(images, grid, mode="bilinear", padding_mode="reflection", align_corners=False)
    return _recolour(
        warped,
        brightness=uniform(-MAX_BRIGHTNESS, MAX_BRIGHTNESS),
        contrast=uniform(1 - MAX_CONTRAST, 1 + MAX_CONTRAST),
        saturation=uniform(1 - MAX_SATURATION, 1 + MAX_SATURATION),
    )


def _recolour(
    images: torch.Tensor, *, brightness: torch.Tensor, contrast: torch.Tensor, saturation: torch.Tensor
) -> torch.Tensor:
    brightness, contrast, saturation = (value.view(-1, 1, 1, 1) for value in (brightness, contrast, saturation))
    luma = images.new_tensor(LUMA).view(1, 3, 1, 1)
    grey = (images * luma).sum(dim=1, keepdim=True)
    coloured = grey + saturation * (images - grey)
    middle = grey.mean(dim=(2, 3), keepdim=True)
    return (middle + contrast * (coloured - middle) + brightness).clamp_(0.0, 1.0)
