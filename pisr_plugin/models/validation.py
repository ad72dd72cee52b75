"""Validation during training: the network that is shipped, measured as ``pisr-test`` measures it."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from tqdm import tqdm

from pisr_plugin.data.storage.image_files import write_png
from pisr_plugin.evaluation.measure import measure_images
from pisr_plugin.evaluation.protocol import protocol_of
from pisr_plugin.inference.descriptor import ModelDescriptor
from pisr_plugin.utils.devices import evaluating, precision


def validate(
    model: ModelDescriptor,
    opt: Mapping[str, Any],
    dataset: Mapping[str, Any],
    image_file: Callable[[str], Path] | None = None,
    stop_asked: Callable[[], bool] = lambda: False,
) -> dict[str, float] | None:
    """Measures a network on one set by ``val.protocol``, in fp32, each rank on its share of the images.

    Args:
        model: The network; it is in its former mode again at the end.
        opt: Options of the stage.
        dataset: Options of the validation set.
        image_file: From an image's name to the PNG file to save its reconstruction in; None saves none.
        stop_asked: Asked after each image; True ends the validation early, on all ranks.

    Returns:
        ``{metric: mean over all images}``, the same on all ranks; None when it ended early on any rank.
    """
    metrics = opt['val'].get('metrics') or {}
    share = (opt['rank'], opt['world_size']) if opt['dist'] else (0, 1)
    # One sum for each metric, the number of images, and whether a rank ended early.
    sums = torch.zeros(len(metrics) + 2, dtype=torch.float64)
    assert model.net is not None  # bicubic interpolation is not trained
    with evaluating(model.net), precision(tf32=False):
        results = measure_images(model, dataset, protocol_of(opt), metrics, share=share)
        for result in tqdm(results, unit='image', disable=not opt['val'].get('pbar')):
            if image_file:
                file = image_file(result.name)
                file.parent.mkdir(parents=True, exist_ok=True)
                write_png(file, result.picture(opt['scale']))
            sums[:-2] += torch.tensor(list(result.values.values()))
            sums[-2] += 1
            if stop_asked():
                sums[-1] = 1
                break
    if opt['dist']:
        sums = sums.to(model.device)
        torch.distributed.all_reduce(sums)
    *totals, count, ended_early = sums.tolist()
    return None if ended_early else {name: total / count for name, total in zip(metrics, totals)}
