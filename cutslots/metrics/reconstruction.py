"""How close a reconstruction is to its image."""

from jaxtyping import Float
from torch import Tensor


def mse(
    image: Float[Tensor, "batch 3 height width"],
    reconstruction: Float[Tensor, "batch 3 height width"],
) -> Float[Tensor, " batch"]:
    """Squared error SUMMED over channels and pixels, both pictures in [0, 1] and not clamped, an image at a time.

    At 128 x 128 this is the published tables' number; divide by 3 H W for the mean of an element.

    Source: the ClevrTex benchmark's evaluator.
    """
    return (image.double() - reconstruction.double()).square().sum((1, 2, 3))
