"""Rewards of recorded answers, without a model."""
