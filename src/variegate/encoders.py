"""Turn images into feature vectors: the drawing model's own activations, an image-text model, or any timm model.

Names: `auto` (the model that draws), clip:starter, clip:NAME/WEIGHTS, clip:FOLDER (image_text.py), timm:NAME, timm:FOLDER.
classifier:PATH, a trained classifier's opinion, is for class agreement alone: its model.safetensors, or the folder of one.
A timm folder holds config.json and model.safetensors, as timm's save_for_hf writes them; DINO is timm:vit_small_patch14_dinov2.lvd142m.
"""

from __future__ import annotations

import difflib
import json
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol, TypeVar

import numpy as np

from variegate.errors import ModelError, Problem
from variegate.files import about_weights, file_sha256
from variegate.image_text import CLIP, check_clip, clip_fingerprint, open_clip_model
from variegate.recipe import Recipe

if TYPE_CHECKING:
    import torch

T = TypeVar("T")
AUTO, CLASSIFIER, TRAINED, TIMM = "auto", "classifier", "classifier:", "timm:"
_WHERE = "curate.encoder"
_TIMM_FILES = ("config.json", "model.safetensors")
_BATCH = 32


class Encoder(Protocol):
    """`size_px` is the edge of the square images that `features` takes."""

    @property
    def size_px(self) -> int: ...

    def features(self, pixels: np.ndarray) -> np.ndarray:
        """uint8 [N, size_px, size_px, 3] to float32 [N, D]."""
        ...


class DeepEncoder(Encoder, Protocol):
    """One that also tells what its layers see where."""

    def maps(self, pixels: np.ndarray) -> list[np.ndarray]:
        """uint8 [N, size_px, size_px, 3] to float32 [N, C, h, w] of each layer, the first ones first."""
        ...


def check_encoder(name: str, where: str = _WHERE) -> list[Problem]:
    """What is wrong with an encoder's name, before anything is loaded; raises MissingExtra without open_clip."""
    if name in (AUTO, CLASSIFIER):
        return []
    if name.startswith(TRAINED) and name != TRAINED:
        return [] if trained_classes(name) else [_not_trained(name, where)]
    if name.startswith(TIMM) and name != TIMM:
        return _timm_problems(name.removeprefix(TIMM), where)
    if not name.startswith(CLIP) or name == CLIP:
        known = f"auto, classifier, {TRAINED}PATH, {CLIP}NAME/WEIGHTS, {CLIP}FOLDER, {TIMM}NAME or {TIMM}FOLDER"
        return [Problem(where, f"unknown encoder {name!r}", f"use {known}")]
    return check_clip(name, where)


def encoder_fingerprint(name: str) -> list[str]:
    """What tells one named encoder from another: the name, and the hashes of a folder's files."""
    if name.startswith(TRAINED):
        return [name, file_sha256(trained_file(name))]
    folder = Path(name.removeprefix(TIMM))
    if name.startswith(TIMM) and folder.is_dir():
        return [name, *(f"{file} {file_sha256(folder / file)}" for file in _TIMM_FILES)]
    return clip_fingerprint(name) if name.startswith(CLIP) else [name]


def trained_file(name: str) -> Path:
    """The model.safetensors behind classifier:PATH."""
    path = Path(name.removeprefix(TRAINED))
    return path / "model.safetensors" if path.is_dir() else path


def trained_classes(name: str) -> list[str]:
    """The classes that classifier:PATH tells apart; none where the file is no classifier of variegate's."""
    return list(map(str, about_weights(trained_file(name)).get("classes", [])))


def _not_trained(name: str, where: str) -> Problem:
    remedy = "name a model.safetensors of a run's train folder, or what variegate import made of a filter"
    return Problem(where, f"{trained_file(name)} is no classifier written by variegate", remedy)


@contextmanager
def open_encoder(name: str, recipe: Recipe, where: str = _WHERE) -> Iterator[DeepEncoder]:
    """Load an encoder and free it afterwards; raises ModelError with the remedy. A NAME that timm has not cached is fetched."""
    problems = check_encoder(name, where)
    if problems:
        raise ModelError(problems)
    if name.startswith(TIMM):
        yield _timm_model(name.removeprefix(TIMM), where)
        return
    if name != AUTO:
        yield open_clip_model(name, where)
        return
    from variegate.backends.base import resolve_backend
    from variegate.backends.diffusion import DiffusionBackend

    with DiffusionBackend.open(resolve_backend(recipe.backend)) as backend:
        yield _Drawer(backend)


class _Drawer:
    """Diffusion features of the model that drew the images."""

    def __init__(self, backend: Any) -> None:
        self._backend, self.size_px = backend, backend.spec.size_px

    def features(self, pixels: np.ndarray) -> np.ndarray:
        return self._backend.features(pixels)

    def maps(self, pixels: np.ndarray) -> list[np.ndarray]:
        return self._backend.maps(pixels)


class _Timm:
    """A timm model without its last layer."""

    def __init__(self, net: torch.nn.Module) -> None:
        config: dict[str, Any] = net.pretrained_cfg  # type: ignore[assignment]  # timm's, unknown to torch
        self._net, self.size_px = net.eval(), int(config["input_size"][-1])
        self._mean, self._std = tuple(config["mean"]), tuple(config["std"])

    def features(self, pixels: np.ndarray) -> np.ndarray:
        return np.concatenate(self._seen(pixels, lambda images: self._net(images).flatten(1).numpy()))

    def maps(self, pixels: np.ndarray) -> list[np.ndarray]:
        def look(images: torch.Tensor) -> list[np.ndarray]:
            found = self._net.forward_intermediates(images, intermediates_only=True)  # type: ignore[operator]  # timm's
            return [layer.numpy() for layer in found]

        return [np.concatenate(layer) for layer in zip(*self._seen(pixels, look), strict=True)]

    def _seen(self, pixels: np.ndarray, look: Callable[[torch.Tensor], T]) -> list[T]:
        """What `look` gives for each batch of scaled images."""
        import torch

        found = []
        with torch.inference_mode():
            mean, std = (torch.tensor(values).view(1, 3, 1, 1) for values in (self._mean, self._std))
            for first in range(0, len(pixels), _BATCH):
                part = np.ascontiguousarray(pixels[first : first + _BATCH].transpose(0, 3, 1, 2))
                found.append(look((torch.from_numpy(part).float() / 255.0 - mean) / std))
        return found


def _timm_problems(wanted: str, where: str) -> list[Problem]:
    folder = Path(wanted)
    if folder.is_dir():
        lacking = [name for name in _TIMM_FILES if not (folder / name).is_file()]
        return [Problem(str(folder), f"has no {name}", "save it with timm's save_for_hf") for name in lacking]
    import timm

    if timm.is_model(wanted) and timm.get_pretrained_cfg(wanted) is not None:
        return []
    near = difflib.get_close_matches(wanted, [*timm.list_models(), *timm.list_pretrained()], n=1)
    hint = f"did you mean {TIMM}{near[0]}?" if near else "timm.list_pretrained() shows names; a local folder works too"
    return [Problem(where, f"no folder and no pretrained timm model is called {wanted!r}", hint)]


def _timm_model(wanted: str, where: str) -> _Timm:
    import timm

    folder = Path(wanted)
    name = f"local-dir:{folder}" if folder.is_dir() else wanted
    try:
        if folder.is_dir():
            json.loads((folder / "config.json").read_text(encoding="utf-8"))
        return _Timm(timm.create_model(name, pretrained=True, num_classes=0))
    except (OSError, RuntimeError, ValueError, TypeError, KeyError, AssertionError) as exc:
        reason = (str(exc).strip().splitlines() or [type(exc).__name__])[0]
        remedy = f"go online once, or give {TIMM}FOLDER with {' and '.join(_TIMM_FILES)}"
        raise ModelError(Problem(where, f"{wanted} could not be loaded: {reason}", remedy)) from exc


class Reader:
    """What an image-text model says of an image, as logits [N, K]: one for each class's text, or for and against it.

    With `against` the model is asked of each class whether its own text or the other one fits better (Diff-Mix's pair of prompts,
    arXiv 2403.19600), and the logit is the difference.
    """

    def __init__(self, name: str, texts: Sequence[str], against: Sequence[str] | None) -> None:
        self._clip = open_clip_model(name, _WHERE)
        self.size_px, self.is_pair = self._clip.size_px, against is not None
        self._texts = self._clip.text_features(texts).cpu().numpy()
        self._against = self._clip.text_features(against).cpu().numpy() if against is not None else 0.0

    def features(self, pixels: np.ndarray) -> np.ndarray:
        return self._clip.scale * (self._clip.features(pixels) @ (self._texts - self._against).T)
