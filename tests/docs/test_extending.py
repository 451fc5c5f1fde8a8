"""Each section of docs/extending.md, built from the page's own text in a copy of the package, and run."""

from __future__ import annotations

import json
import math
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.conftest import ROOT
from tests.docs.extending import apply, copy_of_the_package
from tests.processes import forget, run

LIMITS = {"An objective": 2, "A verifier": 2, "A batch scorer": 2, "A token column": 1, "A stage": 4}


def run_in(root: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    """Python in the copy, which it imports and nothing else of this checkout."""
    return run([sys.executable, *arguments], root=root)


@pytest.fixture(scope="module")
def extended(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """The package with every section in it."""
    root = copy_of_the_package(tmp_path_factory.mktemp("extended"))
    for title, most in LIMITS.items():
        touched = apply(title, root)
        assert 0 < len(touched) <= most, (title, touched)
        for checks in (["check"], ["format", "--check"]):
            ruff = [sys.executable, "-m", "ruff", *checks, "--config", ROOT / "pyproject.toml", *sorted(touched)]
            linted = run(ruff, root=root, really=True)
            assert linted.returncode == 0, (title, linted.stdout, linted.stderr)
    yield root
    forget(root)


OBJECTIVE = """
import json, sys, torch
import megatron_ring
from megatron_ring.algorithm.objectives import make_objective
from megatron_ring.algorithm.policy import policy_loss
from megatron_ring.algorithm.tokens import LossSettings, PolicyTokens

given = json.loads(sys.argv[1])
tensors = {name: torch.tensor(values, dtype=torch.float64) for name, values in given.items()}
logprobs = tensors["logprobs"].requires_grad_()
objective = make_objective("cispo", 1)
tokens = PolicyTokens(logprobs=logprobs, entropy=torch.zeros(4).double(), old_logprobs=tensors["old"],
                      advantages=tensors["advantages"], mask=torch.ones(4, dtype=torch.bool),
                      weights=torch.tensor(objective.token_weights([1, 3]), dtype=torch.float64)[[0, 1, 1, 1]])
settings = LossSettings(clip_low=0.2, clip_high=2.0, kl_beta=0.0, alpha_entropy=0.0)
loss, metrics = policy_loss(objective, tokens, settings)
loss.backward()
print(json.dumps([megatron_ring.__file__, logprobs.grad.tolist(), metrics["clipped_tokens"].item()]))
"""


def test_an_objective(extended: Path) -> None:
    logprobs, old, advantages = [-0.5, -2.0, -0.1, -1.0], [-1.0, -1.0, -3.0, -1.0], [1.0, -2.0, 0.5, -0.25]
    done = run_in(extended, "-c", OBJECTIVE, json.dumps({"logprobs": logprobs, "old": old, "advantages": advantages}))
    assert done.returncode == 0, done.stderr
    where, gradient, clipped = json.loads(done.stdout)
    assert where.startswith(str(extended))
    ratios = [math.exp(new - before) for new, before in zip(logprobs, old, strict=True)]
    # d/d log pi of -sg[min(r, 3)] A log pi
    assert gradient == pytest.approx([-min(r, 3.0) * a for r, a in zip(ratios, advantages, strict=True)], abs=1e-12)
    assert clipped == sum(ratio > 3 for ratio in ratios) == 1

    flags = ["-m", "megatron_ring.rl", "--run-dir", "r", "--init-from", "i", "--data.prompts", "p", "--data.tokenizer", "t"]
    shown = " ".join(run_in(extended, "-m", "megatron_ring.rl", "--help").stdout.replace("│", " ").split())
    assert "cispo: mean over tokens, clips their weight and not their gradient;" in shown
    assert "{c3po,cispo,grpo" in shown and "cispo 2;" in shown and "(default: no; cispo yes; dapo yes)" in shown
    refused = run_in(extended, *flags, "--objective.name", "cispo", "--budget.tokens", "9")
    assert refused.returncode == 2
    assert refused.stderr == "error: --budget: a token budget belongs to c3po, --objective.name is cispo\n"


def test_a_verifier(extended: Path, tmp_path: Path) -> None:
    answer = {"a": [1, True], "b": None}
    block = "So:\n```json\n{}\n```\n"
    wanted = {
        block.replace("{}", '{"b": null, "a": [1, true]}'): (1.0, "the same value"),
        block.replace("{}", '{"b": null, "a": [1, 1]}'): (0.0, "another value"),
        block.replace("{}", "[" * 100_000): (0.0, "the fenced block is not JSON"),
        '{"a": [1, true], "b": null}': (0.0, "no fenced block"),
    }
    rows = [{"domain": "json", "response": response, "answer": answer} for response in wanted]
    (tmp_path / "in.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    out = tmp_path / "out.jsonl"
    done = run_in(extended, "tools/score.py", "--input", str(tmp_path / "in.jsonl"), "--output", str(out), "--workers", "1")
    assert done.returncode == 0, done.stderr
    scored = [json.loads(line) for line in out.read_text().splitlines()]
    assert [(row["reward"], row["reason"]) for row in scored] == list(wanted.values())


SCORER = r"""
import json
from megatron_ring.rewards import ScoreRequest
from megatron_ring.rewards.batch import BatchItem, load_batch_scorer

responses = [[r"\boxed{1}", r"\boxed{2}", r"\boxed{ 1 }", "?"], [r"\boxed{3}", r"\boxed{4}"], ["?"]]
items = [BatchItem(ScoreRequest("group/majority", None, response, {}), group, sample)
         for group, of_group in enumerate(responses) for sample, response in enumerate(of_group)]
print(json.dumps([reward.value for reward in load_batch_scorer("group/majority", None).score(items)]))
"""


def test_a_batch_scorer(extended: Path) -> None:
    done = run_in(extended, "-c", SCORER)
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout) == [1, 0, 1, 0, 0, 0, 0]


COLUMN = """
import dataclasses, json, torch
import megatron_ring
import megatron_ring.parallel
megatron_ring.parallel.prepare()
from safetensors.torch import load, save
from megatron_ring.checkpoint.weights import initialize_weights
from megatron_ring.config.parallel import ParallelConfig
from megatron_ring.config.presets import RING_TINY
from megatron_ring.config.sampling import SamplingConfig
from megatron_ring.model.layout import PackedLayout
from megatron_ring.model.ring_model import build_model, forward_all_stages
from megatron_ring.parallel import context
from megatron_ring.rollout.handover import hand_over
from megatron_ring.rollout.unfinished import from_bytes, to_bytes
from megatron_ring.sampler.requests import GenerationRequest
from megatron_ring.sampler.sampler import Sampler

here = context.initialize(ParallelConfig(), RING_TINY, seed=0)
model = build_model(RING_TINY, here)
initialize_weights(model, seed=11)
prompt, unwanted = [5, 6 + here.data_rank, 7], frozenset({"logprobs"})
requests = [GenerationRequest(prompt, 3, 20), GenerationRequest(prompt, 4, 20, columns=unwanted)]
whole, bare = Sampler(model, here, SamplingConfig(), eos_id=-1).generate(requests)
assert bare.absent == ("processed_logprobs", "entropies", "ranks") and not bare.ranks

tokens = torch.tensor([*prompt, *whole.tokens])
logits = forward_all_stages(model, tokens, PackedLayout(torch.arange(23), [23]))[2:-1]
ranks = (logits > logits.gather(1, tokens[3:, None])).sum(-1)
assert whole.ranks.typecode == "i" and list(whole.ranks) == ranks.tolist() and max(whole.ranks) > 9

# Each process gives both its responses to the other.
mine, other = here.data_rank, 1 - here.data_rank
facts = [whole.without_tokens(), bare.without_tokens()]
held = [whole, bare, *facts] if mine == 0 else [*facts, whole, bare]
taken = hand_over(held, [0, 0, 1, 1], [1, 1, 0, 0], here)[2 * other :]
assert len(taken[0].ranks) == 20 and taken[0].ranks != whole.ranks and not taken[1].ranks

half = dataclasses.replace(whole, finish_reason=None)
data = to_bytes([({"position": 0}, half), ({"position": 1}, bare)], torch.zeros(40, 0, dtype=torch.uint8))
assert [one for _, one in from_bytes(data, slice(None))] == [half, bare]
before = {name: tensor for name, tensor in load(data).items() if name != "ranks"}
old = from_bytes(save(before), slice(None))[0][1]
assert old.absent == ("ranks",) and old.entropies == half.entropies
more = Sampler(model, here, SamplingConfig(), eos_id=-1).generate([GenerationRequest(prompt, 3, 25, begun=old)])[0]
assert more.absent == ("ranks",) and more.tokens[:20] == whole.tokens and len(more.entropies) == 25
print(f" {megatron_ring.__file__} ", end="")  # one write: the other process's may come at any time
context.shutdown()
"""


@pytest.mark.slow
def test_a_token_column(extended: Path) -> None:
    """In responses as they are sampled, after two processes have exchanged them, and out of the file of a checkpoint."""
    launcher = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    (extended / "column.py").write_text(COLUMN)
    done = run_in(extended, *launcher, "column.py")
    assert done.returncode == 0, done.stderr
    assert done.stdout.split() == [str(extended / "megatron_ring" / "__init__.py")] * 2


@pytest.mark.slow
def test_a_stage(extended: Path, tmp_path: Path) -> None:
    """It measures the validation loss that a run of SFT has recorded, on one process and on two that share the experts."""
    data, run = tmp_path / "data", tmp_path / "run"
    sizes = ["--train", "24", "--validation", "9", "--rl", "1", "--heldout", "1"]
    made = run_in(extended, "tools/make_tiny_data.py", "--out", str(data), *sizes)
    assert made.returncode == 0, made.stderr
    common = ["--data.tokenizer", str(data / "tokenizer"), "--data.context-length", "256", "--data.global-batch", "2"]
    trained = run_in(
        extended, "-m", "megatron_ring.sft", "--run-dir", str(run), "--preset", "ring-tiny", "--epochs", "1", *common,
        "--data.train", str(data / "sft_train.jsonl"), "--data.validation", str(data / "sft_validation.jsonl"),
    )  # fmt: skip
    assert trained.returncode == 0, trained.stderr
    recorded = json.loads((run / "metrics.jsonl").read_text().splitlines()[-1])["validation/loss"]
    flags = ["--init-from", str(run / "checkpoints/latest"), "--data.train", str(data / "sft_validation.jsonl"), *common]
    launcher = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2", "-m"]
    for start, more in ((["-m"], []), (launcher, ["--parallel.expert", "2"])):
        measured = run_in(extended, *start, "megatron_ring.perplexity", *flags, *more)
        assert measured.returncode == 0, measured.stderr
        assert json.loads(measured.stdout.splitlines()[-1])["loss"] == pytest.approx(recorded, rel=1e-5)
    refused = run_in(extended, "-m", "megatron_ring.perplexity", *flags, "--init-from", str(tmp_path / "none"))
    assert refused.returncode == 2 and refused.stderr.count("\n") == 1


@pytest.mark.slow
def test_a_run_of_two_steps_with_both(extended: Path, tmp_path: Path) -> None:
    """From random weights, whose responses have no final answer: the scorer says so of each, beside a verifier that tells
    them apart, and the objective trains on what that one gives."""
    data, start, out = tmp_path / "data", tmp_path / "start", tmp_path / "run"
    for tool, flags in (
        ("make_tiny_data.py", ["--out", str(data), "--train", "20", "--validation", "9", "--rl", "9", "--heldout", "9"]),
        ("make_random_hf.py", ["--preset", "ring-tiny", "--out", str(start), "--dtype", "fp32"]),
    ):
        made = run_in(extended, f"tools/{tool}", *flags)
        assert made.returncode == 0, made.stderr
    parts = [{"name": "vote", "domain": "group/majority"}, {"name": "json", "domain": "json", "answer": "value"}]
    gates = {"length": {"maximum": 12, "cache": 12}}
    (tmp_path / "rewards.json").write_text(json.dumps({"mixed": {"parts": parts, **gates}}))
    rows = [{"id": str(i), "domain": "mixed", "prompt": f"{i} + 1 = ?", "answer": {"value": i}} for i in range(8)]
    (tmp_path / "prompts.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    done = run_in(
        extended, "-m", "megatron_ring.rl", "--run-dir", str(out), "--init-from", str(start), "--steps", "2",
        "--data.prompts", str(tmp_path / "prompts.jsonl"), "--data.tokenizer", str(data / "tokenizer"),
        "--data.micro-batch-tokens", "128", "--prompts-per-step", "2", "--samples-per-prompt", "4",
        "--sampling.max-new-tokens", "12", "--sampling.stop-token-ids", *map(str, range(60)),
        "--rewards.workers", "1", "--rewards.compositions", str(tmp_path / "rewards.json"), "--objective.name", "cispo",
        "--objective.dynamic-sampling", "False",
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    metrics = [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]
    assert [row["step"] for row in metrics] == [1, 2] and all(row["grad_norm"] > 0 for row in metrics)
    assert all(row["reward_parts/vote"] == row["reward_parts/json"] == 0 and row["reward/std"] > 0 for row in metrics)
    for step in (1, 2):
        for line in (out / "rollouts" / f"step_{step}.jsonl").read_text().splitlines():
            assert json.loads(line)["detail"]["parts"]["vote"] == [0, "no final answer"]
