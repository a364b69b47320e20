"""One rank: finds its device, loads the model, sizes the KV pool, and runs steps."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import torch

from hpcserve import envs, registry
from hpcserve.attention.base import AttentionBackend
from hpcserve.config.checkpoint import CheckpointConfig
from hpcserve.config.engine import EngineConfig
from hpcserve.distributed.process_group import RankState, alone
from hpcserve.distributed.topology import Topology
from hpcserve.engine.attention_choice import choose_attention
from hpcserve.engine.device import (
    cpu_threads,
    default_dtype_and_device,
    resolve_device,
    resolve_dtype,
)
from hpcserve.engine.executor import StepHandle
from hpcserve.engine.grammar_compiler import GrammarCompiler, compiled
from hpcserve.engine.kernel_cache import gpu_arch, use_driver_cache, use_kernel_folder
from hpcserve.engine.model_runner import ModelRunner
from hpcserve.engine.pool_size import pages_on_cpu, pages_on_gpu
from hpcserve.engine.private_cache import writable_kernel_folder
from hpcserve.engine.trial_steps import StepLimits, largest_step, warm_up_steps
from hpcserve.errors import ConfigError, UnsupportedModelError
from hpcserve.grammar import Grammar
from hpcserve.ipc.messages import GrammarCompiled, SchedulerOutput, WorkerInfo
from hpcserve.kvcache.mha_pool import MHAPool, bytes_per_token
from hpcserve.layers.expert_hits import ExpertHits
from hpcserve.log import get_logger
from hpcserve.models.base import CausalLM
from hpcserve.ops._dispatch import kernels_enabled
from hpcserve.weights.background import BackgroundLoad, FilledModel
from hpcserve.weights.dummy import fill_dummy_weights
from hpcserve.weights.sources import resolve_model, weight_files

_log = get_logger(__name__)


@dataclass(frozen=True)
class Setup:
    """What a rank settled before it built anything."""

    config: EngineConfig
    checkpoint: CheckpointConfig
    context_length: int
    device: torch.device
    dtype: torch.dtype
    ranks: RankState


class Worker:
    """Built ready to run; `info` says what it found. All its errors are one-line HpcserveErrors."""

    def __init__(self, config: EngineConfig, ranks: RankState | None = None) -> None:
        """ranks: this one's place among others, which build theirs at the same time."""
        self._timings_s: dict[str, float] = {}
        with self._timed("device"):
            if ranks is None:
                place = Topology(config.parallel).place(config.dp_rank)
                ranks = alone(place)
            self.setup = _settle(config, ranks)
        self._grammars = GrammarCompiler(
            self.setup.checkpoint.path,
            self.setup.checkpoint.vocab_size,
            self.setup.checkpoint.eos_token_ids,
            config.backend.grammar_backend,
        )
        with self._timed("weights"):
            model = build_model(self.setup)
            self._hits = count_experts(model)
            loading = fill_model(self.setup, model)
        with loading:
            if not config.model.overlap_loading:
                with self._timed("weights"):
                    loading.wait()
            num_pages = self._prepare(model)
            with self._timed("weights"):
                loading.wait()
        if self._hits is not None:
            self._hits.reset()
        self.info = WorkerInfo(
            num_pages=num_pages,
            vocab_size=self.setup.checkpoint.vocab_size,
            context_length=self.setup.context_length,
            eos_token_ids=list(self.setup.checkpoint.eos_token_ids),
            device=str(self.setup.device),
            timings_s=self._timings_s,
        )

    def _prepare(self, model: CausalLM) -> int:
        """All that needs the parameters' places but not their values. Returns the pool's pages."""
        names = self.setup.config.backend
        backend = self._backend(model, names.prefill_attention_backend or names.attention_backend)
        with self._timed("profile"):
            num_pages = self.setup.ranks.smallest(self._num_pages(model, backend))
        with self._timed("kv_cache"):
            self.runner = self._runner(model, backend, num_pages)
        if names.enable_cuda_graph and captures_on(self.setup.device):
            with self._timed("cuda_graphs"):
                self._capture_graphs(model, backend)
        return num_pages

    def submit(self, step: SchedulerOutput) -> StepHandle:
        return self.runner.submit(step)

    def finish(self) -> None:
        """Return when every step that was submitted is through."""
        if self.setup.device.type == "cuda":
            torch.cuda.synchronize(self.setup.device)
        path = envs.HPCSERVE_EXPERT_HITS_FILE.get()
        if self._hits is not None and path is not None and self.setup.ranks.place.rank == 0:
            self._hits.write(path)

    def compile_grammar(
        self, grammar: Grammar, tell: Callable[[GrammarCompiled], None] | None
    ) -> None:
        """Begin to make it ready. tell: called from another thread when that is done or failed."""
        future = self._grammars.compile(grammar)
        if tell is not None:
            future.add_done_callback(lambda done: tell(compiled(grammar, done)))

    @contextmanager
    def _timed(self, phase: str) -> Iterator[None]:
        started = time.perf_counter()
        try:
            yield
            if phase != "device" and self.setup.device.type == "cuda":
                torch.cuda.synchronize(self.setup.device)
        except RuntimeError as error:
            if (cause := _out_of_memory(error)) is not None:
                raise ConfigError(_memory_message(phase, cause)) from error
            raise
        took_s = time.perf_counter() - started
        self._timings_s[phase] = self._timings_s.get(phase, 0.0) + took_s

    def _capture_graphs(self, model: CausalLM, prefill_backend: AttentionBackend) -> None:
        config = self.setup.config
        name = config.backend.decode_attention_backend
        backend = prefill_backend if name is None else self._backend(model, name)
        if not backend.caps.cuda_graph or not kernels_enabled():
            # The kernels' references look at lengths on the host, which no capture allows.
            return
        largest = config.backend.cuda_graph_max_bs or config.scheduler.max_running_requests
        max_rows = min(largest, config.scheduler.max_running_requests)
        self.runner.capture_graphs(backend, max_rows)

    def _backend(self, model: CausalLM, name: str) -> AttentionBackend:
        page_size = self.setup.config.cache.page_size
        chosen = choose_attention(
            name,
            device=self.setup.device,
            page_size=page_size,
            head_dim=model.head_dim,
            dtype=self.setup.dtype,
        )
        return chosen(
            num_heads=model.num_heads,
            num_kv_heads=model.num_kv_heads,
            head_dim=model.head_dim,
            page_size=page_size,
            scale=model.head_dim**-0.5,
            dtype=self.setup.dtype,
        )

    def _runner(self, model: CausalLM, backend: AttentionBackend, num_pages: int) -> ModelRunner:
        setup = self.setup
        pool = MHAPool(
            num_layers=model.num_layers,
            num_pages=num_pages,
            page_size=setup.config.cache.page_size,
            num_kv_heads=model.num_kv_heads,
            head_dim=model.head_dim,
            dtype=setup.dtype,
            device=setup.device,
        )
        return ModelRunner(
            model=model,
            pool=pool,
            backend=backend,
            max_slots=setup.config.scheduler.max_running_requests,
            context_length=setup.context_length,
            vocab_size=setup.checkpoint.vocab_size,
            eos_token_ids=setup.checkpoint.eos_token_ids,
            device=setup.device,
            grammars=self._grammars,
            stage=setup.ranks.model.stage,
            replicas=setup.ranks.model.experts.replicas,
            hidden_size=setup.checkpoint.hidden_size,
            dtype=setup.dtype,
        )

    def _num_pages(self, model: CausalLM, backend: AttentionBackend) -> int:
        setup, cache = self.setup, self.setup.config.cache
        if setup.device.type == "cpu":
            return pages_on_cpu(cache, setup.context_length)
        token_bytes = bytes_per_token(
            model.num_layers, model.num_kv_heads, model.head_dim, setup.dtype
        )
        step_bytes = self._profile(model, backend)
        num_pages = pages_on_gpu(
            cache,
            device=setup.device,
            page_bytes=token_bytes * cache.page_size,
            step_bytes=step_bytes,
        )
        if num_pages * cache.page_size < setup.context_length:
            _log.warning(
                "the KV cache holds %d tokens, less than one context of %d",
                num_pages * cache.page_size,
                setup.context_length,
            )
        return num_pages

    def _profile(self, model: CausalLM, backend: AttentionBackend) -> int:
        """Bytes of activations at the peak of the largest step, and of what slots keep.

        Runs it, and what warms up, on a pool of just its pages."""
        setup = self.setup
        limits = StepLimits(
            max_slots=setup.config.scheduler.max_running_requests,
            num_tokens=setup.config.scheduler.chunked_prefill_size,
            context_length=setup.context_length,
            page_size=setup.config.cache.page_size,
            vocab_size=setup.checkpoint.vocab_size,
        )
        step, num_pages = largest_step(limits)
        runner = self._runner(model, backend, num_pages)
        torch.cuda.synchronize(setup.device)
        torch.cuda.reset_peak_memory_stats(setup.device)
        before = torch.cuda.memory_allocated(setup.device)
        with setup.ranks.model.experts.replicas.fixed():
            self._try(runner, step)
        peak = torch.cuda.max_memory_allocated(setup.device)
        for step in warm_up_steps(limits):
            self._try(runner, step)
        slot_bytes = runner.batch.num_bytes
        del runner
        torch.cuda.empty_cache()
        return peak - before + slot_bytes

    def _try(self, runner: ModelRunner, step: SchedulerOutput) -> None:
        """Run it to its end; every replica that shares experts does the same."""
        if self.setup.config.parallel.enable_dp_attention:
            num_tokens = int(step.num_scheduled.sum())
            step.replica_tokens = [num_tokens] * self.setup.config.parallel.dp_size
        runner.submit(step).result()


def _out_of_memory(error: BaseException | None) -> torch.OutOfMemoryError | None:
    """What the allocator said; the end of a capture that it broke raises another error on top."""
    while error is not None and not isinstance(error, torch.OutOfMemoryError):
        error = error.__context__
    return error


def _memory_message(phase: str, error: torch.OutOfMemoryError) -> str:
    said = str(error).partition("\n")[0].partition(". GPU")[0]
    fix = {
        "weights": "use more GPUs (--tp, --pp)",
        "profile": "lower --chunked-prefill-size or --max-running-requests, or use more GPUs",
        "cuda_graphs": "lower --mem-fraction-static or --cuda-graph-max-bs",
    }.get(phase, "lower --mem-fraction-static or --max-running-requests")
    return f"the device's memory does not suffice for {phase.replace('_', ' ')} ({said}); {fix}"


def build_model(setup: Setup) -> CausalLM:
    """This rank's part of the model, its parameters not filled yet.

    Raises UnsupportedModelError for an unknown architecture.
    """
    config, checkpoint = setup.config, setup.checkpoint
    known = registry.names("hpcserve.models")
    if checkpoint.model_type not in known:
        raise UnsupportedModelError(
            f"model type {checkpoint.model_type!r} is not supported; supported: {', '.join(known)}"
        )
    if config.model.load_format != "dummy":
        _refuse_quantized(checkpoint)
    entry: type[CausalLM] = registry.load("hpcserve.models", checkpoint.model_type).EntryClass
    with torch.inference_mode(), default_dtype_and_device(setup.dtype, setup.device):
        parallel = setup.ranks.model
        model = entry(
            checkpoint,
            parallel.tp,
            setup.context_length,
            stage=parallel.stage,
            experts=parallel.experts,
        )
    return model.eval()


def fill_model(setup: Setup, model: CausalLM) -> BackgroundLoad | FilledModel:
    """Begin to fill the parameters. Raises WeightsError for files that are not there."""
    if setup.config.model.load_format != "dummy":
        return BackgroundLoad(model, weight_files(setup.checkpoint.path), setup.device)
    with torch.inference_mode(), default_dtype_and_device(setup.dtype, setup.device):
        fill_dummy_weights(model, setup.config.scheduler.random_seed)
    return FilledModel()


def captures_on(device: torch.device) -> bool:
    """Whether steps can be captured there."""
    return device.type == "cuda"


def count_experts(model: CausalLM) -> ExpertHits | None:
    """Let the model's mixtures of experts count what is hit, where the environment asks for it."""
    layers = model.sparse_layers()
    if not layers or envs.HPCSERVE_EXPERT_HITS_FILE.get() is None:
        return None
    hits = ExpertHits(layers[0].num_experts)
    for layer in layers:
        layer.hits = hits
    return hits


def _refuse_quantized(checkpoint: CheckpointConfig) -> None:
    """Before gigabytes are read to find that a tensor of scales has no place."""
    how = checkpoint.raw.get("quantization_config")
    if how:
        method = how.get("quant_method", "unknown") if isinstance(how, dict) else how
        raise UnsupportedModelError(
            f"{checkpoint.path.name} is quantized ({method}), which is not supported; use the release "
            "in bfloat16 or float16"
        )


def _settle(config: EngineConfig, ranks: RankState) -> Setup:
    use_driver_cache()
    device = resolve_device(config.backend, ranks.place.local_rank)
    if device.type == "cuda":
        arch = gpu_arch(torch.cuda.get_device_capability(device))
        use_kernel_folder(arch, folder=writable_kernel_folder(arch))
        torch.cuda.set_device(device)
    else:
        use_kernel_folder(None)
        sharers = config.parallel.ranks_per_node
        torch.set_num_threads(cpu_threads(config.backend.cpu_threads, sharers))
    checkpoint = CheckpointConfig.load(resolve_model(config.model.model, config.model.revision))
    return Setup(
        config=config,
        checkpoint=checkpoint,
        context_length=_context_length(config.model.context_length, checkpoint),
        device=device,
        dtype=resolve_dtype(config.model.dtype, checkpoint.torch_dtype, device),
        ranks=ranks,
    )


def _context_length(asked: int | None, checkpoint: CheckpointConfig) -> int:
    longest = checkpoint.max_position_embeddings
    scaling = checkpoint.rope_scaling or {}
    if scaling.get("rope_type") == "yarn" and "original_max_position_embeddings" in scaling:
        stretched = scaling["original_max_position_embeddings"] * scaling.get("factor", 1.0)
        longest = max(longest, int(stretched))
    if asked is not None and not 0 < asked <= longest:
        raise ConfigError(
            f"--context-length {asked} is not between 1 and the model's {longest} positions"
        )
    return asked or longest
