#!/usr/bin/env python
"""Everything that one machine with several GPUs is to show about the whole model, in parts with time limits.

    python tools/bench_node.py --gpus 8 --out runs/node                                # Ring-lite, within an hour
    python tools/bench_node.py --gpus 1 --preset ring-lite-slice-4 --out runs/node     # what one GPU can show
    python tools/bench_node.py --gpus 8 --preset ring-tiny --out runs/node             # eight processes on a CPU

Parts, the most wanted first: the doctor, collectives, training with optimizer, sampling, SFT, three steps of C3PO, two more
that are killed on the way and continued, one more in another layout; then the other layouts, and a slice on 1, 2, 4, … GPUs.
Each part's figures are written when it ends, into OUT/results.jsonl and OUT/node.md. Parts that ended well are not run
again: the same command goes on where time ran out, or the machine was taken away.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from megatron_ring.config.checks import require
from megatron_ring.config.cli import parse
from megatron_ring.config.presets import get_preset
from megatron_ring.errors import UserError, run_main

if TYPE_CHECKING:  # `tools` may be a package of someone else's; a script's own folder is on the path
    from tools.node_page import page
    from tools.node_parts import SMALL, Part, Sizes, parts
else:
    from node_page import page
    from node_parts import SMALL, Part, Sizes, parts


@dataclass(frozen=True, kw_only=True)
class BenchNode:
    """Where, how much, and for how long."""

    out: Path
    """Folder of results, logs and runs: of Ring-lite some 510 GB, of a slice of 4 layers some 90 GB."""
    gpus: int = 8
    """GPUs of this machine; without any, processes on its CPU."""
    preset: str = "ring-lite"
    """The whole model."""
    slice: str | None = None
    """What is trained on 1, 2, 4, … GPUs (default: ring-lite-slice-4; the preset itself where that is ring-tiny)."""
    minutes: float = 60.0
    """No part is started that could end later."""
    only: str | None = None
    """Run only the parts whose name holds this text, and what they need."""
    memory: float = 80.0
    """Of a GPU (1e9 bytes). Training recomputes the least that fits; SFT and RL recompute everything."""
    offload_optimizer: bool | None = None
    """RL: the optimizer's state waits in host memory while responses are sampled (default: where training takes more than
    half of a GPU's memory)."""
    save_beside_a_step: bool = False
    """RL: also write a checkpoint while the third step goes on. It takes page-locked memory of its size."""
    dry_run: bool = False
    """Print the parts with their commands, and run nothing."""

    def __post_init__(self) -> None:
        require(1 <= self.gpus <= 16, f"--gpus is {self.gpus}: 1 to 16")
        require(self.minutes > 0, f"--minutes is {self.minutes}: give more than 0")
        get_preset(self.preset)

    def sizes(self) -> Sizes:
        return SMALL if self.preset == "ring-tiny" else Sizes()

    def parts(self) -> list[Part]:
        piece = self.slice or ("ring-tiny" if self.preset == "ring-tiny" else "ring-lite-slice-4")
        every = parts(self.gpus, self.preset, piece, self.sizes(), self.out, self.memory, self.offload_optimizer,
                      self.save_beside_a_step)  # fmt: skip
        wanted = {part.name for part in every if self.only is None or self.only in part.name}
        require(bool(wanted), f"--only {self.only}: no such part; there are {', '.join(part.name for part in every)}")
        for part in reversed(every):
            wanted |= set(part.needs) if part.name in wanted else set()
        return [part for part in every if part.name in wanted]


def main(config: BenchNode) -> None:
    chosen = config.parts()
    if config.dry_run:
        for part in chosen:
            print(f"{part.name} ({part.processes} process(es), {part.seconds} s): {' '.join(part.arguments()[1:])}")
        return
    config.out.mkdir(parents=True, exist_ok=True)
    results = read(config.out)
    began = time.monotonic()
    for number, part in enumerate(chosen, start=1):
        said = f"{number}/{len(chosen)} {part.name}"
        if results.get(part.name, {}).get("ended") == "well":
            say(f"{said}: done before")
            continue
        missing = [name for name in part.needs if results.get(name, {}).get("ended") != "well"]
        left = config.minutes * 60 - (time.monotonic() - began)
        if missing or left < min(part.seconds, 60):
            say(f"{said}: left out, {'it needs ' + ', '.join(missing) if missing else 'no time is left'}")
            continue
        say(f"{said}: at most {min(part.seconds, left):.0f} s")
        row = run(part, min(part.seconds, left), config.out)
        results[part.name] = row
        with (config.out / "results.jsonl").open("a") as stream:
            stream.write(json.dumps(row) + "\n")
        (config.out / "node.md").write_text(page(chosen, results, config.preset, config.sizes()))
        say(f"{said}: ended {row['ended']} after {row['seconds']:.0f} s")
    print((config.out / "node.md").read_text(), end="")
    bad = [part.name for part in chosen if results.get(part.name, {}).get("ended") != "well"]
    if bad:
        raise UserError(f"{config.out}: not done, or not well: {', '.join(bad)}; see {config.out / 'logs'}")


def say(text: str) -> None:
    print(f"bench_node: {text}", file=sys.stderr, flush=True)


def read(out: Path) -> dict[str, dict[str, Any]]:
    """Results so far, the last of each part. A line that was being written when all ended counts as none."""
    path, found = out / "results.jsonl", {}
    for line in path.read_text().splitlines(keepends=True) if path.is_file() else []:
        if line.endswith("\n"):
            row = json.loads(line)
            found[row["part"]] = row
    return found


def run(part: Part, seconds: float, out: Path) -> dict[str, Any]:
    """Run a part, twice where it is to be killed once. Its row says how it ended: "well", "badly", or "late"
    where its time limit killed it."""
    log = out / "logs" / f"{part.name}.log"
    log.parent.mkdir(parents=True, exist_ok=True)
    began = time.monotonic()
    killed_at = None
    with log.open("w+") as stream:
        status, killed_at = once(part, stream, began + seconds, part.kill_at)
        if killed_at is not None:
            status, _ = once(part, stream, began + seconds, None)
    row: dict[str, Any] = {"part": part.name, "processes": part.processes, "seconds": time.monotonic() - began,
                           "ended": {0: "well", None: "late"}.get(status, "badly")}  # fmt: skip
    if killed_at is not None:
        row["killed_after_lines"] = killed_at
    if status == 0:
        objects = [line for line in log.read_text().splitlines() if line.startswith("{") and line.endswith("}")]
        try:
            row["figures"] = part.figures(json.loads(objects[-1]) if objects else {}, part.run_dir)
        except (KeyError, IndexError, ValueError, OSError) as error:
            row |= {"ended": "badly", "figures": {"error": f"its output has no {error}"}}
    return row


def once(part: Part, stream: Any, until: float, kill_at: int | None) -> tuple[int | None, int | None]:
    """Exit status, None where time ran out; and after how many lines of metrics it was killed, if it was."""
    path = os.pathsep.join([str(Path(__file__).resolve().parents[1]), *filter(None, [os.environ.get("PYTHONPATH")])])
    environment = {"OMP_NUM_THREADS": "1", **os.environ, "PYTHONPATH": path}
    process = subprocess.Popen(
        part.arguments(), stdout=stream, stderr=stream, env=environment, start_new_session=True
    )  # fmt: skip
    try:
        while process.poll() is None:
            if time.monotonic() > until:
                return None, None
            lines = len(part.metrics()) if kill_at is not None else 0
            if kill_at is not None and lines >= kill_at:
                return None, lines
            time.sleep(0.2)
        return process.returncode, None
    finally:
        kill_session(process.pid)
        process.wait()


def kill_session(session: int) -> None:
    """End every process that a part has started: torchrun's ranks are sessions of their own, found by their parents."""
    parents: dict[int, int] = {}
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            parents[int(folder.name)] = int((folder / "stat").read_text().rpartition(")")[2].split()[1])
        except (OSError, ValueError, IndexError):
            continue
    family = {session}
    grown = True
    while grown:
        more = {child for child, parent in parents.items() if parent in family} - family
        family |= more
        grown = bool(more)
    for pid in family:
        try:
            os.kill(pid, signal.SIGKILL)
        except ProcessLookupError:
            continue


if __name__ == "__main__":
    run_main(lambda: main(parse(BenchNode, "bench_node.py", "The whole model on one machine, in parts with time limits.")))
