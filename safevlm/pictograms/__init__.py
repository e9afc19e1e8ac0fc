"""The second world: real words, and pictograms of real things in seven drawing styles (emoji sets of npm)."""
