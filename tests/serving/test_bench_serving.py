"""The load that is put on a server to measure it."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest

from tests.conftest import ROOT
from tests.processes import run
from tests.serving.conftest import Served


def bench(*flags: str) -> tuple[int, dict, str]:
    done = run([sys.executable, ROOT / "tools" / "bench_serving.py", *flags])
    return done.returncode, json.loads(done.stdout) if done.stdout else {}, done.stderr


def test_all_tokens_are_counted(served: Served) -> None:
    load = ("--prompts", "6", "--samples", "2", "--prompt-tokens", "9", "--new-tokens", "24", "--clients", "5")
    status, found, errors = bench("--url", served.address, *load, "--repeats", "2")
    assert status == 0, errors
    assert found["requests"] == 12 and found["failed"] == 0 and 12 <= found["tokens"] <= 12 * 24
    assert found["tokens_per_second"] == pytest.approx(found["tokens"] / found["seconds"])
    first, between, per_token = (found[name] for name in ("time_to_first_token", "between_deliveries", "per_token"))
    assert 0 < first["p50"] <= first["p99"] <= first["most"] < found["seconds"]
    assert between["most"] < found["seconds"] and per_token["p50"] > 0
    assert len(found["earlier_seconds"]) == 1
    assert first["most"] <= found["all_begun"] < found["seconds"] and 0 < found["first_ended"] <= found["seconds"]
    assert found["client_busy"] > 0


def test_what_goes_wrong_is_told(served: Served) -> None:
    small = ("--prompts", "2", "--prompt-tokens", "4", "--new-tokens", "4")
    status, found, _ = bench("--url", served.address, *small, "--extra", '{"temprature": 1}')
    assert status == 1 and found["failed"] == 2 and "temprature" in found["first_problem"]
    status, _, errors = bench("--url", "http://127.0.0.1:9", *small)
    assert status == 2 and "no server with OpenAI's interface" in errors and errors.count("\n") == 1


def test_streams_of_other_servers() -> None:
    """Comments, names of events and data without a space after the colon are all in the standard of server-sent events."""
    sys.path.insert(0, str(ROOT / "tools"))
    from bench_serving import Seen, read_event

    seen = Seen(0.0)
    told = [b": ping", b": a comment\ndata:" + json.dumps({"choices": [{"text": "a"}]}).encode(), b"", b"event: end\nid: 7",
            b'event: message\ndata: {"choices": [],\ndata: "usage": {"completion_tokens": 3}}', b"data: [DONE]"]  # fmt: skip
    for now, event in enumerate(told):
        read_event(seen, event, float(now))
    assert (seen.pieces, seen.tokens, seen.problem) == ([1.0], 3, None)
    read_event(seen, b'data: {"choices": null, "error": null}', 8.0)
    with pytest.raises(ValueError, match="no object"):
        read_event(seen, b"data: 7", 8.0)
    assert seen.problem is None
    read_event(seen, b'data: {"error": {"message": "gone"}}', 9.0)
    assert seen.problem is not None and "gone" in seen.problem


def test_a_made_up_tokenizer_reads_back(tmp_path: Path) -> None:
    sys.path.insert(0, str(ROOT / "tools"))
    from serve_random import make_tokenizer

    from megatron_ring.data.tokenizer import RingTokenizer

    make_tokenizer(5000, tmp_path)
    tokenizer = RingTokenizer.load(tmp_path)
    assert tokenizer.vocab_size == 5000 and tokenizer.eos_id == 4999
    texts = [tokenizer.decode([token]) for token in range(256, 4999)]
    assert len(set(texts)) == len(texts) and all(text.strip().isalpha() for text in texts)
    assert tokenizer.decode(tokenizer.encode("Grüße, 漢字")) == "Grüße, 漢字"
