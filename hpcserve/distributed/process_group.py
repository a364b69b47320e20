"""A rank joins the others: store, process group, and the communicators of its groups."""

from __future__ import annotations

import os
import socket
from collections.abc import Callable
from dataclasses import dataclass
from datetime import timedelta

import psutil
import torch
import torch.distributed as dist
from torch._C._distributed_c10d import PrefixStore, Store, TCPStore

from hpcserve.config.parallel import ParallelConfig, split_address
from hpcserve.distributed.comm_base import Communicator
from hpcserve.distributed.comm_torch import TorchComm
from hpcserve.distributed.link_check import check_links
from hpcserve.distributed.parallel_state import (
    ExpertParallel,
    ModelParallel,
    PipelineStage,
    ReplicaGather,
    TensorParallel,
)
from hpcserve.distributed.topology import Place, Topology
from hpcserve.errors import EngineError, EngineStartError
from hpcserve.log import get_logger

_log = get_logger(__name__)

#: NVLink's multicast, which nothing here uses, cannot be set up in some containers and virtual
#: machines, and what tries ends there; whoever sets one of these himself is not overruled.
_NO_MULTICAST = {"NCCL_NVLS_ENABLE": "0", "TORCH_SYMM_MEM_DISABLE_MULTICAST": "1"}
#: Ranks that are told to end are through with their steps within this time of each other.
_FAREWELL_S = 8.0


@dataclass(frozen=True)
class RankState:
    """A rank that has joined: its place, and its groups' collectives.

    control: a group of all ranks that work together, on the host.
    """

    place: Place
    model: ModelParallel
    control: dist.ProcessGroup | None = None

    def smallest(self, number: int) -> int:
        """The smallest of the numbers that the ranks bring."""
        if self.control is None:
            return number
        held = torch.tensor([number], dtype=torch.int64)
        dist.all_reduce(held, op=dist.ReduceOp.MIN, group=self.control)
        return int(held)


def alone(place: Place) -> RankState:
    """A rank without others."""
    return RankState(place, ModelParallel())


def host_store(address: str, timeout_s: float) -> tuple[TCPStore, int]:
    """The store at which the ranks meet, listening at `address` on a port that is taken first.

    Returns (store, port).
    """
    family = socket.AF_INET6 if ":" in address else socket.AF_INET
    listener = socket.socket(family, socket.SOCK_STREAM)
    try:
        listener.bind((address, 0))
        port: int = listener.getsockname()[1]
        store = TCPStore(
            address,
            port,
            is_master=True,
            wait_for_workers=False,
            timeout=timedelta(seconds=timeout_s),
            master_listen_fd=listener.fileno(),
        )
    except OSError as error:
        listener.close()
        raise EngineStartError(f"cannot listen on {address}: {error}") from error
    listener.detach()  # the store's from now on
    return store, port


def join_store(address: str, port: int, timeout_s: float) -> TCPStore:
    return TCPStore(
        address,
        port,
        is_master=False,
        wait_for_workers=False,
        timeout=timedelta(seconds=timeout_s),
    )


def join(
    config: ParallelConfig,
    rank: int,
    store: Store,
    device: torch.device,
    *,
    secret: str,
    timeout_s: float,
) -> RankState:
    """Meet the other ranks of the replica and make the groups.

    store: reached by all of them.  secret: names the keys, so that others do not hit them.
    """
    topology = Topology(config)
    place = topology.place(rank)
    ranks = topology.companions(place.dp_rank)
    own = ranks.index(rank)
    on_gpu = device.type == "cuda"
    # Of every group: torch's own limits are shorter than what a user may allow.
    timeout = timedelta(seconds=timeout_s)
    _choose_interface(config, place.dp_rank)
    if on_gpu:
        for name, value in _NO_MULTICAST.items():
            os.environ.setdefault(name, value)
    dist.init_process_group(
        "cpu:gloo,cuda:nccl" if on_gpu else "gloo",
        store=PrefixStore(f"hpcserve/{secret}", store),
        rank=own,
        world_size=len(ranks),
        timeout=timeout,
        device_id=device if on_gpu else None,
    )
    control = dist.new_group(backend="gloo", timeout=timeout) if on_gpu else dist.group.WORLD
    tp_group = _own_group(ranks, rank, topology.tp_group, timeout)
    pp_group = _own_group(ranks, rank, topology.pp_group, timeout)
    model = ModelParallel(
        TensorParallel(
            place.tp_rank,
            config.tp_size,
            _tp_comm(tp_group, control, config, device, topology.tp_group(rank)),
        ),
        _stage(topology, place, ranks, pp_group),
    )
    slices = config.expert_group_size // config.expert_size
    comm, replicas = model.tp.comm, ReplicaGather()
    if config.enable_dp_attention:
        expert_group = _own_group(ranks, rank, topology.expert_group, timeout)
        dp_group = _own_group(ranks, rank, topology.dp_group, timeout)
        assert expert_group is not None and dp_group is not None, "DP attention has two replicas"
        comm = TorchComm(expert_group)
        replicas = ReplicaGather(place.dp_rank, config.dp_size, TorchComm(dp_group))
    experts = ExpertParallel(
        place.ep_rank,
        config.expert_size,
        place.expert_tp_rank,
        slices,
        comm,
        replicas,
        config.moe_dispatch,
    )
    if topology.spans_nodes(place.dp_rank):
        check_links(ranks, place, device, control)
    return RankState(place, ModelParallel(model.tp, model.stage, experts), control)


def own_address(config: ParallelConfig, dp_rank: int) -> str:
    """The address of this node under which the other ranks of the replica reach it."""
    if not Topology(config).spans_nodes(dp_rank):
        return "127.0.0.1"
    host, port = split_address(str(config.dist_init_addr))
    # No packet is sent: the kernel only says from which address it would be.
    family, kind, protocol, _, target = socket.getaddrinfo(host, port, type=socket.SOCK_DGRAM)[0]
    with socket.socket(family, kind, protocol) as probe:
        probe.connect(target)
        address: str = probe.getsockname()[0]
    return address


def _choose_interface(config: ParallelConfig, dp_rank: int) -> None:
    """Name gloo and NCCL the interface on which the ranks meet, unless the user did.

    Left alone, they look this machine's own name up, which often is an address nobody reaches.
    """
    address = own_address(config, dp_rank)
    name = next(
        (
            name
            for name, held in psutil.net_if_addrs().items()
            for one in held
            if one.address == address
        ),
        None,
    )
    if name is None:
        raise EngineStartError(f"no network interface of {socket.gethostname()} has {address}")
    os.environ.setdefault("GLOO_SOCKET_IFNAME", name)
    if Topology(config).spans_nodes(dp_rank):
        os.environ.setdefault("NCCL_SOCKET_IFNAME", f"={name}")
        _log.info("meeting on interface %s (%s)", os.environ["GLOO_SOCKET_IFNAME"], address)


def leave(state: RankState) -> None:
    """Wait until every rank is through with its steps, so that each may end without the others.

    The groups are left as they are, for the end of the process to free: NCCL would wait for ever
    to free a communicator whose collectives stand in a captured graph that is still held.
    Raises EngineError where a rank does not come.
    """
    if state.control is None:
        return
    try:
        dist.monitored_barrier(state.control, timedelta(seconds=_FAREWELL_S))
    except RuntimeError as error:
        raise EngineError(f"another rank did not end in order: {error}") from error


def _own_group(
    ranks: tuple[int, ...],
    rank: int,
    group_of: Callable[[int], tuple[int, ...]],
    timeout: timedelta,
) -> dist.ProcessGroup | None:
    """This rank's group; every rank makes all of them, in one order, as torch demands."""
    own = None
    for members in dict.fromkeys(group_of(one) for one in ranks):
        if len(members) == 1:
            continue
        group = dist.new_group([ranks.index(member) for member in members], timeout=timeout)
        if rank in members:
            own = group
    return own


def _stage(
    topology: Topology, place: Place, ranks: tuple[int, ...], group: dist.ProcessGroup | None
) -> PipelineStage:
    members = [ranks.index(member) for member in topology.pp_group(place.rank)]
    own = place.pp_rank
    return PipelineStage(
        rank=own,
        size=len(members),
        previous=members[own - 1] if own else None,
        following=members[own + 1] if own + 1 < len(members) else None,
        group=group,
    )


def _tp_comm(
    group: dist.ProcessGroup | None,
    control: dist.ProcessGroup | None,
    config: ParallelConfig,
    device: torch.device,
    tp_ranks: tuple[int, ...],
) -> Communicator | None:
    """Symmetric memory where every pair of the group's GPUs reaches each other, else torch's."""
    if device.type == "cuda" and config.tp_size > 1:
        on_one_node = len({Topology(config).place(rank).node_rank for rank in tp_ranks}) == 1
        reached = torch.tensor([int(on_one_node and _reaches_peers(device))])
        dist.all_reduce(reached, op=dist.ReduceOp.MIN, group=control)
        if group is not None and int(reached):
            from hpcserve.distributed.comm_symm_mem import SymmMemComm

            _log.info("all-reduce: symmetric memory, NCCL for large tensors")
            return SymmMemComm(group, device)
    return None if group is None else TorchComm(group)


def _reaches_peers(device: torch.device) -> bool:
    """Whether this GPU may read the memory of all others of its node."""
    if os.environ.get("NCCL_P2P_DISABLE", "0") == "1":
        return False
    others = (n for n in range(torch.cuda.device_count()) if n != device.index)
    return all(torch.cuda.can_device_access_peer(device.index, other) for other in others)
