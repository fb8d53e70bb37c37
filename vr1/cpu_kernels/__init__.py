"""Kernels for CPUs, written in C and compiled where there is a compiler (`library`).

`decoding` is what a decoding step computes beside its matrix products, `training` what the pass of a training does.
"""
