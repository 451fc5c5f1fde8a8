"""Text from a model: answers the prompts of a file, or those typed (or piped) into it, a line each.

    python -m megatron_ring.generate --checkpoint DIR --tokenizer DIR
    torchrun --nproc-per-node 8 -m megatron_ring.generate --checkpoint DIR --tokenizer DIR --prompts FILE --out FILE

The first process writes responses as they are decoded; with several data-parallel replicas, those of its own.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any

from megatron_ring.cli import parse
from megatron_ring.config import RouterLossConfig, require
from megatron_ring.errors import run_main
from megatron_ring.stage_config import GenerateConfig

if TYPE_CHECKING:
    from megatron_ring.data.records import PromptRecord
    from megatron_ring.data.tokenizer import RingTokenizer
    from megatron_ring.sampler.sampler import Sampler


def main(config: GenerateConfig) -> None:
    from megatron_ring.training.stage import resolve_shape

    shape = resolve_shape(None, config.checkpoint)

    from megatron_ring.data.files import read_questions, write_atomically
    from megatron_ring.data.tokenizer import RingTokenizer
    from megatron_ring.sampler.sampler import Sampler
    from megatron_ring.training.stage import set_first_weights, start_stage

    tokenizer = RingTokenizer.load(config.tokenizer)
    require(
        tokenizer.vocab_size <= shape.vocab_size,
        f"--tokenizer {config.tokenizer}: {tokenizer.vocab_size} tokens, the model has only {shape.vocab_size}",
    )
    questions = None if config.prompts is None else read_questions(config.prompts)
    losses = RouterLossConfig(0.0, 0.0)
    stage = start_stage(shape, config.parallel, losses, config.seed, config.precision, config.layer_impl, exact=config.exact)
    set_first_weights(stage, config.checkpoint, config.seed)
    sampler = Sampler(stage.model, stage.context, config.sampling, tokenizer.eos_id, tokenizer.decode)
    rows = []
    for position, asked in enumerate([questions] if questions is not None else _typed(stage.context.is_main)):
        rows += answer(config, asked, sampler, tokenizer, first=position)
    if config.out is not None and stage.context.is_main:
        lines = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)
        write_atomically(config.out, lines.encode())
        print(f"generate: {len(rows)} response(s) -> {config.out}", file=sys.stderr)


def _typed(is_main: bool) -> Iterator[list[PromptRecord]]:
    """Lines of the first process's standard input, on every process."""
    from megatron_ring.data.records import PromptRecord
    from megatron_ring.parallel import collectives

    marker = "> " if is_main and sys.stdin.isatty() else ""
    number = 0
    while True:
        line = None
        if is_main:
            print(marker, end="", file=sys.stderr, flush=True)
            line = sys.stdin.readline()
        line = collectives.gather_over_world(line)[0]
        if not line:
            return
        if line.strip():
            number += 1
            yield [PromptRecord(str(number), "", line.strip(), None)]


def answer(
    config: GenerateConfig, questions: Sequence[PromptRecord], sampler: Sampler, tokenizer: RingTokenizer, first: int
) -> list[dict[str, Any]]:
    """Sample `config.samples` responses to each question; every process gets one row for each, in order.

    Args:
        first: the seed's position of the first question.

    Raises:
        UserError: a question that leaves no room for an answer.
    """
    from megatron_ring.parallel import collectives
    from megatron_ring.rl.records import Completion
    from megatron_ring.sampler.requests import GenerationRequest, request_seed
    from megatron_ring.sampler.streaming import OrderedStream

    limit, context = sampler.model.ring_config.max_positions, sampler.context
    asked, requests = [], []
    for position, question in enumerate(questions):
        tokens = _tokens(config, question, tokenizer)
        room = min(config.sampling.max_new_tokens, limit - len(tokens))
        require(room > 0, f"prompt {question.id!r}: {len(tokens)} tokens, the model has only {limit} positions: shorten it")
        for sample in range(config.samples):
            asked.append((question, sample))
            requests.append(GenerationRequest(tokens, request_seed(config.seed, first + position, sample), room))
    mine = slice(context.data_rank, None, context.data_size)
    alone = len(requests) == 1
    titles = ["" if alone else f"--- {question.id}, response {sample + 1}" for question, sample in asked[mine]]
    stream = OrderedStream(titles if context.is_main else [], tokenizer.decode, _write)

    def finished(index: int, _: Completion) -> None:
        stream.finished(index)

    speaks: dict[str, Any] = {"on_token": stream.token, "on_finished": finished} if context.is_main else {}
    done = sampler.generate(requests[mine], **speaks)
    of_replica = collectives.gather_over_data(done)
    completions = [of_replica[i % context.data_size][i // context.data_size] for i in range(len(asked))]
    return [
        {
            "id": question.id,
            "sample": sample,
            "prompt": question.prompt if isinstance(question.prompt, str) else [vars(turn) for turn in question.prompt],
            "response": tokenizer.decode(completion.tokens),
            "tokens": len(completion.tokens),
            "finish_reason": completion.finish_reason,
            "logprob": sum(completion.logprobs),
        }
        for (question, sample), completion in zip(asked, completions, strict=True)
    ]


def _tokens(config: GenerateConfig, question: PromptRecord, tokenizer: RingTokenizer) -> list[int]:
    if not config.raw:
        return tokenizer.prompt_tokens(question.prompt, config.instruction)
    require(isinstance(question.prompt, str), f"prompt {question.id!r}: --raw continues a text, this is a conversation")
    return tokenizer.encode(str(question.prompt))


def _write(text: str) -> None:
    print(text, end="", flush=True)


def cli() -> None:
    run_main(lambda: main(parse(GenerateConfig, "ring-generate", "Answer prompts, or continue text.")))


if __name__ == "__main__":
    cli()
