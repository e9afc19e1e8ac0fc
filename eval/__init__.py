"""Evaluation: ask -> judge -> report, with files between.

`ask` puts a suite's questions to a model behind a defence and writes `replies.jsonl`; `judge` turns replies into
`scores.jsonl`; `report` turns runs into `report.html`, `table.md` and `summary.json`. Only `ask` and `overhead` touch
a model: judging and reporting never import torch. Run as `python -m eval`.
"""
