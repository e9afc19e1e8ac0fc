#!/usr/bin/env bash
# scripts/bench_gpu.sh [--shape 7b|13b|tiny] [--steps N] [--batch N] [--mode NAME …] [--device auto|cpu|cuda] [--out FILE]
# Seconds per step and peak memory of every way to train, with random weights; writes the numbers as JSON.
set -euo pipefail
exec python -m safevlm.training.bench "$@"
