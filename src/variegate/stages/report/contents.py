"""What the report shows, as frozen records: one `Summary`, of which HTML, Markdown and JSON are views.

No disk, no HTML, no images: images are named by image id. Accuracies and fractions are in [0, 1]; None = not known.
"""

from __future__ import annotations

from dataclasses import dataclass

Points = tuple[tuple[float, float], ...]  # ((step, value), ...) by step


@dataclass(frozen=True, slots=True)
class Interval:
    """A mean or a difference with its 95 % interval; bounds are None where there is none."""

    value: float | None
    low: float | None = None
    high: float | None = None


@dataclass(frozen=True, slots=True)
class Checkpoint:
    step: int | None
    val_accuracy: float | None
    test_accuracy: float | None


@dataclass(frozen=True, slots=True)
class SeedResult:
    seed: int
    steps: int | None
    selected: Checkpoint  # best on validation
    last: Checkpoint
    seconds: float | None = None  # of training


@dataclass(frozen=True, slots=True)
class Arm:
    """One training set's results; `position` gives its colour and marker."""

    position: int
    name: str
    seeds: tuple[SeedResult, ...]
    selected: Interval
    last: Interval
    per_class: tuple[float | None, ...]
    confusion: tuple[tuple[float, ...], ...]  # [true class][predicted class], counts or shares
    ece: float | None


@dataclass(frozen=True, slots=True)
class Slice:
    """One part of the test images, or one extra test set, by arm and by comparison in the summary's order."""

    name: str
    images: int | None  # test images
    accuracies: tuple[Interval, ...]
    differences: tuple[Interval, ...]
    note: str = ""


@dataclass(frozen=True, slots=True)
class Cell:
    """The worst (class, group) of an arm."""

    arm: str
    class_name: str
    group: str
    images: int
    accuracy: float | None


@dataclass(frozen=True, slots=True)
class Groups:
    """Accuracy by group of test images and the worst cells; `small_*` have too few images to be called worst."""

    slices: tuple[Slice, ...]
    worst: tuple[float | None, ...]  # by arm, over slices
    worst_cells: tuple[Cell, ...]
    least_images: int
    num_cells: int
    small_groups: tuple[tuple[str, int], ...]  # (group, images)
    small_cells: tuple[tuple[str, str, int], ...]  # (class, group, images)


@dataclass(frozen=True, slots=True)
class ClassChange:
    class_name: str
    before: float | None
    after: float | None
    difference: float | None


@dataclass(frozen=True, slots=True)
class Comparison:
    """Paired difference arm - baseline on the same seeds; `changes` are sorted, best first."""

    arm: str
    baseline: str
    selected: Interval
    last: Interval
    detectable: float | None  # about the smallest difference that this many seeds could have shown
    changes: tuple[ClassChange, ...]
    verdict: str


@dataclass(frozen=True, slots=True)
class Confused:
    """One mistake and its share of the true class's test images."""

    true: str
    predicted: str
    share: float


@dataclass(frozen=True, slots=True)
class Curve:
    """What one training run logged."""

    arm: str
    seed: int
    loss: Points
    val_accuracy: Points


@dataclass(frozen=True, slots=True)
class Variant:
    """One drawn image as the gallery shows it."""

    id: str
    target: int
    class_name: str
    prompt: str
    strength: float
    label: tuple[tuple[str, float], ...]  # (class name, share), as the classifier is told
    action: str
    weight: float
    reason: str
    scores: tuple[tuple[str, float], ...]


@dataclass(frozen=True, slots=True)
class Exhibit:
    """Drawn images beside real ones: the image they were made from, or examples of their class; none are drawn in some runs."""

    class_name: str
    made_from: bool  # False: drawn from text or not at all, the real ones are examples
    real: tuple[str, ...]
    variants: tuple[Variant, ...]
    num_made: int  # all of this source or class, shown or not


@dataclass(frozen=True, slots=True)
class Dropped:
    reason: str
    num: int
    examples: tuple[Variant, ...]


@dataclass(frozen=True, slots=True)
class ClassCounts:
    name: str
    train: int
    val: int
    test: int
    drawn: int
    kept: int


@dataclass(frozen=True, slots=True)
class Duplicate:
    """One image that the data has more than once."""

    kept: tuple[str, ...]
    left_out: tuple[str, ...]
    class_names: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class StageCost:
    """Wall time of one stage, and its rate where it handles images one by one; memory and energy where the machine tells."""

    stage: str
    seconds: float
    images_per_second: float | None
    line: str
    peak_memory_mb: float | None = None
    gpu_memory_mb: float | None = None
    energy_j: float | None = None


@dataclass(frozen=True, slots=True)
class Missing:
    """A part of the page that cannot be shown, and why."""

    part: str
    why: str


@dataclass(frozen=True, slots=True)
class Adapting:
    """What the model was taught; `preview` names the grid in the run folder, classes across, rows of equal noise."""

    method: str
    line: str  # the stage's own
    held_out: Points
    loss: Points  # mean since the point before
    agreement: float | None  # of the last previews with their class
    judge_accuracy: float | None  # of the judge of that, on held-out real images
    copies: int | None  # previews that are nearly training images
    num_previews: int
    preview: str | None
    columns: tuple[tuple[str, str], ...]  # (class, prompt of the first row) of the grid


@dataclass(frozen=True, slots=True)
class QualityRow:
    """One measure of the synthetic images and of real ones at equal size."""

    title: str
    meaning: str
    synthetic: float
    real: float
    standard_error: float | None = None


@dataclass(frozen=True, slots=True)
class ClassQuality:
    """One class; None where it has too few images for a number. Shares in [0, 1]."""

    name: str
    images: int
    reference: int
    precision: float | None
    recall: float | None
    diversity: float | None
    real_diversity: float | None
    agreement: float | None
    copies: int
    drawn: int


@dataclass(frozen=True, slots=True)
class CopyPair:
    """A synthetic image that is nearly a training image, `of`."""

    id: str
    target: int
    class_name: str
    of: str
    is_source: bool
    distance: float
    action: str
    strength: float


@dataclass(frozen=True, slots=True)
class Quality:
    """What quality.json says; `is_current` is false where other images are kept now than were measured."""

    encoder: str
    is_current: bool
    compared: int | None  # images a side
    against: int | None
    rows: tuple[QualityRow, ...]
    agreement: float | None
    judge_accuracy: float | None
    per_class: tuple[ClassQuality, ...]
    images: int
    copies: int
    of_source: int
    of_other: int
    threshold: float
    nearest_real: float | None  # distance under which 2 % of the training images lie to another one
    pairs: tuple[CopyPair, ...]
    notes: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class ImagesInSpace:
    """Images of one kind (real, synthetic, validation) on the plane; `total` counts those not drawn as well."""

    kind: str
    points: tuple[tuple[float, float], ...]
    total: int


@dataclass(frozen=True, slots=True)
class FeatureSpace:
    """The plane on which the features of real training images differ most, as one classifier sees them."""

    arm: str
    seed: int
    explained: tuple[float, float]  # shares of the real images' variance
    kinds: tuple[ImagesInSpace, ...]
    centres: tuple[tuple[str, float, float], ...]  # (class, mean of its real images)


@dataclass(frozen=True, slots=True)
class Summary:
    """Everything the page shows."""

    run: str
    version: str
    verdict: str
    data: str
    model: str
    method: str
    classifier: str
    recipe: str  # resolved YAML
    command: str
    environment: tuple[tuple[str, str], ...]
    classes: tuple[ClassCounts, ...]
    mean_weight: float | None  # of the kept images
    warnings: tuple[str, ...]
    duplicates: tuple[Duplicate, ...]
    unreadable: tuple[tuple[str, str], ...]  # (file, reason) of images left out
    arms: tuple[Arm, ...]
    comparisons: tuple[Comparison, ...]
    shots: tuple[Slice, ...]  # many-, medium- and few-shot classes; empty without a long tail
    groups: Groups | None
    extra_tests: tuple[Slice, ...]
    confused: tuple[tuple[str, tuple[Confused, ...]], ...]  # (arm, its most frequent mistakes)
    curves: tuple[Curve, ...]
    adapting: Adapting | None
    feature_space: FeatureSpace | None
    exhibits: tuple[Exhibit, ...]
    dropped: tuple[Dropped, ...]
    curation: str  # the curate stage's own line
    quality: Quality | None
    costs: tuple[StageCost, ...]
    missing: tuple[Missing, ...]

    @property
    def headline(self) -> Comparison | None:
        """The comparison the page opens with: real+synthetic against real where there is one."""
        ranked = sorted(self.comparisons, key=lambda pair: (pair.arm, pair.baseline) != ("real+synthetic", "real"))
        return ranked[0] if ranked else None

    def total(self, column: str) -> int:
        """Sum of one column of the class counts: train, val, test, drawn or kept."""
        return sum(getattr(row, column) for row in self.classes)

    @property
    def seconds(self) -> float:
        return sum(cost.seconds for cost in self.costs)

    def has(self, column: str) -> bool:
        """Whether any stage has told this cost: peak_memory_mb, gpu_memory_mb or energy_j."""
        return any(getattr(cost, column) is not None for cost in self.costs)

    @property
    def image_ids(self) -> tuple[str, ...]:
        """Every image the page needs, each once, in page order."""
        real = [image for exhibit in self.exhibits for image in exhibit.real]
        holders: tuple[Exhibit | Dropped, ...] = (*self.exhibits, *self.dropped)
        drawn = [variant.id for holder in holders for variant in _variants(holder)]
        pairs = [image for pair in (self.quality.pairs if self.quality else ()) for image in (pair.of, pair.id)]
        return tuple(dict.fromkeys([*real, *drawn, *pairs]))


def _variants(holder: Exhibit | Dropped) -> tuple[Variant, ...]:
    return holder.variants if isinstance(holder, Exhibit) else holder.examples
