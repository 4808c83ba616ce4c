"""The dataset card beside a run's synthetic images: synthetic/README.md in the Hugging Face format.

It says where the images come from, under which licences, how many there are, what was measured, and how to make them again.
Nothing in it names a folder of this machine. Nothing here imports torch.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import yaml

from variegate import __version__
from variegate.backends.folder import OWN
from variegate.citations import papers_of
from variegate.files import write_atomic
from variegate.recipe import Recipe
from variegate.records import SyntheticImage
from variegate.store import RunFolder, explained

CARD = "synthetic/README.md"
QUALITY = "quality.json"
UNKNOWN = "unknown"
SIZES = ((1_000, "n<1K"), (10_000, "1K<n<10K"), (100_000, "10K<n<100K"), (1_000_000, "100K<n<1M"), (None, "n>1M"))
SOURCES = {  # data of the package: what they are, and their licence
    "builtin:meadow": ("butterflies drawn by variegate", "apache-2.0"),
    "builtin:digits": (
        "handwritten digits of scikit-learn (UCI optical recognition of handwritten digits)",
        "cc-by-4.0",
    ),
}


def write_card(folder: RunFolder, recipe: Recipe) -> None:
    """Write synthetic/README.md for the images that are drawn now; nothing where there are none."""
    if folder.path("synthetic").is_dir():
        with explained(folder.root):
            write_atomic(folder.path(CARD), card(folder, recipe).encode())


def card(folder: RunFolder, recipe: Recipe) -> str:
    """The card's text."""
    every = folder.synthetic_images(kept_only=False)
    header = {
        "license": _licence(recipe, folder),
        "task_categories": ["image-classification"],
        "tags": ["synthetic", "diffusion", "variegate"],
        "size_categories": [next(name for limit, name in SIZES if limit is None or len(every) < limit)],
        "pretty_name": f"Synthetic images for {shown_data(recipe)}",
    }
    sections = [
        f"# {header['pretty_name']}",
        f"{len(every):,} images made by variegate {__version__} with a diffusion model from labelled real images, for training a "
        'classifier. `load_dataset("imagefolder", data_dir=...)` reads this folder.',
        _sources(folder, recipe),
        _method(recipe),
        _counts(folder, every),
        _scores(folder, [image for image in every if image.action == "keep"]),
        _limits(recipe, every),
        f"## Recipe\n\nvariegate makes these images again from the same data with this recipe, every key written out:\n\n"
        f"```yaml\n{_recipe_text(recipe)}```",
    ]
    return f"---\n{yaml.safe_dump(header, sort_keys=False, allow_unicode=True)}---\n" + "\n\n".join(sections) + "\n"


def shown_data(recipe: Recipe) -> str:
    """DATA by the last part of its name: a card is passed on, and folders are nobody else's business."""
    data = recipe.dataset.path
    if data.startswith(("builtin:", "hf:")) and not data.startswith(("hf:/", "hf:~", "hf:.")):
        return data
    return Path(data.removeprefix("hf:")).name or UNKNOWN


# ------------------------------------------------------------------------------------------------ sections


def _sources(folder: RunFolder, recipe: Recipe) -> str:
    what, licence = SOURCES.get(recipe.dataset.path, ("", UNKNOWN))
    counts = Counter(image.split for image in folder.real_images())
    model = recipe.backend.model if recipe.backend.model in OWN else _public(recipe.backend.model)
    data = f"`{shown_data(recipe)}`" + (f", {what}" if what else "")
    rows = [
        f"- Real images: {data}; {counts['train']:,} training images. Licence: {_said(licence)}.",
        f"- Drawing model: `{model}`. Licence: {_said(model_licence(folder))}.",
        "- The generator has seen training images only; validation and test images took no part.",
    ]
    if recipe.adapt.early_stop and recipe.adapt.method != "none" and counts["val"]:
        rows[-1] = (
            "- The generator has learned from training images; validation images said when to stop; test images took no part."
        )
    if recipe.adapt.method == "file":
        rows[-1] = (
            "- The adapter was made elsewhere; what it has seen is said in the run's adapt/adapter.json, if at all."
        )
    return "## Sources\n\n" + "\n".join(rows)


def _method(recipe: Recipe) -> str:
    generate, adapt = recipe.generate, recipe.adapt
    strength = f", strength {', '.join(f'{one:g}' for one in generate.strength)}" if generate.from_image else ""
    refine = f"; refined by {', '.join(step.op for step in recipe.refine)}" if recipe.refine else ""
    what = f"`generate.method: {generate.method}`{strength}; `adapt.method: {adapt.method}`{refine}."
    papers = "\n\n".join(paper.bibtex() for paper in papers_of(recipe))
    return f"## Method\n\n{what}" + (f"\n\n```bibtex\n{papers}\n```" if papers else "")


def _counts(folder: RunFolder, every: list) -> str:
    drawn = Counter(image.target for image in every)
    kept = Counter(image.target for image in every if image.action == "keep")
    real = Counter(image.label for image in folder.real_images("train"))
    rows = [
        f"| {_cell(info.name)} | {real[info.label]:,} | {drawn[info.label]:,} | {kept[info.label]:,} |"
        for info in folder.classes()
    ]
    dropped = Counter(image.reason or "no reason given" for image in every if image.action == "drop")
    why = "; ".join(f"{_cell(reason)} {count:,}" for reason, count in sorted(dropped.items()))
    text = "The table `train/metadata.jsonl` holds all drawn images. "
    text += f"Left out of training by variegate: {why}." if dropped else "None was left out of training."
    head = "| class | real training images | drawn | kept |\n|---|---|---|---|"
    return f"## Counts\n\n{text}\n\n{head}\n" + "\n".join(rows)


def _scores(folder: RunFolder, kept: list) -> str:
    from variegate.image_quality.keys import images_key

    path = folder.path(QUALITY)
    if not path.is_file():
        return "## Scores\n\nNot measured. `variegate quality RUN` compares the images with held-out real ones and looks for copies."
    found: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    if found["images_key"] != images_key(kept):
        return "## Scores\n\nMeasured on other images than are kept now; run `variegate quality RUN` again."
    return f"## Scores\n\n{_score_table(found)}"


def _score_table(found: Mapping[str, Any]) -> str:
    measured, overall, copies = found["overall"]["measures"], found["overall"], found["copies"]
    lines = []
    if measured:
        lines += [
            f"Features: `{_public(found['encoder'])}`. {measured['compared']:,} images a side against {measured['against']:,} held-out "
            "real ones; real images against real ones are the floor.\n",
            "| measure | synthetic | real |\n|---|---|---|",
        ]
        names = ("frechet", "kid", "precision", "recall", "density", "coverage", "vendi")
        lines += [f"| {name} | {measured[name]['synthetic']:.4g} | {measured[name]['real']:.4g} |" for name in names]
        if overall["diversity"]:
            lines.append(
                f"| diversity | {overall['diversity']['synthetic']:.4g} | {overall['diversity']['real']:.4g} |"
            )
    if overall["agreement"]:
        right, real = overall["agreement"]["share"], found["judge"]["held_out_accuracy"]
        lines.append(
            f"\nA judge taught by held-out real images names the drawn class for {100 * right:.0f} % (real: {100 * real:.0f} %)."
        )
    lines.append(
        f"\n{copies['copies']:,} of {copies['images']:,} drawn images are near copies of training images "
        f"({copies['of_source']:,} of their own source, {copies['of_other']:,} of another)."
    )
    return "\n".join([*lines, *(f"\nNote: {note}." for note in found["notes"])])


def _limits(recipe: Recipe, every: list[SyntheticImage]) -> str:
    rows = [
        "Labels are what was asked of the model, not what a person saw; some images do not show their class.",
        "The images share the biases of their sources and of the drawing model, and may repeat parts of what that has seen.",
        "They are for training. A model is to be judged on real images.",
    ]
    rows += _showing_real(recipe, every)
    if recipe.generate.method.endswith("-mix"):
        rows.append("Images lie between two classes; `soft_label` in the table says how far.")
    return "## Known limits\n\n" + "\n".join(f"- {row}" for row in rows)


def _showing_real(recipe: Recipe, every: list[SyntheticImage]) -> list[str]:
    """How many images hold something of a real one: at strength 1 noise hides it, unless it is edited or parts are kept."""
    is_kept = recipe.generate.method == "edit" or recipe.generate.mask != "none"
    count = sum(
        image.source is not None and (is_kept or image.strength < 1.0 or image.original_share > 0.0) for image in every
    )
    shows = "made from a real one and may show what that shows, people and places included"
    if not count:
        return []
    if count == len(every):
        return [f"Every image was {shows}."]
    rest = f"the other {len(every) - count:,} were drawn from text and noise alone"
    return [f"{count:,} of the {len(every):,} images were {shows}; {rest}."]


# ------------------------------------------------------------------------------------------------ licences


def model_licence(folder: RunFolder) -> str:
    """The licence in the card of the model that drew, as its folder has it; "unknown" where it says none."""
    path = json.loads(folder.meta("backend") or "{}").get("path", "")
    text = Path(path, "README.md")
    if not path or not text.is_file():
        return UNKNOWN
    parts = text.read_text(encoding="utf-8", errors="replace").split("---", 2)
    if len(parts) < 3 or parts[0].strip():
        return UNKNOWN
    try:
        header = yaml.safe_load(parts[1])
    except yaml.YAMLError:
        return UNKNOWN
    values = header if isinstance(header, dict) else {}
    return str(values.get("license_name") or values.get("license") or UNKNOWN)


def _licence(recipe: Recipe, folder: RunFolder) -> str:
    """Of the set: known only where data and model have the same one."""
    both = {SOURCES.get(recipe.dataset.path, ("", UNKNOWN))[1], model_licence(folder)}
    return both.pop() if len(both) == 1 else "other" if UNKNOWN not in both else UNKNOWN


def _said(licence: str) -> str:
    return "unknown; ask before passing images on" if licence == UNKNOWN else licence


# ------------------------------------------------------------------------------------------------ text


def _recipe_text(recipe: Recipe) -> str:
    """The resolved recipe; of folders and files of this machine only the last part of the name is left."""
    return yaml.safe_dump(_without_places(recipe.model_dump(mode="json")), sort_keys=False, allow_unicode=True)


def _without_places(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _without_places(inner) for key, inner in value.items()}
    if isinstance(value, list):
        return [_without_places(inner) for inner in value]
    return _public(value) if isinstance(value, str) else value


def _public(text: str) -> str:
    """A name as it is; of a path that starts at the root or at home its last part.

    >>> _public("clip:/home/ann/models/vit"), _public("org/name"), _public("a photo of a {name}, /")
    ('clip:.../vit', 'org/name', 'a photo of a {name}, /')
    """
    kind, colon, rest = text.partition(":")
    prefix, path = (kind + colon, rest) if colon and kind in {"clip", "timm", "hf"} else ("", text)
    is_place = path.startswith(("/", "~", "../")) or (len(path) > 2 and path[1:3] in {":\\", ":/"})
    return f"{prefix}.../{Path(path).name}" if is_place and "\n" not in path else text


def _cell(text: str) -> str:
    return " ".join(text.split()).replace("\\", "\\\\").replace("|", "\\|").replace("<", "&lt;")
