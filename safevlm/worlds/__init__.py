"""What the drawn worlds share (`safevlm.miniature`, `safevlm.pictograms`): splits, an exact judge, files on disk."""
