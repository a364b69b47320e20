"""How a run reads its rows, as its options say it; and what of them its answers depend on."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from hpcserve.batch.engine import Backend
from hpcserve.batch.manifest import Manifest
from hpcserve.batch.row import RowDialect
from hpcserve.batch.sampling import body_defaults
from hpcserve.config.batch import BatchConfig, RowDefaults
from hpcserve.errors import ConfigError

#: `--id-column none`: rows are numbered. No column has this name.
NO_COLUMN = "(no column)"


def run_content(
    backend: Backend, batch: BatchConfig, defaults: RowDefaults, seed: int
) -> dict[str, dict[str, Any]]:
    """What decides the answers, part by part, for the manifest.

    Raises ConfigError for an option that cannot be, ModelError where there is no model.
    """
    sampling = {**body_defaults(defaults, backend.sampling_fields), "seed of the run": seed}
    template = _template_text(batch.prompt_template)
    content = backend.content()
    content["template"] = {
        **content.get("template", {}),
        "template": template,
        "system_prompt": batch.system_prompt,
        "apply_chat_template": batch.apply_chat_template,
    }
    content["sampling"] = sampling
    content["columns"] = {
        "prompt_column": batch.prompt_column,
        "messages_column": batch.messages_column,
        "id_column": NO_COLUMN if batch.id_column == "none" else batch.id_column,
        "keep_columns": batch.keep_columns,
    }
    return content


def make_dialect(manifest: Manifest, backend: Backend) -> RowDialect:
    """As the manifest says it, so that all workers of a run read alike."""
    content = manifest.content
    defaults = dict(content["sampling"])
    seed = int(defaults.pop("seed of the run"))
    template, columns = content["template"], content["columns"]
    return RowDialect(
        fields=backend.fields,
        defaults=defaults,
        seed=seed,
        apply_chat_template=template["apply_chat_template"],
        several_files=len(manifest.scan.files) > 1,
        prompt_column=columns["prompt_column"],
        messages_column=columns["messages_column"],
        id_column=columns["id_column"],
        template=template["template"],
        system_prompt=template["system_prompt"],
        keep_columns=columns["keep_columns"],
    )


def _template_text(name: str | None) -> str | None:
    if name is None:
        return None
    import jinja2
    from jinja2.sandbox import SandboxedEnvironment

    try:
        text = Path(name).read_text(encoding="utf-8")
        SandboxedEnvironment().from_string(text)
    except OSError as error:
        raise ConfigError(f"cannot read the template {name}: {error.strerror}") from error
    except jinja2.TemplateError as error:
        raise ConfigError(f"the template {name}: {error}") from error
    return text
