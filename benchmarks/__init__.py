"""How fast this product is, beside JuiceFS and a plain local directory: ``python -m benchmarks``.

Each workload runs on each system in turn, in a fresh state, and that is repeated; the table shows the medians.
"""
