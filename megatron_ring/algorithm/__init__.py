"""The algorithm: advantages, token budget, objectives, mismatch corrections. Pure functions on torch tensors; imports no
other room. Objectives and corrections load without torch: config/ reads what they declare."""
