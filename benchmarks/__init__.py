"""What benchmark.py measures: one module a subject, each with its CASES."""
