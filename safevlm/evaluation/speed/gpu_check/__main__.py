"""`python3 -m safevlm.evaluation.speed.gpu_check`, which is what scripts/gpu_check.sh runs."""

import sys

from safevlm.evaluation.speed.gpu_check.command import main

sys.exit(main())
