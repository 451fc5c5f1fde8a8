"""All configuration: frozen dataclasses by concern, command lines and YAML (cli), presets. Imports no torch, and of the
other rooms algorithm/ alone: names and defaults of objectives are declared there.

tyro turns every field into a flag; the docstring under a field is its help. Each class checks itself when it is built, and
raises `UserError` with the numbers.
"""
