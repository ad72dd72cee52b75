"""What training and inference cost, as ratios measured in one run: ``python -m benchmarks``."""
