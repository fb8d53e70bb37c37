"""Reads a data set once, as a training would, and says what is in it and what is wrong with it."""
