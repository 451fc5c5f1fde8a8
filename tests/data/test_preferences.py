"""Preference files: the contract, public forms, bad rows in one line; and pairs packed side by side."""

from __future__ import annotations

import json
from collections import Counter
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest

from megatron_ring.config.reward_model import PreferenceDataConfig
from megatron_ring.data.fields import Fields
from megatron_ring.data.preference_data import PreferenceDataset, load_preferences
from megatron_ring.data.preference_files import read_preference_file
from megatron_ring.data.preferences import PreferenceRecord
from megatron_ring.data.records import Message
from megatron_ring.data.rows import write_rows
from megatron_ring.data.tokenizer import RingTokenizer
from megatron_ring.errors import UserError

ASK, GOOD, BAD = Message("user", "2+2?"), Message("assistant", "4"), Message("assistant", "5")
PAIR = ((ASK, GOOD), (ASK, BAD))


def written(tmp_path: Path, rows: list[Any], name: str = "p.jsonl") -> Path:
    path = tmp_path / name
    path.write_text("".join((row if isinstance(row, str) else json.dumps(row)) + "\n" for row in rows))
    return path


def read(tmp_path: Path, *rows: Any, **options: Any) -> list[PreferenceRecord]:
    return read_preference_file(written(tmp_path, list(rows)), **options).records


def turn(role: str, text: str) -> dict[str, str]:
    return {"role": role, "content": text}


CHAT = [turn("user", "2+2?"), turn("assistant", "4")]
OTHER = [turn("user", "2+2?"), turn("assistant", "5")]
ALIKE: dict[str, dict[str, Any]] = {
    "texts behind a prompt": {"prompt": "2+2?", "chosen": "4", "rejected": "5"},
    "texts behind messages": {"prompt": CHAT[:1], "chosen": "4", "rejected": "5"},
    "whole conversations": {"chosen": CHAT, "rejected": OTHER},
    "whole conversations with their prompt": {"prompt": "2+2?", "chosen": CHAT, "rejected": OTHER},
    "last messages": {"prompt": CHAT[:1], "chosen": CHAT[1:], "rejected": OTHER[1:]},
    "single messages": {"prompt": "2+2?", "chosen": CHAT[1], "rejected": OTHER[1]},
    "ShareGPT messages": {
        "conversations": [{"from": "human", "value": "2+2?"}],
        "chosen": {"from": "gpt", "value": "4"},
        "rejected": {"from": "gpt", "value": "5"},
    },
    "ranked": {"context": CHAT[:1], "completions": [{"rank": 1, "completion": OTHER[1:]}, {"rank": 0, "completion": "4"}]},
    "ranked behind a text": {"context": "2+2?",
                             "completions": [{"rank": 0, "completion": "4"}, {"rank": 1, "completion": "5"}]},
    "scored": {"prompt": "2+2?", "completions": [{"score": -1, "response": "5"}, {"score": 0.5, "response": "4"}]},
    "HelpSteer3": {"context": CHAT[:1], "response1": "5", "response2": "4", "overall_preference": 2, "domain": "stem"},
    "HelpSteer3, the first": {"context": "2+2?", "response1": "4", "response2": "5", "overall_preference": -1},
    "HelpSteer2": {"prompt": "2+2?", "response_1": "4", "response_2": "5", "preference_strength": -3},
    "UltraFeedback": {
        "instruction": "2+2?", "source": "flan", "models": ["a", "b"],
        "completions": [{"response": "5", "overall_score": 10, "fine-grained_score": 1.5},
                        {"response": "4", "overall_score": 2, "annotations": {"honesty": {"Rating": "4"}}}],
    },
    "UltraFeedback binarized": {"prompt": "2+2?", "prompt_id": "x", "chosen": CHAT, "rejected": OTHER, "messages": CHAT,
                                "score_chosen": 8.0, "score_rejected": 3.5},
    "HH-RLHF": {"chosen": "\n\nHuman: 2+2?\n\nAssistant: 4", "rejected": "\n\nHuman: 2+2?\n\nAssistant: 5"},
    "HH-RLHF with its prompt": {"prompt": "\n\nHuman: 2+2?\n\nAssistant:", "chosen": " 4", "rejected": " 5"},
    "HH-RLHF repeated": {"prompt": "Human: 2+2?\n\nAssistant:", "chosen": "Human: 2+2?\n\nAssistant: 4",
                         "rejected": "Human: 2+2?\n\nAssistant: 5"},
    "Nectar": {"prompt": "\n\nHuman: 2+2?\n\nAssistant: ",
               "answers": [{"answer": "5", "rank": 7}, {"answer": "4", "rank": 1}]},
    "PKU-SafeRLHF": {"prompt": "2+2?", "response_0": "5", "response_1": "4", "better_response_id": 1},
    "SHP": {"history": "2+2?", "human_ref_A": "4", "human_ref_B": "5", "labels": 1},
    "Arena": {"conversation_a": OTHER, "conversation_b": CHAT, "winner": "model_b"},
    "ms-swift": {"messages": CHAT, "rejected_response": "5"},
    "Alpaca": {"instruction": "2+2?", "input": "", "chosen": "4", "rejected": "5"},
    "Orca": {"question": "2+2?", "chosen": "4", "rejected": "5"},
}  # fmt: skip


@pytest.mark.parametrize("name", ALIKE)
def test_the_same_pair_in_every_form(tmp_path: Path, name: str) -> None:
    (found,) = read(tmp_path, ALIKE[name])
    strip = [tuple(Message(m.role, m.content.strip()) for m in side) for side in (found.chosen, found.rejected)]  # type: ignore[union-attr]
    assert tuple(strip) == PAIR, name
    parquet = tmp_path / "p.parquet"
    write_rows(parquet, [ALIKE[name]])
    assert read_preference_file(parquet).records[0].chosen == found.chosen


def test_what_forms_say_besides(tmp_path: Path) -> None:
    strengths = {"HelpSteer3": 2.0, "HelpSteer2": 3.0, "UltraFeedback": 2.5, "UltraFeedback binarized": 4.5, "Nectar": 6.0,
                 "ranked": 1.0, "scored": 1.5, "whole conversations": None}  # fmt: skip
    for name, strength in strengths.items():
        assert read(tmp_path, ALIKE[name])[0].strength == strength, name
    assert (
        read(tmp_path, ALIKE["HelpSteer3"])[0].subset == "stem"
        and read(tmp_path, ALIKE["UltraFeedback"])[0].subset == "flan"
    )
    row = {**ALIKE["texts behind a prompt"], "margin": 0.25, "subset": "math", "id": 7, "system": "Be brief."}
    (found,) = read(tmp_path, row)
    assert (found.margin, found.subset, found.id, found.place) == (0.25, "math", "7", f"{tmp_path}/p.jsonl:1")
    assert found.chosen[0] == Message("system", "Be brief.")
    fields = Fields({"chosen": "yes", "rejected": "no.text", "prompt": "q"})
    (found,) = read(tmp_path, {"q": "2+2?", "yes": "4", "no": {"text": "5"}}, fields=fields)
    assert (found.chosen, found.rejected) == PAIR


def test_several_answers_best_against_worst_or_all(tmp_path: Path) -> None:
    row = {"context": "?", "completions": [{"rank": r, "completion": f"a{r}-{i}"} for i, r in enumerate((2, 0, 1, 2))]}

    def answers(**options: Any) -> list[tuple[str, str]]:
        return [(one.chosen[-1].content, one.rejected[-1].content) for one in read(tmp_path, row, **options)]

    assert answers() == [("a0-1", "a2-3")]
    assert Counter(answers(pairs="all")) == Counter(
        [("a0-1", "a1-2"), ("a0-1", "a2-0"), ("a0-1", "a2-3"), ("a1-2", "a2-0"), ("a1-2", "a2-3")]
    )


def test_texts_without_a_prompt_are_taken_as_they_are(tmp_path: Path, tokenizer: RingTokenizer) -> None:
    (found,) = read(tmp_path, {"chosen": "Find 3 div 2.", "rejected": "Find"})
    assert (found.chosen, found.rejected) == ("Find 3 div 2.", "Find")
    data = PreferenceDataset([found], tokenizer, config(tmp_path), 0, 512)
    assert list(data.pairs[0].chosen) == [*tokenizer.encode("Find 3 div 2."), tokenizer.eos_id]
    assert data.pairs[0].chosen_answer == len(data.pairs[0].chosen)


def test_transcripts(tmp_path: Path) -> None:
    said = "\n\nHuman: a\n\nAssistant: b: c\n\nHuman: d\n\nHuman: e\n\nAssistant: f\n\nmore"
    (found,) = read(tmp_path, {"chosen": said, "rejected": said.replace("more", "less")})
    assert found.chosen == (Message("user", "a"), Message("assistant", "b: c"), Message("user", "d\n\ne"),
                            Message("assistant", "f\n\nmore"))  # fmt: skip
    (found,) = read(tmp_path, {"prompt": "Who?", "chosen": "Human: x\n\nAssistant: y", "rejected": "z"})
    assert found.chosen[-1].content == "Human: x\n\nAssistant: y"  # an answer that looks like one


LEFT_OUT: dict[str, dict[str, Any]] = {
    "0": {"context": "?", "response1": "a", "response2": "b", "overall_preference": 0},
    "tie": {"conversation_a": CHAT, "conversation_b": OTHER, "winner": "tie (bothbad)"},
    "equal ranks": {"context": "?", "completions": [{"rank": 1, "completion": "a"}, {"rank": 1, "completion": "b"}]},
    "the same": {"prompt": "?", "chosen": "a", "rejected": "a"},
    "one rating": {"instruction": "?", "completions": [{"response": "a", "overall_score": 1}, {"response": "b"}]},
}


@pytest.mark.parametrize("name", LEFT_OUT)
def test_rows_without_a_preference_are_left_out_and_counted(tmp_path: Path, name: str) -> None:
    row = LEFT_OUT[name]
    if "overall_preference" in row or "conversation_a" in row:
        good = ALIKE["HelpSteer3" if "overall_preference" in row else "Arena"]
    else:
        good = ALIKE["UltraFeedback" if "instruction" in row else "ranked" if "context" in row else "texts behind a prompt"]
    file = read_preference_file(written(tmp_path, [good, row, good]))
    assert len(file.records) == 2 and "1 rows without a preference left out (the first: " in file.note
    assert f"{tmp_path}/p.jsonl:2" in file.note
    with pytest.raises(UserError, match=r"p\.jsonl:1: .*no pair of the file is left"):
        read(tmp_path, row)


BAD_ROWS: dict[str, tuple[Any, str]] = {
    "nothing": ({}, "'chosen' is missing: give text or messages"),
    "other names": ({"prompt": "?", "accepted": "a", "reject": "b"}, "--data.fields chosen=accepted"),
    "one side": ({"prompt": "?", "chosen": "a"}, "'rejected' is missing"),
    "null": ({"prompt": "?", "chosen": "a", "rejected": None}, "'rejected' is missing"),
    "empty": ({"prompt": "?", "chosen": "a", "rejected": " "}, "'rejected' is empty"),
    "a number": ({"prompt": "?", "chosen": 4, "rejected": "b"}, "'chosen' is a number"),
    "no messages": ({"chosen": [], "rejected": CHAT}, "'chosen' is an empty list"),
    "ends with the user": ({"chosen": CHAT[:1], "rejected": CHAT}, "ends with a message of role user"),
    "other prompts": ({"prompt": "3+3?", "chosen": CHAT, "rejected": OTHER}, "'prompt' is not the beginning"),
    "odd role": ({"chosen": [turn("user", "?"), turn("robot", "x")], "rejected": CHAT}, "role 'robot'"),
    "a picture": ({"prompt": "?", "chosen": "a", "rejected": "b", "images": ["x"]}, "'images' is given"),
    "list of texts": ({"prompt": "?", "chosen": ["a"], "rejected": ["b", "c"]}, "tools/score_rewards.py"),
    "text and conversation": ({"chosen": "a", "rejected": CHAT}, "give both alike"),
    "margin": ({"prompt": "?", "chosen": "a", "rejected": "b", "margin": "big"}, "'margin' is text"),
    "ends with Human": ({"chosen": "\n\nHuman: a\n\nAssistant: b\n\nHuman: c", "rejected": "x"}, "a turn of role user"),
    "one completion": ({"context": "?", "completions": [{"rank": 0, "completion": "a"}]}, "two answers or more"),
    "no rank": ({"context": "?", "completions": [{"completion": "a"}, {"completion": "b"}]}, "give a 'rank'"),
    "rank and score": ({"context": "?", "completions": [{"rank": 0, "score": 1, "completion": "a"}] * 2}, "give a 'rank'"),
    "no context": ({"completions": [{"rank": 0, "completion": "a"}, {"rank": 1, "completion": "b"}]}, "'context' is mis"),
    "no text": ({"context": "?", "completions": [{"rank": 0}, {"rank": 1}]}, "has no 'completion'"),
    "preference of text": ({"context": "?", "response1": "a", "response2": "b", "overall_preference": "A"}, "is text"),
    "a list": ([1], "expected an object"),
    "no JSON": ("{'chosen': 1}", "not JSON"),
}  # fmt: skip


@pytest.mark.parametrize("name", BAD_ROWS)
def test_a_bad_row_is_one_clear_line(tmp_path: Path, name: str) -> None:
    row, said = BAD_ROWS[name]
    with pytest.raises(UserError) as error:
        read(tmp_path, row)
    assert str(error.value).startswith(f"{tmp_path}/p.jsonl:1: ") and said in str(error.value), error.value
    assert "\n" not in str(error.value)


def test_bad_rows_can_be_left_out(tmp_path: Path) -> None:
    good = ALIKE["texts behind a prompt"]
    path = written(tmp_path, [good, {"prompt": "?", "chosen": "a"}, good, {"prompt": "?"}])
    with pytest.raises(UserError, match=r"p\.jsonl:2: 'rejected' is missing"):
        read_preference_file(path)
    file = read_preference_file(path, bad_rows="drop")
    assert len(file.records) == 2 and "2 malformed rows left out (the first: " in file.note
    empty = tmp_path / "e.jsonl"
    empty.write_text("\n")
    with pytest.raises(UserError, match="the file holds no rows"):
        read_preference_file(empty)


def config(tmp_path: Path, **more: Any) -> PreferenceDataConfig:
    return PreferenceDataConfig(train=tmp_path / "p.jsonl", tokenizer=tmp_path, context_length=128, global_batch=3, **more)


def records(count: int) -> list[PreferenceRecord]:
    made = []
    for number in range(count):
        ask = Message("user", f"Find {number} div 3.")
        better, worse = (
            Message("assistant", f"{number}={number}*1\n" * n + str(number)) for n in (number % 5, (number + 2) % 3)
        )
        made.append(PreferenceRecord((ask, better), (ask, worse), subset="ab"[number % 2], strength=float(number % 4)))
    return [one for one in made if one.chosen != one.rejected]


def test_pairs_lie_side_by_side_and_each_comes_once_an_epoch(tmp_path: Path, tokenizer: RingTokenizer) -> None:
    given = records(40)
    data = PreferenceDataset(given, tokenizer, config(tmp_path, margin="strength", margin_scale=0.5), 3, 512)
    expected = Counter((tuple(p.chosen), tuple(p.rejected), p.margin) for p in data.pairs)
    assert len(data.pairs) == len(given) and data.with_margin == sum(one.strength != 0 for one in given)
    orders = []
    for epoch in (0, 1):
        found: Counter[Any] = Counter()
        for step in range(data.steps_per_epoch):
            parts = [data.batch(epoch, step, part, 3) for part in range(3)]
            assert [b.tokens.tolist() for part in zip(*parts, strict=True) for b in part] == [
                b.tokens.tolist() for b in data.batch(epoch, step)
            ]
            for batch in data.batch(epoch, step):
                bounds = [b for b in pairwise(batch.cu_seqlens.tolist()) if batch.token_mask[b[0]]]
                ends = batch.loss_mask.nonzero()[:, 0].tolist()
                assert ends == [end - 1 for _, end in bounds] and batch.loss_terms == len(bounds) // 2
                assert all(batch.positions[start] == 0 for start, _ in bounds)
                assert all(batch.tokens[end] == tokenizer.eos_id for end in ends)
                sides = [tuple(batch.tokens[start:end].tolist()) for start, end in bounds]
                margins = batch.margins[batch.loss_mask].tolist()
                found.update(zip(sides[0::2], sides[1::2], margins[0::2], strict=True))
                assert margins[0::2] == margins[1::2] and not batch.margins[~batch.loss_mask].any()
        assert found == expected
        orders.append([batch.tokens.tolist() for step in range(data.steps_per_epoch) for batch in data.batch(epoch, step)])
    assert orders[0] != orders[1] and data.tokens / (data.packs * 128) > 0.85
    assert data.subsets == Counter(one.subset for one in given)


def test_answers_are_measured_without_their_prompt(tmp_path: Path, tokenizer: RingTokenizer) -> None:
    data = PreferenceDataset(records(4)[-1:], tokenizer, config(tmp_path), 0, 512)
    (pair,), (record,) = data.pairs, records(4)[-1:]
    assert pair.chosen_answer == len(tokenizer.encode(record.chosen[-1].content)) + 1  # type: ignore[union-attr]
    assert pair.rejected_answer < len(pair.rejected)


def test_what_is_too_long_or_spells_a_control_token(tmp_path: Path, tokenizer: RingTokenizer) -> None:
    row = {"prompt": "Find 9 div 3.", "chosen": "1 " * 40, "rejected": "3"}
    ends = {
        "prompt": "Find 9 div 3.",
        "chosen": f"3{tokenizer.decode([tokenizer.eos_id], skip_special=False)}",
        "rejected": "4",
    }
    fine = {"prompt": "Find 9 div 3.", "chosen": "3", "rejected": "4"}
    given = config(tmp_path)
    for rows, told, drop in (
        (
            [fine, row],
            r"p\.jsonl:2: the pair has \d+ \+ \d+ tokens, more than 64 together: raise --data\.context",
            "overlong",
        ),
        ([fine, ends], r"p\.jsonl:2: the assistant's text spells the control token", "control_tokens"),
    ):
        written(tmp_path, rows)
        small = replace(given, context_length=64)
        with pytest.raises(UserError, match=told):
            load_preferences(small, tokenizer, 0, 512)
        dropping: dict[str, Any] = {drop: "drop"}
        data, validation = load_preferences(replace(small, **dropping), tokenizer, 0, 512)
        assert len(data.pairs) == 1 and data.dropped + data.dropped_controls == 1 and validation is None
        written(tmp_path, rows[1:])
        with pytest.raises(UserError, match="no pair is left to train on"):
            load_preferences(replace(small, **dropping), tokenizer, 0, 512)
    written(tmp_path, [row])
    with pytest.raises(UserError, match="the model has 20 positions"):
        load_preferences(replace(given, context_length=4096), tokenizer, 0, 20)
    written(tmp_path, [fine, ends])
    assert len(load_preferences(replace(given, control_tokens="keep"), tokenizer, 0, 512)[0].pairs) == 2


def test_a_margin_that_is_not_asked_for_may_be_anything(tmp_path: Path, tokenizer: RingTokenizer) -> None:
    written(tmp_path, [{"prompt": "Find 9 div 3.", "chosen": "3", "rejected": "4", "margin": "significantly better"}])
    with pytest.raises(UserError, match=r"p\.jsonl:1: 'margin' is text: make it a number"):
        load_preferences(config(tmp_path), tokenizer, 0, 512)
    assert load_preferences(config(tmp_path, margin="none"), tokenizer, 0, 512)[0].with_margin == 0


def test_the_fingerprint_knows_tokens_and_margins(tmp_path: Path, tokenizer: RingTokenizer) -> None:
    given, plain = records(6), config(tmp_path)

    def mark(some: list[PreferenceRecord], **more: Any) -> str:
        return PreferenceDataset(some, tokenizer, config(tmp_path, **more), 0, 512).fingerprint

    assert mark(given) == mark(given) != mark(given, margin="strength") != mark(given, margin="strength", margin_scale=2.0)
    swapped = [replace(one, chosen=one.rejected, rejected=one.chosen) for one in given]
    assert mark(swapped) != mark(given) and plain.margin == "column"
