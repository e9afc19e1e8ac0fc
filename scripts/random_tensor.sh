#!/usr/bin/env bash
# scripts/random_tensor.sh TENSOR OUT [SEED]
# A control for a security tensor: its own values, shuffled within each token or colour channel, so every norm stays.
set -euo pipefail
python -c 'import sys; from safevlm.defenses.security_tensor import shuffle_file; print(shuffle_file(*sys.argv[1:]))' "$@"
