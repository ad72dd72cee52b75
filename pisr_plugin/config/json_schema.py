"""The rules of :mod:`pisr_plugin.config.schema` as a JSON schema of recipe files, for editors."""

from __future__ import annotations

from pisr_plugin.config.rules import TEXT, TEXTS, Fields, loosely
from pisr_plugin.config.schema import stage_rule


def recipe_schema() -> dict:
    """JSON schema (draft 2020-12) of the recipes that the networks, losses, ... registered by now allow.

    Nothing is required in it: what a file leaves out may stand in its ``_base_``. A file that names no ``model_type``
    is taken for a recipe of PISRModel.
    """
    defs: dict[str, dict] = {}
    ours = _recipe('stage', stage_rule({'model_type': 'PISRModel'}), defs)
    others = _recipe('stage_of_another_model', stage_rule({}), defs)
    return {
        '$schema': 'https://json-schema.org/draft/2020-12/schema',
        'title': 'Recipe of pisr_plugin',
        'type': 'object',
        'if': {'properties': {'model_type': {'not': {'const': 'PISRModel'}}}, 'required': ['model_type']},
        'then': others,
        'else': ours,
        '$defs': defs,
    }


def _recipe(name: str, stage: Fields, defs: dict[str, dict]) -> dict:
    """A stage's options, and what only a whole recipe has."""
    defs[name] = stage.json(defs)
    own = defs[name]['properties']
    return {
        'properties': {
            '_base_': {
                'anyOf': [TEXT.json(defs), TEXTS.json(defs)],
                'description': 'Files, relative to this one, or recipes of the package, below this recipe.',
            },
            'stages': loosely(
                'object',
                properties={'_delete_': {'type': 'boolean'}},
                additionalProperties={'$ref': f'#/$defs/{name}'},
                description='What each stage changes in the common options; ~ removes an option.',
            ),
            **{key: {'$ref': f'#/$defs/{name}/properties/{key}'} for key in own},
        },
        'patternProperties': defs[name]['patternProperties'],
        'additionalProperties': defs[name]['additionalProperties'],
    }
