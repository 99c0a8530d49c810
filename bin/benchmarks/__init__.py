"""What `bin/benchmark.py` measures, one workload or family of them a file."""
