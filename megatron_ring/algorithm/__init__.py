"""The algorithm: advantages, token budget, objectives, mismatch corrections. Pure functions on torch tensors; imports no
other room."""
