"""Turn images into feature vectors: the drawing model's own activations, or an image-text model through open_clip."""

from __future__ import annotations

import difflib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from variegate.errors import MissingExtra, ModelError, Problem
from variegate.recipe import Recipe

CLIP, CLASSIFIER = "clip:", "classifier"
_WHERE = "curate.encoder"
_BATCH = 32


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
    open_clip = _open_clip()
    wanted = name.removeprefix(CLIP)
    if Path(wanted).is_dir():
        return _folder_problems(Path(wanted))
    known = ["/".join(pair) for pair in open_clip.list_pretrained()]
    if wanted in known or wanted.startswith("hf-hub:"):
        return []
    near = difflib.get_close_matches(wanted, known, n=1)
    hint = (
        f"did you mean clip:{near[0]}?" if near else "open_clip.list_pretrained() shows names; a local folder works too"
    )
    return [Problem(_WHERE, f"no folder and no open_clip model is called {wanted!r}", hint)]


@contextmanager
def open_encoder(name: str, recipe: Recipe) -> Iterator[Encoder]:
    """Load the encoder a recipe names and free it afterwards; raises ModelError with the remedy."""
    problems = check_encoder(name)
    if problems:
        raise ModelError(problems)
    if name != "auto":
        yield _Clip(name.removeprefix(CLIP))
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


class _Clip:
    """The image tower of a CLIP-like model; rows have length 1."""

    def __init__(self, name: str) -> None:
        open_clip = _open_clip()
        try:
            if Path(name).is_dir():
                model = open_clip.create_model(f"local-dir:{name}")
            elif name.startswith("hf-hub:"):
                model = open_clip.create_model(name)
            else:
                architecture, weights = name.split("/", 1)
                model = open_clip.create_model(architecture, pretrained=weights)
        except (OSError, RuntimeError, ValueError, TypeError, KeyError) as exc:
            reason = (str(exc).strip().splitlines() or [type(exc).__name__])[0]
            remedy = "go online once, or give clip:FOLDER with open_clip_config.json and a safetensors file"
            raise ModelError(Problem(_WHERE, f"{name} could not be loaded: {reason}", remedy)) from exc
        self._model = model.eval()
        size = model.visual.image_size
        self.size_px = int(size[0] if isinstance(size, tuple | list) else size)
        config = model.visual.preprocess_cfg
        self._mean, self._std = (np.array(config[key], np.float32) for key in ("mean", "std"))

    def features(self, pixels: np.ndarray) -> np.ndarray:
        import torch

        found = []
        with torch.inference_mode():
            for start in range(0, len(pixels), _BATCH):
                scaled = (pixels[start : start + _BATCH].astype(np.float32) / 255.0 - self._mean) / self._std
                batch = torch.from_numpy(np.ascontiguousarray(scaled.transpose(0, 3, 1, 2)))
                found.append(self._model.encode_image(batch, normalize=True).float().numpy())
        return np.concatenate(found)


def _folder_problems(folder: Path) -> list[Problem]:
    problems = []
    if not (folder / "open_clip_config.json").is_file():
        problems.append(
            Problem(str(folder), "has no open_clip_config.json", "save it with open_clip.push_to_hf_hub's save_for_hf")
        )
    if not sorted(folder.glob("*.safetensors")):
        problems.append(Problem(str(folder), "has no .safetensors file, the only weight format read here"))
    return problems


def _open_clip() -> Any:
    try:
        import open_clip
    except ImportError as exc:
        raise MissingExtra.of("open_clip_torch", "clip", _WHERE) from exc
    return open_clip
