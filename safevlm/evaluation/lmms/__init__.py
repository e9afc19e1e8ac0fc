"""The guarded model inside lmms-eval (utility benchmarks)."""
