"""CUDA graphs: a decoding step is captured once and replayed for every further token.

Decoding a token launches hundreds of kernels, and where they are short, the host cannot launch them as fast as the GPU
runs them. A graph launches all of them at once. It repeats the very kernels with the very addresses that it was
captured with, so a step must be a function of tensors that stay where they are: `vr1.rollout.rows.SampledRows`,
`vr1.rollout.cache.StaticGroupCache`, and the prepared weights.

A graph lives as long as the shapes of one rollout, and never longer. Capturing costs the host about two eager steps and
the instantiation of the graph, of several hundred tokens. In return nothing outlives a rollout: cache and prepared
weights leave their memory to training, prompts need no padding to common widths, and no graph can go on with the
weights of an earlier step.

A wrong graph would not fail but sample other tokens. So each is tried first: a few tokens are decoded eagerly and by
the graph, from the same state, and have to agree. Whatever fails or differs, the rollout starts again without graphs
and gives the same completions, and so do all later ones of this process, after one warning.

The tests replay an emulation on a CPU; `benchmarks/gpu.py` replays graphs on a GPU (`docs/results/gpu.md`).
"""

import gc
import warnings
from collections.abc import Callable, Sequence
from typing import Protocol

import torch
from torch import Tensor

__all__ = ["CudaCapture", "GraphError", "GraphedStep", "Step", "StepCapture", "StepGraphs", "StepState"]

# Eager steps before a capture: kernels are loaded and libraries choose algorithms. They decode tokens as all others.
_WARM_UP = 2
# Tokens that are decoded eagerly and by the graph for comparison: with the first graph of a process, and every other.
_FIRST_TRIAL, _TRIAL = 4, 2
# The largest mean difference of a row's log-probs that computing in another order explains, in nats. A step that reads
# an outdated token, position or mask differs by 0.1 and more.
_BOUND = 0.02
# A capture pays off from about so many tokens on.
_LEAST_TOKENS = 24

# Decodes and samples one token for every row, and returns its logits [R, V].
Step = Callable[[], Tensor]


class StepCapture(Protocol):
    """Runs, records and repeats steps: CUDA graphs, or an emulation of them in tests."""

    def warm_up(self, step: Step) -> None:
        """Run a step in the way that capturing one will."""

    def capture(self, step: Step) -> Step:
        """Record a step without running it; returns a function that runs what was recorded."""


class CudaCapture:
    """`StepCapture` by CUDA graphs, which share one pool of memory, one after the other."""

    def __init__(self) -> None:
        self._stream: torch.cuda.Stream | None = None
        # Alive until the next graph has taken over its memory, which tensors outside of graphs cannot use.
        self._latest: torch.cuda.CUDAGraph | None = None

    def warm_up(self, step: Step) -> None:
        """Run a step on the stream of the captures."""
        present, side = torch.cuda.current_stream(), self._side_stream()
        side.wait_stream(present)
        with torch.cuda.stream(side):
            step()
        present.wait_stream(side)

    def capture(self, step: Step) -> Step:
        """Record the kernels of a step; returns a function that launches all of them at once."""
        graph, present, side = torch.cuda.CUDAGraph(), torch.cuda.current_stream(), self._side_stream()
        pool = None if self._latest is None else self._latest.pool()
        torch.cuda.synchronize()
        side.wait_stream(present)
        collects = gc.isenabled()
        # What a collection frees may call CUDA, which ends a capture.
        gc.disable()
        try:
            with torch.cuda.stream(side):
                # Other threads, such as one that pins batches, may go on calling CUDA.
                graph.capture_begin(pool=pool, capture_error_mode="thread_local")
                try:
                    logits = step()
                except BaseException:
                    self._end_failed(graph)
                    raise
                graph.capture_end()
        finally:
            if collects:
                gc.enable()
        present.wait_stream(side)
        self._latest = graph

        def replay() -> Tensor:
            graph.replay()
            return logits

        return replay

    def _end_failed(self, graph: torch.cuda.CUDAGraph) -> None:
        """End a capture in which an error was raised, which says why; that of ending says less."""
        try:
            graph.capture_end()
        except RuntimeError:
            return

    def _side_stream(self) -> torch.cuda.Stream:
        if self._stream is None:
            self._stream = torch.cuda.Stream()
        return self._stream


class GraphError(Exception):
    """A step could not be captured, or its replay computes something else; the text says which."""


class StepGraphs:
    """The graphs of all rollouts of a process: whether to capture steps, and what has been found out about it.

    Args:
        capture: records steps; None takes CUDA graphs.

    Attributes:
        failure: why no steps are captured any more; None while they are.
    """

    def __init__(self, capture: StepCapture | None = None) -> None:
        self.capture = capture or CudaCapture()
        self.failure: str | None = None
        self._trial = _FIRST_TRIAL

    def worthwhile(self, tokens: int) -> bool:
        """Whether to capture the steps of a rollout of at most so many tokens."""
        return self.failure is None and tokens >= _LEAST_TOKENS

    def give_up(self, error: GraphError) -> None:
        """Decode without graphs from now on, and say why."""
        self.failure = str(error)
        warnings.warn(f"CUDA graphs: {error}; decoding goes on without them, which is slower", stacklevel=2)

    def step(self, step: Step, state: "StepState", tokens: int) -> "GraphedStep":
        """A step that is captured when it is warm.

        Args:
            step: decodes and samples one token for every row.
            state: what a step changes.
            tokens: how many tokens can be decoded with the present shapes.
        """
        trial, self._trial = self._trial, _TRIAL
        return GraphedStep(step, state, self.capture, tokens, trial)


class StepState:
    """What a step changes and the next one reads, so that steps can be taken back.

    Args:
        tensors: counters and latest tokens.
        forget: clears keys and values that were stored after the present token.
    """

    def __init__(self, tensors: Sequence[Tensor], forget: Callable[[], None]) -> None:
        self._tensors, self._forget = tensors, forget

    def copies(self) -> list[Tensor]:
        """The present values."""
        return [tensor.clone() for tensor in self._tensors]

    def restore(self, values: Sequence[Tensor]) -> None:
        """Go back to earlier values."""
        for tensor, value in zip(self._tensors, values, strict=True):
            tensor.copy_(value)
        self._forget()


class GraphedStep:
    """A step of fixed shapes: eager at first, then captured, tried, and replayed.

    Args:
        step: as for `StepGraphs.step`.
        state: likewise.
        capture: records it.
        tokens: how many tokens will be decoded at most; of few, each step is eager.
        trial: tokens of the trial.
    """

    def __init__(self, step: Step, state: StepState, capture: StepCapture, tokens: int, trial: int) -> None:
        self._step, self._state, self._capture, self._trial = step, state, capture, trial
        self._warm_up = _WARM_UP if tokens >= _LEAST_TOKENS else tokens
        self._replay: Step | None = None

    def __call__(self) -> None:
        """Decode one token of every row.

        Raises:
            GraphError: capturing failed, or replays differ from eager steps.
        """
        if self._warm_up:
            self._warm_up -= 1
            self._capture.warm_up(self._step)
            return
        if self._replay is None:
            try:
                self._replay = self._capture.capture(self._step)
            except Exception as error:
                reason = str(error).strip().splitlines() or [""]
                raise GraphError(f"a step cannot be captured ({type(error).__name__}: {reason[0]})") from error
            self._try(self._replay)
        self._replay()

    def _try(self, replay: Step) -> None:
        """Decode a few tokens eagerly and by the graph, from the same state, and take them back."""
        before, runs = self._state.copies(), []
        for step in (self._step, replay):
            log_probs = torch.stack([_log_probs(step()) for _ in range(self._trial)])
            runs.append((log_probs, self._state.copies()))
            self._state.restore(before)
        (eager, state), (replayed, found) = runs
        gap = float((eager - replayed).abs().mean(-1).max())
        # Not "above": a gap that is no number is too large.
        if not gap <= _BOUND:
            raise GraphError(f"replayed steps differ from eager ones by {gap:.2g} nats, and {_BOUND} is allowed")
        if not all(torch.equal(ours, theirs) for ours, theirs in zip(found, state, strict=True)):
            raise GraphError("replayed steps sample or count other tokens than eager ones")


def _log_probs(logits: Tensor) -> Tensor:
    """Log-probs ``[R, V]`` of logits; tokens that are forbidden count as 0."""
    return logits.log_softmax(-1).masked_fill(logits == -torch.inf, 0.0)
