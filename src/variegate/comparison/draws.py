"""The draws of a comparison before anything of them is run: what their images are, and who knows of more than they have.

A comparison is fair where no method has learned from images that the others do not have; a pool or a file of weights that a
recipe brings along is held against every draw.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from variegate.comparison import plan
from variegate.errors import DataError, Problem, RunFolderError
from variegate.files import write_atomic
from variegate.images import read_content
from variegate.importers.image_table import is_table
from variegate.leaks import encoder_problems, seen_problems
from variegate.progress import Reporter
from variegate.recipe import ArmSection, Recipe
from variegate.stages.dataset.facts import SplitImage
from variegate.stages.dataset.stage import check as check_data
from variegate.stages.train.pools import pool_problems, seen_by_pools

DATA = "data.json"  # in a comparison's folder: what the images of every draw were when it was begun
FOR_ALL = "use --draws 1, or make it from images that every draw trains with"


@dataclass(frozen=True, slots=True)
class Draw:
    """One choice of the training images; hashes are SHA-256 and are there only where something has to be held against them."""

    shots: int | None
    number: int
    class_names: tuple[str, ...]
    counts: tuple[int, ...]  # training images of each class
    content: str  # changes with any image, label or split
    train: frozenset[str] = frozenset()
    held_out: frozenset[str] = frozenset()

    @property
    def name(self) -> str:
        return f"shots-{self.shots or 'all'}/draw-{self.number}"


def read_draws(base: Recipe, shots: int | None, num: int, reporter: Reporter, *, hashed: bool) -> list[Draw]:
    """Every draw; raises DataError where one has fewer than `shots` of a class, or cannot be made."""
    found = []
    for number in range(num):
        facts = check_data(_plain(base, number, shots), reporter)
        trained = facts.counts()["train"]
        few = {name: count for name, count in trained.items() if shots and count < shots}
        if few and base.dataset.imbalance is None:
            raise DataError(_too_few(few, shots or 0))
        names = tuple(info.name for info in facts.classes)
        draw = Draw(shots, number, names, tuple(trained.values()), facts.identity())
        if hashed:
            train, held_out = (
                _hashes(i for i in facts.images if (i.split == "train") == is_train) for is_train in (True, False)
            )
            draw = replace(draw, train=train, held_out=held_out)
        found.append(draw)
    return found


def whole_data(base: Recipe, num: int, reporter: Reporter) -> frozenset[str]:
    """SHA-256 of all images that any draw could have, whatever --shots leaves out."""
    known: set[str] = set()
    for number in range(num):
        facts = check_data(_plain(base, number, None, imbalance=None), reporter)
        known |= _hashes(facts.images)
        if not facts.drawn_here:  # files are the same ones for every draw
            break
    return frozenset(known)


def _plain(base: Recipe, number: int, shots: int | None, **changes: object) -> Recipe:
    settled = plan.settled(base, [ArmSection(name=plan.REAL, images="real")], draw=number, shots=shots, seeds=1)
    return settled.model_copy(update={"dataset": settled.dataset.model_copy(update=changes)})


def _hashes(images: Iterable[SplitImage]) -> frozenset[str]:
    """Images that this program draws are drawn for it."""
    return frozenset(
        image.check.sha256 or hashlib.sha256(read_content(image.found.content)).hexdigest() for image in images
    )


def _too_few(few: dict[str, int], shots: int) -> Problem:
    name, count = min(few.items(), key=lambda item: item[1])
    text = f"{len(few)} classes have fewer training images, {name} {count}"
    return Problem(f"--shots {shots}", text, f"use --shots {count}, or add images")


# ------------------------------------------------------------------------------------------------ the same data


def refuse_other_data(folder: Path, draws: Sequence[Draw]) -> None:
    """Raise RunFolderError where a draw has other images than when the comparison in `folder` was begun."""
    before = _remembered(folder)
    if any(before.get(draw.name, draw.content) != draw.content for draw in draws):
        text = "the data changed since this comparison began: images, labels or splits are not what they were"
        raise RunFolderError(Problem(str(folder), text, "choose another --out folder, or put the data back"))


def remember(folder: Path, draws: Sequence[Draw]) -> None:
    """Write down what the draws are; those of other calls stay."""
    said = _remembered(folder) | {draw.name: draw.content for draw in draws}
    write_atomic(folder / DATA, (json.dumps(said, indent=1) + "\n").encode())


def _remembered(folder: Path) -> dict[str, str]:
    path = folder / DATA
    return json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}


# ------------------------------------------------------------------------------------------------ brought along


def brings_along(recipe: Recipe) -> bool:
    """Whether a recipe takes images or weights that were made before the comparison and may tell what they have seen."""
    folders = [Path(path) for step in recipe.curate if (path := step.encoder.partition(":")[2])]
    return bool(recipe.train.pools) or isinstance(recipe.train.pretrained, str) or any(map(Path.is_dir, folders))


def unfair(recipe: Recipe, draws: Sequence[Draw], whole: frozenset[str]) -> list[Problem]:
    """What speaks against a recipe's pools and weights in the first of these draws where anything does.

    They may have seen neither what a draw is judged by nor, of the `whole` data, more training images than it has.
    """
    for draw in draws:
        problems = [*_peeking(recipe, draw), *_knowing_more(recipe.train.pools, draw, whole)]
        if problems:
            place = f"draw {draw.number + 1}" + (f", {draw.shots} shots" if draw.shots else "")
            again = {"remedy": FOR_ALL} if draw != draws[0] else {}
            return [replace(one, what=f"{one.what} (in {place})", **again) for one in problems]
    return []


def foreign(recipe: Recipe, draws: Sequence[Draw], whole: frozenset[str]) -> list[str]:
    """Pools that were made from real images which are none of this data: no fault, but to be known."""
    warnings, own = [], whole.union(*(draw.train for draw in draws))
    for root in recipe.train.pools:
        others = set(seen_by_pools([root])) - own - {""}
        if others and not is_table(root):  # a table's pictures stand for what it does not tell
            text = (
                f"was made from {len(others):,} real images that are none of this data: other methods had no such help"
            )
            warnings.append(f"{root} {text}")
    return warnings


def _peeking(recipe: Recipe, draw: Draw) -> list[Problem]:
    given = recipe.train.pretrained
    problems = pool_problems(recipe.train.pools, draw.class_names, draw.held_out)
    problems += seen_problems("train.pretrained", Path(given), draw.held_out) if isinstance(given, str) else []
    steps = enumerate(recipe.curate)
    return problems + [
        one for place, step in steps for one in encoder_problems(f"curate.{place}.encoder", step.encoder, draw.held_out)
    ]


def _knowing_more(roots: Sequence[str], draw: Draw, whole: frozenset[str]) -> list[Problem]:
    problems = []
    for root in roots:
        more = (set(seen_by_pools([root])) & whole) - draw.train - draw.held_out
        if more:
            text = f"{root} was made from {len(more):,} training images that the arms of this comparison do not have"
            remedy = f"make that run with --set seed={draw.number} --set dataset.shots={draw.shots or 'null'}"
            problems.append(Problem("train.pools", text, remedy))
    return problems
