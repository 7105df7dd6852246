"""An SAE with the interface that SAEBench evaluates.

from saeflow.publish.saebench import BenchSAE
sae = BenchSAE.load("results/…/batchtopk_8x-s0", model_name="pythia-70m-deduped", hook_layer=3)
# sae_bench.evals.core.main.multiple_evals(selected_saes=[("mine", sae)], …)
"""

from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Self

import torch
from jaxtyping import Float
from torch import Tensor, nn

from saeflow.sae import formats
from saeflow.sae.architectures import Gated, JumpReLU, SparseAutoencoder, TopK


@dataclass
class BenchConfig:
    """What SAEBench reads of an SAE's `cfg`; it assigns some of it, so that it is not frozen."""

    model_name: str
    d_in: int
    d_sae: int
    hook_layer: int
    hook_name: str
    architecture: str
    dtype: str
    device: str
    context_size: int | None = None
    hook_head_index: int | None = None
    prepend_bos: bool = True
    normalize_activations: str = "none"
    seqpos_slice: tuple[int | None, ...] = (None,)
    apply_b_dec_to_input: bool = True
    finetuning_scaling_factor: bool = False
    activation_fn_str: str = ""
    activation_fn_kwargs: dict[str, Any] = field(default_factory=dict)
    model_from_pretrained_kwargs: dict[str, Any] = field(default_factory=dict)
    dataset_path: str = ""
    dataset_trust_remote_code: bool = False
    training_tokens: int = 0
    sae_lens_training_version: str | None = None
    neuronpedia_id: str | None = None

    @property
    def architecture_str(self) -> str:
        """Name of the architecture, under SAEBench's other name for it."""
        return self.architecture

    def to_dict(self) -> dict[str, Any]:
        """All fields, as JSON has them."""
        return asdict(self)


class BenchSAE(nn.Module):
    """The SAE with decoder rows of length 1: latents grow by what the rows lose, so that reconstructions stay.

    Attributes:
        W_enc [d_in, d_sae], W_dec [d_sae, d_in], b_enc [d_sae] (of a gated SAE the gate's), b_dec [d_in], cfg, device,
        dtype.
    Raises:
        ValueError: a decoder row of length 0, which no scale makes 1, or a TopK SAE whose rows are not of length 1 as
            they are: what it selects depends on the scale.
    """

    def __init__(
        self, sae: SparseAutoencoder, *, model_name: str, hook_layer: int, hook_name: str | None = None
    ) -> None:
        super().__init__()
        norms = sae.W_dec.norm(dim=1)
        if not bool((norms > 0).all()):
            raise ValueError(f"decoder row {int((norms == 0).nonzero()[0])} is zero; SAEBench needs rows of length 1")
        if isinstance(sae, TopK) and not sae.unit_norm_decoder:
            raise ValueError(
                f"decoder rows of a TopK SAE have lengths {float(norms.min()):.3g} to {float(norms.max()):.3g}"
            )
        self.sae = _scaled(sae, norms)
        self.cfg = BenchConfig(
            model_name=model_name,
            d_in=sae.d_in,
            d_sae=sae.d_sae,
            hook_layer=hook_layer,
            hook_name=hook_name or f"blocks.{hook_layer}.hook_resid_post",
            architecture=sae.architecture,
            dtype=str(sae.dtype).removeprefix("torch."),
            device=str(sae.device),
            context_size=sae.metadata.get("context_size"),
        )
        self.use_error_term = False

    @classmethod
    def load(cls, directory: Path | str, *, model_name: str, hook_layer: int, hook_name: str | None = None) -> Self:
        """From a directory in SAELens's format.

        Arguments:
            hook_name: as TransformerLens calls it; the residual stream behind the layer if not given.
        """
        return cls(formats.load(directory), model_name=model_name, hook_layer=hook_layer, hook_name=hook_name)

    @property
    def W_enc(self) -> Float[Tensor, "d_in d_sae"]:  # noqa: N802
        return self.sae.W_enc

    @property
    def W_dec(self) -> Float[Tensor, "d_sae d_in"]:  # noqa: N802
        return self.sae.W_dec

    @property
    def b_enc(self) -> Float[Tensor, " d_sae"]:
        return self.sae.b_gate if isinstance(self.sae, Gated) else self.sae.b_enc

    @property
    def b_mag(self) -> Float[Tensor, " d_sae"]:
        """Bias of a gated SAE's magnitudes; the others have none.

        Raises:
            AttributeError: the SAE is not gated.
        """
        if not isinstance(self.sae, Gated):
            raise AttributeError(f"an SAE of architecture '{self.sae.architecture}' has no b_mag")
        return self.sae.b_mag

    @property
    def b_dec(self) -> Float[Tensor, " d_in"]:
        return self.sae.b_dec

    @property
    def device(self) -> torch.device:
        return self.sae.device

    @property
    def dtype(self) -> torch.dtype:
        return self.sae.dtype

    def encode(self, x: Float[Tensor, "*batch d_in"]) -> Float[Tensor, "*batch d_sae"]:
        return self.sae.encode(x.to(self.dtype))

    def decode(self, z: Float[Tensor, "*batch d_sae"]) -> Float[Tensor, "*batch d_in"]:
        return self.sae.decode(z)

    def forward(self, x: Float[Tensor, "*batch d_in"]) -> Float[Tensor, "*batch d_in"]:
        return self.decode(self.encode(x)).to(x.dtype)


def _scaled(sae: SparseAutoencoder, norms: Float[Tensor, " d_sae"]) -> SparseAutoencoder:
    if isinstance(sae, Gated):
        # relu(exp(r) d W + b) scales by its arguments; the gate stays as it is.
        return sae.replace(W_dec=sae.W_dec / norms[:, None], r_mag=sae.r_mag + norms.log(), b_mag=sae.b_mag * norms)
    changes = {"W_dec": sae.W_dec / norms[:, None], "W_enc": sae.W_enc * norms, "b_enc": sae.b_enc * norms}
    if isinstance(sae, JumpReLU):
        changes["threshold"] = sae.threshold * norms
    return sae.replace(**changes)
