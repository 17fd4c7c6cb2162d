"""Structural pruning measured: accuracy against operations."""
