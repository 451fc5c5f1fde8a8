"""A server with OpenAI's interface in front of a model, under any parallel layout; rank 0 listens.

    python -m megatron_ring.serve --checkpoint DIR --tokenizer DIR
    torchrun --nproc-per-node 8 -m megatron_ring.serve --checkpoint DIR --tokenizer DIR --parallel.expert 8

Requests reach the other data-parallel replicas over connections of their own (`serving.links`).
"""

from __future__ import annotations

import functools
import os
import sys
import time
from collections.abc import Callable
from typing import TYPE_CHECKING, NoReturn

from megatron_ring.config.cli import parse
from megatron_ring.config.serve import ServeConfig
from megatron_ring.errors import UserError, run_main
from megatron_ring.parallel import prepare

if TYPE_CHECKING:
    from megatron_ring.config.model import ModelConfig
    from megatron_ring.data.tokenizer import RingTokenizer
    from megatron_ring.run.stage import Stage
    from megatron_ring.sampler.engine import Engine
    from megatron_ring.serving.dispatcher import Dispatcher
    from megatron_ring.serving.links import Link
    from megatron_ring.serving.listening import StopSignals
    from megatron_ring.serving.replica import Replica

API_KEY = "RING_API_KEY"
LEAVES = 1 << 30  # bytes of the device that warming up does not take
SWITCH_SECONDS = (
    0.0005  # the thread that steps gets the interpreter back from the HTTP thread so soon; Python's own is 0.005
)


def main(config: ServeConfig) -> None:
    prepare()
    from megatron_ring.parallel import collectives
    from megatron_ring.run.stage import other_ends, resolve, set_first_weights

    config, shape, tokenizer = resolve(config)
    if collectives.is_main():
        for remark in other_ends(config, tokenizer):
            print(f"serve: {remark}", file=sys.stderr, flush=True)
    run(config, shape, tokenizer, lambda stage: set_first_weights(stage, config.checkpoint, config.seed))


def run(config: ServeConfig, shape: ModelConfig, tokenizer: RingTokenizer, fill: Callable[[Stage], None]) -> None:
    """Build the model, have `fill` set its weights, and serve until it is told to end. On every rank."""
    from megatron_ring.garbage import kept_what_is_there
    from megatron_ring.parallel import collectives
    from megatron_ring.run.stage import start_model
    from megatron_ring.sampler.sampler import Sampler
    from megatron_ring.serving import links
    from megatron_ring.serving.listening import StopSignals, open_socket
    from megatron_ring.serving.loop import run_steps
    from megatron_ring.serving.replica import Replica

    opened: list = []  # before the weights are read: a port that is taken is told at once
    collectives.from_main(lambda: opened.append(open_socket(config.host, config.port)))
    stage = start_model(config, shape)
    fill(stage)
    context = stage.context
    signals = StopSignals()
    sampler = Sampler(stage.model, context, config.sampling, tokenizer.eos_id, tokenizer.decode)
    sampler.horizon = min(sampler.horizon, config.tokens_in_a_row)
    engine = sampler.engine()
    _warm_up(config, engine, signals)
    found = links.connect(context)
    with kept_what_is_there():
        if context.is_main:
            serve(config, stage, tokenizer, engine, found, opened[0], signals)
            return
        replica = None
        if 0 in found:
            replica = Replica(engine, links.sender(found[0]))
            links.follow(found[0], replica)
        try:
            run_steps(engine, replica, _gathering(config, engine))
        except RuntimeError as error:
            _end(context.rank, error)


def _gathering(config: ServeConfig, engine: Engine) -> float:
    """Seconds. On a CPU a step of few prompts costs what they cost: waiting brings nothing."""
    return config.gather_seconds if engine.context.device.type == "cuda" else 0.0


def _warm_up(config: ServeConfig, engine: Engine, signals: StopSignals) -> None:
    """On a GPU, and where the flag asks for it; rank 0 says what was done. A signal ends it early."""
    from megatron_ring.parallel.device import untaken_memory
    from megatron_ring.sampler.warm_up import warm_up

    if engine.context.device.type != "cuda" or not config.warm_up_seconds:
        return
    began = time.monotonic()

    def enough() -> bool:
        return signals.asked or time.monotonic() - began > config.warm_up_seconds or untaken_memory() < LEAVES

    try:
        done = warm_up(engine, enough)
    except RuntimeError as error:
        _end(engine.context.rank, error)
    if engine.context.is_main:
        text = f"warm after {time.monotonic() - began:.1f} s, {done.captured} CUDA graphs captured"
        text += f" ({done.memory / 2**30:.1f} GiB)" if done.captured else ""
        text += f", all for contexts up to {done.longest:,} tokens" if done.longest else ""
        text += f"; {done.left} wait for their first batch" if done.left else ""
        print(f"serve: {text}", file=sys.stderr, flush=True)


def serve(
    config: ServeConfig, stage: Stage, tokenizer: RingTokenizer, engine: Engine, found: dict[int, Link], listening: object,
    signals: StopSignals,
) -> None:  # fmt: skip
    """On rank 0: listen, and take the steps of its replica."""
    from megatron_ring.serving.app import Service
    from megatron_ring.serving.dispatcher import Dispatcher
    from megatron_ring.serving.links import RemoteReplica
    from megatron_ring.serving.listening import Front
    from megatron_ring.serving.loop import run_steps
    from megatron_ring.serving.replica import Replica

    sys.setswitchinterval(SWITCH_SECONDS)
    others = [RemoteReplica(found[rank]) for rank in sorted(found)]
    capacity = engine.size.rows * (1 + len(others)) + config.max_queue
    dispatcher = Dispatcher([], capacity, wakes_all=config.parallel.expert > 1)
    front = Front(config, listening, dispatcher, signals)  # type: ignore[arg-type]
    if engine.runner.flies:  # otherwise HTTP would wait for whole passes
        engine.launching = front.precedence
    replica = Replica(engine, front.deliver)
    front.on_data = replica.expect
    dispatcher.add_replicas([replica, *others])
    for rank, link in found.items():
        lost = UserError(f"rank {rank} has ended, and its replica with it")
        link.read(lambda _, updates: front.deliver(updates), functools.partial(_lose, dispatcher, replica, lost))
    key = config.api_key or os.environ.get(API_KEY)
    front.start(Service(config, key, tokenizer, engine, dispatcher, stage.shape.max_positions, front.precedence).app())
    front.say()
    try:
        run_steps(engine, replica, _gathering(config, engine))
    except (UserError, RuntimeError) as error:
        front.fail(f"the server ends: {_last_line(error)}")
        front.close()
        if isinstance(error, UserError):
            raise
        _end(0, error)
    front.close()


def _lose(dispatcher: Dispatcher, replica: Replica, lost: UserError) -> None:
    """A connection to another leader has ended; where it was not told to, the server ends."""
    if not dispatcher.closed:
        replica.fail(lost)


def _last_line(error: Exception) -> str:
    text = (str(error).strip().splitlines() or [type(error).__name__])[-1]
    gone = any(said in text for said in ("Connection closed by peer", "Connection reset by peer"))  # gloo's words
    return "another process of this launch has ended; the launcher says which" if gone else text


def _end(rank: int, error: Exception) -> NoReturn:
    """A process that steps with this one has ended, or a step failed: one line, exit status 1."""
    print(f"error: rank {rank}: serving ended within a step: {_last_line(error)}", file=sys.stderr, flush=True)
    raise SystemExit(1) from None


def cli() -> None:
    run_main(lambda: main(parse(ServeConfig, "ring-serve", "Serve a model with OpenAI's interface.")))


if __name__ == "__main__":
    cli()
