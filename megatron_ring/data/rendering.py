"""The text that a chat template makes of a conversation, with its tools and calls; what it does not show is refused."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from megatron_ring.data.messages import Message
from megatron_ring.data.tool_calls import names_of
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
    text = _apply(tokenizer, where, [message.to_json() for message in messages], {**settings, **given})
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
        return str(tokenizer.apply_chat_template(list(conversation), **arguments))
    except TemplateSyntaxError as error:
        raise UserError(f"{where}: the chat template is not Jinja (its line {error.lineno}): {error.message}") from None
    except (TemplateError, TypeError, ValueError, LookupError, AttributeError, ArithmeticError, RecursionError) as error:
        roles = ", ".join(str(message["role"]) for message in conversation)
        raise UserError(f"{where}: the chat template refuses a conversation of {roles}: {error}") from None
