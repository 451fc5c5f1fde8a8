"""What of a study's settings is there, in one folder or in several that machines have filled: for a page of its own."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from megatron_ring.analysis.study import Cell, by_setting, read_cell
from megatron_ring.analysis.study_cost import MARK, cost_table, job_time
from megatron_ring.errors import UserError

BEFORE = "before-chosen"  # the evaluation of the start
# Behind a setting's name: the evaluation of its last checkpoint; with a pretrained start RL evaluates itself.
AFTER = "-after"


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
        UserError: a run of a seed is missing, no seed is whole, or runs are of different length.
    """
    endings = {path.name.removeprefix("seed-") for folder in folders for path in folder.glob("seed-*")}
    found = sorted(int(ending) for ending in endings if ending.isdecimal())
    names = {name: (folder_of or {}).get(name, name) for name in (*known, *settings)}
    used = tuple(settings) or tuple(name for name in known if any(_place(folders, seed, names[name]) for seed in found))
    cells = {(name, seed): _cell(folders, name, names[name], seed) for name in used for seed in found}
    whole = [seed for seed in found if len(used) > 1 and all(cells[name, seed] for name in used)]
    missing = sorted(set(seeds or ()) - set(whole))
    if missing or not whole:
        every = ", ".join((BEFORE, *(names[name] for name in used)))
        raise UserError(f"{folders[0]}: no seed {', '.join(map(str, missing)) or 'at all'} with all of {every}; "
                        f"run what is missing, or gather with --partial")  # fmt: skip
    kept = [seed for seed in whole if seeds is None or seed in seeds]
    groups = by_setting([cell for (_, seed), cell in cells.items() if cell is not None and seed in kept])
    _check_alike([cell for group in groups.values() for cell in group])
    kinds = (BEFORE, *(f"{names[name]}{end}" for name in used for end in ("", AFTER)))
    jobs = {kind: [place for seed in kept if (place := _place(folders, seed, kind))] for kind in kinds}
    cost = cost_table({kind: [job_time(place) for place in places] for kind, places in jobs.items() if places})
    return Part(used, kept, sorted(set(found) - set(kept)), groups, cost)


def after(cell: Cell) -> float:
    """pass@1 after the last step: of the evaluation of the last checkpoint, or of the run's own."""
    last, found = cell.metrics[-1]["step"], cell.held_out
    if last not in found:
        raise UserError(f"{cell.runs[-1].path}: no evaluation after the last step; run the study to its end")
    return found[last]


def _place(folders: Sequence[Path], seed: int, name: str) -> Path | None:
    """The folder of a finished job; None where no machine has finished it."""
    paths = (folder / f"seed-{seed}" / name for folder in folders)
    return next((path for path in paths if (path / MARK).is_file()), None)


def _cell(folders: Sequence[Path], setting: str, name: str, seed: int) -> Cell | None:
    """A setting's run with what was measured before and after it; None where something has not finished."""
    run, before = _place(folders, seed, name), _place(folders, seed, BEFORE)
    if run is None or before is None:
        return None
    evaluation = _place(folders, seed, f"{name}{AFTER}")
    cell = read_cell(setting, seed, [run], {"before": before} | ({"after": evaluation} if evaluation else {}))
    return cell if cell.metrics[-1]["step"] in cell.held_out else None


def _check_alike(cells: Sequence[Cell]) -> None:
    """Raise UserError unless all have as many steps, and evaluations at the same ones: others are of other sizes."""
    first, *others = cells
    for cell in others:
        if len(cell.metrics) != len(first.metrics) or list(cell.held_out) != list(first.held_out):
            raise UserError(f"{cell.runs[-1].path}: {len(cell.metrics)} steps, evaluated at {list(cell.held_out)}; "
                            f"{first.runs[-1].path} has {len(first.metrics)}, at {list(first.held_out)}: gather runs of one "
                            f"study")  # fmt: skip
