"""Latency, throughput and load."""
