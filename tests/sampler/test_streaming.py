"""Text that is written while responses are sampled: the pieces are what the tokenizer makes of all tokens."""

from __future__ import annotations

import importlib.metadata
from collections.abc import Callable, Sequence
from pathlib import Path

import pytest
import sentencepiece
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st
from tokenizers import AddedToken, Tokenizer, decoders, models
from transformers import PreTrainedTokenizerFast

from megatron_ring.data.sentencepiece_model import train_model
from megatron_ring.data.token_text import TokenText
from megatron_ring.data.tokenizer import RingTokenizer, train_bpe
from megatron_ring.sampler.streaming import Detokenizer, OrderedStream
from megatron_ring.serving.text import AnswerText

TRAINING = [f"Compute {n}+{n * 7}. \\boxed{{{n * 8}}}\n\nnaïve  two spaces, Ω, 中文 {n % 9}" for n in range(300)]
# Whole characters of one to four bytes, marks that join, U+FFFD itself, spaces that decoders strip, and cut characters.
SCRAPS = ["a", " b", " ", "  ", "\n", "é", "漢", "\U0001f600", "e\u0301", "\ufffd", "\xad", "12", "Compute", " two"]


def decode(tokens: Sequence[int]) -> str:
    """Bytes as tokens; like some tokenizers it strips a space at the beginning."""
    return bytes(tokens).decode("utf-8", errors="replace").removeprefix(" ")


def published(folder: Path) -> RingTokenizer:
    """A sentencepiece model as others train them: it strips all spaces at the beginning."""
    with (folder / "other.model").open("wb") as writer:
        sentencepiece.SentencePieceTrainer.train(
            sentence_iterator=iter(TRAINING), model_writer=writer, vocab_size=380, model_type="bpe", byte_fallback=True,
            pad_id=3, control_symbols=["[INST]"], hard_vocab_limit=False, minloglevel=2,
        )  # fmt: skip
    return RingTokenizer.load(folder / "other.model")


def byte_fallback(folder: Path) -> RingTokenizer:
    """A tokenizer of Hugging Face's that decodes a run of bytes as a whole, as those made from sentencepiece models do."""
    vocab = {piece: index for index, piece in enumerate(["<unk>", "</s>", "▁", "▁a", "b", "漢", "\ufffd"])}
    vocab |= {f"<0x{byte:02X}>": 10 + byte for byte in range(256)}
    tokenizer = Tokenizer(models.BPE(vocab, [], byte_fallback=True, unk_token="<unk>"))
    steps = [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    tokenizer.decoder = decoders.Sequence(steps)
    tokenizer.add_special_tokens([AddedToken("</s>", special=True)])
    return RingTokenizer(PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token="</s>"), folder)


def byte_level(folder: Path) -> RingTokenizer:
    train_bpe(TRAINING, 400, folder)
    return RingTokenizer.load(folder)


def smollm2(folder: Path) -> RingTokenizer:
    gguf = pytest.importorskip("gguf", reason="the gguf package is not installed")
    from megatron_ring.checkpoint.gguf_tokenizer import write_gguf_tokenizer
    from tools import upcycle

    try:
        importlib.metadata.version(upcycle.PACKAGE)
    except importlib.metadata.PackageNotFoundError:
        pytest.skip(f"the {upcycle.PACKAGE} package is not installed")
    source = upcycle.packaged_gguf()
    write_gguf_tokenizer(source, gguf.GGUFReader(source), folder)
    return RingTokenizer.load(folder)


def pieces_of(kind: str) -> Callable[[Path], RingTokenizer]:
    def train(folder: Path) -> RingTokenizer:
        train_model(TRAINING, kind, 400, folder)  # type: ignore[arg-type]
        return RingTokenizer.load(folder)

    return train


KINDS = {"byte level": byte_level, "SmolLM2": smollm2, "bpe": pieces_of("bpe"), "unigram": pieces_of("unigram"),
         "published": published, "byte fallback": byte_fallback}  # fmt: skip


@pytest.fixture(scope="module", params=KINDS)
def tokenizer(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> RingTokenizer:
    return KINDS[request.param](tmp_path_factory.mktemp("tokenizer"))


def drawn(tokenizer: RingTokenizer, data: st.DataObject) -> list[int]:
    """Tokens of texts, some cut apart, special tokens and any others between them."""
    special = sorted(tokenizer.token_text().left_out)
    of_text = st.sampled_from(SCRAPS).map(tokenizer.encode)
    cut = st.tuples(st.sampled_from(["é", "漢", "\U0001f600"]), st.integers(1, 3)).map(
        lambda given: tokenizer.encode(given[0])[: given[1]]
    )
    rest = st.tuples(st.sampled_from(["é", "漢", "\U0001f600"]), st.integers(1, 3)).map(
        lambda given: tokenizer.encode(given[0])[given[1] :]
    )
    a_special = st.sampled_from(special).map(lambda token: [token])
    anything = st.integers(0, tokenizer.vocab_size + 1).map(lambda token: [token])
    again = st.tuples(a_special | of_text | cut, st.integers(1, 30)).map(lambda given: given[0] * given[1])
    found = data.draw(st.lists(of_text | cut | rest | a_special | anything | again, max_size=12))
    return [token for part in found for token in part]


def streamed(feed: Callable[[Sequence[int], bool], str], tokens: Sequence[int], cuts: Sequence[int]) -> list[str]:
    ends = [*sorted(cuts), len(tokens)]
    return [feed(tokens[a:b], place == len(ends) - 1) for place, (a, b) in enumerate(zip([0, *ends], ends, strict=False))]


ODD = settings(max_examples=100, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])


@ODD
@given(st.data(), st.booleans())
def test_pieces_are_what_the_whole_decodes_to(tokenizer: RingTokenizer, data: st.DataObject, skip_special: bool) -> None:
    tokens = drawn(tokenizer, data)
    text = tokenizer.token_text(skip_special)
    whole = tokenizer.decode(tokens, skip_special=skip_special)
    one_by_one = range(1, len(tokens))
    anywhere = data.draw(st.lists(st.integers(0, len(tokens)), max_size=8))
    for cuts in (one_by_one, anywhere):
        assert "".join(streamed(Detokenizer(text).feed, tokens, cuts)) == whole


@ODD
@given(st.data(), st.lists(st.sampled_from(["a", " ", "é", "b漢", "\n", "wo", "\U0001f600", "</s>", "\ufffd"]), max_size=3))
def test_what_is_cut_at_a_stop_string_is_the_whole_cut_there(
    tokenizer: RingTokenizer, data: st.DataObject, stops: list[str]
) -> None:
    tokens = drawn(tokenizer, data)
    text, whole = tokenizer.token_text(), tokenizer.decode(tokens)
    ends = [(place + len(stop), place) for stop in stops if (place := whole.find(stop)) >= 0]
    cuts = data.draw(st.lists(st.integers(0, len(tokens)), max_size=8))
    for answer, places in ((AnswerText(text, stops), range(1, len(tokens))), (AnswerText(text, stops), cuts)):
        said = "".join(streamed(answer.feed, tokens, places))
        assert said == (whole[: min(ends)[1]] if ends else whole) and (answer.stopped_by is not None) == bool(ends)


def test_a_character_that_special_tokens_cut_comes_whole(tokenizer: RingTokenizer) -> None:
    """Where the decoder joins what is around a special token that it leaves out; sentencepiece's does not."""
    head, *tail = tokenizer.encode("\U0001f9ff")
    tokens = [*tokenizer.encode("a"), head, *[tokenizer.eos_id] * 40, *tail, *tokenizer.encode("b")]
    assert "".join(streamed(Detokenizer(tokenizer.token_text()).feed, tokens, range(1, len(tokens)))) == tokenizer.decode(
        tokens
    )


@given(st.text(alphabet=st.sampled_from("ab é漢\U0001f600"), max_size=20), st.data())
def test_no_piece_holds_a_part_of_a_character(text: str, data: st.DataObject) -> None:
    tokens = list(text.encode())
    cuts = data.draw(st.lists(st.integers(0, len(tokens)), max_size=5))
    pieces = streamed(Detokenizer(TokenText(decode)).feed, tokens, cuts)
    assert "".join(pieces) == decode(tokens)
    assert not any("\N{REPLACEMENT CHARACTER}" in piece for piece in pieces)


@given(st.lists(st.sampled_from([0x20, 0x61, 0x80, 0x98, 0xB9, 0xC3, 0xE8, 0xED, 0xF0, 0xF4, 0xFF]), max_size=60))
@example(list(b"\x80\x80\x80\xe8\x98\xb9"))
def test_broken_bytes(tokens: list[int]) -> None:
    assert "".join(streamed(Detokenizer(TokenText(decode)).feed, tokens, range(1, len(tokens)))) == decode(tokens)


@pytest.mark.parametrize("token", [0x80, 1, 0x20], ids=["broken bytes", "tokens without text", "spaces"])
def test_what_makes_no_character_is_not_decoded_again_and_again(token: int) -> None:
    longest = 0

    def watched(tokens: Sequence[int]) -> str:
        nonlocal longest
        longest = max(longest, len(tokens))
        return decode([token for token in tokens if token != 1])

    tokens = [*b"ab ", *[token] * 3000, *"\U0001f600".encode(), *b" c"]
    text = TokenText(watched, left_out=frozenset({1}))
    pieces = streamed(Detokenizer(text).feed, tokens, range(1, len(tokens)))
    assert longest < 40 and "".join(pieces) == decode([token for token in tokens if token != 1])


@given(st.lists(st.text(alphabet="xyz", max_size=6), min_size=1, max_size=4), st.randoms())
def test_responses_come_one_after_another(texts: list[str], random) -> None:
    written: list[str] = []
    stream = OrderedStream([f"#{i}" for i in range(len(texts))], TokenText(decode), written.append)
    left = {i: list(text.encode()) for i, text in enumerate(texts)}
    while left:
        i = random.choice(list(left))
        if left[i]:
            stream.token(i, left[i].pop(0))
        else:
            stream.finished(i)
            del left[i]
        so_far = "".join(written)
        assert "".join(f"#{i}\n{text}\n" for i, text in enumerate(texts)).startswith(so_far)
    assert "".join(written) == "".join(f"#{i}\n{text}\n" for i, text in enumerate(texts))
