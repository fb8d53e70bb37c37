"""Rollouts: prompts -> sampled completions.

In reading order: `sampler` is the interface that training and evaluation know, with the default sampler. That one calls
`generate`, which prefills the prompts and chooses between two ways of decoding.

- `shared` decodes with image and prompt computed once per group. Each step runs the language model for one token a row
  (`decoder`, on layers that `linear` prepares and `weights` may dequantize), with keys and values of prompts and
  completions in a `cache`, and samples the next token of all `rows` (`sampling`). `kernels` are vr1's own, for GPUs and
  CPUs; on a GPU, `graphs` replays steps.
- `hf_generate` decodes with transformers' ``generate``, one row per completion, for models that cannot share prompts.
"""

from vr1.rollout.generate import generate
from vr1.rollout.sampler import Sampler, SharedPrefixSampler, Workload
from vr1.rollout.sampling import Sampling, sample_token
from vr1.rollout.vllm.sampler import VLLMSampler

__all__ = ["Sampler", "Sampling", "SharedPrefixSampler", "VLLMSampler", "Workload", "generate", "sample_token"]
