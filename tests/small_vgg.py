"""Stands in for VGG19 and its weights, which no test downloads."""

from __future__ import annotations

from types import SimpleNamespace

import torch
from torchvision.models import vgg


def small_vgg19(pretrained: bool) -> SimpleNamespace:
    """VGG19's layers with a sixteenth of the channels and always the same weights."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return SimpleNamespace(features=vgg.make_layers([c if c == 'M' else c // 16 for c in vgg.cfgs['E']]))


def install(monkeypatch=None) -> None:
    """Puts it in VGG19's place, for a test or for the life of a process."""
    if monkeypatch:
        monkeypatch.setattr(vgg, 'vgg19', small_vgg19)
    else:
        vgg.vgg19 = small_vgg19
