"""The report's sections, each from the material to markup. A part that is missing is left out with a note."""

from __future__ import annotations

import json
import math
import statistics
from collections.abc import Callable

from megatron_ring.analysis import page
from megatron_ring.analysis.comparison import Row
from megatron_ring.analysis.figures import evaluation_figure, png, rl_figure, sft_figure
from megatron_ring.analysis.material import Material, versions
from megatron_ring.analysis.page import Html
from megatron_ring.analysis.read_run import Evaluation, Run, number
from megatron_ring.analysis.statistics import Estimate
from megatron_ring.analysis.verdict import gain_interval, headline_gain, interval, paragraphs, percent, points

AddFigure = Callable[[str, bytes, str], Html]
"""Takes a name, PNG bytes and a caption; keeps the file under figures/ and returns the markup."""


def count(value: float) -> str:
    """A whole number with thousands separators; a dash when unknown."""
    return f"{value:,.0f}" if math.isfinite(value) else "–"


def short(value: float, digits: int = 4) -> str:
    """A number with some significant digits; a dash when unknown."""
    return f"{value:.{digits}g}" if math.isfinite(value) else "–"


def duration(seconds: float) -> str:
    """Seconds as `42 s`, `3.5 min` or `1.2 h`; a dash when unknown."""
    if not math.isfinite(seconds):
        return "–"
    return f"{seconds:.0f} s" if seconds < 90 else f"{seconds / 60:.1f} min" if seconds < 5400 else f"{seconds / 3600:.1f} h"


def header(material: Material, title: str, date: str) -> Html:
    """Title, headline tiles and the verdict."""
    parts = ["pretraining"] if material.pretrain is not None else []
    parts += [name for name in ("SFT", "RL") if getattr(material, name.lower()) is not None]
    parts += ["evaluation"] if material.rows else []
    parts += ["export"] if material.export else []
    told = [page.element("p", text) for text in paragraphs(material)]
    verdict = page.join(told) if told else page.note("Nothing was given that could be judged.")
    return page.join(
        [
            page.element("h1", title),
            page.note(f"{' → '.join(parts) or 'nothing given'} · written {date}"),
            page.element("div", *tiles(material), class_="tiles"),
            page.element("div", page.element("h2", "Verdict"), verdict, class_="verdict"),
        ]
    )


def tiles(material: Material) -> list[Html]:
    """Headline numbers, only those that are known."""
    found = []
    for label, estimate in (
        ("Pass@1 before RL", _overall(material, "before")),
        ("Pass@1 after RL", _overall(material, "after")),
    ):
        if estimate:
            found.append(page.tile(label, percent(estimate.value), f"95 % interval {interval(estimate)}"))
    value, detail = headline_gain(material.rows)
    if value:
        found.append(page.tile("Paired gain", value, detail))
    rl, sft = material.rl_tokens(), material.start_tokens()
    if rl > 0 and sft > 0:
        found.append(page.tile("Token efficiency", f"{rl / sft:.3g}", f"{count(rl)} RL / {count(sft)} SFT tokens"))
    return found


def _overall(material: Material, side: str) -> Estimate | None:
    return getattr(material.rows[0], side) if material.rows else None


def what_was_run(material: Material) -> Html:
    """Inputs with their sizes, versions and the folded configurations."""
    rows = []
    stages = (("pretraining", material.pretrain), ("SFT", material.sft), ("RL", material.rl))
    for stage, run in stages:
        if run is not None:
            seconds = sum(run.series("time/step")[1]) if run.series("time/step")[1] else math.nan
            tokens = material.rl_tokens() if stage == "RL" else number(run.metrics[-1], "tokens")
            rows.append((stage, run.path.name, count(len(run.metrics)), count(tokens), duration(seconds)))
    for stage, evaluation in (("evaluation before", material.before), ("evaluation after", material.after)):
        if evaluation is not None:
            checkpoint = evaluation.result["checkpoint"]
            rows.append((stage, checkpoint, "–", "–", duration(number(evaluation.result, "seconds"))))
    parts: list[Html] = []
    if rows:
        parts.append(page.table(("stage", "run or checkpoint", "steps", "trained tokens", "time"), rows, text_columns=2))
    installed = ", ".join(f"{name} {version}" for name, version in versions().items())
    parts.append(page.note(f"Installed where this report was written: {installed}."))
    for stage, run in stages:
        if run is not None and run.config:
            settings = page.table(("setting", "value"), run.config.items(), text_columns=2)
            parts.append(page.details(f"{stage} configuration ({len(run.config)} settings)", settings))
        elif run is not None:
            parts.append(page.note(f"The {stage} run has no config.yaml."))
    return page.section("What was run", *parts)


def sft(material: Material, add: AddFigure) -> Html:
    """Loss, entropy and the choice of the checkpoint that RL starts from."""
    title = "Supervised fine-tuning"
    if material.sft is None:
        return page.section(title, page.note("No SFT run was given; this section is left out."))
    selection = material.selection
    chosen = selection["checkpoint"] if selection else None
    band = (float(selection["band"][0]), float(selection["band"][1])) if selection and selection["band"] else None
    drawing = png(sft_figure(material.sft, material.epochs, chosen, band))
    caption = "Training loss and entropy by step, validation at the end of each epoch."
    parts = [
        add(
            "sft",
            drawing,
            caption
            + (" Shaded: the entropy band." if band else "")
            + (" Ringed: the checkpoint RL starts from." if chosen else ""),
        )
    ]
    if material.epochs:
        rows = [
            (
                f"{epoch.epoch:g}",
                epoch.checkpoint,
                count(epoch.step),
                count(epoch.tokens),
                short(epoch.loss),
                short(epoch.entropy),
            )
            for epoch in material.epochs
        ]
        marked = next((index for index, epoch in enumerate(material.epochs) if epoch.checkpoint == chosen), None)
        head = ("epoch", "checkpoint", "step", "trained tokens", "validation loss", "validation entropy")
        parts.append(page.table(head, rows, marked=marked, text_columns=2))
    else:
        parts.append(page.note("The run records no epoch with validation and a checkpoint."))
    reason = (
        page.element("p", selection["reason"])
        if selection
        else page.note("No checkpoint was chosen (no selection.json in the run).")
    )
    return page.section(title, *parts, reason)


def rl(material: Material, add: AddFigure) -> Html:
    """Curves and a table of RL."""
    title = "Reinforcement learning"
    if material.rl is None:
        return page.section(title, page.note("No RL run was given; this section is left out."))
    run = material.rl
    caption = "RL by step. Tokens per step: what was generated, and what carried gradient against the budget Φ."
    if len(run.series("reward/mean")[1]) >= 40:
        caption += " Faint: each step; bold: moving mean over a twentieth of the run."
    keys = {
        "mean reward": "reward/mean",
        "standard deviation of reward": "reward/std",
        "response length, mean": "response_length/mean",
        "response length, longest": "response_length/max",
        "tokens generated": "tokens/generated",
        "tokens trained": "tokens/trained",
        "gradient norm": "grad_norm",
        "entropy": "entropy",
        "KL to the reference": "kl",
        "share of clipped tokens": "clip_fraction",
        "|Δ log-prob| sampler − trainer, mean": "mismatch/logprob_abs_mean",
        "|Δ log-prob| sampler − trainer, largest": "mismatch/logprob_abs_max",
        "throughput (tokens/s)": "throughput/tokens_per_second",
    }
    rows = []
    for label, key in keys.items():
        values = [value for value in run.series(key)[1] if math.isfinite(value)]
        if values:
            numbers = (values[0], statistics.median(values), values[-1], min(values), max(values))
            rows.append((label, *(count(value) if abs(value) >= 1000 else short(value) for value in numbers)))
    summary = page.table(("by step", "first", "median", "last", "lowest", "highest"), rows)
    return page.section(title, add("rl", png(rl_figure(run)), caption), summary, time_note(run))


PHASES = ("offload", "sample", "reward", "select", "return", "pack", "first_pass", "train", "evaluation", "save_wait",
          "other")  # fmt: skip


def time_note(run: Run) -> Html:
    """Where the time of the steps went."""
    total = sum(run.series("time/step")[1])
    shares = [(name.replace("_", " "), sum(run.series(f"time/{name}")[1])) for name in PHASES]
    if not total > 0:
        return page.note("The run records no step times.")
    split = ", ".join(f"{name} {percent(seconds / total)}" for name, seconds in shares if seconds > 0.005 * total)
    return page.note(f"Time in {len(run.metrics)} steps: {duration(total)}{f' ({split})' if split else ''}.")


def evaluation(material: Material, add: AddFigure) -> Html:
    """Pass rates by domain with intervals, the gain, and how they were obtained."""
    title = "Evaluation"
    if not material.rows:
        return page.section(title, page.note("No evaluation was given; this section is left out."))
    missing = [name for name in ("before", "after") if getattr(material, name) is None]
    parts = [add("evaluation", png(evaluation_figure(material.rows)), "Pass@1 by domain; bars are 95 % intervals.")]
    head = ("problems", "before RL", "95 % interval", "after RL", "95 % interval", "gain (points)", "95 % interval")
    parts.append(page.table(head, [_cells(row) for row in material.rows]))
    parts += [page.note(f"No evaluation {name} RL was given, so there is no gain.") for name in missing]
    given = [(name, value) for name, value in (("before", material.before), ("after", material.after)) if value]
    parts.append(settings_table(given))
    methods = sorted({e.method for row in material.rows for e in (row.before, row.after, row.gain) if e})
    parts.append(
        page.note(f"Intervals: {'; '.join(methods)}. A gain is shown only over problems that both evaluations contain.")
    )
    parts += [page.note(text) for text in (disagreement(name, value) for name, value in given) if text]
    return page.section(title, *parts)


def _cells(row: Row) -> tuple[str, ...]:
    cells = [row.domain]
    for estimate in (row.before, row.after):
        cells += [percent(estimate.value), interval(estimate)] if estimate else ["–", "–"]
    return (*cells, *((points(row.gain.value), gain_interval(row.gain)) if row.gain else ("–", "–")))


def settings_table(given: list[tuple[str, Evaluation]]) -> Html:
    """How the evaluations sampled, folded."""
    keys = ["checkpoint", "preset", "temperature", "top_p", "max_new_tokens", "seed", "samples_per_problem", "problems"]
    keys += ["response_length_mean", "truncated_fraction", "seconds"]
    rows = [(key.replace("_", " "), *(_shown(value.result.get(key)) for _, value in given)) for key in keys]
    return page.details(
        "Evaluation settings", page.table(("", *(name for name, _ in given)), rows, text_columns=len(given) + 1)
    )


def _shown(value: object) -> str:
    return short(value) if isinstance(value, float) else "–" if value is None else str(value)


def disagreement(name: str, evaluation: Evaluation) -> str:
    """A remark when result.json and the samples tell different pass rates; empty otherwise."""
    groups = evaluation.rewards()
    if evaluation.samples and not groups:
        return f"The evaluation {name} has raw scores of a model alone, which are no pass rates."
    if not groups:
        return f"The evaluation {name} has no samples.jsonl; its intervals rest on the totals in result.json."
    rate = statistics.fmean(statistics.fmean(group) for group in groups.values())
    stated = number(evaluation.result, "pass_at_1")
    if abs(rate - stated) <= 1e-4:
        return ""
    differ = f"samples.jsonl gives {percent(rate)}, result.json says {percent(stated)}"
    return f"The evaluation {name}: {differ}; the samples are shown."


def export(material: Material) -> Html:
    """What was exported for Hugging Face."""
    title = "Exported model"
    if material.export is None:
        return page.section(title, page.note("No export was given; this section is left out."))
    found = material.export
    facts = [("directory", found.path.name), ("tensors", f"{found.tensors:,}"), ("parameters", f"{found.parameters:,}")]
    for key in (
        "architectures",
        "model_type",
        "num_hidden_layers",
        "hidden_size",
        "num_experts",
        "vocab_size",
        "torch_dtype",
        "dtype",
    ):
        if key in found.config:
            value = found.config[key]
            facts.append((key, value if isinstance(value, str) else json.dumps(value)))
    files = page.table(("file", "bytes"), [(name, f"{size:,}") for name, size in found.files.items()])
    return page.section(title, page.table(("", ""), facts, text_columns=2), page.details(f"{len(found.files)} files", files))
