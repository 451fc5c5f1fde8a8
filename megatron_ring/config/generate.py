"""Configuration of text generation. Its fields are the flags. Imports no torch."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar, Literal

from megatron_ring.config.checks import require
from megatron_ring.config.stage import InferenceConfig


@dataclass(frozen=True, kw_only=True)
class GenerateConfig(InferenceConfig):
    """Text from a model."""

    stage_name: ClassVar[str] = "generate"

    prompts: Path | None = None
    """JSONL or parquet file with a `prompt` (text or messages) in each row, `id` optional (default: standard input, a line
    each)."""
    out: Path | None = None
    """JSONL file for the responses, in order: to a file of prompts written at the end, to typed ones as they come (default:
    none)."""
    stream: Literal["auto", "tokens", "responses"] = "auto"
    """What is shown as it comes; tokens takes decoding steps one by one, which is slower on a GPU. auto: tokens, but for a
    file of prompts with --out responses."""
    samples: int = 1
    """Responses to each prompt."""
    raw: bool = False
    """Continue each prompt as plain text, without the chat template."""

    def __post_init__(self) -> None:
        require(self.samples >= 1, f"--samples is {self.samples}, below 1")
        require(not (self.raw and self.instruction), "--instruction goes into user messages, and --raw has none: drop one")

    @property
    def streams(self) -> bool:
        """Whether tokens are shown one by one."""
        return self.stream == "tokens" or (self.stream == "auto" and (self.prompts is None or self.out is None))
