"""Scorers that own a model: rewards of conversations in every layout, and what they say of a reward model."""
