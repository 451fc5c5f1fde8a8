"""Requests that all want something else of the sampler, for bench_sampler.py --mixed-settings: none of their stops ever
comes."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

from megatron_ring.config.sampling import RequestSampling

if TYPE_CHECKING:
    from megatron_ring.sampler.requests import GenerationRequest

NEVER_WRITTEN = ("</answer>", "\n\nQuestion:")  # `decode` gives no such characters


def mixed_settings(vocabulary: int) -> list[RequestSampling]:
    """Temperatures, cuts of each kind alone and together, none, and stops of each kind."""
    ids = (vocabulary, vocabulary + 1)  # of no token
    return [
        RequestSampling(),
        RequestSampling(temperature=0.6, top_p=0.95, stop_strings=NEVER_WRITTEN),
        RequestSampling(temperature=0.0, stop_token_ids=ids),
        RequestSampling(temperature=1.2, min_p=0.05),
        RequestSampling(temperature=1.5, stop_strings=NEVER_WRITTEN, stop_token_ids=ids),
        RequestSampling(temperature=0.8, top_k=50),
        RequestSampling(temperature=0.9, repetition_tokens=256),
        RequestSampling(temperature=0.7, top_k=200, top_p=0.8, min_p=0.01, stop_strings=NEVER_WRITTEN),
    ]


def mixed(requests: Sequence[GenerationRequest], vocabulary: int) -> list[GenerationRequest]:
    """The same prompts and lengths, one of the settings after another, each with a seed and wanted columns of its own."""
    from megatron_ring.sampler.requests import request_seed

    settings, columns = mixed_settings(vocabulary), (None, frozenset({"logprobs"}), frozenset[str]())
    return [
        replace(request, seed=request_seed(i), sampling=settings[i % len(settings)], columns=columns[i % len(columns)])
        for i, request in enumerate(requests)
    ]


def decode(tokens: Sequence[int], skip_special: bool = True) -> str:
    """A character for each token, as a tokenizer's text would have to be looked through."""
    return "".join(chr(0x4E00 + token % 20_000) for token in tokens)
