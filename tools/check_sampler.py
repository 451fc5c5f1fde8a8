#!/usr/bin/env python
"""The sampler against the training forward pass, on tokens it samples: differences of log-probabilities, and tokens whose
experts differ. Prints one JSON object.

    python tools/check_sampler.py --preset ring-lite --prompts 64 --samples 8 --new-tokens 200 --exact
    python tools/check_sampler.py --checkpoint runs/NAME/checkpoints/latest --figure mismatch.png

Prompts are random tokens. With --exact every difference is 0, or the exit status is 1.
"""

from __future__ import annotations

import json
import sys
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from megatron_ring.config.checks import require
from megatron_ring.config.cli import parse
from megatron_ring.config.sampling import SamplingConfig
from megatron_ring.config.stage import ModelOptions
from megatron_ring.errors import run_main
from megatron_ring.parallel import prepare

if TYPE_CHECKING:  # `tools` may be a package of someone else's; a script's own folder is on the path
    import torch

    from megatron_ring.config.model import ModelConfig
    from megatron_ring.sampler.requests import GenerationRequest
    from tools.sampler_flags import check_figure, check_lengths, check_sampling, named_as_here
else:
    from sampler_flags import check_figure, check_lengths, check_sampling, named_as_here

DECADES = range(-8, 2)  # of |difference| in nats


@dataclass(frozen=True, kw_only=True)
class CheckSampler(ModelOptions):
    """What is sampled: every response has all its tokens, nothing stops one early."""

    checkpoint: Path | None = None
    """Checkpoint, the `latest` of a run's checkpoints, or Hugging Face folder (default: random weights of --preset)."""
    preset: str | None = None
    """Model shape, where there is no checkpoint."""
    layers: int | None = None
    """Only so many layers of the preset (default: all)."""
    sharpness: float = 1.0
    """The random head's weights times this: they would give an almost uniform distribution."""
    prompts: int = 16
    """Prompts, of random tokens and of lengths up to --prompt-tokens."""
    samples: int = 4
    """Responses to each prompt; they share its prefill."""
    prompt_tokens: int = 40
    """Tokens of the longest prompt."""
    new_tokens: int = 64
    """Tokens of the longest response; others have down to half of it."""
    train_tokens: int = 8192
    """Tokens of a packed micro-batch of the training forward pass."""
    figure: Path | None = None
    """Picture of the histogram (.png, .svg or .pdf)."""
    sampling: SamplingConfig = field(default_factory=SamplingConfig)

    def __post_init__(self) -> None:
        require(
            (self.checkpoint is None) != (self.preset is None), "give --checkpoint DIR, or --preset NAME for random weights"
        )
        require(
            self.checkpoint is None or (self.layers is None and self.sharpness == 1),
            "--layers and --sharpness are for random weights",
        )
        for name in ("prompts", "samples", "prompt_tokens", "new_tokens", "train_tokens"):
            require(getattr(self, name) >= 1, f"--{name.replace('_', '-')} is {getattr(self, name)}, below 1")
        require(self.layers is None or self.layers >= 1, f"--layers is {self.layers}, below 1")
        check_sampling(self.sampling)
        check_figure(self.figure)


def main(config: CheckSampler) -> None:
    prepare()
    import torch

    from megatron_ring.checkpoint.folder import checkpoint_folder
    from megatron_ring.run.stage import resolve_shape, set_first_weights, start_model
    from megatron_ring.sampler.trainer_mismatch import measure_mismatch

    if TYPE_CHECKING:
        from tools.bench_train_work import fill_with_noise
    else:
        from bench_train_work import fill_with_noise

    checkpoint = None if config.checkpoint is None else checkpoint_folder(config.checkpoint)
    shape = resolve_shape(config.preset, checkpoint)
    shape = replace(shape, num_layers=config.layers or shape.num_layers)
    requests = requests_of(config, shape)
    check_lengths([(len(r.prompt_tokens), r.max_new_tokens) for r in requests], shape, config.sampling)
    stage = start_model(config, shape)
    if checkpoint is not None:
        set_first_weights(stage, checkpoint, config.seed)
    else:
        with torch.no_grad():  # on the device: drawing 16.8 B numbers on the host takes minutes
            torch.manual_seed(config.seed)
            fill_with_noise(stage.model, shape.init_std)
            stage.model.output_layer.weight.mul_(config.sharpness)
    with named_as_here():
        found = measure_mismatch(stage.model, stage.context, config.sampling, requests, config.train_tokens)
    size = found.differences.abs()
    equal = int((size == 0).sum())
    out: dict[str, Any] = {
        "model": str(checkpoint or config.preset), "layers": shape.num_layers,
        "precision": str(next(stage.model.parameters()).dtype)[6:], "exact": config.exact, "tokens": size.numel(),
        "sequences": len(requests), "entropy_mean": found.mean_entropy, "logprob_abs_mean": size.mean().item(),
        "logprob_abs_max": size.max().item(), "logprob_difference_mean": found.differences.mean().item(),
        "share_equal": equal / size.numel(), "router_pairs": found.routed,
        "router_pairs_differing": found.routed_differently,
        "router_disagreement": found.routed_differently / max(1, found.routed), "histogram": _histogram(size),
    }  # fmt: skip
    print(json.dumps(out), flush=True)
    if config.figure is not None:
        _draw(config.figure, out)
    if config.exact and (equal < size.numel() or found.routed_differently):
        raise SystemExit(1)


def requests_of(config: CheckSampler, shape: ModelConfig) -> list[GenerationRequest]:
    import torch

    from megatron_ring.sampler.requests import GenerationRequest, request_seed

    generator = torch.Generator().manual_seed(config.seed)
    requests = []
    for i in range(config.prompts):
        length = config.prompt_tokens - i * (config.prompt_tokens // 2) // config.prompts
        prompt = torch.randint(shape.vocab_size, (length,), generator=generator).tolist()
        for k in range(config.samples):
            new = config.new_tokens - k * (config.new_tokens // 2) // config.samples
            requests.append(GenerationRequest(prompt, request_seed(config.seed, i, k), new))
    return requests


def _histogram(size: torch.Tensor) -> dict[str, int]:
    """How many of |difference| are 0, and how many lie in each power of ten, by its lower bound; what is smaller or larger
    counts in the first or last."""
    decades = size[size > 0].log10().floor().clamp(DECADES[0], DECADES[-1])
    return {"0": int((size == 0).sum()), **{f"1e{d}": int((decades == d).sum()) for d in DECADES}}


def _draw(path: Path, out: dict[str, Any]) -> None:
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(figsize=(7, 3.5), layout="constrained")
    bars = axes.bar(list(out["histogram"]), list(out["histogram"].values()), color="#3b6ea5")
    axes.bar_label(bars, fontsize=7)
    axes.set_yscale("symlog")
    axes.margins(y=0.1)
    axes.set_xlabel("|log-probability of the trainer - of the sampler| (nats; from 0, 1e-8 and so on upwards)")
    axes.set_ylabel("sampled tokens")
    mode = "--exact" if out["exact"] else "default"
    axes.set_title(
        f"{Path(out['model']).name}, {out['precision']}, {mode}: mean {out['logprob_abs_mean']:.2g}, "
        f"other experts {out['router_disagreement']:.2%}",
        fontsize=10,
    )
    figure.savefig(path, dpi=150)
    pyplot.close(figure)


if __name__ == "__main__":
    run_main(lambda: main(parse(CheckSampler, "check_sampler", "The sampler against the training forward pass.")))
