"""The table of options: BasicSR's and ours, checked before anything is built or written."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal, get_args, get_origin, get_type_hints

from basicsr.utils.registry import (
    ARCH_REGISTRY,
    DATASET_REGISTRY,
    LOSS_REGISTRY,
    METRIC_REGISTRY,
    MODEL_REGISTRY,
)

from pisr_plugin.config.rules import (
    ANY,
    FLAG,
    KINDS,
    NUMBER,
    REFERENCE,
    TEXT,
    TEXTS,
    Block,
    Fields,
    FolderName,
    ListOf,
    Named,
    Number,
    OneOf,
    Plain,
    Refused,
    Rule,
    loosely,
    mapping,
    one_of,
    registered,
    registered_names,
    wrong,
)
from pisr_plugin.data.datasets.patch_dataset import STORES
from pisr_plugin.degradations.registry import DEGRADATION_REGISTRY
from pisr_plugin.evaluation.protocol import PROTOCOLS
from pisr_plugin.models.optimizers import argument_mistakes, find_optimizer, is_usable, optimizers
from pisr_plugin.models.step import StepOptions
from pisr_plugin.utils.checks import is_whole
from pisr_plugin.utils.docstrings import argument_docs, option_docs
from pisr_plugin.utils.errors import OptionsError, did_you_mean


def check_options(options: Mapping, option_path: str = '', is_train: bool = False) -> None:
    """Checks the resolved options of one stage.

    Args:
        options: The options, without references.
        option_path: Where they stand, for messages.
        is_train: Whether the stage will be trained, which needs ``train`` and ``datasets.train``.

    Raises:
        OptionsError: lists every mistake with its option path, what was found and what is possible.
    """
    _check(stage_rule(options, is_train), options, option_path)


def check_network(options: Mapping, option_path: str) -> None:
    """Checks the options of one network.

    Raises:
        OptionsError: as :func:`check_options`.
    """
    _check(NETWORK, options, option_path)


def check_dist_params(options: Any) -> dict:
    """Checks ``dist_params``, which is needed before the stages are; returns it, empty where there is none.

    Raises:
        OptionsError: as :func:`check_options`.
    """
    _check(DIST_PARAMS, options or {}, 'dist_params')
    return options or {}


def _check(rule: Rule, options: Mapping, option_path: str) -> None:
    problems: list[str] = []
    rule.check(options, option_path, problems)
    if problems:
        more = [f'... and {len(problems) - 20} more'] if len(problems) > 20 else []
        raise OptionsError('\n'.join([*problems[:20], *more]))


def _is_template(text: Any) -> bool:
    """Whether a text has ``{}`` once, where the name of an image goes, and nothing else that ``format`` would read."""
    return isinstance(text, str) and text.count('{}') == text.count('{') == text.count('}') == 1


TEMPLATE = Plain("text with '{}' once, for the image's name", _is_template, TEXT.schema)
NOT_NEGATIVE = Number(at_least=0)
PROBABILITY = Number(at_least=0, at_most=1)
WHOLE = Number(at_least=0, at_most=10**9, whole=True)
POSITIVE = Number(at_least=1, at_most=10**9, whole=True)
NUMBERS = ListOf(NUMBER)
MODULES = Plain(
    'a mapping of module paths, teacher: student',
    lambda v: isinstance(v, Mapping) and all(isinstance(x, str) for pair in v.items() for x in pair),
    mapping({}, additionalProperties=TEXT.schema),
)
# Keys that any dataset may have, and those of BasicSR's loader.
DATASET_KEYS = {
    'name': FolderName(),
    'type': TEXT,
    'dataroot_gt': TEXT,
    'dataroot_lq': TEXT,
    'meta_info_file': TEXT,
    'filename_tmpl': TEMPLATE,
    'io_backend': Fields({'type': OneOf('disk', 'lmdb', 'memcached')}, ['type'], open_ended=True),
    'color': OneOf('y', 'rgb'),
    'store': OneOf(*STORES),
    'gt_size': POSITIVE,
    'use_hflip': FLAG,
    'use_rot': FLAG,
    'mean': NUMBERS,
    'std': ListOf(Number(above=0)),
    'num_worker_per_gpu': Number(at_least=0, at_most=1024, whole=True),
    'batch_size_per_gpu': Number(at_least=1, at_most=1 << 16, whole=True),
    'dataset_enlarge_ratio': POSITIVE,
    'prefetch_mode': OneOf('cpu', 'cuda'),
    'num_prefetch_queue': POSITIVE,
    'pin_memory': FLAG,
    'persistent_workers': FLAG,
    'phase': TEXT,
    'scale': POSITIVE,
}
# Keys of the last datasets of BasicSR that take more than their docstrings say: required ones, and rules.
_KERNEL_KEYS = {
    f'{key}{time}': rule
    for time in ('', '2')
    for key, rule in {
        'blur_kernel_size': POSITIVE,
        'kernel_list': ListOf(
            OneOf(*(f'{form}{kind}iso' for form in ('', 'generalized_', 'plateau_') for kind in ('', 'an')))
        ),
        'kernel_prob': ListOf(PROBABILITY),
        'blur_sigma': ListOf(Number(above=0), (2, 2)),
        'betag_range': ListOf(Number(above=0), (2, 2)),
        'betap_range': ListOf(Number(above=0), (2, 2)),
        'sinc_prob': PROBABILITY,
    }.items()
} | {'final_sinc_prob': PROBABILITY}
BASICSR_DATASETS: dict[str, tuple[tuple[str, ...], dict[str, Rule]]] = {
    'PairedImageDataset': (('dataroot_gt', 'dataroot_lq', 'io_backend'), {}),
    'RealESRGANDataset': (('dataroot_gt', 'io_backend', *_KERNEL_KEYS), {'meta_info': TEXT, **_KERNEL_KEYS}),
}
_ADDED = ('scale', 'phase')  # to each dataset's options by whoever builds it


def dataset_keys(kind: str) -> tuple[tuple[str, ...], dict[str, Rule]] | None:
    """Required keys of a type of dataset, and rules for those that :data:`DATASET_KEYS` lacks.

    A class of ours or of a plugin lists its keys in its docstring, below ``opt``; those neither ``optional`` nor with
    a default are required. None where it lists none, as most of BasicSR's: such a class reads its own keys.
    """
    target = registered(DATASET_REGISTRY, kind)
    if kind in BASICSR_DATASETS or target.__module__.startswith('basicsr.'):
        return BASICSR_DATASETS.get(kind)
    docs = option_docs(target)
    required = tuple(key for key, entry in docs.items() if not entry.is_optional and key not in _ADDED)
    return (required, {key: KINDS.get(entry.kind, ANY) for key, entry in docs.items()}) if docs else None


class Dataset(Rule):
    """A dataset block.

    Args:
        is_train: Whether it is one to train on.
    """

    def __init__(self, is_train: bool = False) -> None:
        self.is_train = is_train

    def check(self, value: Any, option_path: str, problems: list[str]) -> None:
        if not isinstance(value, Mapping):
            problems.append(wrong(option_path, value, 'a mapping'))
            return
        kind: Any = value.get('type')
        if registered(DATASET_REGISTRY, kind) is None:
            names = registered_names(DATASET_REGISTRY)
            problems.append(f'{option_path}.type: {kind!r} is not registered. {did_you_mean(kind, names)}')
            return
        keys = dataset_keys(kind)
        needed, own = keys or ((), {})
        required = [*dict.fromkeys(['name', 'type', *needed])]
        if self.is_train:
            required += ['batch_size_per_gpu', 'num_worker_per_gpu']
            required += ['gt_size', 'use_hflip', 'use_rot'] if keys else []
        Fields({**own, **DATASET_KEYS}, required, open_ended=keys is None).check(value, option_path, problems)

    def json(self, defs: dict[str, dict]) -> dict:
        docs = argument_docs(registered(DATASET_REGISTRY, 'PairedImageDataset'))
        keys = {
            key: {**rule.json(defs), **({'description': docs[key].text} if key in docs else {})}
            for key, rule in DATASET_KEYS.items()
        }
        kinds = registered_names(DATASET_REGISTRY)
        keys['type'] = one_of(kinds)
        known = []
        for kind in kinds:
            found = dataset_keys(kind)
            if found:
                texts = {} if kind in BASICSR_DATASETS else option_docs(registered(DATASET_REGISTRY, kind))
                own = {
                    key: {**rule.json(defs), **({'description': texts[key].text} if key in texts else {})}
                    for key, rule in found[1].items()
                    if key not in keys
                }
                then = mapping({**dict.fromkeys(keys, True), **own}, additionalProperties=False)
                known.append({'if': {'properties': {'type': {'const': kind}}, 'required': ['type']}, 'then': then})
        defs['dataset'] = mapping(keys, allOf=known)
        return {'$ref': '#/$defs/dataset'}


class Datasets(Fields):
    """All datasets of a stage; the names of those to test on differ, because results are filed by them."""

    def check(self, value: Any, option_path: str, problems: list[str]) -> None:
        super().check(value, option_path, problems)
        named: dict[str, str] = {}
        for key, block in value.items() if isinstance(value, Mapping) else ():
            name = block.get('name') if isinstance(block, Mapping) and key != 'train' else None
            if isinstance(name, str) and named.setdefault(name, key) != key:
                problems.append(
                    f'{option_path}.{key}.name: two test sets have the same name (found {name!r} in {named[name]} '
                    'too). Expected a name of its own for each.'
                )


_STEPS = ('milestones', 'gamma', 'restarts', 'restart_weights')
SCHEDULES = {
    'MultiStepLR': _STEPS,
    'MultiStepRestartLR': _STEPS,
    'CosineAnnealingRestartLR': ('periods', 'eta_min', 'restart_weights'),
}


class Scheduler(Fields):
    """A learning rate's schedule. Each type has its arguments, the first of which it needs; lists belong together."""

    def check(self, value: Any, option_path: str, problems: list[str]) -> None:
        super().check(value, option_path, problems)
        kind = value.get('type') if isinstance(value, Mapping) else None
        if not isinstance(kind, str) or kind not in SCHEDULES:
            return
        possible = SCHEDULES[kind]
        problems += [
            f'{option_path}.{key}: {kind} does not take it. Possible: {", ".join(possible)}. '
            '_delete_: true drops what another recipe set.'
            for key in value
            if key in self.rules and key not in ('type', *possible)
        ]
        if value.get(possible[0]) is None:
            problems.append(f'{option_path}.{possible[0]}: missing')
        counted = 'periods' if 'periods' in possible else 'restarts'
        first, second = value.get(counted), value.get('restart_weights')
        if isinstance(first, list) and isinstance(second, list) and len(first) != len(second):
            problems.append(
                wrong(f'{option_path}.restart_weights', second, f'as many numbers as {counted}, {len(first)}')
            )


def _of_annotation(annotation: Any) -> Rule:
    """The rule for a field of :class:`~pisr_plugin.models.step.StepOptions`: a type or a ``Literal``, or None."""
    if get_origin(annotation) is Literal:
        return OneOf(*get_args(annotation))
    kinds = [kind for kind in get_args(annotation) if kind is not type(None)]
    return _of_annotation(kinds[0]) if kinds else KINDS[annotation.__name__]


LOSS = Block(LOSS_REGISTRY)
NETWORK = Block(ARCH_REGISTRY)
LINK = Fields(
    {
        'student': TEXT,
        'teacher': TEXT,
        'estimator': Block(ARCH_REGISTRY, given=('in_ch', 'out_ch')),
        'loss': Block(LOSS_REGISTRY, extra={'from_iter': WHOLE, 'to_iter': WHOLE}),
    },
    ['loss'],
)
SCHEDULER = Scheduler(
    {
        'type': OneOf(*SCHEDULES),
        'milestones': ListOf(WHOLE),
        'gamma': Number(above=0),
        'periods': ListOf(POSITIVE),
        'restarts': ListOf(WHOLE),
        'restart_weights': ListOf(Number(above=0)),
        'eta_min': NOT_NEGATIVE,
    },
    ['type'],
)


class Optimizer(Fields):
    """``{type: <optimizer>, lr: <rate>, <arguments of its constructor>}``, as ``PISRModel`` builds it."""

    def check(self, value: Any, option_path: str, problems: list[str]) -> None:
        before = len(problems)
        super().check(value, option_path, problems)
        if len(problems) > before:
            return
        try:
            cls = find_optimizer(value['type'], option_path)
        except OptionsError as error:
            problems.append(str(error))
            return
        given = {key: item for key, item in value.items() if key != 'type'}
        problems += argument_mistakes(cls, given, option_path)

    def json(self, defs: dict[str, dict]) -> dict:
        # names are proposed and not demanded: the file may be for a machine with more of them
        names = {'examples': sorted(name for name, cls in optimizers().items() if is_usable(cls))}
        described = super().json(defs)
        described['properties']['type'] = {**described['properties']['type'], **names}
        defs['optimizer'] = described
        return {'$ref': '#/$defs/optimizer'}


_OPTIMIZER = (
    {
        'type': TEXT,
        'lr': NOT_NEGATIVE,
        'betas': ListOf(Number(at_least=0, below=1), (2, 2)),
        'weight_decay': NOT_NEGATIVE,
    },
    ['type', 'lr'],
)
OPTIMIZER = Optimizer(*_OPTIMIZER, open_ended=True)
ANY_OPTIMIZER = Fields(*_OPTIMIZER, open_ended=True)  # other models may know others
STEP = {name: _of_annotation(annotation) for name, annotation in get_type_hints(StepOptions).items()}
TRAIN = {
    'total_iter': POSITIVE,
    'warmup_iter': Number(at_least=-1, at_most=10**9, whole=True),  # -1: none
    'ema_decay': Number(at_least=0, below=1),
    'optim_g': OPTIMIZER,
    'scheduler': SCHEDULER,
    'pixel_opt': LOSS,
    'imitation_opt': LOSS,
    'perceptual_opt': LOSS,
    'gan_opt': LOSS,
    'optim_d': OPTIMIZER,
    'net_d_iters': POSITIVE,
    'net_d_init_iters': WHOLE,
    'weight_transfer': MODULES,
    'distill_opt': Named(LINK),
    'degradation': Block(DEGRADATION_REGISTRY, given=('scale', 'seed')),
    **STEP,
    'grad_clip': Number(above=0),
    'accumulate': POSITIVE,
}
DIST_PARAMS = Fields(
    {
        'backend': OneOf('nccl', 'gloo'),
        'port': Number(at_least=1, at_most=65535, whole=True),
        'timeout': POSITIVE,
    }
)
VAL = {
    'val_freq': POSITIVE,
    'save_img': FLAG,
    'pbar': FLAG,
    'suffix': FolderName(),
    'protocol': OneOf(*PROTOCOLS),
    'use_image': FLAG,
    'metrics': Named(
        Block(
            METRIC_REGISTRY,
            extra={'better': OneOf('higher', 'lower'), 'crop_border': Number(at_least=0, at_most=1000, whole=True)},
            given=('img', 'img2'),
        )
    ),
}
LOGGER = {
    'print_freq': POSITIVE,
    'save_checkpoint_freq': POSITIVE,
    'keep_checkpoints': POSITIVE,
    'use_tb_logger': FLAG,
    'wandb': Fields({'project': TEXT, 'resume_id': TEXT}),
}
PATH = {
    'resume_state': Refused('pisr-train --auto_resume goes on from the newest state of each stage.'),
    'ignore_resume_networks': TEXTS,
}


def stage_rule(options: Mapping, is_train: bool = False) -> Fields:
    """The rule for the options of one stage.

    Args:
        options: The stage's options; only ``model_type`` and ``network_t`` matter.
        is_train: As in :func:`check_options`.
    """
    # Other model types read options of their own in train; what they share with ours is still checked.
    ours = options.get('model_type') == 'PISRModel'
    models = registered_names(MODEL_REGISTRY)
    needed = 'network_t' if ours and options.get('network_t') is not None else 'network_g'
    networks: dict[str, Rule] = {f'network_{label}': NETWORK for label in 'gtd'}
    of_network = {'pretrain_network_': TEXT, 'param_key_': TEXT, 'strict_load_': FLAG}
    paths = {f'{key}{label}': rule for key, rule in of_network.items() for label in 'gtd'}
    return Fields(
        {
            'name': FolderName(),
            'scale': Number(at_least=1, at_most=8, whole=True),
            'manual_seed': Number(at_least=0, at_most=2**32 - 1024, whole=True),  # NumPy's largest, less the ranks
            'find_unused_parameters': FLAG,
            'keep_memory': FLAG,
            'plugins': TEXTS,
            'model_type': Plain(
                f'a registered model ({", ".join(models)})',
                lambda v: registered(MODEL_REGISTRY, v) is not None,
                one_of(models),
            ),
            'num_gpu': Plain(
                "a whole number from 0 on or 'auto'",
                lambda v: v == 'auto' or is_whole(v, 0),
                loosely('integer', minimum=0) | {'pattern': f'^auto$|{REFERENCE}'},
            ),
            'dist_params': DIST_PARAMS,
            'datasets': Datasets(
                {'train': Dataset(is_train=True), 'val': Dataset(), 'test': Dataset()},
                ['train'] if is_train else [],
                patterns={'val_': Dataset(), 'test_': Dataset()},
            ),
            'path': Fields({**PATH, **paths}, patterns={} if ours else of_network),
            **networks,
            'train': Fields(
                TRAIN if ours else TRAIN | dict.fromkeys(('optim_g', 'optim_d'), ANY_OPTIMIZER),
                ['total_iter', 'optim_g', 'scheduler'] if ours else ['total_iter'],
                open_ended=not ours,
            ),
            'val': Fields(VAL, open_ended=not ours),
            'logger': Fields(LOGGER, ['print_freq', 'save_checkpoint_freq']),
        },
        ['name', 'model_type', 'scale', 'datasets', 'logger', needed, *(['train'] if is_train else [])],
        patterns={} if ours else {'network_': NETWORK},
    )
