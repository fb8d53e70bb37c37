"""Checks of the installation and the machine before a training."""
