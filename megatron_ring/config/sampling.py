"""How responses are drawn. Imports no torch."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import Literal

from megatron_ring.config.checks import require, require_temperature
from megatron_ring.config.metadata import MAY_CHANGE

AUTO_ROWS = {"cuda": 1024, "cpu": 256}
"""Sequences decoded together, at most, where --sampling.max-batch is auto; by the kind of device."""

FP8_CAPABILITIES = (9, 10)
"""First numbers of the compute capability of GPUs whose tensor cores multiply e4m3 as --sampling.weights fp8 wants it."""


def takes_fp8(capability: int | None) -> bool:
    """Whether --sampling.weights fp8 runs on a GPU of this compute capability (its first number), or a CPU (None)."""
    return capability is None or capability in FP8_CAPABILITIES


@dataclass(frozen=True)
class RequestSampling:
    """How the tokens of one response are drawn, and what ends it. Requests of one batch may differ in all of it."""

    temperature: float = 1.0
    """Softmax temperature; 0 takes the most likely token."""
    top_p: float = 1.0
    """Nucleus: the smallest set of tokens with at least this probability is kept, more on a tie (0..1]."""
    top_k: int = 0
    """So many most likely tokens are kept (0: all)."""
    min_p: float = 0.0
    """Tokens with less than this part of the most likely one's probability are cut (0..1; 0: none)."""
    stop_token_ids: tuple[int, ...] = ()
    """Token ids that end a response besides the end-of-sequence token; the token stays in it."""
    stop_strings: tuple[str, ...] = ()
    """Texts that end a response as soon as it holds one, with special tokens written out or left out; their tokens stay in
    it."""
    repetition_tokens: int = 0
    """End a response whose last so many tokens are one n-gram over and over (0: never)."""
    repetition_ngram: int = 64
    """Longest n-gram that counts as repetition (tokens)."""

    def check_vocabulary(self, vocab_size: int) -> None:
        """Raise `UserError` for a stop token that the model cannot draw: it would end nothing."""
        for token in self.stop_token_ids:
            require(
                0 <= token < vocab_size,
                f"--sampling.stop-token-ids: {token} is outside the model's vocabulary of {vocab_size:,} tokens",
            )

    def __post_init__(self) -> None:
        require_temperature(self.temperature, "--sampling.temperature")
        require(0 < self.top_p <= 1, f"--sampling.top-p is {self.top_p}, outside (0, 1]")
        require(0 <= self.min_p <= 1, f"--sampling.min-p is {self.min_p}, outside 0..1")
        require("" not in self.stop_strings, "--sampling.stop-strings: an empty text would end every response")
        self._check_least({"top_k": 0, "repetition_tokens": 0, "repetition_ngram": 1})
        require(
            self.repetition_tokens != 1,
            "--sampling.repetition-tokens is 1: give at least 2 tokens, or 0 for none",
        )

    def _check_least(self, least: dict[str, int]) -> None:
        for name, lowest in least.items():
            value = getattr(self, name)
            require(value is None or value >= lowest, f"--sampling.{name.replace('_', '-')} is {value}, below {lowest}")

    @property
    def whole_distribution(self) -> bool:
        """Whether nothing is cut from the distribution that tokens are drawn from."""
        return self.top_p == 1 and self.top_k == 0 and self.min_p == 0

    @property
    def greedy(self) -> bool:
        """Whether the most likely token is taken, without a draw."""
        return self.temperature == 0


@dataclass(frozen=True)
class SamplingConfig(RequestSampling):
    """How responses are drawn where their requests do not say otherwise, and what the sampler may take for it."""

    max_new_tokens: int = 24_576
    """Longest response (tokens)."""
    max_batch: int | Literal["auto"] = field(default="auto", metadata=MAY_CHANGE)
    """Sequences decoded together on one data-parallel rank. auto: all that are asked for, up to 1,024 on a GPU and 256 on a
    CPU, fewer where the KV cache could not hold an eighth of the longest one for each."""
    prefill_tokens: int = field(default=8192, metadata=MAY_CHANGE)
    """Prompt tokens computed in one step, at most; longer prompts are computed in pieces, beside the decoding of others."""
    page_size: int = field(default=32, metadata=MAY_CHANGE)
    """Tokens of a page of the KV cache."""
    kv_tokens: int | None = field(default=None, metadata=MAY_CHANGE)
    """Tokens whose keys and values one data-parallel rank holds (default: what its requests need, at most 2 GiB on a CPU
    and --sampling.kv-fraction of a GPU)."""
    kv_fraction: float = field(default=0.8, metadata=MAY_CHANGE)
    """Part of a GPU's free memory that the KV cache may take (0..1]."""
    weights: Literal["bf16", "fp8"] = "bf16"
    """bf16: the policy's own, in whatever precision it has. fp8: its routed experts from a copy in FP8, made anew
    whenever the weights change: about half the bytes of a decoding step, for a policy that differs a little from the
    trainer's."""
    activations: Literal["bf16", "fp8"] = "bf16"
    """What experts with --sampling.weights fp8 multiply, of up to 2,048 tokens at once and a policy in bf16: activations as
    they are, or rounded to FP8 as well, which takes half as many products where hundreds of sequences decode together, for a
    policy that differs more."""
    cuda_graphs: bool = field(default=True, metadata=MAY_CHANGE)
    """Decode by CUDA graphs where a process holds all layers (PP=1); off: launch each kernel (slower, to compare)."""

    def __post_init__(self) -> None:
        super().__post_init__()
        require(0 < self.kv_fraction <= 1, f"--sampling.kv-fraction is {self.kv_fraction}, outside (0, 1]")
        self._check_least({"max_new_tokens": 1, "prefill_tokens": 1, "page_size": 1, "kv_tokens": 1})
        require(self.max_batch == "auto" or self.max_batch >= 1, f"--sampling.max-batch is {self.max_batch}, below 1")

    @property
    def narrow(self) -> bool:
        """Whether experts are sampled with from a copy in FP8."""
        return self.weights != "bf16"

    @property
    def plain(self) -> SamplingConfig:
        """The same, but by the policy's own weights."""
        return replace(self, weights="bf16", activations="bf16")

    def check_weights(self, exact: bool, has_experts: bool) -> None:
        """Raise `UserError` where there can be no weights for sampling alone."""
        said = f"--sampling.activations {self.activations}: of experts with --sampling.weights fp8, leave it at bf16"
        require(self.narrow or self.activations == "bf16", said)
        if not self.narrow:
            return
        flag = f"--sampling.weights {self.weights}"
        require(not exact, f"{flag}: with --exact the sampler's numbers are the trainer's, leave it at bf16")
        require(has_experts, f"{flag}: it is for the routed experts, which this model has none of, leave it at bf16")

    def check_device(self, capability: int | None) -> None:
        """Raise `UserError` where the weights are in FP8 and a GPU of this compute capability does not take them."""
        said = f"it takes a GPU of compute capability {' or '.join(map(str, FP8_CAPABILITIES))} (H100, B200)"
        refusal = f"--sampling.weights {self.weights}: {said}, this one has {capability}: leave it at bf16"
        require(not self.narrow or takes_fp8(capability), refusal)
        refusal = f"--sampling.activations {self.activations}: {said}, this is a CPU: leave it at bf16"
        require(self.activations == "bf16" or capability is not None, refusal)

    def most_rows(self, device: str) -> int:
        """Sequences decoded together, at most, on a device of this kind ("cuda" or "cpu")."""
        return AUTO_ROWS[device] if self.max_batch == "auto" else self.max_batch

    def rows(self, device: str, requests: int, room: int, longest: int) -> int:
        """Sequences decoded together of so many requests.

        Args:
            room: tokens that the KV cache may hold.
            longest: prompt and response of the longest request (tokens).
        """
        rows = max(1, min(self.most_rows(device), requests))
        if self.max_batch != "auto":
            return rows
        return min(rows, max(16, room // max(1, longest // 8)))
