"""Training: samples in, weights out. It knows no simulator: real data are equal citizens."""
