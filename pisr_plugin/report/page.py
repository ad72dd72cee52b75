"""Assemble the sections of a report to one HTML page that needs no other file and no network."""

from __future__ import annotations

import base64
import hashlib
import math
from pathlib import Path
from typing import Any

from jinja2 import Environment, StrictUndefined
from markupsafe import Markup

from pisr_plugin.evaluation.results import digits
from pisr_plugin.report.section import ReportData, Section, section_types
from pisr_plugin.version import __version__

HERE = Path(__file__).parent
SCRIPTS = ('data.js', 'theme.js', 'tables.js', 'compare.js')  # those of the sections follow


def render(report: ReportData) -> str:
    """Returns the page as HTML."""
    templates = Environment(autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True)
    templates.policies['json.dumps_kwargs'] = {'sort_keys': False}  # the order of test sets and metrics
    templates.filters.update(value=value_text, signed=signed_text, large=large_text)
    sections = report.sections.values()
    styles = [_static('style.css'), *(section.text('.css') for section in sections)]
    scripts = [_static(name) for name in SCRIPTS]
    scripts += [text for section in sections for text in (*section.libraries(), section.text('.js'))]
    script = '\n'.join(filter(None, scripts))
    return templates.from_string((HERE / 'page.html.j2').read_text(encoding='utf-8')).render(
        evaluation=report.evaluation,
        parts=[_part(templates, report, kind) for kind in section_types()],
        data={name: data for name, section in report.sections.items() if (data := section.script_data()) is not None},
        version=__version__,
        styles=Markup('\n'.join(filter(None, styles))),
        script=Markup(script),
        # The one script that the page may run.
        script_hash=base64.b64encode(hashlib.sha256(script.encode()).digest()).decode(),
    )


def _part(templates: Environment, report: ReportData, kind: type[Section]) -> dict[str, Any]:
    """What the page's template needs of a section."""
    name, section, body = kind.name(), report.sections.get(kind.name()), ''
    if section:
        template = templates.from_string(kind.text('.html.j2'))
        body = Markup(template.render(section=section, evaluation=report.evaluation))
    return {'name': name, 'label': kind.label, 'heading': kind.heading, 'note': report.notes.get(name), 'body': body}


def value_text(value: float | None, metric: str) -> str:
    """A value with the digits that papers give it; empty for None."""
    return '' if value is None else f'{value:.{digits(metric)}f}'


def signed_text(value: float, metric: str) -> str:
    """A difference with its sign."""
    return f'{value:+.{digits(metric)}f}'.replace('-', '\N{MINUS SIGN}')


def large_text(value: float | None) -> str:
    """Multi-Adds with three digits and a unit; empty for None."""
    if value is None:
        return ''
    power = min(max(int(math.log10(value)) // 3, 0), 4) if value >= 1 else 0
    return f'{value / 1000**power:.3g} {" KMGT"[power]}'.strip()


def _static(name: str) -> str:
    return (HERE / 'static' / name).read_text(encoding='utf-8')
