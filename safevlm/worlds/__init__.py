"""What the drawn worlds share (`safevlm.miniature`, `safevlm.pictograms`): splits, an exact judge, files on disk, and
what teaches a tower to see: views of scenes, which patch shows what, gradient steps."""
