"""Latents, crops, flips and masks: encoded once, cut alike, read back on the second run."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from adapting import learn, make_run, recipe_of, spec_of
from PIL import Image

from variegate.backends.diffusion import DiffusionBackend
from variegate.errors import DataError, TaskFailed
from variegate.images import load_squares
from variegate.recipe import AdaptSection, DatasetSection
from variegate.stages.adapt.views import CACHE, encode_views, mask_views
from variegate.stages.generate.draw import DrawSetup, SourceLatents
from variegate.store import RunFolder

DATA = DatasetSection()


@pytest.fixture
def folder(tmp_path: Path):  # noqa: ANN201
    with make_run(tmp_path / "run", masks=True) as opened:
        yield opened


@pytest.fixture(scope="module")
def backend(tiny_sd: Path):  # noqa: ANN201
    with DiffusionBackend.open(spec_of(tiny_sd)) as opened:
        yield opened


def encoded(backend: DiffusionBackend, folder: RunFolder, seed: int = 0, **section: object) -> torch.Tensor:
    return encode_views(backend, folder.real_images("train"), folder.root, AdaptSection(**section), DATA, seed=seed)


def stamps(folder: RunFolder) -> dict[str, int]:
    return {path.name: path.stat().st_mtime_ns for path in (folder.root / CACHE).glob("*.safetensors")}


def test_views_are_the_image_and_its_mirror_image(backend: DiffusionBackend, folder: RunFolder) -> None:
    found = encoded(backend, folder)
    assert found.shape == (9, 2, 4, 8, 8) and found.dtype == torch.float16
    pixels = load_squares(
        [Path(image.path) for image in folder.real_images("train")], 32, DATA.fit, DATA.max_megapixels
    )
    assert torch.equal(found[:, 0], backend.encode_sources(pixels).half())
    assert torch.equal(found[:, 1], backend.encode_sources(np.ascontiguousarray(pixels[:, :, ::-1])).half())
    assert encoded(backend, folder, flip=False).shape == (9, 1, 4, 8, 8)


def test_crops_are_encoded_once_and_read_back(
    backend: DiffusionBackend, folder: RunFolder, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = encoded(backend, folder, crops=3)
    assert first.shape == (9, 6, 4, 8, 8)
    assert all(not torch.equal(first[:, 0], first[:, k]) for k in range(1, 6)), "six different views"
    before = stamps(folder)
    monkeypatch.setattr(backend, "encode_sources", lambda pixels: pytest.fail("was encoded already"))
    assert torch.equal(encoded(backend, folder, crops=3), first)
    assert stamps(folder) == before and len(before) == 1


def test_what_changes_the_views_is_encoded_anew(backend: DiffusionBackend, folder: RunFolder) -> None:
    first = encoded(backend, folder, crops=2)
    other = encoded(backend, folder, crops=2, seed=1)
    assert torch.equal(first[:, :2], other[:, :2]) and not torch.equal(first[:, 2:], other[:, 2:])
    encoded(backend, folder, crops=2, flip=False)
    assert len(stamps(folder)) == 3


def test_a_damaged_cache_file_is_made_again(backend: DiffusionBackend, folder: RunFolder) -> None:
    first = encoded(backend, folder)
    [path] = (folder.root / CACHE).iterdir()
    path.write_bytes(path.read_bytes()[:100])
    assert torch.equal(encoded(backend, folder), first)


@pytest.mark.parametrize("fits", [2, 0])
def test_when_memory_runs_out_fewer_views_are_encoded_at_a_time(
    backend: DiffusionBackend, folder: RunFolder, monkeypatch: pytest.MonkeyPatch, fits: int
) -> None:
    original, sizes = backend.encode_sources, []

    def limited(pixels: np.ndarray) -> torch.Tensor:
        sizes.append(len(pixels))
        if len(pixels) > fits:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB")
        return original(pixels)

    whole = encoded(backend, folder)
    for path in (folder.root / CACHE).iterdir():
        path.unlink()
    monkeypatch.setattr(backend, "encode_sources", limited)
    if fits:
        assert torch.allclose(encoded(backend, folder).float(), whole.float(), atol=1e-2) and min(sizes) <= fits
    else:
        with pytest.raises(
            TaskFailed, match=r"memory does not suffice for encoding with one image: .*backend\.size_px"
        ):
            encoded(backend, folder)


@pytest.mark.parametrize("damage", [lambda data: data[:100], lambda data: b""], ids=["cut", "empty"])
def test_a_damaged_file_of_latents_to_draw_from_is_made_again(
    backend: DiffusionBackend, folder: RunFolder, damage: Callable[[bytes], bytes]
) -> None:
    images = tuple(folder.real_images("train"))
    classes = tuple(folder.classes())
    setup = DrawSetup(backend.spec, ("cpu",), str(folder.root), classes, images, DATA.fit, DATA.max_megapixels, "png")
    latents = [SourceLatents(setup, lambda _, squares: backend.encode_sources(squares)) for _ in range(2)]
    ids = [image.id for image in images]
    first = latents[0].stack(ids)
    [path] = latents[0].folder.iterdir()
    whole = path.read_bytes()
    path.write_bytes(damage(whole))
    assert torch.equal(latents[1].stack(ids), first) and path.read_bytes() == whole


def test_masks_are_cut_as_the_views_are(folder: RunFolder) -> None:
    images = folder.real_images("train")
    masks = mask_views(images, AdaptSection(crops=1), DATA, edge=32, latent_px=8, seed=0)
    assert masks.shape == (9, 2, 1, 8, 8)
    assert masks[0, 0, 0, :, 0].min() > 0.9 and masks[0, 0, 0, :, -1].max() < 0.1
    assert torch.equal(masks[:, 1], masks[:, 0].flip(-1))
    more = mask_views(images, AdaptSection(crops=3), DATA, edge=32, latent_px=8, seed=0)
    assert more.shape == (9, 6, 1, 8, 8) and more.min() >= 0 and more.max() <= 1
    assert not torch.equal(more[:, 2], more[:, 4]), "random crops differ"


def test_a_mask_of_another_shape_lies_over_its_picture(folder: RunFolder, tmp_path: Path) -> None:
    """Pictures are 36 by 40 pixels; a square mask of the left half is of the left half of the picture, however it is cut."""
    square = np.zeros((64, 64), np.uint8)
    square[:, :32] = 255
    Image.fromarray(square).save(tmp_path / "square.png")
    image = replace(folder.real_images("train")[0], mask=str(tmp_path / "square.png"), width=80, height=20)
    (mask,) = mask_views([image], AdaptSection(flip=False), DATA, edge=32, latent_px=8, seed=0)[0]
    assert torch.equal(mask[0], torch.tensor([1.0] * 4 + [0.0] * 4).expand(8, 8))
    padded = DatasetSection(fit="pad")
    (mask,) = mask_views([image], AdaptSection(flip=False), padded, edge=32, latent_px=8, seed=0)[0]
    assert mask[0, 4, :4].min() == 1 and mask[0, :, 4:].max() == 0 and mask[0, 0].max() == 0, "padding is no object"


def test_images_without_a_mask_count_whole(tmp_path: Path) -> None:
    with make_run(tmp_path / "plain") as plain:
        assert (mask_views(plain.real_images("train"), AdaptSection(), DATA, edge=32, latent_px=8, seed=0) == 1).all()


def test_masks_change_what_is_learned(tiny_sd: Path, tmp_path: Path) -> None:
    from adapting import same, weights

    found = []
    for name, masks, mask in (
        ("a", True, "foreground"),
        ("b", True, "none"),
        ("c", False, "none"),
    ):
        with make_run(tmp_path / name, masks=masks) as folder:
            learn(folder, recipe_of(tiny_sd, mask=mask, steps=2))
            found.append(weights(folder.root))
    masked, ignored, plain = found
    assert not same(masked, ignored) and same(ignored, plain)


@pytest.mark.parametrize(("masked", "said"), [(0, "foreground needs masks and no training image has one"), (2, "")])
def test_masks_that_are_not_there_are_no_silence(tiny_sd: Path, tmp_path: Path, masked: int, said: str) -> None:
    with make_run(tmp_path / "run", masks=True) as folder:
        train = [image.id for image in folder.real_images("train")]
        images = [
            replace(image, mask=image.mask if image.id in train[:masked] or image.split == "val" else None)
            for image in folder.real_images()
        ]
        folder.put_dataset(folder.classes(), images)
        recipe = recipe_of(tiny_sd, mask="foreground", steps=1)
        if said:
            with pytest.raises(DataError, match=f"adapt.mask: {said}.*adapt.mask=none"):
                learn(folder, recipe)
        else:
            summary = learn(folder, recipe)
            assert summary["warnings"] == ["7 of 9 training images have no mask and count whole"]
            assert summary["warnings"][0] in summary["line"]
