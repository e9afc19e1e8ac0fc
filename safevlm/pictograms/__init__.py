"""The second world: real words, and pictograms of real things in eight drawing styles (emoji sets of npm)."""
