"""Reports from judged runs: `report.html`, `table.md`, `table.tex`, `summary.json`. No model is loaded."""
