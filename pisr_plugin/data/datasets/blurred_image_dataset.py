"""Test images with known degradations, the same on every machine."""

from __future__ import annotations

import zlib
from collections.abc import Sequence
from pathlib import Path

import torch
from basicsr.data.data_util import paths_from_lmdb
from basicsr.utils import FileClient
from basicsr.utils.color_util import rgb2ycbcr_pt
from basicsr.utils.registry import DATASET_REGISTRY
from torch import Tensor
from torch.utils.data import Dataset

from pisr_plugin.data.storage.image_files import list_images, read_rgb
from pisr_plugin.degradations.blur_noise import DOWNSAMPLING, checked_kernel_size, degrade, gaussian_kernels
from pisr_plugin.degradations.registry import random_stream
from pisr_plugin.utils.checks import check_choice, is_number
from pisr_plugin.utils.errors import DataError, OptionsError, did_you_mean, located
from pisr_plugin.utils.resize import crop_to_multiple

GAUSSIAN8 = {  # KDSR's code: eight isotropic widths, by scale
    2: (0.9, 1.0, 1.1, 1.2, 1.3, 1.4, 1.5, 1.6),
    4: (1.8, 2.0, 2.2, 2.4, 2.6, 2.8, 3.0, 3.2),
}
# The paper only pictures its nine kernels. These are the nine that DSAT's authors list for the same kind of table:
# standard deviations along both axes and the angle in degrees.
ANISOTROPIC9 = (
    (2, 0.2, 0),
    (2, 1, 10),
    (3.5, 1.5, 30),
    (3.5, 2, 45),
    (3.5, 2, 90),
    (4, 1.5, 120),
    (4, 2, 135),
    (4, 3, 165),
    (4, 4, 180),
)


@DATASET_REGISTRY.register()
class BlurredImageDataset(Dataset):
    """HR images and LR images made of them with fixed blur kernels and noise levels: a test set for blind SR.

    The dataset returns every image once for each kernel and noise level, so that a metric's mean is the mean over all
    of them, as in KDSR's tables (ICLR 2023, section 4.2). An LR image depends only on the image, its name, kernel and
    noise level: it is computed in float64, with noise from a counter-based generator, and rounded to 8 bits.

    Args:
        opt (dict): Config of the dataset. It contains the following keys:
            dataroot_gt (str): Folder or LMDB of the HR images, which are cropped to multiples of the scale.
            io_backend (dict): ``{type: disk}`` or ``{type: lmdb}``.
            kernels (str | list): ``gaussian8`` (eight isotropic widths, for x2 and x4), ``anisotropic9``, or a list: a
                number is an isotropic kernel's standard deviation in HR pixels, three numbers are the standard
                deviations along both axes and the angle in degrees. Default: gaussian8.
            noise (float | list): Standard deviations of the noise in 8-bit levels, 0 to 255. Default: 0.
            kernel_size (int): Height and width of the kernels in HR pixels, odd, 1 to 255. Default: 21.
            downsample (str): ``bicubic`` or ``direct``. Default: bicubic.
            color (str, optional): ``y`` for the Y channel of both images.
            scale (int): Upscaling factor; added automatically.

    Returns:
        By index, ``lq`` (C, H, W) and ``gt`` (C, scale * H, scale * W) in [0, 1], ``gt_path``, and as ``lq_path`` a
        name made of image, kernel and noise, such as ``baby_iso1.8_noise10.png``.

    Raises:
        OptionsError: an option has an impossible value.
        DataError: images are missing or cannot be read.
    """

    def __init__(self, opt: dict) -> None:
        self.opt = opt  # BasicSR's validation reads the name from it
        self.scale, self.color, self.downsample = opt['scale'], opt.get('color'), opt.get('downsample', 'bicubic')
        try:
            self.kernel_size = checked_kernel_size(opt.get('kernel_size', 21))
            check_choice('downsample', self.downsample, DOWNSAMPLING)
        except ValueError as error:
            raise OptionsError(f'{type(self).__name__}: {error}') from None
        self.kernels = _kernels(opt.get('kernels', 'gaussian8'), self.scale)
        noise = opt.get('noise', 0)
        self.noise = list(noise) if isinstance(noise, Sequence) else [noise]
        if not self.noise or not all(is_number(level) and 0 <= level <= 255 for level in self.noise):
            raise OptionsError(f'noise: impossible value (found {noise!r}). Expected numbers from 0 to 255.')

        root, backend = str(opt['dataroot_gt']), dict(opt['io_backend'])
        kind = backend.pop('type', None)
        if kind == 'lmdb':
            self.paths = paths_from_lmdb(root)
            backend |= {'db_paths': [root], 'client_keys': ['gt']}
        elif kind == 'disk':
            self.paths = [str(path) for path in list_images(Path(root))]
        else:
            raise OptionsError(
                f'io_backend.type: unknown (found {kind!r}). {did_you_mean(str(kind), ("disk", "lmdb"))}'
            )
        self.files = FileClient(kind, **backend)

    def __len__(self) -> int:
        return len(self.paths) * len(self.kernels) * len(self.noise)

    def __getitem__(self, index: int) -> dict[str, Tensor | str]:
        index, noise = divmod(index, len(self.noise))
        image, number = divmod(index, len(self.kernels))
        path, kernel, level = self.paths[image], self.kernels[number], self.noise[noise]
        name = f'{Path(path).stem}_{_label(kernel)}' + (f'_noise{level:g}' if level else '')

        gt = self._read(path)
        lq = degrade(gt[None], self._kernel(kernel), self.scale, self._noise(gt, level, name), self.downsample)[0]
        if self.color == 'y':
            gt, lq = (rgb2ycbcr_pt(image[None], y_only=True)[0] for image in (gt, lq))
        return {'lq': lq.float(), 'gt': gt.float(), 'lq_path': f'{name}.png', 'gt_path': path}

    def _read(self, path: str) -> Tensor:
        """Reads an HR image, cropped to a multiple of the scale, as float64 RGB in [0, 1]."""
        content = self.files.get(path, 'gt')
        if content is None:
            raise DataError(f'{path}: not in the LMDB, although its meta_info.txt lists it.')
        with located(path):
            img = read_rgb(bytes(content))
        return torch.from_numpy(crop_to_multiple(img, self.scale).copy()).permute(2, 0, 1).double() / 255

    def _kernel(self, kernel: Sequence[float]) -> Tensor:
        sigma_1, sigma_2, degrees = (torch.tensor([value], dtype=torch.float64) for value in kernel)
        return gaussian_kernels(self.kernel_size, sigma_1, sigma_2, torch.deg2rad(degrees))

    def _noise(self, gt: Tensor, level: float, name: str) -> Tensor | None:
        """Draws the noise of an image and degradation, which does not depend on the image's place in the folder."""
        if not level:
            return None
        shape = (1, gt.shape[0], gt.shape[1] // self.scale, gt.shape[2] // self.scale)
        return torch.from_numpy(random_stream(zlib.crc32(name.encode())).standard_normal(shape)) * (level / 255)


def _kernels(found: object, scale: int) -> list[tuple[float, float, float]]:
    """Returns standard deviations along both axes and the angle in degrees of each kernel of an option."""
    if found == 'gaussian8':
        if scale not in GAUSSIAN8:
            raise OptionsError(
                f'kernels: gaussian8 exists for x2 and x4 only (found x{scale}). Expected a list of widths.'
            )
        found = GAUSSIAN8[scale]
    elif found == 'anisotropic9':
        found = ANISOTROPIC9
    elif isinstance(found, str):
        raise OptionsError(f'kernels: unknown (found {found!r}). {did_you_mean(found, ("gaussian8", "anisotropic9"))}')
    kernels = []
    for kernel in found if isinstance(found, Sequence) else [found]:
        numbers = [kernel, kernel, 0.0] if is_number(kernel) else kernel
        if not isinstance(numbers, Sequence) or len(numbers) != 3 or not all(map(is_number, numbers)):
            raise OptionsError(
                f'kernels: impossible kernel (found {kernel!r}). Expected sigma, or [sigma_1, sigma_2, degrees].'
            )
        if min(numbers[:2]) <= 0:
            raise OptionsError(f'kernels: impossible kernel (found {kernel!r}). Expected standard deviations above 0.')
        kernels.append(tuple(numbers))
    if not kernels:
        raise OptionsError('kernels: empty. Expected at least one kernel.')
    return kernels


def _label(kernel: Sequence[float]) -> str:
    """Describes a kernel in the name of an image."""
    sigma_1, sigma_2, degrees = kernel
    return f'iso{sigma_1:g}' if sigma_1 == sigma_2 else f'aniso{sigma_1:g}x{sigma_2:g}x{degrees:g}'
