"""The first cluster file of a site: what it says must be taken by `submit`."""

from __future__ import annotations

import pytest
import yaml

from hpcserve.config.layers import from_file
from hpcserve.config.load import build
from hpcserve.launcher.plan.gpus import gpu
from hpcserve.launcher.request import SERVE_CONFIGS, ClusterConfig
from hpcserve.launcher.site import describe_site


@pytest.mark.parametrize(
    ("gres", "node_gpus", "kind"),
    [
        ("gpu:h100:4(S:0-1)", 4, "h100"),
        ("gpu:nvidia_h100_80gb_hbm3:8(S:0-1)", 8, "h100"),  # as SLURM finds it by itself
        ("gpu:mi300x:8", 8, None),
        ("gpu:8", 8, None),
        ("(null)", None, None),
    ],
)
def test_what_slurm_calls_a_gpu_is_no_mistake(fake_slurm, tmp_path, gres, node_gpus, kind):
    fake_slurm.says("sinfo", stdout=f"main*|1-00:00:00|4|{gres}\ncpu|1:00|9|(null)\n")
    path = tmp_path / "cluster.yaml"
    path.write_text(describe_site())
    cluster = build(ClusterConfig, from_file(SERVE_CONFIGS, path, "here"))
    assert (cluster.node_gpus, cluster.gpu) == (node_gpus, kind)
    if cluster.gpu:
        assert gpu(cluster.gpu)
    assert yaml.safe_load(path.read_text())["partition"] == "main"
