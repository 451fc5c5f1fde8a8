"""Every objective written down again from its formula: float64, response by response, autograd through whole responses.

Shares no code with the product. A `Response` holds what one trained response brings; the loss is the step's, divided.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass
class Response:
    """One response, float64: its trained tokens alone. `logprobs` and `entropy` are leaves."""

    logprobs: Tensor
    entropy: Tensor
    old: Tensor
    sampler: Tensor
    ref: Tensor
    advantage: float

    def __len__(self) -> int:
        return self.logprobs.numel()


@dataclass(frozen=True)
class Constants:
    low: float = 0.2
    high: float = 0.28
    beta: float = 0.07
    alpha: float = 0.03
    kl: str = "k3"
    correction: str = "none"
    length_budget: int = 11


def lowest(ratio: Tensor, advantage: float, c: Constants) -> Tensor:
    """min(r A, clip(r) A), by cases."""
    if advantage >= 0:
        return advantage * torch.where(ratio > 1 + c.high, torch.tensor(1 + c.high, dtype=torch.float64), ratio)
    return advantage * torch.where(ratio < 1 - c.low, torch.tensor(1 - c.low, dtype=torch.float64), ratio)


def kl_term(response: Response, c: Constants) -> Tensor:
    rho = torch.exp(response.ref - response.logprobs)
    return {"k1": -torch.log(rho), "k2": torch.log(rho) ** 2 / 2, "k3": rho - torch.log(rho) - 1}[c.kl]


def correction(response: Response, c: Constants) -> Tensor:
    weights = []
    for trainer, sampler in zip(response.old.tolist(), response.sampler.tolist(), strict=True):
        k, p, q = math.exp(trainer - sampler), math.exp(trainer), math.exp(sampler)
        forward = p * math.log(p / q) + (1 - p) * math.log((1 - p) / (1 - q))
        backward = q * math.log(q / p) + (1 - q) * math.log((1 - q) / (1 - p))
        weights.append({
            "none": 1.0,
            "tis": min(k, 1.1),
            "icepop": k if 0.8 <= k <= 1.2 else 0.0,
            "kpop": k if max(forward, backward) <= 0.01 else 0.0,
        }[c.correction])  # fmt: skip
    return torch.tensor(weights, dtype=torch.float64)


def regularizers(response: Response, c: Constants) -> Tensor:
    return c.beta * kl_term(response, c) - c.alpha * response.entropy


def token_losses(response: Response, c: Constants) -> Tensor:
    """l_t = -c_t min(r_t A, clip(r_t) A) + beta KL_t - alpha H_t."""
    ratio = torch.exp(response.logprobs - response.old)
    return -correction(response, c) * lowest(ratio, response.advantage, c) + regularizers(response, c)


def token_mean(responses: list[Response], c: Constants) -> Tensor:
    return sum((token_losses(r, c).sum() for r in responses), torch.zeros(())) / sum(len(r) for r in responses)


def sample_mean(responses: list[Response], c: Constants) -> Tensor:
    return sum((token_losses(r, c).mean() for r in responses), torch.zeros(())) / len(responses)


def constant_length(responses: list[Response], c: Constants) -> Tensor:
    return sum((token_losses(r, c).sum() / c.length_budget for r in responses), torch.zeros(())) / len(responses)


def sequence_ratio(responses: list[Response], c: Constants) -> Tensor:
    """GSPO with the ratio of the whole response differentiated as it stands; corrections weigh its tokens."""
    total = torch.zeros((), dtype=torch.float64)
    for response in responses:
        log_ratio = response.logprobs - response.old
        if c.correction == "none":
            surrogate = lowest(torch.exp(log_ratio.mean()), response.advantage, c)
        else:  # token-level form: every token has the sequence's ratio, and the gradient of its own
            each = torch.exp(log_ratio.mean().detach()) * torch.exp(response.logprobs - response.logprobs.detach())
            surrogate = (correction(response, c) * lowest(each, response.advantage, c)).mean()
        total = total - surrogate + regularizers(response, c).mean()
    return total / len(responses)


LOSSES = {
    "c3po": token_mean,
    "dapo": token_mean,
    "grpo": sample_mean,
    "dr-grpo": constant_length,
    "gspo": sequence_ratio,
}


def advantages(rewards: list[float], groups: list[int], leave_one_out: bool, std: bool) -> list[float]:
    result = []
    for i, (reward, group) in enumerate(zip(rewards, groups, strict=True)):
        own = [r for r, g in zip(rewards, groups, strict=True) if g == group]
        others = [r for j, (r, g) in enumerate(zip(rewards, groups, strict=True)) if g == group and j != i]
        if min(own) == max(own):
            result.append(0.0)
            continue
        mean = math.fsum(own) / len(own)
        advantage = reward - (math.fsum(others) / len(others) if leave_one_out else mean)
        result.append(advantage / math.sqrt(math.fsum((r - mean) ** 2 for r in own) / len(own)) if std else advantage)
    return result
