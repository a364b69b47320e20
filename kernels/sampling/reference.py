"""Choosing tokens, in plain torch: penalties, bias, filters by sorting, Gumbel-max.

Filters apply in this order, as users of SGLang and vLLM expect: temperature; top-k; top-p over
the top-k distribution, renormalised; min-p relative to the largest probability. Each keeps
every token at least as likely as some threshold, so tokens that tie with the last one kept are
kept as well. The token is then argmax(logit / temperature + Gumbel noise), which is a sample of
the softmax (Gumbel, 1954; Maddison et al., 2014, "A* Sampling"); with noise that depends only on
(seed, position, token id) neither the batch nor the device's schedule can change it.
"""

from __future__ import annotations

import torch

from .noise import gumbel, noise_bits

#: Below this a temperature is greedy: dividing by it would overflow fp32 logits.
GREEDY_TEMPERATURE = 1e-5


def filter_thresholds(
    scaled: torch.Tensor, top_k: torch.Tensor, top_p: torch.Tensor, min_p: torch.Tensor
) -> torch.Tensor:
    """fp32 [B, 1]: the least of `scaled` (fp32 [B, V], after temperature) that is kept."""
    vocab = scaled.shape[-1]
    ordered = scaled.sort(dim=-1, descending=True).values
    k = torch.where((top_k <= 0) | (top_k > vocab), vocab, top_k).long()
    by_k = ordered.gather(1, k[:, None] - 1)
    kept = ordered.masked_fill(ordered < by_k, -torch.inf)
    probs = kept.softmax(dim=-1, dtype=torch.float64)
    # The nucleus is the shortest prefix that reaches top_p; its first token is always in it.
    mass_before = probs.cumsum(-1) - probs
    size = (mass_before < top_p[:, None].double()).sum(-1, keepdim=True).clamp(min=1)
    by_p = kept.gather(1, size - 1)
    by_p = torch.where(top_p[:, None] >= 1.0, -torch.inf, by_p)
    by_min_p = ordered[:, :1] + torch.log(min_p.clamp(min=0.0))[:, None]
    return torch.maximum(torch.maximum(by_k, by_p), torch.minimum(by_min_p, ordered[:, :1]))


def _sample_rows(
    logits: torch.Tensor,
    temperature: torch.Tensor,
    top_k: torch.Tensor,
    top_p: torch.Tensor,
    min_p: torch.Tensor,
    seeds: torch.Tensor,
    positions: torch.Tensor,
) -> torch.Tensor:
    """Rows that are not greedy."""
    vocab = logits.shape[-1]
    scaled = logits.float() * (1.0 / temperature.float())[:, None]
    filtered = ((top_k > 0) & (top_k < vocab)) | (top_p < 1.0) | (min_p > 0.0)
    if bool(filtered.any()):
        threshold = filter_thresholds(scaled, top_k, top_p.float(), min_p.float())
        scaled = scaled.masked_fill(scaled < threshold, -torch.inf)
    bits = noise_bits(seeds, positions, torch.arange(vocab, device=logits.device))
    return (scaled + gumbel(bits)).argmax(dim=-1)


def sample(
    logits: torch.Tensor,
    temperature: torch.Tensor,
    top_k: torch.Tensor,
    top_p: torch.Tensor,
    min_p: torch.Tensor,
    seeds: torch.Tensor,
    positions: torch.Tensor,
) -> torch.Tensor:
    """One token per row of logits [B, V] (fp32, fp16 or bf16); returns int64 [B].

    temperature, top_p, min_p: fp [B]; top_k: int32 [B], off where <= 0 or >= V; seeds, positions:
    int64 [B]. Rows with temperature below 1e-5 are greedy (the least id wins a tie).
    """
    random = temperature >= GREEDY_TEMPERATURE
    if not bool(random.any()):
        return logits.argmax(dim=-1)
    if bool(random.all()):
        return _sample_rows(logits, temperature, top_k, top_p, min_p, seeds, positions)
    tokens = logits.argmax(dim=-1)
    rows = random.nonzero().squeeze(-1)
    per_row = (logits, temperature, top_k, top_p, min_p, seeds, positions)
    tokens[rows] = _sample_rows(*(tensor[rows] for tensor in per_row))
    return tokens


def argmax(logits: torch.Tensor) -> torch.Tensor:
    """int64 [B]: the likeliest token of each row of logits [B, V]; the least id wins a tie."""
    return logits.argmax(dim=-1)


def store_argmax(
    logits: torch.Tensor,
    token_buffer: torch.Tensor,
    slots: torch.Tensor,
    positions: torch.Tensor,
    outputs: torch.Tensor,
    turn: torch.Tensor,
) -> None:
    """The argmax of row i goes to outputs[turn, i] and to token_buffer[slots[i], positions[i]].

    logits: [B, V].  token_buffer: int32 [max_slots, L].  slots, positions: int32 [B]; rows with a
    slot below 0 are padding and leave the buffer alone.  outputs: int64 [turns, B].  turn: int32
    [1], on the device like the others.
    """
    _store(argmax(logits), token_buffer, slots, positions, outputs, turn)


def _store(
    tokens: torch.Tensor,
    token_buffer: torch.Tensor,
    slots: torch.Tensor,
    positions: torch.Tensor,
    outputs: torch.Tensor,
    turn: torch.Tensor,
) -> None:
    outputs[turn.long()] = tokens
    real = slots >= 0
    token_buffer[slots[real].long(), positions[real].long()] = tokens[real].int()


def best_of_part(
    logits: torch.Tensor,
    first_id: int,
    size: int,
    draw: tuple[torch.Tensor, torch.Tensor, torch.Tensor] | None = None,
) -> torch.Tensor:
    """fp32 [B, 2]: the best score of each row in a part of the vocabulary, and its token id.

    logits: [B, at least size], the tokens first_id to first_id + size - 1; the rest is padding.
    draw: (temperature fp [B], seeds int64 [B], positions int64 [B]) of rows without a filter, whose
    scores are those of `sample`; without it, and for greedy rows, they are the logits. The best of
    all parts is then the token that argmax or `sample` finds in the whole. Token ids are exact
    below 2^24. A part without tokens scores -inf.
    """
    if size <= 0:
        return torch.tensor([-torch.inf, first_id], device=logits.device).repeat(len(logits), 1)
    scores = logits[:, :size].float()
    if draw is not None:
        temperature, seeds, positions = draw
        ids = torch.arange(first_id, first_id + size, device=logits.device)
        noise = gumbel(noise_bits(seeds, positions, ids))
        drawn = scores * (1.0 / temperature.float())[:, None] + noise
        scores = torch.where((temperature >= GREEDY_TEMPERATURE)[:, None], drawn, scores)
    index = scores.argmax(dim=-1, keepdim=True)
    return torch.cat([scores.gather(1, index), (index + first_id).float()], dim=1)


def choose(pairs: torch.Tensor) -> torch.Tensor:
    """int64 [B]: the token of the best score of pairs fp32 [parts, B, 2], parts in the order of
    their tokens; the least id wins a tie."""
    winner = pairs[..., 0].argmax(dim=0, keepdim=True)
    return pairs[..., 1].gather(0, winner).squeeze(0).long()


def store_choice(
    pairs: torch.Tensor,
    token_buffer: torch.Tensor,
    slots: torch.Tensor,
    positions: torch.Tensor,
    outputs: torch.Tensor,
    turn: torch.Tensor,
) -> None:
    """`choose`, stored as `store_argmax` stores it."""
    _store(choose(pairs), token_buffer, slots, positions, outputs, turn)


def apply_penalties(
    logits: torch.Tensor,
    output_counts: torch.Tensor,
    prompt_mask: torch.Tensor,
    frequency: torch.Tensor,
    presence: torch.Tensor,
    repetition: torch.Tensor,
) -> torch.Tensor:
    """Penalise tokens seen before; in place, returns logits [B, V].

    output_counts: int32 [B, V], how often each token was generated; prompt_mask: bool [B, V],
    tokens of the prompt; frequency, presence, repetition: fp [B]. Repetition (Keskar et al.,
    2019, "CTRL") divides positive and multiplies negative logits of tokens of prompt and output;
    frequency and presence (OpenAI's) subtract for tokens of the output.
    """
    generated = output_counts > 0
    repeated = torch.where(generated | prompt_mask, repetition[:, None].float(), 1.0)
    wide = logits.float()
    wide = torch.where(wide > 0, wide / repeated, wide * repeated)
    wide = wide - frequency[:, None].float() * output_counts
    wide = wide - presence[:, None].float() * generated
    return logits.copy_(wide)


def apply_logit_bias(
    logits: torch.Tensor, rows: torch.Tensor, token_ids: torch.Tensor, bias: torch.Tensor
) -> torch.Tensor:
    """logits[rows[i], token_ids[i]] += bias[i]; in place, returns logits [B, V].

    rows, token_ids: int [n], each pair at most once; bias: fp [n], -inf forbids a token. Entries
    whose row is below 0 are padding.
    """
    real = rows >= 0
    if not bool(real.all()):
        rows, token_ids, bias = rows[real], token_ids[real], bias[real]
    rows, token_ids = rows.long(), token_ids.long()
    biased = logits[rows, token_ids].float() + bias.float()
    logits[rows, token_ids] = biased.to(logits.dtype)
    return logits


def apply_token_mask(logits: torch.Tensor, mask: torch.Tensor, rows: torch.Tensor) -> torch.Tensor:
    """logits[rows[i], t] = -inf where bit t of mask[i] is 0; in place, returns logits [B, V].

    mask: int32 [n, at least V / 32], 32 tokens a number, the lowest bit first; rows: int [n], each
    row at most once.
    """
    vocab = logits.shape[1]
    shifts = torch.arange(32, dtype=torch.int32, device=mask.device)
    allowed = (mask[:, :, None] >> shifts & 1).flatten(1)[:, :vocab].bool()
    logits[rows.long()] = logits[rows.long()].masked_fill(~allowed, -torch.inf)
    return logits


def top_logprobs(
    logits: torch.Tensor, chosen: torch.Tensor, k: int
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Log-softmax in fp32 of chosen int64 [B] and of the k likeliest tokens of logits [B, V].

    Returns (chosen_logprob fp32 [B], top_ids int64 [B, k], top_values fp32 [B, k]), likeliest
    first; k may be 0.
    """
    wide = logits.float()
    total = wide.logsumexp(dim=-1)
    chosen_logprob = wide.gather(1, chosen[:, None]).squeeze(1) - total
    values, ids = wide.topk(k, dim=-1)
    return chosen_logprob, ids, values - total[:, None]
