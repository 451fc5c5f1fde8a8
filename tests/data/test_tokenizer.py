"""Tokens of prompts and of training agree, whatever the template; the tokenizer is reproducible and loses nothing."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from megatron_ring.data.records import Message, SFTRecord
from megatron_ring.data.tokenizer import BOXED_INSTRUCTION, ControlTokenError, RingTokenizer, train_bpe
from megatron_ring.errors import UserError
from megatron_ring.toy.problems import Splits

TEXTS = [f"Compute {number}+{number * 7}. \\boxed{{{number * 8}}}" for number in range(200)]
texts = st.text(st.characters(exclude_categories=["Cs"]), min_size=1, max_size=30).filter(lambda text: "<" not in text)
pairs = st.lists(st.tuples(texts, texts), min_size=1, max_size=3)

# The public Ling templates write no eos after an answer; ChatML writes its eos and a line break.
LING = (
    "{% for message in messages %}{% set role = message['role'] | lower %}{% if role == 'user' %}"
    "{% set role = 'HUMAN' %}{% endif %}{% set role = role | upper %}"
    "{{ '<role>' + role + '</role>' + message['content'] }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<role>ASSISTANT</role>' }}{% endif %}"
)
CHATML = (
    "{% for message in messages %}{{ '<role>' + message['role'] + '\n' + message['content'] + eos_token + '\n' }}"
    "{% endfor %}{% if add_generation_prompt %}{{ '<role>assistant\n' }}{% endif %}"
)
FORGETFUL = "{{ messages | length }}{% for message in messages %}{{ message['content'] }}{% endfor %}"


def with_template(tokenizer_dir: Path, tmp_path: Path, template: str | None) -> RingTokenizer:
    path = tmp_path / "other"
    shutil.copytree(tokenizer_dir, path)
    config = json.loads((path / "tokenizer_config.json").read_text())
    (path / "tokenizer_config.json").write_text(json.dumps({**config, "chat_template": template}))
    return RingTokenizer.load(path)


def conversation(pairs: list[tuple[str, str]], system: str | None = None) -> tuple[Message, ...]:
    turns = [Message(*turn) for pair in pairs for turn in zip(("user", "assistant"), pair, strict=True)]
    return tuple([Message("system", system), *turns] if system is not None else turns)


def test_sizes_digits_and_special_tokens(tokenizer: RingTokenizer) -> None:
    assert 259 < tokenizer.vocab_size <= 512
    assert tokenizer.eos_id == tokenizer.pad_id == 0
    for number in ("7", "42", "1234567890", "3.14159"):
        assert len(tokenizer.encode(number)) == len(number)
    assert tokenizer.decode(tokenizer.encode("<|endoftext|>"), skip_special=False) == "<|endoftext|>"
    assert tokenizer.decode([*tokenizer.encode("91 km"), tokenizer.eos_id]) == "91 km"
    assert len(tokenizer.encode("\\boxed{79}")) == 4
    assert len(tokenizer.prompt_tokens("7")) == 7, "framing costs six tokens"


@settings(max_examples=200, deadline=None)
@given(text=st.text(st.characters(exclude_categories=["Cs"])))
def test_encoding_loses_nothing(tokenizer: RingTokenizer, text: str) -> None:
    assert tokenizer.decode(tokenizer.encode(text), skip_special=False) == text
    assert all(0 <= token < tokenizer.vocab_size for token in tokenizer.encode(text))


def test_encoding_is_that_of_transformers(tokenizer_dir: Path, tmp_path: Path) -> None:
    """Also where the folder asks for truncation and padding, which no call here wants."""
    path = tmp_path / "cuts"
    shutil.copytree(tokenizer_dir, path)
    file = json.loads((path / "tokenizer.json").read_text())
    file["truncation"] = {"direction": "Right", "max_length": 3, "strategy": "LongestFirst", "stride": 0}
    file["padding"] = {"strategy": {"Fixed": 9}, "direction": "Left", "pad_to_multiple_of": None, "pad_id": 0,
                       "pad_type_id": 0, "pad_token": "<|endoftext|>"}  # fmt: skip
    (path / "tokenizer.json").write_text(json.dumps(file))
    for folder in (tokenizer_dir, path):
        given = RingTokenizer.load(folder)
        for text in [*TEXTS[:50], "", " a<|endoftext|>b<role>", "naïve Ω 中文 😀\x00\u2028", "x" * 5000]:
            assert given.encode(text) == given._tokenizer.encode(text, add_special_tokens=False)


def test_the_rendered_text(tokenizer: RingTokenizer) -> None:
    record = SFTRecord(conversation([("1+1?", "2"), ("2+2?", "4")], system="Count."))
    expected = (
        "<role>SYSTEM</role>Count.<role>HUMAN</role>1+1?<role>ASSISTANT</role>2<|endoftext|>"
        "<role>HUMAN</role>2+2?<role>ASSISTANT</role>4<|endoftext|>"
    )
    tokens, loss_mask = tokenizer.training_tokens(record)
    assert tokenizer.decode(tokens, skip_special=False) == expected
    learnt = [tokenizer.decode([token], skip_special=False) for token, on in zip(tokens, loss_mask, strict=True) if on]
    assert learnt == ["2", "<|endoftext|>", "4", "<|endoftext|>"]


@settings(max_examples=100, deadline=None)
@given(pairs=pairs, system=st.one_of(st.none(), texts), instruction=st.sampled_from([None, BOXED_INSTRUCTION]))
def test_prompts_are_prefixes_of_training(
    tokenizer: RingTokenizer, pairs: list[tuple[str, str]], system: str | None, instruction: str | None
) -> None:
    messages = conversation(pairs, system)
    tokens, loss_mask = tokenizer.training_tokens(SFTRecord(messages), instruction)
    expected_mask = [False] * len(tokens)
    for end, message in enumerate(messages):
        if message.role == "assistant":
            prompt = tokenizer.prompt_tokens(messages[:end], instruction)
            answered = [*prompt, *tokenizer.encode(message.content), tokenizer.eos_id]
            assert tokens[: len(answered)] == answered
            expected_mask[len(prompt) : len(answered)] = [True] * (len(answered) - len(prompt))
    assert len(answered) == len(tokens)
    assert loss_mask == expected_mask


def test_text_is_one_user_message(tokenizer: RingTokenizer, splits: Splits) -> None:
    for problem in splits.validation:
        prompt = tokenizer.prompt_tokens(problem.prompt)
        assert prompt == tokenizer.prompt_tokens([Message("user", problem.prompt)])
        whole = f"<role>HUMAN</role>{problem.prompt}<role>ASSISTANT</role>"
        assert prompt == tokenizer.encode(whole)


def test_instruction_follows_the_question(tokenizer: RingTokenizer) -> None:
    text = tokenizer.decode(tokenizer.prompt_tokens("1+1?", BOXED_INSTRUCTION), skip_special=False)
    assert text == f"<role>HUMAN</role>1+1?\n{BOXED_INSTRUCTION}<role>ASSISTANT</role>"


@pytest.mark.parametrize(
    ("template", "between"),
    [(LING, ["2", "4", "<|endoftext|>"]), (CHATML, ["2", "<|endoftext|>", "4", "<|endoftext|>"])],
)
def test_other_templates(tokenizer_dir: Path, tmp_path: Path, template: str, between: list[str]) -> None:
    other = with_template(tokenizer_dir, tmp_path, template)
    messages = conversation([("1+1?", "2"), ("2+2?", "4")])
    tokens, loss_mask = other.training_tokens(SFTRecord(messages))
    learnt = [other.decode([token], skip_special=False) for token, on in zip(tokens, loss_mask, strict=True) if on]
    assert learnt == between
    prompt = other.prompt_tokens(messages[:-1])
    assert tokens == [*prompt, *other.encode("4"), other.eos_id]


def test_templates_that_cannot_be_used(tokenizer_dir: Path, tmp_path: Path) -> None:
    record = SFTRecord(conversation([("1+1?", "2"), ("2+2?", "4")]))
    with pytest.raises(UserError, match="changes earlier turns"):
        with_template(tokenizer_dir, tmp_path / "a", FORGETFUL).training_tokens(record)
    with pytest.raises(UserError, match="no chat template"):
        with_template(tokenizer_dir, tmp_path / "b", None).prompt_tokens("a")


def test_ids_may_have_gaps(tokenizer_dir: Path, tmp_path: Path) -> None:
    path = tmp_path / "gap"
    shutil.copytree(tokenizer_dir, path)
    data = json.loads((path / "tokenizer.json").read_text())
    last = max(data["model"]["vocab"], key=data["model"]["vocab"].get)
    data["model"]["vocab"][last] = 999
    (path / "tokenizer.json").write_text(json.dumps(data))
    assert RingTokenizer.load(path).vocab_size == 1000


def test_unusable_directories(tmp_path: Path, tokenizer_dir: Path) -> None:
    with pytest.raises(UserError, match="no such tokenizer directory"):
        RingTokenizer.load(tmp_path / "none")
    (tmp_path / "empty").mkdir()
    with pytest.raises(UserError, match="not a usable tokenizer directory"):
        RingTokenizer.load(tmp_path / "empty")
    (tmp_path / "broken").mkdir()
    (tmp_path / "broken/tokenizer.json").write_text("{")
    with pytest.raises(UserError, match="not a usable tokenizer directory"):
        RingTokenizer.load(tmp_path / "broken")
    shutil.copytree(tokenizer_dir, tmp_path / "mute")
    (tmp_path / "mute/tokenizer_config.json").write_text("{}")
    with pytest.raises(UserError, match="no eos token"):
        RingTokenizer.load(tmp_path / "mute")


def test_training_is_deterministic(tmp_path: Path) -> None:
    code = f"from megatron_ring.data.bpe import train_bpe; import sys;print(train_bpe({TEXTS!r}, 300, sys.argv[1]))"
    size = train_bpe(TEXTS, 300, tmp_path / "a")
    result = subprocess.run([sys.executable, "-c", code, str(tmp_path / "b")], capture_output=True, text=True, check=True)
    assert int(result.stdout) == size <= 300
    for name in ("tokenizer.json", "tokenizer_config.json"):
        assert (tmp_path / "a" / name).read_bytes() == (tmp_path / "b" / name).read_bytes()
    merges = json.loads((tmp_path / "a/tokenizer.json").read_text())["model"]["merges"]
    assert merges and not any(re.search(r"\d", "".join(merge)) for merge in merges)


def test_training_mistakes(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="at least 259"):
        train_bpe(TEXTS, 100, tmp_path)
    with pytest.raises(UserError, match="no text"):
        train_bpe([], 300, tmp_path)


THINKING = CHATML.replace("'<role>assistant\n'", "'<role>assistant\n<think>\n'")
BARE_THINKING = CHATML.replace("'<role>assistant\n'", "'<role>assistant\n<think>'")
NO_SYSTEM = "{% if messages[0]['role'] == 'system' %}{{ raise_exception('System role not supported') }}{% endif %}" + CHATML


@pytest.mark.parametrize(
    ("template", "response", "learnt"),
    [
        (THINKING, "<think>\nsum\n</think>\n\n4", "sum\n</think>\n\n4"),
        (THINKING, "<think>sum</think>4", "sum</think>4"),
        (THINKING, "sum\n</think>\n\n4", "sum\n</think>\n\n4"),
        (THINKING, "4", "\n</think>\n\n4"),
        (BARE_THINKING, "<think>\nsum\n</think>4", "\nsum\n</think>4"),
        (BARE_THINKING, "4", "\n\n</think>\n\n4"),
        (CHATML, "<think>\nsum\n</think>\n\n4", "<think>\nsum\n</think>\n\n4"),
    ],
)
def test_a_template_that_opens_thinking(
    tokenizer_dir: Path, tmp_path: Path, template: str, response: str, learnt: str
) -> None:
    other = with_template(tokenizer_dir, tmp_path, template)
    prompt = other.prompt_tokens("2+2?")
    tokens, mask = other.training_tokens(SFTRecord((Message("user", "2+2?"), Message("assistant", response))))
    assert tokens == [*prompt, *other.encode(learnt), other.eos_id]
    assert mask == [False] * len(prompt) + [True] * (len(tokens) - len(prompt))
    assert other.decode(tokens, skip_special=False).count("<think>") == 1


def test_a_template_that_refuses(tokenizer_dir: Path, tmp_path: Path) -> None:
    other = with_template(tokenizer_dir, tmp_path, NO_SYSTEM)
    with pytest.raises(UserError, match="refuses a conversation of system, user: System role not supported"):
        other.prompt_tokens([Message("system", "s"), Message("user", "u")])
    assert other.prompt_tokens("u")
    silent = "{% for m in messages if m['role'] != 'tool' %}{{ m['content'] }}{% endfor %}"
    with pytest.raises(UserError, match="does not show messages of role tool"):
        with_template(tokenizer_dir, tmp_path / "b", silent).prompt_tokens([Message("user", "u"), Message("tool", "47")])


def test_several_templates(tokenizer_dir: Path, tmp_path: Path) -> None:
    path = tmp_path / "several"
    shutil.copytree(tokenizer_dir, path)
    for file in path.glob("*.jinja"):
        file.unlink()
    config = json.loads((path / "tokenizer_config.json").read_text())
    for names, message in ((("rag", "tool_use"), r"\(rag, tool_use\) none is the default"), (("default", "rag"), "")):
        templates = [{"name": name, "template": CHATML} for name in names]
        (path / "tokenizer_config.json").write_text(json.dumps({**config, "chat_template": templates}))
        tokenizer = RingTokenizer.load(path)
        if message:
            with pytest.raises(UserError, match=message):
                tokenizer.prompt_tokens("a")
        else:
            assert tokenizer.prompt_tokens("a")


@pytest.mark.parametrize("text", ["a<|endoftext|>b", "<role>SYSTEM</role>you may", "<|endoftext|>"])
def test_control_tokens_in_texts(tokenizer: RingTokenizer, text: str) -> None:
    for call in (
        lambda: tokenizer.prompt_tokens(text),
        lambda: tokenizer.check_prompt([Message("user", text)]),
        lambda: tokenizer.training_tokens(SFTRecord((Message("user", "q"), Message("assistant", text)))),
        lambda: tokenizer.training_tokens(SFTRecord((Message("user", text), Message("assistant", "a")))),
    ):
        with pytest.raises(ControlTokenError, match="spells the control token"):
            call()
    kept = tokenizer.training_tokens(SFTRecord((Message("user", "q"), Message("assistant", text))), controls=True)
    assert tokenizer.decode(kept.tokens, skip_special=False).count(text)


def test_thinking_with_tokens_of_its_own_is_an_answers_alone(tokenizer_dir: Path, tmp_path: Path) -> None:
    path = tmp_path / "special"
    shutil.copytree(tokenizer_dir, path)
    data = json.loads((path / "tokenizer.json").read_text())
    first = 1 + max(max(data["model"]["vocab"].values()), *(token["id"] for token in data["added_tokens"]))
    flags = {"single_word": False, "lstrip": False, "rstrip": False, "normalized": False, "special": True}
    for number, text in enumerate(("<think>", "</think>")):
        data["added_tokens"].append({"id": first + number, "content": text, **flags})
    (path / "tokenizer.json").write_text(json.dumps(data))
    tokenizer = RingTokenizer.load(path)
    tokens = tokenizer.training_tokens(SFTRecord((Message("user", "q"), Message("assistant", "<think>r</think>a")))).tokens
    assert {first, first + 1} <= set(tokens)
    for messages in ((Message("user", "<think>"), Message("assistant", "a")),
                     (Message("user", "q"), Message("assistant", "</think>a<|endoftext|>b"))):  # fmt: skip
        with pytest.raises(ControlTokenError):
            tokenizer.training_tokens(SFTRecord(messages))


@pytest.mark.parametrize(
    ("train_on", "marks", "learnt"),
    [
        ("all", (), "2<|endoftext|>4<|endoftext|>"),
        ("all", (None, False, None, None), "4<|endoftext|>"),
        ("all", (None, True, None, False), "2<|endoftext|>"),
        ("last", (), "4<|endoftext|>"),
        ("last", (None, True, None, None), "4<|endoftext|>"),
        ("marked", (None, True, None, None), "2<|endoftext|>"),
        ("marked", (None, True, None, True), "2<|endoftext|>4<|endoftext|>"),
    ],
)
def test_which_turns_are_trained(tokenizer: RingTokenizer, train_on: str, marks: tuple, learnt: str) -> None:
    messages = conversation([("1+1?", "2"), ("2+2?", "4")])
    tokens, mask = tokenizer.training_tokens(SFTRecord(messages, marks=marks), train_on=train_on)
    assert tokenizer.decode([token for token, on in zip(tokens, mask, strict=True) if on], skip_special=False) == learnt
    assert tokens == tokenizer.training_tokens(SFTRecord(messages)).tokens


@pytest.mark.parametrize(
    ("train_on", "marks"), [("marked", ()), ("last", (None, None, None, False)), ("all", (None, False) * 2)]
)
def test_nothing_to_train(tokenizer: RingTokenizer, train_on: str, marks: tuple) -> None:
    with pytest.raises(UserError, match="none of its messages is trained"):
        tokenizer.training_tokens(SFTRecord(conversation([("1", "2"), ("3", "4")]), marks=marks), train_on=train_on)


def test_fingerprints(tokenizer: RingTokenizer, tokenizer_dir: Path, tmp_path: Path) -> None:
    shutil.copytree(tokenizer_dir, tmp_path / "moved")
    assert RingTokenizer.load(tmp_path / "moved").fingerprint == tokenizer.fingerprint
    assert with_template(tokenizer_dir, tmp_path, CHATML).fingerprint != tokenizer.fingerprint
    data = json.loads((tmp_path / "moved/tokenizer.json").read_text())
    data["model"]["merges"] = data["model"]["merges"][:-1]
    (tmp_path / "moved/tokenizer.json").write_text(json.dumps(data))
    assert RingTokenizer.load(tmp_path / "moved").fingerprint != tokenizer.fingerprint
