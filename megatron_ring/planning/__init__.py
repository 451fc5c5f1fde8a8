"""What a run will do and need, worked out from its configuration alone: layout, token arithmetic, memory of a GPU.

Nothing here imports torch but to read files that are there. Sizes are bytes unless a name says otherwise.
"""
