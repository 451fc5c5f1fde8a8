"""Write the data of the tiny runs: problems in four disjoint splits, and a tokenizer trained on the train split.

The same flags give the same bytes.
"""

from __future__ import annotations

import argparse
import random
from pathlib import Path

from megatron_ring.data.bpe import train_bpe
from megatron_ring.data.files import PromptRecord, SFTRecord, write_prompts, write_sft
from megatron_ring.data.records import Message
from megatron_ring.errors import UserError, run_main
from megatron_ring.toy.code_problems import guessed
from megatron_ring.toy.problems import DOMAINS, FAMILIES, KNOBS, Problem, ProblemMix, make_splits


def main() -> None:
    """Parse the flags, draw the splits, write the files, and say what was written."""
    flags = _parse_flags()
    mix = ProblemMix(tuple(flags.families), dict(_parse_knob(text) for text in flags.difficulty))
    if min(flags.train, flags.validation, flags.rl, flags.heldout) < 1:
        raise UserError("--train, --validation, --rl and --heldout: ask for at least 1 problem each")
    if not 0 <= flags.guesses <= 1:
        raise UserError(f"--guesses {flags.guesses}: give a share from 0 to 1")
    if not 0 <= flags.repeated <= flags.train:
        raise UserError(f"--repeated {flags.repeated}: give 0 to --train ({flags.train}) conversations")
    splits = make_splits(flags.seed, flags.train, flags.validation, flags.heldout, flags.rl, mix)
    parts = dict(_parse_part(text, mix) for text in flags.parts)
    out = flags.out
    train = [_sft(problem, flags.guesses, flags.instruction) for problem in splits.train]
    write_sft(out / "sft_train.jsonl", train)
    if flags.repeated:
        write_sft(out / "sft_repeated.jsonl", train[: flags.repeated])
    validation = [_sft(problem, flags.guesses, flags.instruction) for problem in splits.validation]
    write_sft(out / "sft_validation.jsonl", validation)
    write_prompts(out / "rl_prompts.jsonl", [_prompt(problem) for problem in splits.rl])
    for name, families in parts.items():
        part = [_prompt(problem) for problem in splits.rl if problem.family in families]
        write_prompts(out / f"rl_prompts_{name}.jsonl", part)
    write_prompts(out / "heldout.jsonl", [_prompt(problem) for problem in splits.heldout])
    asked = [record.messages[0].content for record in train]
    texts = [text for prompt, problem in zip(asked, splits.train, strict=True) for text in (prompt, problem.response)]
    vocabulary = train_bpe(texts, flags.vocab_size, out / "tokenizer")
    print(
        f"{out}: {len(splits.train)} SFT, {len(splits.validation)} validation, {len(splits.rl)} RL and "
        f"{len(splits.heldout)} held-out problems; tokenizer of {vocabulary} tokens"
    )


def _parse_flags() -> argparse.Namespace:
    knobs = ", ".join(f"{name}={default}" for name, (default, _, _) in KNOBS.items())
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.ArgumentDefaultsHelpFormatter)
    parser.add_argument(
        "--out", type=Path, required=True, default=argparse.SUPPRESS, help="folder to write to; made if missing"
    )
    parser.add_argument("--seed", type=int, default=0, help="seed of every draw")
    parser.add_argument("--train", type=int, default=8000, help="SFT training problems")
    parser.add_argument("--validation", type=int, default=400, help="SFT validation problems")
    parser.add_argument("--rl", type=int, default=3000, help="RL prompts, none of them in the SFT files")
    parser.add_argument("--heldout", type=int, default=400, help="evaluation prompts, in no other file")
    parser.add_argument("--vocab-size", type=int, default=512, help="largest tokenizer vocabulary (tokens)")
    parser.add_argument(
        "--guesses",
        type=float,
        default=0.0,
        metavar="SHARE",
        help="share (0 to 1) of the SFT responses that guess a number near the answer instead of working it out, as some "
        "of an unverified teacher's do; reinforcement with a verifier can then find out that working pays",
    )
    parser.add_argument(
        "--families",
        nargs="+",
        default=list(FAMILIES),
        metavar="NAME",
        help=f"problem families, in equal shares; there are {', '.join(DOMAINS)}",
    )
    parser.add_argument(
        "--parts",
        nargs="*",
        default=[],
        metavar="NAME=FAMILY,…",
        help="also write the RL prompts of some families as rl_prompts_NAME.jsonl, for training in stages",
    )
    parser.add_argument(
        "--instruction",
        metavar="TEXT",
        help="put this behind every prompt of the SFT files, as --instruction of evaluate puts it behind the others",
    )
    parser.add_argument(
        "--repeated",
        type=int,
        default=0,
        metavar="N",
        help="also write the first N SFT conversations as sft_repeated.jsonl, for training until they are known by heart",
    )
    parser.add_argument(
        "--difficulty",
        nargs="*",
        default=[],
        metavar="KNOB=N",
        help=f"harder or easier problems; the knobs are {knobs}",
    )
    return parser.parse_args()


def _parse_knob(text: str) -> tuple[str, int]:
    name, _, value = text.partition("=")
    try:
        return name, int(value)
    except ValueError:
        raise UserError(f"--difficulty {text}: write KNOB=NUMBER, such as arithmetic.terms=4") from None


def _parse_part(text: str, mix: ProblemMix) -> tuple[str, frozenset[str]]:
    name, _, families = text.partition("=")
    named = frozenset(families.split(","))
    if not name.isidentifier() or not named <= set(mix.families):
        raise UserError(f"--parts {text}: write NAME=FAMILY,FAMILY with families of --families ({', '.join(mix.families)})")
    return name, named


def _sft(problem: Problem, guesses: float, instruction: str | None) -> SFTRecord:
    """A prompt, and a response of an unverified teacher: for a share `guesses` of the problems a number within 9 of the
    right one, without any working; else the worked solution. Which and what depends on the problem alone."""
    rng = random.Random(f"guess/{problem.id}")
    response = problem.response
    if rng.random() >= guesses:
        pass
    elif problem.domain == "code":
        response = guessed(response[response.index("```") :], rng)
    else:
        number = int(problem.answer.split()[0])
        guess = rng.randint(max(0, number - 9), number + 9)
        response = f"\\boxed{{{problem.answer.replace(str(number), str(guess), 1)}}}"
    prompt = f"{problem.prompt}\n\n{instruction}" if instruction else problem.prompt
    messages = (Message("user", prompt), Message("assistant", response))
    return SFTRecord(messages, problem.domain, problem.family)


def _prompt(problem: Problem) -> PromptRecord:
    return PromptRecord(problem.id, problem.domain, problem.prompt, problem.answer, {"family": problem.family})


if __name__ == "__main__":
    run_main(main)
