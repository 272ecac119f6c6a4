"""Benchmarks that come with the product: ratios against a floor in the same run, so that anyone can run them again."""
