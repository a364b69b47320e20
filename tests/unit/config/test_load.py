from __future__ import annotations

import re
from pathlib import Path

import pytest

from hpcserve.config.batch import BatchConfig, RowDefaults
from hpcserve.config.cluster import ClusterConfig
from hpcserve.config.declared import declared_in
from hpcserve.config.engine import EngineConfig
from hpcserve.config.job import JobConfig
from hpcserve.config.layers import EVERYTHING
from hpcserve.config.load import (
    ENGINE_CONFIGS,
    Setting,
    build,
    build_engine,
    resolve,
)
from hpcserve.config.server import ServerConfig
from hpcserve.config.slurm import SlurmConfig
from hpcserve.errors import ConfigError

ALL = [ServerConfig, BatchConfig, RowDefaults, *ENGINE_CONFIGS]


def _file(folder: Path, text: str) -> Path:
    path = folder / "run.yaml"
    path.write_text(text, encoding="utf-8")
    return path


def test_command_line_wins_over_environment_over_file_over_default(tmp_path: Path) -> None:
    file = _file(tmp_path, "port: 1\ntp: 4\npage-size: 1\n")
    environ = {"HPCSERVE_PORT": "2", "HPCSERVE_TP_SIZE": "8"}
    settings = resolve(ALL, given={"port": 3}, file=file, environ=environ)
    assert settings["port"] == Setting(3, "command line")
    assert settings["tp_size"] == Setting(8, "environment variable HPCSERVE_TP_SIZE")
    assert settings["page_size"] == Setting(1, str(file))
    assert settings["host"] == Setting("127.0.0.1", "default")
    assert build(ServerConfig, settings).port == 3
    assert build_engine(settings).parallel.tp_size == 8


@pytest.mark.parametrize(
    ("text", "name", "value"),
    [
        ("max-model-len: 77", "context_length", 77),
        ("max_model_len: 77", "context_length", 77),
        ("--context-length: 77", "context_length", 77),
        ("gpu-memory-utilization: 1", "mem_fraction_static", 1.0),
        ("disable-radix-cache: true", "enable_radix_cache", False),
        ("disable-radix-cache: false", "enable_radix_cache", True),
        ("stop: [a, b]", "stop", ("a", "b")),
    ],
)
def test_a_file_may_use_either_dialect(tmp_path: Path, text: str, name: str, value: object) -> None:
    settings = resolve(ALL, given={}, file=_file(tmp_path, text), environ={})
    assert settings[name].value == value


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("prot: 1", "did you mean 'port'"),
        ("port: one", "port .*expected a whole number, not 'one'"),
        ("port: [1]", "expected a whole number"),
        ("page-size: 5", "5 is not one of 1, 16, 64"),
        ("dtype: int3", "'int3' is not one of auto"),
        ("- 1", "holds no mapping"),
        ("a: [", "no YAML"),
        ("tp: 1\ntp-size: 2", "tp_size twice"),
        ("overwrite: 1", "expected true or false"),
    ],
)
def test_a_wrong_file_is_refused(tmp_path: Path, text: str, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        resolve(ALL, given={}, file=_file(tmp_path, text), environ={})


@pytest.mark.parametrize(
    ("variable", "value", "name", "expected"),
    [
        ("HPCSERVE_MAX_MODEL_LEN", "77", "context_length", 77),
        ("HPCSERVE_TENSOR_PARALLEL_SIZE", "4", "tp_size", 4),
        ("HPCSERVE_DISABLE_RADIX_CACHE", "true", "enable_radix_cache", False),
        ("HPCSERVE_DISABLE_RADIX_CACHE", "0", "enable_radix_cache", True),
    ],
)
def test_a_variable_may_use_either_dialect(
    variable: str, value: str, name: str, expected: object
) -> None:
    settings = resolve(ALL, given={}, environ={variable: value})
    assert settings[name] == Setting(expected, f"environment variable {variable}")


def test_two_variables_for_one_option_must_agree() -> None:
    environ = {"HPCSERVE_TP_SIZE": "4", "HPCSERVE_TENSOR_PARALLEL_SIZE": "4"}
    assert resolve(ALL, given={}, environ=environ)["tp_size"].value == 4
    with pytest.raises(ConfigError, match=r"tp_size: .*HPCSERVE_TP_SIZE .*differ"):
        resolve(ALL, given={}, environ={**environ, "HPCSERVE_TP_SIZE": "2"})


def test_a_wrong_variable_is_refused_by_name() -> None:
    with pytest.raises(ConfigError, match=r"HPCSERVE_PORT.*whole number"):
        resolve(ALL, given={}, environ={"HPCSERVE_PORT": "http"})


def test_a_refused_value_says_where_it_was_written(tmp_path: Path) -> None:
    settings = resolve(ALL, given={}, file=_file(tmp_path, "tp: 0"), environ={})
    with pytest.raises(ConfigError, match=r"tp_size is 0.*\(from .*run.yaml\)"):
        build_engine(settings)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"dtype": "bf16"}, "option dtype: 'bf16' is not one of auto"),
        ({"load_format": "x"}, "option load_format"),
        ({"device": "tpu"}, "option device"),
        ({"max_num_seqs": 1.5}, "option max_num_seqs: expected a whole number, not 1.5"),
        ({"tp": "two"}, "option tp: expected a whole number, not 'two'"),
        ({"disable_radix_cache": "perhaps"}, "option disable_radix_cache: expected true or false"),
        ({"cpu_threads": 0}, "cpu_threads is 0"),
        ({"cuda_graph_max_bs": 0}, "cuda_graph_max_bs is 0"),
        ({"target_itl": float("nan")}, "target_itl is nan"),
        ({"watchdog_timeout": float("nan")}, "watchdog_timeout is nan"),
        ({"max_modellen": 5}, "did you mean 'max_model_len'"),
    ],
)
def test_keywords_are_checked_as_flags_are(options: dict[str, object], message: str) -> None:
    with pytest.raises(ConfigError, match=re.escape(message)):
        EngineConfig.from_options(options)


def test_keywords_take_text_as_files_do() -> None:
    config = EngineConfig.from_options({"tp": "2", "disable_radix_cache": "true"})
    assert (config.parallel.tp_size, config.cache.enable_radix_cache) == (2, False)
    assert config.replace(enable_prefix_caching=True).cache.enable_radix_cache


@pytest.mark.parametrize(
    "options", [{"port": 65536}, {"port": -1}, {"drain_timeout_s": -1.0}, {"api_workers": 0}]
)
def test_a_server_that_cannot_be_is_refused(options: dict[str, float]) -> None:
    with pytest.raises(ConfigError, match=next(iter(options))):
        ServerConfig(**options)


def test_no_two_configs_share_an_option() -> None:
    """Names and flags are one space: HPCSERVE_<NAME>, YAML keys, the command line."""
    seen: dict[str, str] = {}
    for declared in declared_in(EVERYTHING):
        for name in {*declared.keywords, *declared.off_keywords}:
            assert name not in seen, f"{name}: {declared.name} and {seen[name]}"
            seen[name] = declared.name


def test_defaults_are_those_of_the_dataclasses() -> None:
    settings = resolve(ALL, given={}, environ={})
    assert build(BatchConfig, settings) == BatchConfig()
    assert build(ServerConfig, settings) == ServerConfig()
    assert all(setting.is_default for setting in settings.values())


CONFIGS = Path(__file__).parents[3] / "configs"


@pytest.mark.parametrize(
    "path", sorted(CONFIGS.rglob("*.yaml")), ids=lambda path: str(path.relative_to(CONFIGS))
)
def test_every_run_that_ships_loads(path: Path) -> None:
    settings = resolve(EVERYTHING, given={}, file=path, environ={})
    assert any(not setting.is_default for setting in settings.values())
    build_engine(settings)
    for config in (BatchConfig, ServerConfig, SlurmConfig, ClusterConfig, JobConfig):
        build(config, settings)
