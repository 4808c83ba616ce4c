"""The image-text pair: a small convolutional image tower and a text tower with one space, trained by contrast (CLIP, arXiv 2103.00020).

Random pictures differ in colour already, so that nobody would have to look at marks: each picture is told apart from captions of
itself with one word changed too (NegCLIP, arXiv 2210.01936). Half of the pictures have been through the starter's autoencoder, as
drawn ones have. The folder is a transformers VisionTextDualEncoderModel.
"""

from __future__ import annotations

import copy
import json
import tempfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from torch.nn import functional as F
from transformers import (
    CLIPTokenizer,
    ResNetConfig,
    VisionTextDualEncoderConfig,
    VisionTextDualEncoderModel,
)

from starter.captions import OPENINGS, random_caption
from starter.data import Item, Pictures
from starter.training import train_on_budget
from starter.unet import text_config
from variegate.classifier.augment import to_unit
from variegate.stages.dataset.butterflies import BAND_PLACES, COLOURS, FORE_SHAPES, HIND_SHAPES, MARGIN_WIDTHS
from variegate.stages.dataset.meadow import HABITAT_PHRASES, describe, make_meadow

SIZE_PX = 128  # pictures of 64 px enlarged: the tower's stem halves twice
TEXT_WIDTH, TEXT_LAYERS, TEXT_HEADS, SHARED_WIDTH = 128, 2, 4, 128
WIDTHS, DEPTHS = (32, 64, 128, 256), (2, 2, 2, 2)
MEAN, STD = 0.5, 0.25
BATCH, PEAK_RATE, HOLD_FRACTION = 64, 1e-3, 0.4
CHANGED = 4  # captions with one word changed, a picture
SHORT_FRACTION = 0.25  # of the pictures are told in the starter's shorter words
SHIFT_PX = 3
MAX_LOGIT_SCALE = float(np.log(100.0))
EXCHANGED = (  # words of which a caption holds one where it could hold another
    tuple(COLOURS),
    ("one", "two", "three", "four"),
    tuple(MARGIN_WIDTHS),
    tuple(BAND_PLACES),
    FORE_SHAPES,
    HIND_SHAPES,
    ("spots", "eyespots"),
    ("spot", "eyespot"),
    tuple(HABITAT_PHRASES.values()),
)


def build_pair(tokenizer: CLIPTokenizer) -> VisionTextDualEncoderModel:
    """Fresh weights, 3.4 million of them."""
    vision = ResNetConfig(
        embedding_size=WIDTHS[0],
        hidden_sizes=list(WIDTHS),
        depths=list(DEPTHS),
        layer_type="basic",
        hidden_size=WIDTHS[-1],
        image_size=SIZE_PX,
    )
    text = text_config(tokenizer, width=TEXT_WIDTH, layers=TEXT_LAYERS, heads=TEXT_HEADS)
    config = VisionTextDualEncoderConfig.from_vision_text_configs(vision, text, projection_dim=SHARED_WIDTH)
    return VisionTextDualEncoderModel(config)


def train_pair(
    model: VisionTextDualEncoderModel,
    tokenizer: CLIPTokenizer,
    pictures: Pictures,
    rebuilt: np.ndarray,
    work: Path,
    *,
    minutes: float,
    device: str,
    seed: int,
    preview_every_min: float,
    preview: Callable[[VisionTextDualEncoderModel, int], None],
) -> VisionTextDualEncoderModel:
    """Train until the budget is spent, from `work/pair.safetensors` where it is; averaged weights.

    `rebuilt` uint8 [M, 64, 64, 3], M <= N: what the autoencoder makes of the first M pictures.
    """
    model = model.to(device, memory_format=torch.channels_last).train()

    def whole(values: dict[str, torch.Tensor]) -> VisionTextDualEncoderModel:
        kept = copy.deepcopy(model).cpu()  # with the running statistics of its batch norms
        kept.load_state_dict({name: value.cpu() for name, value in values.items()}, strict=False)
        return kept.eval()

    values = train_on_budget(
        "pair",
        model,
        lambda step: _loss(model, tokenizer, pictures, rebuilt, [seed, 9, step], device),
        work / "pair.safetensors",
        batch=BATCH,
        minutes=minutes,
        peak_rate=PEAK_RATE,
        hold=HOLD_FRACTION,
        preview_every_min=preview_every_min,
        preview=lambda values, num_images: preview(whole(values), num_images),
    )
    return whole(values)


def changed_caption(phrases: tuple[str, ...], place: str, rng: np.random.Generator) -> tuple[tuple[str, ...], str]:
    """The same marks and place ("" = not told) with one of their words exchanged for another of its kind."""
    text = [*phrases, place]
    spots = [
        (row, word, others) for row, phrase in enumerate(text) for others in EXCHANGED for word in others
        if f" {word} " in f" {phrase} "
    ]  # fmt: skip
    spots += [(row, *sides) for row, phrase in enumerate(phrases) for sides in _sides(phrase)]
    row, word, others = spots[rng.integers(len(spots))]
    choices = [other for other in others if other != word]
    changed = f" {text[row]} ".replace(f" {word} ", f" {choices[rng.integers(len(choices))]} ", 1).strip()
    text[row] = _in_number(changed)
    return tuple(text[:-1]), text[-1]


def _in_number(phrase: str) -> str:
    """Grammar: "two blue spot" would be known for wrong by its grammar."""
    number, *words = phrase.split()
    if number not in ("one", "two", "three", "four"):
        return phrase
    many = {"spot": "spots", "eyespot": "eyespots"}
    forms = {value: key for key, value in many.items()} if number == "one" else many
    return " ".join([number, *(forms.get(word, word) for word in words)])


def _sides(phrase: str) -> list[tuple[str, tuple[str, str]]]:
    """Spots may sit on the other wings."""
    wings = ("on forewings", "on hindwings")
    return [(side, wings) for side in wings if phrase.endswith(side)]


def unseen_accuracy(model: VisionTextDualEncoderModel, tokenizer: CLIPTokenizer, *, seeds: int = 3) -> float:
    """Share of real pictures of unseen species that are closest to their own of ten descriptions, in per cent."""
    right = []
    for seed in range(1, 1 + seeds):
        meadow = make_meadow(n_per_species=20, seed=seed)
        texts = [describe(species) for species in meadow.species]
        with torch.inference_mode():
            images = image_features(model, torch.from_numpy(meadow.images))
            words = text_features(model, _tokens(tokenizer, texts))
        right.append(((images @ words.T).argmax(1).numpy() == meadow.labels).mean())
    return float(100 * np.mean(right))


def image_features(model: VisionTextDualEncoderModel, pixels: torch.Tensor) -> torch.Tensor:
    """uint8 [N, S, S, 3] to unit rows."""
    images = F.interpolate(to_unit(pixels), (SIZE_PX, SIZE_PX), mode="bilinear", align_corners=False)
    pooled = model.vision_model(((images - MEAN) / STD).contiguous(memory_format=torch.channels_last)).pooler_output
    return F.normalize(model.visual_projection(pooled.flatten(1)).float(), dim=-1)


def text_features(model: VisionTextDualEncoderModel, tokens: dict[str, torch.Tensor]) -> torch.Tensor:
    pooled = model.text_model(**tokens).pooler_output
    return F.normalize(model.text_projection(pooled).float(), dim=-1)


def export_pair(model: VisionTextDualEncoderModel, tokenizer: CLIPTokenizer, out: Path) -> float:
    """Write the folder, every file by renaming; returns the size of its weights in MB."""
    half = copy.deepcopy(model).to(memory_format=torch.contiguous_format).half()
    out.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix="pair-", dir=out.parent) as temporary:
        half.save_pretrained(temporary)
        tokenizer.save_pretrained(temporary)
        seen = {"image_mean": [MEAN] * 3, "image_std": [STD] * 3, "size": {"height": SIZE_PX, "width": SIZE_PX}}
        Path(temporary, "preprocessor_config.json").write_text(json.dumps(seen, indent=2) + "\n")
        for path in Path(temporary).iterdir():
            if path.name == "config.json":
                config = json.loads(path.read_text())
                config["dtype"] = "float32"
                path.write_text(json.dumps(config, indent=2, sort_keys=True) + "\n")
            path.chmod(0o644)
            path.replace(out / path.name)
    return (out / "model.safetensors").stat().st_size / 1e6


def _loss(model, tokenizer, pictures: Pictures, rebuilt: np.ndarray, seed: list[int], device: str) -> torch.Tensor:
    rng = np.random.default_rng(seed)
    chosen = rng.integers(len(pictures.images), size=BATCH)
    images = np.stack([
        rebuilt[index] if index < len(rebuilt) and rng.random() < 0.5 else pictures.images[index] for index in chosen
    ])  # fmt: skip
    items = [pictures.items[index] for index in chosen]
    captions = [_true(item, rng) for item in items]
    wrong = [_told(*changed_caption(item.phrases, _place(item, rng), rng), item.name, rng)
             for item in items for _ in range(CHANGED)]  # fmt: skip
    tokens = _tokens(tokenizer, captions + wrong)
    with torch.autocast(torch.device(device).type, torch.bfloat16):
        seen = image_features(model, _moved(torch.from_numpy(images), rng).to(device))
        words = text_features(model, {name: value.to(device) for name, value in tokens.items()})
    scale = model.logit_scale.clamp(max=MAX_LOGIT_SCALE).exp()
    logits = scale * seen @ words.T
    own = torch.arange(BATCH, device=device)
    return (F.cross_entropy(logits, own) + F.cross_entropy(logits[:, :BATCH].T, own)) / 2


def _true(item: Item, rng: np.random.Generator) -> str:
    short = random_caption(item, rng) if rng.random() < SHORT_FRACTION else ""
    return short or _told(item.phrases, _place(item, rng), item.name, rng)


def _place(item: Item, rng: np.random.Generator) -> str:
    """The place three times in four."""
    return item.place if rng.random() < 0.75 else ""


def _told(phrases: tuple[str, ...], place: str, name: str, rng: np.random.Generator) -> str:
    """Every mark, in order."""
    opening = OPENINGS[rng.integers(len(OPENINGS))]
    return f"{opening} {name} with {', '.join(phrases)}" + (f", {place}" if place else "")


def _moved(images: torch.Tensor, rng: np.random.Generator) -> torch.Tensor:
    """Mirrored by chance, and the whole batch shifted by a few pixels: no caption tells left from right."""
    mirrored = torch.from_numpy(rng.random(len(images)) < 0.5).view(-1, 1, 1, 1)
    images = torch.where(mirrored, images.flip(2), images)
    down, right = (int(step) for step in rng.integers(-SHIFT_PX, SHIFT_PX + 1, size=2))
    return images.roll((down, right), (1, 2))


def _tokens(tokenizer: CLIPTokenizer, texts: list[str]) -> dict[str, torch.Tensor]:
    given = tokenizer(texts, padding="longest", truncation=True, return_tensors="pt")
    return {"input_ids": given.input_ids, "attention_mask": given.attention_mask}
