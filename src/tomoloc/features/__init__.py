"""Features: what a tomogram looks like at each place, as vectors on a grid of their own."""
