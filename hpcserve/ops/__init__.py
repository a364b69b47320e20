"""The only importer of kernels/: each op picks a kernel or its plain torch reference.

norm       rms_norm(x, weight, eps) · add_rms_norm(x, residual, weight, eps) -> (normed, residual)
rope       cos_sin_cache(...) · rope_kv_write(q, k, v, positions, ...) (q/k-norm, rope and KV write)
activation silu_and_mul(gate_up)
embedding  embed(ids, table)
sampling   sample(logits, state) with penalties, bias, top-k/p, min-p and per-request seeds
metadata   expand a SchedulerOutput into positions, slot mapping and page tables on the device
"""
