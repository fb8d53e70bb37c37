"""How completions are sampled."""

from dataclasses import dataclass


@dataclass(frozen=True, kw_only=True)
class Sampling:
    """Settings of a rollout.

    Args:
        group_size: completions per prompt (G).
        temperature: logits are divided by it; 0 is greedy.
        top_p: sample from the smallest set of tokens whose probability reaches this; 1 keeps all.
        max_new_tokens: longest completion.

    Raises:
        ValueError: a setting outside its range.
    """

    group_size: int = 8
    temperature: float = 1.0
    top_p: float = 1.0
    max_new_tokens: int = 512

    def __post_init__(self) -> None:
        if self.group_size < 1:
            raise ValueError(f"sampling: group_size={self.group_size} must be at least 1")
        if self.temperature < 0:
            raise ValueError(f"sampling: temperature={self.temperature} must not be negative; 0 is greedy")
        if not 0 < self.top_p <= 1:
            raise ValueError(f"sampling: top_p={self.top_p} must lie above 0 and at most at 1; 1 keeps every token")
        if self.max_new_tokens < 1:
            raise ValueError(f"sampling: max_new_tokens={self.max_new_tokens} must be at least 1")
