"""Evaluation: ask -> judge -> report, with files between.

`ask` puts a suite's questions to a model behind a defense and writes `replies.jsonl`; `judge` turns replies into
`scores.jsonl`; `report` turns runs into `report.html`, `table.md` and `summary.json`. Judging and reporting never touch
the model that was asked, and import torch only for a judge in a folder (`--judge-local`). Run as `safevlm eval`.
"""
