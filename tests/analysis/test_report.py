"""The report: safe against model output, honest in its verdict, and whole when parts are missing."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from html.parser import HTMLParser
from pathlib import Path

import pytest

from megatron_ring.analysis import page
from megatron_ring.analysis.material import gather
from megatron_ring.analysis.report import write_report
from megatron_ring.analysis.verdict import budget_sentence, finite_sentence, paragraphs, reward_sentence
from megatron_ring.errors import UserError
from tests.analysis.plausible import (
    rl_record,
    write_evaluation,
    write_export,
    write_jsonl,
    write_pretrain,
    write_rl,
    write_sft,
)
from tests.processes import run

ROOT = Path(__file__).resolve().parents[2]
HOSTILE = "<script>alert(1)</script></style></pre>\x1b[31m\x00\u202egnp.exe\ud800<img src=x onerror=alert(1)>&amp; \"'"
VOID = {"meta", "img", "br", "hr", "link", "input"}


class Outline(HTMLParser):
    """Collects tags and checks that they nest; text inside style is CDATA, as in a browser."""

    def __init__(self) -> None:
        super().__init__()
        self.stack: list[str] = []
        self.tags: list[str] = []
        self.links: list[str] = []
        self.text: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.links += [value or "" for name, value in attrs if name in ("src", "href")]
        assert not [name for name, _ in attrs if name.startswith("on")]
        if tag not in VOID:
            self.stack.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.stack.pop() == tag

    def handle_data(self, data: str) -> None:
        self.text.append(data)


def outline(path: Path) -> Outline:
    parser = Outline()
    parser.feed(path.read_text(encoding="utf-8"))
    parser.close()
    assert parser.stack == []
    return parser


@pytest.fixture(scope="module")
def parts(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    root = tmp_path_factory.mktemp("pipeline")
    sft = write_sft(root / "sft")
    tool = [sys.executable, str(ROOT / "tools" / "select_checkpoint.py"), "--run", str(sft)]
    assert run(tool, timeout=60).returncode == 0
    return {
        "pretrain": write_pretrain(root / "pretrain"),
        "sft": sft,
        "rl": write_rl(root / "rl"),
        "before": write_evaluation(root / "before", 0.31, seed=3),
        "after": write_evaluation(root / "after", 0.52, seed=4),
        "export": write_export(root / "hf"),
    }


def test_whole_report_by_the_tool(parts: dict[str, Path], tmp_path: Path) -> None:
    flags = [text for name, path in parts.items() for text in (f"--{name}", str(path))]
    command = [sys.executable, str(ROOT / "tools" / "report.py"), *flags, "--out", str(tmp_path), "--title", "A & B"]
    done = run(command, timeout=120)
    assert (done.returncode, done.stdout) == (0, f"{tmp_path}/report.html\n")
    found = outline(tmp_path / "report.html")
    assert found.tags.count("img") == 4 and all(link.startswith("data:image/png;base64,") for link in found.links)
    assert sorted(file.name for file in (tmp_path / "figures").iterdir()) == [
        "evaluation.png", "pretrain.png", "rl.png", "sft.png"
    ]  # fmt: skip
    text = " ".join(found.text)
    assert "A & B" in text and "All 80 recorded RL steps trained exactly Φ = 16,384 tokens." in text
    assert "a gain of +" in text and "latest of 3" in text and "left out" not in text.replace("characters left out", "")
    assert "0.4 times the 3,276,800 trained up to the chosen checkpoint" in text  # 80 · 16,384 over step 200's tokens
    for what in ("validation", "test"):  # after step 60: 1.9 + 4.4 / e^4
        assert f"{what} manual 1.881 1.106 {what} sources 2.081 1.224 {what} all 1.981 1.165" in text
    assert not list(tmp_path.rglob("*.partial"))


@pytest.mark.parametrize("name", ["pretrain", "sft", "rl", "before", "after", "export"])
def test_missing_parts_are_left_out(parts: dict[str, Path], tmp_path: Path, name: str) -> None:
    only = outline(write_report(tmp_path, **{name: parts[name]}))
    text = " ".join(only.text)
    assert only.tags.count("img") == (0 if name == "export" else 1)
    assert "left out" in text and "a gain of" not in text and "nan" not in text.lower().split()


def test_nothing_given_or_not_there(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="--sft"):
        write_report(tmp_path)
    with pytest.raises(UserError, match="no such file"):
        write_report(tmp_path / "out", rl=tmp_path)
    assert not (tmp_path / "out").exists()


def test_model_output_stays_text(tmp_path: Path) -> None:
    write_evaluation(tmp_path / "e", 0.5, problems=4, samples=1)
    lines = [json.loads(line) for line in (tmp_path / "e" / "samples.jsonl").read_text().splitlines()]
    for line in lines:
        line |= {
            "response": HOSTILE,
            "prompt": [{"role": "user", "content": HOSTILE}],
            "reason": HOSTILE,
            "answer": HOSTILE,
        }
    write_jsonl(tmp_path / "e" / "samples.jsonl", lines)
    write_rl(tmp_path / "rl", steps=3)
    rollout = {"prompt_id": HOSTILE, "prompt": HOSTILE, "response": HOSTILE * 2000, "reward": 0, "domain": HOSTILE}
    write_jsonl(tmp_path / "rl" / "rollouts" / "step_1.jsonl", [rollout])
    (tmp_path / "rl" / "config.yaml").write_text(json.dumps({"<b>": "<script>"}))
    path = write_report(tmp_path / "out", rl=tmp_path / "rl", before=tmp_path / "e", after=tmp_path / "e", title=HOSTILE)
    found = outline(path)
    assert "script" not in found.tags and found.tags.count("style") == 1 and found.tags.count("img") == 2
    source = path.read_text(encoding="utf-8")
    assert source.count("</style>") == 1 and not re.search("[\x00-\x08\x0b-\x1f\x7f\u202e\ud800-\udfff]", source)
    assert "characters left out" in source and len(source) < 2_000_000
    assert "<script>alert(1)</script>" in "".join(found.text)  # shown as it was written


def test_escape_by_construction() -> None:
    assert page.element("p", "<b>", page.Html("<i></i>"), title='"x"') == '<p title="&quot;x&quot;">&lt;b&gt;<i></i></p>'
    assert page.escape("a\r\nb\rc\td\x00e\x85f\u2066g") == "a\nb\nc\tdefg"
    assert page.clipped("x" * 10, limit=4) == "<pre>xx\n[… 6 characters left out …]\nxx</pre>"


def rl_run(path: Path, **changes: dict[int, object]) -> Path:
    """Ten steps; `changes` maps a key (with __ for /) to values by step."""
    import random

    generator = random.Random(7)
    records = [rl_record(step, generator) for step in range(1, 11)]
    for key, values in changes.items():
        for step, value in values.items():
            records[step - 1][key.replace("__", "/")] = value
    write_jsonl(path / "metrics.jsonl", records)
    return path


def test_budget_verdict(tmp_path: Path) -> None:
    def sentence(name: str, **changes: dict[int, object]) -> str:
        run = gather(rl=rl_run(tmp_path / name, **changes)).rl
        assert run is not None
        return budget_sentence(run)

    assert sentence("exact") == "All 10 recorded RL steps trained exactly Φ = 16,384 tokens."
    short = sentence("short", tokens__trained={3: 16_383, 4: 9_000}, tokens__generated={4: 9_000})
    assert "8 of 10 RL steps trained exactly" in short and "step 3 trained 16,383 of 16,384" in short
    assert "in 1 of these fewer than Φ tokens had been generated" in short
    varied = sentence("varied", tokens__trained={2: 99}, tokens__budget={2: 99})
    assert varied == "All 10 recorded RL steps trained exactly their Φ (from 99 to 16,384 tokens)."
    assert "was not checked" in sentence("none", tokens__budget=dict.fromkeys(range(1, 11)))
    assert sentence("some", tokens__budget={1: None}).startswith("9 of the 10 recorded RL steps tell their budget; all 9")


def test_reward_and_non_finite_verdicts(tmp_path: Path) -> None:
    rewards: dict[int, object] = {step: 0.9 if 4 <= step <= 8 else 0.1 for step in range(1, 11)}
    run = gather(rl=rl_run(tmp_path, reward__mean=rewards, grad_norm={6: float("nan")})).rl
    assert run is not None
    assert "0.420 over the first 5 steps and 0.580 over the last 5 steps, at best 0.900 (steps 4–8)" in reward_sentence(run)
    assert finite_sentence("RL", run) == "RL recorded values that are not finite: grad_norm at step 6."
    write_report(tmp_path / "out", rl=tmp_path)  # figures and tables cope


def test_no_gain_is_not_called_one(tmp_path: Path) -> None:
    write_evaluation(tmp_path / "a", 0.4, problems=30, samples=1, seed=1)
    write_evaluation(tmp_path / "b", 0.41, problems=30, samples=1, seed=2)
    first = paragraphs(gather(before=tmp_path / "a", after=tmp_path / "b"))[0]
    assert "neither a gain nor a loss" in first and "a gain of" not in first
    worse = write_evaluation(tmp_path / "c", 0.05, seed=2)
    better = write_evaluation(tmp_path / "d", 0.5, seed=1)
    assert "a loss of −" in paragraphs(gather(before=better, after=worse))[0]
    result = json.loads((worse / "result.json").read_text())
    (worse / "result.json").write_text(json.dumps({**result, "temperature": 0.6}))
    assert "differ in temperature 1.0 and 0.6" in paragraphs(gather(before=better, after=worse))[0]


def test_without_samples_totals_are_used_and_no_gain_is_stated(tmp_path: Path) -> None:
    for name in ("a", "b"):
        (write_evaluation(tmp_path / name, 0.4) / "samples.jsonl").unlink()
    material = gather(before=tmp_path / "a", after=tmp_path / "b")
    assert len(material.rows) == 3 and material.rows[0].gain is None and material.rows[0].before is not None
    assert "no paired gain can be stated" in paragraphs(material)[0]
    assert "no samples.jsonl" in (write_report(tmp_path / "out", before=tmp_path / "a")).read_text()


def test_export_is_counted_from_headers(parts: dict[str, Path], tmp_path: Path) -> None:
    export = gather(export=parts["export"]).export
    assert export is not None and (export.parameters, export.tensors) == (10, 2)
    (tmp_path / "config.json").write_text("{}")
    (tmp_path / "model.safetensors").write_bytes(b"\xff" * 16)
    with pytest.raises(UserError, match="not a safetensors file"):
        gather(export=tmp_path)


def test_analysis_loads_no_torch() -> None:
    loaded = "any(name in sys.modules for name in ('torch', 'megatron'))"
    code = f"import sys, megatron_ring.analysis.report; sys.exit({loaded})"
    subprocess.run([sys.executable, "-c", code], check=True, timeout=60, cwd=ROOT)
