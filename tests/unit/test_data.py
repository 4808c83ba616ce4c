"""A run's images in a training loop of one's own."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch.utils.data import DataLoader, TensorDataset, WeightedRandomSampler
from torchvision.transforms import v2

from variegate.data import MixedDataset, RealDataset, SyntheticDataset
from variegate.errors import DataError, RunFolderError
from variegate.records import soft_label


@pytest.fixture
def run(coloured_run):
    context = coloured_run(train={"label": {"gamma": 0.5}})
    ids = [image.id for image in context.folder.synthetic_images()]
    context.folder.put_decisions("curate", [(ids[5], "drop", 0.0, "blank"), (ids[0], "keep", 0.25, "off-class")])
    return context.folder.root


def test_synthetic_images_come_with_soft_labels_and_weights(run) -> None:
    data = SyntheticDataset(run)
    assert len(data) == 17
    assert data.classes == ("blue", "green", "red")
    assert data.weights.tolist() == [0.25, *[1.0] * 16]
    image, target = data[3]
    assert (image.shape, image.dtype) == ((3, 16, 16), torch.uint8)
    record = data.records[3]
    expected = dict(soft_label(record.source_label, record.target, record.strength, gamma=0.5))
    assert target.tolist() == pytest.approx([expected.get(label, 0.0) for label in range(3)])
    assert SyntheticDataset(run, kappa=0.9)[3].target.sum() == pytest.approx(0.9)


def test_dropped_images_are_there_on_request_with_no_weight(run) -> None:
    data = SyntheticDataset(run, kept_only=False)
    assert len(data) == 18
    assert data.weights[5] == 0.0


def test_transforms_loaders_and_samplers_of_torch_fit(run) -> None:
    transform = v2.Compose([v2.ToImage(), v2.Resize(8, antialias=True), v2.ToDtype(torch.float32, scale=True)])
    data = SyntheticDataset(run, transform)
    loader = DataLoader(data, batch_size=5, sampler=WeightedRandomSampler(data.weights, 10))
    batch = next(iter(loader))
    assert batch.image.shape == (5, 3, 8, 8)
    assert batch.target.shape == (5, 3)
    assert torch.nn.functional.cross_entropy(torch.zeros(5, 3), batch.target) == pytest.approx(np.log(3), abs=1e-5)


def test_real_images_of_a_split(run) -> None:
    data = RealDataset(run, "val")
    assert len(data) == len(data.ids) == 12
    assert data[0].target.tolist() == [1.0, 0.0, 0.0]
    with pytest.raises(ValueError, match="train, val or test"):
        RealDataset(run, "testing")


def test_replace_swaps_for_images_made_from_the_same_real_one(run) -> None:
    real, synthetic = RealDataset(run), SyntheticDataset(run)
    mixed = MixedDataset(real, synthetic, "replace", fraction=1.0)
    assert len(mixed) == len(real)
    swapped = 0
    for place in range(len(mixed)):
        if mixed._slots.is_synthetic[place]:
            swapped += 1
            assert synthetic.records[mixed._slots.index[place]].source == real.ids[place]
    assert swapped > 5


def test_concat_holds_all_of_both(run) -> None:
    mixed = MixedDataset(RealDataset(run), SyntheticDataset(run, kept_only=True), "concat")
    assert 15 + 16 <= len(mixed) <= 15 + 17  # the one of weight 0.25 comes every fourth pass
    assert all(mixed[place].target.sum() == pytest.approx(1.0) for place in range(len(mixed)))


def test_epochs_differ_and_repeat(run) -> None:
    mixed = MixedDataset(RealDataset(run), SyntheticDataset(run), fraction=0.5)
    first = mixed._slots.is_synthetic.copy()
    mixed.set_epoch(1)
    assert (mixed._slots.is_synthetic != first).any()
    mixed.set_epoch(0)
    assert (mixed._slots.is_synthetic == first).all()


def test_any_dataset_of_images_and_labels_can_be_the_real_one(run) -> None:
    own = TensorDataset(torch.zeros(6, 3, 16, 16), torch.tensor([0, 1, 2, 0, 1, 2]))
    with pytest.raises(DataError, match="may be any class"):
        MixedDataset(own, SyntheticDataset(run), fraction=0.0)[0]
    with pytest.raises(DataError, match="the run has no class 'rot'"):
        MixedDataset(own, SyntheticDataset(run), real_classes=["rot", "green", "blue"])
    turned = MixedDataset(own, SyntheticDataset(run), fraction=0.0, real_classes=["red", "green", "blue"])
    assert [turned[place].target.argmax().item() for place in range(3)] == [2, 1, 0], "a run sorts its classes"
    own.classes = ["blue", "green", "red"]  # as torchvision's data sets have them
    mixed = MixedDataset(own, SyntheticDataset(run), fraction=0.0)
    assert [mixed[place].target.argmax().item() for place in range(6)] == [0, 1, 2, 0, 1, 2]
    with pytest.raises(DataError, match="real_ids"):
        MixedDataset(own, SyntheticDataset(run), "replace")


def test_what_is_wrong_is_said(run, tmp_path) -> None:
    with pytest.raises(RunFolderError, match="run folder"):
        SyntheticDataset(tmp_path / "nowhere")
    real, synthetic = RealDataset(run), SyntheticDataset(run)
    with pytest.raises(ValueError, match="policy"):
        MixedDataset(real, synthetic, "swap")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="fraction"):
        MixedDataset(real, synthetic, fraction=1.5)
    with pytest.raises(DataError, match="was made from"):
        MixedDataset(real, synthetic, "replace", real_ids=["x"] * len(real))
