"""Kernels for CPUs, written in C and compiled where there is a compiler (`library`).

`decoding` computes a token of a rollout. Of the training pass, `completion_attention` computes the attention of
completions, and `training` gates, norms, rotary positions and log-probs.
"""
