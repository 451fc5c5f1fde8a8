"""megatron_ring: train, fine-tune and reinforce Ring-lite-class Mixture-of-Experts models on Megatron-core.

Importing the package is cheap: torch and megatron-core load only in the rooms that need them.
"""

__version__ = "0.1.0"
