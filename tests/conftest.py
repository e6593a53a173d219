"""Tests run their programs for moments: to compile them fast is worth more than speed.

This alone takes a third of the time to compile a train step, and is read by XLA before
anything is computed.
"""

import os

QUICK = "--xla_cpu_use_fusion_emitters=false"
os.environ["XLA_FLAGS"] = f"{os.environ.get('XLA_FLAGS', '')} {QUICK}".strip()
