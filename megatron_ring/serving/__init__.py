"""An OpenAI-compatible server over the sampler's engine. `protocol` reads what a client asks, `prompts` makes tokens of it,
`dispatcher` gives each request to a replica, `loop` takes the engine's steps on every rank, `answers` writes what comes
back.
May import sampler, data and below; starlette and uvicorn are imported here alone.
"""
