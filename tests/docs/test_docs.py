"""README and docs/ hold: links lead somewhere, every page is reached, every command line parses, quotes equal the source.

Commands are not run: a stage's flags go through its own parser, a tool's options must be in its `--help`, targets of make
and launchers must be there. Files that a command names need not be.
"""

from __future__ import annotations

import functools
import re
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from megatron_ring.config.cli import parse
from megatron_ring.config.evaluate import EvaluateConfig
from megatron_ring.config.generate import GenerateConfig
from megatron_ring.config.metadata import changeable
from megatron_ring.config.pretrain import PretrainConfig
from megatron_ring.config.reward_model import RewardModelConfig
from megatron_ring.config.rl import RLConfig
from megatron_ring.config.serve import ServeConfig
from megatron_ring.config.sft import SFTConfig
from megatron_ring.curate import CurateConfig
from megatron_ring.errors import UserError
from tests.docs.markdown import Command, anchors, commands, fences, links, pages
from tests.processes import run
from tools.quote_source import with_quotes

ROOT = Path(__file__).resolve().parents[2]
PAGES = [str(path.relative_to(ROOT)) for path in pages(ROOT)]
LIVING = [page for page in PAGES if page != "docs/LOG.md"]  # the log has the commands of its day
STAGES: dict[str, Any] = {
    "pretrain": PretrainConfig,
    "sft": SFTConfig,
    "reward": RewardModelConfig,
    "rl": RLConfig,
    "evaluate": EvaluateConfig,
    "generate": GenerateConfig,
    "curate": CurateConfig,
    "serve": ServeConfig,
}
# What a launcher gives its stage before the reader's own flags.
NEEDED = {
    "pretrain": ["--run-dir", "r", "--preset", "ring-tiny", "--data.train", "t", "--data.tokenizer", "t"],
    "sft": ["--run-dir", "r", "--preset", "ring-tiny", "--data.train", "t", "--data.tokenizer", "t"],
    "reward": ["--run-dir", "r", "--preset", "ring-tiny", "--data.train", "t", "--data.tokenizer", "t"],
    "rl": ["--run-dir", "r", "--init-from", "i", "--data.prompts", "p", "--data.tokenizer", "t"],
    "evaluate": ["--checkpoint", "c", "--prompts", "p", "--tokenizer", "t", "--out", "o"],
}
# The stage of a launcher whose name is not its stage's.
STAGE_OF = {"rl_math": "rl", "rl_code_science": "rl", "general_sft": "sft", "objectives": "rl", "continue": "pretrain",
            "reward_model": "reward"}  # fmt: skip
# Commands that are not ours.
KNOWN = {"cd", "git", "curl", "lm_eval", "apt-get", ".", "export", "echo", "head", "tail", "cat", "mkdir", "pip",
         "tensorboard"}  # fmt: skip
README_LINES = 120


def test_readme_is_short() -> None:
    assert len((ROOT / "README.md").read_text().splitlines()) <= README_LINES


@pytest.mark.parametrize("page", PAGES)
def test_every_link_leads_somewhere(page: str) -> None:
    text = (ROOT / page).read_text()
    broken = []
    for target in links(text):
        if re.match(r"[a-z]+:", target):
            continue
        name, _, anchor = target.partition("#")
        file = (ROOT / page).parent / name if name else ROOT / page
        if not file.exists() or (anchor and anchor not in anchors(file.read_text())):
            broken.append(target)
    assert broken == []


def test_every_page_is_reached_from_the_index() -> None:
    seen, queue = set(), [(ROOT / "docs/README.md").resolve()]
    while queue:
        page = queue.pop()
        if page in seen:
            continue
        seen.add(page)
        targets = [target.partition("#")[0] for target in links(page.read_text())]
        queue += [found for name in targets if name.endswith(".md") and (found := (page.parent / name).resolve()).exists()]
    assert {str(path.relative_to(ROOT)) for path in pages(ROOT)[1:] if path.resolve() not in seen} == set()


@pytest.mark.parametrize("page", LIVING)
def test_every_command_parses(page: str) -> None:
    found = list(commands(page, (ROOT / page).read_text()))
    assert [said for command in found if (said := problem(command))] == []


@pytest.mark.parametrize("page", LIVING)
def test_no_command_hides_in_another_fence(page: str) -> None:
    ours = re.compile(r"^\s*(\S*=\S* )?(python|torchrun|make|sbatch|examples/\S+\.sh)\s", re.M)
    hidden = [line for language, body, line in fences((ROOT / page).read_text()) if language == "" and ours.search(body)]
    assert hidden == [], "mark fences that hold commands as bash"


@pytest.mark.parametrize("stage", ["pretrain", "sft", "rl"])
def test_what_a_continued_run_may_change(stage: str) -> None:
    sections = re.split(r"^## ", (ROOT / f"docs/how-to/{stage}.md").read_text(), flags=re.M)
    section = next(part for part in sections if part.startswith("Continue"))
    listed = section.partition("may change then")[2].strip(": \n").split("\n\n")[0]
    given = set(re.findall(r"`--([\w.*-]+)`", listed))
    flags = {name.replace("_", "-") for name in changeable(STAGES[stage])}
    groups = {flag[:-1] for flag in given if flag.endswith(".*")}
    grouped = {group: {flag for flag in flags if flag.startswith(group)} for group in groups}
    assert all(grouped.values())
    assert {flag for flag in given if not flag.endswith(".*")} == flags - set().union(*grouped.values())


@pytest.mark.parametrize("page", PAGES)
def test_quoted_code_equals_the_source(page: str) -> None:
    text = (ROOT / page).read_text()
    assert text == with_quotes(text), f"run: python tools/quote_source.py {page}"


def problem(command: Command) -> str | None:
    """What is wrong with a command line of a page; None when it parses."""
    try:
        said = _problem(command.words)
    except UserError as error:
        said = str(error)
    return said and f"{command.place}: {' '.join(command.words)}: {said}"


def _problem(words: Sequence[str]) -> str | None:
    first, rest = words[0], list(words[1:])
    if first == "bash":
        first, rest = rest[0], rest[1:]
    if first == "sbatch":
        start = next((n for n, word in enumerate(rest) if word.endswith("slurm.sh")), None)
        if start is None or not (ROOT / rest[start]).is_file():
            return "names no slurm.sh"
        first, rest = rest[start + 1], rest[start + 2 :]
    if first in ("python", "torchrun"):
        return _of_python(rest)
    if first == "make":
        return _of_make(rest)
    if first.endswith(".sh"):
        return _of_launcher(first, rest)
    if first == "pip":
        return _of_pip(rest)
    return None if first in KNOWN else "unknown command"


def _of_python(words: list[str]) -> str | None:
    """After `python`, or `torchrun` with options of its own."""
    place = next((n for n, word in enumerate(words) if word == "-m" or word.endswith(".py")), None)
    if place is None:
        return "names no module and no script"
    if words[place] == "-m":
        stage, flags = words[place + 1].removeprefix("megatron_ring."), words[place + 2 :]
        if stage not in STAGES:
            return None if words[place + 1] == "pytest" else "no such stage"
        return _parsed(stage, flags)
    script, flags = words[place], words[place + 1 :]
    if not script.startswith("tools/"):
        return None  # the reader's own
    if not (ROOT / script).is_file():
        return "no such tool"
    if "--" in flags:  # what follows is an evaluation's, with its own prompts and folder
        place = flags.index("--")
        said = _parsed("evaluate", [*flags[place + 1 :], "--prompts", "p", "--out", "o"])
        return said or _options(script, flags[:place])
    return _options(script, flags)


def _parsed(stage: str, flags: list[str]) -> str | None:
    """Put the flags through the stage's own parser. A run's config.yaml, which is not there, has what it needs."""
    if "--help" in flags:
        return None
    if "--config" in flags:
        place = flags.index("--config")
        flags = [*NEEDED[stage], *flags[:place], *flags[place + 2 :]]
    parse(STAGES[stage], f"ring-{stage}", "", flags)
    return None


@functools.cache
def _help(script: str, subcommand: str | None) -> str:
    arguments = [sys.executable, script, *([subcommand] if subcommand else []), "--help"]
    done = run(arguments, timeout=120)
    assert done.returncode == 0, done.stderr
    return done.stdout


def _options(script: str, flags: list[str]) -> str | None:
    """Every option must be one that `--help` names; a subcommand must be one of its own."""
    subcommand = flags[0] if flags and not flags[0].startswith("-") else None
    whole = _help(script, None)
    choices = re.search(r"\{(\w+(?:,\w+)+)\}", whole.split("options")[0])
    if subcommand is not None and choices and subcommand not in choices[1].split(","):
        return f"no subcommand {subcommand}"
    text = _help(script, subcommand) if choices and subcommand else whole
    known = set(re.findall(r"--[a-z][\w.-]*", text))
    unknown = [flag for flag in flags if flag.startswith("--") and flag.partition("=")[0] not in known]
    return f"unknown option {unknown[0]}" if unknown else None


def _of_make(words: list[str]) -> str | None:
    targets = set(re.findall(r"^([a-z0-9-]+):", (ROOT / "Makefile").read_text(), re.M))
    variables = set(re.findall(r"^([A-Z_]+) [?:]?=", (ROOT / "Makefile").read_text(), re.M))
    for word in words:
        name, joined, _ = word.partition("=")
        if name not in (variables if joined else targets):
            return f"no such {'variable' if joined else 'target'} {name}"
    return None


def _of_launcher(launcher: str, flags: list[str]) -> str | None:
    if not (ROOT / launcher).is_file():
        return "no such launcher"
    name = Path(launcher).stem
    stage = STAGE_OF.get(name, name)
    while flags and not flags[0].startswith("-"):  # a launcher's own arguments
        flags = flags[1:]
    if Path(launcher).parent.name == "study" and name in ("epochs", "c3po", "fp8", "stages"):
        return _options("tools/study.py", [name, "--out", "o", *flags])
    if stage in NEEDED:
        return _parsed(stage, [*NEEDED[stage], *(flag for flag in flags if flag != "--dry-run")])
    return None if set(flags) <= {"--dry-run"} else f"{name} has no stage to give {flags} to"


def _of_pip(words: list[str]) -> str | None:
    """Extras that are asked for must be in setup.py."""
    extras = re.findall(r"\.\[([\w,-]+)\]", " ".join(words))
    known = set(re.findall(r'^        "([\w-]+)": \[', (ROOT / "setup.py").read_text(), re.M))
    unknown = [extra for group in extras for extra in group.split(",") if extra not in known]
    return f"setup.py has no extra {unknown[0]}" if unknown else None


@pytest.mark.parametrize(
    ("line", "said"),
    [
        (
            "python -m megatron_ring.sft --run-dir r --preset ring-tiny --data.train t --data.tokenizer t --epoch 3",
            "--epoch",
        ),
        (
            "python -m megatron_ring.sft --run-dir r --preset ring-tiny --data.train t --data.tokenizer t --epochs many",
            "--epochs",
        ),
        ("python -m megatron_ring.rl --run-dir r", "--init-from"),
        ("torchrun --nproc-per-node 2 -m megatron_ring.rlx --run-dir r", "no such stage"),
        ("START=$(python tools/select_checkpoint.py --runn runs/sft)", "unknown option --runn"),
        ("python tools/convert_hf.py imports --hf a --out b", "no subcommand imports"),
        ("python tools/convert_hf.py export --hf a --out b", "unknown option --hf"),
        ("python tools/nothing.py", "no such tool"),
        ("make demos", "no such target demos"),
        ("make demo SEEDS=1", "no such variable SEEDS"),
        ("examples/tiny/nothing.sh", "no such launcher"),
        ("A=1 examples/tiny/rl.sh --budget.token 3", "--budget.token"),
        ("sbatch --nodes 2 examples/slurm.sh examples/tiny/rl.sh --steps none", "--steps"),
        ("pip install -e '.[flashy]'", "no extra flashy"),
        ("make demo && frobnicate", "unknown command"),
    ],
)
def test_the_check_sees_mistakes(line: str, said: str) -> None:
    found = [problem(command) for command in commands("page", f"```bash\n{line}\n```\n")]
    assert any(text and said in text for text in found), found


def test_what_is_right_passes() -> None:
    text = """```bash
    cat > mine.py <<'EOF'
    frobnicate --everything
    EOF
    torchrun --nproc-per-node 8 -m megatron_ring.rl --run-dir runs/rl --init-from $START \\
        --data.prompts p.jsonl --data.tokenizer t --parallel.expert 8   # a comment
    A=1 B=2 examples/ring_lite/rl_math.sh --dry-run
    echo "a | b" | python -m megatron_ring.generate --checkpoint c --tokenizer t > out.txt
```
""".replace("\n    EOF", "\nEOF")
    found = list(commands("page", text))
    assert [command.words[0] for command in found] == ["cat", "torchrun", "examples/ring_lite/rl_math.sh", "echo", "python"]
    assert [problem(command) for command in found] == [None] * 5
    assert [
        command.words[1] for command in commands("page", "Try:\n\n    python tools/score.py --detail\n\n    L = 1\n")
    ] == ["tools/score.py"]


def test_anchors_are_githubs() -> None:
    assert anchors("# A `b` / c: d\n\n```\n# no\n```\n## 2026 x\n## 2026 x\n") == {"a-b--c-d", "2026-x", "2026-x-1"}
    assert links("[a](b.md#c) `[x](y)` ![p](q.png)\n```\n[n](o)\n```\n") == ["b.md#c", "q.png"]
