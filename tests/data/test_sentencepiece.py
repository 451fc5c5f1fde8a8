"""A sentencepiece model gives the ids of its own library, here and in transformers from the exported folder."""

from __future__ import annotations

import json
import pickle
import random
import sys
from pathlib import Path

import pytest
import sentencepiece

from megatron_ring.data.records import Message, SFTRecord
from megatron_ring.data.sentencepiece_model import tokenizer_folder, train_model
from megatron_ring.data.tokenizer import ControlTokenError, RingTokenizer, train_bpe
from megatron_ring.errors import UserError
from tests.other_transformers import in_each_release, in_transformers
from tools import train_tokenizer

TRAINING = [f"Compute {n}+{n * 7}. \\boxed{{{n * 8}}}\n\nnaïve  two spaces, Ω, 中文 {n % 9}" for n in range(300)]
PARTS = ["", " ", "  ", "\n", "\r\n", "\t", "\x00", "\x1f", "\x85", "\u200b", "\u2028", "é", "e\u0301", "中", "😀", "ﬁ", "①",
         "<|endoftext|>", "</s>", "<s>", "<unk>", "<role>", "</role>", "<0x0A>", "\u2581", "\ufeff", "a", "word", "12",
         "Compute", "\U0010ffff", "ا", "ก", "'s", "--", "\\boxed{", "\ufffd", "👩\u200d👧"]  # fmt: skip


def odd_texts(count: int) -> list[str]:
    draw = random.Random(0)
    return ["".join(draw.choices(PARTS, k=draw.randrange(12))) for _ in range(count)]


@pytest.fixture(scope="module", params=["bpe", "unigram"])
def folder(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("sp") / request.param
    assert train_model(TRAINING, request.param, 400, path) <= 400
    return path


@pytest.fixture(scope="module")
def published(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model as others train them: normalised, with a dummy prefix, bos, pad and a control piece."""
    path = tmp_path_factory.mktemp("published") / "other.model"
    with path.open("wb") as writer:
        sentencepiece.SentencePieceTrainer.train(
            sentence_iterator=iter(TRAINING), model_writer=writer, vocab_size=380, model_type="bpe", byte_fallback=True,
            pad_id=3, control_symbols=["[INST]"], hard_vocab_limit=False, minloglevel=2,
        )  # fmt: skip
    return path


def test_ids_are_the_librarys_own(folder: Path, published: Path) -> None:
    for path in (folder, folder / "tokenizer.model", published):
        model = path if path.suffix else path / "tokenizer.model"
        own = sentencepiece.SentencePieceProcessor(model_file=str(model))
        texts = odd_texts(10_000)
        assert RingTokenizer.load(path).document_encoder()(texts) == own.encode(texts)


def test_what_is_trained_loses_nothing(folder: Path) -> None:
    tokenizer = RingTokenizer.load(folder)
    for text in odd_texts(2_000):
        if "\u2581" not in text:  # sentencepiece's own mark of a space
            assert tokenizer.decode(tokenizer.encode(text), skip_special=False) == text
    record = SFTRecord((Message("user", "1+1?"), Message("assistant", " 2\n")))
    tokens, mask = tokenizer.training_tokens(record)
    assert tokenizer.decode(tokens, skip_special=False) == "<role>HUMAN</role>1+1?<role>ASSISTANT</role> 2\n<|endoftext|>"
    assert tokens[-1] == tokenizer.eos_id and mask[-1] and tokenizer.pad_id == tokenizer.eos_id
    for mark in ("<role>", "<|endoftext|>"):
        with pytest.raises(ControlTokenError):
            tokenizer.prompt_tokens(f"a {mark}")


# Run where transformers loads the folder, which may be another release than that of the tests.
ENCODE = """
import json, sys
from transformers import AutoTokenizer
theirs = AutoTokenizer.from_pretrained(sys.argv[1], trust_remote_code=True)
texts = json.load(open(sys.argv[2]))
encoded = [theirs.encode(text, add_special_tokens=False) for text in texts]
split = [theirs.encode(text, add_special_tokens=False, split_special_tokens=True) for text in texts]
prompt = theirs.apply_chat_template([{"role": "user", "content": "a b"}], add_generation_prompt=True, tokenize=False)
prompt = theirs.encode(prompt, add_special_tokens=False)
print(json.dumps([encoded, split, prompt, theirs.eos_token_id, theirs.pad_token_id]))
"""


@in_each_release
def test_the_exported_folder_loads_in_transformers(folder: Path, published: Path, tmp_path: Path, release: str) -> None:
    train_bpe(TRAINING, 400, tmp_path / "byte-level")  # exported as it is
    texts = odd_texts(1_500)
    (tmp_path / "texts.json").write_text(json.dumps(texts))
    for path in (folder, published, tmp_path / "byte-level"):
        ours = RingTokenizer.load(path)
        with tokenizer_folder(path) as exported:
            assert exported is not None
            said = in_transformers(release, ENCODE, str(exported), str(tmp_path / "texts.json"), folder=tmp_path)
            again = RingTokenizer.load(exported)
        encoded, split, prompt, eos, pad = json.loads(said.splitlines()[-1])
        assert encoded == [ours.encode(text) for text in texts]
        if path != tmp_path / "byte-level":
            assert split == ours.document_encoder()(texts)
        assert (eos, pad) == (ours.eos_id, ours.pad_id)
        assert prompt == ours.prompt_tokens("a b")
        assert again.fingerprint == ours.fingerprint and again.vocabulary_fingerprint == ours.vocabulary_fingerprint


def test_fingerprints_and_templates(folder: Path, published: Path, tmp_path: Path) -> None:
    (tmp_path / "some.model").write_bytes(published.read_bytes())
    before = RingTokenizer.load(tmp_path)
    assert before.fingerprint == RingTokenizer.load(published).fingerprint != RingTokenizer.load(folder).fingerprint
    assert before.pad_id == 3
    (tmp_path / "chat_template.jinja").write_text("{% for m in messages %}{{ m['content'] + eos_token }}{% endfor %}")
    after = RingTokenizer.load(tmp_path / "some.model")
    assert after.prompt_tokens("a") == after.encode("a</s>") and after.encode("a</s>")[-1] == after.eos_id
    assert after.fingerprint != before.fingerprint and after.vocabulary_fingerprint == before.vocabulary_fingerprint
    named = RingTokenizer.load(published, tmp_path / "chat_template.jinja")
    assert named.fingerprint == after.fingerprint, "the same template by the flag"
    with tokenizer_folder(published, tmp_path / "chat_template.jinja") as exported:
        assert exported is not None and RingTokenizer.load(exported).fingerprint == named.fingerprint
    for given in (named, RingTokenizer.load(folder)):  # as it goes to the process that tokenises a large file
        sent = pickle.loads(pickle.dumps(given))
        assert sent.fingerprint == given.fingerprint and sent.prompt_tokens("a b") == given.prompt_tokens("a b")


def test_models_that_cannot_be_used(published: Path, tmp_path: Path) -> None:
    (tmp_path / "a.model").write_bytes(published.read_bytes()[:100])
    with pytest.raises(UserError, match="not a readable sentencepiece model"):
        RingTokenizer.load(tmp_path / "a.model")
    (tmp_path / "b.model").write_bytes(b"")
    with pytest.raises(UserError, match="several sentencepiece models"):
        RingTokenizer.load(tmp_path)
    with pytest.raises(UserError, match="not a readable sentencepiece model"):
        RingTokenizer.load(tmp_path / "b.model")
    with (tmp_path / "c.model").open("wb") as writer:
        sentencepiece.SentencePieceTrainer.train(
            sentence_iterator=iter(TRAINING),
            model_writer=writer,
            vocab_size=200,
            eos_id=-1,
            hard_vocab_limit=False,
            minloglevel=2,
        )
    with pytest.raises(UserError, match="no end of text"):
        RingTokenizer.load(tmp_path / "c.model")


def test_the_tool_trains_each_kind_from_text(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    (tmp_path / "in.jsonl").write_text("".join(json.dumps({"text": text}) + "\n" for text in TRAINING))
    flags = ["--input", str(tmp_path / "in.jsonl"), "--field", "text", "--vocab-size", "380"]
    for kind in ("byte-bpe", "bpe", "unigram"):
        for name in ("one", "two"):
            monkeypatch.setattr(sys, "argv", ["t", *flags, "--kind", kind, "--out", str(tmp_path / kind / name)])
            train_tokenizer.main()
        files = [sorted(path.read_bytes() for path in (tmp_path / kind / name).iterdir()) for name in ("one", "two")]
        assert files[0] == files[1]
        assert 256 < RingTokenizer.load(tmp_path / kind / "one").vocab_size <= 380
    monkeypatch.setattr(sys, "argv", ["t", *flags[:-1], "20", "--kind", "bpe", "--out", str(tmp_path / "small")])
    with pytest.raises(UserError, match="cannot train 20 pieces"):
        train_tokenizer.main()
