"""The report's sampled text: before and after RL to the same prompts, and rollouts of the first and last step.

What is shown is picked by a fixed rule, in file order, and never by how good it looks.
"""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path
from typing import Any

from megatron_ring.analysis import page
from megatron_ring.analysis.comparison import CHANGES, Pair, pair_samples
from megatron_ring.analysis.material import Material
from megatron_ring.analysis.page import Html
from megatron_ring.analysis.read_run import Record, number, read_rollouts, rollout_steps

SHOWN_PER_CHANGE = {"gained": 2, "lost": 2, "right both times": 1, "wrong both times": 1}
SHOWN_ROLLOUTS = 4


def samples(material: Material) -> Html:
    """Responses to the same prompts before and after RL; with one evaluation only, its first responses."""
    title = "Sample responses"
    if material.before is None and material.after is None:
        return page.section(title, page.note("No evaluation was given; this section is left out."))
    if material.before and material.after:
        pairs = pair_samples(material.before, material.after)
        if not pairs:
            return page.section(title, page.note("The two evaluations share no problem with samples; none can be compared."))
        return page.section(title, *_pairs(pairs))
    given = material.before or material.after
    assert given is not None
    shown = [
        page.element("div", _prompt(sample), _response(sample), class_="sample") for sample in given.samples[:SHOWN_ROLLOUTS]
    ]
    return page.section(title, page.note("The first responses of the one evaluation given."), *shown)


def _pairs(pairs: list[Pair]) -> list[Html]:
    counts = Counter(pair.change for pair in pairs)
    told = ", ".join(f"{change} {counts[change]}" for change in CHANGES)
    parts = [page.note(f"First sample of each of {len(pairs)} shared problems: {told}. Shown are the first of each kind.")]
    for change in CHANGES:
        for pair in [pair for pair in pairs if pair.change == change][: SHOWN_PER_CHANGE[change]]:
            sides = (("Before RL", pair.before), ("After RL", pair.after))
            columns = [page.element("div", page.element("h4", name), _response(sample)) for name, sample in sides]
            grid = page.element("div", *columns, class_="pair")
            parts.append(
                page.element("div", page.element("h4", change.capitalize()), _prompt(pair.before), grid, class_="sample")
            )
    return parts


def rollouts(run: Path | None) -> Html:
    """The first responses of the first and of the last step that kept its rollouts."""
    title = "Rollouts"
    steps = rollout_steps(run) if run else []
    if run is None or not steps:
        missing = "No RL run was given" if run is None else "The RL run kept no rollouts"
        return page.section(title, page.note(f"{missing}; this section is left out."))
    parts: list[Html] = []
    for step in dict.fromkeys((steps[0], steps[-1])):
        records = read_rollouts(run, step)
        shown = _one_per_prompt(records)
        body = [page.element("div", _prompt(record), _response(record), class_="sample") for record in shown]
        about = f"Step {step}: {len(shown)} of {len(records)} rollouts, the first of each of the first prompts"
        parts.append(page.details(about, *body) if body else page.note(f"Step {step} kept no rollout."))
    return page.section(title, *parts)


def _one_per_prompt(records: list[Record]) -> list[Record]:
    first: dict[Any, Record] = {}
    for record in records:
        first.setdefault(str(record["prompt_id"]), record)
    return list(first.values())[:SHOWN_ROLLOUTS]


def _prompt(record: Record) -> Html:
    name = record.get("prompt_id", record.get("id", ""))
    facts = [
        f"prompt {name}",
        str(record.get("domain", "")),
        f"answer {record['answer']}" if record.get("answer") is not None else "",
    ]
    return page.join(
        [
            page.element("p", " · ".join(fact for fact in facts if fact), class_="meta"),
            page.clipped(as_text(record["prompt"])),
        ]
    )


def _response(record: Record) -> Html:
    right = record["reward"] >= 0.5
    facts = [f"reward {record['reward']:g}", str(record.get("reason") or ""), str(record.get("finish_reason") or "")]
    if number(record, "tokens") >= 0:
        trained = number(record, "trained_tokens")
        facts.append(f"{number(record, 'tokens'):,.0f} tokens" + (f", {trained:,.0f} trained" if trained >= 0 else ""))
    meta = page.element("span", " · ".join(fact for fact in facts if fact), class_="right" if right else "wrong")
    return page.join([page.element("p", meta, class_="meta", style="margin-top: 8px"), page.clipped(record["response"])])


def as_text(prompt: object) -> str:
    """A prompt as text: chat messages become `role: content` lines, anything else that is no text becomes JSON."""
    if isinstance(prompt, str):
        return prompt
    if isinstance(prompt, list) and all(isinstance(message, dict) and "content" in message for message in prompt):
        return "\n".join(f"{message.get('role', '')}: {message['content']}" for message in prompt)
    return json.dumps(prompt, ensure_ascii=False)
