"""Rollouts by vLLM.

In reading order: `sampler` is what a module calls. Before any weights are loaded it has the settings checked
(`checks`, with the memory of `memory`). At the first rollout it starts an `engine` in this process, and before every
rollout it gives that the policy's weights (`weights`). The library itself is imported by `engine` and `checks` alone,
when they run.
"""
