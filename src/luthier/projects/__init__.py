"""Whole projects as context: their files, what a file takes from them, and what of it a row shows."""
