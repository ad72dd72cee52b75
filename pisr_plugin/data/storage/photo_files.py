"""Reads and writes photos as people have them: turned, gray, transparent, with 16 bits, for print.

Pillow reads and writes them. It has no colour image of 16 bits per channel, so OpenCV reads those.
"""

from __future__ import annotations

import io
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

import cv2
import numpy as np
import tifffile
from PIL import Image, ImageCms, ImageOps

from pisr_plugin.data.storage.image_files import PNG_LEVEL, SUFFIXES, opened_image
from pisr_plugin.utils.errors import DataError, first_line
from pisr_plugin.utils.files import replacing

PHOTO_SUFFIXES = (*SUFFIXES, '.webp', '.avif')
_READ = ('PNG', 'JPEG', 'BMP', 'TIFF', 'WEBP', 'AVIF')
_MAX_PIXELS = 2**29  # of a photo to read: more than any camera's, and the result can still be held
_ORIENTATION = 0x0112
_EXIF, _GPS = 0x8769, 0x8825  # blocks of tags
_WIDTH, _HEIGHT = 0xA002, 0xA003  # in the first of them
# Tags that describe the photo. The others describe the file: where a TIFF has its strips, how it is compressed.
_KEPT = (0x010E, 0x010F, 0x0110, 0x011A, 0x011B, 0x0128, 0x0131, 0x0132, 0x013B, 0x8298)
_SPACES = {'L': b'GRAY', 'RGB': b'RGB '}  # what a profile must be for


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


@dataclass
class Photo:
    """An upright photo.

    Attributes:
        pixels: 8 bits per channel: an image of Pillow of mode L, LA, RGB or RGBA. 16 bits: an array (H, W, C), uint16,
            C as in these modes.
        exif: What the camera noted, without the orientation.
        profile: ICC profile of the colours; empty: none.
    """

    pixels: Image.Image | np.ndarray
    exif: Image.Exif
    profile: bytes = b''

    @property
    def size(self) -> tuple[int, int]:
        """Height and width in pixels."""
        if isinstance(self.pixels, np.ndarray):
            return self.pixels.shape[0], self.pixels.shape[1]
        return self.pixels.height, self.pixels.width

    def __getitem__(self, part: tuple[slice, slice]) -> np.ndarray:
        """Returns rows and columns as an array (h, w, C). Slices may end beyond the photo."""
        if isinstance(self.pixels, np.ndarray):
            return self.pixels[part]
        (top, bottom, _), (left, right, _) = (cut.indices(side) for cut, side in zip(part, self.size))
        array = np.asarray(self.pixels.crop((left, top, right, bottom)))
        return array.reshape(*array.shape[:2], -1)

    def __setitem__(self, part: tuple[slice, slice], pixels: np.ndarray) -> None:
        """Sets rows and columns to an array (h, w, C)."""
        if isinstance(self.pixels, np.ndarray):
            self.pixels[part] = pixels
        else:
            image = Image.fromarray(pixels[..., 0] if pixels.shape[2] == 1 else pixels)
            self.pixels.paste(image, (part[1].start, part[0].start))

    def array(self) -> np.ndarray:
        """Returns all pixels, (H, W) if gray, else (H, W, C)."""
        array = self[:, :]
        return array[..., 0] if array.shape[2] == 1 else array

    def enlarged(self, scale: int) -> Photo:
        """Returns a black photo ``scale`` times as large with the same metadata."""
        height, width = (side * scale for side in self.size)
        for tag, side in ((_WIDTH, width), (_HEIGHT, height)):
            block = self.exif.get_ifd(_EXIF)
            if tag in block:
                block[tag] = side
        if isinstance(self.pixels, np.ndarray):
            pixels: Image.Image | np.ndarray = np.zeros((height, width, self.pixels.shape[2]), np.uint16)
        else:
            pixels = Image.new(self.pixels.mode, (width, height))
        return Photo(pixels, self.exif, self.profile)


def read_photo(path: Path, file_format: Format = FORMATS['png']) -> Photo:
    """Decodes a photo and turns it upright.

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
        has_16_bits = _has_16_bits(path, image)
        image.load()
        if has_16_bits:
            pixels = _read_16_bits(path, 1 if image.format == 'TIFF' else orientation)  # OpenCV itself turns a TIFF
            if file_format.holds_16_bits and (file_format.alpha or pixels.shape[2] % 2):
                return Photo(pixels, exif, profile)
            upright = Image.fromarray(np.rint(pixels / 257).astype(np.uint8).squeeze(2 if pixels.shape[2] == 1 else ()))
        else:
            upright = ImageOps.exif_transpose(image) if orientation != 1 else image
        if upright.mode == 'CMYK':
            upright, profile = _from_print(upright, profile), b''
        upright = upright.convert(_mode(upright))
        if not file_format.alpha and upright.mode in ('LA', 'RGBA'):
            white = Image.new(upright.mode.removesuffix('A'), upright.size, 'white')
            white.paste(upright.convert(white.mode), mask=upright.getchannel('A'))
            upright = white
        return Photo(upright, exif, profile)


def write_photo(path: Path, photo: Photo, file_format: Format, quality: int = 95) -> None:
    """Writes a photo with its metadata; an exception or a killed process leaves no file under this name.

    Args:
        path: File to write.
        photo: The photo.
        file_format: Format of the file.
        quality: For lossy formats, 1 to 100.

    Raises:
        DataError: the format cannot hold the photo.
        OSError: the file cannot be written.
    """
    with replacing(path, durable=False) as file:
        if isinstance(photo.pixels, np.ndarray):
            _write_16_bits(file, photo, file_format)
            return
        image = photo.pixels
        if not file_format.gray and image.mode in ('L', 'LA'):
            image = image.convert('RGB' if image.mode == 'L' else 'RGBA')
        options: dict[str, Any] = {'quality': quality, 'subsampling': '4:4:4'} if file_format.lossy else {}
        if file_format.name == 'PNG':
            options['compress_level'] = PNG_LEVEL
        if file_format.name == 'TIFF':
            options['compression'] = 'tiff_adobe_deflate'
        if file_format.name != 'BMP':
            options['icc_profile'] = _fitting(photo.profile, image.mode) or None
            if len(photo.exif):
                options['exif'] = photo.exif
        target: Any = _Stream(file)
        if file_format.name == 'TIFF':
            target = file  # a stream would be put together in memory
            options['exif'] = {tag: photo.exif[tag] for tag in _KEPT if tag in photo.exif}  # libtiff takes no blocks
        try:
            image.save(target, format=file_format.name, **options)
        except OSError:
            raise
        except Exception as error:  # of several types, such as for a damaged profile
            raise DataError(f'{path}: cannot be written as {file_format.name} ({first_line(error)})') from None


def check_size(path: Path, size: tuple[int, int], file_format: Format) -> None:
    """Raises a DataError if a format cannot hold an image of this height and width."""
    if max(size) > file_format.largest:
        raise DataError(
            f'{path}: too large for {file_format.name} (found {size[1]}x{size[0]} pixels). Expected at most '
            f'{file_format.largest} on a side; --format png holds it.'
        )


class _Stream:
    """A file without ``fileno``: Pillow then writes through Python, whose errors say what happened: a full disk."""

    def __init__(self, file: IO[bytes]) -> None:
        self.write, self.flush, self.seek, self.tell = file.write, file.flush, file.seek, file.tell


def _metadata(image: Image.Image) -> tuple[Image.Exif, int]:
    """Returns the EXIF tags to keep, and the orientation, 1 to 8. A damaged block gives no tags."""
    kept = Image.Exif()
    try:
        found = image.getexif()
        orientation = found.get(_ORIENTATION, 1)
        if orientation not in range(1, 9):
            orientation = 1
        kept.update({tag: found[tag] for tag in _KEPT if tag in found})
        for block in (_EXIF, _GPS):
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


def _read_16_bits(path: Path, orientation: int) -> np.ndarray:
    """Returns the pixels (H, W, C) of an image of 16 bits per channel, which Pillow has found to be whole."""
    pixels = cv2.imdecode(np.fromfile(path, np.uint8), cv2.IMREAD_UNCHANGED)
    if pixels is None or pixels.dtype != np.uint16:
        raise ValueError('these 16-bit pixels cannot be read')
    if pixels.ndim == 3:
        pixels = cv2.cvtColor(pixels, cv2.COLOR_BGR2RGB if pixels.shape[2] == 3 else cv2.COLOR_BGRA2RGBA)
    if orientation >= 5:
        pixels = pixels.swapaxes(0, 1)
    if orientation in (3, 4, 7, 8):
        pixels = pixels[::-1]
    if orientation in (2, 3, 6, 7):
        pixels = pixels[:, ::-1]
    return pixels.reshape(*pixels.shape[:2], -1)


def _write_16_bits(file: IO[bytes], photo: Photo, file_format: Format) -> None:
    pixels: np.ndarray = photo.pixels  # type: ignore[assignment]  # the caller has looked
    gray = pixels.shape[2] == 1
    profile = _fitting(photo.profile, 'L' if gray else 'RGB')
    if file_format.name == 'TIFF':
        tifffile.imwrite(
            file,
            pixels[..., 0] if gray else pixels,
            photometric='minisblack' if gray else 'rgb',
            compression='zlib',
            iccprofile=profile or None,
            extrasamples=['unassalpha'] if pixels.shape[2] == 4 else None,
            metadata=None,
        )
        return
    if not gray:
        pixels = cv2.cvtColor(pixels, cv2.COLOR_RGB2BGR if pixels.shape[2] == 3 else cv2.COLOR_RGBA2BGRA)
    known = {'IMAGE_METADATA_ICCP': profile, 'IMAGE_METADATA_EXIF': photo.exif.tobytes() if len(photo.exif) else b''}
    blocks = {
        getattr(cv2, name): np.frombuffer(block, np.uint8)
        for name, block in known.items()
        if block and hasattr(cv2, name)
    }
    options = [cv2.IMWRITE_PNG_COMPRESSION, PNG_LEVEL]
    if blocks:
        encoded = cv2.imencodeWithMetadata('.png', pixels, list(blocks), list(blocks.values()), options)[1]
    else:
        encoded = cv2.imencode('.png', pixels, options)[1]
    file.write(encoded.data)


def _mode(image: Image.Image) -> str:
    """Returns the mode in which an image of Pillow is upscaled.

    Raises:
        ValueError: it has pixels of another kind.
    """
    if image.mode not in ('1', 'L', 'LA', 'P', 'PA', 'RGB', 'RGBA', 'RGBX', 'YCbCr'):
        raise ValueError(f'pixel mode {image.mode!r} found. Expected 8 or 16 bits per channel')
    mode = 'L' if image.mode in ('1', 'L', 'LA') else 'RGB'
    return f'{mode}A' if image.has_transparency_data else mode


def _from_print(image: Image.Image, profile: bytes) -> Image.Image:
    """Converts colours for print to sRGB, by their profile if they have a good one."""
    if profile:
        try:
            converted = ImageCms.profileToProfile(
                image, io.BytesIO(profile), ImageCms.createProfile('sRGB'), outputMode='RGB'
            )
        except ImageCms.PyCMSError:
            converted = None
        if converted is not None:
            return converted
    return image.convert('RGB')


def _fitting(profile: bytes, mode: str) -> bytes:
    """Returns a profile if it is for colours of this mode; a gray image saved as RGB, for one, has lost its profile."""
    return profile if profile[16:20] == _SPACES[mode.removesuffix('A')] else b''
