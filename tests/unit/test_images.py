"""Every kind of file gives the picture a person sees; broken and hostile ones give the true reason."""

from __future__ import annotations

import io
import struct
import threading
import zlib
from pathlib import Path

import numpy as np
import pytest
from PIL import Image, ImageCms

from variegate.images import (
    UnreadableImage,
    check_images,
    encode_image,
    float_to_pixels,
    load_rgb,
    load_square,
    load_squares,
    pixels_to_float,
    resize_square,
)

RED, GREEN, BLUE, WHITE = (220, 30, 30), (30, 180, 60), (30, 60, 210), (255, 255, 255)


def quarters(width: int = 64, height: int = 48) -> np.ndarray:
    """Red, green over blue, white: any turn or swapped channel shows."""
    pixels = np.zeros((height, width, 3), np.uint8)
    pixels[: height // 2, : width // 2], pixels[: height // 2, width // 2 :] = RED, GREEN
    pixels[height // 2 :, : width // 2], pixels[height // 2 :, width // 2 :] = BLUE, WHITE
    return pixels


def save(path: Path, pixels: np.ndarray | Image.Image, **options) -> Path:
    image = pixels if isinstance(pixels, Image.Image) else Image.fromarray(pixels)
    image.save(path, **options)
    return path


def assert_alike(got: np.ndarray, wanted: np.ndarray, tolerance: float = 3.0) -> None:
    assert got.dtype == np.uint8
    assert got.shape == wanted.shape
    assert np.abs(got.astype(float) - wanted.astype(float)).mean() <= tolerance


def png_header(width: int, height: int) -> bytes:
    """A PNG that claims a size and holds nothing."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(b"")) + chunk(b"IEND", b"")


# ---------------------------------------------------------------------------------------------------- kinds of files


@pytest.mark.parametrize("name", ["a.jpg", "a.png", "a.webp", "a.bmp", "a.gif", "a.tif", "a.avif", "a.ppm"])
def test_every_format_gives_the_same_picture(tmp_path, name):
    assert_alike(load_rgb(save(tmp_path / name, quarters())), quarters(), tolerance=6)


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("extension", ["jpg", "png", "tif", "webp"])
def test_exif_rotation_is_undone(tmp_path, orientation, extension):
    undo = {2: "FLIP_LEFT_RIGHT", 3: "ROTATE_180", 4: "FLIP_TOP_BOTTOM", 5: "TRANSPOSE", 6: "ROTATE_90"}
    undo |= {7: "TRANSVERSE", 8: "ROTATE_270"}
    stored = Image.fromarray(quarters())
    if orientation > 1:
        stored = stored.transpose(Image.Transpose[undo[orientation]])
    exif = Image.Exif()
    exif[0x0112] = orientation
    path = save(tmp_path / f"turned.{extension}", stored, exif=exif)
    assert_alike(load_rgb(path), quarters(), tolerance=6)
    (found,) = check_images([path])
    assert (found.width, found.height) == (64, 48)


def test_grey_of_every_depth_keeps_its_brightness(tmp_path):
    ramp = np.tile(np.linspace(0, 255, 64).round().astype(np.uint8), (48, 1))
    wanted = np.repeat(ramp[..., None], 3, axis=2)
    deep = ramp.astype(np.uint16) * 257
    files = [
        save(tmp_path / "grey.png", ramp),
        save(tmp_path / "deep.png", deep),
        save(tmp_path / "deep.tif", deep),
        save(tmp_path / "int32.tif", deep.astype(np.int32)),
        save(tmp_path / "unit.tif", ramp.astype(np.float32) / 255),
        save(tmp_path / "la.png", Image.fromarray(ramp).convert("LA")),
    ]
    for path in files:
        assert_alike(load_rgb(path), wanted, tolerance=0.51)
    (tmp_path / "big-endian.pgm").write_bytes(b"P5 64 48 65535\n" + deep.astype(">u2").tobytes())
    assert_alike(load_rgb(tmp_path / "big-endian.pgm"), wanted, tolerance=0.51)


def test_values_without_a_known_brightness_are_refused(tmp_path):
    heights = np.linspace(-400, 8000, 64 * 48).reshape(48, 64).astype(np.float32)
    with pytest.raises(UnreadableImage, match=r"float32 values from -400 to 8000.*convert it to 8 or 16 bit"):
        load_rgb(save(tmp_path / "heights.tif", heights))


def test_one_bit_images_are_black_and_white(tmp_path):
    bits = np.indices((16, 16)).sum(axis=0) % 2 == 0
    got = load_rgb(save(tmp_path / "bits.png", Image.fromarray(bits)))
    assert_alike(got, np.repeat(bits[..., None], 3, axis=2).astype(np.uint8) * 255, tolerance=0)


def test_transparent_parts_are_white(tmp_path):
    rgba = np.dstack([quarters(), np.full((48, 64), 255, np.uint8)])
    rgba[:24, :32, 3] = 0  # the red quarter
    wanted = quarters()
    wanted[:24, :32] = WHITE
    image = Image.fromarray(rgba)
    grey = Image.merge("LA", (image.convert("L"), image.getchannel("A")))
    palette = Image.fromarray(quarters()).quantize(8)
    by_index = save(tmp_path / "palette.png", palette, transparency=palette.getpixel((0, 0)))
    by_colour = save(tmp_path / "colour.png", quarters(), transparency=RED)
    for path in (
        save(tmp_path / "rgba.png", image),
        by_index,
        by_colour,
        save(tmp_path / "rgba.webp", image, lossless=True),
    ):
        assert_alike(load_rgb(path), wanted, tolerance=2)
    assert (load_rgb(save(tmp_path / "la.png", grey))[:24, :32] == 255).all()
    half = Image.new("RGBA", (4, 4), (0, 0, 0, 128))
    assert abs(int(load_rgb(save(tmp_path / "half.png", half))[0, 0, 0]) - 127) <= 1


def test_palette_with_many_transparencies(tmp_path):
    palette = Image.fromarray(quarters()).quantize(4)
    alphas = bytes([0 if index == palette.getpixel((0, 0)) else 255 for index in range(4)])
    wanted = quarters()
    wanted[:24, :32] = WHITE
    assert_alike(load_rgb(save(tmp_path / "p.png", palette, transparency=alphas)), wanted, tolerance=2)


def test_print_colours_are_not_inverted(tmp_path):
    cmyk = Image.fromarray(quarters()).convert("CMYK")
    adobe = save(tmp_path / "adobe.jpg", cmyk, quality=95)  # Pillow writes them inverted, with Adobe's marker
    assert b"Adobe" in adobe.read_bytes()[:400]
    assert_alike(load_rgb(adobe), quarters(), tolerance=6)
    assert_alike(load_rgb(save(tmp_path / "print.tif", cmyk)), quarters(), tolerance=1)


def test_colour_profiles_are_applied(tmp_path):
    lab = ImageCms.profileToProfile(
        Image.fromarray(quarters()), ImageCms.createProfile("sRGB"), ImageCms.createProfile("LAB"), outputMode="LAB"
    )
    assert_alike(load_rgb(save(tmp_path / "lab.tif", lab)), quarters(), tolerance=6)
    swapped = Image.fromarray(quarters()[..., ::-1].copy())  # stored blue, green, red; its profile says so
    path = save(tmp_path / "swapped.png", swapped, icc_profile=_swapped_profile())
    assert_alike(load_rgb(path), quarters(), tolerance=12)
    broken = save(tmp_path / "broken.png", quarters(), icc_profile=b"no profile")
    assert_alike(load_rgb(broken), quarters(), tolerance=0)


def _swapped_profile() -> bytes:
    """sRGB with its red and blue tags exchanged and another name."""
    data = bytearray(ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes())
    for first, second in ((b"rXYZ", b"bXYZ"), (b"rTRC", b"bTRC")):
        one, two = data.index(first), data.index(second)
        data[one : one + 4], data[two : two + 4] = second, first
    return bytes(data).replace("sRGB".encode("utf-16-be"), "BGR!".encode("utf-16-be"))


def test_a_profile_that_says_nothing_usable_is_left_out(tmp_path):
    profile = _swapped_profile()
    for tag in (b"rTRC", b"gTRC", b"bTRC", b"rXYZ"):
        profile = profile.replace(tag, b"none")
    path = save(tmp_path / "odd.png", quarters(), icc_profile=profile)
    assert_alike(load_rgb(path), quarters(), tolerance=0)


def test_the_first_frame_of_an_animation(tmp_path):
    frames = [Image.fromarray(quarters()), Image.new("RGB", (64, 48), "black")]
    for name in ("a.gif", "a.webp", "a.png", "a.tif"):
        path = save(tmp_path / name, frames[0], save_all=True, append_images=frames[1:])
        assert_alike(load_rgb(path), quarters(), tolerance=6)


# ---------------------------------------------------------------------------------------------------- refused files


def test_broken_files_name_the_true_reason(tmp_path):
    noise = np.random.default_rng(0).integers(0, 256, (64, 64, 3), np.uint8)
    whole = {kind: encode_image(noise, kind) for kind in ("jpg", "png", "webp")}
    damaged = bytearray(whole["png"])
    damaged[60:80] = b"\0" * 20
    cases = {
        "empty.jpg": (b"", "is empty (0 bytes)"),
        "text.jpg": (b"not an image\n" * 90, "is a text file, not an image"),
        "gr\u00fc\u00dfe.jpg": ("gr\u00fc\u00dfe ".encode() * 100, "is a text file, not an image"),
        "page.jpg": (b"<!DOCTYPE html><html></html>", "is a web page"),
        "pointer.jpg": (b"version https://git-lfs.github.com/spec/v1\n", "git lfs pull"),
        "photo.heic": (b"\0\0\0\x18ftypheic\0\0\0\0mif1heic", "convert it to JPEG"),
        "drawing.svg": (b'<?xml version="1.0"?><svg xmlns=""></svg>', "convert it to PNG"),
        "bytes.jpg": (bytes(range(256)), "is no image in a format read here"),
        "cut.jpg": (whole["jpg"][:-600], "is a truncated JPEG file"),
        "cut.png": (whole["png"][:-600], "is a truncated PNG file"),
        "cut.webp": (whole["webp"][:-600], "is a truncated WEBP file"),
        "damaged.png": (bytes(damaged), "is a damaged PNG file"),
    }
    for name, (data, reason) in cases.items():
        (tmp_path / name).write_bytes(data)
        with pytest.raises(UnreadableImage) as caught:
            load_rgb(tmp_path / name)
        assert reason in caught.value.reason, name
        assert name in str(caught.value)
        (found,) = check_images([tmp_path / name])
        assert reason in found.reason, name
        assert found.sha256 == ""
    with pytest.raises(UnreadableImage, match="does not exist"):
        load_rgb(tmp_path / "nowhere.jpg")
    with pytest.raises(UnreadableImage, match="cannot be opened"):
        load_rgb(tmp_path)


def test_a_huge_header_is_refused_before_decoding(tmp_path):
    path = tmp_path / "bomb.png"
    path.write_bytes(png_header(50_000, 50_000))
    with pytest.raises(UnreadableImage, match=r"50,000 x 50,000 px \(2,500 megapixels\), more than max_megapixels 64"):
        load_rgb(path)
    small = save(tmp_path / "small.png", quarters(200, 100))
    assert load_rgb(small, max_megapixels=0.02).shape == (100, 200, 3)
    with pytest.raises(UnreadableImage, match="more than max_megapixels 0.019"):
        load_rgb(small, max_megapixels=0.019)


@pytest.mark.parametrize("extension", ["jpg", "png", "bmp"])
def test_the_limit_is_ours_not_pillows(tmp_path, monkeypatch, extension):
    path = save(tmp_path / f"wide.{extension}", quarters())
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 100)  # Pillow refuses twice that, and warns below
    assert load_rgb(path, max_megapixels=1).shape == (48, 64, 3)
    assert load_square(path, 32, max_megapixels=1).shape == (32, 32, 3)


def test_an_error_keeps_its_words_across_processes(tmp_path):
    import pickle

    again = pickle.loads(pickle.dumps(UnreadableImage("a.jpg", "is empty")))
    assert (str(again), again.reason) == ("a.jpg: is empty", "is empty")


# ---------------------------------------------------------------------------------------------------- squares


def test_crop_keeps_the_middle(tmp_path):
    pixels = np.zeros((40, 120, 3), np.uint8)
    pixels[:, :40], pixels[:, 40:80], pixels[:, 80:] = RED, GREEN, BLUE
    path = save(tmp_path / "wide.png", pixels)
    assert_alike(load_square(path, 20, "crop"), np.full((20, 20, 3), GREEN, np.uint8), tolerance=0)
    stretched = load_square(path, 30, "stretch")
    for column, colour in ((4, RED), (15, GREEN), (25, BLUE)):
        assert np.abs(stretched[15, column].astype(int) - colour).max() <= 3


def test_pad_shows_everything_on_the_border_colour(tmp_path):
    pixels = np.full((20, 60, 3), WHITE, np.uint8)
    pixels[5:15, 5:55] = BLUE
    padded = load_square(save(tmp_path / "wide.png", pixels), 60, "pad")
    assert padded.shape == (60, 60, 3)
    assert (padded[:15] == 255).all()
    assert_alike(padded[20:40], pixels, tolerance=0)


def test_shrinking_does_not_alias(tmp_path):
    stripes = np.zeros((512, 512, 3), np.uint8)
    stripes[:, ::2] = 255
    for name in ("fine.png", "fine.jpg"):
        small = load_square(save(tmp_path / name, stripes, **({"quality": 98} if name[-3:] == "jpg" else {})), 32)
        assert np.abs(small.astype(int) - 127).max() <= 8


def test_one_pixel_wide_images_become_squares(tmp_path):
    path = save(tmp_path / "line.png", np.full((300, 1, 3), 90, np.uint8))
    for fit in ("crop", "pad", "stretch"):
        assert_alike(load_square(path, 16, fit), np.full((16, 16, 3), 90, np.uint8), tolerance=0)
    with pytest.raises(ValueError, match="should be crop, pad or stretch"):
        load_square(path, 16, "zoom")  # type: ignore[arg-type]


def test_many_files_keep_their_order(tmp_path):
    paths = [save(tmp_path / f"{value}.png", np.full((9, 9, 3), value, np.uint8)) for value in range(0, 250, 5)]
    squares = load_squares(paths, 8)
    assert squares.shape == (50, 8, 8, 3)
    assert squares[:, 0, 0, 0].tolist() == list(range(0, 250, 5))
    assert load_squares([], 8).shape == (0, 8, 8, 3)
    (tmp_path / "bad.png").write_bytes(b"")
    with pytest.raises(UnreadableImage, match="bad.png: is empty"):
        load_squares([*paths, tmp_path / "bad.png"], 8)


def test_large_photos_are_shrunk_as_if_decoded_whole(tmp_path):
    rng = np.random.default_rng(0)
    smooth = np.array(
        Image.fromarray(rng.integers(0, 256, (12, 16, 3), np.uint8)).resize((1600, 1200), Image.Resampling.BICUBIC)
    )
    path = save(tmp_path / "photo.jpg", smooth, quality=95)
    assert_alike(load_square(path, 64), resize_square(load_rgb(path), 64), tolerance=1)


# ---------------------------------------------------------------------------------------------------- checking


def test_checking_tells_size_hash_and_kind(tmp_path):
    import hashlib

    good = save(tmp_path / "named.jpg", quarters(), format="PNG")
    bad = tmp_path / "bad.jpg"
    bad.write_bytes(b"")
    first, second, third = check_images([good, bad, good.read_bytes])
    assert (first.width, first.height, first.extension, first.reason) == (64, 48, "png", "")
    assert first.sha256 == hashlib.sha256(good.read_bytes()).hexdigest()
    assert second.reason == "is empty (0 bytes)"
    assert third == first


def test_checking_reports_progress(tmp_path):
    from contextlib import contextmanager

    class Counting:
        count, total, threads = 0, 0, set()

        @contextmanager
        def bar(self, what, total, unit="images", done=0):
            self.total = total
            yield self

        def advance(self, count=1, **notes):
            self.count += count
            self.threads.add(threading.get_ident())

    reporter = Counting()
    check_images([save(tmp_path / f"{k}.png", quarters()) for k in range(5)], reporter=reporter)
    assert (reporter.count, reporter.total, reporter.threads) == (5, 5, {threading.get_ident()})


# ---------------------------------------------------------------------------------------------------- out again


@pytest.mark.parametrize(("format", "tolerance"), [("jpg", 2.0), ("png", 0.0), ("webp", 0.0)])
def test_encoding_is_repeatable_and_faithful(format, tolerance):
    rng = np.random.default_rng(1)
    pixels = np.array(
        Image.fromarray(rng.integers(0, 256, (8, 8, 3), np.uint8)).resize((64, 64), Image.Resampling.BICUBIC)
    )
    data = encode_image(pixels, format)
    assert data == encode_image(pixels.copy(), format)
    assert_alike(np.array(Image.open(io.BytesIO(data)).convert("RGB")), pixels, tolerance)


def test_jpeg_keeps_full_colour_resolution():
    with Image.open(io.BytesIO(encode_image(quarters(), "jpg"))) as image:
        assert [component[1:3] for component in image.layer] == [(1, 1)] * 3


def test_encoding_refuses_other_arrays():
    with pytest.raises(ValueError, match=r"uint8 \[H, W, 3\], got float64 \[4, 4, 3\]"):
        encode_image(np.zeros((4, 4, 3)))
    with pytest.raises(ValueError, match="should be one of jpg, png, webp"):
        encode_image(np.zeros((4, 4, 3), np.uint8), "gif")


def test_pixel_range_turns_round_without_loss():
    import torch

    pixels = np.arange(256, dtype=np.uint8).repeat(3 * 4).reshape(4, 16, 16, 3)
    pixels.setflags(write=False)
    values = pixels_to_float(pixels)
    assert (values.shape, values.dtype) == ((4, 3, 16, 16), torch.float32)
    assert (values.min().item(), values.max().item()) == (-1.0, 1.0)
    assert np.array_equal(float_to_pixels(values), pixels)
    assert np.array_equal(float_to_pixels(pixels_to_float(pixels[0])), pixels[0])
    assert float_to_pixels(torch.tensor([-9.0, 0.0, 9.0]).reshape(3, 1, 1).to(torch.bfloat16)).ravel().tolist() == [
        0,
        128,
        255,
    ]
    with pytest.raises(ValueError, match="NaN"):
        float_to_pixels(torch.full((3, 2, 2), float("nan")))
    with pytest.raises(ValueError, match="uint8"):
        pixels_to_float(np.zeros((4, 4, 3), np.float32))
