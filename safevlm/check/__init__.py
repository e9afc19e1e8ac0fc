"""`safevlm check`: every problem at once, numbered, before a GPU is taken.

A check is a small function that returns findings; the tables of checks sit beside what they check.
Trap: a check may read whatever it likes, but nothing it does may load the weights of a large language model.
"""
