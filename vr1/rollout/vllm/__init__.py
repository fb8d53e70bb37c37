"""Rollouts by vLLM.

In reading order: `sampler` is what a module calls. Before any weights are loaded it has the settings checked
(`checks`, with the memory of `memory`). At the first rollout it gets an `engine`: `local` starts one in this process,
`served` asks a server on other devices. Before every rollout the engine gets the policy's weights (`weights`); `worker`
corrects what vLLM computes otherwise. The library itself is imported by `local`, `checks` and `worker` alone, when they
run.
"""
