"""What benchmarks of the shipped model share: scenes of proteins it has not seen, and scores."""
