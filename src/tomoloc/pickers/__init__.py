"""Pickers: each turns a tomogram into a score map."""
