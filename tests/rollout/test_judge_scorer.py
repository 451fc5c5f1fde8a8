"""The judge's domains over real responses: what each asks, what a reply is worth, and the same under every layout."""

from __future__ import annotations

import json
import re
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from megatron_ring.config.judge import RewardJudgeConfig
from megatron_ring.config.parallel import ParallelConfig
from megatron_ring.config.presets import RING_TINY
from megatron_ring.config.rewards import RewardConfig
from megatron_ring.config.sampling import SamplingConfig
from megatron_ring.data.prompts import StreamPrompt
from megatron_ring.data.records import PromptRecord
from megatron_ring.data.schedule import PromptSource
from megatron_ring.data.tokenizer import RingTokenizer, train_bpe
from megatron_ring.errors import UserError
from megatron_ring.judging.cache import begin_again, cache_of_run
from megatron_ring.judging.verdict import Reply
from megatron_ring.rewards.batch import BatchItem
from megatron_ring.rewards.interface import JUDGE_FAILURE, Reward, ScoreRequest
from megatron_ring.rollout.judge_scorer import JudgeScorer, PairwiseJudge, ReferenceJudge, RubricJudge, ScoreJudge
from megatron_ring.rollout.scoring import check_prompts
from tests.judging.rule_server import Answer, RuleServer, by_length, completion
from tests.judging.test_protocol import part, says
from tests.layouts import LAYOUTS


class Rules:
    """A judge that is a function of prompts; also the resources of a scorer that it serves."""

    def __init__(self, folder: Path, generate: Callable[..., list[Reply]], again: float = 0.0) -> None:
        self.tokenizer, self.generate = RingTokenizer.load(folder), generate
        self.config = RewardConfig(judge=RewardJudgeConfig(url="http://h/v1", model="m", again=again))
        self.shared, self.asked = {"judge": self}, list[str]()

    def __call__(self, prompts: list[str]) -> list[Reply]:
        self.asked += prompts
        return self.generate(prompts)

    def at_hand(self) -> Any:
        import contextlib

        return contextlib.nullcontext()


@pytest.fixture(scope="module")
def tokens(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("tokenizer")
    train_bpe(["one two three four"] * 20, 300, folder)
    (folder / "rewards.json").write_text(json.dumps(RULED))
    return folder


def items(*answers: str, group: int = 0, reference: Any = "", prompt: Any = "q") -> list[BatchItem]:
    request = ScoreRequest("judge", prompt, "", reference)
    return [BatchItem(replace(request, response=text), group, sample) for sample, text in enumerate(answers)]


def scored(rules: Rules, kind: type[JudgeScorer], batch: list[BatchItem]) -> list[Reward]:
    return kind(rules).score(batch)


def longer(prompt: str) -> str:
    """Of a pair, the longer one; also the mark of one answer, by its length."""
    if "--- answer A" in prompt:
        first, second = len(part(prompt, "answer A")), len(part(prompt, "answer B"))
        return "A=B" if first == second else "A>B" if first > second else "B>A"
    return str(min(10, len(part(prompt, "answer"))))


def test_scores_rubrics_and_true_answers(tokens: Path) -> None:
    rules = Rules(tokens, says(longer))
    rewards = scored(rules, ScoreJudge, items("abc", "", "<think>so</think>ab", "<think>never ends"))
    assert [reward.value for reward in rewards] == [0.3, 0.0, 0.2, 0.0] and len(rules.asked) == 2
    assert rewards[0].reason == "judge: 3" and rewards[3].reason == "no answer after the thinking"
    scored(rules, ScoreJudge, items("abc", reference=" the best "))
    assert part(rules.asked[-1], "reference") == "the best"

    def keeps(prompt: str) -> str:
        return "YES" if part(prompt, "criterion") in part(prompt, "answer") else "NO"

    found = scored(Rules(tokens, says(keeps)), RubricJudge, items("a b", "a", reference=["a", "b"]))
    assert [reward.value for reward in found] == [1.0, 0.5] and found[1].reason == "judge: YES; NO"

    def right(prompt: str) -> str:
        return "CORRECT" if part(prompt, "true answer") == part(prompt, "answer") else "WRONG"

    assert [r.value for r in scored(Rules(tokens, says(right)), ReferenceJudge, items("4", "5", reference=4))] == [1, 0]


def test_pairs_go_around_the_circle(tokens: Path) -> None:
    """Each answer stands once in either place: a judge that sees quality finds it, one that likes a place tells nothing."""
    answers = ["x", "xxxx", "xx", "xxx"]
    rules = Rules(tokens, says(longer))
    batch = items(*answers) + items("y", "yy", group=1) + items("z", "", "", group=2) + items("w", "w", "www", group=3)
    rewards = [reward.value for reward in scored(rules, PairwiseJudge, batch)]
    # By hand: x < xxxx > xx < xxx > x, each with both of its neighbours.
    assert rewards[:4] == [0.0, 1.0, 0.0, 1.0]
    assert rewards[4:6] == [0.0, 1.0] and rewards[6:9] == [0.5, 0.0, 0.0]
    assert rewards[9:] == [0.25, 0.25, 1.0]  # equal answers are a draw
    assert len(rules.asked) == 4 + 2 + 0 + 2
    places = [Counter(part(prompt, f"answer {side}") for prompt in rules.asked[:4]) for side in "AB"]
    assert places[0] == places[1] == Counter(answers)
    for liked in ("A>B", "B>>A"):
        biased = scored(Rules(tokens, says(lambda prompt, liked=liked: liked)), PairwiseJudge, items(*answers))  # type: ignore[misc]
        assert [reward.value for reward in biased] == [0.5] * 4


def test_a_failure_is_no_verdict(tokens: Path) -> None:
    good = says(longer)

    def generate(prompts: list[str]) -> list[Reply]:
        bad = ("never", "long and never")
        return [
            Reply("score: 10", "stop") if any(text in prompt for text in bad) else reply
            for prompt, reply in zip(prompts, good(prompts), strict=True)
        ]

    rewards = scored(Rules(tokens, generate), ScoreJudge, items("never", "well"))
    assert rewards[0] == Reward(
        0.0, "no verdict, judge failed: no verdict line", {JUDGE_FAILURE: "judge failed: no verdict line"}
    )
    assert rewards[1].value == 0.4
    pairs = scored(Rules(tokens, generate), PairwiseJudge, items("never", "a", "bb", "ccc"))
    assert [JUDGE_FAILURE in reward.detail for reward in pairs] == [True, True, False, True]  # it and its neighbours


def test_a_second_opinion_measures_and_changes_nothing(tokens: Path) -> None:
    count = Counter[str]()

    def moody(prompt: str) -> str:
        count[part(prompt, "answer")] += 1
        return "8" if count[part(prompt, "answer")] == 1 else "6"

    answers = [f"answer {number}" for number in range(40)]
    rules = Rules(tokens, says(moody), again=0.5)
    rewards = scored(rules, ScoreJudge, items(*answers))
    assert {reward.value for reward in rewards} == {0.8} and len(set(rules.asked)) == len(rules.asked)
    apart = [reward.detail["judge_disagreement"] for reward in rewards if reward.detail]
    assert 10 < len(apart) < 30 and apart == pytest.approx([0.2] * len(apart))
    count.clear()
    again = scored(Rules(tokens, says(moody), again=0.5), ScoreJudge, items(*answers))
    assert again == rewards


def test_conversations_are_shown_with_their_roles(tokens: Path) -> None:
    rules = Rules(tokens, says(longer))
    turns = [{"role": "system", "content": "be brief"}, {"role": "user", "content": "hi"}]
    scored(rules, ScoreJudge, items("a", prompt=turns) + items("b", prompt=turns[1:]))
    assert [part(prompt, "request") for prompt in rules.asked] == ["[system]\nbe brief\n\n[user]\nhi", "hi"]


@pytest.mark.parametrize(
    ("domain", "answer", "said"),
    [
        ("judge/rubric", [], "a rubric is a text"),
        ("judge/rubric", [""], "a rubric is a text"),
        ("judge/rubric", {"a": 1}, "a rubric is a text"),
        ("judge/reference", " ", "the true answer is a text"),
        ("judge/reference", True, "the true answer is a text"),
        ("judge", "", "is scored by 'judge': give --rewards.judge.checkpoint or --rewards.judge.url"),
    ],
)
def test_rows_and_settings_that_nothing_can_be_judged_with(domain: str, answer: Any, said: str) -> None:
    judge = RewardJudgeConfig(**({} if domain == "judge" else {"url": "http://h/v1", "model": "m"}))  # type: ignore[arg-type]
    source = PromptSource("rl", Path("p.jsonl"), (PromptRecord("1", domain, "?", answer),))
    with pytest.raises(UserError, match=re.escape(said)):
        check_prompts([source], RewardConfig(judge=judge))
    if domain == "judge":
        with pytest.raises(UserError, match="compares the responses of a group"):
            pairs = PromptSource("rl", Path("p.jsonl"), (PromptRecord("1", "judge/pairwise", "?", ""),))
            check_prompts([pairs], RewardConfig(), whole_groups=False)


def test_replies_of_a_run_are_kept_from_checkpoint_to_checkpoint(tmp_path: Path) -> None:
    begin_again(tmp_path)  # nothing is there yet
    for number in range(4):
        cache_of_run(tmp_path, {"m": 1}).keep(f"p{number}", Reply(str(number), "stop"))
        kept = [cache_of_run(tmp_path, {"m": 1}).find(f"p{step}") is not None for step in range(number + 1)]
        assert kept == [step >= number - 1 for step in range(number + 1)]
        begin_again(tmp_path)


DOMAINS = ("judge", "judge/rubric", "judge/reference", "judge/pairwise", "ruled", "left")
ALWAYS = {"domain": "format/script", "with": {"script": "latin", "share": 0.0}}
RULED = {
    "ruled": {"parts": [{"name": "good", "domain": "judge", "rules": [ALWAYS]}]},
    "left": {"parts": [{"name": "good", "domain": "judge", "rules": [{**ALWAYS, "at_least": 2}]}]},
}


def judged_responses(
    parallel: ParallelConfig, folder: Path, judge: RewardJudgeConfig, domains: Sequence[str], offload: bool = False
) -> tuple[list[tuple[float, str]], list[tuple[str, str]]]:
    """Rewards of responses in the judge's domains, and three replies as such."""
    from megatron_ring.checkpoint.weights import initialize_weights
    from megatron_ring.model.ring_model import build_model
    from megatron_ring.parallel import context
    from megatron_ring.rollout.evaluation import evaluate_prompts
    from megatron_ring.rollout.scoring import open_scorer
    from megatron_ring.sampler.sampler import Sampler

    tokenizer = RingTokenizer.load(folder)
    shape = replace(RING_TINY, num_layers=2)
    here = context.initialize(parallel, shape, seed=0)
    model = build_model(shape, here)
    initialize_weights(model, seed=1)
    sampler = Sampler(model, here, SamplingConfig(max_new_tokens=9, max_batch=4), tokenizer.eos_id, tokenizer.decode)
    prompts = [StreamPrompt(i, PromptRecord(str(i), name, "one two", "r")) for i, name in enumerate(domains)]
    config = RewardConfig(workers=1, judge=judge, offload=offload, compositions=folder / "rewards.json")
    with open_scorer(config, domains, tokenizer, here, sampler, folder / f"cache{parallel}") as scorer:
        rewards = []
        for _ in range(2):  # the second round finds everything as the first has
            found = evaluate_prompts(prompts, sampler, tokenizer, scorer, samples=3, seed=0, instruction=None)
            rewards.append([(item.reward, item.reason) for item in found])
        assert rewards[0] == rewards[1]
        asked = next(iter(scorer._batch_scorers.values()))._judge  # type: ignore[attr-defined]
        with asked.at_hand():
            replies = [(reply.text, reply.finish) for reply in asked(["say one", "say two", "say one"])]
    return rewards[0], replies


@pytest.mark.distributed
def test_a_server_judges_alike_under_every_layout(run_on: Any, tokens: Path) -> None:
    def answer(body: dict[str, Any], number: int) -> Answer:
        return completion(by_length(body["messages"][0]["content"]))

    found = {}
    for layout in ("one", "dp2", "tp2"):
        processes, parallel = LAYOUTS[layout]
        with RuleServer(answer) as server:
            settings = RewardJudgeConfig(url=server.url, model="rule", concurrency=2)
            ranks = run_on(processes, judged_responses, parallel, tokens, settings, DOMAINS)
            asked = Counter(json.dumps(body) for body in server.asked if "Verdict" in body["messages"][0]["content"])
        assert set(asked.values()) == {1}  # nothing twice, though a round came again
        assert len(asked) == 3 * 5  # not for what a rule decides
        found[layout] = [rank[0] for rank in ranks]
    assert all(rank == found["one"][0] for ranks in found.values() for rank in ranks)
    values = {name: [value for value, _ in found["one"][0][3 * i : 3 * i + 3]] for i, name in enumerate(DOMAINS)}
    assert all(0 <= value <= 1 for of_domain in values.values() for value in of_domain)
    assert values["ruled"] == [1.0] * 3
    assert sum(values["judge/pairwise"]) == pytest.approx(1.5) and len(set(values["judge"])) > 1


@pytest.fixture(scope="module")
def judging_checkpoint(tokens: Path, tmp_path_factory: pytest.TempPathFactory, run_on: Any) -> Path:
    """A random model with room for a judge's prompts."""
    folder: Path = tmp_path_factory.mktemp("judge") / "checkpoints"
    run_on(1, save_random, folder)
    return folder / "step_0"


def save_random(folder: Path) -> None:
    from megatron_ring.checkpoint.saving import save_checkpoint
    from megatron_ring.checkpoint.weights import initialize_weights
    from megatron_ring.model.ring_model import build_model
    from megatron_ring.parallel import context

    shape = replace(RING_TINY, num_layers=2, max_positions=4096)
    here = context.initialize(ParallelConfig(), shape, seed=0)
    model = build_model(shape, here)
    initialize_weights(model, seed=3)
    save_checkpoint(folder, 0, model, None, here, {})


@pytest.mark.distributed
def test_a_checkpoint_judges_alike_under_every_layout(run_on: Any, tokens: Path, judging_checkpoint: Path) -> None:
    """A random model keeps to no form: each response is without a verdict. Its replies are the same everywhere."""
    settings = RewardJudgeConfig(checkpoint=judging_checkpoint, max_tokens=6)
    found = {}
    for layout, offload in (("one", False), ("dp2", True), ("tp2", False)):
        processes, parallel = LAYOUTS[layout]
        found[layout, offload] = run_on(
            processes, judged_responses, parallel, tokens, settings, ("judge/pairwise",), offload
        )
    first = found["one", False][0]
    assert all(rank == first for ranks in found.values() for rank in ranks)
    rewards, replies = first
    assert all(reason.startswith("no verdict, judge failed: the judge's text is cut") for _, reason in rewards)
    assert replies[0] == replies[2] != replies[1] and replies[0][0]
