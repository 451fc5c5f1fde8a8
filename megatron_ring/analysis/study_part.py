"""What of a study's settings is there, in one folder or in several that machines have filled: for a page of its own."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path

from megatron_ring.analysis.read_run import read_evaluation
from megatron_ring.analysis.study import Cell, by_setting, read_cell
from megatron_ring.analysis.study_cost import MARK, cost_table, job_time
from megatron_ring.errors import UserError

BEFORE = "before-chosen"  # the evaluation of the start
# Behind a setting's name: the evaluation of its last checkpoint; with a pretrained start RL evaluates itself.
AFTER = "-after"
# Of config.yaml: what two seeds of a setting must have in common, or they are of two studies.
SIZES = ("prompts_per_step", "samples_per_prompt", "budget.tokens", "sampling.max_new_tokens", "optimizer.lr")


@dataclass(frozen=True)
class Part:
    """Settings that were all run under the same seeds, from one start.

    Attributes:
        left: seeds that lack some run.
        text: says all this in a line.
        cost: a table of what the runs cost.
    """

    settings: tuple[str, ...]
    seeds: list[int]
    left: list[int]
    groups: dict[str, list[Cell]]
    cost: str

    @property
    def text(self) -> str:
        left = f" Left out, as runs of theirs are missing: {', '.join(map(str, self.left))}." if self.left else ""
        return f"Settings {', '.join(self.settings)}; seeds {', '.join(map(str, self.seeds))}.{left}\n"


def gather(
    folders: Sequence[Path], known: Sequence[str], seeds: Sequence[int] | None = None, settings: Sequence[str] = (),
    folder_of: Mapping[str, str] | None = None,
) -> Part:  # fmt: skip
    """Read the finished jobs of folders seed-N/SETTING.

    Args:
        known: the study's settings, in the order of the page.
        seeds: those that must be there; None: all that are whole.
        settings: those that are compared (none: all known ones that some seed has).
        folder_of: settings whose folder has another name.

    Raises:
        UserError: as `whole_seeds`.
    """
    names = {name: (folder_of or {}).get(name, name) for name in (*known, *settings)}
    found = _seeds(folders)
    used = tuple(settings) or tuple(name for name in known if any(place(folders, seed, names[name]) for seed in found))

    def read(seed: int) -> list[Cell]:
        cells = [_cell(folders, name, names[name], seed) for name in used]
        return [cell for cell in cells if cell is not None] if len(used) > 1 and all(cells) else []

    needed = (BEFORE, *(names[name] for name in used))
    timed = (BEFORE, *(f"{names[name]}{end}" for name in used for end in ("", AFTER)))
    return whole_seeds(folders, used, seeds, read, needed, timed, BEFORE)


def whole_seeds(
    folders: Sequence[Path], settings: tuple[str, ...], seeds: Sequence[int] | None, read: Callable[[int], list[Cell]],
    needed: Sequence[str], timed: Sequence[str], before: str,
) -> Part:  # fmt: skip
    """The seeds that have all there is to compare.

    Args:
        seeds: those that must be there; None: all that are whole.
        read: the cells of a seed, one for each setting; none where something has not finished.
        needed: jobs that an error names.
        timed: jobs whose times are added up.
        before: the evaluation of where a seed's runs began.

    Raises:
        UserError: a run of a seed is missing, no seed is whole, or runs of a seed are of other sizes or began elsewhere.
    """
    found = _seeds(folders)
    cells = {seed: read(seed) for seed in found if seeds is None or seed in seeds}
    whole = [seed for seed in cells if cells[seed]]
    missing = sorted(set(seeds or ()) - set(whole))
    if missing or not whole:
        raise UserError(f"{folders[0]}: no seed {', '.join(map(str, missing)) or 'at all'} with all of {', '.join(needed)}; "
                        f"run what is missing, or gather with --partial")  # fmt: skip
    groups = by_setting([cell for seed in whole for cell in cells[seed]])
    _check_alike(groups)
    for seed in whole:
        _check_starts({path.parent for job in needed if (path := place(folders, seed, job))}, before)
    jobs = {kind: [path for seed in whole if (path := place(folders, seed, kind))] for kind in timed}
    cost = cost_table({kind: [job_time(path) for path in paths] for kind, paths in jobs.items() if paths})
    return Part(settings, whole, sorted(set(cells) - set(whole)), groups, cost)


def after(cell: Cell) -> float:
    """pass@1 after the last step: of the evaluation of the last checkpoint, or of the run's own."""
    last, found = cell.metrics[-1]["step"], cell.held_out
    if last not in found:
        raise UserError(f"{cell.runs[-1].path}: no evaluation after the last step; run the study to its end")
    return found[last]


def _seeds(folders: Sequence[Path]) -> list[int]:
    endings = {path.name.removeprefix("seed-") for folder in folders for path in folder.glob("seed-*")}
    return sorted(int(ending) for ending in endings if ending.isdecimal())


def place(folders: Sequence[Path], seed: int, name: str) -> Path | None:
    """The folder of a finished job; None where no machine has finished it."""
    paths = (folder / f"seed-{seed}" / name for folder in folders)
    return next((path for path in paths if (path / MARK).is_file()), None)


def _cell(folders: Sequence[Path], setting: str, name: str, seed: int) -> Cell | None:
    """A setting's run with what was measured before and after it; None where something has not finished."""
    run, before = place(folders, seed, name), place(folders, seed, BEFORE)
    if run is None or before is None:
        return None
    evaluation = place(folders, seed, f"{name}{AFTER}")
    cell = read_cell(setting, seed, [run], {"before": before} | ({"after": evaluation} if evaluation else {}))
    return cell if cell.metrics[-1]["step"] in cell.held_out else None


def _check_alike(groups: Mapping[str, Sequence[Cell]]) -> None:
    """Raise UserError unless all have as many steps, and evaluations at the same ones, and the seeds of a setting are of one
    size."""
    first, *others = (cell for group in groups.values() for cell in group)
    for cell in others:
        if len(cell.metrics) != len(first.metrics) or list(cell.held_out) != list(first.held_out):
            raise UserError(f"{cell.runs[-1].path}: {len(cell.metrics)} steps, evaluated at {list(cell.held_out)}; "
                            f"{first.runs[-1].path} has {len(first.metrics)}, at {list(first.held_out)}: gather runs of one "
                            f"study")  # fmt: skip
    for first, *others in groups.values():
        for cell in others:
            for (path, sizes), (at, wanted) in zip(_sizes(cell), _sizes(first), strict=False):
                if sizes != wanted:
                    raise UserError(f"{path}: {sizes}; {at} has {wanted}: gather runs of one study")


def _check_starts(roots: set[Path], before: str) -> None:
    """Raise UserError where a seed's runs, in folders of several machines, began at different checkpoints. A folder that has
    not evaluated its start is taken as it is."""
    starts = {
        root: read_evaluation(root / before).result.get("checkpoint_fingerprint")
        for root in sorted(roots)
        if (root / before / MARK).is_file()
    }
    for (first, start), (root, other) in pairwise(starts.items()):
        if start != other:
            said = f"{root}: its runs began at another checkpoint than those of {first}"
            raise UserError(f"{said}: gather each by itself")


def _sizes(cell: Cell) -> list[tuple[Path, str]]:
    """Of each run its steps and what its config.yaml says of their size; of each evaluation its problems and answers."""
    found = []
    for run in cell.runs:
        told = [f"{key} {run.config[key]}" for key in SIZES if key in run.config]
        found.append((run.path, ", ".join([f"{len(run.metrics)} steps", *told])))
    for each in cell.evaluations.values():
        answers = each.result.get("samples_per_problem", "?")
        found.append((each.path, f"{each.result['problems']} problems, answers to each {answers}"))
    return found
