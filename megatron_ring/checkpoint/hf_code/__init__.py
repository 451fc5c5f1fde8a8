"""Modelling code that an exported folder carries, so that transformers loads it with `trust_remote_code=True`.

The two files are copied as they are and stand alone: they import torch and transformers, nothing of this project.
"""
