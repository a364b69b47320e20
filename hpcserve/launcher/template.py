"""Batch scripts from templates: nothing undefined, everything quoted."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import hpcserve
from hpcserve.errors import ConfigError

TEMPLATES = Path(hpcserve.__file__).parent / "sbatch"


def render(name: str, values: Mapping[str, Any], custom: Path | None = None) -> str:
    """The text of the template `name` of `sbatch/`, or of the file `custom` instead.

    Raises ConfigError where the template is missing, wrong, or names something unknown.
    """
    import jinja2

    folder = custom.parent if custom else TEMPLATES
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader([folder, TEMPLATES]),
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
        autoescape=False,  # a shell script: `q` quotes
    )
    environment.filters["q"] = quote
    environment.filters["comment"] = one_line
    try:
        return environment.get_template(custom.name if custom else name).render(**values)
    except jinja2.TemplateNotFound as error:
        raise ConfigError(f"there is no template {error.name} in {folder}") from error
    except jinja2.TemplateError as error:
        raise ConfigError(f"template {custom or name}: {error}") from error


def quote(value: object) -> str:
    """One word of shell, whatever it holds.

    Commas and equal signs are quoted as well: they need not be, but look as if they did.
    """
    text = str(value)
    if "\n" in text or "\0" in text:
        raise ConfigError(f"{text!r} cannot stand in a batch script: it holds a line break")
    if re.fullmatch(r"[\w@%+./:-]+", text, re.ASCII):
        return text
    return "'" + text.replace("'", "'\"'\"'") + "'"


def one_line(value: object) -> str:
    """Text fit for a comment."""
    return " ".join(str(value).split())
