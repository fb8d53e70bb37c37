"""Sweeps: trials of one command with different settings, from a sweep file of Weights & Biases, without an account."""

from vr1.commands.sweep.draw import parameters_of
from vr1.commands.sweep.plan import Plan, read_plan
from vr1.commands.sweep.trial import Trial, expand

__all__ = ["Plan", "Trial", "expand", "parameters_of", "read_plan"]
