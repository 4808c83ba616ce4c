"""Pixels in and out: the only file that decodes, resizes, encodes or changes pixel range.

Whatever the file holds (EXIF rotation, CMYK, palette, 16 bit, alpha, colour profile), what comes out is the RGB picture
a person sees, uint8 [H, W, 3]. Files that lie or are broken raise UnreadableImage with the true reason.
"""

from __future__ import annotations

import codecs
import hashlib
import io
import os
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Literal

import numpy as np
from PIL import Image, ImageCms

from variegate.errors import DataError, Problem
from variegate.near_duplicates import EDGE, look_of

if TYPE_CHECKING:
    import torch

    from variegate.progress import Reporter

Fit = Literal["crop", "pad", "stretch"]
Content = Path | Callable[[], bytes]  # an image file, or something that gives one's bytes

MAX_MEGAPIXELS = 64.0
MAX_FILE_BYTES = 1 << 30
FORMATS = ("JPEG", "PNG", "WEBP", "GIF", "BMP", "TIFF", "AVIF", "PPM")
_READ_HERE = ".jpg .jpeg .jpe .jfif .png .apng .webp .bmp .gif .tif .tiff .avif .ppm .pgm .pbm .pnm"
_NOT_READ_HERE = ".heic .heif .jp2 .jxl .psd .svg .dng .cr2 .nef .arw"  # listed, so that they are refused by name
IMAGE_EXTENSIONS = frozenset(f"{_READ_HERE} {_NOT_READ_HERE}".split(" "))

_ORIENTATION = 0x0112  # EXIF tag
_UPRIGHT = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
_SUPERSAMPLE = 2  # JPEGs are decoded at 1/2, 1/4 or 1/8 size as long as this many times the wanted edge is left


class UnreadableImage(DataError):
    """A file that gives no picture; `reason` says why in words that fit behind its name."""

    def __init__(self, name: str, reason: str) -> None:
        self.name, self.reason = name, reason
        super().__init__(Problem(name, reason))

    def __reduce__(self) -> tuple[type, tuple[object, ...]]:
        return type(self), (self.name, self.reason)


@dataclass(frozen=True, slots=True)
class ImageCheck:
    """What one file turned out to be; `reason` is empty for a good one, else the other fields are."""

    width: int = 0  # px, upright
    height: int = 0
    sha256: str = ""  # of the file's bytes
    extension: str = ""  # by content, whatever the file is called
    look: bytes = b""  # for near duplicates (near_duplicates.py)
    reason: str = ""
    mask_sha256: str = ""  # of its mask's bytes, where it has one


# ---------------------------------------------------------------------------------------------------- loading


def load_rgb(path: Path, *, max_megapixels: float = MAX_MEGAPIXELS) -> np.ndarray:
    """The picture in a file as uint8 [H, W, 3], sRGB, upright; alpha over white, the first frame of an animation.

    Raises UnreadableImage: missing, empty, no image, truncated, damaged, or larger than `max_megapixels` (known from
    the header, before anything is decoded).
    """
    return np.array(_decode(_read(path), str(path), max_megapixels))


def load_small(path: Path, edge_px: int, max_megapixels: float = MAX_MEGAPIXELS) -> Image.Image:
    """The whole picture in a file, no side longer than `edge_px`; raises as load_rgb does."""
    image = _decode(_read(path), str(path), max_megapixels, edge_px=edge_px)
    image.thumbnail((edge_px, edge_px))
    return image


def load_square(path: Path, size_px: int, fit: Fit = "crop", max_megapixels: float = MAX_MEGAPIXELS) -> np.ndarray:
    """The picture in a file as uint8 [size_px, size_px, 3], antialiased; raises as load_rgb does."""
    if fit not in ("crop", "pad", "stretch"):
        raise ValueError(f"fit is {fit!r}, should be crop, pad or stretch")
    return np.array(_square(_decode(_read(path), str(path), max_megapixels, edge_px=size_px), size_px, fit))


def load_squares(
    paths: Sequence[Path],
    size_px: int,
    fit: Fit = "crop",
    max_megapixels: float = MAX_MEGAPIXELS,
    *,
    num_threads: int | None = None,
) -> np.ndarray:
    """`load_square` of many files in threads: uint8 [N, size_px, size_px, 3] in the order of `paths`."""
    squares = np.empty((len(paths), size_px, size_px, 3), np.uint8)
    with ThreadPoolExecutor(num_threads or _threads()) as pool:
        for index, square in enumerate(pool.map(lambda path: load_square(path, size_px, fit, max_megapixels), paths)):
            squares[index] = square
    return squares


def resize_square(pixels: np.ndarray, size_px: int, fit: Fit = "crop") -> np.ndarray:
    """uint8 [H, W, 3] made square: centre crop, padded with the mean colour of its border, or stretched."""
    return np.array(_square(Image.fromarray(pixels), size_px, fit))


def load_mask(
    path: Path,
    size_px: int,
    fit: Fit = "crop",
    max_megapixels: float = MAX_MEGAPIXELS,
    *,
    shape: tuple[int, int] | None = None,
) -> np.ndarray:
    """A mask as bool [size_px, size_px]: true where the file is lighter than mid grey; raises as load_rgb does.

    Nearest pixels, cut and padded as `load_square` does with a picture of `shape` (width, height), to which the mask is
    first resized; padding is outside the mask.
    """
    image = _decode(_read(path), str(path), max_megapixels).convert("L")
    if shape is not None and image.size != shape:
        image = image.resize(shape, Image.Resampling.NEAREST)
    return np.array(_square(image, size_px, fit)) >= 128


def grow_mask(mask: np.ndarray, grow_px: int) -> np.ndarray:
    """bool [H, W], grown by `grow_px` on every side: a maximum filter of window 2 grow_px + 1; shrunk where that is negative."""
    from scipy.ndimage import maximum_filter, minimum_filter

    if not grow_px:
        return mask
    return (maximum_filter if grow_px > 0 else minimum_filter)(mask, size=2 * abs(grow_px) + 1)


def paste_kept(drawn: np.ndarray, source: np.ndarray, repainted: np.ndarray) -> np.ndarray:
    """`drawn` where bool [S, S] `repainted` is true, `source`'s own pixels elsewhere; uint8 [S, S, 3].

    The seam is soft inside what is repainted, over 1/64 of the edge, so that kept pixels stay exactly what they were.
    """
    from scipy.ndimage import distance_transform_edt

    if repainted.all():
        return drawn
    share = np.clip(distance_transform_edt(repainted) / (len(drawn) / 64 + 1.0), 0.0, 1.0)[..., None]
    return np.round(share * drawn + (1.0 - share) * source).astype(np.uint8)


def check_images(
    contents: Iterable[Content],
    *,
    max_megapixels: float = MAX_MEGAPIXELS,
    reporter: Reporter | None = None,
    num_threads: int | None = None,
) -> list[ImageCheck]:
    """Decode every image once, in threads, and say what it is or why it cannot be read; in the order given."""
    contents = list(contents)
    checks = []
    with ThreadPoolExecutor(num_threads or _threads()) as pool:
        results = pool.map(lambda content: _check(content, max_megapixels), contents)
        if reporter is None:
            return list(results)
        with reporter.bar("reading", len(contents)) as bar:
            for check in results:
                checks.append(check)
                bar.advance()
    return checks


def read_content(content: Content) -> bytes:
    """The bytes of an image file, wherever they are; raises UnreadableImage."""
    return _read(content) if isinstance(content, Path) else content()


def _threads() -> int:
    return min(8, os.cpu_count() or 1)


def _check(content: Content, max_megapixels: float) -> ImageCheck:
    try:
        data = read_content(content)
        header = _open(data, "", max_megapixels)
        kind, turned = header.format or "", _orientation(header) >= 5
        # All bytes are decoded, so that truncation shows, but large JPEGs at an eighth of their size: far cheaper.
        picture = _decode(data, "", max_megapixels, edge_px=EDGE)
    except UnreadableImage as exc:
        return ImageCheck(reason=exc.reason)
    if kind in ("JPEG", "MPO"):
        size = header.size[::-1] if turned else header.size
    else:
        size = picture.size
    width, height = size
    extension = {"JPEG": "jpg", "MPO": "jpg", "TIFF": "tif"}.get(kind, kind.lower())
    return ImageCheck(width, height, hashlib.sha256(data).hexdigest(), extension, look_of(picture))


def _read(path: Path) -> bytes:
    try:
        size = path.stat().st_size
        if size > MAX_FILE_BYTES:
            raise UnreadableImage(str(path), f"is a file of {size / 1e9:.1f} GB, more than an image can be")
        return path.read_bytes()
    except FileNotFoundError as exc:
        what = "is a link to a file that does not exist" if path.is_symlink() else "does not exist"
        raise UnreadableImage(str(path), what) from exc
    except OSError as exc:
        raise UnreadableImage(str(path), f"cannot be opened: {exc.strerror or exc}") from exc


# ---------------------------------------------------------------------------------------------------- decoding


def _decode(data: bytes, name: str, max_megapixels: float, edge_px: int | None = None) -> Image.Image:
    """RGB, upright; with `edge_px`, JPEGs may come smaller, but no edge under 2 edge_px unless the file's is."""
    image = _open(data, name, max_megapixels)
    kind = image.format
    try:
        if edge_px is not None:
            image.draft(None, (edge_px * _SUPERSAMPLE, edge_px * _SUPERSAMPLE))
        image.load()
        turn = _UPRIGHT.get(_orientation(image))
        rgb = _to_rgb(image)
    except UnreadableImage as exc:
        raise UnreadableImage(name, exc.reason) from exc
    except Exception as exc:  # broken files make Pillow raise nearly anything: struct, zlib, Index, Syntax, OS errors
        raise UnreadableImage(name, _damage(str(kind), len(data), exc)) from exc
    return rgb.transpose(turn) if turn is not None else rgb


def _open(data: bytes, name: str, max_megapixels: float) -> Image.Image:
    """Read the header only. Not Image.open: its size limit is a global, and its error hides the width and height."""
    if not data:
        raise UnreadableImage(name, "is empty (0 bytes)")
    Image.init()
    for kind in FORMATS:
        factory, accept = Image.OPEN.get(kind, (None, None))
        if factory is None or (accept is not None and accept(data[:16]) is not True):
            continue
        try:
            image = factory(io.BytesIO(data), "")
        except Exception as exc:  # as in _decode
            raise UnreadableImage(name, _damage(kind, len(data), exc, data)) from exc
        width, height = image.size
        if width * height > max_megapixels * 1e6:
            size = f"{width:,} x {height:,} px ({width * height / 1e6:,.0f} megapixels)"
            raise UnreadableImage(name, f"is {size}, more than max_megapixels {max_megapixels:g}")
        return image
    raise UnreadableImage(name, _what_instead(data))


def _damage(kind: str, num_bytes: int, exc: Exception, data: bytes = b"") -> str:
    cut_riff = kind == "WEBP" and len(data) >= 8 and int.from_bytes(data[4:8], "little") + 8 > num_bytes
    if isinstance(exc, Image.DecompressionBombError):  # some decoders check Pillow's own limit again
        return f"has more pixels than Pillow reads of a {kind} file; convert it to PNG"
    if cut_riff or "truncated" in str(exc).lower() or isinstance(exc, EOFError):
        return f"is a truncated {kind} file (it ends after {num_bytes:,} bytes)"
    return f"is a damaged {kind} file ({str(exc) or type(exc).__name__})"


def _what_instead(data: bytes) -> str:
    """Say what a file that is no known image is, as far as its first bytes tell."""
    head = data[:512].lstrip(b"\xef\xbb\xbf \t\r\n").lower()
    known = ", ".join(FORMATS)
    if data[4:8] == b"ftyp" and data[8:12] in (b"heic", b"heix", b"mif1", b"msf1", b"hevc"):
        return "is a HEIC picture, which cannot be read here; convert it to JPEG"
    if b"<svg" in head:
        return "is an SVG drawing, which cannot be read here; convert it to PNG"
    if head.startswith((b"<!doctype html", b"<html")):
        return "is a web page, not an image (a failed download?)"
    if head.startswith(b"version https://git-lfs"):
        return "is a Git LFS pointer, not the image itself; run git lfs pull"
    return "is a text file, not an image" if _is_text(data[:512]) else f"is no image in a format read here ({known})"


def _is_text(head: bytes) -> bool:
    try:
        text = codecs.getincrementaldecoder("utf-8")().decode(head)  # a character cut off at the end is fine
    except UnicodeDecodeError:
        return False
    return all(char.isprintable() or char.isspace() for char in text)


def _orientation(image: Image.Image) -> int:
    try:
        return int(image.getexif().get(_ORIENTATION, 1))
    except Exception:  # an unreadable EXIF block says nothing about rotation, and viewers show such pictures as stored
        return 1


def _to_rgb(image: Image.Image) -> Image.Image:
    """Any Pillow mode to RGB in sRGB; alpha is laid over white."""
    profile = image.info.get("icc_profile")
    image = _eight_bit(image)
    if image.mode in ("RGBA", "LA", "PA", "RGBa", "La") or "transparency" in image.info:
        rgba = image.convert("RGBA")  # knows palettes, premultiplied colours and a transparent colour
        alpha = rgba.getchannel("A")
        opaque = rgba.convert("RGB") if image.mode not in ("LA", "La", "L") else rgba.getchannel("R")
        colour = _to_srgb(opaque, profile)
        return Image.composite(colour, Image.new("RGB", colour.size, "white"), alpha)
    if image.mode in ("P", "YCbCr", "HSV", "RGBX"):
        image = image.convert("RGB")
    elif image.mode == "1":
        image = image.convert("L")
    return _to_srgb(image, profile)


def _eight_bit(image: Image.Image) -> Image.Image:
    """Deep greys to 8 bits by their full range (Pillow's own conversion clips at 255)."""
    if image.mode == "F" or image.mode.startswith("I"):
        values = np.asarray(image)
        low, high = float(values.min()), float(values.max())
        is_sixteen_bit = image.mode.startswith("I") and low >= 0 and high <= 65535
        is_unit = image.mode == "F" and low >= 0 and high <= 1
        if not (is_sixteen_bit or is_unit):
            what = f"holds {values.dtype} values from {low:g} to {high:g}, which have no agreed brightness"
            raise UnreadableImage("", f"{what}; convert it to 8 or 16 bit")
        scaled = values.astype(np.float64) * (255.0 if is_unit else 255.0 / 65535.0)
        return Image.fromarray(np.round(scaled).astype(np.uint8))
    return image


def _to_srgb(image: Image.Image, profile: bytes | None) -> Image.Image:
    """L, RGB, CMYK or LAB to RGB, through the embedded colour profile if there is a sound one for this mode."""
    space = {"L": "GRAY", "RGB": "RGB ", "CMYK": "CMYK", "LAB": "LAB "}.get(image.mode)
    source = None
    if profile and space:
        try:
            candidate = ImageCms.ImageCmsProfile(io.BytesIO(profile))
            described = (candidate.profile.profile_description or "").lower()
            if candidate.profile.xcolor_space == space and "srgb" not in described:
                source = candidate
        except (OSError, ImageCms.PyCMSError):
            source = None  # a broken profile is left out, as browsers do
    if source is None and image.mode == "LAB":
        source = ImageCms.ImageCmsProfile(ImageCms.createProfile("LAB"))
    if source is None:
        return image.convert("RGB")
    try:
        converted = ImageCms.profileToProfile(image, source, ImageCms.createProfile("sRGB"), outputMode="RGB")
    except ImageCms.PyCMSError:  # it opens and says nothing that could be used
        return _to_srgb(image, None)
    assert converted is not None, "profileToProfile returns an image unless told to work in place"
    return converted


# ---------------------------------------------------------------------------------------------------- resizing


def _square(image: Image.Image, size_px: int, fit: Fit) -> Image.Image:
    width, height = image.size
    if fit == "crop":
        edge = min(width, height)
        left, top = (width - edge) // 2, (height - edge) // 2
        if width != height:  # not Image.crop, which has a size limit of its own
            image = Image.fromarray(np.asarray(image)[top : top + edge, left : left + edge])
        return _resize(image, size_px, size_px)
    if fit == "stretch" or width == height:
        return _resize(image, size_px, size_px)
    scale = size_px / max(width, height)
    inner = _resize(image, max(1, round(width * scale)), max(1, round(height * scale)))
    # The border's mean colour: a black frame would be a mark that a generator learns to draw.
    canvas = Image.new(inner.mode, (size_px, size_px), 0 if inner.mode == "L" else _border_colour(np.asarray(inner)))
    canvas.paste(inner, ((size_px - inner.width) // 2, (size_px - inner.height) // 2))
    return canvas


def _resize(image: Image.Image, width: int, height: int) -> Image.Image:
    if image.size == (width, height):
        return image
    if image.mode == "L":  # a mask
        return image.resize((width, height), Image.Resampling.NEAREST)
    return image.resize((width, height), Image.Resampling.LANCZOS, reducing_gap=3.0)


def _border_colour(pixels: np.ndarray) -> tuple[int, int, int]:
    edges = np.concatenate([pixels[0], pixels[-1], pixels[:, 0], pixels[:, -1]]).astype(np.float64)
    red, green, blue = (int(round(value)) for value in edges.mean(axis=0))
    return red, green, blue


# ---------------------------------------------------------------------------------------------------- encoding


def encode_image(pixels: np.ndarray, format: str = "jpg") -> bytes:
    """uint8 [H, W, 3] as the bytes of a file: JPEG quality 95 without chroma subsampling, PNG, or lossless WebP.

    Equal pixels give equal bytes. Raises ValueError for another shape, type or format.

    >>> encode_image(np.zeros((8, 8, 3), np.uint8), "png")[:4]
    b'\\x89PNG'
    """
    if pixels.dtype != np.uint8 or pixels.ndim != 3 or pixels.shape[2] != 3:
        raise ValueError(f"pixels should be uint8 [H, W, 3], got {pixels.dtype} {list(pixels.shape)}")
    options: dict[str, dict] = {
        "jpg": {"format": "JPEG", "quality": 95, "subsampling": 0},
        "png": {"format": "PNG", "compress_level": 6},
        "webp": {"format": "WEBP", "lossless": True, "method": 0},
    }
    if format not in options:
        raise ValueError(f"format is {format!r}, should be one of {', '.join(options)}")
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, **options[format])
    return buffer.getvalue()


# ---------------------------------------------------------------------------------------------------- pixel range


def pixels_to_float(pixels: np.ndarray | torch.Tensor) -> torch.Tensor:
    """uint8 [..., H, W, 3] to float32 [..., 3, H, W] in [-1, 1], contiguous."""
    import torch

    if isinstance(pixels, np.ndarray):
        pixels = torch.from_numpy(
            np.require(pixels, requirements=["C", "W"])
        )  # torch takes no mirrored or read-only array
    values = pixels
    if values.dtype != torch.uint8 or values.ndim < 3 or values.shape[-1] != 3:
        raise ValueError(f"pixels should be uint8 [..., H, W, 3], got {values.dtype} {list(values.shape)}")
    return (values.movedim(-1, -3).to(torch.float32) / 127.5 - 1.0).contiguous()


def float_to_pixels(values: torch.Tensor) -> np.ndarray:
    """Float [..., 3, H, W], clipped to [-1, 1], to uint8 [..., H, W, 3]; raises ValueError on NaN.

    Turns round: float_to_pixels(pixels_to_float(p)) equals p.
    """
    import torch

    values = values.detach().to(torch.float32)
    if torch.isnan(values).any():
        raise ValueError("image values contain NaN; the model overflowed, draw in fp32 or bf16")
    levels = ((values.clamp(-1.0, 1.0) + 1.0) * 127.5).round().to(torch.uint8)
    return levels.movedim(-3, -1).contiguous().cpu().numpy()
