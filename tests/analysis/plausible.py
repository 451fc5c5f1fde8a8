"""Run directories and evaluations as the stages write them, with plausible made-up numbers, for the tests here."""

from __future__ import annotations

import json
import math
import random
import struct
from pathlib import Path
from typing import Any

Record = dict[str, Any]


def write_jsonl(path: Path, records: list[Record]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(record) + "\n" for record in records), encoding="utf-8")


def write_pretrain(path: Path, steps: int = 60) -> Path:
    """Loss falling, two corpora validated every 20 steps and tested at the end."""
    generator = random.Random(0)
    records: list[Record] = []
    for step in range(1, steps + 1):
        loss = 1.9 + 4.4 * math.exp(-step / 15)
        record = {"step": step, "tokens": step * 4096, "loss": loss + generator.gauss(0, 0.05), "time/step": 0.3,
                  "router/load_max": 1.2 + math.exp(-step / 9), "router/load_min": 0.6}  # fmt: skip
        for what in [name for name, when in (("validation", step % 20 == 0), ("test", step == steps)) if when]:
            for end, more in (("", 0.0), ("/manual", -0.1), ("/sources", 0.1)):
                record |= {f"{what}/loss{end}": loss + more, f"{what}/bits_per_byte{end}": (loss + more) / 1.7}
        records.append(record)
    write_jsonl(path / "metrics.jsonl", records)
    return path


def write_sft(path: Path, epochs: int = 6, steps_per_epoch: int = 40, seed: int = 1) -> Path:
    """Loss and entropy falling over the epochs; the entropy passes 0.5 after epoch 2 and 0.3 after epoch 5."""
    generator = random.Random(seed)
    records: list[Record] = []
    for step in range(1, epochs * steps_per_epoch + 1):
        progress = step / steps_per_epoch
        loss = 0.35 + 2.6 * math.exp(-1.1 * progress) + 0.25 * math.exp(-0.2 * progress)
        entropy = 0.2 + 0.9 * math.exp(-0.42 * progress)
        record = {
            "step": step,
            "epoch": math.ceil(progress),
            "tokens": step * 16_384,
            "loss": loss + generator.gauss(0, 0.03),
            "entropy": entropy + generator.gauss(0, 0.02),
            "grad_norm": 0.6 + generator.expovariate(4),
            "lr": 3e-4 * (1 + math.cos(math.pi * progress / epochs)) / 2,
            "time/step": 0.9 + generator.random() / 10,
            "throughput/tokens_per_second": 17_000 + generator.gauss(0, 400),
            "loss/balance": 1.02,
            "loss/z": 3.1,
        }
        if step % steps_per_epoch == 0:
            record["validation/loss"] = loss + 0.04 + 0.02 * max(0.0, progress - 4)
            record["validation/entropy"] = entropy
            record["validation/tokens"] = 32_768
            record["checkpoint"] = f"step_{step}"
            (path / "checkpoints" / f"step_{step}").mkdir(parents=True)
        records.append(record)
    write_jsonl(path / "metrics.jsonl", records)
    config = "model:\n  layers: 4\n  hidden: 128\ntrain:\n  epochs: 6\n  lr: 0.0003\n  betas: [0.9, 0.95]\nseed: 1\n"
    (path / "config.yaml").write_text(config, encoding="utf-8")
    return path


def rl_record(step: int, generator: random.Random, budget: int = 16_384) -> Record:
    reward = 0.28 + 0.36 * (1 - math.exp(-step / 35)) + generator.gauss(0, 0.02)
    length = 120 + 0.7 * step + generator.gauss(0, 5)
    return {
        "step": step,
        "reward/mean": reward,
        "reward/mean/math": reward + 0.05,
        "reward/mean/science": reward - 0.08 + generator.gauss(0, 0.02),
        "reward/std": 0.45,
        "response_length/mean": length,
        "response_length/mean/math": length + 12,
        "response_length/mean/science": length - 20,
        "response_length/max": 256,
        "tokens/generated": int(length * 160),
        "tokens/trained": budget,
        "tokens/budget": budget,
        "grad_norm": 0.4 + generator.expovariate(12),
        "entropy": 0.38 + 0.08 * math.exp(-step / 30) + generator.gauss(0, 0.005),
        "kl": 0.0004 * step,
        "clip_fraction": 0.01,
        "loss/policy": -0.01,
        "loss/balance": 1.01,
        "loss/z": 3.0,
        "mismatch/logprob_abs_mean": 2.1e-7,
        "mismatch/logprob_abs_max": 4.8e-6,
        "lr": 3e-6,
        "time/step": 6.1,
        "time/sample": 4.0,
        "time/reward": 0.2,
        "time/train": 1.8,
        "processor/step": 5.9 + generator.gauss(0, 0.1),
        "processor/sample": 4.0,
        "processor/train": 1.8,
        "throughput/tokens_per_second": 3_050 + generator.gauss(0, 60),
    }


def write_rl(path: Path, steps: int = 80, seed: int = 2) -> Path:
    generator = random.Random(seed)
    write_jsonl(path / "metrics.jsonl", [rl_record(step, generator) for step in range(1, steps + 1)])
    config = "rl:\n  prompts: 16\n  samples: 10\n  budget: 16384\n  clip: 0.2\nstart: checkpoints/step_200\n"
    (path / "config.yaml").write_text(config, encoding="utf-8")
    for step in (1, 10, steps):
        write_jsonl(path / "rollouts" / f"step_{step}.jsonl", [rollout(step, index) for index in range(12)])
    return path


def rollout(step: int, index: int) -> Record:
    right = (index + step) % 3 == 0
    return {
        "prompt_id": f"p{index // 2}",
        "domain": "math",
        "sample": index % 2,
        "prompt": f"What is {index // 2} + 4? Put the answer in \\boxed{{}}.",
        "response": f"I add the two numbers.\nThe answer is \\boxed{{{index // 2 + (4 if right else 5)}}}.",
        "answer": str(index // 2 + 4),
        "reward": float(right),
        "reason": "equal" if right else "not equal",
        "tokens": 24,
        "trained_tokens": 24 if index < 9 else 0,
        "finish_reason": "stop",
    }


def write_evaluation(path: Path, rate: float, problems: int = 240, samples: int = 4, seed: int = 3) -> Path:
    """`rate` is the pass rate of math, science is lower; each problem has its difficulty, so pairs are correlated."""
    generator, difficulties = random.Random(seed), random.Random(99)
    lines: list[Record] = []
    for index in range(problems):
        domain, hard = ("math" if index % 3 else "science"), difficulties.random()
        chance = min(1.0, max(0.0, (rate - (0.0 if domain == "math" else 0.1)) * 2 * (1 - hard)))
        for sample in range(samples):
            right = generator.random() < chance
            lines.append(
                {
                    "id": f"q{index}",
                    "domain": domain,
                    "prompt": f"A shop sells {index + 3} pens at 4 coins each. How many coins is that?",
                    "response": f"Each costs 4, so \\boxed{{{4 * (index + 3) + (0 if right else 1)}}}.",
                    "answer": str(4 * (index + 3)),
                    "reward": float(right),
                    "reason": "equal" if right else "not equal",
                    "finish_reason": "stop",
                    "tokens": 31,
                    "sample": sample,
                }
            )
    write_jsonl(path / "samples.jsonl", lines)
    (path / "result.json").write_text(json.dumps(summary(path.name, lines, samples)), encoding="utf-8")
    return path


def summary(name: str, lines: list[Record], samples: int) -> Record:
    by_domain = {}
    for domain in ("math", "science"):
        rewards = [line["reward"] for line in lines if line["domain"] == domain]
        by_domain[domain] = {"problems": len(rewards) // samples, "pass_at_1": sum(rewards) / max(1, len(rewards))}
    return {
        "checkpoint": f"checkpoints/{name}",
        "preset": "ring-tiny",
        "temperature": 1.0,
        "top_p": 0.95,
        "max_new_tokens": 256,
        "seed": 1,
        "samples_per_problem": samples,
        "problems": len(lines) // samples,
        "pass_at_1": sum(line["reward"] for line in lines) / len(lines),
        "by_domain": by_domain,
        "response_length_mean": 131.4,
        "truncated_fraction": 0.021,
        "seconds": 44.0,
    }


def write_export(path: Path) -> Path:
    """config.json and a safetensors file of two tensors (6 and 4 parameters)."""
    path.mkdir(parents=True)
    (path / "config.json").write_text(json.dumps({"model_type": "bailing_moe", "num_hidden_layers": 4}), encoding="utf-8")
    header = json.dumps(
        {
            "__metadata__": {"format": "pt"},
            "a": {"dtype": "F32", "shape": [2, 3], "data_offsets": [0, 24]},
            "b": {"dtype": "F32", "shape": [4], "data_offsets": [24, 40]},
        }
    ).encode()
    (path / "model.safetensors").write_bytes(struct.pack("<Q", len(header)) + header + bytes(40))
    return path
