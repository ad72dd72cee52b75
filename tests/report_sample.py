"""A folder of results as an evaluation leaves it, small and made in a second."""

from __future__ import annotations

import json
from pathlib import Path

import cv2
import numpy as np
import torch
import yaml
from basicsr.archs import build_network

from pisr_plugin.distill.estimators import LocationScale
from pisr_plugin.utils.resize import imresize_uint8

STUDENT = {'type': 'FSRCNN', 'd': 8, 's': 4, 'm': 1, 'num_in_ch': 1, 'num_out_ch': 1, 'upscale': 2}
TEACHER = {'type': 'PITeacher', 'upscale': 2, 'decoder': STUDENT}
DISTILL = {'body': {'estimator': {'type': 'LocationScale'}, 'loss': {'type': 'VIDLaplaceLoss', 'loss_weight': 1e-6}}}
IMITATION = {'type': 'L1Loss', 'loss_weight': 1e-4}
EVIL = '</script><script>alert(1)</script> & <b>"Laplace"</b> $x_1$'  # a title must show as it is written
IMAGES = {'Set5': ('baby', 'bird'), 'Set14': ('zebra',)}


def make_results(root: Path) -> Path:
    """Writes ``root/experiments`` and ``root/results/sample``; returns the latter."""
    folder = root / 'results/sample'
    truth = {}
    for set_name, images in IMAGES.items():
        for image in images:
            truth[set_name, image] = _texture(len(truth))
            _save(folder / f'pictures/gt/{set_name}/{image}.png', truth[set_name, image])
    teacher = make_teacher(root / 'experiments/laplace/teacher', imitation=True)
    free = make_teacher(root / 'experiments/free/teacher', imitation=False)
    student = make_student(root / 'experiments/laplace/student')
    rows = [
        _row(folder, truth, 'bicubic', 'Bicubic', 'bicubic', 0, blur=0.0),
        _row(folder, truth, 'baseline', 'Baseline', 'student', 0.5, blur=0.4),
        _row(folder, truth, 'laplace', EVIL, 'student', 0.75, blur=0.7, runs={'teacher': teacher, 'student': student}),
        _row(folder, truth, 'teacher', 'Teacher', 'teacher', 0.4, blur=0.8, runs={'teacher': free}),
    ]
    rows[2]['seeds'] = [0, 1]
    rows[2]['sets']['Set5']['spread'] = {'psnr': 0.03}
    content = {
        'kind': 'evaluation',
        'version': 1,
        'title': 'A sample of <results>',
        'scale': 2,
        'protocol': {'name': 'rgb8', 'text': 'PSNR on Y.'},
        'environment': {'torch': '2', 'device': 'CPU', 'precision': 'fp32', 'threads': 1, 'pisr_plugin': '0'},
        'metrics': {'psnr': 'higher', 'ssim': 'higher'},
        'against': 'baseline',
        'ground_truth': {s: {i: f'pictures/gt/{s}/{i}.png' for i in images} for s, images in IMAGES.items()},
        'rows': rows,
    }
    (folder / 'evaluation.json').write_text(json.dumps(content))
    return folder


def make_teacher(folder: Path, imitation: bool) -> Path:
    """Writes the run folder of a teacher that has not learned anything."""
    train = {'pixel_opt': {'type': 'L1Loss'}, **({'imitation_opt': IMITATION} if imitation else {})}
    _run(folder, {'network_t': TEACHER, 'train': train}, {'net_t': build_network(TEACHER).state_dict()})
    return folder


def make_student(folder: Path) -> Path:
    """Writes the run folder of a student with an estimator."""
    estimator = {f'body.{key}': value for key, value in LocationScale(in_ch=8, out_ch=8).state_dict().items()}
    options = {'network_g': STUDENT, 'network_t': TEACHER, 'train': {'distill_opt': DISTILL}}
    _run(folder, options, {'net_g': build_network(STUDENT).state_dict(), 'net_e': estimator})
    return folder


def _run(folder: Path, options: dict, weights: dict[str, dict]) -> None:
    (folder / 'models').mkdir(parents=True)
    for name, state in weights.items():
        torch.save({'params': state}, folder / f'models/{name}_latest.pth')
    header = '# pisr_plugin 0.1.0, options/pisr_fsrcnn_x2.yml name=x train:distill_opt={a: {b: c}}\n# stage student\n'
    (folder / 'options.yml').write_text(header + yaml.safe_dump({'scale': 2, **options}))
    lines = [{'iter': i, 'lr': 1e-3, 'l_pix': 1 / i, 'l_distill_body': -1e-5 * i} for i in range(20, 220, 20)]
    lines += [{'iter': i, 'dataset': 'Set5', 'psnr': 30 + i / 100, 'ssim': 0.9} for i in (100, 200)]
    (folder / 'metrics.jsonl').write_text('\n'.join(map(json.dumps, lines)) + '\n{"iter": 220, "l_p')


def _row(
    folder: Path, truth: dict, name: str, title: str, role: str, gain: float, blur: float, runs: dict | None = None
) -> dict:
    sets: dict = {}
    for (set_name, image), hr in truth.items():
        soft = imresize_uint8(imresize_uint8(hr, 0.5), 2)
        picture = (blur * hr + (1 - blur) * soft).round().astype(np.uint8)
        path = f'pictures/{name}/{set_name}/{image}.png'
        _save(folder / path, picture)
        entry = sets.setdefault(set_name, {'images': {}, 'spread': None})
        entry['images'][image] = {'psnr': 30 + gain + len(image), 'ssim': 0.9 + gain / 100, 'picture': path}
    for entry in sets.values():
        entry['mean'] = {'psnr': 30 + gain, 'ssim': 0.9 + gain / 100}
        entry['difference'] = {'psnr': gain - 0.5, 'ssim': (gain - 0.5) / 100}
    return {
        'name': name,
        'title': title,
        'role': role,
        'network': '' if role == 'bicubic' else 'FSRCNN',
        'parameters': None if role == 'bicubic' else 12644,
        'multi_adds': 2.87e9 if role == 'student' else None,
        'training_seconds': 1234.5 if role == 'student' else None,
        'published': {'Set5': 37.33} if name == 'laplace' else {},
        'seeds': [],
        'seconds': {'Set5': 0.01},
        'sets': sets,
        'runs': [
            {'seed': 0, 'stage': s, 'folder': f'../../{f.relative_to(folder.parents[1])}', 'checkpoint': None}
            for s, f in (runs or {}).items()
        ],
    }


def _texture(seed: int) -> np.ndarray:
    coarse = np.random.default_rng(seed).integers(0, 256, (24, 30, 3), dtype=np.uint8)
    return cv2.resize(coarse, (120, 96), interpolation=cv2.INTER_LINEAR)


def _save(path: Path, picture: np.ndarray) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    cv2.imwrite(str(path), picture[..., ::-1])
