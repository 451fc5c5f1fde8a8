"""Weights and training state on disk: sharded checkpoints, Hugging Face conversion, layout-independent initialisation."""
