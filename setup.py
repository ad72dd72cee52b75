"""Packaging. `make demo` and `make test` install everything; README says how to add the plugin to an environment."""

import re
from pathlib import Path

from setuptools import find_packages, setup

ROOT = Path(__file__).parent
# read as text: importing the package would import torch and BasicSR
VERSION = re.search(r"^__version__ = '(.+)'$", (ROOT / 'pisr_plugin' / 'version.py').read_text(), re.M).group(1)
README = ROOT / 'README.md'

setup(
    name='pisr-plugin',
    version=VERSION,
    description='Privileged-information distillation for efficient image super-resolution, as a plugin for BasicSR',
    long_description=README.read_text() if README.exists() else '',
    long_description_content_type='text/markdown',
    license='Apache-2.0',
    py_modules=['pisr_command'],
    packages=[*find_packages(include=['pisr_plugin', 'pisr_plugin.*']), 'pisr_plugin.options'],
    package_dir={'pisr_plugin.options': 'options'},
    package_data={
        'pisr_plugin': ['py.typed', 'zoo/*'],
        'pisr_plugin.export': ['web/*'],
        'pisr_plugin.options': ['**/*.yml', 'schema.json'],
        'pisr_plugin.report': ['*.j2', 'static/*', 'sections/*'],
    },
    python_requires='>=3.10,<3.13',  # basicsr 1.4.2 does not build on 3.13
    install_requires=[
        'torch>=2.6',  # earlier ones run code from a checkpoint all the same (CVE-2025-32434)
        'torchvision>=0.21',
        'basicsr==1.4.2',
        'filelock',
        'docstring_parser',
        'mmengine',
        'numpy',
        'opencv-python',
        'lmdb',
        'packaging',
        'pillow>=11.3',  # the first that reads AVIF
        'pyyaml',
        'safetensors',
        'scikit-image',
        'scipy',
        'tifffile',
        'tqdm',
        'setuptools; python_version >= "3.12"',  # the distutils that BasicSR imports
    ],
    extras_require={
        'cluster': ['submitit'],
        'dev': [
            'bokeh>=3.9',
            'hypothesis',
            'jinja2',
            'jsonschema',
            'matplotlib',
            'mypy',
            'onnx',
            'onnxruntime',
            'onnxscript',
            'playwright',
            'pytest',
            'pytest-xdist',
            'pytorch_optimizer>=4.1',
            'ruff',
            'submitit',
            'tensorboard',
            'types-PyYAML',
        ],
        'docs': ['latex2mathml', 'mkdocs-material'],
        'ifc': ['pyrtools'],
        'onnx': ['onnx', 'onnxruntime', 'onnxscript'],
        'openvino': ['onnx', 'onnxruntime', 'onnxscript', 'openvino'],
        'optimizers': ['pytorch_optimizer>=4.1'],
        'perceptual': ['piq'],
        'spandrel': ['spandrel'],
        'report': ['bokeh>=3.9', 'jinja2', 'matplotlib'],
        'tensorboard': ['tensorboard'],
    },
    entry_points={
        'console_scripts': [
            'pisr-train = pisr_command:main',
            'pisr-test = pisr_command:main',
            'pisr-ablate = pisr_command:main',
            'pisr-upscale = pisr_command:main',
            'pisr-export = pisr_command:main',
            'pisr-prepare-data = pisr_command:main',
            'pisr-complexity = pisr_command:main',
            'pisr-picture = pisr_command:main',
            'pisr-gradients = pisr_command:main',
            'pisr-representation = pisr_command:main',
            'pisr-report = pisr_command:main',
            'pisr-list = pisr_command:main',
        ],
    },
)
