"""Find out what DATA is (built-in, hf:, table or folder) and list it, or say what should have been given."""

from __future__ import annotations

import difflib
from pathlib import Path

from variegate.errors import DataError, Problem
from variegate.images import IMAGE_EXTENSIONS
from variegate.recipe import Recipe
from variegate.stages.dataset.builtin import NAMES, read_builtin
from variegate.stages.dataset.folder import holds_images, read_folder
from variegate.stages.dataset.hub import read_hub
from variegate.stages.dataset.listing import Listing, split_words
from variegate.stages.dataset.tables import METADATA_NAMES, TABLE_EXTENSIONS, find_metadata, join_listings, read_table

_KINDS = "a folder of class folders, a .csv/.jsonl/.parquet table, hf:org/name, builtin:meadow or builtin:digits"


def read_source(recipe: Recipe) -> Listing:
    """List the recipe's data without opening an image; raises DataError where DATA itself is wrong."""
    data = recipe.dataset.path
    if data.startswith("builtin:"):
        return read_builtin(data.removeprefix("builtin:"), recipe.dataset, recipe.seed)
    if data.startswith("hf:"):
        return read_hub(data.removeprefix("hf:"), recipe.dataset)
    if not data.strip() or "\0" in data:
        raise DataError(Problem("dataset.path", f"{data!r} names no data", f"give {_KINDS}"))
    path = Path(data).expanduser()
    try:
        if path.is_dir():
            return _read_local_folder(path.absolute(), data)
        if path.is_file():
            return _read_local_file(path.absolute(), data)
    except OSError as exc:
        raise DataError(Problem(data, f"cannot be opened: {exc.strerror or exc}", "check its permissions")) from exc
    raise DataError(Problem(data, "does not exist", _near(path, data)))


def _read_local_folder(root: Path, data: str) -> Listing:
    if (root / "run.db").is_file():
        raise DataError(Problem(data, "is a run folder, not a folder of images", f"give {_KINDS}"))
    tables = find_metadata(root)
    if tables:
        listing = join_listings(
            [read_table(table, data, split=split, prefix=prefix) for table, split, prefix in tables], data
        )
        _refuse_uncovered(root, listing, {prefix for _, _, prefix in tables})
        return listing
    listing = read_folder(root, data)
    if not listing.images and any(root.rglob("*.parquet")):
        what = "holds Parquet files and no class folders"
        raise DataError(Problem(data, what, f"give it as hf:{root}, or name one table of file names"))
    unlabelled = [name for name in METADATA_NAMES if (root / name).is_file()]
    if not unlabelled:
        return listing
    warning = f"{unlabelled[0]} has no column label and is not used; the class folders give the labels"
    return Listing(
        listing.shown,
        listing.images,
        listing.problems,
        (*listing.warnings, warning),
        listing.empty_classes,
    )


def _refuse_uncovered(root: Path, listing: Listing, covered: set[str]) -> None:
    """Split folders of images that no table names, beside others that have one; `covered` are those, as NAME/."""
    if "" in covered:
        return
    named = {
        path.resolve() for image in listing.images for path in (image.content, image.mask) if isinstance(path, Path)
    }
    used = {path.relative_to(root.resolve()).parts[0] for path in named if path.is_relative_to(root.resolve())}
    folders = split_words([entry.name for entry in sorted(root.iterdir()) if entry.is_dir()])
    remedy = "give it a metadata.csv with file_name,label, take the tables away and make class folders, or move it away"
    problems = [
        Problem(f"{name}/", "holds images and no table of their labels, and other split folders have one", remedy)
        for name in folders
        if f"{name}/" not in covered and name not in used and holds_images(root, name)
    ]
    if problems:
        raise DataError(problems)


def _read_local_file(path: Path, data: str) -> Listing:
    extension = path.suffix.lower()
    if extension in TABLE_EXTENSIONS:
        return read_table(path, data)
    if extension in IMAGE_EXTENSIONS:
        what = "is a single image; a classifier needs several images of every class"
        remedy = f"give the folder that holds one folder per class, such as {path.parent.parent}"
        raise DataError(Problem(data, what, remedy))
    if extension in (".zip", ".tar", ".gz", ".tgz", ".bz2", ".xz", ".7z", ".rar"):
        raise DataError(Problem(data, "is an archive", "unpack it and give the folder"))
    raise DataError(Problem(data, "is no table of images", f"give {_KINDS}"))


def _near(path: Path, data: str) -> str:
    """What the user may have meant: a built-in by its bare name, or a neighbour of nearly the same name."""
    builtin = difflib.get_close_matches(data.removeprefix("builtin/"), NAMES, n=1, cutoff=0.75)
    if builtin:
        return f"did you mean builtin:{builtin[0]}?"
    missing = path.absolute()
    while not missing.parent.is_dir():
        missing = missing.parent
    neighbours = {entry.name.lower(): entry for entry in sorted(missing.parent.iterdir()) if entry.name[:1] != "."}
    near = difflib.get_close_matches(missing.name.lower(), list(neighbours), n=3)
    if near:
        return f"did you mean {' or '.join(str(_like(neighbours[name], path)) for name in near)}?"
    return f"there is no {missing.name!r} in {missing.parent}; give {_KINDS}"


def _like(found: Path, given: Path) -> Path:
    """The neighbour's path written the way the user wrote theirs."""
    return found if given.is_absolute() or not found.is_relative_to(Path.cwd()) else found.relative_to(Path.cwd())
