"""A report on an evaluation or ablation: one self-contained HTML page, and figures for papers."""
