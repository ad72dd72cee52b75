"""Patches for training, cut from decoded images."""

from __future__ import annotations

import os
import random
from typing import Any

import numpy as np
import torch
from basicsr.utils.registry import DATASET_REGISTRY
from torch import Tensor
from torch.utils.data import Dataset

from ..errors import DataError, OptionsError, choice
from ..resize import imresize_uint8
from .lr_patch import lr_patch
from .memory_images import MemoryImages
from .patches import Patches, cut_on_device, cut_on_host, draw_patches, plan_on_device
from .raw_lmdb import RawImages
from .sampling import Draws

STORES = ('lmdb', 'memory', 'device')


@DATASET_REGISTRY.register()
class PatchStoreDataset(Dataset):
    """HR and LR patches from LMDBs of decoded images, as ``prepare_data`` makes them.

    A sample is what ``PairedImageDataset`` would make of the same images, patch and symmetry; only the way to it is
    shorter. For training make whole batches of random numbers with :meth:`batch`. Single items are for BasicSR's own
    loader and for validation.

    Args:
        opt (dict): Options of the dataset:
            dataroot_gt (str): LMDB of raw HR images.
            dataroot_lq (str): LMDB of raw LR images with the same keys. Without it LR is made of HR as MATLAB's
                bicubic, of each patch anew with store lmdb, once at the start with the others.
            store (str): ``lmdb`` reads from the mapped file, which all processes of a machine share; ``memory``
                loads all images first; ``device`` loads them and cuts on the device they are sent to.
                Default: lmdb.
            color (str): ``y`` for luminance, ``rgb`` for three channels. Default: rgb.
            gt_size (int): Side of the HR patches.
            skip_small (bool): Leave out the images that are smaller than a patch; otherwise they are an error.
                Default: false.
            use_hflip (bool): Mirror half of the patches left-right.
            use_rot (bool): Mirror half of them top-bottom and transpose half of them; with use_hflip all eight
                symmetries.
            scale (int): Upscaling factor; added automatically.
            phase (str): ``train`` for patches, else whole images; added automatically.

    Attributes:
        resident: Whether :meth:`batch` works on the device and takes hardly any time of the host.

    Raises:
        DataError: an LMDB is missing or damaged, or HR and LR do not fit together.
        OptionsError: an option has a value that is not possible.
    """

    def __init__(self, opt: dict[str, Any]) -> None:
        super().__init__()
        self.opt = opt
        self._scale, self._training = opt['scale'], opt['phase'] == 'train'
        self._is_y = _one_of(opt, 'color', ('rgb', 'y')) == 'y'
        store = _one_of(opt, 'store', STORES)
        self.resident = store == 'device'
        self._gt: RawImages | MemoryImages = RawImages(os.path.expanduser(opt['dataroot_gt']))
        self._lq: RawImages | MemoryImages | None = None
        if opt.get('dataroot_lq') is not None:
            self._lq = RawImages(os.path.expanduser(opt['dataroot_lq']))
        self._check()
        # where LR is made of HR, a rest that is no multiple of the scale is left out
        self._lq_sizes = self._gt.sizes // self._scale if self._lq is None else self._lq.sizes
        if store != 'lmdb':
            self._load()

    def __len__(self) -> int:
        return len(self._gt.keys)

    def __reduce__(self) -> tuple:
        return type(self), (self.opt,)  # a spawned worker loads for itself; a forked one shares

    def __getitem__(self, index: int) -> dict[str, Any]:
        """One sample, with random numbers drawn as BasicSR's ``PairedImageDataset`` draws them.

        Returns:
            ``lq`` (C, h, w) and ``gt`` (C, h * scale, w * scale), float32, from 0 to 1, a random patch for training,
            else the whole image; ``lq_path`` and ``gt_path``, the key.
        """
        if self._training:
            patches = self._patches_as_basicsr(index)
            lq, gt = (part[0] for part in self._cut(patches).values())
        else:
            lq, gt = self._whole(index)
        key = self._gt.keys[index]
        return {'lq': lq, 'gt': gt, 'lq_path': key, 'gt_path': key}

    def batch(self, draws: Draws) -> dict[str, Tensor]:
        """A batch of B patches; the same draws give the same patches from every kind of store.

        Args:
            draws: Images, and the random numbers that place and turn the patches.

        Returns:
            ``lq`` (B, C, h, h) and ``gt`` (B, C, gt_size, gt_size), float32, from 0 to 1, on the device of the store.

        Raises:
            DataError: an image cannot be read.
        """
        patches = draw_patches(draws, self._lq_sizes, self._lq_side, self._use_hflip, self._use_rot)
        if not self.resident:
            return self._cut(patches)
        return self.cut(self.plan(draws).to(self._gt.pixels.device, non_blocking=True))

    # For a device: what the host decides, and what the device makes of it

    def to(self, device: torch.device) -> None:
        """Moves the images of store ``device``.

        Raises:
            DataError: they do not fit there.
        """
        for images in (self._gt, self._lq):
            images.to(device)

    def plan(self, draws: Draws) -> Tensor:
        """Where the pixels of a batch lie, for :meth:`cut`: small, in host memory, (2, B, 3), int64."""
        patches = draw_patches(draws, self._lq_sizes, self._lq_side, self._use_hflip, self._use_rot)
        lq = plan_on_device(patches, self._lq, self._lq_side)
        gt = plan_on_device(patches.enlarged(self._scale), self._gt, self._lq_side * self._scale)
        return torch.from_numpy(np.stack([lq, gt]))

    def cut(self, plan: Tensor) -> dict[str, Tensor]:
        """Makes the batch of a plan that is on the device, without the host, so that a CUDA graph can hold it."""
        return {
            'lq': cut_on_device(self._lq.pixels, plan[0], self._lq_side, self._is_y),
            'gt': cut_on_device(self._gt.pixels, plan[1], self._lq_side * self._scale, self._is_y),
        }

    # On the host

    def _cut(self, patches: Patches) -> dict[str, Tensor]:
        side, scale = self._lq_side, self._scale
        gts = self._gt.views(patches.indices)
        corners = patches.corners.tolist()
        if self._lq is None:
            lqs = [lr_patch(self._even(gt), *corner, side, scale) for gt, corner in zip(gts, corners)]
        else:
            lqs = _squares(self._lq.views(patches.indices), corners, side)
        gts = _squares(gts, patches.enlarged(scale).corners.tolist(), side * scale)
        return {
            'lq': cut_on_host(lqs, patches.symmetries, self._is_y),
            'gt': cut_on_host(gts, patches.symmetries, self._is_y),
        }

    def _patches_as_basicsr(self, index: int) -> Patches:
        corner = [random.randint(0, places) for places in (self._lq_sizes[index] - self._lq_side).tolist()]
        symmetry = [use and random.random() < 0.5 for use in (self._use_hflip, self._use_rot, self._use_rot)]
        return Patches(np.array([index]), np.array([corner]), np.array([symmetry], bool))

    def _whole(self, index: int) -> tuple[Tensor, Tensor]:
        (gt,) = self._gt.views([index])
        if self._lq is None:
            lq = imresize_uint8(self._even(gt), 1 / self._scale)
        else:
            (lq,) = self._lq.views([index])
        height, width = (side * self._scale for side in lq.shape[:2])
        none = np.zeros((1, 3), bool)
        lq, gt = (cut_on_host([img], none, self._is_y)[0] for img in (lq, gt[:height, :width]))
        return lq, gt

    def _even(self, gt: np.ndarray) -> np.ndarray:
        """HR without a rest that is no multiple of the scale."""
        height, width = (side // self._scale * self._scale for side in gt.shape[:2])
        return gt[:height, :width]

    # At the start

    def _check(self) -> None:
        roots = f'{self.opt["dataroot_gt"]} and {self.opt.get("dataroot_lq")}'
        if self._lq is not None and self._lq.keys != self._gt.keys:
            raise DataError(f'{roots} hold different images.')
        if not self._training:
            return
        self._use_hflip, self._use_rot = self.opt['use_hflip'], self.opt['use_rot']
        self._lq_side, rest = divmod(self.opt['gt_size'], self._scale)
        if rest:
            raise OptionsError(f'gt_size: {self.opt["gt_size"]} is not a multiple of the scale, {self._scale}.')
        if self._lq is not None and (self._lq.sizes * self._scale != self._gt.sizes).any():
            raise DataError(f'{roots}: HR must be exactly {self._scale} x LR to train.')
        large = np.flatnonzero(self._gt.sizes.min(1) >= self.opt['gt_size'])
        if len(large) < (1 if self.opt.get('skip_small') else len(self)):
            raise DataError(f'{self.opt["dataroot_gt"]}: holds images smaller than gt_size, {self.opt["gt_size"]}.')
        for images in filter(None, (self._gt, self._lq)):
            images.keep(large)

    def _load(self) -> None:
        """Takes all images into memory; what was changed on the way there is told."""
        for images in filter(None, (self._gt, self._lq)):
            changed = [key for index, key in enumerate(images.keys) if images.is_changed(index)]
            if changed:
                raise DataError(f'{images.path}: {", ".join(changed[:3])}: not what was written. Build it again.')
        indices = range(len(self))
        if self._lq is None:
            made = (imresize_uint8(self._even(self._gt.views([index])[0]), 1 / self._scale) for index in indices)
            self._lq = MemoryImages(self._gt.keys, self._lq_sizes, made)
        else:
            self._lq = MemoryImages(self._lq.keys, self._lq.sizes, (self._lq.views([index])[0] for index in indices))
        self._gt = MemoryImages(self._gt.keys, self._gt.sizes, (self._gt.views([index])[0] for index in indices))


def _one_of(opt: dict[str, Any], key: str, possible: tuple[str, ...]) -> str:
    """An option's value; the first of those possible by default."""
    value = opt.get(key) or possible[0]
    if value not in possible:
        raise OptionsError(f'{key}: {value!r} found. {choice(value, possible)}')
    return value


def _squares(images: list[np.ndarray], corners: list[list[int]], side: int) -> list[np.ndarray]:
    return [img[top : top + side, left : left + side] for img, (top, left) in zip(images, corners)]
