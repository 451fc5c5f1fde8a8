"""What the model thinks of single tokens, for requests that ask for it: the log-probability of a token that is there, and
those of the likeliest ones in its place. Of a prompt as of a response, out of one computation.

Suffixes: n rows, v vocabulary.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch

from megatron_ring.parallel import collectives


class TokenScore(NamedTuple):
    """Of one token, in nats under softmax(logits / temperature), where temperature 0 counts as 1.

    Attributes:
        logprob: of the token.
        top: the likeliest tokens with their log-probabilities, likeliest first; where the token is among them its number is
            the same as `logprob`, to the bit.
    """

    logprob: float
    top: tuple[tuple[int, float], ...]


def score_rows(logits_nv: torch.Tensor, targets: torch.Tensor, temperatures: torch.Tensor, most: int) -> torch.Tensor:
    """float64 [1 + 2 most, N]: log-probability of each target, then `most` log-probabilities, then their token ids.

    Args:
        logits_nv: [N, vocab/TP], any float dtype; computed in fp32. Tensor-parallel ranks call it together.
        targets: int64 [N].
        temperatures: float64 [N], above 0.
        most: at most the vocabulary's size.
    """
    whole_nv = collectives.gather_over_tensor(logits_nv).float()
    logprobs_nv = torch.log_softmax(whole_nv / temperatures[:, None].float(), dim=-1)
    values, ids = logprobs_nv.topk(most, dim=-1)
    mine = logprobs_nv.gather(1, targets[:, None])
    return torch.cat((mine.double(), values.double(), ids.double()), dim=1).t().contiguous()


def scores_of(columns: Sequence[Sequence[float]], wanted: Sequence[int]) -> list[TokenScore]:
    """The rows of `score_rows`, each with as many of the likeliest tokens as `wanted` says."""
    most = (len(columns) - 1) // 2
    found = []
    for row, count in zip(zip(*columns, strict=True), wanted, strict=True):
        values, ids = row[1 : 1 + count], row[1 + most : 1 + most + count]
        found.append(TokenScore(row[0], tuple((int(token), value) for token, value in zip(ids, values, strict=True))))
    return found
