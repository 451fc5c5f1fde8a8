#!/usr/bin/env python
"""Put load on a server of this machine, or compare what lm-evaluation-harness gets from it with scoring in this process.

python -m megatron_ring.serve --checkpoint DIR --tokenizer DIR --model-name checked &
python tools/check_serving.py load --url http://127.0.0.1:8000 --pid $!
PYTHONPATH=.venv/.lm_eval python tools/check_serving.py harness --checkpoint DIR --tokenizer DIR   # after: make lm-eval

Prints one JSON object; exit status 1 where an answer is wrong, memory grows or numbers differ by more than 1e-5 nats. A
file's answers by the harness are those of a greedy sampler in this process.
"""

from __future__ import annotations

import argparse
import http.client
import json
import os
import random
import sys
import tempfile
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

if TYPE_CHECKING:
    from megatron_ring.data.tokenizer import RingTokenizer
    from megatron_ring.run.stage import Stage

KINDS = 24  # different requests, each asked many times
TOLERANCE = 1e-5  # nats
NEW_TOKENS = 8  # of a generated answer
GROWTH = 8 << 20  # bytes that memory may grow by between the first fifth of the requests and the last


def post(url: str, body: dict[str, Any], read_for: float | None = None) -> Any:
    """The answer; None where the client hangs up after `read_for` seconds."""
    connection = http.client.HTTPConnection(urlsplit(url).netloc, timeout=600)
    try:
        connection.request("POST", "/v1/completions", json.dumps(body))
        if read_for is not None:
            time.sleep(read_for)
            return None
        response = connection.getresponse()
        answer = json.loads(response.read())
        return answer if response.status == 200 else {"status": response.status, **answer}
    finally:
        connection.close()


def kinds(draw: random.Random) -> list[dict[str, Any]]:
    """Requests of mixed lengths and settings."""
    found = []
    for seed in range(KINDS):
        prompt = [draw.randrange(4, 300) for _ in range(draw.choice([1, 3, 20, 60]))]
        body = {"prompt": prompt, "max_tokens": draw.choice([1, 4, 12, 30]), "seed": seed, "return_token_ids": True}
        body |= {"temperature": draw.choice([0, 0.6, 1.0]), "top_p": draw.choice([0.8, 1]), "n": draw.choice([1, 1, 2])}
        more: list[dict[str, Any]] = [{}, {"top_k": 5}, {"stop": ["a", "1"]}, {"logprobs": 1}, {"echo": True, "logprobs": 0}]
        found.append(body | draw.choice(more))
    return found


def tokens_of(answer: Any) -> Any:
    return [choice["token_ids"] for choice in answer["choices"]] if "choices" in answer else answer


def memory(pid: int) -> int:
    """Bytes that a process holds."""
    lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    return next(int(line.split()[1]) << 10 for line in lines if line.startswith("VmRSS"))


def load(arguments: argparse.Namespace) -> tuple[dict[str, Any], bool]:
    """Clients of which a third hang up; the others must get what each request gets alone."""
    draw = random.Random(0)
    asked = kinds(draw)
    alone = [tokens_of(post(arguments.url, body)) for body in asked]
    wrong: list[Any] = []
    held: list[int] = []
    lock, done = threading.Lock(), 0

    def client(place: int) -> None:
        nonlocal done
        body = asked[place % KINDS]
        if place % 3 == 0:
            post(arguments.url, body | {"max_tokens": 500}, random.random() / 4)
        elif tokens_of(answer := post(arguments.url, body)) != alone[place % KINDS]:
            wrong.append(answer)
        with lock:
            done += 1
            if done % max(1, arguments.requests // 10) == 0:
                held.append(memory(arguments.pid))

    began = time.perf_counter()
    with ThreadPoolExecutor(arguments.clients) as clients:
        list(clients.map(client, range(arguments.requests)))
    growth = held[-1] - held[len(held) // 5]
    result = {"requests": arguments.requests, "clients": arguments.clients, "wrong": len(wrong), "first_wrong": wrong[:1],
              "seconds": time.perf_counter() - began, "memory_mib": [round(size / 2**20, 1) for size in held]}  # fmt: skip
    return result, not wrong and growth < GROWTH


def harness(arguments: argparse.Namespace) -> tuple[dict[str, Any], bool]:
    """Log-likelihoods and generation by lm-evaluation-harness on tasks of local files."""
    with tempfile.TemporaryDirectory() as folder:
        os.environ["HF_DATASETS_CACHE"] = folder  # read at import
        import lm_eval
        from lm_eval.tasks import TaskManager

        rows: list[dict[str, Any]] = [
            {"question": f"{n} + {n + 1} =", "choices": [f" {2 * n + k}" for k in range(4)], "answer": 1} for n in range(12)
        ]
        data = Path(folder, "rows.jsonl")
        data.write_text("".join(json.dumps(row) + "\n" for row in rows))
        common = f"dataset_path: json\ndataset_kwargs:\n  data_files:\n    test: {data}\ntest_split: test\n"
        common += 'doc_to_text: "{{question}}"\n'
        Path(folder, "choice.yaml").write_text(
            f"task: ring_choice\noutput_type: multiple_choice\n{common}doc_to_choice: choices\ndoc_to_target: answer\n"
        )
        Path(folder, "generate.yaml").write_text(
            f'task: ring_generate\noutput_type: generate_until\n{common}doc_to_target: "{{{{answer}}}}"\n'
            f"generation_kwargs:\n  until: ['\\n']\n  max_gen_toks: {NEW_TOKENS}\n  temperature: 0\n  do_sample: false\n"
        )
        manager = TaskManager(include_path=folder, include_defaults=False)
        settings = f"model={arguments.model},num_concurrent=4,tokenizer_backend=huggingface,tokenizer={arguments.tokenizer}"
        found = {}
        for name, path, tasks in (
            ("local-completions", "/v1/completions", ["ring_choice", "ring_generate"]),
            ("local-chat-completions", "/v1/chat/completions", ["ring_generate"]),
        ):
            found[name] = lm_eval.simple_evaluate(
                model=name, model_args=f"base_url={arguments.url}{path},{settings}", tasks=tasks, task_manager=manager,
                apply_chat_template=name == "local-chat-completions", bootstrap_iters=0,
            )  # fmt: skip
    scored = [
        (asked[0], asked[1], resps[0])
        for sample in found["local-completions"]["samples"]["ring_choice"]
        for asked, resps in zip(_arguments(sample), sample["resps"], strict=True)
    ]
    written = {name: _written(result["samples"]["ring_generate"]) for name, result in found.items()}
    stage, tokenizer = opened(arguments)
    ours = score(stage, tokenizer, [(context, continuation) for context, continuation, _ in scored])
    distances = [abs(float(theirs[0]) - wanted) for (_, _, theirs), wanted in zip(scored, ours, strict=True)]
    asked = [row["question"] for row in rows]
    expected = {
        "local-completions": greedy(stage, tokenizer, [tokenizer.encode(text) for text in asked]),
        "local-chat-completions": greedy(stage, tokenizer, [tokenizer.prompt_tokens(text) for text in asked]),
    }
    different = {name: sum(a != b for a, b in zip(written[name], expected[name], strict=True)) for name in expected}
    return (
        {"log_likelihoods": len(scored), "largest_distance": max(distances), "generated": len(asked),
         "generated_otherwise": different, "first_generated": {name: texts[0] for name, texts in written.items()}},
        max(distances) < TOLERANCE and not any(different.values()),
    )  # fmt: skip


def _written(samples: list[dict[str, Any]]) -> list[str]:
    """Texts in the order of the file's rows."""
    return [sample["resps"][0][0] for sample in sorted(samples, key=lambda sample: sample["doc_id"])]


def _arguments(sample: dict[str, Any]) -> list[Any]:
    found = sample["arguments"]
    return list(found.values()) if isinstance(found, dict) else list(found)


def opened(arguments: argparse.Namespace) -> tuple[Stage, RingTokenizer]:
    """The model that the server serves, in this process."""
    from megatron_ring.parallel import prepare

    prepare()
    from megatron_ring.config.generate import GenerateConfig
    from megatron_ring.data.tokenizer import RingTokenizer
    from megatron_ring.run.stage import open_model, resolve_shape

    config = GenerateConfig(checkpoint=Path(arguments.checkpoint), tokenizer=Path(arguments.tokenizer))
    stage = open_model(config, resolve_shape(None, config.checkpoint), config.checkpoint)
    stage.model.eval()
    return stage, RingTokenizer.load(config.tokenizer)


def score(stage: Stage, tokenizer: RingTokenizer, pairs: list[tuple[str, str]]) -> list[float]:
    """Log-probability of each continuation after its context by a full forward pass of the training path."""
    import torch

    from megatron_ring.model.layout import PackedLayout
    from megatron_ring.model.ring_model import forward_all_stages

    found = []
    for context, continuation in pairs:
        first, tokens = len(tokenizer.encode(context)), torch.tensor(tokenizer.encode(context + continuation))
        logits = forward_all_stages(stage.model, tokens, PackedLayout(torch.arange(len(tokens)), [len(tokens)]))
        assert logits is not None
        logprobs = logits.double().log_softmax(-1)[:-1].gather(1, tokens[1:, None])[:, 0]
        found.append(float(logprobs[first - 1 :].sum()))
    return found


def greedy(stage: Stage, tokenizer: RingTokenizer, prompts: list[list[int]]) -> list[str]:
    """The likeliest answer to each prompt, up to a line's end or NEW_TOKENS."""
    from megatron_ring.config.sampling import SamplingConfig
    from megatron_ring.sampler.requests import GenerationRequest
    from megatron_ring.sampler.sampler import Sampler

    sampling = SamplingConfig(temperature=0, kv_tokens=4096)
    asked = [GenerationRequest(prompt, 0, NEW_TOKENS) for prompt in prompts]
    done = Sampler(stage.model, stage.context, sampling, tokenizer.eos_id).generate(asked)
    return [tokenizer.decode(one.tokens).partition("\n")[0] for one in done]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=["load", "harness"])
    parser.add_argument("--url", default="http://127.0.0.1:8000")
    parser.add_argument("--pid", type=int, help="the server's process (load)")
    parser.add_argument("--requests", type=int, default=5000, help="requests in all (load)")
    parser.add_argument("--clients", type=int, default=256, help="clients at once (load)")
    parser.add_argument("--model", default="checked", help="the server's --model-name (harness)")
    parser.add_argument("--checkpoint", help="what the server serves (harness)")
    parser.add_argument("--tokenizer", help="its tokenizer (harness)")
    arguments = parser.parse_args()
    wanted = {"load": ("pid",), "harness": ("checkpoint", "tokenizer")}[arguments.what]
    for name in wanted:
        if getattr(arguments, name) is None:
            parser.error(f"--{name} is needed")
    result, fine = load(arguments) if arguments.what == "load" else harness(arguments)
    print(json.dumps(result))
    sys.exit(0 if fine else 1)


if __name__ == "__main__":
    main()
