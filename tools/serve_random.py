#!/usr/bin/env python
"""Serve random weights of a published shape, to measure the server with. Nothing is read from a disk.

    python tools/serve_random.py --preset ring-lite
    python tools/bench_serving.py --preset ring-lite --prompts 256 --samples 1 --prompt-tokens 512

Weights are drawn on the device, as bench_sampler.py draws them. The tokenizer is made up: byte-level, each id a word of its
own, the last id ends a text.
"""

from __future__ import annotations

import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from megatron_ring.config.cli import parse
from megatron_ring.config.presets import get_preset
from megatron_ring.config.serve import ServeConfig
from megatron_ring.errors import run_main
from megatron_ring.parallel import prepare

END = "<|endoftext|>"
TEMPLATE = (
    "{% for message in messages %}{{ '<role>' + message.role + '</role>' + message.content }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<role>ASSISTANT</role>' }}{% endif %}"
)


@dataclass(frozen=True, kw_only=True)
class ServeRandom(ServeConfig):
    """The server's flags, and a shape in place of a checkpoint."""

    preset: str = "ring-lite"
    """Model shape."""
    checkpoint: Path = Path("random")
    """Name of the model in answers; nothing is read from it."""
    tokenizer: Path | None = None  # type: ignore[assignment]  # `main` sets it
    """Tokenizer directory (default: one is made up)."""

    @property
    def weights_folder(self) -> Path | None:
        return None

    @property
    def new_shape(self) -> str | None:
        return self.preset


def make_tokenizer(size: int, out: Path) -> None:
    """Write a byte-level tokenizer of `size` ids."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    words = sorted(pre_tokenizers.ByteLevel.alphabet())
    words += [("Ġ" if number % 3 else "") + _letters(number) for number in range(size - len(words) - 1)]
    tokenizer = Tokenizer(models.BPE({word: place for place, word in enumerate(words)}, []))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    fast = PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token=END)
    fast.chat_template = TEMPLATE
    fast.save_pretrained(out)


def _letters(number: int) -> str:
    """The number in base 26, at least two letters: none of them alone, which are bytes."""
    found = ""
    while number or len(found) < 2:
        number, digit = divmod(number, 26)
        found += chr(ord("a") + digit)
    return found + "q"


def main(config: ServeRandom) -> None:
    prepare()
    import dataclasses

    import torch

    from megatron_ring.run.stage import Stage, resolve
    from megatron_ring.serve import run

    def fill(stage: Stage) -> None:
        with torch.no_grad():
            for parameter in stage.model.parameters():
                parameter.normal_(0.0, 0.02)

    with tempfile.TemporaryDirectory() as folder:
        if config.tokenizer is None:
            make_tokenizer(get_preset(config.preset).vocab_size, Path(folder))
            config = dataclasses.replace(config, tokenizer=Path(folder))
        config, shape, tokenizer = resolve(config)
    run(config, shape, tokenizer, fill)


if __name__ == "__main__":
    run_main(lambda: main(parse(ServeRandom, "serve_random", "Serve random weights of a published shape.")))
