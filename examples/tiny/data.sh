#!/usr/bin/env bash
# Problems in four families (three math, one answered with a unit), in disjoint splits, and a tokenizer trained on them.
# 40 % of the SFT responses give the answer at once: reinforcement has to find out that working step by step pays.
. "$(dirname "${BASH_SOURCE[0]}")/env.sh"
"$PYTHON" "$ROOT/tools/make_tiny_data.py" --out "$DATA" --seed "$SEED" \
  --train 6000 --validation 200 --rl 2000 --heldout 800 --direct 0.4 \
  --difficulty arithmetic.terms=4 linear.solution=12 linear.constant=20 division.dividend=499 division.gcd=99 \
  units.speed=49 units.length=20
