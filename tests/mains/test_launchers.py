"""`--dry-run` of every launcher: without GPUs, checkpoints and data, each builds and checks its whole configuration."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest

from megatron_ring.algorithm.objectives import OBJECTIVES
from tests.conftest import ROOT
from tests.forkserver import free_ports
from tests.mains.conftest import environment, run
from tests.mains.test_pipeline import metrics
from tests.processes import forked_python

SOURCED = ("env.sh", "launch.sh")
LAUNCHERS = sorted(str(path.relative_to(ROOT)) for path in ROOT.glob("examples/*/*.sh") if path.name not in SOURCED)
# What the output of some must hold besides.
FIGURES: dict[str, list[str]] = {
    "ring_lite/rl_math": [
        "256 GPU(s): TP=1 PP=1 EP=8 ETP=1; 256 data-parallel rank(s), 32 for experts",
        "16.80 B parameters, 2.75 B activated",
        "L = 512 a round x K = 16 samples = 8,192 responses",
        "prompt and response within 24,576 tokens",
        "Phi = 409,600 tokens for each of 256 data-parallel rank(s) = 104,857,600 a step, 409,600 per GPU",
        "24,576 tokens; at least 17 on each rank a step",
        "c3po, clip 0.2 below and 0.2 above, KL beta 0.001 (k3, in the loss), alpha_entropy 0.0005",
        "alpha_balance 1e-05, alpha_zloss 1e-07",
        "AdamW, lr 3e-06, constant after a linear warm-up over 2 of 150 steps",
        "temperature 1, top-p 1",
    ],
    "ring_lite/rl_code_science": ["prompt and response within 32,768 tokens", "L = 512 a round x K = 16", "409,600 per GPU"],
    "ring_lite/sft": [
        "256 packed sequences x 32,768 tokens = 8,388,608 tokens a step",
        "32,768 tokens; 1 on each of 256 data-parallel rank(s)",
        "3 epochs",
        "AdamW, lr 0.0003, cosine after a linear warm-up over 0.01 of all steps; weight decay 0.1",
    ],
    "ring_lite/general_sft": ["1 epochs"],
    "ring_lite_2507/reward_model": [
        "32 GPU(s): TP=1 PP=1 EP=8 ETP=1; 32 data-parallel rank(s), 4 for experts",
        "16.54 B parameters",
        "32 packed sequences x 8,192 tokens = 262,144 tokens a step",
        "-log sigmoid(r_c - r_r - m), the file's margins x 1; 0.01 x (r_c + r_r)^2; mean over pairs",
        "AdamW, lr 2e-06, cosine after a linear warm-up",
        "alpha_balance 1e-05, alpha_zloss 1e-07",
    ],
    "ring_lite_2507/curate": ["would curate", "long_cot", "--games all"],
    "ring_lite_2507/rl_math": ["L = 512 a round x K = 16", "prompt and response within 24,576 tokens", "of 137 steps"],
    "ring_lite_2507/rl_code_science_logic": ["prompt and response within 32,768 tokens", "of 167 steps"],
    "ring_lite_2507/rl_general": [
        "prompt and response within 16,384 tokens",
        "KL beta 0.01 (k3, in the loss)",
        "  reward model                    5.55  frozen, on the device",
    ],
    "ring_lite_2507/evaluate": ["as many to each problem as its benchmark has it", "top-p 0.95", "up to 30,720 new"],
    "ring_lite_2507/select": ["entropy 0.3 to 0.5 nats"],
    "ring_lite/evaluate": ["top-p 0.95", "30,720 new tokens", "16 response(s) to each problem"],
    "ring_lite/select": ["entropy 0.3 to 0.5 nats"],
    "slice/rl": ["1 GPU(s)", "4 layers, 64 experts; 2.84 B parameters", "L = 64 a round x K = 16 samples = 1,024 responses"],
    "tiny/rl": ["Phi = 6,144 tokens over all ranks", "L = 24 a round x K = 16", "895,616 parameters"],
    "tiny/objectives": ["c3po, clip 0.2", "dapo, clip 0.2 below and 0.28", "dr-grpo, clip 0.2", "gspo, clip 0.0003"],
    "tiny/rl grpo": ["grpo, clip 0.2 below and 0.2 above"],
    "slice/rl grpo": ["grpo, clip 0.2 below and 0.2 above"],
    "ring_lite/rl_code_science grpo": ["grpo, clip 0.2 below and 0.2 above"],
    "ring_lite/rl_math grpo": ["grpo, clip 0.2 below and 0.2 above, KL beta 0.001 (k3, in the loss), alpha_entropy 0.0005"],
    "ring_lite/rl_math dapo": ["dapo, clip 0.2 below and 0.28 above, KL beta 0.001"],
    "ring_lite/rl_math dr-grpo": ["dr-grpo, clip 0.2 below and 0.2 above, KL beta 0.001"],
    "ring_lite/rl_math gspo": ["gspo, clip 0.0003 below and 0.0004 above, KL beta 0.001"],
    "ring_lite/pretrain": [
        "2,048 sequences x 4,096 tokens = 8,388,608 tokens a step, from 256 by 256 over 1,000,000 sequences",
        "wsd after a linear warm-up over 2,000 of 1,000,000 steps, decay (sqrt) over the last 100,000",
        "attention and positions cross documents",
        "expert biases move by 0.001 a step",
    ],
    "ring_lite/continue": ["512 sequences x 16,384 tokens", "attention and positions are reset at documents"],
    "slice/pretrain": ["1 GPU(s)", "8 sequences x 8,192 tokens = 65,536 tokens a step"],
    "tiny/pretrain": ["16 sequences x 256 tokens", "895,616 parameters"],
    "tiny/layouts": ["2 GPU(s): TP=2 PP=1 EP=1", "2 GPU(s): TP=1 PP=1 EP=2", "2 GPU(s): TP=1 PP=2 EP=1"],
}  # fmt: skip
WITHOUT_MAIN = {
    "convert",
    "export",
    "select",
    "data",
    "pretrain_data",
    "write",
    "curate",
    "start",
    "pool",
    "choose",
    "c3po",
    "epochs",
    "stages",
    "fp8",
}


def dry_run(launcher: str, out: Path, *flags: str, **settings: str) -> subprocess.CompletedProcess[str]:
    given = forked_python(OUT=str(out)) | settings
    return run(["bash", launcher, "--dry-run", *flags], env=given)


def peaks(text: str) -> list[tuple[float, float]]:
    found = re.findall(r"^  peak in \w+ +([\d.]+)  of ([\d.]+)", text, re.M)
    return [(float(peak), float(limit)) for peak, limit in found]


@pytest.mark.parametrize("launcher", LAUNCHERS)
def test_a_dry_run_checks_everything_and_starts_nothing(launcher: str, tmp_path: Path) -> None:
    out = tmp_path / "nothing"
    done = dry_run(launcher, out)
    assert done.returncode == 0, done.stdout + done.stderr
    text, name = done.stdout + done.stderr, Path(launcher).stem
    assert not out.exists()
    assert "dry run" in text
    if name not in WITHOUT_MAIN:
        assert "dry run of " in text and "layout  " in text
        assert peaks(text) and all(0 < peak <= limit == 74.5 for peak, limit in peaks(text))
    for figure in FIGURES.get(f"{Path(launcher).parent.name}/{name}", []):
        assert figure in text, text


@pytest.mark.parametrize("named", [named for named in FIGURES if " " in named])
def test_another_objective_is_a_change_of_one_variable(named: str, tmp_path: Path) -> None:
    launcher, objective = named.split()
    done = dry_run(f"examples/{launcher}.sh", tmp_path, OBJECTIVE=objective)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "Phi" not in done.stdout and all(figure in done.stdout for figure in FIGURES[named]), done.stdout
    if objective == "gspo":
        for flags in (("--objective.name", objective), (f"--objective.name={objective}",)):
            assert dry_run(f"examples/{launcher}.sh", tmp_path, *flags).stdout == done.stdout


@pytest.mark.parametrize("objective", [None, *OBJECTIVES])
def test_objectives_share_no_folder_after_sft(objective: str | None, tmp_path: Path) -> None:
    """By the commands themselves, which `echo` in the place of Python prints. `{}`: where an objective's name stands."""
    expected = {
        "ring_lite/sft": ["--run-dir {out}/sft "],
        "ring_lite/rl_math": ["--run-dir {out}/rl_math{} ", "--init-from {out}/sft/"],
        "ring_lite/rl_code_science": ["--run-dir {out}/rl_code_science{} ", "--init-from {out}/rl_math{}/"],
        "ring_lite/general_sft": ["--run-dir {out}/general{} ", "--init-from {out}/rl_code_science{}/"],
        "ring_lite/evaluate": ["--out {out}/evaluation{} ", "--checkpoint {out}/general{}/"],
        "ring_lite/export": ["--out {out}/hf{} ", "--checkpoint {out}/general{}/"],
        "ring_lite_2507/rl_code_science_logic": ["--init-from {out}/rl_math{}/"],
        "ring_lite_2507/rl_general": ["--run-dir {out}/rl_general{} ", "--init-from {out}/rl_code_science_logic{}/"],
        "ring_lite_2507/general_sft": ["--run-dir {out}/general{} ", "--init-from {out}/rl_general{}/"],
        "ring_lite_2507/evaluate": ["--out {out}/evaluation{} ", "--checkpoint {out}/general{}/"],
        "slice/rl": ["--run-dir {out}/rl{} ", "--init-from {out}/sft/"],
        "slice/evaluate": ["--out {out}/evaluation{} ", "--checkpoint {out}/rl{}/"],
        "slice/export": ["--out {out}/hf{} ", "--checkpoint {out}/rl{}/"],
        "tiny/rl": ["--run-dir {out}/rl{} "],
        "tiny/evaluate": ["--out {out}/after{} ", "--checkpoint {out}/rl{}/"],
        "tiny/export": ["--out {out}/hf{} ", "--checkpoint {out}/rl{}/"],
    }
    suffix = "" if objective in (None, "c3po") else f"-{objective}"
    settings = {} if objective is None else {"OBJECTIVE": objective}
    for launcher, wanted in expected.items():
        done = dry_run(f"examples/{launcher}.sh", tmp_path, PYTHON="echo", **settings)
        assert done.returncode == 0, done.stderr
        for text in wanted:
            assert text.format(suffix, suffix, out=tmp_path) in done.stdout, done.stdout
        if "/rl" in launcher:
            assert f"--objective.name {objective or 'c3po'} " in done.stdout
            assert ("--budget.tokens" in done.stdout) == (not suffix)


def test_all_stages_have_launchers() -> None:
    assert {f"examples/ring_lite_2507/{stage}.sh" for stage in (
        "curate", "convert", "sft", "select", "rl_math", "rl_code_science_logic", "reward_model", "rl_general",
        "general_sft", "evaluate", "export",
    )} <= set(LAUNCHERS)  # fmt: skip
    assert {f"examples/ring_lite/{stage}.sh" for stage in (
        "convert", "sft", "select", "rl_math", "rl_code_science", "general_sft", "evaluate", "export"
    )} <= set(LAUNCHERS)  # fmt: skip
    assert {f"examples/{name}.sh" for name in ("ring_lite/pretrain", "ring_lite/continue", "tiny/demo_pretrain")} <= set(
        LAUNCHERS
    )
    stages = ("data", "pretrain", "sft", "rl", "evaluate", "export")
    assert {f"examples/{folder}/{stage}.sh" for folder in ("slice", "tiny") for stage in stages} <= set(LAUNCHERS)


@pytest.mark.parametrize(
    "stage",
    [
        *(f"ring_lite/{name}" for name in ("sft", "rl_math", "rl_code_science", "evaluate")),
        *(f"ring_lite_2507/{name}" for name in ("rl_general", "evaluate")),
    ],
)
def test_one_node_does_the_same_work_for_a_gpu(stage: str, tmp_path: Path) -> None:
    done = dry_run(f"examples/{stage}.sh", tmp_path / "nothing", NODES="1")
    assert done.returncode == 0 and "8 GPU(s): TP=1 PP=1 EP=8 ETP=1" in done.stdout, done.stdout + done.stderr
    if "/rl" in stage:
        assert "L = 16 a round x K = 16" in done.stdout and "409,600 per GPU" in done.stdout
        assert "2 prompts = 32 responses on each rank" in done.stdout and "of pinned host memory" in done.stdout


def test_flags_go_on_to_the_main_and_mistakes_end_with_status_2(tmp_path: Path) -> None:
    done = dry_run("examples/ring_lite/rl_math.sh", tmp_path, "--steps", "7")
    assert done.returncode == 0 and "7 steps" in done.stdout
    done = dry_run("examples/ring_lite/rl_math.sh", tmp_path, RECOMPUTE="none")
    assert done.returncode == 2 and "does not fit: " in done.stderr and "--recompute full" in done.stderr
    done = dry_run("examples/ring_lite/rl_math.sh", tmp_path, "--parallel.expert", "7")
    assert done.returncode == 2 and "EP*ETP*PP = 7 does not divide 256" in done.stderr


def test_a_launcher_without_the_stage_before_it_says_so(tmp_path: Path) -> None:
    given = forked_python(OUT=str(tmp_path), NODES="1")
    stage = "run the stage before this one"
    launchers = {"ring_lite/rl_math": "run select.sh", "ring_lite/export": stage, "study/c3po": stage, "study/stages": stage}
    for launcher, said in launchers.items():
        done = run(["bash", f"examples/{launcher}.sh"], env=given)
        assert done.returncode == 2 and said in done.stderr and done.stderr.count("\n") == 1, done.stderr


# What Slurm does on its nodes, here: the task once for each, all at a time.
SRUN = """#!/usr/bin/env bash
[ "$1 $2 $3" = "--kill-on-bad-exit=1 --ntasks-per-node=1 --cpus-per-task=7" ] || exit 9
shift 3
tasks=()
for node in $(seq 0 $((SLURM_NNODES - 1))); do SLURM_NODEID=$node "$@" & tasks+=($!); done
for task in "${tasks[@]}"; do wait "$task" || exit; done
"""
SCONTROL = """#!/usr/bin/env bash
if [ "$1" = requeue ]; then echo "$2" > "$(dirname "$0")/requeued"; exit; fi
echo localhost
for number in $(seq 2 4000); do echo "node$number"; done
"""


def slurm(folder: Path, job: int, *arguments: str, **settings: str) -> subprocess.CompletedProcess[str]:
    """examples/slurm.sh inside an allocation of two nodes of one GPU."""
    folder.mkdir()
    for name, text in (("srun", SRUN), ("scontrol", SCONTROL)):
        (folder / name).write_text(text)
        (folder / name).chmod(0o755)
    given = {**forked_python(), "SLURM_JOB_ID": str(job), "SLURM_JOB_NODELIST": "n[1-4000]", "SLURM_NNODES": "2",
             "SLURM_GPUS_ON_NODE": "1", "SLURM_CPUS_PER_TASK": "7", **settings}  # fmt: skip
    given["PATH"] = f"{folder}:{given['PATH']}"
    return run(["bash", "examples/slurm.sh", *arguments], env=given)


def test_slurm_runs_a_launcher_on_every_node(tmp_path: Path) -> None:
    launcher = tmp_path / "launcher.sh"
    launcher.write_text('echo "node $NODE_RANK of $NODES x $GPUS, $MASTER_ADDR:$MASTER_PORT, $*"\n')
    done = slurm(tmp_path / "bin", 41, str(launcher), "--steps", "3 4")
    said = [f"node {node} of 2 x 1, localhost:20041, --steps 3 4" for node in (0, 1)]
    assert sorted(done.stdout.splitlines()) == said and done.returncode == 0, done.stderr
    assert not (tmp_path / "bin" / "requeued").exists()
    nothing = run(["bash", "examples/slurm.sh"])
    assert nothing.returncode == 2 and "name a launcher" in nothing.stderr


def test_a_job_that_is_asked_to_stop_goes_back_into_the_queue(tmp_path: Path) -> None:
    """The batch shell gets the signal, here from its first task, and hands it on; the launchers do not heed it."""
    folder, launcher = tmp_path / "bin", tmp_path / "launcher.sh"
    folder.mkdir()
    (folder / "scancel").write_text(f'#!/usr/bin/env bash\necho "$*" >> "{tmp_path}/asked"\n')
    (folder / "scancel").chmod(0o755)
    launcher.write_text(
        'kill -USR1 $$; [ "$NODE_RANK" = 0 ] && kill -USR1 "$BATCH"\n'
        f'for _ in $(seq 500); do [ -e "{tmp_path}/asked" ] && exit 1; sleep 0.02; done\n'
    )
    batch = tmp_path / "batch.sh"
    batch.write_text('export BATCH=$$\n. examples/slurm.sh "$@"\n')
    for name, text in (("srun", SRUN), ("scontrol", SCONTROL)):
        (folder / name).write_text(text)
        (folder / name).chmod(0o755)
    given = environment(SLURM_JOB_ID="41", SLURM_JOB_NODELIST="n[1-2]", SLURM_NNODES="2", SLURM_CPUS_PER_TASK="7")
    given["PATH"] = f"{folder}:{given['PATH']}"
    done = run(["bash", str(batch), str(launcher)], env=given)
    assert done.returncode == 1 and (folder / "requeued").read_text() == "41\n", done.stderr
    assert (tmp_path / "asked").read_text() == "--signal=USR1 41\n"


@pytest.mark.slow
@pytest.mark.distributed
def test_two_nodes_meet_and_train(tiny_data: Path, tmp_path: Path) -> None:
    """torchrun's rendezvous, as launch.sh asks for it, between two launchers; the same losses as of one process."""
    for out in ("one", "two"):
        (tmp_path / out).mkdir()
        (tmp_path / out / "data").symlink_to(tiny_data)
    flags = ["examples/tiny/sft.sh", "--max-steps", "3", "--data.global-batch", "2"]
    job = next(free_ports()) - 20_000  # the launcher takes port 20000 + job
    two = slurm(tmp_path / "bin", job, *flags, OUT=str(tmp_path / "two"), PYTHON=sys.executable)
    assert two.returncode == 0, two.stderr
    one = run(["bash", *flags], env=forked_python(OUT=str(tmp_path / "one")))
    assert one.returncode == 0, one.stderr
    losses = [[row["loss"] for row in metrics(tmp_path / out / "sft")] for out in ("one", "two")]
    assert len(losses[0]) == 3 and losses[1] == pytest.approx(losses[0], rel=1e-5)


def test_a_dry_run_through_slurm_needs_no_allocation(tmp_path: Path) -> None:
    given = environment(PYTHON=sys.executable, OUT=str(tmp_path / "nothing"))
    done = run(["bash", "examples/slurm.sh", "examples/ring_lite/sft.sh", "--dry-run"], env=given)
    assert done.returncode == 0 and "dry run of sft" in done.stdout, done.stderr


def test_no_launcher_kills_processes_or_repeats_flags() -> None:
    seen: dict[tuple[str, str], Path] = {}
    for path in [*ROOT.glob("examples/*/*.sh"), *ROOT.glob("examples/*.sh")]:
        text = path.read_text()
        assert not re.search(r"(^|[;&|(]|exec)\s*(pkill|killall|kill)\b", text, re.M), path
        for line in text.splitlines():
            if line.count("--") >= 2 and not line.startswith("#"):
                assert seen.setdefault((path.parent.name, line.strip()), path) == path, line
