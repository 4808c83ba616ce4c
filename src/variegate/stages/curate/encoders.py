"""Turn images into feature vectors: the drawing model's own activations, or an image-text model."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any, Protocol

import numpy as np

from variegate.errors import ModelError, Problem
from variegate.image_text import CLIP, check_clip, open_clip_model
from variegate.recipe import Recipe

CLASSIFIER = "classifier"
_WHERE = "curate.encoder"


class Encoder(Protocol):
    """`size_px` is the edge of the square images that `features` takes."""

    @property
    def size_px(self) -> int: ...

    def features(self, pixels: np.ndarray) -> np.ndarray:
        """uint8 [N, size_px, size_px, 3] to float32 [N, D]."""
        ...


def check_encoder(name: str) -> list[Problem]:
    """What is wrong with an encoder's name, before anything is loaded; raises MissingExtra without open_clip."""
    if name in ("auto", CLASSIFIER):
        return []
    if not name.startswith(CLIP) or name == CLIP:
        return [Problem(_WHERE, f"unknown encoder {name!r}", "use auto, classifier, clip:NAME/WEIGHTS or clip:FOLDER")]
    return check_clip(name, _WHERE)


@contextmanager
def open_encoder(name: str, recipe: Recipe) -> Iterator[Encoder]:
    """Load the encoder a recipe names and free it afterwards; raises ModelError with the remedy."""
    problems = check_encoder(name)
    if problems:
        raise ModelError(problems)
    if name != "auto":
        yield open_clip_model(name, _WHERE)
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
