"""Generation inside the training process, on the live training weights, under the training layout.

`Sampler` answers requests that are all known (`generate`) or that come while others decode (`engine`). An `Engine` takes
steps: `Scheduler` plans one, `ModelRunner` runs it over the paged KV cache and draws tokens with each row's own settings,
`StepEdge` keeps the ranks together in between. `columns` is the table of what is kept of each token; a `Completion` has it.
"""
