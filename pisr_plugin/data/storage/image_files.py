"""Finds, measures, decodes and writes image files."""

from __future__ import annotations

import io
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import cv2
import numpy as np
from PIL import Image, ImageOps

from pisr_plugin.utils.errors import DataError
from pisr_plugin.utils.files import write_whole
from pisr_plugin.utils.text_files import require_regular_file

SUFFIXES = ('.png', '.jpg', '.jpeg', '.bmp', '.tif', '.tiff')
# Pillow would otherwise try every format it knows, whatever the file's name: PostScript is run by Ghostscript.
_FORMATS = ('PNG', 'JPEG', 'BMP', 'TIFF')
_ORIENTATION = 0x0112  # EXIF tag; the values 5 to 8 swap height and width
_TURNED_BY_EXIF = ('JPEG', 'MPO')  # Pillow itself turns a TIFF, and would decode a PNG to find the tag

PNG_LEVEL = 3  # higher levels take several times as long for 1 % less

# Modes that become 8-bit RGB without loss of what training sees; 16-bit and float images would be clipped.
_MODES = ('1', 'L', 'LA', 'P', 'PA', 'RGB', 'RGBA', 'RGBX', 'CMYK', 'YCbCr')


def list_images(folder: Path) -> list[Path]:
    """Lists the image files of a folder by name, without hidden files and sub-folders.

    Raises:
        DataError: ``folder`` is missing, is not a folder or holds no images.
    """
    if not folder.is_dir():
        raise DataError(f'{folder}: {"not a folder" if folder.exists() else "no such folder"}.')
    found = [path for path in sorted(folder.iterdir()) if path.suffix.lower() in SUFFIXES and path.name[0] != '.']
    if not found:
        raise DataError(f'{folder}: no images. Expected files that end in {", ".join(SUFFIXES)}.')
    return found


def image_size(source: Path | bytes) -> tuple[int, int]:
    """Reads height and width of the upright image from the header, without decoding the image.

    Args:
        source: An image file, or the bytes of one.

    Raises:
        DataError: ``source`` is not an image. The message names the file, unless ``source`` is bytes.
    """
    with opened_image(source) as image:
        turned = image.format in _TURNED_BY_EXIF and image.getexif().get(_ORIENTATION) in (5, 6, 7, 8)
        return (image.width, image.height) if turned else (image.height, image.width)


def read_rgb(source: Path | bytes) -> np.ndarray:
    """Decodes a whole image as RGB; a gray image gets three equal channels, transparency is dropped.

    A photo is turned upright. OpenCV is not used here, because it fills up a truncated image without an error.

    Args:
        source: An image file, or the bytes of one.

    Returns:
        Array of shape (H, W, 3), uint8.

    Raises:
        DataError: ``source`` is not an image, is truncated, has more than 8 bits per channel or too many pixels.
    """
    with opened_image(source) as image:
        return np.asarray(_upright(image).convert('RGB'))


def read_rgb_or_gray(source: Path | bytes) -> np.ndarray:
    """Decodes a whole image as :func:`read_rgb` does, but a gray image has shape (H, W)."""
    with opened_image(source) as image:
        return np.asarray(_upright(image).convert('L' if image.mode in ('1', 'L') else 'RGB'))


def _upright(image: Image.Image) -> Image.Image:
    if image.mode not in _MODES:
        raise ValueError(f'pixel mode {image.mode!r} found. Expected 8 bits per channel')
    return ImageOps.exif_transpose(image) if image.format in _TURNED_BY_EXIF else image


def write_png(path: Path, img: np.ndarray) -> None:
    """Writes an image (H, W, 3), uint8, RGB; a killed process leaves no file under this name."""
    encoded = cv2.imencode('.png', img[..., ::-1], [cv2.IMWRITE_PNG_COMPRESSION, PNG_LEVEL])[1]
    write_whole(path, encoded.tobytes(), durable=False)


@contextmanager
def opened_image(
    source: Path | bytes, formats: tuple[str, ...] = _FORMATS, max_pixels: int | None = None
) -> Iterator[Image.Image]:
    """Opens an image with Pillow; every error inside the block becomes one DataError.

    Args:
        source: An image file, or the bytes of one.
        formats: The formats that Pillow may try.
        max_pixels: Limit on width times height; None: Pillow's, about 179 million.

    Raises:
        DataError: ``source`` is not an image, or the block cannot decode it.
    """
    place = f'{source}: ' if isinstance(source, Path) else ''
    before = Image.MAX_IMAGE_PIXELS
    try:
        if isinstance(source, Path):
            require_regular_file(source)
        if max_pixels is not None:
            Image.MAX_IMAGE_PIXELS = None  # the check below takes its place
        with Image.open(source if isinstance(source, Path) else io.BytesIO(source), formats=formats) as image:
            if max_pixels is not None and image.width * image.height > max_pixels:
                raise ValueError(
                    f'too many pixels (found {image.width}x{image.height}). Expected {max_pixels:,} at most'
                )
            yield image
    except DataError:
        raise
    except Image.UnidentifiedImageError:
        raise DataError(f'{place}not an image') from None
    except Exception as error:  # Pillow's decoders raise errors of a dozen types for damaged files
        reason = getattr(error, 'strerror', None) or str(error) or type(error).__name__
        raise DataError(f'{place}{reason}') from None
    finally:
        Image.MAX_IMAGE_PIXELS = before
