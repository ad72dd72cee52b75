"""What training and inference cost, as ratios measured in one run: ``python -m benchmarks``."""

import pisr_plugin  # noqa: F401  (makes basicsr importable)
