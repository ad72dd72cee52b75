"""What options may say: BasicSR's keys and ours, checked before anything is built or written.

A rule is an object with ``check(value, place, problems)`` that appends one line per mistake, and ``json(defs)`` that
says the same to an editor.
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

from pisr_plugin.data.degradations import DEGRADATION_REGISTRY
from pisr_plugin.engine.docstrings import argument_docs, first_sentence
from pisr_plugin.errors import OptionsError, choice
from pisr_plugin.evaluation.protocol import PROTOCOLS

REFERENCE = r'^\$\{[\w.]+\}$'  # in a recipe it may stand for any value


def check_options(options: Mapping, place: str = '') -> None:
    """Checks the resolved options of one stage.

    Raises:
        OptionsError: lists every mistake with its option path, what was found and what is possible.
    """
    _check(stage_rule(options), options, place)


def check_network(options: Mapping, place: str) -> None:
    """Checks the options of one network.

    Raises:
        OptionsError: as :func:`check_options`.
    """
    _check(NETWORK, options, place)


def _check(rule: Rule, options: Mapping, place: str) -> None:
    problems: list[str] = []
    rule.check(options, place, problems)
    if problems:
        raise OptionsError('\n'.join(problems))


class Rule:
    """Accepts anything."""

    def check(self, value: Any, place: str, problems: list[str]) -> None:
        """Appends to ``problems`` what is wrong with ``value`` at option path ``place``."""

    def json(self, defs: dict[str, dict]) -> dict:
        """The rule as JSON schema for a recipe file, where ``~`` and references are values too and nothing is required.

        Args:
            defs: Takes the parts that are referred to as ``#/$defs/<name>``.
        """
        return {}


def loosely(kind: str, **more: Any) -> dict:
    """JSON schema of a value of this kind, or a reference to one, or none."""
    return {'type': [kind, 'string', 'null'], 'pattern': REFERENCE, **more}


def _one_of(values: Sequence) -> dict:
    return {'anyOf': [{'enum': [*values, None]}, {'type': 'string', 'pattern': REFERENCE}]}


def _mapping(properties: Mapping[str, dict], **more: Any) -> dict:
    return loosely('object', properties={**properties, '_delete_': {'type': 'boolean'}}, **more)


class Plain(Rule):
    """A value of one kind, which a function accepts and a JSON schema describes."""

    def __init__(self, what: str, accept: Callable[[Any], bool], schema: dict) -> None:
        self.what, self.accept, self.schema = what, accept, schema

    def check(self, value: Any, place: str, problems: list[str]) -> None:
        if not self.accept(value):
            problems.append(f'{place}: {value!r} where {self.what} belongs')

    def json(self, defs: dict[str, dict]) -> dict:
        return self.schema


def _is_whole(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


def _is_number(value: Any) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool)


_TEXT, _NUMBER = {'type': ['string', 'null']}, loosely('number')
FLAG = Plain('true or false', lambda v: isinstance(v, bool), loosely('boolean'))
TEXT = Plain('text', lambda v: isinstance(v, str), _TEXT)
NUMBER = Plain('a number', _is_number, _NUMBER)
WHOLE = Plain('a whole number', _is_whole, loosely('integer'))
POSITIVE = Plain('a whole number above 0', lambda v: _is_whole(v) and v > 0, loosely('integer', minimum=1))
NUMBERS = Plain(
    'a list of numbers',
    lambda v: isinstance(v, (list, tuple)) and all(map(_is_number, v)),
    loosely('array', items=_NUMBER),
)
TEXTS = Plain(
    'a list of texts',
    lambda v: isinstance(v, (list, tuple)) and all(isinstance(x, str) for x in v),
    loosely('array', items=_TEXT),
)
MODULES = Plain(
    'a mapping of module paths, teacher: student,',
    lambda v: isinstance(v, Mapping) and all(isinstance(x, str) for pair in v.items() for x in pair),
    _mapping({}, additionalProperties=_TEXT),
)


class OneOf(Plain):
    """One of a few values."""

    def __init__(self, *values: Any) -> None:
        super().__init__(' or '.join(map(repr, values)), lambda v: v in values, _one_of(values))


class Fields(Rule):
    """A mapping with known keys.

    Args:
        rules: Rule by key.
        required: Keys that must be there.
        patterns: Rules for keys by prefix, e.g. ``{'network_': ...}``.
        open_ended: Whether other keys are somebody else's business.
    """

    def __init__(
        self,
        rules: Mapping[str, Rule],
        required: Sequence[str] = (),
        patterns: Mapping[str, Rule] | None = None,
        open_ended: bool = False,
    ) -> None:
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
                problems.append(
                    f'{where}: unknown key. {choice(key, [*self.rules, *(f"{p}*" for p in self.patterns)])}'
                )
        for key in self.required:
            if value.get(key) is None:
                problems.append(f'{f"{place}.{key}" if place else key}: missing')

    def json(self, defs: dict[str, dict]) -> dict:
        return _mapping(
            {key: rule.json(defs) for key, rule in self.rules.items()},
            patternProperties={f'^{prefix}': rule.json(defs) for prefix, rule in self.patterns.items()},
            additionalProperties=self.open_ended,
        )


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

    def json(self, defs: dict[str, dict]) -> dict:
        return _mapping({}, propertyNames={'pattern': r'^[^\W\d]\w*$'}, additionalProperties=self.rule.json(defs))


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
            problems.append(
                f'{place}.type: {value["type"]!r} is not registered. '
                f'{choice(value["type"], registered_names(self.registry))} (--plugin MODULE imports your own)'
            )
            return
        parameters, takes_any = arguments(target)
        for key, item in value.items():
            where = f'{place}.{key}'
            if key == 'type':
                continue
            if key in self.extra:
                self.extra[key].check(item, where, problems)
            elif key in parameters:
                self._check_argument(argument_type(target, key), item, where, problems)
            elif not takes_any:
                problems.append(
                    f'{where}: {value["type"]} has no such argument. '
                    f'{choice(key, [p for p in parameters if p not in self.given])} '
                    '(_delete_: true beside type drops what a base recipe gave)'
                )
        for name, parameter in parameters.items():
            if parameter.default is parameter.empty and name not in value and name not in self.given:
                problems.append(f'{place}.{name}: missing; {value["type"]} needs it')

    def _check_argument(self, wanted: str, value: Any, place: str, problems: list[str]) -> None:
        if isinstance(value, Mapping) and 'type' in value:  # a network inside a network
            Block(ARCH_REGISTRY).check(value, place, problems)
            return
        if wanted in ('int', 'float') and not _is_number(value):
            problems.append(f'{place}: {value!r} where a number belongs')
        elif wanted == 'int' and not _is_whole(value):
            problems.append(f'{place}: {value!r} where a whole number belongs')
        elif wanted == 'bool' and not isinstance(value, bool):
            problems.append(f'{place}: {value!r} where true or false belongs')

    def json(self, defs: dict[str, dict]) -> dict:
        name = '.'.join((self.registry._name, *self.given, *self.extra))
        if name not in defs:
            defs[name] = {}  # before the arguments, which may refer to it
            extra = {key: rule.json(defs) for key, rule in self.extra.items()}
            types = {}
            for kind in registered_names(self.registry):
                target = registered(self.registry, kind)
                parameters, takes_any = arguments(target)
                if takes_any or set(self.given) <= set(parameters):
                    own = {'const': kind, 'description': first_sentence(target)}
                    types[kind] = _mapping(
                        {'type': own, **self._json_arguments(target, defs), **extra}, additionalProperties=takes_any
                    )
            defs[name] = _mapping(
                {'type': _one_of(list(types)), **extra},
                allOf=[
                    {'if': {'properties': {'type': {'const': kind}}, 'required': ['type']}, 'then': then}
                    for kind, then in types.items()
                ],
            )
        return {'$ref': f'#/$defs/{name}'}

    def _json_arguments(self, target: Any, defs: dict[str, dict]) -> dict[str, dict]:
        kinds = {'int': 'integer', 'float': 'number', 'bool': 'boolean'}
        docs, described = argument_docs(target), {}
        for key, parameter in arguments(target)[0].items():
            if key in self.given:
                continue
            wanted = argument_type(target, key)
            if 'dict' in wanted and self.registry is ARCH_REGISTRY:  # a network inside a network
                rule = Block(ARCH_REGISTRY).json(defs)
            else:
                rule = loosely(kinds[wanted]) if wanted in kinds else {}
            text = {'description': docs[key].text} if key in docs else {}
            default = {'default': parameter.default} if isinstance(parameter.default, (bool, int, float, str)) else {}
            described[key] = {**rule, **text, **default}
        return described


def arguments(target: Any) -> tuple[dict[str, inspect.Parameter], bool]:
    """The named arguments of a registered object, and whether it takes any others."""
    parameters = inspect.signature(target).parameters.values()
    return (
        {p.name: p for p in parameters if p.kind not in (p.VAR_KEYWORD, p.VAR_POSITIONAL)},
        any(p.kind is p.VAR_KEYWORD for p in parameters),
    )


def argument_type(target: Any, name: str) -> str:
    """Type of an argument by its annotation, else by the docstring, else by its default; empty when none tells."""
    parameter = inspect.signature(target).parameters[name]
    kind: Any = parameter.annotation
    if kind is parameter.empty:
        # A default of 1 may be that of a float (EDSR's res_scale), so the docstring comes first.
        entry = argument_docs(target).get(name)
        kind = entry.kind if entry else ''
        if not kind and parameter.default not in (parameter.empty, None):
            kind = type(parameter.default)
    return kind if isinstance(kind, str) else getattr(kind, '__name__', str(kind))


def registered(registry: Registry, name: Any) -> Any:
    """The object that BasicSR would build for ``name``, or None."""
    entries = dict(iter(registry))
    return entries.get(name, entries.get(f'{name}_basicsr'))


def registered_names(registry: Registry) -> list[str]:
    """Names as options write them."""
    return [name.removesuffix('_basicsr') for name, _ in registry]


DATASET_KEYS = {
    'name': TEXT,
    'type': TEXT,
    'dataroot_gt': TEXT,
    'dataroot_lq': TEXT,
    'meta_info_file': TEXT,
    'filename_tmpl': TEXT,
    'io_backend': Fields({'type': OneOf('disk', 'lmdb', 'memcached')}, ['type'], open_ended=True),
    'color': OneOf('y', 'rgb'),
    'store': OneOf('lmdb', 'memory', 'device'),
    'gt_size': POSITIVE,
    'use_hflip': FLAG,
    'use_rot': FLAG,
    'mean': NUMBERS,
    'std': NUMBERS,
    'num_worker_per_gpu': WHOLE,
    'batch_size_per_gpu': POSITIVE,
    'dataset_enlarge_ratio': POSITIVE,
    'prefetch_mode': OneOf('cpu', 'cuda'),
    'num_prefetch_queue': POSITIVE,
    'pin_memory': FLAG,
    'persistent_workers': FLAG,
    'phase': TEXT,
    'scale': POSITIVE,
}


# What Real-ESRGAN's dataset draws blur kernels by, the first and the second time.
KERNEL_KEYS = {
    f'{key}{time}': rule
    for time in ('', '2')
    for key, rule in {
        'blur_kernel_size': POSITIVE,
        'kernel_list': TEXTS,
        'kernel_prob': NUMBERS,
        'blur_sigma': NUMBERS,
        'betag_range': NUMBERS,
        'betap_range': NUMBERS,
        'sinc_prob': NUMBER,
    }.items()
} | {'final_sinc_prob': NUMBER}

# Types whose keys are all known: what they need, and what they take beside the common keys.
DATASETS = {
    'PairedImageDataset': (('dataroot_gt', 'dataroot_lq', 'io_backend'), {}),
    'PatchStoreDataset': (('dataroot_gt',), {'skip_small': FLAG}),
    'RealESRGANDataset': (('dataroot_gt', 'io_backend', *KERNEL_KEYS), {'meta_info': TEXT, **KERNEL_KEYS}),
}


class Dataset(Rule):
    """A dataset block. Keys are checked for the types of :data:`DATASETS`; others read their own."""

    def check(self, value: Any, place: str, problems: list[str]) -> None:
        if not isinstance(value, Mapping):
            problems.append(f'{place}: {value!r} where a mapping belongs')
            return
        kind = value.get('type')
        if registered(DATASET_REGISTRY, kind) is None:
            problems.append(
                f'{place}.type: {kind!r} is not registered. {choice(kind, registered_names(DATASET_REGISTRY))}'
            )
            return
        needed, more = DATASETS.get(kind, ((), {}))
        required, training = ['name', 'type', *needed], place.split('.')[-1] == 'train'
        if training:
            required += ['batch_size_per_gpu', 'num_worker_per_gpu']
        if training and kind in DATASETS:
            required += ['gt_size', 'use_hflip', 'use_rot']
        Fields(DATASET_KEYS | more, required, open_ended=kind not in DATASETS).check(value, place, problems)

    def json(self, defs: dict[str, dict]) -> dict:
        docs = argument_docs(registered(DATASET_REGISTRY, 'PairedImageDataset'))
        keys = {
            key: {**rule.json(defs), **({'description': docs[key].text} if key in docs else {})}
            for key, rule in DATASET_KEYS.items()
        }
        keys['type'] = _one_of(registered_names(DATASET_REGISTRY))
        known = []
        for kind, (_, more) in DATASETS.items():
            own = {**dict.fromkeys(keys, True), **{key: rule.json(defs) for key, rule in more.items()}}
            known.append(
                {
                    'if': {'properties': {'type': {'const': kind}}, 'required': ['type']},
                    'then': _mapping(own, additionalProperties=False),
                }
            )
        defs['dataset'] = _mapping(keys, allOf=known)
        return {'$ref': '#/$defs/dataset'}


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
SCHEDULER = Fields(
    {
        'type': OneOf('MultiStepLR', 'MultiStepRestartLR', 'CosineAnnealingRestartLR'),
        'milestones': NUMBERS,
        'gamma': NUMBER,
        'periods': NUMBERS,
        'restarts': NUMBERS,
        'restart_weights': NUMBERS,
        'eta_min': NUMBER,
    },
    ['type'],
)
OPTIMISER = Fields(
    {'type': TEXT, 'lr': NUMBER, 'betas': NUMBERS, 'weight_decay': NUMBER, 'eps': NUMBER},
    ['type', 'lr'],
    open_ended=True,
)
TRAIN = {
    'total_iter': POSITIVE,
    'warmup_iter': WHOLE,
    'ema_decay': NUMBER,
    'optim_g': OPTIMISER,
    'scheduler': SCHEDULER,
    'pixel_opt': LOSS,
    'imitation_opt': LOSS,
    'perceptual_opt': LOSS,
    'gan_opt': LOSS,
    'optim_d': OPTIMISER,
    'net_d_iters': POSITIVE,
    'net_d_init_iters': WHOLE,
    'weight_transfer': MODULES,
    'distill_opt': Named(LINK),
    'degradation': Block(DEGRADATION_REGISTRY, given=('scale', 'seed')),
    'amp': OneOf('bf16', 'fp16'),
    'amp_teacher': OneOf('bf16', 'fp16'),
    'channels_last': FLAG,
    'compile': FLAG,
    'cuda_graph': FLAG,
    'grad_clip': NUMBER,
    'accumulate': POSITIVE,
    'on_nan': OneOf('stop', 'skip'),
}


def stage_rule(options: Mapping) -> Fields:
    """The rule for the options of one stage; only ``model_type`` and ``network_t`` of ``options`` matter."""
    # Other model types read options of their own in train; what they share with ours is still checked.
    ours = options.get('model_type') == 'PISRModel'
    return Fields(
        {
            'name': TEXT,
            'scale': POSITIVE,
            'manual_seed': WHOLE,
            'find_unused_parameters': FLAG,
            'keep_memory': FLAG,
            'model_type': Plain(
                f'a registered model ({", ".join(registered_names(MODEL_REGISTRY))})',
                lambda v: registered(MODEL_REGISTRY, v) is not None,
                _one_of(registered_names(MODEL_REGISTRY)),
            ),
            'num_gpu': Plain(
                "a whole number or 'auto'",
                lambda v: v == 'auto' or _is_whole(v) and v >= 0,
                loosely('integer', minimum=0, pattern=f'^auto$|{REFERENCE}'),
            ),
            'dist_params': Fields({'backend': OneOf('nccl', 'gloo'), 'port': WHOLE, 'timeout': POSITIVE}),
            'datasets': Fields({'train': Dataset()}, patterns={'val': Dataset(), 'test': Dataset()}),
            'path': Fields(
                {'resume_state': TEXT, 'ignore_resume_networks': TEXTS},
                patterns={'pretrain_network_': TEXT, 'param_key_': TEXT, 'strict_load_': FLAG},
            ),
            'train': Fields(
                TRAIN, ['total_iter', 'optim_g', 'scheduler'] if ours else ['total_iter'], open_ended=not ours
            ),
            'val': Fields(
                {
                    'val_freq': POSITIVE,
                    'save_img': FLAG,
                    'pbar': FLAG,
                    'suffix': TEXT,
                    'protocol': OneOf(*PROTOCOLS),
                    'use_image': FLAG,
                    'metrics': Named(
                        Block(METRIC_REGISTRY, extra={'better': OneOf('higher', 'lower')}, given=('img', 'img2'))
                    ),
                },
                open_ended=not ours,
            ),
            'logger': Fields(
                {
                    'print_freq': POSITIVE,
                    'save_checkpoint_freq': POSITIVE,
                    'keep_checkpoints': POSITIVE,
                    'use_tb_logger': FLAG,
                    'wandb': Fields({'project': TEXT, 'resume_id': TEXT}),
                },
                ['print_freq', 'save_checkpoint_freq'],
            ),
        },
        [
            'name',
            'model_type',
            'scale',
            'datasets',
            'logger',
            'network_t' if ours and 'network_t' in options else 'network_g',
        ],
        patterns={'network_': NETWORK},
    )
