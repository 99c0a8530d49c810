"""Differential privacy of clients: what it costs, and how it is bought."""
