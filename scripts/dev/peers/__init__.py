"""The parts of scripts/dev/benchmark_peers.py."""
