"""Answers in OpenAI's form, in one piece and as the events of a stream."""

from __future__ import annotations

import itertools
import secrets
import time
from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

from megatron_ring.data.tokenizer import RingTokenizer
from megatron_ring.sampler.scores import TokenScore
from megatron_ring.serving.prompts import begins_inside_thinking
from megatron_ring.serving.protocol import Ask, ChatAsk, CompletionAsk
from megatron_ring.serving.replica import Update
from megatron_ring.serving.text import AnswerText, Call, Piece, Splitter

# Names of answers: of this process, and one after another. Asking the system for chance at each would cost a turn of the
# interpreter's lock.
_RUN, _COUNT = secrets.token_hex(7), itertools.count()
_CUT = "\N{REPLACEMENT CHARACTER}"
FINISH = {"stop": "stop", "stop_token": "stop", "stop_string": "stop", "repetition": "stop", "length": "length"}


@dataclass
class Progress:
    """A choice as far as it came.

    Attributes:
        tokens: sampled.
        scores: of them, where log-probabilities were asked for.
        prompt_scores: of the prompt's tokens, by position.
        pieces: of text and calls.
    """

    place: int
    prompt: list[int]
    text: AnswerText
    splitter: Splitter | None
    tokens: list[int] = field(default_factory=list)
    scores: list[TokenScore] = field(default_factory=list)
    prompt_scores: dict[int, TokenScore] = field(default_factory=dict)
    pieces: list[Piece] = field(default_factory=list)
    reason: str | None = None
    characters: int = 0  # of the texts whose log-probabilities are written

    def said(self, kind: str) -> str:
        """All text of a kind."""
        return "".join(piece.text for piece in self.pieces if piece.kind == kind)

    @property
    def calls(self) -> list[Call]:
        return [piece.call for piece in self.pieces if piece.call is not None]

    @property
    def stop_reason(self) -> int | str | None:
        """What ended it beyond OpenAI's words: the stop token, the stop string, "repetition"."""
        if self.reason == "stop_token":
            return self.tokens[-1]
        if self.reason == "stop_string":
            return self.text.stopped_by
        return "repetition" if self.reason == "repetition" else None


class Answer(ABC):
    """What both interfaces share. `feed` takes updates and gives the events of a stream; `whole` is all of it at the end."""

    kind = ""
    prefix = ""

    def __init__(self, ask: Ask, model: str, tokenizer: RingTokenizer, prompts: Sequence[list[int]]) -> None:
        self.ask, self.tokenizer, self.prompts = ask, tokenizer, prompts
        self.head = {"id": f"{self.prefix}-{_RUN}{next(_COUNT):010x}", "object": self.kind, "created": int(time.time()),
                     "model": model}  # fmt: skip
        each = [prompt for prompt in prompts for _ in range(ask.n)]
        self.choices = [self._begin(place, prompt) for place, prompt in enumerate(each)]

    def _begin(self, place: int, prompt: list[int]) -> Progress:
        text = self.tokenizer.token_text(self.ask.skip_special)
        return Progress(place, prompt, AnswerText(text, self.ask.sampling.stop_strings), self._splitter(prompt))

    def _splitter(self, prompt: list[int]) -> Splitter | None:
        return None

    def usage(self) -> dict[str, int]:
        prompt, new = sum(map(len, self.prompts)), sum(len(choice.tokens) for choice in self.choices)
        return {"prompt_tokens": prompt, "completion_tokens": new, "total_tokens": prompt + new}

    def feed(self, place: int, update: Update) -> list[dict[str, Any]]:
        """Events of a stream for what has come for a choice."""
        choice = self.choices[place]
        choice.prompt_scores.update(update.prompt_scores or {})
        if not update.tokens:
            return []
        first = not choice.tokens
        tokens, scores = list(update.tokens), list(update.scores)
        if self.ask.max_tokens == 0:  # the engine samples one token at least
            tokens, scores = [], []
        elif self.ask.top_logprobs is not None and not scores:
            scores = [TokenScore(logprob, ()) for logprob in update.logprobs]
        choice.tokens += tokens
        choice.scores += scores
        choice.reason = update.reason
        ends = tokens and update.reason in ("stop", "stop_token")  # the token that ends it is no text
        text = choice.text.feed(tokens[:-1] if ends else tokens, last=update.reason is not None)
        if choice.splitter is None:
            pieces = [Piece("content", text)] if text else []
        else:
            pieces = choice.splitter.feed(text, last=update.reason is not None)
        choice.pieces += pieces
        if not self.ask.stream:
            return []
        return [event | self.head for event in self._events(place, pieces, tokens, scores, first)]

    @abstractmethod
    def _events(
        self, place: int, pieces: list[Piece], tokens: list[int], scores: list[TokenScore], first: bool
    ) -> Iterator[dict[str, Any]]:
        """What is new of a choice, as events of the stream."""

    @abstractmethod
    def whole(self) -> dict[str, Any]:
        """The answer in one piece, when all is there."""

    def last_event(self) -> list[dict[str, Any]]:
        """The counts at the end of a stream, where they are asked for."""
        return [self.head | {"choices": [], "usage": self.usage()}] if self.ask.usage else []

    def token_text(self, token: int) -> str:
        return self.tokenizer.decode([token], skip_special=False)

    def finish(self, choice: Progress) -> dict[str, Any]:
        """Why a choice has ended; None in both while it has not."""
        return {"finish_reason": FINISH.get(choice.reason or ""), "stop_reason": choice.stop_reason}


class CompletionAnswer(Answer):
    """Of /v1/completions."""

    kind, prefix = "text_completion", "cmpl"
    ask: CompletionAsk

    def _events(
        self, place: int, pieces: list[Piece], tokens: list[int], scores: list[TokenScore], first: bool
    ) -> Iterator[dict[str, Any]]:
        choice = self.choices[place]
        text = "".join(piece.text for piece in pieces)
        echoed = first and self.ask.echo
        found: dict[str, Any] = {"index": place, "text": self._echo(choice) + text if echoed else text}
        found["logprobs"] = self._logprobs(choice, tokens, scores, echoed)
        found |= self.finish(choice)
        if self.ask.token_ids:
            found |= {"token_ids": tokens} | ({"prompt_token_ids": choice.prompt} if first else {})
        if text or tokens or first or choice.reason:
            yield {"choices": [found]}

    def whole(self) -> dict[str, Any]:
        choices = []
        for place, choice in enumerate(self.choices):
            text = (self._echo(choice) if self.ask.echo else "") + choice.said("content")
            found: dict[str, Any] = {"index": place, "text": text}
            found["logprobs"] = self._logprobs(choice, choice.tokens, choice.scores, self.ask.echo)
            found |= self.finish(choice)
            if self.ask.token_ids:
                found |= {"prompt_token_ids": choice.prompt, "token_ids": choice.tokens}
            choices.append(found)
        return self.head | {"choices": choices, "usage": self.usage()}

    def _echo(self, choice: Progress) -> str:
        return self.tokenizer.decode(choice.prompt, skip_special=self.ask.skip_special)

    def _logprobs(
        self, choice: Progress, tokens: Sequence[int], scores: Sequence[TokenScore], echo: bool
    ) -> dict[str, Any] | None:
        """Lists with an entry for each token; of an echoed prompt the first has none, as nothing comes before it."""
        if self.ask.top_logprobs is None:
            return None
        listed: list[tuple[int, TokenScore | None]] = list(zip(tokens, scores, strict=True))
        if echo:
            # The choices of a prompt share what one of them has computed.
            first = self.choices[choice.place // self.ask.n * self.ask.n]
            listed = [(token, first.prompt_scores.get(place)) for place, token in enumerate(choice.prompt)] + listed
        texts = [self.token_text(token) for token, _ in listed]
        offsets = []
        for text in texts:
            offsets.append(choice.characters)
            choice.characters += len(text)
        return {
            "tokens": texts,
            "token_logprobs": [None if score is None else score.logprob for _, score in listed],
            "top_logprobs": [None if score is None else self._top(token, score) for token, score in listed],
            "text_offset": offsets,
        }

    def _top(self, token: int, score: TokenScore) -> dict[str, float]:
        """The likeliest tokens and the one that is there, by text; of several with one text the later by their ids."""
        found: dict[str, float] = {}
        here = () if any(other == token for other, _ in score.top) else ((token, score.logprob),)
        for other, logprob in (*score.top, *here):
            text = self.token_text(other)
            found[text if text not in found else f"token_id:{other}"] = logprob
        return found


class ChatAnswer(Answer):
    """Of /v1/chat/completions. Reasoning is sent under both names that clients read."""

    kind, prefix = "chat.completion", "chatcmpl"
    ask: ChatAsk

    def __init__(self, ask: ChatAsk, model: str, tokenizer: RingTokenizer, prompts: Sequence[list[int]]) -> None:
        super().__init__(ask, model, tokenizer, prompts)
        if ask.stream:
            self.head["object"] = "chat.completion.chunk"

    def _splitter(self, prompt: list[int]) -> Splitter | None:
        return Splitter(begins_inside_thinking(prompt, self.tokenizer), bool(self.ask.tools))

    def _events(
        self, place: int, pieces: list[Piece], tokens: list[int], scores: list[TokenScore], first: bool
    ) -> Iterator[dict[str, Any]]:
        choice = self.choices[place]
        deltas: list[dict[str, Any]] = [{"role": "assistant", "content": ""}] if first else []
        call = len(choice.calls) - sum(piece.call is not None for piece in pieces)
        for piece in pieces:
            if piece.kind == "reasoning":
                deltas.append({"reasoning": piece.text, "reasoning_content": piece.text})
            elif piece.call is None:
                deltas.append({"content": piece.text})
            else:
                deltas.append({"tool_calls": [{"index": call, **_call(piece.call)}]})
                call += 1
        if not deltas and (choice.reason or self.ask.top_logprobs is not None or self.ask.token_ids):
            deltas.append({})
        for number, delta in enumerate(deltas):
            last = number == len(deltas) - 1
            found: dict[str, Any] = {"index": place, "delta": delta, "logprobs": None, "finish_reason": None}
            if last:
                found["logprobs"] = self._logprobs(tokens, scores)
                found |= self.finish(choice) if choice.reason else {}
            if self.ask.token_ids:
                found["token_ids"] = tokens if last else []
            event: dict[str, Any] = {"choices": [found]}
            if first and number == 0 and self.ask.token_ids:
                event["prompt_token_ids"] = choice.prompt
            yield event

    def whole(self) -> dict[str, Any]:
        choices = []
        for place, choice in enumerate(self.choices):
            content, reasoning = choice.said("content"), choice.said("reasoning")
            calls = [_call(call) for call in choice.calls]
            message: dict[str, Any] = {"role": "assistant", "content": content if content or not calls else None}
            message |= {"reasoning": reasoning or None, "reasoning_content": reasoning or None}
            if calls:
                message["tool_calls"] = calls
            found = {"index": place, "message": message, "logprobs": self._logprobs(choice.tokens, choice.scores)}
            found |= self.finish(choice)
            if self.ask.token_ids:
                found["token_ids"] = choice.tokens
            choices.append(found)
        whole = self.head | {"choices": choices, "usage": self.usage()}
        return whole | ({"prompt_token_ids": self.prompts[0]} if self.ask.token_ids else {})

    def finish(self, choice: Progress) -> dict[str, Any]:
        found = super().finish(choice)
        if choice.calls and found["finish_reason"] == "stop":
            found["finish_reason"] = "tool_calls"
        return found

    def _logprobs(self, tokens: Sequence[int], scores: Sequence[TokenScore]) -> dict[str, Any] | None:
        if self.ask.top_logprobs is None:
            return None
        listed = []
        for token, score in zip(tokens, scores, strict=True):
            top = [self._token(other, logprob) for other, logprob in score.top]
            listed.append(self._token(token, score.logprob) | {"top_logprobs": top})
        return {"content": listed, "refusal": None}

    def _token(self, token: int, logprob: float) -> dict[str, Any]:
        text = self.token_text(token)
        # A token may be a part of a character: its bytes are not told by its text.
        return {"token": text, "logprob": logprob, "bytes": None if _CUT in text else list(text.encode())}


def _call(call: Call) -> dict[str, Any]:
    function = {"name": call.name, "arguments": call.arguments}
    return {"id": f"call_{secrets.token_hex(12)}", "type": "function", "function": function}
