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

from pisr_plugin.data.datasets.patches import (
    Patches,
    SampleDraws,
    draw_patches,
    gather,
    gather_indices,
    lr_patch,
    make_on_host,
)
from pisr_plugin.data.storage.memory_store import MemoryStore
from pisr_plugin.data.storage.raw_lmdb import RawLmdb
from pisr_plugin.utils.devices import to_device
from pisr_plugin.utils.errors import DataError, OptionsError, did_you_mean
from pisr_plugin.utils.resize import crop_to_multiple, imresize_uint8

STORES = ('lmdb', 'memory', 'device')


@DATASET_REGISTRY.register()
class PatchStoreDataset(Dataset):
    """HR and LR patches from LMDBs of decoded images, as ``prepare_data`` makes them.

    A sample equals that of ``PairedImageDataset`` for the same images, patch and symmetry. Training takes whole batches
    from :meth:`batch`; single items are for BasicSR's own loader and for validation.

    Args:
        opt (dict): Options of the dataset:
            dataroot_gt (str): LMDB of raw HR images.
            dataroot_lq (str, optional): LMDB of raw LR images with the same keys. Without it the dataset makes LR from
                HR by MATLAB's bicubic: for every patch with store lmdb, once at the start with the other stores.
            store (str): ``lmdb`` reads from the mapped file, which all processes of a machine share; ``memory``
                loads all images first; ``device`` loads them and makes patches on the training device.
                Default: lmdb.
            color (str): ``y`` for the Y channel, ``rgb`` for three channels. Default: rgb.
            gt_size (int, optional): Height and width of the HR patches in pixels.
            skip_small (bool): Skip the images that are smaller than a patch; otherwise they are an error.
                Default: false.
            use_hflip (bool, optional): Mirror half of the patches left-right.
            use_rot (bool, optional): Mirror half of the patches top-bottom and transpose half of them; with
                use_hflip all eight symmetries.
            scale (int): Upscaling factor; added automatically.
            phase (str): ``train`` for patches, else whole images; added automatically.

    Attributes:
        on_device: Whether :meth:`batch` works on the training device and takes hardly any time of the host.

    Raises:
        DataError: an LMDB is missing or damaged, or HR and LR do not fit together.
        OptionsError: an option has an impossible value.
    """

    def __init__(self, opt: dict[str, Any]) -> None:
        super().__init__()
        self.opt = opt
        self._scale, self._training = opt['scale'], opt['phase'] == 'train'
        self._is_y = _one_of(opt, 'color', ('rgb', 'y')) == 'y'
        store = _one_of(opt, 'store', STORES)
        self.on_device = store == 'device'
        self._gt: RawLmdb | MemoryStore = RawLmdb(os.path.expanduser(opt['dataroot_gt']))
        self._lq: RawLmdb | MemoryStore | None = None
        if opt.get('dataroot_lq') is not None:
            self._lq = RawLmdb(os.path.expanduser(opt['dataroot_lq']))
        self._check()
        self._lq_sizes = self._gt.sizes // self._scale if self._lq is None else self._lq.sizes
        if store != 'lmdb':
            self._load()

    def __len__(self) -> int:
        return len(self._gt.keys)

    def __reduce__(self) -> tuple:
        return type(self), (self.opt,)  # a spawned worker loads the images itself; a forked one shares them

    def __getitem__(self, index: int) -> dict[str, Any]:
        """Makes one sample with the random numbers that BasicSR's ``PairedImageDataset`` would draw.

        Returns:
            ``lq`` (C, h, w) and ``gt`` (C, h * scale, w * scale), float32, from 0 to 1: a random patch for training,
            else the whole image. ``lq_path`` and ``gt_path`` are the image's key.
        """
        if self._training:
            patches = self._patches_as_basicsr(index)
            lq, gt = (part[0] for part in self._make_on_host(patches).values())
        else:
            lq, gt = self._whole(index)
        key = self._gt.keys[index]
        return {'lq': lq, 'gt': gt, 'lq_path': key, 'gt_path': key}

    def batch(self, draws: SampleDraws) -> dict[str, Tensor]:
        """Makes a batch of B patches; the same draws give the same patches from every kind of store.

        Args:
            draws: The images' indices, and the random numbers that place and turn the patches.

        Returns:
            ``lq`` (B, C, h, h) and ``gt`` (B, C, gt_size, gt_size), float32, from 0 to 1, on the device of the store.

        Raises:
            DataError: an image cannot be read.
        """
        if self.on_device:
            return self.gather(self.gather_indices(draws))
        return self._make_on_host(self._draw(draws))

    # On a device: the host computes indices, the device gathers the pixels

    def to(self, device: torch.device) -> None:
        """Moves the images of store ``device``.

        Raises:
            DataError: the images do not fit into the device's memory.
        """
        for images in self._in_memory():
            images.to(device)

    def gather_indices(self, draws: SampleDraws) -> Tensor:
        """Finds the pixels of a batch for :meth:`gather`; returns a small tensor on the device, (2, B, 3), int64."""
        patches, (lq, gt) = self._draw(draws), self._in_memory()
        small = gather_indices(patches, lq, self._lq_side)
        large = gather_indices(patches.upscaled(self._scale), gt, self._lq_side * self._scale)
        return to_device(torch.from_numpy(np.stack([small, large])), gt.pixels.device)

    def gather(self, indices: Tensor) -> dict[str, Tensor]:
        """Makes a batch from indices on the device, without the host, so that a CUDA graph can capture it."""
        lq, gt = self._in_memory()
        return {
            'lq': gather(lq.pixels, indices[0], self._lq_side, self._is_y),
            'gt': gather(gt.pixels, indices[1], self._lq_side * self._scale, self._is_y),
        }

    def _in_memory(self) -> tuple[MemoryStore, MemoryStore]:
        """Returns the LR and HR images of store ``device``."""
        assert isinstance(self._lq, MemoryStore) and isinstance(self._gt, MemoryStore)
        return self._lq, self._gt

    # On the host

    def _draw(self, draws: SampleDraws) -> Patches:
        return draw_patches(draws, self._lq_sizes, self._lq_side, self._use_hflip, self._use_rot)

    def _make_on_host(self, patches: Patches) -> dict[str, Tensor]:
        side, scale = self._lq_side, self._scale
        gts = self._gt.views(patches.indices)
        corners = patches.corners.tolist()
        if self._lq is None:
            lqs = [
                lr_patch(crop_to_multiple(gt, scale), top, left, side, scale) for gt, (top, left) in zip(gts, corners)
            ]
        else:
            lqs = _squares(self._lq.views(patches.indices), corners, side)
        gts = _squares(gts, patches.upscaled(scale).corners.tolist(), side * scale)
        return {
            'lq': make_on_host(lqs, patches.symmetries, self._is_y),
            'gt': make_on_host(gts, patches.symmetries, self._is_y),
        }

    def _patches_as_basicsr(self, index: int) -> Patches:
        corner = [random.randint(0, places) for places in (self._lq_sizes[index] - self._lq_side).tolist()]
        symmetry = [use and random.random() < 0.5 for use in (self._use_hflip, self._use_rot, self._use_rot)]
        return Patches(np.array([index]), np.array([corner]), np.array([symmetry], bool))

    def _whole(self, index: int) -> tuple[Tensor, Tensor]:
        (gt,) = self._gt.views([index])
        if self._lq is None:
            lq = imresize_uint8(crop_to_multiple(gt, self._scale), 1 / self._scale)
        else:
            (lq,) = self._lq.views([index])
        height, width = (side * self._scale for side in lq.shape[:2])
        none = np.zeros((1, 3), bool)
        small, large = (make_on_host([img], none, self._is_y)[0] for img in (lq, gt[:height, :width]))
        return small, large

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
            raise OptionsError(f'gt_size: not a multiple of the scale, {self._scale} (found {self.opt["gt_size"]}).')
        if self._lq is not None and (self._lq.sizes * self._scale != self._gt.sizes).any():
            raise DataError(f'{roots}: HR must be exactly {self._scale} x LR to train.')
        large = np.flatnonzero(self._gt.sizes.min(1) >= self.opt['gt_size'])
        if len(large) < (1 if self.opt.get('skip_small') else len(self)):
            raise DataError(f'{self.opt["dataroot_gt"]}: holds images smaller than gt_size, {self.opt["gt_size"]}.')
        for images in self._lmdbs():
            images.keep(large)

    def _lmdbs(self) -> list[RawLmdb]:
        return [images for images in (self._gt, self._lq) if isinstance(images, RawLmdb)]

    def _load(self) -> None:
        """Loads all images into memory, and raises if the pixels of one have changed since they were written."""
        for images in self._lmdbs():
            changed = [key for index, key in enumerate(images.keys) if images.is_changed(index)]
            if changed:
                raise DataError(f'{images.path}: {", ".join(changed[:3])}: changed since it was built. Build it again.')
        indices = range(len(self))
        if self._lq is None:
            hrs = (crop_to_multiple(self._gt.views([index])[0], self._scale) for index in indices)
            made = (imresize_uint8(hr, 1 / self._scale) for hr in hrs)
            self._lq = MemoryStore(self._gt.keys, self._lq_sizes, made)
        else:
            self._lq = MemoryStore(self._lq.keys, self._lq.sizes, (self._lq.views([index])[0] for index in indices))
        self._gt = MemoryStore(self._gt.keys, self._gt.sizes, (self._gt.views([index])[0] for index in indices))


def _one_of(opt: dict[str, Any], key: str, possible: tuple[str, ...]) -> str:
    """Returns an option's value, by default the first possible one."""
    value = opt.get(key) or possible[0]
    if value not in possible:
        raise OptionsError(f'{key}: unknown value (found {value!r}). {did_you_mean(value, possible)}')
    return value


def _squares(images: list[np.ndarray], corners: list[list[int]], side: int) -> list[np.ndarray]:
    return [img[top : top + side, left : left + side] for img, (top, left) in zip(images, corners)]
