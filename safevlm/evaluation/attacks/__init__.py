"""Attacks on a guarded model: one file per kind, a row each, through the engine that users run (attacks.md §H).

    row, table, attacks.yaml   what an attack is, all of them, and names for several
    job                        requests, place and effort of one attack
    blind, words               without any knowledge of the guard: images changed, words changed
    white_box, margins, wanted the guarded model with its insides open: detectors' margins, the answer's loss
    white_box_rows             attacks that see the insides: descents on 8-bit images (descent, gradient), and one by
                               scores alone (square)
    run, strongest             asking, judging, and the strongest attack per request

A robustness number is the strongest attack's. An attack leaves a run's folder behind, as `safevlm eval ask` does.
"""
