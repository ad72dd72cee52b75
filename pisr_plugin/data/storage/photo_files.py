"""Reads photos as people have them: turned, gray, transparent, with 16 bits, for print.

Pillow reads them. It has no colour image of 16 bits per channel, so OpenCV reads those.
"""

from __future__ import annotations

import io
from dataclasses import dataclass
from pathlib import Path

import cv2
import numpy as np
from PIL import Image, ImageCms

from pisr_plugin.data.storage.image_files import SUFFIXES, opened_image
from pisr_plugin.utils.errors import DataError

PHOTO_SUFFIXES = (*SUFFIXES, '.webp', '.avif')
_READ = ('PNG', 'JPEG', 'BMP', 'TIFF', 'WEBP', 'AVIF')
_MAX_PIXELS = 2**29  # of a photo to read: more than any camera's, and the result can still be held
_ORIENTATION = 0x0112
# Values of that tag: rows and columns change places first, then their order is reversed.
_SWAPPED, _REVERSED_ROWS, _REVERSED_COLUMNS = (5, 6, 7, 8), (3, 4, 7, 8), (2, 3, 6, 7)
EXIF_BLOCK, _GPS_BLOCK = 0x8769, 0x8825
# Tags that describe the photo. The others describe the file: where a TIFF has its strips, how it is compressed.
_KEPT = (0x010E, 0x010F, 0x0110, 0x011A, 0x011B, 0x0128, 0x0131, 0x0132, 0x013B, 0x8298)


@dataclass(frozen=True)
class Format:
    """What a file format can hold.

    Attributes:
        name: Pillow's name.
        alpha: Whether it holds transparency.
        holds_16_bits: Whether it holds 16 bits per channel.
        gray: Whether it holds gray images as such.
        largest: Longest side in pixels.
        lossy: Whether it has a quality.
    """

    name: str
    alpha: bool = True
    holds_16_bits: bool = False
    gray: bool = True
    largest: int = 2**31 // 4 - 1
    lossy: bool = False


_JPEG, _TIFF = Format('JPEG', alpha=False, largest=65500, lossy=True), Format('TIFF', holds_16_bits=True)
# by the suffix of the file, without its dot
FORMATS = {
    'png': Format('PNG', holds_16_bits=True),
    'jpg': _JPEG,
    'webp': Format('WEBP', gray=False, largest=16383, lossy=True),
    'tiff': _TIFF,
    'avif': Format('AVIF', gray=False, largest=65535, lossy=True),
    'bmp': Format('BMP', alpha=False),
    'jpeg': _JPEG,
    'tif': _TIFF,
}


@dataclass(frozen=True)
class Photo:
    """A decoded photo. Only the parts that are asked for are turned upright and converted.

    Attributes:
        decoded: The pixels as the file has them: an image of Pillow; for 16 bits per channel an array (H, W, C),
            uint16, in OpenCV's order of colours.
        orientation: How to turn them upright, 1 to 8, as EXIF numbers it.
        mode: What they become: L, LA, RGB or RGBA.
        has_16_bits: Whether they keep 16 bits per channel.
        exif: What the camera noted, without the orientation.
        profile: ICC profile of the colours; empty: none.
        transform: Converts colours for print to sRGB.
    """

    decoded: Image.Image | np.ndarray
    orientation: int
    mode: str
    has_16_bits: bool
    exif: Image.Exif
    profile: bytes = b''
    transform: ImageCms.ImageCmsTransform | None = None

    @property
    def size(self) -> tuple[int, int]:
        """Height and width of the upright photo in pixels."""
        image = self.decoded
        height, width = image.shape[:2] if isinstance(image, np.ndarray) else (image.height, image.width)
        return (width, height) if self.orientation in _SWAPPED else (height, width)

    def __getitem__(self, part: tuple[slice, slice]) -> np.ndarray:
        """Returns rows and columns of the upright photo as an array (h, w, C). Slices may end beyond the photo."""
        height, width = self.size
        (top, bottom, _), (left, right, _) = part[0].indices(height), part[1].indices(width)
        if self.orientation in _REVERSED_ROWS:
            top, bottom = height - bottom, height - top
        if self.orientation in _REVERSED_COLUMNS:
            left, right = width - right, width - left
        if self.orientation in _SWAPPED:
            top, bottom, left, right = left, right, top, bottom
        pixels = self._converted(top, bottom, left, right)
        if self.orientation in _SWAPPED:
            pixels = pixels.swapaxes(0, 1)
        if self.orientation in _REVERSED_ROWS:
            pixels = pixels[::-1]
        if self.orientation in _REVERSED_COLUMNS:
            pixels = pixels[:, ::-1]
        return np.ascontiguousarray(pixels)

    def array(self) -> np.ndarray:
        """Returns all pixels, (H, W) if gray, else (H, W, C)."""
        array = self[:, :]
        return array[..., 0] if array.shape[2] == 1 else array

    def _converted(self, top: int, bottom: int, left: int, right: int) -> np.ndarray:
        """Returns a part of the decoded pixels in this photo's mode, not turned."""
        if isinstance(self.decoded, np.ndarray):
            part = self.decoded[top:bottom, left:right]
            if part.shape[2] > 1:
                part = part[..., [2, 1, 0, 3][: part.shape[2]]]
            if self.has_16_bits:
                return part
            image = Image.fromarray(np.rint(part / 257).astype(np.uint8).squeeze(2 if part.shape[2] == 1 else ()))
        else:
            image = self.decoded.crop((left, top, right, bottom))
        if self.transform is not None:
            image = self.transform.apply(image)
        if image.has_transparency_data and not self.mode.endswith('A'):
            image = image.convert(f'{self.mode}A')
            white = Image.new(self.mode, image.size, 'white')
            white.paste(image.convert(self.mode), mask=image.getchannel('A'))
            image = white
        else:
            image = image.convert(self.mode)
        return np.asarray(image).reshape(bottom - top, right - left, -1)


def read_photo(path: Path, file_format: Format = FORMATS['png']) -> Photo:
    """Decodes a photo.

    Colours for print (CMYK) become sRGB. The photo keeps what ``file_format`` can hold: where that has no transparency,
    the photo is laid on white; where it has no 16 bits, the photo is rounded to 8 bits. Of several pictures in a file
    the first is taken.

    Args:
        path: The file.
        file_format: Format in which the result is to be written.

    Raises:
        DataError: the file is not an image, is truncated, has pixels of another kind or too many of them.
    """
    with opened_image(path, _READ, _MAX_PIXELS) as image:
        exif, orientation = _metadata(image)
        profile = image.info.get('icc_profile') or b''
        is_deep = _has_16_bits(path, image)
        image.load()
        if image.format == 'TIFF':
            orientation = 1  # Pillow and OpenCV themselves turn a TIFF
        decoded: Image.Image | np.ndarray = image
        transform = None
        if is_deep:
            image.close()  # frees Pillow's pixels; they have shown that the file is whole
            decoded = _decode_16_bits(path)
            mode = {1: 'L', 3: 'RGB', 4: 'RGBA'}[decoded.shape[2]]
        elif image.mode == 'CMYK':
            transform, profile, mode = _print_transform(profile), b'', 'RGB'
        else:
            mode = _mode(image)
        if not file_format.alpha:
            mode = mode.removesuffix('A')
        return Photo(decoded, orientation, mode, is_deep and file_format.holds_16_bits, exif, profile, transform)


def check_size(path: Path, size: tuple[int, int], file_format: Format) -> None:
    """Raises a DataError if a format cannot hold an image of this height and width."""
    if max(size) > file_format.largest:
        raise DataError(
            f'{path}: too large for {file_format.name} (found {size[1]}x{size[0]} pixels). Expected at most '
            f'{file_format.largest} on a side; --format png holds it.'
        )


def _metadata(image: Image.Image) -> tuple[Image.Exif, int]:
    """Returns the EXIF tags to keep, and the orientation, 1 to 8. A damaged block gives no tags."""
    kept = Image.Exif()
    try:
        found = image.getexif()
        orientation = found.get(_ORIENTATION, 1)
        if orientation not in range(1, 9):
            orientation = 1
        kept.update({tag: found[tag] for tag in _KEPT if tag in found})
        for block in (EXIF_BLOCK, _GPS_BLOCK):
            if tags := found.get_ifd(block):
                kept.get_ifd(block).update(tags)
                kept[block] = kept.get_ifd(block)
        kept.tobytes()  # raises for values that cannot be written again
    except Exception:  # of a dozen types, as Pillow's decoders raise them; the pixels do not depend on it
        return Image.Exif(), 1
    return kept, orientation


def _has_16_bits(path: Path, image: Image.Image) -> bool:
    """Whether a file has 16 bits per channel, of which Pillow would keep eight in colour images."""
    if image.mode not in ('L', 'LA', 'RGB', 'RGBA', 'I', 'I;16', 'I;16B', 'I;16L'):
        return False
    if image.format == 'PNG':
        with open(path, 'rb') as file:
            return file.read(25)[24] == 16  # the bit depth in the header
    if image.format == 'TIFF':
        bits, kind, colors = (image.tag_v2.get(tag, default) for tag, default in ((258, ()), (339, (1,)), (262, 1)))  # type: ignore[attr-defined]
        return set(bits) == {16} and set(kind) == {1} and colors in (1, 2)  # whole numbers from black on
    return False


def _decode_16_bits(path: Path) -> np.ndarray:
    """Returns the pixels (H, W, C) of an image of 16 bits per channel as OpenCV decodes them."""
    pixels = cv2.imdecode(np.fromfile(path, np.uint8), cv2.IMREAD_UNCHANGED)
    if pixels is None or pixels.dtype != np.uint16:
        raise ValueError('these 16-bit pixels cannot be read')
    return pixels.reshape(*pixels.shape[:2], -1)


def _mode(image: Image.Image) -> str:
    """Returns the mode in which an image of Pillow is upscaled.

    Raises:
        ValueError: it has pixels of another kind.
    """
    if image.mode not in ('1', 'L', 'LA', 'P', 'PA', 'RGB', 'RGBA', 'RGBX', 'YCbCr'):
        raise ValueError(f'pixel mode {image.mode!r} found. Expected 8 or 16 bits per channel')
    mode = 'L' if image.mode in ('1', 'L', 'LA') else 'RGB'
    return f'{mode}A' if image.has_transparency_data else mode


def _print_transform(profile: bytes) -> ImageCms.ImageCmsTransform | None:
    """Returns the conversion from colours for print to sRGB; None: they have no good profile."""
    try:
        return ImageCms.buildTransform(io.BytesIO(profile), ImageCms.createProfile('sRGB'), 'CMYK', 'RGB')
    except ImageCms.PyCMSError:
        return None
