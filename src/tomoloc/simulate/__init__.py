"""Simulated tomograms with their truth."""
