"""Finished runs as torch datasets, for a training loop of one's own: real, synthetic, and both mixed.

`SyntheticDataset("runs/birds")` gives the kept images with soft labels and weights; `MixedDataset` puts them among real
ones the way train does. Opening a run reads its tables only; nothing is written.
"""

from __future__ import annotations

import math
import os
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple, Protocol
from unicodedata import normalize

import numpy as np
import torch
from PIL import Image
from torch.utils.data import Dataset

from variegate.classifier import labels, mixing
from variegate.errors import DataError, Problem
from variegate.images import load_rgb
from variegate.recipe import Recipe
from variegate.recipe_file import parse_yaml
from variegate.records import RealImage, SyntheticImage, extra_tests, seed_from
from variegate.store import RunFolder

Transform = Callable[[Image.Image], Any]


class Sample(NamedTuple):
    """One item: `image` is what the transform gave, or uint8 [3, H, W] without one; `target` float32 [C]."""

    image: Any
    target: torch.Tensor


class LabelledImages(Protocol):
    """Any map-style dataset of (image, label or target row); torch's own Dataset says nothing of its length."""

    def __len__(self) -> int: ...

    def __getitem__(self, index: int, /) -> Any: ...


class RealDataset(Dataset):
    """The real images of a run's split, in the run's order; `ids` names them for MixedDataset.

    Raises RunFolderError where there is no run, ValueError for an unknown split.
    """

    def __init__(self, run: str | os.PathLike[str], split: str = "train", transform: Transform | None = None) -> None:
        if split not in ("train", "val", "test", *extra_tests([split])):
            raise ValueError(f"split is {split!r}, should be train, val or test, or an extra test set, test_<word>")
        with RunFolder.read(Path(run)) as folder:
            self.classes = tuple(info.name for info in folder.classes())
            self.records: list[RealImage] = folder.real_images(split)
        self.ids = tuple(record.id for record in self.records)
        self.transform = transform
        self.targets = torch.from_numpy(labels.one_hot([record.label for record in self.records], len(self.classes)))

    def __len__(self) -> int:
        return len(self.records)

    def __getitem__(self, index: int) -> Sample:
        return Sample(_open(Path(self.records[index].path), self.transform), self.targets[index])


class SyntheticDataset(Dataset):
    """The synthetic images of a run that were kept, in plan order, with Diff-Mix's soft labels.

    `weights` float64 [N] are what curate gave, fit for torch's WeightedRandomSampler; `records` hold source, prompt,
    strength and decision of each. `gamma` and `kappa` shape the labels and are the run's own unless given. With
    `kept_only=False` dropped images are there too, with weight 0. Raises RunFolderError where there is no run.
    """

    def __init__(
        self,
        run: str | os.PathLike[str],
        transform: Transform | None = None,
        *,
        gamma: float | None = None,
        kappa: float | None = None,
        kept_only: bool = True,
    ) -> None:
        with RunFolder.read(Path(run)) as folder:
            self.classes = tuple(info.name for info in folder.classes())
            self.records: list[SyntheticImage] = folder.synthetic_images(kept_only=kept_only)
            options = _recipe(folder).train.label
            self._paths = [folder.path(record.path) for record in self.records]
        gamma, kappa = options.gamma if gamma is None else gamma, options.kappa if kappa is None else kappa
        self.transform = transform
        self.targets = torch.from_numpy(labels.soft_targets(self.records, len(self.classes), gamma=gamma, kappa=kappa))
        weights = [record.weight if record.action == "keep" else 0.0 for record in self.records]
        self.weights = torch.tensor(weights, dtype=torch.float64)

    def __len__(self) -> int:
        return len(self.records)

    def __getitem__(self, index: int) -> Sample:
        return Sample(_open(self._paths[index], self.transform), self.targets[index])


class MixedDataset(Dataset):
    """Real images with synthetic ones among them, by one of train's policies.

    replace: with probability `fraction` an image made from the same real one stands in for it; pool: any synthetic
    image; concat: all of both (length len(real) + len(synthetic), or fewer with weights). Weights are respected. `real`
    is any dataset of (image, label or target row); replace needs its `ids` (RealDataset has them; else give
    `real_ids`). Labels are matched by name, as a run sorts its classes: `real_classes` names those of `real` in their own
    order, where it has no `classes` of its own (torchvision's have).
    Draws depend on `seed`, the epoch given to `set_epoch`, and nothing else: workers cannot change them.
    Raises DataError where the policy has nothing to choose from.
    """

    def __init__(
        self,
        real: LabelledImages,
        synthetic: SyntheticDataset,
        policy: mixing.Policy = "pool",
        *,
        fraction: float = 0.3,
        seed: int = 0,
        real_ids: Sequence[str] | None = None,
        real_classes: Sequence[str] | None = None,
    ) -> None:
        if policy not in ("replace", "pool", "concat"):
            raise ValueError(f"policy is {policy!r}, should be replace, pool or concat")
        if not 0.0 <= fraction <= 1.0:
            raise ValueError(f"fraction is {fraction}, should be in [0, 1]")
        self.real, self.synthetic, self.policy, self.fraction, self.seed = real, synthetic, policy, fraction, seed
        self._names = real_classes or getattr(real, "classes", None)
        self._known = {name: label for label, name in enumerate(synthetic.classes)}
        for own in range(len(real_classes or ())):
            self._label(own)  # a misspelt name is told now
        ids = _ids(real, real_ids, policy)
        parents = mixing.parent_indices([record.source for record in synthetic.records], ids)
        targets = np.array([record.target for record in synthetic.records], np.int64)
        self._pool = mixing.Pool(synthetic.weights.numpy(), parents, targets)
        self.set_epoch(0)

    def set_epoch(self, epoch: int) -> None:
        """Draw anew; call it before each pass, as with torch's DistributedSampler."""
        count, rng = len(self.real), np.random.default_rng(seed_from(self.seed, "mixed", epoch))
        try:
            if self.policy == "concat":
                self._slots = mixing.one_pass(count, self._pool, rng)
            else:
                order = np.arange(count, dtype=np.int64)
                slots = mixing.mix(self.policy, order, self._pool, fraction=self.fraction, num_real=count, rng=rng)
                # a loader shuffles, so every real image that stays keeps its own place
                self._slots = mixing.Slots(slots.is_synthetic, np.where(slots.is_synthetic, slots.index, order))
        except ValueError as exc:
            raise DataError(Problem("MixedDataset", str(exc), "use another policy, or keep more images")) from exc

    def __len__(self) -> int:
        return len(self._slots.index)

    def __getitem__(self, index: int) -> Sample:
        place = int(self._slots.index[index])
        if self._slots.is_synthetic[index]:
            return self.synthetic[place]
        image, target = self.real[place]
        if isinstance(target, torch.Tensor) and target.ndim == 1:
            return Sample(image, target.to(torch.float32))
        row = labels.one_hot([self._label(int(target))], len(self.synthetic.classes))[0]
        return Sample(image, torch.from_numpy(row))

    def _label(self, own: int) -> int:
        """The run's label for one of the real data set's own."""
        if self._names is None:
            text = f"label {own} of the real images may be any class: a run sorts its classes by name"
            raise DataError(Problem("MixedDataset", text, "give real_classes=[...], the names in their order"))
        name = normalize("NFC", str(self._names[own]))  # as a run spells them, whatever a Mac's folders do
        if name not in self._known:
            text = f"the run has no class {name!r}; it has {', '.join(self.synthetic.classes[:5])}"
            raise DataError(Problem("MixedDataset", text, "give the names as the run has them in real_classes"))
        return self._known[name]


def _ids(real: LabelledImages, given: Sequence[str] | None, policy: str) -> Sequence[str]:
    ids = given if given is not None else getattr(real, "ids", None)
    if ids is None and policy == "replace":
        text = "replace has to know which real image is which"
        raise DataError(Problem("MixedDataset", text, "use RealDataset, or give real_ids in the dataset's order"))
    if ids is not None and len(ids) != len(real):
        raise ValueError(f"real_ids has {len(ids)} ids for {len(real)} images")
    return ids or ()


def _open(path: Path, transform: Transform | None) -> Any:
    pixels = load_rgb(path, max_megapixels=math.inf)  # the run has accepted it
    return transform(Image.fromarray(pixels)) if transform else torch.from_numpy(pixels).permute(2, 0, 1)


def _recipe(folder: RunFolder) -> Recipe:
    path = folder.path("recipe.yaml")
    return Recipe.model_validate(parse_yaml(path.read_text(encoding="utf-8"), str(path)))
