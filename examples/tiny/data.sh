#!/usr/bin/env bash
# Problems in four families (three math, one answered with a unit), in disjoint splits, and a tokenizer trained on them.
# The SFT responses are those of an unverified teacher: two in five guess instead of working. The verifier of
# reinforcement tells which answers are right.
. "$(dirname "${BASH_SOURCE[0]}")/env.sh"
plain "$PYTHON" "$ROOT/tools/make_tiny_data.py" --out "$DATA" --seed "$SEED" \
  --train 5600 --validation 200 --rl 1400 --heldout 600 --guesses 0.4 \
  --difficulty arithmetic.terms=3 linear.solution=9 linear.constant=20 division.dividend=499 division.gcd=99 \
  units.speed=49 units.whole=12 "$@"
