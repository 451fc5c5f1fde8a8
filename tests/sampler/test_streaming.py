"""Text that is written while responses are sampled."""

from __future__ import annotations

from collections.abc import Sequence

import pytest
from hypothesis import given
from hypothesis import strategies as st

from megatron_ring.sampler.streaming import Detokenizer, OrderedStream


def decode(tokens: Sequence[int]) -> str:
    """Bytes as tokens; like some tokenizers it strips a space at the beginning."""
    return bytes(tokens).decode("utf-8", errors="replace").removeprefix(" ")


@given(st.text(alphabet=st.sampled_from("ab é漢\U0001f600"), max_size=20), st.data())
def test_pieces_are_the_text(text: str, data: st.DataObject) -> None:
    tokens = list(text.encode())
    cuts = sorted(data.draw(st.lists(st.integers(0, len(tokens)), max_size=5)))
    stream = Detokenizer(decode)
    ends = [*cuts, len(tokens)]
    pieces = [stream.feed(tokens[a:b], b == len(tokens)) for a, b in zip([0, *cuts], ends, strict=True)]
    assert "".join(pieces) == decode(tokens)
    assert not any("\N{REPLACEMENT CHARACTER}" in piece for piece in pieces)


@pytest.mark.parametrize("text", [b"   a b", b"\x80\x80\x80\xe8\x98\xb9", b"a\x80\x80\x80\xe8\x98\xb9 b"])
def test_pieces_of_one_token(text: bytes) -> None:
    """Spaces at the beginning, and broken bytes before a character."""
    stream = Detokenizer(decode)
    pieces = [stream.feed([one], place == len(text) - 1) for place, one in enumerate(text)]
    assert "".join(pieces) == decode(text)


@pytest.mark.parametrize("token", [0x80, 1], ids=["broken bytes", "tokens without text"])
def test_what_makes_no_character_is_not_decoded_again_and_again(token: int) -> None:
    longest = 0

    def watched(tokens: Sequence[int]) -> str:
        nonlocal longest
        longest = max(longest, len(tokens))
        return decode([token for token in tokens if token != 1])

    stream = Detokenizer(watched)
    tokens = [*b"ab ", *[token] * 3000, *"\U0001f600".encode(), *b" c"]
    pieces = [stream.feed([one], last=place == len(tokens) - 1) for place, one in enumerate(tokens)]
    assert "".join(pieces).startswith("ab ") and "".join(pieces).endswith("\U0001f600 c") and longest < 20
    assert "".join(pieces).count("\N{REPLACEMENT CHARACTER}") == (3000 if token != 1 else 0)


@given(st.lists(st.text(alphabet="xyz", max_size=6), min_size=1, max_size=4), st.randoms())
def test_responses_come_one_after_another(texts: list[str], random) -> None:
    written: list[str] = []
    stream = OrderedStream([f"#{i}" for i in range(len(texts))], decode, written.append)
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
