"""Pretraining as a real process: what it writes, going on, another layout or batch, a longer context, what is refused."""

from __future__ import annotations

import json
import shutil
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch

from megatron_ring.checkpoint.folder import checkpoint_folder
from megatron_ring.checkpoint.reading import CheckpointReader
from megatron_ring.checkpoint.tensor_rules import Box
from megatron_ring.data.bpe import train_bpe
from tests.conftest import ROOT
from tests.corpus.writing import write_corpus
from tests.mains.conftest import command, rl_flags, run
from tests.mains.test_metrics_reference import differences, documented, written
from tests.mains.test_pipeline import kill_after, metrics, timeless, weights

Fails = Callable[..., str]


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two corpora of this project's own pages and sources, the second without a manifest; a tokenizer of 300 tokens."""
    from megatron_ring.data.tokenizer import RingTokenizer

    folder = tmp_path_factory.mktemp("corpora")
    pages = [path.read_text()[:3000] for path in sorted((ROOT / "docs").glob("*.md"))]
    sources = [path.read_text()[:2000] for path in sorted((ROOT / "megatron_ring/run").glob("*.py"))]
    train_bpe([*pages, *sources], 300, folder / "tokenizer")
    tokenizer = RingTokenizer.load(folder / "tokenizer")
    prepare(folder / "pages", pages, folder / "tokenizer")
    write_corpus(folder / "code", [[*tokenizer.encode(text), tokenizer.eos_id] for text in sources], np.uint16)
    return folder


def prepare(prefix: Path, texts: list[str], tokenizer: Path) -> None:
    source = prefix.with_suffix(".jsonl")
    source.write_text("".join(json.dumps({"text": text}) + "\n" for text in texts))
    done = run([sys.executable, "tools/prepare_corpus.py", "--input", str(source), "--out", str(prefix), "--tokenizer",
                str(tokenizer), "--workers", "1"])  # fmt: skip
    assert done.returncode == 0, done.stderr


def flags(data: Path, run_dir: Path, *more: str) -> list[str]:
    return ["--run-dir", str(run_dir), "--preset", "ring-tiny", "--data.train", f"{data / 'pages'}:2", f"{data / 'code'}:1",
            "--data.tokenizer", str(data / "tokenizer"), "--data.sequence-length", "64", "--data.global-batch", "4",
            "--data.split", "80", "10", "10", "--steps", "6", "--save-every", "2", "--validation-every", "3",
            "--validation-samples", "3", "--optimizer.lr", "2e-3", "--optimizer.schedule", "wsd",
            "--optimizer.warmup-steps", "1", *more]  # fmt: skip


@pytest.fixture(scope="module")
def base(data: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished run, with everything on that adds a key."""
    out = tmp_path_factory.mktemp("runs") / "base"
    more = ["--router.bias-rate", "1e-3", "--alarms.action", "warn", "--alarms.entropy-floor", "99"]
    done = run(command("megatron_ring.pretrain", *flags(data, out, *more)), really=True)
    assert done.returncode == 0, done.stderr
    assert "pages: " in done.stdout and "66.67% of the blend\n" in done.stdout
    assert "33.33% of the blend; without a manifest, so its tokenizer cannot be checked\n" in done.stdout
    return out


@pytest.mark.slow
def test_it_writes_its_run_directory(base: Path, data: Path) -> None:
    rows = metrics(base)
    assert differences(written(base), documented("Pretraining")) == ([], [])
    assert [row["samples"] for row in rows] == [4, 8, 12, 16, 20, 24] and rows[-1]["tokens"] == 24 * 64
    assert rows[-1]["loss"] < rows[0]["loss"] and [row["step"] for row in rows if "validation/loss" in row] == [3, 6]
    for name in ("pages", "code"):  # a token of this tokenizer is more than a byte: fewer bits for each
        per_token = rows[-1][f"validation/loss/{name}"] / np.log(2)
        assert 1.0 < per_token / rows[-1][f"validation/bits_per_byte/{name}"] < 3.0
    assert all(0 <= row["router/load_min"] <= 1 <= row["router/load_max"] for row in rows)
    again = run(command("megatron_ring.pretrain", "--config", str(base / "config.yaml")))
    assert again.returncode == 0 and "all 6 steps are done" in again.stdout and metrics(base) == rows, again.stderr


@pytest.mark.slow
def test_killed_it_continues_to_the_same_bits(data: Path, tmp_path: Path) -> None:
    whole, out = tmp_path / "whole", tmp_path / "killed"
    more = ["--data.reset-at-document", "--router.bias-rate", "1e-3", "--steps", "16", "--save-every", "4",
            "--validation-every", "8", "--data.micro-batch-tokens", "140"]  # fmt: skip
    assert run(command("megatron_ring.pretrain", *flags(data, whole, *more))).returncode == 0
    arguments = command("megatron_ring.pretrain", *flags(data, out, *more))
    kill_after(arguments, out, 6)
    done = run(arguments)
    assert done.returncode == 0 and "continuing after step" in done.stdout, done.stderr
    assert timeless(metrics(out)) == timeless(metrics(whole)) and weights(out) == weights(whole)


@pytest.mark.slow
@pytest.mark.distributed
def test_other_ranks_another_batch_and_another_blend_go_on_where_the_data_stood(data: Path, tmp_path: Path) -> None:
    out, alone = tmp_path / "out", tmp_path / "alone"
    constant = ["--optimizer.schedule", "constant"]
    first = flags(data, out, *constant, "--steps", "3")
    assert run(command("megatron_ring.pretrain", *first, processes=2)).returncode == 0
    done = run(command("megatron_ring.pretrain", *flags(data, out, *constant)))
    assert done.returncode == 0 and "another layout than before" in done.stdout, done.stderr
    assert run(command("megatron_ring.pretrain", *flags(data, alone, *constant))).returncode == 0
    ours, theirs = metrics(out), metrics(alone)
    for name in ("loss", "samples", "data/epochs/pages", "data/epochs/code"):
        assert [row[name] for row in ours] == pytest.approx([row[name] for row in theirs], rel=1e-4)
    place = json.loads((out / "checkpoints/step_6/manifest.json").read_text())["extra"]["corpus"]
    other = [*constant, "--data.train", str(data / "code"), "--data.global-batch", "2", "--steps", "7"]
    done = run(command("megatron_ring.pretrain", *flags(data, out, *other)))
    assert done.returncode == 0 and "are no longer in the blend" in done.stdout, done.stderr
    assert metrics(out)[-1]["samples"] == 26
    now = json.loads((out / "checkpoints/step_7/manifest.json").read_text())["extra"]["corpus"]
    assert sorted(n - place["read"][key] for key, n in now["read"].items()) == [0, 2]


@pytest.mark.slow
def test_a_longer_context_from_a_checkpoint_with_its_optimizer(base: Path, data: Path, tmp_path: Path) -> None:
    latest = str(base / "checkpoints/latest")
    given = ["--init-from", latest, "--init-state", "all", "--steps", "2", "--optimizer.decay-steps", "1"]
    start = [flag for flag in flags(data, tmp_path / "long", *given) if flag not in ("--preset", "ring-tiny")]
    longer = [*start, "--router.bias-rate", "1e-3"]
    done = run(command("megatron_ring.pretrain", *longer))
    assert done.returncode == 0 and "after 24 sequences" in done.stdout, done.stderr
    assert [row["samples"] for row in metrics(tmp_path / "long")] == [28, 32]
    yarn = ["--run-dir", str(tmp_path / "yarn"), "--context.positions", "2048", "--context.yarn-factor", "2",
            "--data.sequence-length", "128"]  # fmt: skip
    done = run(command("megatron_ring.pretrain", *longer, *yarn))
    assert done.returncode == 0 and "the corpora begin anew" in done.stdout, done.stderr
    assert "sequence_length 64 -> 128" in done.stdout
    shape = json.loads((tmp_path / "yarn/checkpoints/step_2/manifest.json").read_text())["model"]
    assert shape["max_positions"] == 2048 and shape["rope_scaling"]["original_max_positions"] == 1024
    again = run(command("megatron_ring.pretrain", *longer, *yarn, "--steps", "3"))
    assert again.returncode == 0 and len(metrics(tmp_path / "yarn")) == 3, again.stderr


@pytest.mark.slow
@pytest.mark.parametrize("biases", [False, True])
def test_a_base_model_becomes_a_published_folder_and_goes_through_sft_and_rl(
    data: Path, tmp_path: Path, biases: bool
) -> None:
    """Expert biases go with it, and stay as they are where later stages have no rate."""
    base, hf, tuned, last = (tmp_path / name for name in ("base", "hf", "sft", "rl"))
    shutil.copytree(data / "tokenizer", tmp_path / "tokenizer")
    more = ["--router.bias-rate", "1e-3"] if biases else []
    done = run(command("megatron_ring.pretrain", *flags(data, base, "--steps", "2", *more)))
    assert done.returncode == 0, done.stderr
    export = ["export", "--checkpoint", str(base / "checkpoints/latest"), "--out", str(hf), "--tokenizer",
              str(data / "tokenizer")]  # fmt: skip
    done = run([sys.executable, "tools/convert_hf.py", *export])
    assert done.returncode == 0, done.stderr
    (tmp_path / "sft.jsonl").write_text(json.dumps({"prompt": "1 + 1?", "response": "2"}) + "\n")
    sft = ["--run-dir", str(tuned), "--init-from", str(hf), "--data.train", str(tmp_path / "sft.jsonl"),
           "--data.tokenizer", str(hf), "--data.context-length", "64", "--data.global-batch", "1",
           "--epochs", "1"]  # fmt: skip
    done = run(command("megatron_ring.sft", *sft))
    assert done.returncode == 0, done.stderr
    rows = [{"id": str(n), "domain": "math", "prompt": f"{n} + 1?", "answer": str(n + 1)} for n in range(8)]
    (tmp_path / "rl_prompts.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    done = run(command("megatron_ring.rl", *rl_flags(tmp_path, last, tuned / "checkpoints/latest", "--steps", "1")))
    assert done.returncode == 0, done.stderr
    found = [biases_of(folder) for folder in (base, tuned, last)]
    if biases:
        assert found[0].abs().max() == pytest.approx(2e-3) and all(torch.equal(one, found[0]) for one in found)
    else:
        assert found == [None] * 3


def biases_of(run_dir: Path) -> torch.Tensor | None:
    """Of the first layer, in a run's last checkpoint; None where it has none."""
    name, folder = "decoder.layers.0.mlp.router.expert_bias", checkpoint_folder(run_dir / "checkpoints/latest")
    reader = CheckpointReader(folder)
    if name not in reader.tensors:
        return None
    return reader.read(name, Box.whole(reader.shape_of(name))).clone()


@pytest.mark.slow
def test_a_published_folder_is_pretrained_further(data: Path, tmp_path: Path) -> None:
    hf, out = tmp_path / "hf", tmp_path / "again"
    done = run([sys.executable, "tools/make_random_hf.py", "--preset", "ring-tiny", "--out", str(hf), "--dtype", "fp32"])
    assert done.returncode == 0, done.stderr
    more = ["--init-from", str(hf), "--steps", "1", "--context.positions", "1500", "--context.rope-theta", "20000",
            "--router.bias-rate", "1e-3"]  # fmt: skip
    given = [flag for flag in flags(data, out, *more) if flag not in ("--preset", "ring-tiny")]
    done = run(command("megatron_ring.pretrain", *given))
    assert done.returncode == 0, done.stderr
    shape = json.loads((out / "checkpoints/step_1/manifest.json").read_text())["model"]
    assert (shape["max_positions"], shape["rope_theta"], shape["expert_bias"]) == (1500, 20000, True)


@pytest.mark.slow
def test_alarms(data: Path, tmp_path: Path) -> None:
    """A loss that must not rise: the update is left out, or the run goes back and on with other data, until it stops."""
    rule = ["--alarms.loss-rise", "1e-9", "--alarms.window", "1", "--optimizer.lr", "0.1", "--validation-every", "99"]
    skips = command("megatron_ring.pretrain", *flags(data, tmp_path / "skips", *rule, "--alarms.action", "skip"))
    done = run(skips)
    assert done.returncode == 0 and "the update is left out, going on" in done.stderr, done.stderr
    skipped = [row for row in metrics(tmp_path / "skips") if row["update/skipped"]]
    assert skipped and all(row["alarms"][0]["action"] == "skip" for row in skipped)
    back = [*rule, "--alarms.action", "rollback", "--alarms.max-rollbacks", "1", "--save-every", "1"]
    done = run(command("megatron_ring.pretrain", *flags(data, tmp_path / "back", *back, "--steps", "12")))
    assert done.returncode == 3 and "on with other data (rollback 1 of at most 1)" in done.stderr, done.stderr
    rows = metrics(tmp_path / "back")
    assert rows[-1]["samples"] == 4 * (len(rows) + 1)  # one batch was taken twice for one step


@pytest.mark.parametrize(
    ("more", "said"),
    [
        ("--data.train nowhere/web", "nowhere/web.idx: no such file"),
        ("--data.train DATA", "is a folder, give DATA/code"),
        ("--data.train DATA/pages.jsonl", "tools/prepare_corpus.py makes them of DATA/pages.jsonl"),
        ("--data.train DATA/pages:0 DATA/code:0", "every weight is 0"),
        ("--data.train DATA/cut", "cut.idx: cut off"),
        ("--data.train DATA/pages DATA/pages", "two corpora are called"),
        ("--data.train DATA/other", "it was made with another tokenizer"),
        ("--data.train DATA/foreign", "foreign: prepared with another tokenizer"),
        ("--data.sequence-length 2048", "exceeds the model's 1,024 positions: shorten it, or give --context.positions"),
        ("--data.sequence-length 1024 --data.split 1 99 0", "are no sequence of 1,024 and one more"),
        ("--context.positions 2048", "say how its rotary embeddings go on"),
        ("--context.positions 9000 --context.yarn-factor 2", "is beyond 1,024 x --context.yarn-factor 2 = 2,048"),
        ("--context.positions 512", "--context.positions 512 is below the model's 1,024"),
        ("--context.rope-theta 500", "is below the model's 10000"),
        ("--data.split 0 1 1", "nothing is left to train on"),
        ("--data.ramp.start 3 --data.ramp.samples 100", "from 3 the batch does not come to 4 by 3 at a time"),
        ("--data.ramp.start 2", "a ramp needs --data.ramp.samples"),
        ("--optimizer.decay-steps 9", "--optimizer.decay-steps 9 is above the run's 6 steps"),
        ("--optimizer.schedule linear --optimizer.decay-steps 2", "belongs to --optimizer.schedule wsd"),
        ("--init-state all", "--init-state all: give --init-from a checkpoint"),
        ("--alarms.reward-drop 1", "pretraining has no rewards"),
        ("--data.train DATA/blend.yaml --steps 100000", "the epochs of the blend end after"),
    ],
)
def test_what_makes_no_sense_is_said_in_one_line(
    fails_with: Fails, data: Path, tmp_path: Path, more: str, said: str
) -> None:
    if not (data / "cut.idx").exists():
        whole = (data / "pages.idx").read_bytes()
        (data / "cut.idx").write_bytes(whole[:-9])
        (data / "cut.bin").write_bytes((data / "pages.bin").read_bytes())
        write_corpus(data / "other", [[5, 511, 0] * 99])
        train_bpe(["another text"], 280, data / "tokenizer-280")
        prepare(data / "foreign", ["a text"] * 99, data / "tokenizer-280")
        (data / "blend.yaml").write_text("sources: [{prefix: pages, epochs: 2}, {prefix: code, epochs: 1}]")
    line = fails_with(
        command("megatron_ring.pretrain", *flags(data, tmp_path / "r", *more.replace("DATA", str(data)).split()))
    )
    assert said.replace("DATA", str(data)) in line, line
    assert not (tmp_path / "r" / "checkpoints").exists() or not any((tmp_path / "r" / "checkpoints").iterdir())


@pytest.mark.slow
def test_without_steps_the_epochs_of_the_corpora_are_read(data: Path, tmp_path: Path) -> None:
    (tmp_path / "blend.yaml").write_text(
        f"sources: [{{prefix: {data}/pages, epochs: 0.2}}, {{prefix: {data}/code, epochs: 0.1}}]"
    )
    given = flags(data, tmp_path / "r", "--data.train", str(tmp_path / "blend.yaml"), "--data.global-batch", "16",
                  "--no-save-optimizer")  # fmt: skip
    place = given.index("--steps")
    del given[place : place + 2]
    done = run(command("megatron_ring.pretrain", *given))
    assert done.returncode == 0, done.stderr
    again = run(command("megatron_ring.pretrain", *given))
    assert again.returncode == 0 and "steps are done" in again.stdout, (again.stdout, again.stderr)
    last = metrics(tmp_path / "r")[-1]
    assert last["data/epochs/pages"] == pytest.approx(0.2, abs=0.02) and last["data/epochs/code"] == pytest.approx(
        0.1, abs=0.02
    )


def test_dry_run(data: Path, tmp_path: Path) -> None:
    done = run(command("megatron_ring.pretrain", *flags(data, tmp_path / "r", "--dry-run", "--router.bias-rate", "1e-3")))
    assert done.returncode == 0 and "not checked" not in done.stdout, done.stdout + done.stderr
    assert "4 sequences x 64 tokens = 256 tokens a step" in done.stdout and "pages (pages): " in done.stdout
    assert "wsd after a linear warm-up over 1 of 6 steps, decay (linear) over the last 1" in done.stdout
    assert "expert biases move by 0.001 a step" in done.stdout and not (tmp_path / "r").exists()
    nowhere = flags(Path("nowhere"), tmp_path / "r", "--dry-run", "--plan.world", "2")
    done = run([sys.executable, "-X", "importtime", "-m", "megatron_ring.pretrain", *nowhere])
    assert done.returncode == 0 and done.stdout.count("not checked: ") == 5, done.stdout + done.stderr
    loaded = {line.rsplit("|", 1)[-1].strip().split(".")[0] for line in done.stderr.splitlines()}
    assert not loaded & {"torch", "megatron", "transformers"}
