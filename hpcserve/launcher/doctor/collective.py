"""An all-reduce over the nodes: does every link carry data, and how much a second."""

from __future__ import annotations

import os
import time
from datetime import timedelta
from pathlib import Path

from hpcserve.launcher import network, rendezvous
from hpcserve.launcher.base import JobEnvironment
from hpcserve.launcher.environment import gpus_on_node
from hpcserve.launcher.fabric.base import interface_settings, not_yet_set
from hpcserve.launcher.files import write_json
from hpcserve.launcher.job_dir import JobDir

#: Of the timed all-reduce.
MEGABYTES = 64
TIMEOUT_S = 120.0
REPEATS = 5


def run(folder: Path, here: JobEnvironment, ifname: str | None) -> None:
    """This node's part: measures, and writes it to `folder`. One process, on its first GPU.

    Raises what torch raises where the others cannot be reached in time.
    """
    import torch
    import torch.distributed as dist

    facts = network.facts()
    name, address = network.own_address(facts, ifname)
    os.environ.update({s.name: s.value for s in not_yet_set(interface_settings(name), os.environ)})
    job_dir = JobDir.create(folder)
    on_gpu = bool(gpus_on_node()) and torch.cuda.is_available()
    if here.rank == 0:
        listener = rendezvous.bind(address)
        meet = rendezvous.publish(job_dir, here, listener, network.machine_id())
        descriptor: int | None = listener.detach()
    else:
        meet = rendezvous.wait_for(job_dir, here, TIMEOUT_S)
        descriptor = None
    store = dist.TCPStore(  # type: ignore[attr-defined]
        meet.address,
        meet.port,
        here.num_nodes,
        is_master=here.rank == 0,
        timeout=timedelta(seconds=TIMEOUT_S),
        master_listen_fd=descriptor,
    )
    dist.init_process_group(
        "nccl" if on_gpu else "gloo",
        store=store,
        rank=here.rank,
        world_size=here.num_nodes,
        timeout=timedelta(seconds=TIMEOUT_S),
    )
    try:
        measured = _measure("cuda" if on_gpu else "cpu", here)
    finally:
        dist.destroy_process_group()
    write_json(folder / f"allreduce-{here.rank}.json", measured)


def _measure(device: str, here: JobEnvironment) -> dict[str, object]:
    import torch
    import torch.distributed as dist

    data = torch.full((MEGABYTES << 18,), float(here.rank + 1), device=device)
    dist.all_reduce(data)
    expected = here.num_nodes * (here.num_nodes + 1) / 2
    correct = bool((data == expected).all())
    took = []
    for _ in range(REPEATS):
        data.fill_(1.0)
        if device == "cuda":
            torch.cuda.synchronize()
        started = time.perf_counter()
        dist.all_reduce(data)
        if device == "cuda":
            torch.cuda.synchronize()
        took.append(time.perf_counter() - started)
    # Bytes over the busiest link, as nccl-tests counts them.
    bus = 2 * (here.num_nodes - 1) / here.num_nodes * data.numel() * 4 / min(took)
    return {
        "host": here.node_name,
        "correct": correct,
        "bus_gb_s": round(bus / 1e9, 3),
        "device": device,
        "seconds": round(min(took), 6),
    }
