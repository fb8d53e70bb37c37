"""Kernels for CPUs, written in C and compiled where there is a compiler (`library`).

`decoding` computes a token of a rollout, `completion_attention` the attention of the training pass, and `training` what
else that pass computes beside its matrix products.
"""
