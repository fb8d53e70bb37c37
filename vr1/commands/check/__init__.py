"""Reads a full data set once, as a training would, and reports what is in it and what is wrong with it."""
