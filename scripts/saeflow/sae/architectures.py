"""Sparse autoencoders ready for use: encode activations into latents, decode latents into activations.

Training has its own classes; what it makes is one of the four here. BatchTopK and Matryoshka SAEs end as `JumpReLU`
with one threshold for all latents, because their selection over a batch has no meaning for one activation vector.
"""

from abc import ABC, abstractmethod
from collections.abc import Iterable
from typing import Any, ClassVar, Self

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn.functional import embedding_bag, pad

from saeflow.sae.codes import Codes, batches_of

_SHAPES = {"W_enc": ("d_in", "d_sae"), "W_dec": ("d_sae", "d_in"), "b_dec": ("d_in",)}


class SparseAutoencoder(nn.Module, ABC):
    """z = f(x - b_dec);  x_hat = z W_dec + b_dec, in the units of the activation store.

    Parameters do not ask for gradients; gradients with respect to x flow.

    Attributes:
        architecture: SAELens's name of the class.
        shapes: axes of each tensor, by name.
        settings: numbers, beside the tensors, that the constructor takes.
        metadata: where the SAE comes from; filled by `formats.load`.
    """

    architecture: ClassVar[str]
    shapes: ClassVar[dict[str, tuple[str, ...]]]
    settings: ClassVar[tuple[str, ...]] = ()
    _in_latent_units: ClassVar[tuple[str, ...]]
    metadata: dict[str, Any]

    def _register(self, **tensors: Tensor) -> None:
        """Take the tensors as parameters.

        Raises:
            ValueError: a shape that does not go with that of W_enc; names the tensor.
        """
        super().__init__()
        self.metadata = {}
        W_enc = tensors["W_enc"]
        if W_enc.ndim != 2:
            raise ValueError(f"{type(self).__name__}: W_enc has shape {list(W_enc.shape)}, expected [d_in, d_sae]")
        sizes = dict(zip(self.shapes["W_enc"], W_enc.shape, strict=True))
        for name, tensor in tensors.items():
            expected = [sizes[axis] for axis in self.shapes[name]]
            if list(tensor.shape) != expected:
                axes = ", ".join(self.shapes[name])
                raise ValueError(
                    f"{type(self).__name__}: {name} has shape {list(tensor.shape)}, expected [{axes}] = {expected}"
                )
            self.register_parameter(name, nn.Parameter(tensor.detach(), requires_grad=False))

    @property
    def d_in(self) -> int:
        """Width of the activations."""
        return self.W_enc.shape[0]

    @property
    def d_sae(self) -> int:
        """Number of latents."""
        return self.W_enc.shape[1]

    @property
    def device(self) -> torch.device:
        return self.W_enc.device

    @property
    def dtype(self) -> torch.dtype:
        return self.W_enc.dtype

    @property
    def unit_norm_decoder(self) -> bool:
        """Whether every decoder row has length 1, within 1e-4."""
        return bool(((self.W_dec.norm(dim=1) - 1).abs() <= 1e-4).all())

    def preactivations(self, x: Float[Tensor, "*batch d_in"]) -> Float[Tensor, "*batch d_sae"]:
        """(x - b_dec) W_enc + b_enc: what the nonlinearity selects from (`Gated`: the gate's side)."""
        return (x.to(self.dtype) - self.b_dec) @ self.W_enc + self.b_enc

    @abstractmethod
    def encode(self, x: Float[Tensor, "*batch d_in"]) -> Float[Tensor, "*batch d_sae"]:
        """Dense latents, >= 0.

        Arguments:
            x: activations, in the store's own units.  Shape [..., d_in].
        """

    def _codes(self, x: Float[Tensor, "n d_in"]) -> Codes:
        return Codes.from_dense(self.encode(x))

    @torch.no_grad()
    def encode_sparse(self, x: Float[Tensor, "n d_in"] | Iterable[Tensor], batch_size: int = 8192) -> Codes:
        """Active latents of all rows, on this SAE's device; no more than one batch is ever held dense.

        Arguments:
            x: activations [n, d_in], or a stream of such blocks, on any device.
            batch_size: most rows encoded at a time.
        """
        return Codes.concatenate(self._codes(batch.to(self.device)) for batch in batches_of(x, batch_size))

    def decode(self, z: Float[Tensor, "*batch d_sae"] | Codes) -> Float[Tensor, "*batch d_in"]:
        """x_hat = z W_dec + b_dec, in the store's own units; from codes, only the active rows of W_dec are read."""
        if not isinstance(z, Codes):
            return z @ self.W_dec + self.b_dec
        sums = embedding_bag(
            z.indices.long(),
            self.W_dec,
            z.offsets,
            mode="sum",
            per_sample_weights=z.values,
            include_last_offset=True,
        )
        return sums + self.b_dec

    def forward(self, x: Float[Tensor, "*batch d_in"]) -> Float[Tensor, "*batch d_in"]:
        """x_hat."""
        return self.decode(self.encode(x))

    def replace(self, **changes: Any) -> Self:
        """A copy with some tensors or settings changed; the rest shares memory with this SAE."""
        arguments = {name: getattr(self, name) for name in (*self.shapes, *self.settings)}
        copy = type(self)(**(arguments | changes))
        copy.metadata = dict(self.metadata)
        return copy

    @torch.no_grad()
    def fold_normalization(self, mean: Float[Tensor, " d_in"], scale: float) -> Self:
        """The SAE of x that equals this SAE of (x - mean) * scale.

        Latents become 1/scale of what they were, so that decoder rows keep their length.
        """
        shrunk = {name: getattr(self, name) / scale for name in self._in_latent_units}
        return self.replace(**shrunk, b_dec=self.b_dec / scale + mean.to(self.b_dec))

    def extra_repr(self) -> str:
        return ", ".join(f"{name}={getattr(self, name)}" for name in ("d_in", "d_sae", *self.settings))


class ReLU(SparseAutoencoder):
    """z = relu((x - b_dec) W_enc + b_enc).

    Bricken et al. 2023, "Towards Monosemanticity".
    """

    architecture = "standard"
    shapes = _SHAPES | {"b_enc": ("d_sae",)}
    _in_latent_units = ("b_enc",)

    def __init__(
        self,
        W_enc: Float[Tensor, "d_in d_sae"],
        W_dec: Float[Tensor, "d_sae d_in"],
        b_enc: Float[Tensor, " d_sae"],
        b_dec: Float[Tensor, " d_in"],
    ) -> None:
        self._register(W_enc=W_enc, W_dec=W_dec, b_enc=b_enc, b_dec=b_dec)

    def encode(self, x: Float[Tensor, "*batch d_in"]) -> Float[Tensor, "*batch d_sae"]:
        return self.preactivations(x).relu()


class TopK(SparseAutoencoder):
    """z = topk(relu((x - b_dec) W_enc + b_enc), k).

    Gao et al. 2024, "Scaling and evaluating sparse autoencoders", eq. 3.

    Arguments:
        k: most latents active per activation vector, 1 to d_sae.
    """

    architecture = "topk"
    shapes = _SHAPES | {"b_enc": ("d_sae",)}
    settings = ("k",)
    _in_latent_units = ("b_enc",)

    def __init__(
        self,
        W_enc: Float[Tensor, "d_in d_sae"],
        W_dec: Float[Tensor, "d_sae d_in"],
        b_enc: Float[Tensor, " d_sae"],
        b_dec: Float[Tensor, " d_in"],
        k: int,
    ) -> None:
        self._register(W_enc=W_enc, W_dec=W_dec, b_enc=b_enc, b_dec=b_dec)
        if not 1 <= k <= self.d_sae:
            raise ValueError(f"TopK: k is {k}, expected 1 to d_sae {self.d_sae}")
        self.k = int(k)

    def _top(self, x: Float[Tensor, "*batch d_in"]) -> tuple[Tensor, Tensor]:
        values, indices = self.preactivations(x).topk(self.k, dim=-1, sorted=False)
        return values.relu(), indices

    def encode(self, x: Float[Tensor, "*batch d_in"]) -> Float[Tensor, "*batch d_sae"]:
        values, indices = self._top(x)
        return values.new_zeros(*values.shape[:-1], self.d_sae).scatter(-1, indices, values)

    def _codes(self, x: Float[Tensor, "n d_in"]) -> Codes:
        values, indices = self._top(x)
        indices, order = indices.sort(dim=-1)
        values = values.gather(-1, order)
        active = values > 0
        offsets = pad(active.sum(-1).cumsum(0), (1, 0))
        return Codes(values[active], indices[active].int(), offsets, self.d_sae)


class JumpReLU(SparseAutoencoder):
    """z = relu(p) where p > threshold, else 0;  p = (x - b_dec) W_enc + b_enc.

    Rajamanoharan et al. 2024, "Jumping ahead", eq. 3. Also the form in which BatchTopK (Bussmann et al. 2024) and
    Matryoshka BatchTopK (Bussmann et al. 2025) SAEs, and ReLU SAEs with a shifted threshold, are used.

    Arguments:
        threshold: in units of the preactivations, one per latent.  Shape [d_sae].
    """

    architecture = "jumprelu"
    shapes = _SHAPES | {"b_enc": ("d_sae",), "threshold": ("d_sae",)}
    _in_latent_units = ("b_enc", "threshold")

    def __init__(
        self,
        W_enc: Float[Tensor, "d_in d_sae"],
        W_dec: Float[Tensor, "d_sae d_in"],
        b_enc: Float[Tensor, " d_sae"],
        b_dec: Float[Tensor, " d_in"],
        threshold: Float[Tensor, " d_sae"],
    ) -> None:
        self._register(W_enc=W_enc, W_dec=W_dec, b_enc=b_enc, b_dec=b_dec, threshold=threshold)

    def encode(self, x: Float[Tensor, "*batch d_in"]) -> Float[Tensor, "*batch d_sae"]:
        p = self.preactivations(x)
        return p.relu() * (p > self.threshold)


class Gated(SparseAutoencoder):
    """z = relu(d W_enc exp(r_mag) + b_mag) where d W_enc + b_gate > 0, else 0;  d = x - b_dec.

    Rajamanoharan et al. 2024, "Improving dictionary learning with gated sparse autoencoders", eq. 4-7.

    Arguments:
        b_gate: bias of the gate.  Shape [d_sae].
        b_mag: bias of the magnitude.  Shape [d_sae].
        r_mag: log of the magnitude's gain over the gate.  Shape [d_sae].
    """

    architecture = "gated"
    shapes = _SHAPES | {"b_gate": ("d_sae",), "b_mag": ("d_sae",), "r_mag": ("d_sae",)}
    _in_latent_units = ("b_gate", "b_mag")

    def __init__(
        self,
        W_enc: Float[Tensor, "d_in d_sae"],
        W_dec: Float[Tensor, "d_sae d_in"],
        b_gate: Float[Tensor, " d_sae"],
        b_mag: Float[Tensor, " d_sae"],
        r_mag: Float[Tensor, " d_sae"],
        b_dec: Float[Tensor, " d_in"],
    ) -> None:
        self._register(W_enc=W_enc, W_dec=W_dec, b_gate=b_gate, b_mag=b_mag, r_mag=r_mag, b_dec=b_dec)

    def preactivations(self, x: Float[Tensor, "*batch d_in"]) -> Float[Tensor, "*batch d_sae"]:
        """(x - b_dec) W_enc + b_gate: a latent is open where this is > 0."""
        return (x.to(self.dtype) - self.b_dec) @ self.W_enc + self.b_gate

    def magnitudes(self, preactivations: Float[Tensor, "*batch d_sae"]) -> Float[Tensor, "*batch d_sae"]:
        """Latent values before the gate, from the gate's preactivations: both share one product with W_enc."""
        return ((preactivations - self.b_gate) * self.r_mag.exp() + self.b_mag).relu()

    def encode(self, x: Float[Tensor, "*batch d_in"]) -> Float[Tensor, "*batch d_sae"]:
        p = self.preactivations(x)
        return self.magnitudes(p) * (p > 0)


ARCHITECTURES: dict[str, type[SparseAutoencoder]] = {cls.architecture: cls for cls in (ReLU, TopK, JumpReLU, Gated)}
