"""What C3PO++ carries over, in the files of a checkpoint: each replica writes the responses that it holds, and reads as many
files as there are replicas to share them. Of all responses every rank knows all but the tokens, as during the run."""

from __future__ import annotations

import dataclasses
import json
import re
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load, save
from torch import Tensor

from megatron_ring.checkpoint.manifest import read_file, read_manifest
from megatron_ring.data.prompts import PromptStream, StreamPrompt
from megatron_ring.errors import UserError
from megatron_ring.parallel import collectives
from megatron_ring.parallel.context import ParallelContext
from megatron_ring.rollout.pool import Group, RolloutPool
from megatron_ring.rollout.records import Key, ScoredRollout
from megatron_ring.rollout.sampling import OpenRollout
from megatron_ring.sampler.columns import DRAWN, Column
from megatron_ring.sampler.completion import Completion

Held = list[tuple[dict[str, Any], Completion]]  # of each response what is said of it, and its tokens
NAME = re.compile(r"unfinished(?:_(\d+))?\.safetensors")  # without a number: of all replicas
OLD_VALUES = ("logprobs", "processed_logprobs", "entropies")  # rows of "values" in old files
DTYPES = {"i": torch.int32, "f": torch.float32}


def save_unfinished(pool: RolloutPool, context: ParallelContext) -> dict[str, bytes]:
    """The file of a replica, on its leader, by name; all ranks take part."""
    if not pool or context.tensor_rank:
        return {}
    held = held_by(pool, context.data_rank)
    stages = collectives.gather_over_pipeline(_routes(held))
    if stages is None or not held:
        return {}
    return {f"unfinished_{context.data_rank}.safetensors": to_bytes(held, torch.cat(stages, dim=1))}


def load_unfinished(
    checkpoint: Path, stream: PromptStream, opened: Callable[[list[StreamPrompt]], list[OpenRollout]], stage: slice,
    context: ParallelContext,
) -> RolloutPool:  # fmt: skip
    """The pool of a checkpoint, whatever layout it was saved by. All ranks take part.

    Args:
        opened: from prompts to their responses before anything is sampled.
        stage: which of the bytes of a token's routes this process wants.

    Raises:
        UserError: on every rank: a file is damaged, or a prompt is not in the stream.
    """
    held: Held = []
    problem = ""
    for name in sorted(read_manifest(checkpoint)["files"]):
        found = NAME.fullmatch(name)
        if found is None or int(found[1] or 0) % context.data_size != context.data_rank:
            continue
        try:
            held += from_bytes(read_file(checkpoint, name) or b"", stage)
        except UserError as error:
            problem = str(error)
    everyone = collectives.gather_over_data((problem, [about for about, _ in held]))
    for problem, _ in everyone:
        if problem:
            raise UserError(problem)
    whole = {(about["position"], about["sample"]): completion for about, completion in held}
    return rebuilt([abouts for _, abouts in everyone], whole, stream, opened)


def held_by(pool: RolloutPool, rank: int) -> Held:
    """The responses that data-parallel rank `rank` holds: open ones, then those that wait for others of their group."""
    held: Held = []
    for item in pool.open:
        if item.holder == rank:
            about = {"position": item.prompt.position, "sample": item.sample, "cuts": item.cuts,
                     "domain": item.prompt.record.domain, "prompt_id": item.prompt.record.id}  # fmt: skip
            held.append((about, item.request.begun))
    for scored in pool.finished:
        done = scored.rollout
        if done.holder == rank:
            about = {"position": done.prompt_index, "sample": done.sample, "domain": done.domain,
                     "prompt_id": done.prompt_id, "reward": scored.reward, "reason": scored.reason,
                     "detail": dict(scored.detail), "repetition": scored.repetition}  # fmt: skip
            held.append((about, done.completion))
    return held


def rebuilt(
    abouts: Sequence[Sequence[dict[str, Any]]], whole: dict[Key, Completion], stream: PromptStream,
    opened: Callable[[list[StreamPrompt]], list[OpenRollout]],
) -> RolloutPool:  # fmt: skip
    """The pool of what each data-parallel rank holds. `whole`: what this one holds."""
    entries = [(about, rank) for rank, part in enumerate(abouts) for about in part]
    entries.sort(key=lambda entry: (entry[0]["position"], entry[0]["sample"]))
    names = {about["position"]: (about["domain"], about["prompt_id"]) for about, _ in entries}
    prompts = {place: StreamPrompt(place, stream.find(*name)) for place, name in names.items()}
    new = {(item.prompt.position, item.sample): item for item in opened(list(prompts.values()))}
    pool = RolloutPool()
    pool.groups = {place: Group(prompt) for place, prompt in prompts.items()}
    for about, rank in entries:
        key = about["position"], about["sample"]
        completion = whole.get(key) or Completion(
            versions=about["versions"], finish_reason=about.get("finish_reason"), absent=tuple(about["absent"])
        )
        item, group = dataclasses.replace(new[key], holder=rank), pool.groups[about["position"]]
        if completion.finish_reason is None:
            group.open.append(dataclasses.replace(item, request=item.request.continued(completion), cuts=about["cuts"]))
        else:
            given = about["reward"], about["reason"], about["detail"], about.get("repetition", 0.0)
            group.finished.append(ScoredRollout(item.rollout(completion), *given))
    return pool


def to_bytes(held: Held, routes: Tensor) -> bytes:
    """As safetensors: an index of the responses, their columns by name, each one response after another, and for each token
    its routes, uint8 [tokens, bytes of a token over all pipeline stages]."""
    index = [
        {**about, "versions": whole.versions, "finish_reason": whole.finish_reason, "tokens": whole.length,
         "absent": whole.absent}
        for about, whole in held
    ]  # fmt: skip
    columns = {column.name: _joined(column, [whole for _, whole in held]) for column in DRAWN}
    index_bytes = torch.frombuffer(bytearray(json.dumps(index).encode()), dtype=torch.uint8)
    return save({"index": index_bytes, **columns, "routes": routes.contiguous()})


def from_bytes(data: bytes, stage: slice) -> Held:
    """Undo `to_bytes`, with the routes of a pipeline stage. A column that the file does not know is absent."""
    file, held, start = load(data), Held(), 0
    if "values" in file:
        file |= dict(zip(OLD_VALUES, file.pop("values").float(), strict=True))  # float64 in old checkpoints, of fp32 numbers
    taken = dict.fromkeys((column.name for column in DRAWN), 0)
    for about in json.loads(bytes(file["index"].numpy())):
        length = about.pop("tokens")
        absent = {*about.get("absent", ()), *(taken.keys() - file.keys())} if length else set()
        about["absent"] = [name for name in taken if name in absent]
        columns: dict[str, Any] = {}
        for column in DRAWN:
            if column.name not in about["absent"]:
                columns[column.name] = column.new()
                columns[column.name].frombytes(_bytes(file[column.name][taken[column.name] :][:length]))
                taken[column.name] += length
        whole = Completion(
            **columns, versions=about["versions"], finish_reason=about.get("finish_reason"), absent=tuple(about["absent"]),
            routes=_bytes(file["routes"][start : start + length, stage]),
        )  # fmt: skip
        held.append((about, whole))
        start += length
    return held


def _routes(held: Held) -> Tensor:
    """Of all tokens as this process has them: uint8 [tokens, bytes of a token]."""
    joined, tokens = bytearray(b"".join(whole.routes for _, whole in held)), sum(whole.length for _, whole in held)
    found = torch.frombuffer(joined, dtype=torch.uint8) if joined else torch.zeros(0, dtype=torch.uint8)
    return found.view(tokens, len(joined) // max(1, tokens))


def _joined(column: Column, responses: Sequence[Completion]) -> Tensor:
    """A column of one response after another."""
    joined = column.new()
    for whole in responses:
        joined += getattr(whole, column.name)
    dtype = DTYPES[column.typecode]
    return torch.frombuffer(joined, dtype=dtype) if joined else torch.zeros(0, dtype=dtype)


def _bytes(tensor: Tensor) -> bytes:
    return tensor.contiguous().numpy().tobytes()
