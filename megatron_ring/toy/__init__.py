"""Generators of toy problems, for the demo and the studies. Imports no torch and no other room."""
