"""An RL run: all that lives from step to step, and what a step leaves behind."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from megatron_ring.algorithm.budget_schedule import BudgetSchedule
from megatron_ring.config.rl import RLConfig
from megatron_ring.data.prompts import PromptStream
from megatron_ring.data.tokenizer import RingTokenizer
from megatron_ring.rollout.collecting import CollectedStep, Collector
from megatron_ring.rollout.evaluation import HeldOut
from megatron_ring.rollout.lines import write_lines
from megatron_ring.rollout.metrics import rollout_row
from megatron_ring.rollout.offload import SamplingOffload
from megatron_ring.rollout.policy_update import PolicyUpdate
from megatron_ring.rollout.records import Key, ScoredRollout
from megatron_ring.rollout.select import Selection
from megatron_ring.rollout.shaping import RewardShaping
from megatron_ring.run.alarms import Alarm
from megatron_ring.run.directory import RunDirectory
from megatron_ring.run.phases import Phases
from megatron_ring.run.stage import Stage
from megatron_ring.run.watch import Watch
from megatron_ring.sampler.sampler import Sampler
from megatron_ring.training.trainer import Trainer


@dataclass
class StepOutcome:
    """What a step leaves behind.

    Attributes:
        metrics: its line in metrics.jsonl, its times apart.
        alarms: the rules that it broke.
        can_go_on: whether another step can follow on the weights as they are.
        collected, selection: its responses, until they are written; None where sampling failed.
    """

    metrics: dict[str, Any]
    alarms: list[Alarm]
    can_go_on: bool
    collected: CollectedStep | None = None
    selection: Selection | None = None


@dataclass
class RLState:
    """Every process holds one. `config` is resolved.

    Attributes:
        stream: the prompts, with what has been learned of them.
        schedule: of the token budget.
        collector: also holds the responses that C3PO++ carries over.
        policy: loss, first passes and reference.
        compositions: fingerprint of the rewards' compositions; None without any.
        several_domains: whether training prompts have more than one.
        shaping: of rewards, before they become advantages.
        notes: what is to be said of how the files of prompts were read, in lines to print.
        unreached: what of the data no step will draw from, in lines to print.
        longest: prompt and response of the longest request, as far as it was looked at (tokens).
        steps_before: `--steps` of the run that wrote the checkpoint which this one goes on from.
    """

    config: RLConfig
    stage: Stage
    directory: RunDirectory
    tokenizer: RingTokenizer
    stream: PromptStream
    schedule: BudgetSchedule
    trainer: Trainer
    sampler: Sampler
    policy: PolicyUpdate
    collector: Collector
    held_out: HeldOut
    watch: Watch
    phases: Phases
    offload: SamplingOffload
    compositions: str | None
    domains: set[str]
    several_domains: bool
    shaping: RewardShaping
    notes: Sequence[str] = ()
    unreached: list[str] = field(default_factory=list)
    longest: int = 1
    steps_before: int | None = None

    def budget(self, step: int) -> int | None:
        """Phi of the 0-based `step` (tokens of all ranks), for objectives that have one."""
        return self.schedule.tokens(step, self.config.steps) if self.config.objective.has_budget else None

    def learn(self, collected: CollectedStep) -> None:
        """Take note of a step's rewards, for budgets and prompts to come."""
        self.schedule.observe(collected.rewards)
        self.stream.observe(collected.groups)

    def record(self, outcome: StepOutcome, steps: int) -> dict[str, Any]:
        """Write the responses and the metrics of the step that ended with so many steps done; its metrics with times, memory
        and the alarms that no line has yet. Lets go of the responses. All ranks take part."""
        self._write_responses(outcome, steps)
        outcome.collected = outcome.selection = None
        metrics = outcome.metrics | self.phases.finish() | self.watch.take_records(outcome.metrics["step"])
        if "throughput/tokens_per_second" in metrics:
            metrics["throughput/tokens_per_second"] /= metrics["time/step"]
        self.directory.log(metrics)
        return metrics

    def _write_responses(self, outcome: StepOutcome, steps: int) -> None:
        collected, selection, scored = outcome.collected, outcome.selection, list[ScoredRollout]()
        trained: dict[Key, int] = {}
        if collected is not None and selection is not None:
            scored = collected.scored
            trained = {item.key: count for item, count in zip(selection.kept, selection.trained, strict=True)}

        def row(_: int, item: ScoredRollout) -> dict[str, Any]:
            assert collected is not None
            record = collected.prompts[item.rollout.prompt_index].record
            return rollout_row(item, trained.get(item.key, 0), record, self.tokenizer)

        write_lines(self.directory.rollouts_of(steps), scored, row, self.stage.context)
