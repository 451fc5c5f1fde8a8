"""What tells one policy objective from another: what it declares of itself, a weight, a ratio and a surrogate.

Modules of objectives import no torch when they are loaded: the configuration and `--help` read the declarations. Methods
work on the tensors that they are given.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

from megatron_ring.algorithm.kl import LOG_RATIO_LIMIT

if TYPE_CHECKING:
    from torch import Tensor

    from megatron_ring.algorithm.tokens import LossSettings, PolicyTokens


@dataclass(frozen=True, kw_only=True)
class ObjectiveDefaults:
    """What an objective takes for the flags `--objective.…` of the same names where they are not given."""

    clip: float = 0.2
    clip_high: float = 0.2
    std: bool = True
    dynamic_sampling: bool = False


class Objective(ABC):
    """One policy objective. A subclass declares itself, says the weight of each token, and replaces the ratio or the
    surrogate where its own differ.

    Attributes:
        name: what `--objective.name` calls it.
        summary: for the help of that flag.
        defaults: its settings where the command line leaves them open.
        has_budget: whether a step trains on exactly the token budget; else it trains on all that is kept.
        has_length_budget: whether it has a constant number of tokens that it divides by.
        sequence_level: whether it needs `PolicyTokens.sequence_log_ratio`.
    """

    name: ClassVar[str]
    summary: ClassVar[str]
    defaults: ClassVar[ObjectiveDefaults] = ObjectiveDefaults()
    has_budget: ClassVar[bool] = False
    has_length_budget: ClassVar[bool] = False
    sequence_level: ClassVar[bool] = False

    def __init__(self, length_budget: int = 1) -> None:
        """`length_budget`: the constant (tokens) of objectives that have one. Raises `ValueError` below 1."""
        if length_budget < 1:
            raise ValueError(f"the length budget is {length_budget} tokens, must be at least 1")
        self.length_budget = length_budget

    def token_weights(self, lengths: Sequence[int]) -> list[float]:
        """`weights`, checked: raises `ValueError` for a response without trained tokens."""
        for index, length in enumerate(lengths):
            if length < 1:
                raise ValueError(f"response {index} has a length of {length} tokens, must be at least 1")
        return self.weights(lengths)

    @abstractmethod
    def weights(self, lengths: Sequence[int]) -> list[float]:
        """The weight of the tokens of each of a step's N responses over all ranks, by their trained tokens.

        The objective's own mean is (1 / T) sum_i sum_t w_i l_it with T = sum_i |y_i|: the caller divides by T alone.
        """

    def log_ratio(self, tokens: PolicyTokens) -> Tensor:
        """log r of each token, [T]: log pi_theta - log pi_old."""
        return tokens.logprobs - tokens.old_logprobs

    def surrogate(self, log_ratio: Tensor, advantages: Tensor, settings: LossSettings) -> Tensor:
        """What is maximised of each token, [T], from `log_ratio` and the advantages [T]."""
        return clipped_surrogate(log_ratio, advantages, settings.clip_low, settings.clip_high)

    def clipped(self, log_ratio: Tensor, advantages: Tensor, settings: LossSettings) -> Tensor:
        """[T] bool: where the bounds act on a token; for the metrics."""
        return clipped_tokens(log_ratio, advantages, settings.clip_low, settings.clip_high)


def clipped_surrogate(log_ratio: Tensor, advantages: Tensor, low: float, high: float) -> Tensor:
    """min(r A, clip(r, 1 - low, 1 + high) A) per token, r = exp(log_ratio) (PPO, arXiv 1707.06347, eq. 7).

    With low = high it is PPO's; DAPO (arXiv 2503.14476) raises `high` alone. log_ratio is limited to +-LOG_RATIO_LIMIT.
    """
    ratio = log_ratio.clamp(-LOG_RATIO_LIMIT, LOG_RATIO_LIMIT).exp()
    return (ratio * advantages).minimum(ratio.clamp(1 - low, 1 + high) * advantages)


def clipped_tokens(log_ratio: Tensor, advantages: Tensor, low: float, high: float) -> Tensor:
    """[T] bool: where clipping removes the surrogate's gradient (r > 1 + high and A > 0, or r < 1 - low and A < 0)."""
    ratio = log_ratio.detach().exp()
    return ((ratio > 1 + high) & (advantages > 0)) | ((ratio < 1 - low) & (advantages < 0))
