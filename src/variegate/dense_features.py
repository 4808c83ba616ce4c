"""Dense features of CLIP-like image towers: what each place of an image says, in the space of texts, by one pass.

MaskCLIP (arXiv 2112.01071): the last block runs as it learned to, but each place attends to itself alone, so that its
feature speaks of that place; a convolutional tower's last map is projected place by place. Positions are interpolated,
so that an image may have any number of places.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import torch

CONVOLUTIONAL = {"resnet"}  # transformers' towers whose feature is the mean of their last map
TRANSFORMER = {"clip_vision_model"}


@dataclass(frozen=True, slots=True)
class DenseTower:
    """`encode` takes [N, 3, h * place_px, w * place_px], scaled as the tower wants, and gives [N, h, w, D]."""

    place_px: int
    encode: Callable[[torch.Tensor], torch.Tensor]


def lacks_dense(config: Mapping[str, Any]) -> bool:
    """Whether a model's settings (open_clip's model_cfg, or transformers' config.json) name a tower not known here."""
    if "vision_cfg" in config:
        vision = config["vision_cfg"]
        return any(vision.get(key) for key in ("timm_model_name", "attentional_pool"))
    kind = config.get("vision_config", {}).get("model_type", "clip_vision_model")
    return kind not in CONVOLUTIONAL | TRANSFORMER


def of_open_clip(visual: Any) -> DenseTower | None:
    """The dense features of open_clip's image tower; None of one that is neither its ViT nor its ResNet."""
    if hasattr(visual, "attnpool") and hasattr(visual, "stem"):
        return DenseTower(32, lambda images: _modified_resnet(visual, images))
    if hasattr(visual, "transformer") and getattr(visual, "attn_pool", None) is None:
        return DenseTower(int(visual.patch_size[0]), lambda images: _open_clip_vit(visual, images))
    return None


def of_transformers(model: Any) -> DenseTower | None:
    """The dense features of a CLIPModel's or VisionTextDualEncoderModel's image tower; None of an unknown one."""
    vision, kind = model.vision_model, model.config.vision_config.model_type
    if kind in TRANSFORMER:
        return DenseTower(vision.config.patch_size, lambda images: _transformers_vit(model, images))
    if kind not in CONVOLUTIONAL:
        return None
    stages = len(vision.config.depths) - (not vision.config.downsample_in_first_stage)
    place_px = 4 * 2**stages  # the stem halves twice
    return DenseTower(
        place_px, lambda images: model.visual_projection(vision(images).last_hidden_state.permute(0, 2, 3, 1))
    )


def _modified_resnet(visual: Any, images: torch.Tensor) -> torch.Tensor:
    """Its attention pool's value and output layers, place by place."""
    x = visual.stem(images)
    for layer in (visual.layer1, visual.layer2, visual.layer3, visual.layer4):
        x = layer(x)
    return visual.attnpool.c_proj(visual.attnpool.v_proj(x.permute(0, 2, 3, 1)))


def _open_clip_vit(visual: Any, images: torch.Tensor) -> torch.Tensor:
    import torch

    x = visual.conv1(images)
    n, _, rows, columns = x.shape
    first = visual.class_embedding.to(x.dtype).expand(n, 1, -1)
    positions = _resized(visual.positional_embedding.to(x.dtype), rows, columns)
    x = visual.ln_pre(torch.cat([first, x.flatten(2).transpose(1, 2)], dim=1) + positions)
    *blocks, last = visual.transformer.resblocks
    is_batch_first = visual.transformer.batch_first
    x = x if is_batch_first else x.transpose(0, 1)
    for block in blocks:
        x = block(x)
    x = last(x, attn_mask=_itself_alone(1 + rows * columns, x))
    x = visual.ln_post((x if is_batch_first else x.transpose(0, 1))[:, 1:])
    return (x if visual.proj is None else x @ visual.proj).unflatten(1, (rows, columns))


def _transformers_vit(model: Any, images: torch.Tensor) -> torch.Tensor:
    vision = getattr(
        model.vision_model, "vision_model", model.vision_model
    )  # wrapped in a dual encoder of older versions
    rows, columns = (edge // vision.config.patch_size for edge in images.shape[2:])
    x = vision.pre_layrnorm(vision.embeddings(images, interpolate_pos_encoding=True))
    *layers, last = vision.encoder.layers
    for layer in layers:
        x = layer(x, attention_mask=None)
    x = last(x, attention_mask=_itself_alone(1 + rows * columns, x)[None, None])
    return model.visual_projection(vision.post_layernorm(x[:, 1:])).unflatten(1, (rows, columns))


def _itself_alone(count: int, like: torch.Tensor) -> torch.Tensor:
    """What is added to attention's logits [count, count] so that every place attends to itself alone."""
    return like.new_full((count, count), float("-inf")).fill_diagonal_(0.0)


def _resized(positions: torch.Tensor, rows: int, columns: int) -> torch.Tensor:
    """Positions [1 + old * old, C] of a square of places, after the first, for `rows` x `columns` of them."""
    import torch
    from torch.nn.functional import interpolate

    first, grid = positions[:1], positions[1:]
    edge = round(len(grid) ** 0.5)
    if (rows, columns) == (edge, edge):
        return positions
    square = grid.unflatten(0, (edge, edge)).permute(2, 0, 1)[None].float()
    sized = interpolate(square, size=(rows, columns), mode="bicubic", antialias=True, align_corners=False)
    return torch.cat([first, sized[0].flatten(1).T.to(positions.dtype)])
