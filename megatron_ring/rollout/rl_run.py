"""An RL run: all that lives from step to step, what one step does with it, and what of it checkpoints hold."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from megatron_ring.algorithm.budget_schedule import BudgetSchedule
from megatron_ring.checkpoint.latest import latest_checkpoint
from megatron_ring.checkpoint.loading import load_checkpoint
from megatron_ring.checkpoint.saving import CheckpointSaver
from megatron_ring.config.checks import require
from megatron_ring.config.model import ModelConfig
from megatron_ring.config.rl import RLConfig
from megatron_ring.data.prompts import PromptStream, too_long
from megatron_ring.data.records import PromptRecord
from megatron_ring.data.schedule import read_schedule
from megatron_ring.errors import NotFiniteError
from megatron_ring.model.routes import route_bytes
from megatron_ring.parallel import collectives
from megatron_ring.rewards.composition import fingerprint
from megatron_ring.rollout.collecting import CollectedStep, Collector, pack_step
from megatron_ring.rollout.evaluation import HeldOut
from megatron_ring.rollout.lines import write_lines
from megatron_ring.rollout.metrics import packed_fraction, rollout_row, sampling_metrics, update_metrics
from megatron_ring.rollout.policy_update import PolicyUpdate
from megatron_ring.rollout.pool import RolloutPool
from megatron_ring.rollout.records import ScoredRollout
from megatron_ring.rollout.scoring import RolloutScorer, check_prompts
from megatron_ring.rollout.unfinished import load_unfinished, save_unfinished
from megatron_ring.run.alarms import Alarm
from megatron_ring.run.continuing import changed_ranks, check_compositions, stretched_schedules
from megatron_ring.run.directory import plain
from megatron_ring.run.phases import Phases
from megatron_ring.run.stage import latest_of, open_model, open_run, resolve, set_first_weights
from megatron_ring.run.wandb_log import WandbLog, check_wandb
from megatron_ring.run.watch import Watch
from megatron_ring.sampler.sampler import Sampler
from megatron_ring.training.trainer import Trainer


@dataclass
class StepOutcome:
    """What a step leaves behind.

    Attributes:
        metrics: its line in metrics.jsonl.
        collected: its responses, until they are written; None where sampling failed.
        alarms: the rules that it broke.
        can_go_on: whether another step can follow on the weights as they are.
    """

    metrics: dict[str, Any]
    collected: CollectedStep | None = None
    alarms: list[Alarm] = field(default_factory=list)
    can_go_on: bool = True


class RLRun:
    """Build it in every process. The model has the weights that RL starts from, until `restore`."""

    def __init__(self, config: RLConfig) -> None:
        """Raises:
        UserError: the configuration fits neither the layout, the model, the tokenizer, the data nor the run directory.
        """
        config, shape, self.tokenizer = resolve(config)
        self.config, data = config, config.data
        prompts = read_schedule(data.prompts, data.min_solve_rate, data.max_solve_rate)
        # A run that has begun cannot change its prompts; of the time before answers were checked it may have any.
        begun = collectives.from_main(lambda: latest_checkpoint(config.run_dir / "checkpoints")) is not None
        check_prompts(prompts.sources, config.rewards, answers=not begun)
        composed = config.rewards.compositions
        self._compositions = None if composed is None else fingerprint(composed)
        self._steps_before: int | None = None  # of the run that wrote the checkpoint
        self._unreached = prompts.unreached(config.steps)
        self.held_out = HeldOut(config, self.tokenizer)
        check_wandb(config.wandb)
        self.domains, self.several_domains = prompts.domains | self.held_out.domains, len(prompts.domains) > 1
        floor = None if data.curriculum == "none" else data.curriculum_floor
        self.stream = PromptStream(prompts, config.seed, data.drop_after, floor)
        self._check_lengths([record for source in prompts.sources for record in source.records], shape)
        self.directory = open_run(config)
        self.stage = open_model(config, shape, config.init_from)
        self.context, model = self.stage.context, self.stage.model
        self.watch = Watch(config.alarms, speaks=self.context.is_main)
        self.phases = Phases()
        self.trainer = Trainer(model, self.context, config.optimizer)
        # Copies the weights as the reference: before any later ones.
        self.policy = PolicyUpdate(config, self.trainer, self.tokenizer.pad_id, self.directory.path / "reference")
        self.schedule = BudgetSchedule(config.budget.schedule, *config.budget.resolve(self.context.data_size))
        self.sampler = Sampler(
            model, self.context, config.sampling, self.tokenizer.eos_id, self.tokenizer.decode,
            note_routes=config.correction.routes != "ignore",
        )  # fmt: skip
        model.router_losses.replay = config.correction.routes == "replay"
        self.collector = Collector(config, self.stream, self.sampler, self.tokenizer, self.policy.reward_kl)

    def _check_lengths(self, records: list[PromptRecord], shape: ModelConfig) -> None:
        """Raise `UserError`, on every rank, for a prompt that leaves no room for the longest response. The main process
        reads them."""
        problem = None
        if collectives.is_main():
            data, held = self.config.data, self.held_out
            sampling, evaluating = self.config.sampling.max_new_tokens, held.sampling.max_new_tokens
            room = min(data.micro_batch_tokens, shape.max_positions) - sampling
            asked = [
                ("--data.prompts", records, room, f"--sampling.max-new-tokens {sampling:,}"),
                ("--evaluation.prompts", [prompt.record for prompt in held.prompts], shape.max_positions - evaluating,
                 f"--evaluation.max-new-tokens {evaluating:,}"),
            ]  # fmt: skip
            for flag, those, left, said in asked:
                found = problem is None and too_long(those, self.tokenizer, data.instruction, left)
                if found:
                    problem = f"{flag}: {found}, and {said} leave room for {max(0, left):,}"
        problem = collectives.gather_over_world(problem)[0]
        require(problem is None, str(problem))

    def restore(self) -> int:
        """Go on from the last whole checkpoint, if there is one; the steps done, 0 without one."""
        start = self._load()
        if self.directory.writes and self.config.wandb.project is not None:
            self.directory.more_logs.append(WandbLog(self.config.wandb, self.directory.path, plain(self.config)))
        return start

    def remarks(self, start: int) -> list[str]:
        """What is to be said of the data, and of a run that `restore` continued after `start` steps."""
        config, schedule = self.config, self.schedule
        changes = changed_ranks(config, schedule) + stretched_schedules(config, schedule, start, self._steps_before)
        return changes + self._unreached

    def roll_back(self, alarms: list[Alarm]) -> int:
        """Go back to the last whole checkpoint, on with prompts that no step has seen; the steps done there. What is being
        saved must be whole."""
        self.sampler.weights_changed()
        self._bring_back()
        if self.policy.reference is not None and self.policy.reference.step:  # the checkpoint may be from before that
            set_first_weights(self.stage, self.config.init_from, self.config.seed)
            self.policy.reference.start_over()
        self.phases.finish()  # the time of what is undone belongs to no step
        return self._load(alarms)

    def _load(self, rolled_back_for: list[Alarm] | None = None) -> int:
        start = 0
        checkpoint = latest_of(self.directory)
        if checkpoint is not None:
            start, extra = load_checkpoint(checkpoint, self.stage.model, self.context, self.trainer.optimizer)
            check_compositions(self._compositions, extra)
            self._steps_before = extra.get("steps")
            self.stream.load_state_dict(extra["prompts"], keep_place=rolled_back_for is not None)
            self.schedule.load_state_dict(extra["budget"])
            self.policy.load(extra["policy"])
            self.collector.pool = RolloutPool()  # what the rolled-back steps were sampling is not taken up again
            if rolled_back_for is not None:
                self.watch.rolled_back(rolled_back_for, extra["watch"], start)
            else:
                self.watch.load_state_dict(extra["watch"])
                self.collector.pool = load_unfinished(
                    checkpoint, self.stream, self.collector.open, route_bytes(self.stage.model), self.context
                )
        self.directory.start_logging(start)
        return start

    def _make_room(self) -> None:
        """Before responses are sampled."""
        if self.config.offload_optimizer:
            offload = self.trainer.offload
            with self.phases("offload"):
                offload.send_away()
            self.phases.hold("offloaded", offload.host_bytes)
            self.phases.hold("freed", offload.freed_bytes)

    def _bring_back(self) -> None:
        """Undo `_make_room`. The sampler's cache must be gone."""
        if self.config.offload_optimizer:
            with self.phases("return"):
                self.trainer.offload.bring_back()

    def budget(self, step: int) -> int | None:
        """Phi of the 0-based `step` (tokens of all ranks), for objectives that have one."""
        return self.schedule.tokens(step, self.config.steps) if self.config.objective.name == "c3po" else None

    def step(self, step: int, scorer: RolloutScorer) -> StepOutcome:
        """One update, the 0-based `step`, and what the alarms say of it."""
        config, policy, phases, model = self.config, self.policy, self.phases, self.stage.model
        try:
            self._make_room()
            with phases("sample"):
                collected = self.collector.collect(step, scorer, self.budget(step))
        except NotFiniteError as error:
            broken = Alarm(step + 1, "sampling", None, None, f"failed: {error}")
            return StepOutcome({"step": step + 1}, alarms=[broken], can_go_on=False)
        phases.split("sample", {"sample": collected.sample_seconds, "reward": collected.reward_seconds}, rest="select")
        self._bring_back()
        with phases("pack"):
            batches = pack_step(collected, config, policy.loss.objective, model, self.context, self.tokenizer.pad_id)
        with phases("first_pass"):
            batches = policy.annotate(batches)
        lr = config.optimizer.lr_at(step, config.steps)
        update, alarms = {}, []
        with phases("train"):
            try:
                update = update_metrics(collected, self.trainer.train_step(batches, policy.loss, lr))
            except FloatingPointError as error:
                alarms = [Alarm(step + 1, "grad_norm", None, None, f"is not finite ({error})")]
            update |= policy.loss.take_ratios(self.context.device)
            self.sampler.weights_changed()
            self.schedule.observe([item.reward for item in collected.scored])
            self.stream.observe(collected.groups)
            policy.finish(step + 1)
        can_go_on = True
        if self.held_out.due(step + 1) and not alarms:
            self._make_room()
            with phases("evaluation"):
                try:
                    update |= self.held_out.measure(self.sampler, scorer)
                except NotFiniteError as error:
                    alarms = [Alarm(step + 1, "evaluation", None, None, f"failed: {error}")]
                    can_go_on = False
        metrics = {
            "step": step + 1,
            **sampling_metrics(collected, by_domain=self.several_domains),
            "tokens/packed_fraction": packed_fraction(
                collected, len(batches) * self.context.data_size, config.data.micro_batch_tokens
            ),
            **update,
            **self.stream.figures(step),
            "solve_rate": self.schedule.solve_rate,
            "lr": lr,
            "throughput/tokens_per_second": collected.generated_tokens,
        }
        alarms = alarms or self.watch.rules.check(metrics)
        alarms = collectives.gather_over_world(alarms)[0]  # one verdict, whatever rounding may tell the ranks
        return StepOutcome(metrics, collected, alarms, can_go_on)

    def write_rollouts(self, steps: int, outcome: StepOutcome) -> None:
        """Record the responses of the step that ended with so many steps done, and let go of them. All ranks take part."""
        collected, outcome.collected = outcome.collected, None

        def row(place: int, item: ScoredRollout) -> dict[str, Any]:
            assert collected is not None
            record = collected.answers[item.rollout.prompt_index].record
            return rollout_row(item, collected.selection.trained[place], record, self.tokenizer)

        scored = [] if collected is None else collected.scored
        write_lines(self.directory.rollouts_of(steps), scored, row, self.context)

    def timed(self, outcome: StepOutcome) -> dict[str, Any]:
        """The metrics of a step that ends here, with its times, its memory and the alarms that no line has yet."""
        metrics = outcome.metrics | self.phases.finish() | self.watch.take_records(outcome.metrics["step"])
        if "throughput/tokens_per_second" in metrics:
            metrics["throughput/tokens_per_second"] /= metrics["time/step"]
        return metrics

    def save(self, saver: CheckpointSaver, steps: int) -> None:
        """Save the state after `steps` steps."""
        self._bring_back()  # an evaluation leaves it away for the next step's sampling
        with self.phases("save_wait"):
            saver.wait()  # before `policy.save`: until it is whole the one before it counts
            extra = {
                "prompts": self.stream.state_dict(),
                "budget": self.schedule.state_dict(),
                "policy": self.policy.save(),
                "watch": self.watch.state_dict(),
                "compositions": self._compositions,
                "steps": self.config.steps,
            }
            files = save_unfinished(self.collector.pool, self.context)
            saver.save(steps, self.stage.model, self.trainer.optimizer, extra, files=files)
