"""The card of what a stage leaves."""

from __future__ import annotations

import math
from dataclasses import replace

import torch

from pisr_plugin.archs.network_info import input_channels
from pisr_plugin.config.stages import Stage
from pisr_plugin.engine.cpu_timer import cpu_seconds
from pisr_plugin.evaluation.results import Row
from pisr_plugin.inference import checkpoint
from pisr_plugin.inference.card import Card, card_file, checksum, read_card, write_card
from pisr_plugin.version import __version__


def stage_card(stage: Stage) -> Card:
    """Makes the card of what a finished stage leaves."""
    options, train_data = stage.options, stage.options['datasets']['train']
    network = options[stage.network]
    weights = checkpoint.load_weights(stage.checkpoint)
    return Card(
        stage.checkpoint,
        network,
        options['scale'],
        'y' if input_channels(network, 1 if train_data.get('color') == 'y' else 3) == 1 else 'rgb',
        'params_ema' if options['train'].get('ema_decay') else 'params',
        checksum(stage.checkpoint),
        sum(value.numel() for value in weights.values()),
        {
            'recipe': stage.recipe,
            'stage': stage.name,
            'data': train_data['name'],
            'iterations': options['train']['total_iter'],
            'cpu_seconds': round(cpu_seconds(stage.folder), 1),
            'pisr_plugin': __version__,
            'torch': torch.__version__,
        },
    )


def add_measured(stage: Stage, row: Row, protocol_name: str) -> None:
    """Writes what a test measured onto the card of a stage's product.

    Args:
        stage: The stage as trained.
        row: The measurements.
        protocol_name: How they were made.
    """
    if not card_file(stage.checkpoint).is_file():  # trained by an earlier version
        return
    card = read_card(stage.checkpoint)
    found = {
        name: {metric: value for metric, value in record.mean.items() if math.isfinite(value)}
        for name, record in row.sets.items()
    }
    measured = {**card.measured, protocol_name: {**card.measured.get(protocol_name, {}), **found}}
    write_card(replace(card, measured=measured))
