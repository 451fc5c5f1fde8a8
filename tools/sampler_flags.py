"""Checks of flags that check_sampler.py, bench_sampler.py and bench_switch.py share: before anything heavy, and in the names
of their own flags."""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path

from megatron_ring.config.checks import require
from megatron_ring.config.model import ModelConfig
from megatron_ring.config.sampling import SamplingConfig
from megatron_ring.errors import UserError

FIGURES = (".png", ".svg", ".pdf")


def check_figure(path: Path | None) -> None:
    """Raises `UserError` where no picture can be written to `path`."""
    if path is None:
        return
    require(path.suffix.lower() in FIGURES, f"--figure {path}: name it {', '.join(FIGURES[:-1])} or {FIGURES[-1]}")
    require(path.parent.is_dir(), f"--figure {path}: there is no folder {path.parent}")
    require(not path.is_dir(), f"--figure {path}: a folder")
    require(os.access(path if path.exists() else path.parent, os.W_OK), f"--figure {path}: not writable")


def check_sampling(sampling: SamplingConfig) -> None:
    """Raises `UserError` for what would end responses early, and for a length that --new-tokens states."""
    stops = sampling.stop_token_ids or sampling.stop_strings or sampling.repetition_tokens
    require(not stops, "--sampling.stop-…, --sampling.repetition-tokens: every response has all its tokens here")
    usual = SamplingConfig().max_new_tokens
    require(sampling.max_new_tokens == usual, "--sampling.max-new-tokens: give --new-tokens, the length of responses here")


def check_lengths(lengths: Iterable[tuple[int, int]], shape: ModelConfig, sampling: SamplingConfig) -> None:
    """Raises `UserError` where the longest of `lengths`, tokens of a prompt and of its response, has no place in the model's
    positions or in --sampling.kv-tokens."""
    prompt, new = max(lengths, key=sum)
    said, mend = f"--prompt-tokens {prompt:,} and --new-tokens {new:,}", "lower --prompt-tokens or --new-tokens"
    require(prompt + new <= shape.max_positions, f"{said} exceed the model's {shape.max_positions:,} positions: {mend}")
    if sampling.kv_tokens is None:
        return
    size = sampling.page_size
    needed = -(-(prompt + new) // size) * size
    require(
        needed <= sampling.kv_tokens // size * size,
        f"--sampling.kv-tokens {sampling.kv_tokens:,}, in pages of {size}: {said} need {needed:,}: raise it, or {mend}",
    )


@contextmanager
def named_as_here() -> Iterator[None]:
    """What the sampler refuses within it, knowing the device's memory, it refuses in the names of these flags."""
    try:
        yield
    except UserError as error:
        raise type(error)(str(error).replace("--sampling.max-new-tokens", "--new-tokens")) from None
