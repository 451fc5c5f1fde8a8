#!/usr/bin/env python
"""Rate and peak memory of conversion at full width, against `cp` of the same files in the same run. Prints one JSON object.

    python tools/bench_convert.py --work DIR [--preset ring-lite] [--layers N]

Writes random weights of the published shape, copies them (`cp`), imports them, exports the checkpoint again and compares the
files by checksum. Every time includes `sync`. Needs twice the folder's size free at once; without --layers it takes as many
layers as fit, and says how many.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import shutil
import subprocess
import sys
import time
import zlib
from dataclasses import replace
from pathlib import Path
from typing import Any

from megatron_ring.config.declarations import parameter_counts
from megatron_ring.config.presets import get_preset
from megatron_ring.errors import UserError, run_main


def parse_args() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n\n")[0])
    parser.add_argument("--work", type=Path, required=True, help="folder to write into, on the disk to be measured")
    parser.add_argument("--preset", default="ring-lite", help="model shape (default: ring-lite)")
    parser.add_argument("--layers", type=int, help="layers (default: all, or as many as fit)")
    return parser.parse_args()


def layers_that_fit(preset: str, free: float) -> int:
    """Layers of `preset`, in bf16, that can be there twice."""
    shape = get_preset(preset)
    total = 2 * parameter_counts(shape)[0]
    layer = 2 * (parameter_counts(shape)[0] - parameter_counts(replace(shape, num_layers=shape.num_layers - 1))[0])
    lacking = max(0.0, total - free / 2)
    return shape.num_layers - math.ceil(lacking / layer)


def timed(command: list[str]) -> dict[str, float]:
    """Run a command and `sync`; seconds, and the peak resident memory of the command (GB)."""
    os.sync()
    began = time.perf_counter()
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE)
    assert process.stderr is not None
    said = process.stderr.read().decode()
    _, status, usage = os.wait4(process.pid, 0)
    if status:
        raise UserError(f"{' '.join(command[:4])} failed: {said.strip().splitlines()[-1:]}")
    os.sync()
    return {"seconds": time.perf_counter() - began, "peak_gb": usage.ru_maxrss * 1024 / 1e9}


def with_rate(result: dict[str, float], size: int, cp: dict[str, float] | None = None) -> dict[str, float]:
    """Add GB/s, and the share of the rate of `cp`."""
    rate = {"gb_per_second": size / 1e9 / result["seconds"]}
    return result | rate | ({"of_cp": cp["seconds"] / result["seconds"]} if cp else {})


def main() -> None:
    args = parse_args()
    args.work.mkdir(parents=True, exist_ok=True)
    hf, copy, checkpoint, back = (args.work / f"bench_{name}" for name in ("hf", "copy", "checkpoint", "back"))
    for path in (hf, copy, checkpoint, back):
        shutil.rmtree(path, ignore_errors=True)
    preset_layers, fitting = get_preset(args.preset).num_layers, layers_that_fit(args.preset, free_bytes(args.work) - 1e9)
    layers = args.layers or fitting
    if not 1 <= layers <= fitting:
        raise UserError(f"--work {args.work}: room for {fitting} layer(s) twice, not for {layers}")
    tools = Path(__file__).parent
    making = [sys.executable, str(tools / "make_random_hf.py"), "--preset", args.preset, "--layers", str(layers)]
    timed([*making, "--out", str(hf)])
    written = {path.name: checksum(path) for path in hf.glob("*.safetensors")}
    size = sum(path.stat().st_size for path in hf.iterdir())
    out: dict[str, Any] = {"preset": args.preset, "layers": layers, "of_layers": preset_layers, "gb": size / 1e9}
    out["cp"] = with_rate(timed(["cp", "-r", str(hf), str(copy)]), size)
    shutil.rmtree(copy)
    convert = [sys.executable, str(tools / "convert_hf.py")]
    out["import"] = with_rate(timed([*convert, "import", "--hf", str(hf), "--out", str(checkpoint)]), size, out["cp"])
    shutil.rmtree(hf)
    out["export"] = with_rate(
        timed([*convert, "export", "--checkpoint", str(checkpoint), "--out", str(back)]), size, out["cp"]
    )
    out["files_equal"] = written == {path.name: checksum(path) for path in back.glob("*.safetensors")}
    out["cores"] = len(os.sched_getaffinity(0))
    for path in (checkpoint, back):
        shutil.rmtree(path)
    print(json.dumps(out))


def free_bytes(folder: Path) -> int:
    return shutil.disk_usage(folder).free


def checksum(path: Path) -> int:
    """CRC-32 of a file."""
    crc = 0
    with open(path, "rb") as file:
        while block := file.read(1 << 24):
            crc = zlib.crc32(block, crc)
    return crc


if __name__ == "__main__":
    run_main(main)
