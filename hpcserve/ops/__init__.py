"""The only importer of kernels/: each op picks a Triton kernel or its plain torch reference.

norm             rms_norm · add_rms_norm -> (normed, new_residual)
rope             cos_sin_cache · rope_kv_write (q/k-norm, rope and KV write in one launch)
kv_store         write_kv
activation       silu_and_mul
embedding        embed
gemm             linear · gated_linear
page_index       page_index: page tables as flat lists, the form flashinfer reads
moe              route · experts
paged_attention  paged_decode · paged_prefill · rope_paged_decode (what rope_kv_write does, as well)
sampling         argmax · store_argmax · sample · apply_penalties · apply_logit_bias · top_logprobs
metadata         expand · expand_decode: rows of a step -> ids, positions, slots, lengths ·
                 row_pages · write_pages

CUDA tensors take the kernel when Triton is installed and HPCSERVE_DISABLE_KERNELS is not set.
"""
