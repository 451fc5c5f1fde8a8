"""`python -m megatron_ring.rl` is the RL stage; its main is `megatron_ring/reinforce.py`, outside this pure room."""

from megatron_ring.reinforce import cli

if __name__ == "__main__":
    cli()
