"""Finding a model and knowing it before it is loaded: a diffusers folder, checked file by file without torch.

`model_problems` names everything that is wrong with a folder at once. Only safetensors are loaded, never pickles.
"""

from __future__ import annotations

import difflib
import hashlib
import json
import re
import struct
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from variegate.errors import ModelError, Problem, first_of

STARTER = Path(__file__).parent / "starter"
OWN = {"starter": STARTER, "starter-onestep": STARTER.with_name("starter-onestep")}  # models inside the package
FAMILIES = {
    "StableDiffusionPipeline": "sd",
    "StableDiffusionImg2ImgPipeline": "sd",
    "StableDiffusionInpaintPipeline": "sd",
    "StableDiffusionInstructPix2PixPipeline": "sd",
    "StableDiffusionXLPipeline": "sdxl",
    "StableDiffusionXLImg2ImgPipeline": "sdxl",
    "StableDiffusionXLInpaintPipeline": "sdxl",
    "StableDiffusionXLInstructPix2PixPipeline": "sdxl",
}
PIPELINES = {"sd": "StableDiffusionPipeline", "sdxl": "StableDiffusionXLPipeline"}  # load the parts and encode text
Kind = Literal["text-to-image", "edit", "inpaint"]
PARTS, SECOND = ("scheduler", "text_encoder", "tokenizer", "unet", "vae"), ("text_encoder_2", "tokenizer_2")
UNUSED = {"safety_checker", "feature_extractor", "image_encoder"}  # listed by many models, never loaded here
PICKLES = (".bin", ".ckpt", ".pt", ".pth")
UNFINISHED = (".incomplete", ".part", ".tmp", ".aria2", ".crdownload")
HUB_ID = re.compile(r"^[\w.-]+/[\w.-]+$")
DISTILLED = {  # noise levels of published distilled models, by their names
    r"sd(xl)?[-_]turbo": (0.25, 0.5, 0.75, 1.0),  # adversarial diffusion distillation (arXiv 2311.17042)
    r"swiftbrush": (1.0,),  # pure noise only (arXiv 2312.05239)
}
WHOLE_FILE_BYTES = 64 * 2**20  # up to this size a weight file is hashed whole
SAMPLED_BLOCKS, BLOCK_BYTES = 256, 4096
SHOWN_KEYS = 20


@dataclass(frozen=True, slots=True)
class ModelFacts:
    """What planning must know of a model."""

    pipeline: str
    family: str  # sd, sdxl
    kind: Kind  # what its U-Net takes beside noisy latents: nothing, an image (InstructPix2Pix), a mask and the rest
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


def find_unet(name: str) -> Path:
    """A U-Net that stands in for a model's own: a diffusers U-Net folder, or one safetensors file of its weights.

    Raises ModelError with the remedy.
    """
    path, where = Path(name).expanduser(), "backend.unet"
    if path.is_file() and path.suffix == ".safetensors":
        return path.resolve()
    if path.is_file() and path.suffix in PICKLES:
        text = f"{name} is a pickle, which can run code when loaded"
        raise ModelError(Problem(where, text, f"convert it safely: variegate import {name} --out FOLDER"))
    if (path / "config.json").is_file():
        return path.resolve()
    if (path / "unet" / "config.json").is_file():
        raise ModelError(Problem(where, f"{name} is a whole model", f"did you mean {path / 'unet'}?"))
    text = f"{name} is neither a U-Net folder (config.json and safetensors) nor a .safetensors file"
    raise ModelError(Problem(where, text, "name one, or leave backend.unet out"))


def unet_problems(folder: Path, unet: Path) -> list[Problem]:
    """Why a U-Net cannot stand in for the one of a model; names and shapes only, from the files' headers.

    A folder has to hold every weight of the model's own U-Net in its shape, but for the input channels that its own
    config.json names. A single file may hold some of them (concept erasure trains the cross-attention alone); the
    model keeps the others.
    """
    where = f"backend.unet: {unet}"
    if unet.is_dir():
        problems = _check_weights(unet, "get the U-Net again")
    else:
        reason = _broken_safetensors(unet)
        problems = [Problem(where, reason, "get the file again")] if reason else []
    if problems:
        return problems
    own, found = weight_shapes(folder / "unet"), weight_shapes(unet)
    if unet.is_dir() and len(own.get("conv_in.weight", ())) == 4:
        own["conv_in.weight"][1] = _load(unet / "config.json").get("in_channels", 4)
    return shape_problems(where, found, own, whole=unet.is_dir())


def shape_problems(
    where: str, found: Mapping[str, list[int]], own: Mapping[str, list[int]], *, whole: bool = False
) -> list[Problem]:
    """Weights (name -> shape) that the model's U-Net has not, or in another shape; with `whole` also those missing."""
    unknown = sorted(set(found) - set(own))
    missing = sorted(set(own) - set(found)) if whole or not found else []
    both = sorted(set(own) & set(found))
    wrong = [f"{name} {found[name]} against {own[name]}" for name in both if found[name] != own[name]]
    texts = {"keys that the model's U-Net has not": unknown, "keys missing": missing, "shapes that differ": wrong}
    remedy = "use a U-Net of the same architecture, or the model it was made for"
    return [
        Problem(where, f"{len(names):,} {text}: {first_of(names, SHOWN_KEYS)}", remedy)
        for text, names in texts.items()
        if names
    ]


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


def read_model(folder: Path, own_unet: Path | None = None) -> ModelFacts:
    """Facts of a model from its configuration files, drawn with another U-Net where one is given.

    Raises ModelError with all of `model_problems` and `unet_problems`.
    """
    problems = model_problems(folder) or (unet_problems(folder, own_unet) if own_unet else [])
    if problems:
        raise ModelError(problems)
    index, unet, vae = (_load(folder / part) for part in ("model_index.json", "unet/config.json", "vae/config.json"))
    if own_unet and own_unet.is_dir():
        unet |= _load(own_unet / "config.json")
    problems = _check_input(own_unet or folder, unet, vae)
    if problems:
        raise ModelError(problems)
    family = FAMILIES[index["_class_name"]]
    downscale = 2 ** (len(vae["block_out_channels"]) - 1)
    scheduler = _load(folder / "scheduler/scheduler_config.json")
    sample_size = unet["sample_size"]
    files = [path for component in sorted(_components(index)) for path in _weights(folder / component)]
    return ModelFacts(
        pipeline=PIPELINES[family],
        family=family,
        kind=_kind(unet, vae) or "text-to-image",
        latent_channels=vae["latent_channels"],
        downscale=downscale,
        unet_multiple=2 ** (len(unet["block_out_channels"]) - 1),
        size_px=(sample_size if isinstance(sample_size, int) else max(sample_size)) * downscale,
        width=unet["block_out_channels"][0],
        weight_bytes=sum(path.stat().st_size for path in files),
        levels=_levels(folder, index, own_unet),
        variant="fp16" if any(".fp16." in path.name for path in files) else None,
        scheduler=scheduler.get("_class_name", ""),
        skips_prk=bool(scheduler.get("skip_prk_steps")),
    )


def model_fingerprint(folder: Path, own_unet: Path | None = None) -> str:
    """Hash of what the model is: configuration, vocabulary and weights, and the U-Net given instead of its own.

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
    if own_unet:
        files = [own_unet / "config.json", *_weights(own_unet)] if own_unet.is_dir() else [own_unet]
        for path in files:
            digest.update(b"another U-Net" + _file_digest(path))
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


def weight_shapes(component: Path) -> dict[str, list[int]]:
    """name -> shape of all tensors in a component's safetensors files (or in one file), read from their headers alone."""
    shapes: dict[str, list[int]] = {}
    for path in _weights(component) if component.is_dir() else [component]:
        with path.open("rb") as file:
            length = struct.unpack("<Q", file.read(8))[0]
            header = json.loads(file.read(length))
        shapes |= {name: value["shape"] for name, value in header.items() if name != "__metadata__"}
    return shapes


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
    """Models that need an input we do not give."""
    problems = _check_input(folder, _load(folder / "unet/config.json"), _load(folder / "vae/config.json"))
    if index.get("requires_aesthetics_score"):
        problems.append(Problem(str(folder), "is a refiner, which only finishes images", "use its base model"))
    if index.get("is_cosxl_edit"):
        text = "is CosXL's editing model, whose noise levels (EDM) no scheduler here knows"
        problems.append(Problem(str(folder), text, "use an editing model of InstructPix2Pix's own kind"))
    scheduler = _load(folder / "scheduler/scheduler_config.json").get("_class_name", "")
    if scheduler.startswith("EDM"):
        text = f"was trained with EDM's noise levels ({scheduler}), which no scheduler here knows"
        problems.append(Problem(str(folder), text, "use a model trained with DDPM's noise levels, such as SDXL's base"))
    return problems


def _kind(unet: dict[str, Any], vae: dict[str, Any]) -> Kind | None:
    """What a U-Net's input channels say: latents alone, with an image's latents, with a mask and the masked image's."""
    latent = vae.get("latent_channels", 4)
    kinds: dict[int, Kind] = {latent: "text-to-image", 2 * latent: "edit", 2 * latent + 1: "inpaint"}
    return kinds.get(unet.get("in_channels", 4))


def _check_input(where: Path, unet: dict[str, Any], vae: dict[str, Any]) -> list[Problem]:
    problems = []
    if _kind(unet, vae) is None:
        text = f"its U-Net takes {unet.get('in_channels', 4)} channels and its latents have {vae.get('latent_channels', 4)}"
        remedy = "use a text-to-image, InstructPix2Pix or inpainting model"
        problems.append(Problem(str(where), text, remedy))
    if unet.get("time_cond_proj_dim"):
        text = "its U-Net takes the guidance scale as an input (a latent consistency model)"
        problems.append(
            Problem(str(where), text, "this kind is not supported yet; use the model it was distilled from")
        )
    return problems


def _levels(folder: Path, index: dict[str, Any], unet: Path | None) -> tuple[float, ...] | None:
    """Noise levels of a distilled model: its own note `_noise_levels`, or the published ones of models known by name.

    A U-Net given instead of the model's own comes first; where it says nothing the model's levels hold (an erased turbo).
    """
    if unet:
        config = _load(unet / "config.json") if unet.is_dir() else {}
        levels = _told_levels(config, f"{unet.name} {unet.parent.name} {config.get('_name_or_path', '')}")
        if levels:
            return levels
    return _told_levels(index, f"{folder.name} {folder.parent.parent.name} {index.get('_name_or_path', '')}")


def _told_levels(config: dict[str, Any], names: str) -> tuple[float, ...] | None:
    if "_noise_levels" in config:
        return tuple(sorted(float(level) for level in config["_noise_levels"]))
    return next((levels for known, levels in DISTILLED.items() if re.search(known, names.lower())), None)


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
