"""PSNR, SSIM and IFC of bicubic interpolation by the protocol of published tables: the rows of docs/metrics.md.

``python benchmarks/bicubic.py datasets/Set5/HR datasets/Set14/HR datasets/B100/HR``

All on Y, rounded to 8 bit: LR is made of it by MATLAB's bicubic without rounding, enlarged by the same, rounded.
One-channel files are taken as Y.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import cv2
import numpy as np
import torch

import pisr_plugin  # noqa: F401  (makes BasicSR importable)
from pisr_plugin.metrics import calculate_ifc
from pisr_plugin.resize import imresize

# isort: split
from basicsr.metrics import calculate_psnr, calculate_ssim
from basicsr.metrics.metric_util import to_y_channel

METRICS = (calculate_psnr, calculate_ssim, calculate_ifc)


def read_y(path: Path) -> np.ndarray:
    """Y of an image file as 8 bit, shape (H, W, 1)."""
    image = cv2.imread(str(path), cv2.IMREAD_UNCHANGED)
    return image[..., None] if image.ndim == 2 else to_uint8(to_y_channel(image))


def to_uint8(values: np.ndarray) -> np.ndarray:
    return np.floor(values.clip(0, 255) + 0.5).astype(np.uint8)


def bicubic(gt: np.ndarray, scale: int) -> np.ndarray:
    x = torch.from_numpy(gt[..., 0].astype(np.float64))[None]
    return to_uint8(imresize(imresize(x, 1 / scale), scale)[0].numpy())[..., None]


def main() -> None:
    parser = argparse.ArgumentParser(description='Measure bicubic interpolation by the protocol of published tables.')
    parser.add_argument('folder', nargs='+', type=Path, help='ground truth images, PNG')
    parser.add_argument('--scale', nargs='+', type=int, default=[2, 3, 4])
    args = parser.parse_args()
    print('| folder | scale | images | PSNR | SSIM | IFC |\n|---|---|---|---|---|---|')
    for folder in args.folder:
        images = [read_y(path) for path in sorted(folder.glob('*.png'))]
        for scale in args.scale:
            rows = []
            for gt in images:
                gt = gt[: gt.shape[0] // scale * scale, : gt.shape[1] // scale * scale]
                sr = bicubic(gt, scale)
                rows.append([metric(sr, gt, crop_border=scale) for metric in METRICS])
            psnr, ssim, ifc = np.mean(rows, axis=0)
            print(f'| {folder} | x{scale} | {len(rows)} | {psnr:.3f} | {ssim:.4f} | {ifc:.4f} |', flush=True)


if __name__ == '__main__':
    main()
