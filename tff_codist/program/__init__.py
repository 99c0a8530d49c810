"""The training program: loop, checkpoints, records, command line."""
