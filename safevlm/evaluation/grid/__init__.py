"""Every defense on the same questions: judged runs → `grid.json`, `grid.md`, and a figure. No model is asked.

rows.py      the runs of a folder, by row and seed
columns.py   what is counted: attacks, over-refusal, utility, on images as they are and on changed ones
pairs.py     differences against another row, paired by question, and their p corrected for how many there are
build.py     all of it as one table
table.py     the table for people
figures.py   the table as a heatmap
"""
