"""A chat template from a file: taken by every stage alike, or refused in one line; the same rendering wherever one asks."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from megatron_ring.config.generate import GenerateConfig
from megatron_ring.config.reward_model import PreferenceDataConfig, RewardModelConfig
from megatron_ring.config.sampling import SamplingConfig
from megatron_ring.config.sft import SFTConfig, SFTDataConfig
from megatron_ring.data.messages import read_messages
from megatron_ring.data.records import Message, SFTRecord, prompt_from_json, sft_from_json
from megatron_ring.data.sentencepiece_model import tokenizer_folder
from megatron_ring.data.tokenizer import RingTokenizer
from megatron_ring.errors import UserError
from megatron_ring.rewards.interface import ScoreRequest
from megatron_ring.rewards.tool_calls import score as score_calls
from megatron_ring.serving.prompts import tokens_of_chat
from megatron_ring.serving.protocol import read_chat

# As later reasoning models have it: thinking before the last question is dropped, tools speak in a turn of the user.
DROPS = """{% set ns = namespace(last=-1) %}
{%- for m in messages %}{% if m['role'] == 'user' %}{% set ns.last = loop.index0 %}{% endif %}{% endfor %}
{%- for m in messages %}
{%- set text = m['content'] %}
{%- if m['role'] == 'assistant' and loop.index0 < ns.last and '</think>' in text %}
{%- set text = text.split('</think>')[-1].lstrip() %}{% endif %}
{%- if m["role"] == "tool" %}{{ "[user]<result>" + text + "</result>" }}{% else %}{{ "[" + m["role"] + "]" + text }}
{%- endif %}
{%- if m['role'] == 'assistant' %}{{ eos_token }}{% endif %}
{%- endfor %}{% if add_generation_prompt %}{{ '[assistant]' }}{% endif %}"""
KEEPS = DROPS.replace("loop.index0 < ns.last and", "false and")
OPENS = KEEPS.replace("'[assistant]'", "'[assistant]<think>\n'")
TURNS = [
    Message("system", "be brief"), Message("user", "6*7?"), Message("assistant", "<think>\nsix sevens\n</think>\n\n42"),
    Message("user", "and look it up"), Message("assistant", "<think>\nask\n</think>\n\ncalling"),
    Message("tool", "42 it is"),
]  # fmt: skip
ANSWER = Message("assistant", "<think>\nseen\n</think>\n\nIt is 42.")


def loaded(folder: Path, tmp_path: Path, template: str) -> RingTokenizer:
    file = tmp_path / "t.jinja"
    file.write_text(template)
    return RingTokenizer.load(folder, file)


@pytest.mark.parametrize("turns", [TURNS, TURNS[:2], TURNS[:4]], ids=len)
@pytest.mark.parametrize("template", [None, KEEPS, DROPS, OPENS], ids=["default", "keeps", "drops", "opens"])
def test_every_stage_renders_alike(
    template: str | None, turns: list[Message], tokenizer: RingTokenizer, tokenizer_dir: Path, tmp_path: Path
) -> None:
    """RL, evaluate and generate ask for `prompt_tokens`, the server for `tokens_of_chat`, SFT for `training_tokens`."""
    given = tokenizer if template is None else loaded(tokenizer_dir, tmp_path, template)
    prompt = given.prompt_tokens(turns)
    body = {"messages": [{"role": one.role, "content": one.content} for one in turns]}
    ask = read_chat(body, SamplingConfig())
    assert tokens_of_chat(ask, given, None) == prompt
    assert tokens_of_chat(ask, given, "In short.") == given.prompt_tokens(turns, "In short.") != prompt
    tokens, mask = given.training_tokens(SFTRecord((*turns, ANSWER)), train_on="last")
    assert list(tokens[: len(prompt)]) == prompt and not any(mask[: len(prompt)]) and all(mask[len(prompt) :])
    text, answer = given.decode(prompt, skip_special=False), given.decode(tokens[len(prompt) :], skip_special=False)
    chat = [{"role": one.role, "content": one.content} for one in turns]
    whole = given._tokenizer.apply_chat_template(chat, tokenize=False, add_generation_prompt=True)
    said = ANSWER.content.removeprefix("<think>\n") if template == OPENS else ANSWER.content
    assert answer == said + "<|endoftext|>"
    if template in (KEEPS, DROPS):
        assert text == whole and "In short" not in text
    if len(turns) > 3:
        assert ("six sevens" in text) == (template != DROPS), "thinking of earlier turns is dropped as the template says"
        assert ("ask" in text) == (len(turns) == len(TURNS)), "that of the turn under way stays"
    assert ("42 it is" in text) == (turns is TURNS)


# As Hermes and later Ling models write tools and their calls; the second ends turns without the end of a text.
HERMES = """{% if tools %}{{ '[system]tools: ' + (tools | tojson) }}{% endif %}
{%- for m in messages %}{{ '[' + m['role'] + ']' + m['content'] }}
{%- for call in m.tool_calls or [] %}{{ '<tool_call>\n' + (call.function | tojson) + '\n</tool_call>' }}{% endfor %}
{%- if m['role'] == 'assistant' %}{{ eos_token + '\n' }}{% endif %}
{%- endfor %}{% if add_generation_prompt %}{{ '[assistant]' }}{% endif %}"""
NO_END = HERMES.replace("{{ eos_token + '\n' }}", "")
TOOLS = [{"type": "function", "function": {"name": "add", "parameters": {"type": "object"}}}]
CALLS = [{"type": "function", "function": {"name": "add", "arguments": {"a": 1, "b": "é"}}}]
CALLED = '<tool_call>\n{"name": "add", "arguments": {"a": 1, "b": "é"}}\n</tool_call>'


@pytest.mark.parametrize("template", [HERMES, NO_END], ids=["hermes", "no end"])
def test_tools_and_their_calls_are_rendered_alike(
    template: str, tokenizer: RingTokenizer, tokenizer_dir: Path, tmp_path: Path
) -> None:
    """Files of SFT and RL and the server's clients write the same conversation; its text is the template's."""
    given = loaded(tokenizer_dir, tmp_path, template)
    chat = [
        {"role": "user", "content": "1+2?"},
        {"role": "assistant", "content": "<think>\nlook\n</think>\n\n", "tool_calls": CALLS},
        {"role": "tool", "content": "3"},
    ]
    answer = {"role": "assistant", "content": "It is 3."}
    prompt = given.prompt_tokens(prompt_from_json(
        {"id": "a", "domain": "tool-calls", "prompt": chat, "answer": {"calls": []}, "tools": TOOLS}
    ).messages)  # fmt: skip
    assert tokens_of_chat(read_chat({"messages": chat, "tools": TOOLS}, SamplingConfig()), given, None) == prompt
    record = sft_from_json({"messages": [*chat, answer], "tools": TOOLS})
    tokens, mask = given.training_tokens(record)
    assert list(tokens[: len(prompt)]) == prompt
    text = given.decode(prompt, skip_special=False)
    assert text == given._tokenizer.apply_chat_template(chat, tools=TOOLS, tokenize=False, add_generation_prompt=True)
    end = "<|endoftext|>"
    learnt = given.decode([token for token, one in zip(tokens, mask, strict=True) if one], skip_special=False)
    assert learnt == f"<think>\nlook\n</think>\n\n{CALLED}{end if template == HERMES else ''}It is 3.{end}"
    # What an RL run samples behind the first question is what SFT has taught there, and the verifier reads it.
    first = given.prompt_tokens(record.messages[:1])
    assert list(tokens[: len(first)]) == first and not any(mask[: len(first)]) and mask[len(first)]
    request = ScoreRequest("tool-calls", "1+2?", CALLED, {"calls": [CALLS[0]["function"]]})
    assert score_calls(request).value == 1
    bare = loaded(tokenizer_dir, tmp_path, KEEPS)
    for unseen in (record, sft_from_json({"messages": [*chat, answer]})):
        with pytest.raises(UserError, match=r"t\.jinja: the chat template does not show tools or their calls \(add\)"):
            bare.training_tokens(unseen)


@pytest.mark.parametrize("left_out", [" + (call.function | tojson) + ", " + (tools | tojson)"], ids=["calls", "tools"])
def test_half_of_it_is_not_shown(left_out: str, tokenizer_dir: Path, tmp_path: Path) -> None:
    given = loaded(tokenizer_dir, tmp_path, HERMES.replace(left_out, " + " if left_out.endswith("+ ") else ""))
    chat = [{"role": "user", "content": "1+2?"}, {"role": "assistant", "content": "", "tool_calls": CALLS}]
    with pytest.raises(UserError, match=r"does not show tools or their calls \(add\)"):
        given.training_tokens(sft_from_json({"messages": chat, "tools": TOOLS}))


def test_results_as_json_text(tokenizer_dir: Path, tmp_path: Path) -> None:
    """As Llama's template writes what a tool has said."""
    spoken = HERMES.replace("m['content'] }}", "(m.content | tojson if m.role == 'tool' else m.content) }}")
    said = '{"sum": "3 é"}\nand "no" more'
    chat = [{"role": "user", "content": "1+2?"}, {"role": "assistant", "content": None, "tool_calls": CALLS},
            {"role": "tool", "content": said}]  # fmt: skip
    given = loaded(tokenizer_dir, tmp_path, spoken)
    text = given.decode(given.prompt_tokens(read_messages(chat, "prompt", last="user")[0]), skip_special=False)
    assert said not in text and json.dumps(said, ensure_ascii=False) in text


def test_half_of_a_surrogate_pair_in_arguments(tokenizer_dir: Path, tmp_path: Path) -> None:
    """JSON text within JSON may spell one, which no check of the file's own text sees."""
    call = {"type": "function", "function": {"name": "add", "arguments": '{"a": "\\ud800"}'}}
    record = sft_from_json({"messages": [{"role": "user", "content": "1+2?"}, {"role": "assistant", "tool_calls": [call]}]})
    with pytest.raises(UserError, match="half of a surrogate pair"):
        loaded(tokenizer_dir, tmp_path, HERMES).training_tokens(record)


def test_calls_that_the_template_puts_elsewhere(tokenizer_dir: Path, tmp_path: Path) -> None:
    """Behind a generation prompt that opens thinking which the conversation does not show: a prompt may hold such a call,
    and it cannot be learnt."""
    given = loaded(tokenizer_dir, tmp_path, HERMES.replace("'[assistant]' }}", "'[assistant]<think>\n' }}"))
    chat = [{"role": "user", "content": "1+2?"}, {"role": "assistant", "content": "", "tool_calls": CALLS},
            {"role": "tool", "content": "3"}]  # fmt: skip
    record = sft_from_json({"messages": [*chat, {"role": "assistant", "content": "It is 3."}]})
    tokens, mask = given.training_tokens(record, train_on="last")
    text = given.decode([token for token, one in zip(tokens, mask, strict=True) if not one], skip_special=False)
    assert text == given._tokenizer.apply_chat_template(chat, tokenize=False, add_generation_prompt=True)
    with pytest.raises(UserError, match="does not show an answer with calls behind where answers begin"):
        given.training_tokens(record)


def test_a_template_that_drops_thinking_trains_the_last_answer_alone(tokenizer_dir: Path, tmp_path: Path) -> None:
    given, record = loaded(tokenizer_dir, tmp_path, DROPS), SFTRecord((*TURNS[:4], ANSWER))
    with pytest.raises(UserError, match=r"t\.jinja: the chat template changes earlier turns.*--data\.train-on last"):
        given.training_tokens(record)
    marked = SFTRecord(record.messages, marks=(None, None, False, None, None))
    assert given.training_tokens(marked) == given.training_tokens(record, train_on="last")
    assert sum(given.training_tokens(SFTRecord(record.messages[1:3])).loss_mask) > 0


def test_the_fingerprint_knows_the_template(tokenizer: RingTokenizer, tokenizer_dir: Path, tmp_path: Path) -> None:
    other = loaded(tokenizer_dir, tmp_path, KEEPS)
    assert other.fingerprint != tokenizer.fingerprint == loaded(tokenizer_dir, tmp_path, own(tokenizer)).fingerprint
    assert other.vocabulary_fingerprint == tokenizer.vocabulary_fingerprint
    published = tmp_path / "chat_template.json"
    published.write_text(json.dumps({"chat_template": KEEPS}))
    assert RingTokenizer.load(tokenizer_dir, published).fingerprint == other.fingerprint


def own(tokenizer: RingTokenizer) -> str:
    return str(tokenizer.special_texts()["chat_template"])


BAD = {
    "": "is empty",
    " \n": "is empty",
    "{% for m in messages %}{{ m['content'] }}": r"is not Jinja \(its line 1\)",
    "{{ messages[0].content": "is not Jinja",
    "{{ unknown.what }}": "refuses a conversation of user",
    "{{ raise_exception('no users') }}": "refuses a conversation of user: no users",
    "{{ 1 / 0 }}": "refuses a conversation of user",
    "{% for i in range(10 ** 9) %}{% endfor %}": "refuses a conversation of user",
    "{{ ''.__class__.__mro__[1].__subclasses__() }}": "refuses a conversation of user",
    "Hello": "does not show what the user says",
    '{"chat_template": "x"}': "does not show what the user says",
}


def test_bad_templates_are_refused(tokenizer_dir: Path, tmp_path: Path) -> None:
    for text, said in BAD.items():
        with pytest.raises(UserError, match=rf"t\.jinja: .*{said}"):
            loaded(tokenizer_dir, tmp_path, text)
    (tmp_path / "bytes.jinja").write_bytes(b"{{ messages }}\xff")
    (tmp_path / "a.json").write_text("[]")
    for name, said in (
        ("none", "No such file"),
        (".", "a folder"),
        ("bytes.jinja", "not UTF-8"),
        ("a.json", "holds no text"),
    ):
        with pytest.raises(UserError, match=said):
            RingTokenizer.load(tokenizer_dir, tmp_path / name)


def test_stages_find_their_flag(tmp_path: Path) -> None:

    file = tmp_path / "t.jinja"
    sft = SFTConfig(run_dir=tmp_path, data=SFTDataConfig(train=tmp_path, tokenizer=tmp_path, chat_template=file))
    pairs = PreferenceDataConfig(train=tmp_path, tokenizer=tmp_path, chat_template=file)
    reward = RewardModelConfig(run_dir=tmp_path, data=pairs)
    generate = GenerateConfig(checkpoint=tmp_path, tokenizer=tmp_path, chat_template=file)
    assert {one.chat_template_file for one in (sft, reward, generate)} == {file}
    assert GenerateConfig(checkpoint=tmp_path, tokenizer=tmp_path).chat_template_file is None


def test_it_is_exported(tokenizer: RingTokenizer, tokenizer_dir: Path, tmp_path: Path) -> None:
    from transformers import AutoTokenizer

    other = loaded(tokenizer_dir, tmp_path, KEEPS)
    with tokenizer_folder(tokenizer_dir, tmp_path / "t.jinja") as folder:
        assert folder is not None and RingTokenizer.load(folder).fingerprint == other.fingerprint
        assert AutoTokenizer.from_pretrained(str(folder)).chat_template == KEEPS
    assert RingTokenizer.load(tokenizer_dir).fingerprint == tokenizer.fingerprint, "what it was made of stays"
    with tokenizer_folder(tokenizer_dir) as folder:
        assert folder == tokenizer_dir


# Calls as families of published models want them, each in what it asks for beyond the others.
CALL_FORMS = {
    # Ids of nine letters and digits in calls and results, or it refuses.
    "mistral": (
        """{% for m in messages %}{% if m.role == 'user' %}{{ '[INST]' + m.content + '[/INST]' }}
{%- elif m.role == 'assistant' and m.tool_calls %}{{ '[TOOL_CALLS][' }}{% for call in m.tool_calls %}
{%- if call.id is not defined or call.id | length != 9 %}{{ raise_exception('ids have nine letters') }}{% endif %}
{{- (call.function | tojson)[:-1] + ', "id": "' + call.id + '"}' }}{% if not loop.last %}{{ ', ' }}{% endif %}{% endfor %}
{{- ']' + eos_token }}
{%- elif m.role == 'assistant' %}{{ m.content + eos_token }}
{%- else %}{% if m.tool_call_id is not defined or m.tool_call_id | length != 9 %}{{ raise_exception('nine') }}{% endif %}
{{- '[TOOL_RESULTS]' + m.content + ':' + m.tool_call_id }}{% endif %}{% endfor %}""",
        '[TOOL_CALLS][{"name": "add", "arguments": {"a": 1, "b": "é"}, "id": "call00001"}, '
        '{"name": "add", "arguments": {"a": 2}, "id": "call00002"}]',
        ["[TOOL_RESULTS]3:call00001", "[TOOL_RESULTS]4:call00002"],
    ),
    # Arguments are joined to text, and a message with calls has null for its content.
    "deepseek": (
        """{% for m in messages %}{% if m.role == 'user' %}{{ '[user]' + m.content + '[assistant]' }}
{%- elif m.role == 'assistant' and m.content is none %}{% for call in m.tool_calls %}
{{- '<call>' + call.type + '<sep>' + call.function.name + '\n' + call.function.arguments + '</call>' }}{% endfor %}
{{- eos_token }}{% elif m.role == 'assistant' %}{{ m.content + eos_token }}
{%- else %}{{ '<output>' + m.content + '</output>' }}{% endif %}{% endfor %}""",
        '<call>function<sep>add\n{"a": 1, "b": "é"}</call><call>function<sep>add\n{"a": 2}</call>',
        ["<output>3</output>", "<output>4</output>"],
    ),
    # Arguments are printed as they come: an object would be Python's.
    "printed": (
        HERMES.replace("(call.function | tojson)", "call.function.name ~ ' ' ~ call.function.arguments"),
        '<tool_call>\nadd {"a": 1, "b": "é"}\n</tool_call><tool_call>\nadd {"a": 2}\n</tool_call>',
        ["[tool]3", "[tool]4"],
    ),
    # Arguments are written one by one, so text would not do.
    "xml": (
        HERMES.replace(
            "(call.function | tojson)",
            "call.function.name %}{% for k, v in call.function.arguments | items %}"
            "{{ '<' + k + '>' ~ v ~ '</' + k + '>' }}{% endfor %}{{ ''",
        ).replace("'<tool_call>\n' + call.function.name %}", "'<tool_call>\n' + call.function.name }}"),
        "<tool_call>\nadd<a>1</a><b>é</b>\n</tool_call><tool_call>\nadd<a>2</a>\n</tool_call>",
        ["[tool]3", "[tool]4"],
    ),
    # Ids and names are shown, and nothing is said where there are none.
    "shown": (
        HERMES.replace("'[' + m['role'] + ']'", "'[' + m['role'] ~ m.name ~ m.tool_call_id ~ ']'").replace(
            "(call.function | tojson)", "call.id ~ (call.function | tojson)"
        ),
        '<tool_call>\ncall00001{"name": "add", "arguments": {"a": 1, "b": "é"}}\n</tool_call>'
        '<tool_call>\ncall00002{"name": "add", "arguments": {"a": 2}}\n</tool_call>',
        ["[tooladdcall00001]3", "[tooladdcall00002]4"],
    ),
    "hermes": (
        HERMES,
        '<tool_call>\n{"name": "add", "arguments": {"a": 1, "b": "é"}}\n</tool_call>'
        '<tool_call>\n{"name": "add", "arguments": {"a": 2}}\n</tool_call>',
        ["[tool]3", "[tool]4"],
    ),
}


@pytest.mark.parametrize("name", CALL_FORMS)
def test_calls_come_in_the_form_that_a_template_asks_for(name: str, tokenizer_dir: Path, tmp_path: Path) -> None:
    template, called, results = CALL_FORMS[name]
    given = loaded(tokenizer_dir, tmp_path, template)
    second = {"type": "function", "function": {"name": "add", "arguments": '{"a": 2}'}}
    chat = [
        {"role": "user", "content": "1+2?"}, {"role": "assistant", "content": None, "tool_calls": [*CALLS, second]},
        {"role": "tool", "content": "3"}, {"role": "tool", "content": "4"},
    ]  # fmt: skip
    record = sft_from_json({"messages": [*chat, {"role": "assistant", "content": "It is 3."}]})
    tokens, mask = given.training_tokens(record)
    text = given.decode(tokens, skip_special=False)
    learnt = given.decode([token for token, one in zip(tokens, mask, strict=True) if one], skip_special=False)
    end = "<|endoftext|>"
    assert learnt == f"{called}{end}It is 3.{end}" and all(result in text for result in results)
    prompt = given.prompt_tokens(record.messages[:-1])
    assert list(tokens[: len(prompt)]) == prompt == given.prompt_tokens(prompt_from_json(
        {"id": "a", "domain": "tool-calls", "prompt": chat, "answer": {"calls": []}}
    ).messages)  # fmt: skip
    # A template that another takes the place of is tried anew.
    assert given.prompt_tokens(record.messages[:1]) == prompt[: len(given.prompt_tokens(record.messages[:1]))]


def test_one_call_a_turn_is_a_rule_of_the_template(tokenizer_dir: Path, tmp_path: Path) -> None:
    """As Llama's template has it: two calls at once are refused with its words."""
    single = HERMES.replace(
        "{%- for call",
        "{%- if (m.tool_calls or []) | length > 1 %}{{ raise_exception('one call at once') }}{% endif %}\n{%- for call",
    )
    given = loaded(tokenizer_dir, tmp_path, single)
    asked = {"role": "user", "content": "1+2?"}
    answer = {"role": "assistant", "content": "3"}
    one = [asked, {"role": "assistant", "content": "", "tool_calls": CALLS}, {"role": "tool", "content": "3"}, answer]
    assert given.training_tokens(sft_from_json({"messages": one}))
    with pytest.raises(UserError, match="one call at once"):
        given.training_tokens(sft_from_json({"messages": [one[0], {**one[1], "tool_calls": CALLS * 2}, *one[2:]]}))


@pytest.mark.parametrize(
    ("ids", "given", "found"),
    [
        (["x", "y", "z"], ["z", "x", "y"], "XYZ"),
        (["x", "y", "z"], ["z", "x"], "XZ"),
        (["x", "x", "z"], ["z", "x", "x"], "ZXX"),  # ids that are no names of one call
        (["x", "y", "z"], ["z", "x", "q"], "ZXQ"),
        (["x", "y", None], ["z", "x", "y"], "ZXY"),
        (["x", "y", "z"], ["z", None, "y"], "Z-Y"),
    ],
)
def test_results_come_in_the_order_of_their_calls(ids: list[str | None], given: list[str | None], found: str) -> None:
    calls = [{"id": one, "type": "function", "function": {"name": f"f{one}", "arguments": {}}} for one in ids]
    for written in (calls, json.dumps(calls)):
        chat = [
            {"role": "user", "content": "?"}, {"role": "assistant", "content": None, "tool_calls": written},
            *({"role": "tool", "tool_call_id": one, "content": (one or "-").upper()} for one in given),
            {"role": "assistant", "content": "so"},
        ]  # fmt: skip
        messages, _ = read_messages(chat, "messages", last="assistant")
        assert "".join(message.content for message in messages[2:-1]) == found and messages[-1].content == "so"
