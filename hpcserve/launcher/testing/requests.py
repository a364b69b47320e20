"""Requests whose every value is fixed, so that their scripts are the same everywhere."""

from __future__ import annotations

import dataclasses

from hpcserve.config.declared import declared_in
from hpcserve.config.engine import EngineConfig
from hpcserve.config.load import Setting
from hpcserve.launcher.request import (
    BATCH_CONFIGS,
    SERVE_CONFIGS,
    JobRequest,
    batch_words,
    make_request,
    server_words,
    with_workers,
)


def request_for(kind: str = "serve", **options: object) -> JobRequest:
    """A request as the command line with these options would make it, by field names."""
    given = {"model": "org/model", "run_dir": "/shared/runs/job", **options}
    settings = {
        one.name: Setting(given[one.name], "command line")
        if one.name in given
        else Setting(one.default, "default")
        for one in declared_in(SERVE_CONFIGS if kind == "serve" else BATCH_CONFIGS)
    }
    engine = EngineConfig.from_options(
        {name: value for name, value in given.items() if name in EngineConfig().to_options()}
    )
    model = str(given["model"])
    if kind == "serve":
        words = server_words(settings, model)
    else:
        words = batch_words(
            settings, model, ["/shared/my questions.jsonl"], "/shared/answers.jsonl"
        )
        settings = dict(with_workers(settings))
    made = make_request(kind, engine, settings, words)
    return dataclasses.replace(made, python="/shared/venv/bin/python")
