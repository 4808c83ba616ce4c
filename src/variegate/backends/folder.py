"""Finding a model and knowing it before it is loaded: a diffusers folder, checked file by file without torch.

`model_problems` names everything that is wrong with a folder at once. Only safetensors are loaded, never pickles.
"""

from __future__ import annotations

import difflib
import hashlib
import json
import re
import struct
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from variegate.errors import ModelError, Problem

STARTER = Path(__file__).parent / "starter"
OWN = {"starter": STARTER, "starter-onestep": STARTER.with_name("starter-onestep")}  # models inside the package
FAMILIES = {
    "StableDiffusionPipeline": "sd",
    "StableDiffusionImg2ImgPipeline": "sd",
    "StableDiffusionXLPipeline": "sdxl",
    "StableDiffusionXLImg2ImgPipeline": "sdxl",
}
PARTS, SECOND = ("scheduler", "text_encoder", "tokenizer", "unet", "vae"), ("text_encoder_2", "tokenizer_2")
UNUSED = {"safety_checker", "feature_extractor", "image_encoder"}  # listed by many models, never loaded here
PICKLES = (".bin", ".ckpt", ".pt", ".pth")
UNFINISHED = (".incomplete", ".part", ".tmp", ".aria2", ".crdownload")
HUB_ID = re.compile(r"^[\w.-]+/[\w.-]+$")
TURBO_LEVELS = (0.25, 0.5, 0.75, 1.0)  # adversarial diffusion distillation trains these (arXiv 2311.17042)
WHOLE_FILE_BYTES = 64 * 2**20  # up to this size a weight file is hashed whole
SAMPLED_BLOCKS, BLOCK_BYTES = 256, 4096


@dataclass(frozen=True, slots=True)
class ModelFacts:
    """What planning must know of a model."""

    pipeline: str
    family: str  # sd, sdxl
    latent_channels: int
    downscale: int  # image px per latent px
    unet_multiple: int  # latent sizes must divide by it
    size_px: int  # the model's own
    width: int  # channels of the U-Net's first level
    weight_bytes: int
    levels: tuple[float, ...] | None  # noise levels of a distilled model, as strengths; None = all
    variant: str | None  # file name infix when only fp16 weights are there
    scheduler: str  # class name of the model's own
    skips_prk: bool  # whether a PNDM made from its configuration leaves the Runge-Kutta steps out, as SD 1.x does


def find_model(name: str, revision: str | None = None) -> Path:
    """The folder of a model of the package (`OWN`), a local folder, or a hub model (fetched because the recipe names it).

    Raises ModelError with the nearest name or the remedy.
    """
    path = OWN.get(name) or Path(name).expanduser()
    if path.is_dir():
        return path.resolve()
    if path.is_file():
        text = "is a single file, and a diffusers folder is needed"
        remedy = "convert it once: StableDiffusionPipeline.from_single_file(FILE).save_pretrained(FOLDER)"
        raise ModelError(Problem(name, text, remedy))
    if name in OWN:
        raise ModelError(
            Problem(name, f"its weights are missing ({path})", "reinstall variegate; the package contains them")
        )
    if HUB_ID.match(name) and not path.parent.is_dir():
        return _fetch(name, revision)
    siblings = sorted(entry.name for entry in path.parent.iterdir() if entry.is_dir()) if path.parent.is_dir() else []
    near = difflib.get_close_matches(path.name, [*siblings, *OWN], n=1)
    hint = (
        f"did you mean {near[0] if near[0] in OWN else path.parent / near[0]}?"
        if near
        else f"name {', '.join(OWN)}, a folder, or a hub id like org/name"
    )
    raise ModelError(Problem(name, "no such model folder", hint))


def _fetch(name: str, revision: str | None) -> Path:
    """The hub's snapshot of a model, from the cache when it is complete there."""
    from diffusers import DiffusionPipeline
    from huggingface_hub.errors import HfHubHTTPError, RepositoryNotFoundError, RevisionNotFoundError

    what = f"{name}@{revision}" if revision else name
    try:
        return Path(DiffusionPipeline.download(name, revision=revision, use_safetensors=True, safety_checker=None))
    except (RepositoryNotFoundError, RevisionNotFoundError) as exc:
        text = "the hub has no such model or revision, or it is gated and you are not logged in"
        raise ModelError(Problem(what, text, "check the name; for gated models run: hf auth login")) from exc
    except (HfHubHTTPError, OSError, ValueError) as exc:
        reason = str(exc).strip().splitlines()[0] if str(exc).strip() else type(exc).__name__
        remedy = "check the connection and the name, or download it elsewhere and name the folder"
        raise ModelError(
            Problem(what, f"cannot be fetched from the hub ({type(exc).__name__}: {reason})", remedy)
        ) from exc


def model_problems(folder: Path) -> list[Problem]:
    """Everything that keeps a diffusers folder from being loaded; empty when it is whole."""
    index, problems = _read_json(folder / "model_index.json")
    if index is None:
        if any(path.suffix in {".safetensors", *PICKLES} for path in folder.iterdir()):
            remedy = "a diffusers folder has model_index.json; name its top folder, or convert a single-file model"
        else:
            remedy = "name the folder that holds model_index.json"
        return [Problem(str(folder), problems[0] if problems else "has no model_index.json", remedy)]
    name = index.get("_class_name")
    if name not in FAMILIES:
        return [Problem(str(folder), f"pipeline {name} is not supported", f"supported: {', '.join(sorted(FAMILIES))}")]
    found = [
        Problem(str(path), "is unfinished: the download was cut off", "download the model again")
        for path in _unfinished(folder)
    ]
    for component in sorted(_components(index)):
        found += _check_component(folder, component)
    if not index.get("requires_aesthetics_score"):  # a refiner, which _check_shape names
        parts = (*PARTS, *(SECOND if FAMILIES[name] == "sdxl" else ()))
        absent = [part for part in parts if part not in set(_components(index))]
        remedy = "use a whole text-to-image model"
        found += [Problem(str(folder), f"its model_index.json names no {part}", remedy) for part in absent]
    return found or _check_shape(folder, index)


def read_model(folder: Path) -> ModelFacts:
    """Facts of a model from its configuration files; raises ModelError with all of `model_problems`."""
    problems = model_problems(folder)
    if problems:
        raise ModelError(problems)
    index, unet, vae = (_load(folder / part) for part in ("model_index.json", "unet/config.json", "vae/config.json"))
    downscale = 2 ** (len(vae["block_out_channels"]) - 1)
    scheduler = _load(folder / "scheduler/scheduler_config.json")
    sample_size = unet["sample_size"]
    files = [path for component in sorted(_components(index)) for path in _weights(folder / component)]
    return ModelFacts(
        pipeline=index["_class_name"],
        family=FAMILIES[index["_class_name"]],
        latent_channels=vae["latent_channels"],
        downscale=downscale,
        unet_multiple=2 ** (len(unet["block_out_channels"]) - 1),
        size_px=(sample_size if isinstance(sample_size, int) else max(sample_size)) * downscale,
        width=unet["block_out_channels"][0],
        weight_bytes=sum(path.stat().st_size for path in files),
        levels=_levels(folder, index),
        variant="fp16" if any(".fp16." in path.name for path in files) else None,
        scheduler=scheduler.get("_class_name", ""),
        skips_prk=bool(scheduler.get("skip_prk_steps")),
    )


def model_fingerprint(folder: Path) -> str:
    """Hash of what the model is: configuration, vocabulary and weights.

    Weight files over 64 MB are hashed by size, header and 256 blocks spread over them, which tells fine-tunes of one
    model apart without reading gigabytes.
    """
    index = _load(folder / "model_index.json")
    digest = hashlib.blake2b(digest_size=16)
    for component in sorted(_components(index)):
        weights = set(_weights(folder / component))
        small = [path for path in (folder / component).iterdir() if path.suffix in {".json", ".txt", ".model"}]
        for path in sorted({*small, *weights}):
            digest.update(f"{component}/{path.name}".encode())
            digest.update(_file_digest(path))
    return digest.hexdigest()


# ------------------------------------------------------------------------------------------ parts


def _components(index: dict[str, Any]) -> Iterator[str]:
    """Folders that model_index.json names and that are loaded."""
    for name, value in index.items():
        if not name.startswith("_") and isinstance(value, list) and value[0] is not None and name not in UNUSED:
            yield name


def _weights(component: Path) -> list[Path]:
    """The safetensors files diffusers would load: the plain ones, or the fp16 ones where there are no others."""
    files = sorted(component.glob("*.safetensors"))
    plain = [path for path in files if path.name.count(".") == 1]
    return plain or [path for path in files if ".fp16" in path.name]


def _unfinished(folder: Path) -> list[Path]:
    return sorted(path for path in folder.rglob("*") if path.name.endswith(UNFINISHED) and path.is_file())


def _check_component(folder: Path, name: str) -> list[Problem]:
    component, again = folder / name, "download the model again, or copy the missing part"
    if not component.is_dir():
        return [Problem(str(component), "model_index.json names this part and its folder is missing", again)]
    if name == "scheduler":
        _, problems = _read_json(component / "scheduler_config.json")
        return [Problem(str(component), text, again) for text in problems]
    if name.startswith("tokenizer"):
        if not (component / "tokenizer.json").is_file() and not (component / "vocab.json").is_file():
            return [Problem(str(component), "has neither tokenizer.json nor vocab.json", again)]
        return []
    _, problems = _read_json(component / "config.json")
    if problems:
        return [Problem(str(component), text, again) for text in problems]
    return _check_weights(component, again)


def _check_weights(component: Path, again: str) -> list[Problem]:
    missing = []
    for index_file in sorted(component.glob("*.safetensors.index.json")):
        shards = sorted(set(_load(index_file).get("weight_map", {}).values()))
        missing += [Problem(str(component / shard), f"this shard is listed in {index_file.name} and missing", again)
                    for shard in shards if not (component / shard).is_file()]  # fmt: skip
    if missing:
        return missing
    files = _weights(component)
    if files:
        return [Problem(str(path), reason, again) for path in files if (reason := _broken_safetensors(path))]
    pickles = sorted(path.name for path in component.iterdir() if path.suffix in PICKLES)
    if pickles:
        text = f"has {pickles[0]}, a pickle, which can run code when loaded, and no safetensors"
        remedy = "get the model's safetensors, or convert it where you trust it: pipeline.save_pretrained(FOLDER)"
        return [Problem(str(component), text, remedy)]
    return [Problem(str(component), "has a config.json and no weights", again)]


def weight_names(component: Path) -> set[str]:
    """Names of all tensors in a component's safetensors files, read from their headers alone."""
    names: set[str] = set()
    for path in component.glob("*.safetensors"):
        with path.open("rb") as file:
            length = struct.unpack("<Q", file.read(8))[0]
            names |= set(json.loads(file.read(length))) - {"__metadata__"}
    return names


def _broken_safetensors(path: Path) -> str:
    """Why a weight file cannot be whole, judged by its header and size; empty when it can."""
    size = path.stat().st_size
    with path.open("rb") as file:
        head = file.read(64)
        if head.startswith(b"version https://git-lfs"):
            return "is a Git LFS pointer, not the weights (run: git lfs pull)"
        length = struct.unpack("<Q", head[:8])[0] if size >= 8 else size
        if length + 8 > size:
            return f"is cut off ({size:,} bytes)"
        file.seek(8)
        try:
            header = json.loads(file.read(length))
            end = max((value["data_offsets"][1] for name, value in header.items() if name != "__metadata__"), default=0)
        except (ValueError, KeyError, TypeError, IndexError):
            return "is no safetensors file"
    return "" if 8 + length + end == size else f"is cut off or damaged: {size:,} of {8 + length + end:,} bytes"


def _check_shape(folder: Path, index: dict[str, Any]) -> list[Problem]:
    """U-Nets that need an input we do not give."""
    unet, vae = _load(folder / "unet/config.json"), _load(folder / "vae/config.json")
    problems = []
    channels = unet.get("in_channels", 4)
    if channels != vae.get("latent_channels", 4):
        kind = {8: "an instruct-pix2pix model", 9: "an inpainting model"}.get(channels, "a model with another input")
        text = f"its U-Net takes {channels} channels and its latents have {vae.get('latent_channels', 4)}: {kind}"
        problems.append(Problem(str(folder), text, "use a text-to-image model; this kind is not supported yet"))
    if unet.get("time_cond_proj_dim"):
        text = "its U-Net takes the guidance scale as an input (a latent consistency model)"
        problems.append(
            Problem(str(folder), text, "this kind is not supported yet; use the model it was distilled from")
        )
    if index.get("requires_aesthetics_score"):
        problems.append(Problem(str(folder), "is a refiner, which only finishes images", "use its base model"))
    return problems


def _levels(folder: Path, index: dict[str, Any]) -> tuple[float, ...] | None:
    """Noise levels of a distilled model: its own note `_noise_levels`, or the published ones of the turbo models."""
    if "_noise_levels" in index:
        return tuple(sorted(float(level) for level in index["_noise_levels"]))
    names = f"{folder.name} {folder.parent.parent.name} {index.get('_name_or_path', '')}".lower()
    return TURBO_LEVELS if re.search(r"sd(xl)?[-_]turbo", names) else None


def _file_digest(path: Path) -> bytes:
    size = path.stat().st_size
    digest = hashlib.blake2b(str(size).encode(), digest_size=16)
    with path.open("rb") as file:
        if size <= WHOLE_FILE_BYTES:
            digest.update(file.read())
        else:
            length = struct.unpack("<Q", file.read(8))[0] if path.suffix == ".safetensors" else 0
            digest.update(file.read(min(length, WHOLE_FILE_BYTES)))
            for block in range(SAMPLED_BLOCKS):
                file.seek((size - BLOCK_BYTES) * block // (SAMPLED_BLOCKS - 1))
                digest.update(file.read(BLOCK_BYTES))
    return digest.digest()


def _load(path: Path) -> dict[str, Any]:
    return json.loads(path.read_text(encoding="utf-8"))


def _read_json(path: Path) -> tuple[dict[str, Any] | None, list[str]]:
    if not path.is_file():
        return None, [f"has no {path.name}"]
    try:
        value = _load(path)
    except ValueError as exc:
        return None, [f"{path.name} is not valid JSON ({exc})"]
    return (value, []) if isinstance(value, dict) else (None, [f"{path.name} is not an object"])
