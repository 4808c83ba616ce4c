"""CLIP-like models that see images and read texts: by open_clip's names, or from a local folder.

A folder is open_clip's (open_clip_config.json), or that of a transformers CLIPModel or VisionTextDualEncoderModel (config.json);
weights are safetensors. clip:starter is the package's own pair, which knows drawn butterflies (backends/starter-clip).
"""

from __future__ import annotations

import difflib
import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from variegate.dense_features import DenseTower, lacks_dense, of_open_clip, of_transformers
from variegate.errors import MissingExtra, ModelError, Problem
from variegate.files import file_sha256

if TYPE_CHECKING:
    import torch

CLIP = "clip:"
OWN = {"starter": Path(__file__).parent / "backends" / "starter-clip"}
BATCH = 32
TRANSFORMERS = {"clip": "CLIPModel", "vision-text-dual-encoder": "VisionTextDualEncoderModel"}
# OpenAI's, for folders that name none (arXiv 2103.00020)
_MEAN, _STD = (0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711)


def check_clip(name: str, where: str) -> list[Problem]:
    """What is wrong with clip:NAME or clip:FOLDER, before anything is loaded.

    `where` is the recipe key that named it. Raises MissingExtra when open_clip is needed and absent.
    """
    wanted = _wanted(name)
    if not name.startswith(CLIP) or not wanted:
        return [Problem(where, f"unknown encoder {name!r}", "use clip:starter, clip:NAME/WEIGHTS or clip:FOLDER")]
    folder = Path(wanted)
    if folder.is_dir():
        if not _is_transformers(folder):
            _open_clip(where)
        return _folder_problems(folder)
    known = ["/".join(pair) for pair in _open_clip(where).list_pretrained()]
    if wanted in known or wanted.startswith("hf-hub:"):
        return []
    near = difflib.get_close_matches(wanted, [*OWN, *known], n=1)
    hint = (
        f"did you mean clip:{near[0]}?" if near else "open_clip.list_pretrained() shows names; a local folder works too"
    )
    return [Problem(where, f"no folder and no open_clip model is called {wanted!r}", hint)]


def dense_problems(name: str, where: str) -> list[Problem]:
    """What keeps clip:NAME or clip:FOLDER, which `check_clip` has passed, from dense features; loads nothing.

    A hub's model is not looked at before it is loaded.
    """
    config: dict[str, Any] | None = {}
    wanted = _wanted(name)
    folder = Path(wanted)
    if folder.is_dir():
        file = folder / ("config.json" if _is_transformers(folder) else "open_clip_config.json")
        try:
            config = json.loads(file.read_text(encoding="utf-8"))
            config = config.get("model_cfg", config)
        except (OSError, ValueError, AttributeError):
            return [Problem(str(file), "cannot be read", "save the model again")]
    elif not wanted.startswith("hf-hub:"):
        config = _open_clip(where).get_model_config(wanted.split("/", 1)[0])
    return [_no_dense(name, where)] if lacks_dense(config or {}) else []


def _no_dense(name: str, where: str) -> Problem:
    text = f"{name} has an image tower without dense features"
    return Problem(where, text, "set the operation's map: patches, or use a CLIP with a ViT or ResNet of its own")


def clip_fingerprint(name: str) -> list[str]:
    """What tells one model from another: the name, and the hashes of a folder's files."""
    folder = Path(_wanted(name))
    if not folder.is_dir():
        return [name]
    files = sorted(path for path in folder.iterdir() if path.suffix in {".json", ".txt", ".model", ".safetensors"})
    return [name, *(f"{path.name} {file_sha256(path)}" for path in files)]


@dataclass(frozen=True, slots=True)
class Clip:
    """An image tower and a text tower with one space; `size_px` is the edge of the squares the image tower takes.

    `scale` turns cosines into logits, as the model learned it.
    """

    size_px: int
    scale: float
    device: str
    dtype: torch.dtype
    mean: tuple[float, float, float]
    std: tuple[float, float, float]
    encode_image: Callable[[torch.Tensor], torch.Tensor]
    encode_maps: Callable[[torch.Tensor], Sequence[torch.Tensor]]  # of each layer of the image tower, [N, C, h, w]
    encode_text: Callable[[Sequence[str]], torch.Tensor]
    dense: DenseTower | None = None

    def features(self, pixels: np.ndarray) -> np.ndarray:
        """uint8 [N, size_px, size_px, 3] to float32 [N, D] of length 1."""
        import torch

        found = [
            self.image_features(torch.from_numpy(np.ascontiguousarray(part.transpose(0, 3, 1, 2))).float())
            .cpu()
            .numpy()
            for part in np.split(pixels, range(BATCH, len(pixels), BATCH))
        ]
        return np.concatenate(found)

    def maps(self, pixels: np.ndarray) -> list[np.ndarray]:
        """uint8 [N, size_px, size_px, 3] to float32 [N, C, h, w] of each layer of the image tower."""
        import torch

        found = []
        with torch.inference_mode():
            for part in np.split(pixels, range(BATCH, len(pixels), BATCH)):
                levels = torch.from_numpy(np.ascontiguousarray(part.transpose(0, 3, 1, 2))).float()
                found.append([layer.float().cpu().numpy() for layer in self.encode_maps(self._scaled(levels))])
        return [np.concatenate(layer) for layer in zip(*found, strict=True)]

    def image_features(self, levels: torch.Tensor) -> torch.Tensor:
        """Float [N, 3, size_px, size_px] in [0, 255] to float32 [N, D] of length 1, on the model's device."""
        import torch

        with torch.inference_mode():
            return _unit(self.encode_image(self._scaled(levels)))

    def place_features(self, levels: torch.Tensor) -> torch.Tensor:
        """Float [N, 3, H, W] in [0, 255] to float32 [N, h, w, D] of length 1; H and W are multiples of dense.place_px."""
        import torch

        assert self.dense is not None, "the caller has asked for a model with dense features"
        with torch.inference_mode():
            return _unit(self.dense.encode(self._scaled(levels)))

    def _scaled(self, levels: torch.Tensor) -> torch.Tensor:
        import torch

        mean, std = (torch.tensor(values, device=self.device).view(1, 3, 1, 1) for values in (self.mean, self.std))
        return ((levels.to(self.device) / 255.0 - mean) / std).to(self.dtype)

    def text_features(self, texts: Sequence[str]) -> torch.Tensor:
        """float32 [N, D] of length 1, on the model's device."""
        import torch

        with torch.inference_mode():
            return _unit(self.encode_text(texts))


def open_clip_model(name: str, where: str, *, device: str = "cpu", dtype: str = "fp32", is_dense: bool = False) -> Clip:
    """Load clip:NAME or clip:FOLDER; raises ModelError with the remedy, also where `is_dense` and it has no such features."""
    import torch

    problems = check_clip(name, where)
    if problems:
        raise ModelError(problems)
    wanted = _wanted(name)
    number = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}[dtype]
    load = _load_transformers if _is_transformers(Path(wanted)) else _load_open_clip
    try:
        clip = load(wanted, device, number)
    except (OSError, RuntimeError, ValueError, TypeError, KeyError) as exc:
        reason = (str(exc).strip().splitlines() or [type(exc).__name__])[0]
        remedy = "go online once, or give clip:FOLDER with open_clip_config.json and a safetensors file"
        raise ModelError(Problem(where, f"{wanted} could not be loaded: {reason}", remedy)) from exc
    if is_dense and clip.dense is None:
        raise ModelError(_no_dense(name, where))
    return clip


def _load_open_clip(wanted: str, device: str, dtype: torch.dtype) -> Clip:
    import open_clip

    path, weights = wanted, None
    if Path(wanted).is_dir():
        path = f"local-dir:{wanted}"
    elif not wanted.startswith("hf-hub:"):
        path, weights = wanted.split("/", 1)
    model = open_clip.create_model(path, pretrained=weights).to(device, dtype).eval()
    size, config = model.visual.image_size, model.visual.preprocess_cfg

    def encode_text(texts: Sequence[str]) -> torch.Tensor:
        try:
            tokenizer = open_clip.get_tokenizer(path)  # curate never reads texts, and some tokenizers are downloads
        except (OSError, ValueError, ImportError) as exc:
            text = f"its tokenizer could not be loaded: {(str(exc).splitlines() or [type(exc).__name__])[0]}"
            raise ModelError(Problem(wanted, text, "go online once, or save the tokenizer beside the model")) from exc
        return model.encode_text(tokenizer(list(texts)).to(device))

    return Clip(
        size_px=int(size[0] if isinstance(size, tuple | list) else size),
        scale=float(model.logit_scale.detach().exp()),
        device=device,
        dtype=dtype,
        mean=tuple(config["mean"]),
        std=tuple(config["std"]),
        encode_image=model.encode_image,
        encode_maps=lambda images: model.visual.forward_intermediates(images, intermediates_only=True)[
            "image_intermediates"
        ],
        encode_text=encode_text,
        dense=of_open_clip(model.visual),
    )


def _load_transformers(wanted: str, device: str, dtype: torch.dtype) -> Clip:
    import transformers

    kind = getattr(transformers, TRANSFORMERS[_model_type(Path(wanted, "config.json"))])
    model = kind.from_pretrained(wanted, use_safetensors=True, local_files_only=True).to(device, dtype).eval()
    tokenizer = transformers.CLIPTokenizer.from_pretrained(wanted, local_files_only=True)
    path = Path(wanted, "preprocessor_config.json")
    config = json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}

    def encode_text(texts: Sequence[str]) -> torch.Tensor:
        most = model.config.text_config.max_position_embeddings
        tokens = tokenizer(list(texts), padding=True, truncation=True, max_length=most, return_tensors="pt").to(device)
        return model.text_projection(model.text_model(**tokens).pooler_output)

    def encode_maps(images: torch.Tensor) -> list[torch.Tensor]:
        return [_as_map(layer) for layer in model.vision_model(images, output_hidden_states=True).hidden_states]

    return Clip(
        size_px=int(model.config.vision_config.image_size),
        scale=float(model.logit_scale.detach().exp()),
        device=device,
        dtype=dtype,
        mean=tuple(config.get("image_mean", _MEAN)),
        std=tuple(config.get("image_std", _STD)),
        encode_image=lambda images: model.visual_projection(model.vision_model(images).pooler_output.flatten(1)),
        encode_maps=encode_maps,
        encode_text=encode_text,
        dense=of_transformers(model),
    )


def _wanted(name: str) -> str:
    """The name without clip:, or the folder of the package's own pair."""
    wanted = name.removeprefix(CLIP)
    return str(OWN.get(wanted, wanted))


def _as_map(layer: torch.Tensor) -> torch.Tensor:
    """[N, C, h, w] of a layer's maps, or of its tokens [N, 1 + h * w, C], the first of which stands for the whole image."""
    return layer if layer.ndim == 4 else layer[:, 1:].transpose(1, 2).unsqueeze(-1)


def _unit(features: torch.Tensor) -> torch.Tensor:
    from torch.nn.functional import normalize

    return normalize(features.float(), dim=-1)


def _is_transformers(folder: Path) -> bool:
    return (folder / "config.json").is_file() and not (folder / "open_clip_config.json").is_file()


def _folder_problems(folder: Path) -> list[Problem]:
    problems = []
    if _is_transformers(folder):
        kind = _model_type(folder / "config.json")
        if kind not in TRANSFORMERS:
            problems.append(Problem(str(folder), f"holds a transformers model of type {kind!r}", "give a CLIPModel's"))
        elif not ((folder / "tokenizer.json").is_file() or (folder / "vocab.json").is_file()):
            problems.append(Problem(str(folder), "has no tokenizer.json", "save it with CLIPTokenizer.save_pretrained"))
    elif not (folder / "open_clip_config.json").is_file():
        remedy = "save it with open_clip.push_to_hf_hub's save_for_hf, or give a transformers CLIPModel's folder"
        problems.append(Problem(str(folder), "has no open_clip_config.json", remedy))
    if not sorted(folder.glob("*.safetensors")):
        problems.append(Problem(str(folder), "has no .safetensors file, the only weight format read here"))
    return problems


def _model_type(config: Path) -> str:
    try:
        return str(json.loads(config.read_text(encoding="utf-8")).get("model_type"))
    except (OSError, ValueError, AttributeError):
        return "unreadable"


def _open_clip(where: str) -> Any:
    try:
        import open_clip
    except ImportError as exc:
        raise MissingExtra.of("open_clip_torch", "clip", where) from exc
    return open_clip
