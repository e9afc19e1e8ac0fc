"""DeepSpeed without operators of its own: it would ask the compiler about each, and compile one, for minutes.

That one reduces through shared memory when a model is asked on several CPUs, and has no part in training. A process
with this folder on its path reads this file when it starts; others import it.
"""

import sys
from collections import defaultdict
from importlib.abc import MetaPathFinder


class _BeforeItAsks(MetaPathFinder):
    def find_spec(self, name, path, target=None):  # noqa: ANN001, ANN201
        if name == "deepspeed.comm":
            sys.modules["deepspeed.ops"].__compatible_ops__ = defaultdict(bool)
        return None


sys.meta_path.insert(0, _BeforeItAsks())
