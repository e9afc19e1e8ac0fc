"""The GPU check: one call of nine minutes on a bare machine that turns the estimates about one card into numbers.

    plan (a table of steps) → supervisor (budget, limits, rows) ⇄ worker (a process that holds a model) → table

The supervisor never imports torch and writes a row after every step; a worker runs the steps of one group, which share
a model. The trap: such a machine has torch, transformers, peft and accelerate and nothing else, so nothing that is
imported here may need more (tests/evaluation/test_gpu_check.py blocks the rest).
"""
