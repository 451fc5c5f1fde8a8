"""The text that a chat template makes of a conversation, with its tools and calls; what it does not show is refused."""

from __future__ import annotations

import functools
import json
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from megatron_ring.data.messages import Message
from megatron_ring.data.tool_calls import CallForm, in_form, names_of
from megatron_ring.errors import UserError


def render(tokenizer: Any, where: Path, messages: Sequence[Message], settings: Mapping[str, Any]) -> str:
    """The text up to where the assistant begins to answer.

    Args:
        tokenizer: of transformers, with a chat template.
        where: the template came from, for messages.
        settings: further values for the template; `add_generation_prompt` false ends with the last message.

    Raises:
        UserError: there is no template; it refuses the conversation, or does not show all of it.
    """
    tools = messages[0].tools if messages else ""
    given = {"tools": json.loads(tools)} if tools else {}
    conversation = [message.to_json() for message in messages]
    if any(message.calls or message.role == "tool" for message in messages):
        conversation = in_form(conversation, call_form(tokenizer, repr(tokenizer.chat_template)))
    text = _apply(tokenizer, where, conversation, {**settings, **given})
    for message in messages:
        # Some templates show it as JSON text, as Llama's do.
        said = message.content.strip()
        if message.role == "tool" and said not in text and json.dumps(said, ensure_ascii=False)[1:-1] not in text:
            raise UserError(f"{where}: the chat template does not show messages of role tool")
    named = names_of(tools, *(message.calls for message in messages))
    for name in dict.fromkeys(named):
        if text.count(name) < named.count(name):  # a template may show tools and leave out calls, or the other way round
            raise UserError(f"{where}: the chat template does not show tools or their calls ({name})")
    return text


# The form in which records have calls comes first, then those that differ least from it.
FORMS = tuple(CallForm(text, ids, null) for null in (False, True) for ids in (False, True) for text in (False, True))
_ARGUMENTS = {"word": "seven"}
_TOOL = {"type": "function", "function": {"name": "probe", "description": "Look.", "parameters": {
    "type": "object", "properties": {"word": {"type": "string", "description": "Any."}}, "required": ["word"]}}}  # fmt: skip
_ASKED = {"role": "user", "content": "Look it up."}
_PROBE = (
    _ASKED,
    {"role": "assistant", "content": "", "tool_calls": [
        {"type": "function", "function": {"name": "probe", "arguments": _ARGUMENTS}}]},
    {"role": "tool", "content": "eleven"},
)  # fmt: skip


@functools.lru_cache(maxsize=8)
def call_form(tokenizer: Any, template: str) -> CallForm:
    """The form of calls that a template asks for, found by trying: the first that it shows whole, with ids where it shows
    them or the name of what was called. The first of all where it shows none, so that what it says of that is told.

    Args:
        template: the tokenizer's, which may get another.
    """

    def tried(conversation: Sequence[dict[str, Any]]) -> str:
        try:
            return _apply(tokenizer, Path(), conversation, {"tools": [_TOOL]})
        except UserError:
            return ""

    before = tried([_ASKED])
    texts = {form: tried(in_form(_PROBE, form)) for form in FORMS}
    whole = [form for form in FORMS if _shows_probe(texts[form], before)]
    if not whole:
        return FORMS[0]
    named = replace(whole[0], ids=True)
    return named if named in whole and texts[named] != texts[whole[0]] else whole[0]


def _shows_probe(text: str, before: str) -> bool:
    """Whether a call and its result are there, the arguments neither as Python writes an object nor as text within text, and
    no null as a word. `before`: what is there without them."""
    written = json.dumps(json.dumps(_ARGUMENTS))
    broken = str(_ARGUMENTS) in text or written[1:-1] in text or text.count("None") > before.count("None")
    return text.count("probe") > before.count("probe") and "seven" in text and "eleven" in text and not broken


def _apply(tokenizer: Any, where: Path, conversation: Sequence[dict[str, Any]], settings: Mapping[str, Any]) -> str:
    template = tokenizer.chat_template
    if not template:
        raise UserError(f"{where}: the tokenizer has no chat template: name a file with the flag chat-template")
    if isinstance(template, dict) and "default" not in template:
        names = ", ".join(sorted(template))
        raise UserError(f"{where}: of its chat templates ({names}) none is the default: keep one, or name it default")
    from jinja2 import TemplateError, TemplateSyntaxError

    arguments = {"tokenize": False, "add_generation_prompt": True, **settings}
    try:
        if any(message["content"] is None for message in conversation):
            return _with_nulls(tokenizer, conversation, arguments)
        return str(tokenizer.apply_chat_template(list(conversation), **arguments))
    except TemplateSyntaxError as error:
        raise UserError(f"{where}: the chat template is not Jinja (its line {error.lineno}): {error.message}") from None
    except (TemplateError, TypeError, ValueError, LookupError, AttributeError, ArithmeticError, RecursionError) as error:
        roles = ", ".join(str(message["role"]) for message in conversation)
        raise UserError(f"{where}: the chat template refuses a conversation of {roles}: {error}") from None


def _with_nulls(tokenizer: Any, conversation: Sequence[dict[str, Any]], arguments: Mapping[str, Any]) -> str:
    """What `apply_chat_template` gives (5.23), which takes nulls out of messages: some templates tell calls by them."""
    from transformers.utils.chat_template_utils import render_jinja_template

    template = tokenizer.get_chat_template(tools=arguments.get("tools"))
    given = {**tokenizer.special_tokens_map, **{name: value for name, value in arguments.items() if name != "tokenize"}}
    return str(render_jinja_template(conversations=[list(conversation)], chat_template=template, **given)[0][0])
