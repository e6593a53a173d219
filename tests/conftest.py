"""Tests run their programs for moments: to compile them fast is worth more than speed.

Together these take a fifth of the time to compile a train step. They are read when JAX
is imported, and by the processes that tests start.
"""

import os

_QUICK = "--xla_cpu_use_fusion_emitters=false"
os.environ["XLA_FLAGS"] = f"{os.environ.get('XLA_FLAGS', '')} {_QUICK}".strip()
os.environ["JAX_DISABLE_MOST_OPTIMIZATIONS"] = "1"
