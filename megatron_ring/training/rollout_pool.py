"""Prompts whose responses are not all finished: what C3PO++ takes from one step into the next, and into checkpoints."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from safetensors.torch import load, save
from torch import Tensor

from megatron_ring.data.prompts import PromptStream, StreamPrompt
from megatron_ring.rl.records import NUMBERS, Completion, ScoredRollout, number_array, token_array
from megatron_ring.sampler.rollouts import OpenRollout


@dataclass
class Group:
    """The responses to one prompt."""

    prompt: StreamPrompt
    open: list[OpenRollout] = field(default_factory=list)
    finished: list[ScoredRollout] = field(default_factory=list)


class RolloutPool:
    """Groups in the order of their prompts; the same on every rank."""

    def __init__(self) -> None:
        self.groups: dict[int, Group] = {}  # by the prompt's position in the stream

    def __len__(self) -> int:
        return len(self.groups)

    def add(self, opened: Sequence[OpenRollout]) -> None:
        """Take in responses to new prompts."""
        for item in opened:
            self.groups.setdefault(item.prompt.position, Group(item.prompt)).open.append(item)

    @property
    def open(self) -> list[OpenRollout]:
        """All responses that are not finished, by prompt and sample."""
        return [item for group in self.groups.values() for item in group.open]

    @property
    def finished(self) -> list[ScoredRollout]:
        """All responses that wait for others of their group."""
        return [item for group in self.groups.values() for item in group.finished]

    def held_tokens(self) -> dict[int, int]:
        """Tokens of finished responses, by the prompt's position."""
        return {
            position: sum(item.rollout.response_length for item in group.finished) for position, group in self.groups.items()
        }

    def set_open(self, unfinished: Sequence[OpenRollout]) -> None:
        """What sampling left of `open`; `finish` is to get the others."""
        for group in self.groups.values():
            group.open = []
        for item in unfinished:
            self.groups[item.prompt.position].open.append(item)

    def finish(self, scored: Sequence[ScoredRollout]) -> None:
        """Responses that are finished."""
        for one in scored:
            self.groups[one.rollout.prompt_index].finished.append(one)

    def take_whole(self) -> list[Group]:
        """Remove the groups without an open response."""
        whole = [group for group in self.groups.values() if not group.open]
        self.groups = {position: group for position, group in self.groups.items() if group.open}
        return whole

    def age(self, max_cuts: int) -> tuple[int, int]:
        """The weights change: count one more cut for each response that was begun, and drop those with more than `max_cuts`.
        A group goes on with what it has left, or is dropped when that is less than two responses. Returns the responses that
        were dropped and their tokens."""
        dropped: list[int] = []
        for position, group in list(self.groups.items()):
            aged = [dataclasses.replace(item, cuts=item.cuts + (item.length > 0)) for item in group.open]
            group.open = [item for item in aged if item.cuts <= max_cuts]
            dropped += [item.length for item in aged if item.cuts > max_cuts]
            if len(group.open) + len(group.finished) < 2:
                dropped += [item.length for item in group.open]
                dropped += [item.rollout.response_length for item in group.finished]
                del self.groups[position]
        return len(dropped), sum(dropped)

    def routes(self) -> Tensor:
        """The experts of all tokens, those of `open` first, as this process has them: uint8 [tokens, bytes of a token]."""
        held = [item.request.begun for item in self.open] + [item.rollout.completion for item in self.finished]
        tokens = sum(completion.length for completion in held)
        joined = bytearray(b"".join(completion.routes for completion in held))
        found = torch.frombuffer(joined, dtype=torch.uint8) if joined else torch.zeros(0, dtype=torch.uint8)
        return found.view(tokens, len(joined) // max(1, tokens))

    def to_bytes(self, routes: Tensor | None = None) -> bytes:
        """Everything but the prompts, as safetensors: three values for each sampled token, and an index of the responses;
        `routes`: the experts of all pipeline stages, side by side."""
        index: list[dict[str, Any]] = []
        tokens, columns = token_array(), [number_array() for _ in NUMBERS]

        def add(about: dict[str, Any], completion: Completion) -> None:
            index.append({**about, "versions": completion.versions, "tokens": completion.length})
            tokens.extend(completion.tokens)
            for column, name in zip(columns, NUMBERS, strict=True):
                column.extend(getattr(completion, name))

        for item in self.open:
            about = {"position": item.prompt.position, "sample": item.sample, "cuts": item.cuts,
                     "domain": item.prompt.record.domain, "prompt_id": item.prompt.record.id}  # fmt: skip
            add(about, item.request.begun)
        for scored in self.finished:
            done = scored.rollout
            about = {"position": done.prompt_index, "sample": done.sample,
                     "domain": done.domain, "prompt_id": done.prompt_id,
                     "finish_reason": done.finish_reason, "reward": scored.reward, "reason": scored.reason,
                     "detail": dict(scored.detail)}  # fmt: skip
            add(about, done.completion)
        return save({
            "index": torch.frombuffer(bytearray(json.dumps(index).encode()), dtype=torch.uint8),
            "tokens": torch.tensor(tokens, dtype=torch.int32),
            "values": torch.stack([torch.tensor(column, dtype=torch.float32) for column in columns]),
            "routes": self.routes() if routes is None else routes.contiguous(),
        })  # fmt: skip

    @classmethod
    def from_bytes(
        cls, data: bytes, stream: PromptStream, opened: Callable[[list[StreamPrompt]], list[OpenRollout]],
        stage: slice = slice(None),
    ) -> RolloutPool:  # fmt: skip
        """Undo `to_bytes`. `opened`: from prompts to their responses before anything is sampled, as `add` got them. `stage`:
        which of the bytes of a token's routes this process wants."""
        held = load(data)
        index = json.loads(bytes(held["index"].tolist()))
        names = {entry["position"]: (entry["domain"], entry["prompt_id"]) for entry in index}
        prompts = {place: StreamPrompt(place, stream.find(*name)) for place, name in sorted(names.items())}
        new = {(item.prompt.position, item.sample): item for item in opened(list(prompts.values()))}
        pool, start = cls(), 0
        pool.groups = {place: Group(prompt) for place, prompt in prompts.items()}
        for entry in index:
            end = start + entry["tokens"]
            tokens = token_array(held["tokens"][start:end].tolist())
            logprobs, processed, entropies = map(number_array, held["values"][:, start:end].tolist())
            item, group = new[entry["position"], entry["sample"]], pool.groups[entry["position"]]
            routes = held["routes"][start:end, stage].contiguous().numpy().tobytes()
            begun = Completion(tokens, logprobs, processed, entropies, entry["versions"], entry.get("finish_reason"), routes)
            if begun.finish_reason is None:
                group.open.append(dataclasses.replace(item, request=item.request.continued(begun), cuts=entry["cuts"]))
            else:
                rollout = item.rollout(begun)
                group.finished.append(ScoredRollout(rollout, entry["reward"], entry["reason"], entry["detail"]))
            start = end
        return pool
