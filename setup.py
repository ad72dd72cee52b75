"""Packaging. `make demo` and `make test` install everything; README says how to add the plugin to an environment."""

import re
from pathlib import Path

from setuptools import find_packages, setup

ROOT = Path(__file__).parent
# read as text: importing the package would import torch and BasicSR
VERSION = re.search(r"^__version__ = '(.+)'$", (ROOT / 'pisr_plugin' / '__init__.py').read_text(), re.M).group(1)
README = ROOT / 'README.md'

setup(
    name='pisr-plugin',
    version=VERSION,
    description='Privileged-information distillation for efficient image super-resolution, as a plugin for BasicSR',
    long_description=README.read_text() if README.exists() else '',
    long_description_content_type='text/markdown',
    license='Apache-2.0',
    packages=find_packages(include=['pisr_plugin', 'pisr_plugin.*']),
    package_data={'pisr_plugin.report': ['templates/*', 'static/*']},
    python_requires='>=3.10,<3.13',  # basicsr 1.4.2 does not build on 3.13
    install_requires=[
        'torch>=2.1',
        'torchvision>=0.16',
        'basicsr==1.4.2',
        'mmengine',
        'numpy',
        'opencv-python',
        'lmdb',
        'packaging',
        'pyyaml',
        'safetensors',
        'scikit-image',
        'scipy',
        'tqdm',
        'setuptools; python_version >= "3.12"',  # the distutils that BasicSR imports
    ],
    extras_require={
        'cluster': ['submitit'],
        'dev': [
            'bokeh>=3.9',
            'jinja2',
            'jsonschema',
            'matplotlib',
            'playwright',
            'pytest',
            'ruff',
            'submitit',
            'tensorboard',
        ],
        'ifc': ['pyrtools'],
        'onnx': ['onnx', 'onnxruntime', 'onnxscript'],
        'perceptual': ['piq'],
        'report': ['bokeh>=3.9', 'jinja2', 'matplotlib'],
        'tensorboard': ['tensorboard'],
    },
    entry_points={
        'console_scripts': [
            'pisr-train = pisr_plugin.engine.train:main',
            'pisr-test = pisr_plugin.evaluation.test:main',
            'pisr-ablate = pisr_plugin.ablation.ablate:main',
            'pisr-upscale = pisr_plugin.analysis.upscale:main',
            'pisr-prepare-data = pisr_plugin.data.prepare:main',
            'pisr-complexity = pisr_plugin.analysis.complexity:main',
            'pisr-picture = pisr_plugin.analysis.picture:main',
            'pisr-gradients = pisr_plugin.analysis.gradients:main',
            'pisr-representation = pisr_plugin.analysis.representation:main',
            'pisr-report = pisr_plugin.report.cli:main',
            'pisr-list = pisr_plugin.analysis.listing:main',
        ],
    },
)
