"""Text from a model: answers the prompts of a file, or those typed (or piped) into it, a line each.

    python -m megatron_ring.generate --checkpoint DIR --tokenizer DIR
    torchrun --nproc-per-node 8 -m megatron_ring.generate --checkpoint DIR --tokenizer DIR --prompts FILE --out FILE

The first process writes the responses of its data-parallel replica as they are sampled, then those of the others. Of several
processes none may wait longer than half an hour for a typed line.
"""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any

from megatron_ring.config.checks import require
from megatron_ring.config.cli import parse
from megatron_ring.config.generate import GenerateConfig
from megatron_ring.errors import RequestError, UserError, run_main
from megatron_ring.parallel import prepare

if TYPE_CHECKING:
    from megatron_ring.data.records import PromptRecord
    from megatron_ring.data.tokenizer import RingTokenizer
    from megatron_ring.sampler.requests import GenerationRequest
    from megatron_ring.sampler.sampler import Sampler

Asked = list[tuple["PromptRecord", int, "GenerationRequest"]]
"""Prompt, number of the sample, and what the sampler is asked."""


def main(config: GenerateConfig) -> None:
    prepare()
    from megatron_ring.data.files import read_questions
    from megatron_ring.data.writing import append, check_target, write_atomically
    from megatron_ring.parallel import collectives
    from megatron_ring.run.stage import open_model, other_ends, resolve
    from megatron_ring.sampler.sampler import Sampler

    config, shape, tokenizer = resolve(config)
    if collectives.is_main():
        for remark in other_ends(config, tokenizer):
            print(f"generate: {remark}", file=sys.stderr, flush=True)
    require(config.prompts is not None or sys.stdin is not None, "standard input is closed: give --prompts FILE")
    asked = None
    if config.prompts is not None:
        asked = ask(config, read_questions(config.prompts), tokenizer, shape.max_positions, first=0)
    target = config.out
    if target is not None:
        collectives.from_main(lambda: check_target(target, "--out"))
    stage = open_model(config, shape, config.checkpoint)
    context = stage.context
    sampler = Sampler(stage.model, context, config.sampling, tokenizer.eos_id, tokenizer.decode)
    out = config.out if context.is_main else None
    if asked is not None:
        rows = answer(config, asked, sampler, tokenizer)
        if out is not None:
            write_atomically(out, _lines(rows))
        count = len(rows)
    else:
        count = 0
        if out is not None:
            write_atomically(out, b"")
        for typed in _typed(config, tokenizer, shape.max_positions, context.is_main):
            try:
                rows = answer(config, typed, sampler, tokenizer)
            except RequestError as error:
                _refuse(error, context.is_main)
                continue
            count += len(rows)
            if out is not None:
                append(out, _lines(rows))
    if out is not None:
        print(f"generate: {count} response(s) -> {out}", file=sys.stderr)


def _lines(rows: Sequence[dict[str, Any]]) -> bytes:
    return "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows).encode()


def _refuse(error: UserError, is_main: bool) -> None:
    if is_main:
        print(f"refused: {error}", file=sys.stderr, flush=True)


def _typed(config: GenerateConfig, tokenizer: RingTokenizer, limit: int, is_main: bool) -> Iterator[Asked]:
    """Lines of the first process's standard input, on every process. One that cannot be answered is refused, and the next
    one read."""
    from megatron_ring.data.records import PromptRecord
    from megatron_ring.parallel import collectives

    marker = "> " if is_main and sys.stdin.isatty() else ""
    number = 0
    while True:
        line = None
        if is_main:
            print(marker, end="", file=sys.stderr, flush=True)
            line = sys.stdin.buffer.readline().decode(errors="surrogateescape")
        line = collectives.gather_over_world(line)[0]
        if not line:
            return
        if line.strip():
            number += 1
            text = line.rstrip("\r\n") if config.raw else line.strip()
            try:
                require(_is_unicode(text), f"prompt '{number}': not UTF-8")
                asked = ask(config, [PromptRecord(str(number), "", text, None)], tokenizer, limit, first=number - 1)
            except UserError as error:
                _refuse(error, is_main)
                continue
            yield asked


def _is_unicode(text: str) -> bool:
    """Whether there are no surrogates in it, which stand for bytes that are no UTF-8."""
    return not any("\ud800" <= character <= "\udfff" for character in text)


def ask(
    config: GenerateConfig, questions: Sequence[PromptRecord], tokenizer: RingTokenizer, limit: int, first: int
) -> Asked:
    """`config.samples` requests for each question, in order.

    Args:
        limit: positions of the model (tokens).
        first: the seed's position of the first question.

    Raises:
        UserError: a question that leaves no room for an answer.
    """
    from megatron_ring.sampler.requests import GenerationRequest, request_seed

    asked = []
    for position, question in enumerate(questions):
        tokens = _tokens(config, question, tokenizer)
        room = min(config.sampling.max_new_tokens, limit - len(tokens))
        require(room > 0, f"prompt {question.id!r}: {len(tokens)} tokens, the model has only {limit} positions: shorten it")
        for sample in range(config.samples):
            seed = request_seed(config.seed, first + position, sample)
            asked.append((question, sample, GenerationRequest(tokens, seed, room)))
    return asked


def answer(config: GenerateConfig, asked: Asked, sampler: Sampler, tokenizer: RingTokenizer) -> list[dict[str, Any]]:
    """Sample what is asked; every process gets one row for each, in order."""
    from megatron_ring.data.records import tools_of
    from megatron_ring.parallel import collectives
    from megatron_ring.sampler.completion import Completion
    from megatron_ring.sampler.streaming import OrderedStream

    context, speaks = sampler.context, sampler.context.is_main
    mine = slice(context.data_rank, None, context.data_size)
    titles = ["" if len(asked) == 1 else f"--- {question.id}, response {sample + 1}" for question, sample, _ in asked]
    stream = OrderedStream(titles[mine] if speaks else [], tokenizer.token_text(), _write)

    def finished(index: int, completion: Completion) -> None:
        if not config.streams:
            for token in completion.tokens:
                stream.token(index, token)
        stream.finished(index)

    done = sampler.generate(
        [request for _, _, request in asked[mine]],
        on_finished=finished if speaks else None,
        on_token=stream.token if speaks and config.streams else None,
    )
    of_replica = collectives.gather_over_data(done)
    completions = [of_replica[i % context.data_size][i // context.data_size] for i in range(len(asked))]
    rows = [
        {
            "id": question.id,
            "sample": sample,
            "prompt": question.prompt if isinstance(question.prompt, str) else [turn.to_json() for turn in question.prompt],
            **tools_of(question.messages),
            "response": tokenizer.decode(completion.tokens),
            "tokens": len(completion.tokens),
            "finish_reason": completion.finish_reason,
            "logprob": sum(completion.logprobs),
        }
        for (question, sample, _), completion in zip(asked, completions, strict=True)
    ]
    if speaks:
        for place, row in enumerate(rows):
            if place % context.data_size != context.data_rank:
                _write((f"{titles[place]}\n" if titles[place] else "") + f"{row['response']}\n")
    return rows


def _tokens(config: GenerateConfig, question: PromptRecord, tokenizer: RingTokenizer) -> list[int]:
    if not config.raw:
        return tokenizer.prompt_tokens(question.prompt, config.instruction)
    require(isinstance(question.prompt, str), f"prompt {question.id!r}: --raw continues a text, this is a conversation")
    return tokenizer.encode(str(question.prompt))


def _write(text: str) -> None:
    """To standard output; where its reader has gone away (`| head`) this ends the program, as a shell's SIGPIPE would."""
    try:
        print(text, end="", flush=True)
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # nor may the flush at exit complain
        raise SystemExit(141) from None


def cli() -> None:
    if sys.stdout is not None:
        sys.stdout.reconfigure(errors="backslashreplace")  # type: ignore[union-attr]  # characters that a terminal lacks
    run_main(lambda: main(parse(GenerateConfig, "ring-generate", "Answer prompts, or continue text.")))


if __name__ == "__main__":
    cli()
