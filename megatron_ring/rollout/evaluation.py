"""Sampling and scoring prompts that nothing is trained on: for `evaluate`, and beside training."""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence
from typing import Any, NamedTuple

from megatron_ring.config.operations import HeldOutConfig
from megatron_ring.config.rl import RLConfig
from megatron_ring.config.sampling import SamplingConfig
from megatron_ring.data.fields import PROMPT_FIELDS, Fields
from megatron_ring.data.files import read_prompt_file
from megatron_ring.data.prompts import StreamPrompt
from megatron_ring.data.records import PromptRecord
from megatron_ring.data.schedule import PromptSource
from megatron_ring.data.tokenizer import RingTokenizer
from megatron_ring.rollout.records import Key, Rollout, ScoredRollout
from megatron_ring.rollout.sampling import open_rollouts, sample_rollouts
from megatron_ring.rollout.scoring import RolloutScorer, check_prompts
from megatron_ring.sampler.sampler import Sampler


def evaluate_prompts(
    prompts: Sequence[StreamPrompt], sampler: Sampler, tokenizer: RingTokenizer, scorer: RolloutScorer, *,
    samples: int, seed: int, instruction: str | None, on_progress: Callable[[int], None] | None = None,
    done: Collection[Key] = (), on_scored: Callable[[ScoredRollout], None] | None = None,
) -> list[ScoredRollout]:  # fmt: skip
    """`samples` scored responses to each prompt, ordered, on every rank; those in `done` left out. `on_scored` is given each
    of this replica's, on its leader, as soon as its reward is there."""
    to_sample = open_rollouts(
        prompts, tokenizer, samples=samples, seed=seed, max_new_tokens=sampler.sampling.max_new_tokens,
        instruction=instruction,
    )  # fmt: skip
    to_sample = [item for item in to_sample if (item.prompt.position, item.sample) not in done]
    tells = on_scored is not None and sampler.context.leads_replica
    waiting: dict[Key, Rollout] = {}

    def take(rollout: Rollout, record: PromptRecord) -> None:
        scorer.submit(rollout, record)
        if on_scored is None or not tells:
            return
        waiting[rollout.key] = rollout
        for key, reward, repeated in scorer.take_ready():
            on_scored(ScoredRollout(waiting.pop(key), reward.value, reward.reason, reward.detail, repeated))

    scorer.start()
    rollouts, _ = sample_rollouts(sampler, to_sample, version=0, on_progress=on_progress, on_rollout=take)
    sampler.release()  # a judge's cache may want the room
    scored = scorer.finish(rollouts)
    if on_scored is not None:
        for item in scored:
            if item.key in waiting:
                on_scored(item)
    return scored


class Figures(NamedTuple):
    """What is summed up of a response.

    Attributes:
        has_verdict, is_graded: as of `ScoredRollout`.
    """

    domain: str
    prompt_id: str
    reward: float
    length: int
    finish_reason: str | None
    has_verdict: bool
    is_graded: bool


def figures(item: ScoredRollout) -> Figures:
    """Those of a response."""
    rollout = item.rollout
    return Figures(
        rollout.domain, rollout.prompt_id, item.reward, rollout.response_length, rollout.finish_reason,
        item.has_verdict, item.is_graded,
    )  # fmt: skip


def summarize(items: Sequence[Figures]) -> dict[str, Any]:
    """Over all and by domain, pass@1 (mean reward) of the responses that are graded, and beside it the mean of models' raw
    scores and the number of responses without a verdict, where there are any; how long the responses were."""
    domains = sorted({item.domain for item in items})
    return {
        **_part(items),
        "by_domain": {name: _part([item for item in items if item.domain == name]) for name in domains},
        "response_length_mean": sum(item.length for item in items) / len(items),
        "truncated_fraction": sum(item.finish_reason == "length" for item in items) / len(items),
    }


def _part(items: Sequence[Figures]) -> dict[str, Any]:
    graded = [item for item in items if item.is_graded]
    raw = [item for item in items if item.has_verdict and not item.is_graded]
    found: dict[str, Any] = {"problems": _problems(graded)}
    if graded:
        found["pass_at_1"] = _mean(graded)
    if raw:
        found |= {"problems_with_raw_scores": _problems(raw), "raw_score_mean": _mean(raw)}
    if len(graded) + len(raw) < len(items):
        found["without_verdict"] = len(items) - len(graded) - len(raw)
    return found


def _problems(items: Sequence[Figures]) -> int:
    return len({(item.domain, item.prompt_id) for item in items})


def _mean(items: Sequence[Figures]) -> float:
    return sum(item.reward for item in items) / len(items)


def told(summary: dict[str, Any]) -> str:
    """The figures of `summarize` in words."""
    said = []
    if "pass_at_1" in summary:
        said.append(f"pass@1 {summary['pass_at_1']:.3f} on {summary['problems']} problems")
    if "raw_score_mean" in summary:
        number, mean = summary["problems_with_raw_scores"], summary["raw_score_mean"]
        said.append(f"raw scores of a model {mean:.3f} in the mean on {number} problems")
    if "without_verdict" in summary:
        said.append(f"{summary['without_verdict']} responses without a verdict, counted nowhere")
    return "; ".join(said)


class HeldOut:
    """Held-out evaluation of a run, every so many steps and after the last.

    Raises:
        UserError: the prompts cannot be read, have a domain without a verifier, or an answer that it cannot use.
    """

    def __init__(self, config: RLConfig, tokenizer: RingTokenizer) -> None:
        self.config: HeldOutConfig = config.evaluation
        self._run, self._tokenizer = config, tokenizer
        self.sampling: SamplingConfig = self.config.sampling(config.sampling)
        self.prompts: list[StreamPrompt] = []
        self.notes: list[str] = []  # what is to be said of how they were read
        self._sampler: Sampler | None = None
        if self.config.prompts is not None:
            fields = Fields.of(config.data, PROMPT_FIELDS, "--data.fields")
            file = read_prompt_file(self.config.prompts, fields)
            records = file.records
            self.notes = [file.note] if file.note else []
            check_prompts([PromptSource("evaluation", self.config.prompts, tuple(records))], config.rewards)
            self.prompts = [StreamPrompt(position, record) for position, record in enumerate(records)]

    @property
    def domains(self) -> set[str]:
        """What must be scored."""
        return {prompt.record.domain for prompt in self.prompts}

    def due(self, steps: int) -> bool:
        """Whether there is an evaluation after so many steps."""
        return bool(self.prompts) and (steps % self.config.every == 0 or steps == self._run.steps)

    def measure(self, sampler: Sampler, scorer: RolloutScorer) -> dict[str, float]:
        """Figures of the weights as they are. `sampler` is the training's: its cache is freed, and so is this one's."""
        sampler.release()
        held_out = Sampler(sampler.model, sampler.context, self.sampling, sampler.eos_id, self._tokenizer.decode)
        try:
            scored = evaluate_prompts(
                self.prompts, held_out, self._tokenizer, scorer, samples=self.config.samples_per_problem,
                seed=self._run.seed, instruction=self._run.data.instruction,
            )  # fmt: skip
        finally:
            held_out.release()
        summary = summarize([figures(item) for item in scored])
        by_domain = summary.pop("by_domain")
        names = ("pass_at_1", "raw_score_mean", "without_verdict", "response_length_mean", "truncated_fraction")
        found = {f"evaluation/{name}": summary[name] for name in names if name in summary}
        for domain, part in by_domain.items():
            means = {name: part[name] for name in ("pass_at_1", "raw_score_mean") if name in part}
            found |= {f"evaluation/{name}/{domain}": mean for name, mean in means.items()}
        return found
