"""A corpus is what megatron-core reads: the same bytes from any form of the text, any number of processes, any kill."""

from __future__ import annotations

import errno
import gzip
import json
import os
import resource
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pyarrow
import pyarrow.parquet
import pytest

from megatron_ring.corpus.opening import open_corpus, verify_corpus
from megatron_ring.data.tokenizer import RingTokenizer, train_bpe
from megatron_ring.errors import UserError
from tests.corpus.conftest import TEXTS
from tests.processes import start
from tools import prepare_corpus


@pytest.fixture
def prepare(monkeypatch: pytest.MonkeyPatch, tokenizer_dir: Path):  # type: ignore[no-untyped-def]
    def call(
        out: Path, *inputs: Path, more: tuple[str, ...] = (), workers: int = 1, tokenizer: Path = tokenizer_dir
    ) -> None:
        flags = ["--input", *map(str, inputs), "--tokenizer", str(tokenizer), "--out", str(out), "--workers", str(workers)]
        monkeypatch.setattr(sys, "argv", ["prepare_corpus.py", *flags, *more])
        prepare_corpus.main()

    return call


def files(prefix: Path) -> tuple[bytes, bytes]:
    return Path(f"{prefix}.bin").read_bytes(), Path(f"{prefix}.idx").read_bytes()


def test_megatron_reads_it(prepare, tmp_path: Path, jsonl: Path, tokenizer: RingTokenizer) -> None:  # type: ignore[no-untyped-def]
    from megatron.core.datasets.indexed_dataset import DType, IndexedDatasetBuilder

    prepare(tmp_path / "c", jsonl, workers=2)
    corpus = open_corpus(tmp_path / "c", tokenizer.vocabulary_fingerprint, tokenizer.vocab_size)
    dataset = corpus.dataset()
    assert len(dataset) == corpus.documents == len(TEXTS) and corpus.tokens == sum(map(len, dataset))
    assert corpus.index.dtype == DType.optimal_dtype(tokenizer.vocab_size) == np.uint16
    for text, tokens in zip(TEXTS, dataset, strict=True):
        assert tokens[-1] == tokenizer.eos_id and (tokens[:-1] != tokenizer.eos_id).all()
        assert tokenizer.decode(tokens[:-1].tolist(), skip_special=False) == text
    builder = IndexedDatasetBuilder(str(tmp_path / "theirs.bin"), dtype=np.uint16)
    for tokens in dataset:
        builder.add_document(tokens, [len(tokens)])
    builder.finalize(str(tmp_path / "theirs.idx"))
    assert files(tmp_path / "c") == files(tmp_path / "theirs")
    assert "without a manifest" in open_corpus(tmp_path / "theirs.bin", "any", tokenizer.vocab_size).note


def test_the_manifest_says_what_is_there(prepare, tmp_path: Path, jsonl: Path, tokenizer: RingTokenizer) -> None:  # type: ignore[no-untyped-def]
    prepare(tmp_path / "c", jsonl)
    manifest = verify_corpus(tmp_path / "c").manifest
    assert manifest is not None and manifest.text_bytes == sum(len(text.encode()) for text in TEXTS)
    for name, path in (("bin", tmp_path / "c.bin"), ("idx", tmp_path / "c.idx")):
        said = subprocess.run(["sha256sum", str(path)], capture_output=True, text=True).stdout.split()[0]
        assert manifest.files[name] == {"bytes": path.stat().st_size, "sha256": said}
    assert [source["documents"] for source in manifest.sources] == [len(TEXTS)]
    assert manifest.largest_token == max(max(tokens) for tokens in open_corpus(tmp_path / "c").dataset())
    assert not (tmp_path / "c.partial").exists()


def test_every_form_gives_the_same_tokens(prepare, tmp_path: Path, jsonl: Path) -> None:  # type: ignore[no-untyped-def]
    prepare(tmp_path / "lines", jsonl)
    rows = [{"meta": {"body": text}} for text in TEXTS]
    packed = tmp_path / "p.jsonl.gz"
    packed.write_bytes(gzip.compress(jsonl.read_bytes()))
    zst = tmp_path / "z.jsonl.zst"
    with pyarrow.CompressedOutputStream(str(zst), "zstd") as stream:
        stream.write(jsonl.read_bytes())
    (tmp_path / "list.json").write_text(json.dumps(rows))
    table = pyarrow.table({"text": TEXTS, "id": list(range(len(TEXTS)))})
    pyarrow.parquet.write_table(table, tmp_path / "q.parquet", row_group_size=100)
    folder = tmp_path / "folder"
    for number, text in enumerate(TEXTS):
        path = folder / str(number % 3) / f"{number:04}.py"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(text.encode())
    (folder / "0" / "skipped.bin").write_bytes(b"\xff")
    (tmp_path / "one.txt").write_bytes("\n=====\n".join(TEXTS).encode())
    for name, source, *more in (
        ("gz", packed), ("zst", zst), ("list", tmp_path / "list.json", "--field", "meta.body"),
        ("parquet", tmp_path / "q.parquet"), ("text", tmp_path / "one.txt", "--separator", "\\n=====\\n"),
    ):  # fmt: skip
        prepare(tmp_path / name, source, more=tuple(more))
        assert files(tmp_path / name) == files(tmp_path / "lines"), name
    prepare(tmp_path / "many", folder, more=("--suffixes", ".py"), workers=2)
    ordered = [TEXTS[number] for third in range(3) for number in range(third, len(TEXTS), 3)]
    (tmp_path / "ordered.jsonl").write_text("".join(json.dumps({"text": text}) + "\n" for text in ordered))
    prepare(tmp_path / "ordered", tmp_path / "ordered.jsonl")
    assert files(tmp_path / "many") == files(tmp_path / "ordered")


@pytest.mark.slow
def test_killed_at_any_moment_it_ends_with_the_same_bytes(prepare, tmp_path: Path, tokenizer_dir: Path) -> None:  # type: ignore[no-untyped-def]
    """Real processes, killed with their workers; the second kill interrupts work that was continued."""
    source, packed = tmp_path / "long.jsonl", tmp_path / "long2.jsonl.gz"
    lines = "".join(json.dumps({"text": f"{number} " + "words and more words " * 40}) + "\n" for number in range(2_500))
    source.write_text(lines)
    packed.write_bytes(gzip.compress(lines.encode(), 1))
    prepare(tmp_path / "whole", source, packed)
    command = [sys.executable, "tools/prepare_corpus.py", "--input", str(source), str(packed), "--tokenizer",
               str(tokenizer_dir), "--out", str(tmp_path / "killed"), "--workers", "2", "--save-every-mb",
               "0.1"]  # fmt: skip
    state, sizes = tmp_path / "killed.partial/state.json", []
    for _ in range(2):
        before = state.read_bytes() if state.exists() else b""
        process = start(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        while process.poll() is None and (state.read_bytes() if state.exists() else b"") == before:
            time.sleep(0.01)
        process.send_signal(signal.SIGKILL)
        assert process.wait() == -signal.SIGKILL, "it was finished before it was killed"
        assert not Path(f"{tmp_path / 'killed'}.idx").exists()
        sizes.append(json.loads(state.read_bytes())["sizes"]["data"])
    assert 0 < sizes[0] < sizes[1]
    prepare(tmp_path / "killed", source, packed, workers=2, more=("--save-every-mb", "0.1"))
    assert files(tmp_path / "killed") == files(tmp_path / "whole")
    manifests = [(tmp_path / f"{name}.manifest.json").read_bytes() for name in ("killed", "whole")]
    assert manifests[0] == manifests[1]


def begun(prepare, tmp_path: Path, jsonl: Path) -> Path:  # type: ignore[no-untyped-def]
    """Work that a bad row of the second file interrupted."""
    bad = tmp_path / "bad.jsonl"
    bad.write_text('{"text": "fine"}\n{"text": \n')
    with pytest.raises(UserError, match=r"bad\.jsonl:2: not JSON"):
        prepare(tmp_path / "c", jsonl, bad, more=("--save-every-mb", "0.001"))
    assert (tmp_path / "c.partial/state.json").exists() and not (tmp_path / "c.idx").exists()
    return bad


def test_work_goes_on_under_the_same_settings_alone(prepare, tmp_path: Path, jsonl: Path) -> None:  # type: ignore[no-untyped-def]
    bad = begun(prepare, tmp_path, jsonl)
    other = tmp_path / "tokenizer"
    train_bpe(["entirely other words"] * 9, 300, other)
    with pytest.raises(UserError, match="another tokenizer: --restart"):
        prepare(tmp_path / "c", jsonl, bad, tokenizer=other)
    bad.write_text('{"text": "fine"}\n{"text": "mended"}\n')
    with pytest.raises(UserError, match="files that changed since: --restart"):
        prepare(tmp_path / "c", jsonl, bad)
    prepare(tmp_path / "c", jsonl, bad, more=("--restart",))
    assert open_corpus(tmp_path / "c").documents == len(TEXTS) + 2
    before = files(tmp_path / "c")
    prepare(tmp_path / "c", jsonl, bad)  # finished: nothing to do
    with pytest.raises(UserError, match="corpus of other settings"):
        prepare(tmp_path / "c", jsonl)
    assert files(tmp_path / "c") == before
    prepare(tmp_path / "c", jsonl, more=("--overwrite",))
    assert verify_corpus(tmp_path / "c").documents == len(TEXTS)


def test_a_full_disk_leaves_work_to_go_on_with(prepare, tmp_path: Path, jsonl: Path) -> None:  # type: ignore[no-untyped-def]
    prepare(tmp_path / "whole", jsonl)
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    before = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (3_000, hard))
    try:
        with pytest.raises(OSError) as raised:
            prepare(tmp_path / "c", jsonl)
        assert raised.value.errno == errno.EFBIG and str(raised.value.filename).endswith("data.part")
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
        signal.signal(signal.SIGXFSZ, before)
    assert not (tmp_path / "c.idx").exists()
    prepare(tmp_path / "c", jsonl)
    assert files(tmp_path / "c") == files(tmp_path / "whole")


BAD = {
    "no text": (b'{"text": ""}\n{"text": null}\n', (), r"no text in the 1 input files \(2 empty\)"),
    "nothing": (b"", (), "no text in the 1 input files"),
    "missing": (b'{"text": "a"}\n\n{"Content": "b", "url": "long long"}\n', (), ":3: 'text' is missing.*--field Content"),
    "not text": (b'{"text": [1]}\n', (), ":1: 'text' is a list, not text"),
    "not an object": (b'["a"]\n', (), ":1: expected an object"),
    "not UTF-8": (b'{"text": "a"}\n{"text": "\xff"}\n', (), ":2: not UTF-8"),
    "surrogate": (b'{"text": "\\ud800"}\n', (), ":1: holds half of a surrogate pair"),
    "cut off": (b'{"text": "a"}\n{"text": "b', (), ":2: not JSON"),
    "too long": (b'{"text": "a"}\n{"text": "' + b"b" * 3_000_000 + b'"}\n', ("--max-document-mb", "2"), ":2: a document of"),
    "control": (b'{"text": "a<|endoftext|>"}\n', ("--control-tokens", "error"), ":1: spells the control token"),
}  # fmt: skip


@pytest.mark.parametrize("case", BAD)
def test_bad_input_is_one_line(case: str, prepare, tmp_path: Path) -> None:  # type: ignore[no-untyped-def]
    content, more, message = BAD[case]
    path = tmp_path / "in.jsonl"
    path.write_bytes(content)
    with pytest.raises(UserError, match=message):
        prepare(tmp_path / "c", path, more=more)
    assert not (tmp_path / "c.idx").exists() and not (tmp_path / "c.bin").exists()


def test_bad_rows_can_be_left_out(prepare, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:  # type: ignore[no-untyped-def]
    path = tmp_path / "in.jsonl"
    path.write_bytes(b'{"text": "a"}\nnot JSON\n{"other": 1}\n{"text": "\xff"}\n{"text": ""}\n{"text": "<role>"}\n')
    prepare(tmp_path / "c", path, more=("--bad-rows", "drop", "--control-tokens", "drop"))
    assert "1 documents" in (said := capsys.readouterr().out) and "3 bad rows left out, 1 control tokens" in said


def test_packed_and_parquet_files_that_are_cut_off(prepare, tmp_path: Path, jsonl: Path) -> None:  # type: ignore[no-untyped-def]
    whole = jsonl.read_bytes() * 20
    with pyarrow.CompressedOutputStream(str(tmp_path / "whole.zst"), "zstd") as stream:
        stream.write(whole)
    pyarrow.parquet.write_table(pyarrow.table({"text": TEXTS}), tmp_path / "whole.parquet")
    cuts = {"a.jsonl.gz": gzip.compress(whole), "a.jsonl.zst": (tmp_path / "whole.zst").read_bytes(),
            "a.parquet": (tmp_path / "whole.parquet").read_bytes()}  # fmt: skip
    for name, content in cuts.items():
        (tmp_path / name).write_bytes(content[: len(content) // 2])
        with pytest.raises(UserError, match=rf"{name}.*(cut off|parquet file)"):
            prepare(tmp_path / name.replace(".", "-"), tmp_path / name)


def test_columns_of_parquet_and_input_that_is_not_there(prepare, tmp_path: Path, jsonl: Path) -> None:  # type: ignore[no-untyped-def]
    pyarrow.parquet.write_table(pyarrow.table({"url": ["a"], "raw_content": ["b c"], "n": [1]}), tmp_path / "a.parquet")
    with pytest.raises(UserError, match=r"a\.parquet:1: 'text' is missing.*--field raw_content"):
        prepare(tmp_path / "c", tmp_path / "a.parquet")
    with pytest.raises(UserError, match="'n' is a number, not text"):
        prepare(tmp_path / "c", tmp_path / "a.parquet", more=("--field", "n", "--restart"))
    with pytest.raises(UserError, match="no such file or folder"):
        prepare(tmp_path / "c", tmp_path / "none.jsonl")
    with pytest.raises(UserError, match="given twice"):
        prepare(tmp_path / "c", jsonl, jsonl.parent)
    (tmp_path / "empty").mkdir()
    with pytest.raises(UserError, match="no file in it is named"):
        prepare(tmp_path / "c", tmp_path / "empty")
    (tmp_path / "t.csv").write_text("text\na\n")
    with pytest.raises(UserError, match=r"t\.csv: a table"):
        prepare(tmp_path / "c", tmp_path / "t.csv")
    prepare(tmp_path / "c", tmp_path / "t.csv", more=("--suffixes", "csv"))


def test_one_process_has_a_corpus(prepare, tmp_path: Path, jsonl: Path) -> None:  # type: ignore[no-untyped-def]
    from megatron_ring.corpus.partial import Partial

    with Partial(tmp_path / "c"), pytest.raises(UserError, match="another process prepares"):
        prepare(tmp_path / "c", jsonl)


def test_a_worker_that_is_killed_is_said() -> None:
    from megatron_ring.corpus.pool import WorkerPool

    with WorkerPool(time.sleep, 2, "fewer") as pool, pytest.raises(UserError, match=r"a worker was killed.*: fewer"):
        pool.submit(os.kill, 0, 0).result()
        pool.submit(os._exit, 1)
        list(pool.in_order((None, 0.05) for _ in range(100)))
