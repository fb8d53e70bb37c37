"""The last layer of prompts: keys and values of all tokens are wanted of it, but a state of the last token alone."""

from typing import Any

from torch import Tensor, nn

from vr1.policy.attention import PromptAttention
from vr1.policy.known_layers import KNOWN_LAYERS


class _OneState:
    """Hooks of a layer's attention and its MLP, by which the MLP runs for the last token of each prompt."""

    reading = False

    def look(self, _attention: nn.Module, _inputs: Any, settings: dict[str, Any]) -> None:
        self.reading = isinstance(settings.get("sharing"), PromptAttention)

    def narrow(self, _mlp: nn.Module, inputs: tuple[Tensor]) -> tuple[Tensor] | None:
        # The layer adds what comes of it to all tokens: the others become something that nobody reads.
        return (inputs[0][:, -1:],) if self.reading else None


def one_state_of_prompts(network: Any) -> None:
    """Spare prompts the last layer's MLP but for their last token, in place; layers of another build stay as they are.

    Args:
        network: a vision-language model of transformers, adapters (if any) in place.
    """
    layer = network.model.language_model.layers[-1]
    if type(layer).__name__ in KNOWN_LAYERS:
        hooks = _OneState()
        # Inside of the layer, so that what is computed anew in backward passes them again.
        layer.self_attn.register_forward_pre_hook(hooks.look, with_kwargs=True)
        layer.mlp.register_forward_pre_hook(hooks.narrow)
