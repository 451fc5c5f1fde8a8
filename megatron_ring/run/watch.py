"""What a run does about alarms: warn, stop, or roll back to its last checkpoint, at most so many times."""

from __future__ import annotations

import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Literal

from megatron_ring.config.operations import AlarmConfig
from megatron_ring.errors import NotFiniteError
from megatron_ring.parallel import collectives
from megatron_ring.run.alarms import Alarm, Alarms

Verdict = Literal["go on", "rollback", "stop"]
SPIKES = frozenset(("loss", "grad_norm"))
"""Metrics whose alarms leave an update out under --alarms.action skip."""


class StepGuard:
    """Turns what fails within a step into alarms.

    Attributes:
        alarms: so far.
        can_go_on: whether another step can follow on the weights as they are.
    """

    def __init__(self, rules: Alarms, step: int) -> None:
        """`step`: from 1, as alarms name it."""
        self._rules, self._step = rules, step
        self.alarms: list[Alarm] = []
        self.can_go_on = True

    @contextmanager
    def __call__(self, metric: str) -> Iterator[None]:
        """What computes numbers that are not finite ends the block here, with an alarm of this metric: an update that was
        left out, or weights that are broken, with which nothing can go on."""
        try:
            yield
        except FloatingPointError as error:
            self.alarms.append(Alarm(self._step, metric, None, None, f"is not finite ({error})"))
        except NotFiniteError as error:
            self.alarms.append(Alarm(self._step, metric, None, None, f"failed: {error}"))
            self.can_go_on = False

    def judge(self, metrics: Mapping[str, Any]) -> list[Alarm]:
        """The step's alarms: what failed, or else the rules that its metrics break. All ranks take part and get the same,
        whatever rounding may tell them."""
        self.alarms = collectives.gather_over_world(self.alarms or self._rules.check(metrics))[0]
        return self.alarms


class Watch:
    """Judges steps. Every rank holds one and comes to the same verdict: metrics are equal on all."""

    def __init__(self, config: AlarmConfig, speaks: bool) -> None:
        self.config, self._speaks = config, speaks
        self.rules = Alarms(config)
        self.rollbacks = 0
        self._before: set[str] = set()  # metrics in alarm at the step before, which need no second warning
        self._records: list[dict[str, Any]] = []
        self._written: list[tuple[int, dict[str, Any]]] = []

    def guard(self, step: int) -> StepGuard:
        """For the parts of one step, counted from 1: `with guard(METRIC): …`."""
        return StepGuard(self.rules, step)

    def judge(self, alarms: Sequence[Alarm], checkpoint: Path | None, can_go_on: bool) -> Verdict:
        """What is to be done about the alarms of a step.

        Args:
            checkpoint: what a rollback would go to.
            can_go_on: whether another step can follow as things are.
        """
        verdict: Verdict = "go on"
        if alarms and self.config.action == "rollback" and checkpoint and self.rollbacks < self.config.max_rollbacks:
            verdict = "rollback"
        elif alarms and (self.config.action not in ("warn", "skip") or not can_go_on):
            verdict = "stop"
        skips = self.config.action == "skip" and bool(SPIKES & {alarm.metric for alarm in alarms})
        if verdict == "go on":
            going = "the update is left out, going on" if skips else "going on"
            self._say([alarm for alarm in alarms if alarm.metric not in self._before], going)
        self._before = {alarm.metric for alarm in alarms}
        action = ("skip" if skips else "warn") if verdict == "go on" else verdict
        self._records += [alarm.to_json() | {"action": action} for alarm in alarms]
        return verdict

    def take_records(self, step: int) -> dict[str, Any]:
        """For the line of `step` (from 1) in metrics.jsonl: the alarms that no line has, those of rolled-back steps too."""
        records, self._records = self._records, []
        self._written += [(step, record) for record in records]
        return {"alarms": records} if records else {}

    def rolled_back(self, alarms: Sequence[Alarm], state: dict[str, Any], step: int) -> None:
        """The run stands at the checkpoint of `step` again, which holds `state`; the rollbacks so far still count."""
        rollbacks = self.rollbacks + 1
        self.load_state_dict(state)
        self.rollbacks = rollbacks
        for record in self._records:
            record.setdefault("rolled_back_to", step)
        self._records = [record for line, record in self._written if line > step] + self._records  # those lines are gone
        self._written = [(line, record) for line, record in self._written if line <= step]
        count = f"rollback {rollbacks} of at most {self.config.max_rollbacks}"
        self._say(alarms, f"going back to step {step}, on with other data ({count})")

    def last_words(self, alarms: Sequence[Alarm], checkpoint: Path | None) -> str:
        """Why the run stops, in one line."""
        kept = f"{checkpoint.name} is the last checkpoint" if checkpoint else "there is no checkpoint yet"
        spent = f" after {self.rollbacks} rollback(s)" if self.rollbacks else ""
        return f"{'; '.join(map(str, alarms))}; stopped{spent}, {kept}"

    def _say(self, alarms: Sequence[Alarm], what: str) -> None:
        if self._speaks and alarms:
            print(f"{'; '.join(map(str, alarms))}; {what}", file=sys.stderr, flush=True)

    def state_dict(self) -> dict[str, Any]:
        """What `load_state_dict` needs, as JSON."""
        return {"rules": self.rules.state_dict(), "rollbacks": self.rollbacks, "before": sorted(self._before)}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Judge as the one did that wrote `state`."""
        self.rules.load_state_dict(state["rules"])
        self.rollbacks, self._before = state["rollbacks"], set(state["before"])
