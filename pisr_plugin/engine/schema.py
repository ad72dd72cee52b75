"""What options may say: BasicSR's keys and ours, checked before anything is built or written.

A rule is an object with ``check(value, place, problems)`` that appends one line per mistake.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from basicsr.utils.registry import (
    ARCH_REGISTRY,
    DATASET_REGISTRY,
    LOSS_REGISTRY,
    METRIC_REGISTRY,
    MODEL_REGISTRY,
    Registry,
)

from pisr_plugin.errors import OptionsError, choice


def check_options(options: Mapping, place: str = '') -> None:
    """Checks the resolved options of one stage.

    Raises:
        OptionsError: lists every mistake with its option path, what was found and what is possible.
    """
    problems: list[str] = []
    _stage_rule(options).check(options, place, problems)
    if problems:
        raise OptionsError('\n'.join(problems))


class Rule:
    """Accepts anything."""

    def check(self, value: Any, place: str, problems: list[str]) -> None:
        """Appends to ``problems`` what is wrong with ``value`` at option path ``place``."""


class Plain(Rule):
    """A scalar of one kind."""

    def __init__(self, what: str, accept: Callable[[Any], bool]) -> None:
        self.what, self.accept = what, accept

    def check(self, value: Any, place: str, problems: list[str]) -> None:
        if not self.accept(value):
            problems.append(f'{place}: {value!r} where {self.what} belongs')


def _is_whole(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


def _is_number(value: Any) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool)


FLAG = Plain('true or false', lambda v: isinstance(v, bool))
TEXT = Plain('text', lambda v: isinstance(v, str))
NUMBER = Plain('a number', _is_number)
WHOLE = Plain('a whole number', _is_whole)
POSITIVE = Plain('a whole number above 0', lambda v: _is_whole(v) and v > 0)
NUMBERS = Plain('a list of numbers', lambda v: isinstance(v, (list, tuple)) and all(map(_is_number, v)))
TEXTS = Plain('a list of texts', lambda v: isinstance(v, (list, tuple)) and all(isinstance(x, str) for x in v))
MODULES = Plain('a mapping of module paths, teacher: student,',
                lambda v: isinstance(v, Mapping) and all(isinstance(x, str) for pair in v.items() for x in pair))


class OneOf(Plain):
    """One of a few values."""

    def __init__(self, *values: Any) -> None:
        super().__init__(' or '.join(map(repr, values)), lambda v: v in values)


class Fields(Rule):
    """A mapping with known keys.

    Args:
        rules: Rule by key.
        required: Keys that must be there.
        patterns: Rules for keys by prefix, e.g. ``{'network_': ...}``.
        open_ended: Whether other keys are somebody else's business.
    """

    def __init__(self, rules: Mapping[str, Rule], required: Sequence[str] = (),
                 patterns: Mapping[str, Rule] | None = None, open_ended: bool = False) -> None:
        self.rules, self.required, self.patterns, self.open_ended = rules, required, patterns or {}, open_ended

    def check(self, value: Any, place: str, problems: list[str]) -> None:
        if not isinstance(value, Mapping):
            problems.append(f'{place}: {value!r} where a mapping belongs')
            return
        for key, item in value.items():
            where = f'{place}.{key}' if place else str(key)
            rule = self.rules.get(key)
            if rule is None:
                rule = next((rule for prefix, rule in self.patterns.items() if str(key).startswith(prefix)), None)
            if rule is not None:
                rule.check(item, where, problems)
            elif not self.open_ended:
                problems.append(f'{where}: unknown key. {choice(key, [*self.rules, *(f"{p}*" for p in self.patterns)])}')
        for key in self.required:
            if value.get(key) is None:
                problems.append(f'{f"{place}.{key}" if place else key}: missing')


class Named(Rule):
    """A mapping from free names to values of one kind."""

    def __init__(self, rule: Rule) -> None:
        self.rule = rule

    def check(self, value: Any, place: str, problems: list[str]) -> None:
        if not isinstance(value, Mapping):
            problems.append(f'{place}: {value!r} where a mapping of names belongs')
            return
        for name, item in value.items():
            if not str(name).isidentifier():
                problems.append(f'{place}.{name}: a name is made of letters, digits and underscores')
            self.rule.check(item, f'{place}.{name}', problems)


class Block(Rule):
    """``{type: <registered name>, <arguments of its constructor>}``.

    Args:
        registry: Where the type is looked up.
        extra: Rules for keys that are not arguments.
        given: Arguments that the builder adds.
    """

    def __init__(self, registry: Registry, extra: Mapping[str, Rule] | None = None, given: Sequence[str] = ()) -> None:
        self.registry, self.extra, self.given = registry, extra or {}, given

    def check(self, value: Any, place: str, problems: list[str]) -> None:
        if not isinstance(value, Mapping) or 'type' not in value:
            problems.append(f'{place}: {value!r} where a mapping with a type belongs')
            return
        target = registered(self.registry, value['type'])
        if target is None:
            problems.append(f'{place}.type: {value["type"]!r} is not registered. '
                            f'{choice(value["type"], registered_names(self.registry))}')
            return
        parameters = inspect.signature(target).parameters
        takes_any = any(p.kind is p.VAR_KEYWORD for p in parameters.values())
        for key, item in value.items():
            where = f'{place}.{key}'
            if key == 'type':
                continue
            if key in self.extra:
                self.extra[key].check(item, where, problems)
            elif key in parameters and parameters[key].kind not in (inspect.Parameter.VAR_KEYWORD,
                                                                    inspect.Parameter.VAR_POSITIONAL):
                self._check_argument(parameters[key], item, where, problems)
            elif not takes_any:
                problems.append(f'{where}: {value["type"]} has no such argument. '
                                f'{choice(key, [p for p in parameters if p not in self.given])} '
                                '(_delete_: true beside type drops what a base recipe gave)')
        for name, parameter in parameters.items():
            if (parameter.default is parameter.empty and name not in value and name not in self.given
                    and parameter.kind in (parameter.POSITIONAL_OR_KEYWORD, parameter.KEYWORD_ONLY)):
                problems.append(f'{place}.{name}: missing; {value["type"]} needs it')

    def _check_argument(self, parameter: inspect.Parameter, value: Any, place: str, problems: list[str]) -> None:
        if isinstance(value, Mapping) and 'type' in value:  # a network inside a network
            Block(ARCH_REGISTRY).check(value, place, problems)
            return
        wanted = parameter.annotation if parameter.annotation is not parameter.empty else type(parameter.default)
        numeric = wanted in (int, float, 'int', 'float')
        if numeric and not _is_number(value):
            problems.append(f'{place}: {value!r} where a number belongs')
        elif wanted in (int, 'int') and not _is_whole(value):
            problems.append(f'{place}: {value!r} where a whole number belongs')
        elif wanted in (bool, 'bool') and not isinstance(value, bool):
            problems.append(f'{place}: {value!r} where true or false belongs')


def registered(registry: Registry, name: Any) -> Any:
    """The object that BasicSR would build for ``name``, or None."""
    entries = dict(iter(registry))
    return entries.get(name, entries.get(f'{name}_basicsr'))


def registered_names(registry: Registry) -> list[str]:
    """Names as options write them."""
    return [name.removesuffix('_basicsr') for name, _ in registry]


DATASET_KEYS = {
    'name': TEXT, 'type': TEXT, 'dataroot_gt': TEXT, 'dataroot_lq': TEXT, 'meta_info_file': TEXT,
    'filename_tmpl': TEXT, 'io_backend': Fields({'type': OneOf('disk', 'lmdb', 'memcached')}, ['type'], open_ended=True),
    'color': OneOf('y', 'rgb'), 'gt_size': POSITIVE, 'use_hflip': FLAG, 'use_rot': FLAG, 'mean': NUMBERS, 'std': NUMBERS,
    'num_worker_per_gpu': WHOLE, 'batch_size_per_gpu': POSITIVE, 'dataset_enlarge_ratio': POSITIVE,
    'prefetch_mode': OneOf('cpu', 'cuda'), 'num_prefetch_queue': POSITIVE, 'pin_memory': FLAG,
    'persistent_workers': FLAG, 'phase': TEXT, 'scale': POSITIVE,
}


class Dataset(Rule):
    """A dataset block. Keys are checked for BasicSR's paired images; other types read their own."""

    def check(self, value: Any, place: str, problems: list[str]) -> None:
        if not isinstance(value, Mapping):
            problems.append(f'{place}: {value!r} where a mapping belongs')
            return
        kind = value.get('type')
        if registered(DATASET_REGISTRY, kind) is None:
            problems.append(f'{place}.type: {kind!r} is not registered. {choice(kind, registered_names(DATASET_REGISTRY))}')
            return
        required = ['name', 'type']
        if place.split('.')[-1] == 'train':
            required += ['batch_size_per_gpu', 'num_worker_per_gpu']
        if kind == 'PairedImageDataset':
            required += ['dataroot_gt', 'dataroot_lq', 'io_backend']
            if place.split('.')[-1] == 'train':
                required += ['gt_size', 'use_hflip', 'use_rot']
        Fields(DATASET_KEYS, required, open_ended=kind != 'PairedImageDataset').check(value, place, problems)


LOSS = Block(LOSS_REGISTRY)
NETWORK = Block(ARCH_REGISTRY)
LINK = Fields({
    'student': TEXT, 'teacher': TEXT,
    'estimator': Block(ARCH_REGISTRY, given=('in_ch', 'out_ch')),
    'loss': Block(LOSS_REGISTRY, extra={'from_iter': WHOLE, 'to_iter': WHOLE}),
}, ['loss'])
SCHEDULER = Fields({
    'type': OneOf('MultiStepLR', 'MultiStepRestartLR', 'CosineAnnealingRestartLR'), 'milestones': NUMBERS, 'gamma': NUMBER,
    'periods': NUMBERS, 'restarts': NUMBERS, 'restart_weights': NUMBERS, 'eta_min': NUMBER,
}, ['type'])
OPTIMISER = Fields({'type': TEXT, 'lr': NUMBER, 'betas': NUMBERS, 'weight_decay': NUMBER, 'eps': NUMBER}, ['type', 'lr'],
                   open_ended=True)
TRAIN = {
    'total_iter': POSITIVE, 'warmup_iter': WHOLE, 'ema_decay': NUMBER, 'optim_g': OPTIMISER, 'scheduler': SCHEDULER,
    'pixel_opt': LOSS, 'imitation_opt': LOSS, 'weight_transfer': MODULES, 'distill_opt': Named(LINK),
}


def _stage_rule(options: Mapping) -> Fields:
    # Other model types read options of their own in train; what they share with ours is still checked.
    ours = options.get('model_type') == 'PISRModel'
    return Fields({
        'name': TEXT, 'scale': POSITIVE, 'manual_seed': WHOLE, 'find_unused_parameters': FLAG,
        'model_type': Plain(f'a registered model ({", ".join(registered_names(MODEL_REGISTRY))})',
                            lambda v: registered(MODEL_REGISTRY, v) is not None),
        'num_gpu': Plain("a whole number or 'auto'", lambda v: v == 'auto' or _is_whole(v) and v >= 0),
        'dist_params': Fields({'backend': OneOf('nccl', 'gloo'), 'port': WHOLE}),
        'datasets': Fields({'train': Dataset()}, patterns={'val': Dataset(), 'test': Dataset()}),
        'path': Fields({'resume_state': TEXT, 'ignore_resume_networks': TEXTS},
                       patterns={'pretrain_network_': TEXT, 'param_key_': TEXT, 'strict_load_': FLAG}),
        'train': Fields(TRAIN, ['total_iter', 'optim_g', 'scheduler'] if ours else ['total_iter'], open_ended=not ours),
        'val': Fields({'val_freq': POSITIVE, 'save_img': FLAG, 'pbar': FLAG, 'suffix': TEXT, 'use_image': FLAG,
                       'metrics': Named(Block(METRIC_REGISTRY, extra={'better': OneOf('higher', 'lower')},
                                              given=('img', 'img2')))}, open_ended=not ours),
        'logger': Fields({'print_freq': POSITIVE, 'save_checkpoint_freq': POSITIVE, 'use_tb_logger': FLAG,
                          'wandb': Fields({'project': TEXT, 'resume_id': TEXT})}, ['print_freq', 'save_checkpoint_freq']),
    }, ['name', 'model_type', 'scale', 'datasets', 'logger', 'network_t' if ours and 'network_t' in options else 'network_g'],
        patterns={'network_': NETWORK})
