"""Check a listing against its images and decide who is in which split: everything known before anything is written."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from unicodedata import normalize

from variegate.errors import DataError, Problem
from variegate.images import ImageCheck, check_images
from variegate.near_duplicates import near_pairs
from variegate.progress import Reporter
from variegate.recipe import DatasetSection, Recipe
from variegate.records import ClassInfo, RealImage, Split, content_id, extra_tests
from variegate.stages.dataset.listing import SPLIT_ORDER, FoundImage, Listing, enumerated, shortened
from variegate.stages.dataset.splits import Duplicate, Item, drop_leaks, fill_splits, groups_across, take_shots
from variegate.store import class_slug


@dataclass(frozen=True, slots=True)
class SplitImage:
    """An image in use; `check` is empty for images this program draws itself, later."""

    found: FoundImage
    label: int
    split: Split
    check: ImageCheck


@dataclass(frozen=True, slots=True)
class DatasetFacts:
    """A checked data set, ready to be frozen into a run."""

    shown: str  # DATA as the user wrote it
    classes: tuple[ClassInfo, ...]
    images: tuple[SplitImage, ...]
    warnings: tuple[str, ...]
    duplicates: tuple[Duplicate, ...]
    near_duplicates: tuple[
        tuple[str, str], ...
    ]  # names of (learned or chosen from, held out) that are nearly the same picture
    unreadable: tuple[tuple[str, str], ...]  # (name, reason) of what dataset.skip_unreadable left out
    drawn_here: bool
    groups_split: bool  # one group was kept on one side

    def counts(self) -> dict[Split, dict[str, int]]:
        """Images per split and class, every class of every split named."""
        found = Counter((image.split, image.label) for image in self.images)
        splits = (*SPLIT_ORDER, *extra_tests(image.split for image in self.images))
        return {split: {c.name: found[split, c.label] for c in self.classes} for split in splits}

    def num_training(self) -> int:
        return sum(1 for image in self.images if image.split == "train")

    def held_out(self) -> set[str]:
        """SHA-256 of the validation and test images; images drawn here have none yet."""
        return {image.check.sha256 for image in self.images if image.split != "train"} - {""}

    def num_uncaptioned(self) -> int:
        """Training images without a caption; images drawn here always get one."""
        found = [image.found for image in self.images if image.split == "train"]
        return sum(1 for image in found if image.notes is None and not (image.caption or "").strip())

    def training_images(self) -> list[RealImage]:
        """The training images as far as they are known before a run: named as the user knows them, without ids.

        Those whose masks this program draws are left out: there is no file yet that could be looked at.
        """
        return [
            RealImage("", i.found.name, i.label, "train", mask=str(i.found.mask) if i.found.mask else None,
                      width=i.check.width, height=i.check.height)
            for i in self.images if i.split == "train" and not callable(i.found.mask)
        ]  # fmt: skip

    def identity(self) -> str:
        """Hash of the classes and of every image's name, label, split, notes and bytes, wherever the files lie."""
        classes = [(one.name, one.description) for one in self.classes]
        rows = [
            (i.found.name, i.label, i.split, i.found.group, i.found.caption,
             i.check.mask_sha256 or i.found.mask is not None, i.check.sha256)
            for i in self.images
        ]  # fmt: skip
        return content_id(self.shown, classes, rows)

    def line(self) -> str:
        """The one counted line: 'birds: 10 classes, 50 train, 10 val, 40 test'."""
        totals = {split: sum(per_class.values()) for split, per_class in self.counts().items()}
        text = f"{self.shown}: {len(self.classes):,} classes, " + ", ".join(
            f"{n:,} {split}" for split, n in totals.items()
        )
        copies = sum(len(duplicate.left_out) for duplicate in self.duplicates)
        notes = [f"{copies:,} copies across splits left out"] if copies else []
        notes += [f"{len(self.unreadable):,} unreadable left out"] if self.unreadable else []
        return f"{text} ({', '.join(notes)})" if notes else text


def gather_facts(listing: Listing, recipe: Recipe, reporter: Reporter | None = None) -> DatasetFacts:
    """Decode every image once and fix the splits; raises DataError with everything that is wrong."""
    dataset, listing = recipe.dataset, _spelt_alike(listing)
    is_apart = listing.groups_split and dataset.group_is == "subject"  # one group stays on one side
    checks = _checks(listing, dataset, reporter)
    broken = {name: check.reason for name, check in checks.items() if check.reason}
    left_out = broken if dataset.skip_unreadable else {}
    images = [image for image in listing.images if image.name not in left_out]
    items = [Item(i.name, i.class_name, i.split, i.group, checks[i.name].sha256) for i in images]
    items, duplicates = drop_leaks(items)
    items = fill_splits(
        items,
        val_fraction=dataset.val_fraction,
        test_fraction=dataset.test_fraction,
        seed=recipe.seed,
        by_group=is_apart,
    )
    problems = [*listing.problems, *unreadable_problems({} if left_out else broken, dataset)]
    problems += _class_problems(listing, images, items, is_apart=is_apart)
    if problems:
        raise DataError(problems)
    used = take_shots(items, shots=dataset.shots, imbalance=dataset.imbalance, seed=recipe.seed)
    classes = _classes(listing, images)
    labels = {one.name: one.label for one in classes}
    by_name = {image.name: image for image in images}
    facts = tuple(SplitImage(by_name[i.name], labels[i.class_name], i.split or "train", checks[i.name]) for i in used)
    warnings = [*listing.warnings, *_split_warnings(used, classes, dataset), *_duplicate_warnings(duplicates)]
    warnings += _leak_warnings(used) if is_apart else []
    near, unseen = _near_duplicates(facts)
    warnings += [*_near_warnings(near), *unseen]
    warnings += _held_out_warnings(images)
    small = sum(0 < min(image.check.width, image.check.height) < dataset.size_px for image in facts)
    if small:
        warnings.append(f"{small:,} images are smaller than dataset.size_px {dataset.size_px} and are enlarged")
    return DatasetFacts(
        shown=listing.shown,
        classes=classes,
        images=facts,
        warnings=tuple(warnings),
        duplicates=tuple(duplicates),
        near_duplicates=tuple(near),
        unreadable=tuple(sorted(left_out.items())),
        drawn_here=listing.drawn_here,
        groups_split=is_apart,
    )


def _spelt_alike(listing: Listing) -> Listing:
    """Class names in one Unicode form: a Mac's folders have accents of their own (NFD), tables and people do not (NFC)."""
    images = tuple(replace(image, class_name=normalize("NFC", image.class_name)) for image in listing.images)
    found = {image.class_name for image in images}
    empty = tuple(name for name in (normalize("NFC", one) for one in listing.empty_classes) if name not in found)
    return replace(listing, images=images, empty_classes=empty)


def _checks(listing: Listing, dataset: DatasetSection, reporter: Reporter | None) -> dict[str, ImageCheck]:
    """Name -> what decoding said; an image whose mask cannot be read counts as unreadable."""
    if listing.drawn_here:
        return {image.name: ImageCheck(dataset.size_px, dataset.size_px, extension="png") for image in listing.images}
    masked = [image for image in listing.images if image.mask is not None]
    contents = [*(image.content for image in listing.images), *(image.mask for image in masked if image.mask)]
    results = check_images(contents, max_megapixels=dataset.max_megapixels, reporter=reporter)
    checks = {image.name: check for image, check in zip(listing.images, results, strict=False)}
    for image, mask in zip(masked, results[len(listing.images) :], strict=True):
        if mask.reason and not checks[image.name].reason:
            checks[image.name] = ImageCheck(reason=f"its mask {image.mask} {mask.reason}")
        else:
            checks[image.name] = replace(checks[image.name], mask_sha256=mask.sha256)
    return checks


def _classes(listing: Listing, images: Sequence[FoundImage]) -> tuple[ClassInfo, ...]:
    names = sorted({image.class_name for image in images})
    descriptions = dict(listing.descriptions)
    return tuple(ClassInfo(k, name, class_slug(k, name), descriptions.get(name, "")) for k, name in enumerate(names))


# ---------------------------------------------------------------------------------------------------- problems


def unreadable_problems(broken: Mapping[str, str], dataset: DatasetSection) -> list[Problem]:
    """What to tell of files that give no picture: name -> reason."""
    problems = [Problem(name, reason) for name, reason in sorted(broken.items())]
    remedy = "mend or remove them, or leave them out with --set dataset.skip_unreadable=true"
    if any("max_megapixels" in reason for reason in broken.values()):
        remedy += f"; larger images with --set dataset.max_megapixels={2 * dataset.max_megapixels:g}"
    return shortened(problems, "unreadable files", remedy)


def _class_problems(
    listing: Listing, images: Sequence[FoundImage], items: Sequence[Item], *, is_apart: bool
) -> list[Problem]:
    """What makes it impossible to learn or to measure; silent where nothing was found at all (the listing says why)."""
    if not listing.images:
        return []
    totals = Counter(item.split for item in items)
    found = {image.class_name for image in listing.images}
    readable = {image.class_name for image in images}
    problems = [Problem(f"class {name!r}", "has no image") for name in listing.empty_classes]
    problems += [Problem(f"class {name!r}", "has no image that can be read") for name in sorted(found - readable)]
    if totals["train"]:
        trained = {item.class_name for item in items if item.split == "train"}
        problems += [_no_training(name, images) for name in sorted(readable - trained)]
    problems = shortened(problems, "such classes", "add training images, or remove the class")
    if not totals["train"] and images:
        given = any(image.split in ("train", None) for image in images)
        what = (
            "has only training images that are in val or test too (same bytes)" if given else "has no training images"
        )
        problems.append(Problem(listing.shown, what, "add a train folder (or split train)"))
    if len(found | set(listing.empty_classes)) == 1:
        only = next(iter(found))
        text = f"has only one class ({only}); a classifier tells two or more apart"
        problems.append(
            Problem(listing.shown, text, "add images of another class, in a folder (or with a label) of its own")
        )
    if not problems and not totals["test"]:  # without validation images one can still train, and is told
        what, remedy = "no class has one to spare beside its last training image", "add images, or"
        if is_apart and any(image.group is not None for image in images):
            what = "its groups stay whole, and a class would lose its last training images with any of them"
            remedy = "if groups are backgrounds or cameras, --set dataset.group_is=context; else add groups, or"
        text = f"has no image to test on: {what}"
        problems.append(Problem(listing.shown, text, f"{remedy} a test folder (or split test)"))
    for split in ("test", *extra_tests(filter(None, totals))):
        if not problems and totals[split] == 1:
            text = f"has one image in {split}, and an interval needs two"
            problems.append(Problem(listing.shown, text, "add images"))
    return problems


def _no_training(class_name: str, images: Sequence[FoundImage]) -> Problem:
    given = Counter(image.split for image in images if image.class_name == class_name)
    if given["train"] or given[None]:
        return Problem(f"class {class_name!r}", "has only training images that are in val or test too (same bytes)")
    places = " and ".join(split for split in (*SPLIT_ORDER, *extra_tests(filter(None, given))) if given[split])
    return Problem(f"class {class_name!r}", f"has no training image, only images in {places}")


# ---------------------------------------------------------------------------------------------------- warnings


def _split_warnings(used: Sequence[Item], classes: Sequence[ClassInfo], dataset: DatasetSection) -> list[str]:
    found, names = Counter((item.split, item.class_name) for item in used), [one.name for one in classes]
    warnings = []
    for split, doing in (("val", "validate"), ("test", "test")):
        without = [name for name in names if not found[split, name]]
        if without:
            warnings.append(f"too few images to {doing} on: {enumerated(without)}")
    short = [name for name in names if dataset.shots and found["train", name] < dataset.shots]
    if short and dataset.imbalance is None:
        warnings.append(f"fewer than {dataset.shots} training images: {enumerated(short)}")
    return warnings


def _held_out_warnings(images: Sequence[FoundImage]) -> list[str]:
    """Extra test sets without a test set: the one then held out of the training images may not be what was meant."""
    extra = extra_tests(image.split for image in images if image.split)
    if not extra or any(image.split == "test" for image in images):
        return []
    return [
        f"there is no test set besides the extra {enumerated(extra)}: a share of the training images is held out as test"
    ]


def _leak_warnings(used: Sequence[Item]) -> list[str]:
    leaking = groups_across(used)
    text = f"groups in more than one split, so test results may be too good: {enumerated(leaking)}"
    return [text] if leaking else []


def _near_duplicates(images: Sequence[SplitImage]) -> tuple[list[tuple[str, str]], list[str]]:
    """Images of train that nearly equal one of val or a test set, or of val one of a test set; and why none were looked for."""
    sides = {"train": [i for i in images if i.split == "train"], "val": [i for i in images if i.split == "val"]}
    tests = [i for i in images if i.split not in sides]
    found: list[tuple[str, str]] = []
    try:
        for ones, others in ((sides["train"], [*sides["val"], *tests]), (sides["val"], tests)):
            pairs = near_pairs([i.check.look for i in ones], [i.check.look for i in others])
            found += [(ones[k].found.name, others[j].found.name) for k, j in pairs]
    except ValueError as exc:
        return [], [f"near duplicates across the splits were not looked for: {exc}"]
    return sorted(found), []


def _near_warnings(near: Sequence[tuple[str, str]]) -> list[str]:
    shown = enumerated(f"{one} ~ {other}" for one, other in near)
    text = "images are nearly the same picture as one in another split, so results may be too good"
    return [f"{len(near):,} {text}: {shown}"] if near else []


def _duplicate_warnings(duplicates: Sequence[Duplicate]) -> list[str]:
    across = [name for duplicate in duplicates for name in duplicate.left_out]
    inside = [name for duplicate in duplicates for name in duplicate.kept[1:]]
    against = [" = ".join(sorted((*d.kept, *d.left_out))) for d in duplicates if len(d.class_names) > 1]
    warnings = []
    if across:
        warnings.append(
            f"{len(across):,} images left out, because test or val has the same image: {enumerated(across)}"
        )
    if inside:
        warnings.append(
            f"{len(inside):,} images repeat another one of their split, or of another test set: {enumerated(inside)}"
        )
    if against:
        warnings.append(f"{len(against):,} images have two different labels: {enumerated(against)}")
    return warnings
