"""The training step: trainer, optimizer, gradient buffers, off-load, losses, reference, first pass. Knows no prompts and no
rewards."""
