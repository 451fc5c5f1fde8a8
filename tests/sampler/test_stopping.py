"""When a response ends, and that the tokens that ended it stay."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from megatron_ring.config.sampling import SamplingConfig
from megatron_ring.data.tokenizer import RingTokenizer, train_bpe
from megatron_ring.errors import UserError
from megatron_ring.sampler.requests import GenerationRequest, Prefix, Sampled, Sequence
from megatron_ring.sampler.stopping import StopConditions

EOS = 3


def feed(conditions: StopConditions, tokens: list[int], limit: int = 1000, block: int = 0) -> tuple[int, str | None]:
    """How many tokens are taken until it stops, and why.

    Args:
        block: so many are asked about before they are taken (0: all).
    """
    sequence = Sequence(0, GenerationRequest([1], 0, limit), Prefix((1,)))
    for count, token in enumerate(tokens, start=1):
        if not block or count % block == 1 or block == 1:
            ahead = tokens[count - 1 : count - 1 + block] if block else tokens[count - 1 :]
            may_end = conditions.may_end(sequence, ahead)
        sequence.take(Sampled(([token], [0.0], [0.0], [0.0]), []), 0, 1)
        reason = conditions.reason(sequence)
        if reason is not None:
            assert may_end
            assert list(sequence.tokens) == tokens[:count]
            return count, reason
    return len(tokens), None


def test_tokens_and_length() -> None:
    conditions = StopConditions(SamplingConfig(stop_token_ids=(8, 9)), EOS)
    assert feed(conditions, [5, 6, EOS, 7]) == (3, "stop")
    assert feed(conditions, [5, 9, EOS]) == (2, "stop_token")
    assert feed(conditions, [5, 6, 7, 7], limit=3) == (3, "length")
    assert feed(conditions, [5, 6, EOS], limit=3) == (3, "stop")
    assert feed(conditions, [5, 6]) == (2, None)
    assert not conditions.may_end(Sequence(0, GenerationRequest([1], 0, 9), Prefix((1,))), [5, 6])


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory: pytest.TempPathFactory) -> RingTokenizer:
    """A byte-level vocabulary whose merges do not respect the borders of any stop string."""
    path = tmp_path_factory.mktemp("tokenizer")
    train_bpe(["the answer is 42.\n\nQuestion: what? Ünïcode </answer> end"] * 50, 320, path)
    return RingTokenizer.load(path)


TEXTS = ["\n\n", "</answer>", "nswer is 4", "ïc", "é", "Question:", "?", " 42"]


@settings(deadline=None)
@given(data=st.data(), text=st.text(alphabet=st.sampled_from("the answr4 2.\n?Uïé</>Q:"), max_size=40))
def test_a_stop_string_ends_it_with_the_token_that_completes_it(tokenizer: RingTokenizer, data: st.DataObject, text: str):
    wanted = data.draw(st.lists(st.sampled_from(TEXTS), min_size=1, max_size=3))
    text += data.draw(st.sampled_from(["", *wanted])) + " and more"
    conditions = StopConditions(SamplingConfig(stop_strings=tuple(wanted)), EOS, tokenizer.decode)
    tokens = tokenizer.encode(text)
    whole = [n for n in range(1, len(tokens) + 1) if any(w in tokenizer.decode(tokens[:n]) for w in wanted)]
    wanted_end = (whole[0], "stop_string") if whole else (len(tokens), None)
    assert feed(conditions, tokens) == feed(conditions, tokens, block=data.draw(st.integers(1, 9))) == wanted_end


def test_a_character_may_be_cut_by_tokens(tokenizer: RingTokenizer) -> None:
    tokens = tokenizer.encode("漢")
    assert len(tokens) == 3  # bytes
    conditions = StopConditions(SamplingConfig(stop_strings=("漢",)), EOS, tokenizer.decode)
    assert feed(conditions, [*tokenizer.encode("the"), *tokens, 5])[1] == "stop_string"
    assert feed(conditions, tokens[:2]) == (2, None)


def test_stop_strings_need_a_tokenizer() -> None:
    with pytest.raises(UserError, match=r"--sampling\.stop-strings"):
        StopConditions(SamplingConfig(stop_strings=("x",)), EOS)


@settings(deadline=None)
@given(
    before=st.lists(st.integers(10, 99), max_size=9),
    gram=st.lists(st.integers(4, 9), min_size=1, max_size=6),
    window=st.integers(2, 14),
    longest=st.integers(1, 6),
    block=st.integers(1, 20),
)
def test_repetition(before: list[int], gram: list[int], window: int, longest: int, block: int) -> None:
    sampling = SamplingConfig(repetition_tokens=window, repetition_ngram=longest)
    tokens = [*before, *gram * 15]

    def repeats(tail: list[int]) -> bool:
        return any(2 * n <= window and all(tail[i] == tail[i % n] for i in range(window)) for n in range(1, longest + 1))

    wanted = next((n for n in range(window, len(tokens) + 1) if repeats(tokens[n - window : n])), None)
    conditions = StopConditions(sampling, EOS)
    found = feed(conditions, tokens)
    assert found == feed(conditions, tokens, block=block) == ((wanted, "repetition") if wanted else (len(tokens), None))


def test_what_cannot_end_it_is_not_looked_at_token_by_token(tokenizer: RingTokenizer) -> None:
    conditions = StopConditions(SamplingConfig(stop_strings=("</answer>",), repetition_tokens=64, repetition_ngram=8), EOS,
                                tokenizer.decode)  # fmt: skip
    sequence = Sequence(0, GenerationRequest([1], 0, 1000), Prefix((1,)))
    for part in ("the answer is 42, what? " * 4, "".join(f"{i} is {i * i} end " for i in range(40)), "the end"):
        tokens = tokenizer.encode(part)
        assert not conditions.may_end(sequence, tokens[:16])
        for token in tokens:
            sequence.take(Sampled(([token], [0.0], [0.0], [0.0]), []), 0, 1)
    assert conditions.may_end(sequence, tokenizer.encode(" </answer> and"))
    assert conditions.may_end(sequence, [5] * 63)


def test_special_tokens_hide_no_stop_string(tokenizer: RingTokenizer) -> None:
    """Whether it names them, or they stand between its tokens, as the text leaves them out."""
    role = tokenizer.encode("<role>")
    assert len(role) == 1 and tokenizer.decode(role) == ""
    named = StopConditions(SamplingConfig(stop_strings=("<role>HUMAN</role>",)), EOS, tokenizer.decode)
    tokens = tokenizer.encode("the<role>HUMAN</role>")
    assert feed(named, [*tokens, 5, 5]) == (len(tokens), "stop_string")
    between = StopConditions(SamplingConfig(stop_strings=("the answer",)), EOS, tokenizer.decode)
    tokens = [*tokenizer.encode("end the an"), *role * 200, *tokenizer.encode("swer"), *role]
    assert feed(between, [*tokens, 5]) == (len(tokens) - 1, "stop_string")
    assert feed(between, [*role * 500, *tokenizer.encode("the ans")])[1] is None
