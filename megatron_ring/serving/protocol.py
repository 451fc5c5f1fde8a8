"""Bodies of requests, as OpenAI's interface and its clients write them, to typed records. Anything else is refused with the
name of the field.

A field that would change the answer and is not built is taken only with the value that changes nothing. A field that nobody
knows is refused, rather than left out in silence: a mistyped one would spoil a measurement.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from megatron_ring.config.metadata import did_you_mean
from megatron_ring.config.sampling import RequestSampling, SamplingConfig
from megatron_ring.data.messages import kind_of
from megatron_ring.errors import UserError
from megatron_ring.sampler.requests import MOST_TOP_LOGPROBS
from megatron_ring.serving.failures import ApiError, bad

MOST_CHOICES = 128  # n of one prompt
MOST_STOPS = 64
MOST_TOKENS = 2**31 - 1

# Fields that change nothing of an answer, whatever they say.
IGNORED = frozenset({
    "model", "user", "metadata", "store", "service_tier", "safety_identifier", "prompt_cache_key", "prompt_cache_retention",
    "parallel_tool_calls", "priority", "request_id", "spaces_between_special_tokens", "add_special_tokens", "verbosity",
})  # fmt: skip
# Fields that are not built, with the values that change nothing.
NEUTRAL: dict[str, tuple[Any, ...]] = {
    "best_of": (1,), "presence_penalty": (0,), "frequency_penalty": (0,), "repetition_penalty": (1,), "length_penalty": (1,),
    "logit_bias": ({},), "suffix": ("",), "response_format": ({"type": "text"},), "min_tokens": (0,),
    "ignore_eos": (False,), "use_beam_search": (False,), "include_stop_str_in_output": (False,), "functions": ([],),
    "function_call": ("none", "auto"), "modalities": (["text"],), "add_generation_prompt": (True,),
    "continue_final_message": (False,), "early_stopping": (False,), "return_tokens_as_token_ids": (False,),
}  # fmt: skip
SHARED = ("n", "seed", "stop", "stop_token_ids", "temperature", "top_p", "top_k", "min_p", "max_tokens", "stream",
          "stream_options", "skip_special_tokens", "return_token_ids")  # fmt: skip
COMPLETION = (*SHARED, "prompt", "echo", "logprobs", "prompt_logprobs")
CHAT = (*SHARED, "messages", "max_completion_tokens", "logprobs", "top_logprobs", "tools", "tool_choice",
        "chat_template_kwargs")  # fmt: skip


@dataclass(frozen=True)
class Ask:
    """What both interfaces share.

    Attributes:
        sampling: how tokens are drawn.
        max_tokens: longest answer (None: as long as the model and the server allow).
        top_logprobs: likeliest tokens wanted at each place (None: no log-probabilities).
        skip_special: leave special tokens out of texts.
        token_ids: the tokens of prompt and answer are sent as well.
        usage: a stream ends with the counts of tokens.
    """

    n: int
    seed: int | None
    sampling: RequestSampling
    max_tokens: int | None
    top_logprobs: int | None
    stream: bool
    usage: bool
    skip_special: bool
    token_ids: bool


@dataclass(frozen=True)
class CompletionAsk(Ask):
    """Of /v1/completions: each prompt is text or token ids. `echo`: the answer repeats it."""

    prompts: list[str | list[int]]
    echo: bool


@dataclass(frozen=True)
class ChatAsk(Ask):
    """Of /v1/chat/completions. `messages`, `tools` and `template_kwargs` are as the client wrote them."""

    messages: list[Any]
    tools: list[dict[str, Any]]
    template_kwargs: dict[str, Any]


def read_json(body: bytes) -> dict[str, Any]:
    """The JSON object of a body. Texts that are no Unicode, and numbers that JSON does not have, are refused."""
    try:
        text = body.decode("utf-8")
        value = json.loads(text, parse_constant=_no_constant)
    except UnicodeDecodeError as error:
        raise bad(f"the body is not UTF-8: byte {error.start}") from None
    except ValueError as error:
        raise bad(f"the body is not JSON: {error}") from None
    except RecursionError:
        raise bad("the body is nested too deeply") from None
    if not isinstance(value, dict):
        raise bad(f"the body is {kind_of(value)}: send an object")
    if "\\u" in text:
        try:
            json.dumps(value, ensure_ascii=False).encode("utf-8")
        except UnicodeEncodeError:
            raise bad("the body holds half of a surrogate pair, which is no character") from None
        except RecursionError:
            raise bad("the body is nested too deeply") from None
    return value


def _no_constant(name: str) -> float:
    raise ValueError(f"{name} is not a JSON number")


def read_completion(body: Mapping[str, Any], usual: SamplingConfig) -> CompletionAsk:
    """Raises `ApiError`."""
    fields = _Fields(body, COMPLETION)
    top = fields.integer("logprobs", 0, MOST_TOP_LOGPROBS)
    if body.get("prompt_logprobs") is not None:
        raise bad("prompt_logprobs: send echo true with logprobs instead", "prompt_logprobs")
    most = fields.integer("max_tokens", 0, MOST_TOKENS)
    shared = _shared(fields, usual, 16 if most is None else most, top)
    return CompletionAsk(**shared, prompts=_prompts(body.get("prompt")), echo=fields.boolean("echo", False))


def read_chat(body: Mapping[str, Any], usual: SamplingConfig) -> ChatAsk:
    """Raises `ApiError`."""
    fields = _Fields(body, CHAT)
    top = None
    if fields.boolean("logprobs", False):
        top = fields.integer("top_logprobs", 0, MOST_TOP_LOGPROBS) or 0
    elif body.get("top_logprobs"):
        raise bad("top_logprobs: set logprobs to true as well", "top_logprobs")
    most = fields.integer("max_completion_tokens", 1, MOST_TOKENS)
    older = fields.integer("max_tokens", 1, MOST_TOKENS)
    if most is not None and older is not None and most != older:
        raise bad("max_tokens and max_completion_tokens differ: send one", "max_tokens")
    shared = _shared(fields, usual, older if most is None else most, top)
    messages = body.get("messages")
    if not isinstance(messages, list) or not messages:
        raise bad(f"messages is {kind_of(messages)}: send a list of {{role, content}} objects", "messages")
    kwargs = body.get("chat_template_kwargs") or {}
    if not isinstance(kwargs, dict) or not all(name.isidentifier() for name in kwargs):
        raise bad("chat_template_kwargs: send an object of named values", "chat_template_kwargs")
    reserved = {"conversation", "messages", "tools", "documents", "chat_template", "tokenize", "add_generation_prompt"}
    reserved |= {"continue_final_message", "padding", "truncation", "max_length", "return_tensors", "return_dict"}
    reserved |= {"tokenizer_kwargs", "return_assistant_tokens_mask", "self"}
    if reserved & set(kwargs):
        raise bad(f"chat_template_kwargs: {min(reserved & set(kwargs))} cannot be set", "chat_template_kwargs")
    return ChatAsk(**shared, messages=messages, tools=_tools(body), template_kwargs=kwargs)


class _Fields:
    """Typed access to the fields of a body; unknown ones are refused at once."""

    def __init__(self, body: Mapping[str, Any], known: tuple[str, ...]) -> None:
        self.body = body
        for name, value in body.items():
            if name in known or name in IGNORED or value is None:
                continue
            if name not in NEUTRAL:
                hint = did_you_mean(name, list(known))
                raise bad(f"unknown field {name!r}{hint}", name)
            if value not in NEUTRAL[name] or isinstance(value, bool) != isinstance(NEUTRAL[name][0], bool):
                raise bad(f"{name} is not built: leave it out, or send {json.dumps(NEUTRAL[name][0])}", name)

    def integer(self, name: str, least: int | None, most: int | None) -> int | None:
        value = self.body.get(name)
        if isinstance(value, float) and value.is_integer():
            value = int(value)
        if value is None:
            return None
        if not isinstance(value, int) or isinstance(value, bool):
            raise bad(f"{name} is {kind_of(value)}: send a whole number", name)
        if (least is not None and value < least) or (most is not None and value > most):
            limits = f"at least {least}" if most is None else f"{least} to {most}"
            raise bad(f"{name} is {_short(value)}: send {limits}", name)
        return value

    def number(self, name: str, default: float) -> float:
        value = self.body.get(name)
        if value is None:
            return default
        if isinstance(value, bool) or not isinstance(value, int | float):
            raise bad(f"{name} is {kind_of(value)}: send a number", name)
        if abs(value) > 1e300 or not math.isfinite(value):
            raise bad(f"{name} is too large", name)
        return float(value)

    def boolean(self, name: str, default: bool) -> bool:
        value = self.body.get(name)
        if value is None:
            return default
        if not isinstance(value, bool):
            raise bad(f"{name} is {kind_of(value)}: send true or false", name)
        return value

    def list_of(self, name: str, kind: type, word: str, most: int) -> tuple[Any, ...]:
        value = self.body.get(name)
        value = [] if value is None else value
        value = [value] if isinstance(value, kind) and not isinstance(value, bool) else value
        if not isinstance(value, list) or any(not isinstance(item, kind) or isinstance(item, bool) for item in value):
            raise bad(f"{name}: send {word} or a list of them", name)
        if len(value) > most:
            raise bad(f"{name} has {len(value)} entries: send {most} at most", name)
        return tuple(value)


def _short(value: int) -> str:
    return str(value) if abs(value) < 10**18 else "too large"


def _shared(fields: _Fields, usual: SamplingConfig, max_tokens: int | None, top: int | None) -> dict[str, Any]:
    options = fields.body.get("stream_options") or {}
    if not isinstance(options, dict):
        raise bad("stream_options: send an object", "stream_options")
    stream = fields.boolean("stream", False)
    return {
        "n": fields.integer("n", 1, MOST_CHOICES) or 1,
        "seed": fields.integer("seed", -(2**63), 2**64),
        "sampling": _sampling(fields, usual),
        "max_tokens": max_tokens,
        "top_logprobs": top,
        "stream": stream,
        "usage": stream and bool(options.get("include_usage")),
        "skip_special": fields.boolean("skip_special_tokens", True),
        "token_ids": fields.boolean("return_token_ids", False),
    }


def _sampling(fields: _Fields, usual: SamplingConfig) -> RequestSampling:
    stops = fields.list_of("stop", str, "text", MOST_STOPS)
    stop_ids = fields.list_of("stop_token_ids", int, "a token id", MOST_STOPS)
    top_k = fields.integer("top_k", -1, None)
    if any(not 0 <= token < 2**31 for token in stop_ids):
        raise bad("stop_token_ids: a token id is outside the vocabulary", "stop_token_ids")
    if any(len(text) > 1000 for text in stops):
        raise bad("stop: a text is longer than 1,000 characters", "stop")
    try:
        return RequestSampling(
            temperature=fields.number("temperature", usual.temperature),
            top_p=fields.number("top_p", usual.top_p),
            top_k=usual.top_k if top_k is None else min(max(0, top_k), 2**31 - 1),  # -1 is vLLM's word for all
            min_p=fields.number("min_p", usual.min_p),
            stop_token_ids=(*usual.stop_token_ids, *stop_ids),
            stop_strings=(*usual.stop_strings, *(text for text in stops if text)),
            repetition_tokens=usual.repetition_tokens,
            repetition_ngram=usual.repetition_ngram,
        )
    except UserError as error:
        text = str(error)  # names a flag; here it is a field
        flag = text.removeprefix("--sampling.").split(" ")[0]
        name = flag.rstrip(":").replace("-", "_")
        raise bad(text.replace(f"--sampling.{flag}", name, 1), name) from None


def _prompts(value: Any) -> list[str | list[int]]:
    """One prompt or several, each text or token ids."""
    if isinstance(value, str):
        return [value]
    if not isinstance(value, list) or not value:
        raise bad(f"prompt is {kind_of(value)}: send text, token ids, or a list of either", "prompt")
    if set(map(type, value)) <= {int, bool}:
        value = [value]
    for item in value:
        if isinstance(item, str):
            continue
        if not isinstance(item, list) or not set(map(type, item)) <= {int}:
            raise bad("prompt: each entry is text or a list of token ids", "prompt")
    return value


def _tools(body: Mapping[str, Any]) -> list[dict[str, Any]]:
    """The tools that the model may call; none where tool_choice says so."""
    tools: Any = body.get("tools")
    tools = [] if tools is None else tools
    if not isinstance(tools, list):
        raise bad(f"tools is {kind_of(tools)}: send a list", "tools")
    for place, tool in enumerate(tools):
        function = tool.get("function") if isinstance(tool, dict) and tool.get("type", "function") == "function" else None
        if not isinstance(function, dict) or not isinstance(function.get("name"), str) or not function["name"]:
            raise bad(f"tools: entry {place} is not {{type: function, function: {{name, …}}}}", "tools")
    choice = body.get("tool_choice")
    if choice not in (None, "auto", "none"):
        raise bad("tool_choice: what is sampled cannot be forced to be a call; send auto or none", "tool_choice")
    if choice == "auto" and not tools:
        raise bad("tool_choice: send tools as well", "tool_choice")
    return [] if choice == "none" else tools


def refuse_model(body: Mapping[str, Any], name: str) -> None:
    """Raise `ApiError` 404 where another model is asked for than the one there is."""
    asked = body.get("model")
    if asked not in (None, "", name):
        wanted = asked[:200] if isinstance(asked, str) else kind_of(asked)
        raise ApiError(404, f"there is no model {wanted!r}, only {name!r}", "model", "model_not_found")
