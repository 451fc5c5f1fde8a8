"""Scores of the tokens of one forward pass: of prompts that are filled in it, and of what was sampled. All ranks of a
replica call these together; every one of them gets the scores."""

from __future__ import annotations

import torch

from megatron_ring.model.ring_model import RingModel
from megatron_ring.parallel import collectives
from megatron_ring.parallel.device import upload
from megatron_ring.sampler.requests import Sequence as Response
from megatron_ring.sampler.scores import TokenScore, score_rows, scores_of
from megatron_ring.sampler.step import Chunk

PromptScores = dict[int, dict[int, TokenScore]]
"""By number of the request, by position of the token in its prompt."""


def score_prompts(
    model: RingModel, hidden: torch.Tensor | None, decoding: list[Response], chunks: list[Chunk]
) -> PromptScores:
    """Scores of the prompts' tokens that follow those of `chunks`.

    Args:
        hidden: [T or T/TP, 1, hidden] of the pass, the tokens of `chunks` behind those of `decoding`; None but on the last
            stage.
    """
    rows: list[int] = []
    targets: list[int] = []
    places: list[tuple[Response, int]] = []
    first = len(decoding)
    for chunk in chunks:
        for place in range(chunk.scored):
            rows.append(first + place)
            targets.append(chunk.sequence.request.prompt_tokens[chunk.start + place + 1])
            places.append((chunk.sequence, chunk.start + place + 1))
        first += chunk.count
    found: PromptScores = {}
    size = model.ring_config.vocab_size
    # Logits of a long prompt are not held all at once.
    piece = max(1, (1 << 25) // size)
    for start in range(0, len(rows), piece):
        part = slice(start, start + piece)
        logits_nv = None
        if hidden is not None:
            logits_nv = model.output_layer.logits(hidden, upload(rows[part], hidden.device))
        scores = _score(model, logits_nv, targets[part], [sequence for sequence, _ in places[part]])
        for (sequence, position), score in zip(places[part], scores, strict=True):
            found.setdefault(sequence.index, {})[position] = score
    return found


def score_sampled(
    model: RingModel, logits_nv: torch.Tensor | None, decoding: list[Response], tokens: list[float]
) -> list[tuple[TokenScore, ...]]:
    """The score of the token drawn for each of `decoding`, for those that ask for it.

    Args:
        logits_nv: [N, vocab/TP], a row for each; None but on the last stage.
    """
    asked = [place for place, sequence in enumerate(decoding) if sequence.request.top_logprobs is not None]
    found: list[tuple[TokenScore, ...]] = [()] * len(decoding)
    if not asked:
        return found
    if logits_nv is not None:
        logits_nv = logits_nv[upload(asked, logits_nv.device)]
    scores = _score(model, logits_nv, [int(tokens[place]) for place in asked], [decoding[place] for place in asked])
    for place, score in zip(asked, scores, strict=True):
        found[place] = (score,)
    return found


def _score(
    model: RingModel, logits_nv: torch.Tensor | None, targets: list[int], sequences: list[Response]
) -> list[TokenScore]:
    wanted = [min(sequence.request.top_logprobs or 0, model.ring_config.vocab_size) for sequence in sequences]
    most = max(wanted)
    device = next(model.parameters()).device
    if logits_nv is None:
        columns = torch.empty(1 + 2 * most, len(targets), dtype=torch.float64, device=device)
    else:
        temperatures = [sequence.numbers[0] for sequence in sequences]  # 1 of greedy ones
        settings = upload(temperatures, device, torch.float64)
        columns = score_rows(logits_nv, upload(targets, device), settings, most)
    return scores_of(collectives.broadcast_from_last_stage(columns).tolist(), wanted)
