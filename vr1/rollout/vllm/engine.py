"""The interface of engines: vLLM in this process (`local`) or a server on other GPUs (`served`).

Shape letters: R requests.
"""

from abc import ABC, abstractmethod
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from PIL import Image
from torch import Tensor

from vr1.policy.policy import Policy
from vr1.rollout.sampling import Sampling

__all__ = ["FORBIDDEN", "Completion", "Engine", "Request"]

# The logit of a token that must not be sampled; vLLM takes nothing lower.
FORBIDDEN = -100.0


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class Request:
    """One completion to sample.

    Attributes:
        instruction: the question.
        text: the chat prompt with it, each image as one placeholder.
        images: the images, as stored.
        seed: of the completion's random numbers.
    """

    instruction: str
    text: str
    images: Sequence[Image.Image]
    seed: int


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class Completion:
    """One sampled completion.

    Attributes:
        prompt_tokens: the prompt as the engine read it, image tokens included.
        tokens: the sampled tokens, the end token included.
        log_probs: one for each of ``tokens``.
        finished: whether it reached an end token.
    """

    prompt_tokens: list[int]
    tokens: list[int]
    log_probs: list[float]
    finished: bool


class Engine(ABC):
    """vLLM with the weights of a policy."""

    @abstractmethod
    def load_weights(self, weights: Iterable[tuple[str, Tensor]]) -> None:
        """Replace all weights, and empty the caches; to be called by all processes together.

        Args:
            weights: names and tensors, with both names of tied ones.
        """

    @abstractmethod
    def load_adapter(self, policy: Policy) -> None:
        """Replace the adapter, and empty the caches; to be called by all processes together.

        Args:
            policy: a policy with adapters.

        Raises:
            UserError: vLLM does not take it.
        """

    @abstractmethod
    def generate(
        self, requests: Sequence[Request], sampling: Sampling, end_tokens: Sequence[int], forbidden: Sequence[int]
    ) -> list[Completion]:
        """Sample one completion for each of R requests.

        Args:
            requests: R requests.
            sampling: temperature, top-p and length limit.
            end_tokens: tokens that end a completion.
            forbidden: tokens that are never sampled.

        Returns:
            R completions in the same order.
        """
