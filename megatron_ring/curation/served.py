"""A checkpoint behind our own server, in a process of its own, for as long as a step asks it. The step itself loads no
torch."""

from __future__ import annotations

import os
import re
import subprocess
import sys
import threading
from collections import deque
from collections.abc import Iterator
from contextlib import contextmanager

from megatron_ring.curation.options import JudgeSubject
from megatron_ring.errors import UserError
from megatron_ring.lifetime import die_with_parent

_SAID = re.compile(r"serve: .* on (http://\S+:\d+)\s*$")
_SECONDS_TO_END = 30.0
_LINES = 5  # of what a server said that did not start


def _without_key() -> dict[str, str]:
    """The environment of a server that asks its only client for no key."""
    return {name: value for name, value in os.environ.items() if name != "RING_API_KEY"}


@contextmanager
def serve(options: JudgeSubject) -> Iterator[str]:
    """Start the server and wait for it: its address up to `/v1`.

    Raises:
        UserError: it ends instead; says its last line.
    """
    checkpoint, tokenizer = options.checkpoint, options.tokenizer or options.checkpoint
    command = [sys.executable, "-m", "megatron_ring.serve", "--checkpoint", str(checkpoint), "--tokenizer", str(tokenizer),
               "--port", "0", "--model-name", str(checkpoint)]  # fmt: skip
    if options.chat_template is not None:
        command += ["--chat-template", str(options.chat_template)]
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True, errors="replace",
                               env=_without_key(), preexec_fn=die_with_parent)  # fmt: skip
    assert process.stderr is not None
    try:
        said: deque[str] = deque(maxlen=_LINES)
        for line in process.stderr:
            found = _SAID.match(line)
            if found is not None:
                break
            said.append(line.strip())
        else:
            raise UserError(f"judge_subject: checkpoint {checkpoint} cannot be served: {said[-1] if said else 'no word'}")
        # What it says later nobody wants, but its pipe must not fill.
        threading.Thread(target=deque, args=(process.stderr, 0), daemon=True).start()
        yield f"{found[1]}/v1"
    finally:
        process.terminate()
        try:
            process.wait(_SECONDS_TO_END)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
