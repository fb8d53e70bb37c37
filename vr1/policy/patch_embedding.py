"""The first layer of Qwen's vision towers as the matrix product that it is.

transformers cuts an image into patches beforehand and calls a 3D convolution on each, whose kernel is as large as the
patch: one product, for which convolution libraries take several times as long, in backward above all.
"""

from torch import Tensor, nn


class PatchProduct(nn.Conv3d):
    """A 3D convolution that meets inputs as large as its kernel, with the weights, names and results of any other."""

    def forward(self, input: Tensor) -> Tensor:
        """``[N, channels, *kernel]`` -> ``[N, out channels, 1, 1, 1]``; other sizes as a convolution."""
        if input.shape[1:] != self.weight.shape[1:]:
            return super().forward(input)
        return nn.functional.linear(input.flatten(1), self.weight.flatten(1), self.bias)[..., None, None, None]


def as_products(network: nn.Module) -> None:
    """Turn the convolutions of patch embeddings in ``network`` into products, in place.

    Example:
        >>> import torch
        >>> patches = torch.randn(5, 3, 2, 4, 4)
        >>> network = nn.Sequential(nn.Conv3d(3, 8, kernel_size=(2, 4, 4), stride=(2, 4, 4)))
        >>> before = network(patches)
        >>> as_products(network)
        >>> bool((network(patches) - before).abs().max() < 1e-5)
        True
    """
    for layer in network.modules():
        if type(layer) is nn.Conv3d and layer.stride == layer.kernel_size and layer.groups == 1:
            layer.__class__ = PatchProduct
