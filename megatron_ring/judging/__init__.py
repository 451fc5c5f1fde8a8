"""A language model as judge of responses: versioned prompts, the strict reading of its verdicts, a client for servers with
OpenAI's interface. Who generates is a callable, so that a server and our own sampler are alike.
May import data and errors. No torch."""
