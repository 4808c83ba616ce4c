"""Synthetic images from elsewhere, pooled with this run's own: kept ones of other runs (Diff-Mix's compose_syn_data.py,
without copying), and tables of other tools' images that `variegate import` wrote.

A run is refused where its classes differ, or where an image it drew from or was adapted to is a validation or test
image here: the classifier would learn from what it is judged by. A table is refused where it has other classes, or
where one of its images is such an image itself; it does not tell what its generator saw, and the run says so.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Sequence
from dataclasses import replace
from pathlib import Path

from variegate.errors import DataError, Problem, RunFolderError
from variegate.images import load_squares
from variegate.importers.image_table import is_table, read_table
from variegate.near_duplicates import EDGE, looks_of, near_pairs
from variegate.recipe import DatasetSection
from variegate.recipe_file import load_recipe
from variegate.records import RealImage, SyntheticImage
from variegate.store import RunFolder

_WHERE = "train.pools"


def held_out_keys(images: Iterable[RealImage]) -> set[str]:
    """What tells validation and test images from others in any run: their bytes."""
    return {_key(image) for image in images if image.split != "train"}


def pool_problems(roots: Sequence[str], class_names: Sequence[str], held_out: Collection[str]) -> list[Problem]:
    """Everything that speaks against pooling these folders; `held_out` are held_out_keys."""
    problems: list[Problem] = []
    for root in roots:
        try:
            problems += _problems(root, class_names, held_out)
        except (RunFolderError, DataError) as exc:
            problems += exc.problems
    return problems


def with_pools(
    own: Sequence[SyntheticImage], roots: Sequence[str], class_names: Sequence[str] = ()
) -> list[SyntheticImage]:
    """This run's images, then those of the others with absolute paths; an image that two have counts once.

    What refine made of an image is another image. A table's labels number `class_names`, its own names without them.
    """
    found = {(image.id, image.refined): image for image in own}
    for root in roots:
        for image in _read(root, class_names)[1]:
            found.setdefault((image.id, image.refined), image)
    return list(found.values())


def seen_by_pools(roots: Sequence[str]) -> list[str]:
    """SHA-256 of the real images behind the images of these folders, as far as they tell."""
    return [image.sha256 for root in roots for image in _seen(root)]


def pool_warnings(roots: Sequence[str], held_out: Sequence[RealImage], section: DatasetSection) -> list[str]:
    """What cannot be ruled out: pooled images, or real ones behind them, that are nearly the same picture as a validation
    or test image, and tables that do not tell what they were made from."""
    warnings, known = [], _looks([Path(image.path) for image in held_out], section) if roots else []
    for root in roots:
        if is_table(root):
            text = "does not tell which real images it was made from: its generator may have seen test images"
            warnings.append(f"{root} {text}")
        names = [*(image.path for image in _read(root)[1]), *(image.path for image in _seen(root))]
        paths = list(map(Path, dict.fromkeys(names)))
        there = [path for path in paths if path.is_file()]
        if len(there) < len(paths):
            text = (
                f"{len(paths) - len(there):,} images behind {root} are gone and were not compared with the test images"
            )
            warnings.append(text)
        try:
            pairs = near_pairs(_looks(there, section), known)
        except ValueError as exc:
            warnings.append(f"near duplicates of test images in {root} were not looked for: {exc}")
            continue
        if pairs:
            first, same = there[pairs[0][0]].name, Path(held_out[pairs[0][1]].path).name
            text = (
                f"{len(pairs):,} images of or behind {root} are nearly the same picture as a validation or test image"
            )
            warnings.append(f"{text}, so results may be too good, such as {first} ~ {same}")
    return warnings


def _looks(paths: Sequence[Path], section: DatasetSection) -> list[bytes]:
    return looks_of(load_squares(paths, 2 * EDGE, section.fit, section.max_megapixels))


def _problems(root: str, class_names: Sequence[str], held_out: Collection[str]) -> list[Problem]:
    names, images = _read(root, class_names)
    if names != list(class_names):
        lacks, has = sorted(set(class_names) - set(names)), sorted(set(names) - set(class_names))
        differs = [f"lacks {lacks[0]!r}"] * bool(lacks) + [f"has {has[0]!r}"] * bool(has)
        text = f"the classes of {root} differ: it {' and '.join(differs) or 'has them in another order'}"
        return [Problem(_WHERE, text, "pool runs over the same classes")]
    if not any(image.weight > 0 for image in images):
        return [Problem(_WHERE, f"{root} has no kept synthetic image", "finish that run, or leave it out")]
    shared = [image for image in _seen(root) if _key(image) in held_out]
    if not shared:
        return []
    first = Path(shared[0].path).name
    if is_table(root):
        text = f"{len(shared)} images of {root} are validation or test images here, such as {first}"
        return [Problem(_WHERE, text, "leave them out of the table and import it again")]
    text = (
        f"{len(shared)} images that {root} drew from or was adapted to are validation or test images here, "
        f"such as {first}"
    )
    return [Problem(_WHERE, text, "make that run with the data, seed, shots and splits of this one")]


# ------------------------------------------------------------------------------------------------ reading


def _read(root: str, class_names: Sequence[str] = ()) -> tuple[list[str], list[SyntheticImage]]:
    """(class names in label order, kept images with absolute paths) of a run folder or an imported table.

    Raises RunFolderError or DataError for anything else.
    """
    if is_table(root):
        table = read_table(Path(root), class_names)
        return list(table.class_names), list(table.images)
    with RunFolder.read(Path(root)) as other:
        names = [info.name for info in other.classes()]
        return names, [replace(image, path=str(other.path(image.path))) for image in other.synthetic_images()]


def _seen(root: str) -> list[RealImage]:
    """Real images behind a run's synthetic ones: their sources, and the training images where it has an adapter.

    A table does not tell, so that there it is its own pictures.
    """
    if is_table(root):
        table = read_table(Path(root))
        pairs = zip(table.images, table.sha256, strict=True)
        return [RealImage(digest, image.path, image.target, "train", sha256=digest) for image, digest in pairs]
    with RunFolder.read(Path(root)) as other:
        is_adapted = load_recipe(str(other.root / "recipe.yaml")).adapt.method != "none"
        sources = {image.source for image in other.synthetic_images(kept_only=False)}
        return [i for i in other.real_images() if i.id in sources or (is_adapted and i.split == "train")]


def _key(image: RealImage) -> str:
    return image.sha256 or image.id
