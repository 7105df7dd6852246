"""How well an SAE reconstructs, how sparse it is, and what its reconstruction does to the model: streaming, in float64.

Three accumulators take batches and give numbers; `measure` runs them over a store in one pass and `evaluate` returns
their numbers as one flat dict. Sums are centred as they grow (Chan, Golub and LeVeque 1983), so nothing cancels when
the mean of the activations is far larger than their spread.
"""

import math
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field

import torch
from jaxtyping import Float, Int
from torch import Tensor

from saeflow.sae.architectures import SparseAutoencoder
from saeflow.sae.codes import Codes, batches_of

LogitsFn = Callable[[Float[Tensor, "n d_in"]], Float[Tensor, "n n_classes"]]


@dataclass
class Moments:
    """Count, mean and summed squared distance from the mean of rows that arrive in batches."""

    n: int = 0
    mean: Float[Tensor, " d"] | None = None
    scatter: Float[Tensor, ""] | float = 0.0
    """sum_i ||x_i - mean||^2."""

    def update(self, x: Float[Tensor, "n d"]) -> Float[Tensor, "n d"]:
        """Take float64 rows; returns them less their own mean."""
        mean = x.mean(0)
        centered = x - mean
        if self.mean is None:
            self.mean = torch.zeros_like(mean)
        total = self.n + len(x)
        shift = mean - self.mean
        self.scatter = self.scatter + centered.square().sum() + shift.square().sum() * (self.n * len(x) / total)
        self.mean = self.mean + shift * (len(x) / total)
        self.n = total
        return centered


@dataclass
class Reconstruction:
    """Distances between activations x and reconstructions y = x_hat, with r = x - y, over all n rows."""

    x: Moments = field(default_factory=Moments)
    residual: Moments = field(default_factory=Moments)
    sums: dict[str, Tensor] = field(default_factory=dict)

    @torch.no_grad()
    def update(self, x: Float[Tensor, "n d"], x_hat: Float[Tensor, "n d"]) -> None:
        """Take a batch of rows."""
        if len(x) == 0:
            return
        x, x_hat = x.double(), x_hat.double()
        residual = x - x_hat
        centered = self.x.update(x)
        self.residual.update(residual)
        errors = residual.square().sum(1)
        lengths = x.norm(dim=1) * x_hat.norm(dim=1)
        products = (x * x_hat).sum(1)
        spread = centered.square().sum(1)
        batch = {
            "error": errors.sum(),
            "product": products.sum(),
            "norm_hat": x_hat.square().sum(),
            "cosine": torch.where(lengths > 0, products / lengths, 0).sum(),
            "ratio": torch.where(spread > 0, errors / spread, 0).sum(),
        }
        for name, value in batch.items():
            self.sums[name] = self.sums.get(name, 0) + value

    def metrics(self) -> dict[str, float]:
        """The numbers.

        - `explained_variance` = 1 - sum_i ||r_i||^2 / sum_i ||x_i - mean(x)||^2: the one to report.
        - `fvu` = 1 - explained_variance, the fraction of variance unexplained.
        - `mse` = mean_i ||r_i||^2, summed over dimensions (as SAELens and SAEBench), in the store's units squared.
        - `cosine` = mean_i cos(x_i, y_i), where a vector of length 0 counts as 0.
        - `relative_reconstruction_bias` = mean_i ||y_i||^2 / mean_i <x_i, y_i>: 1 when unbiased, below 1 for
          shrinkage, 0 when y is always 0 (Rajamanoharan et al. 2024, "Gated sparse autoencoders", eq. 10).

        For comparison with numbers that others published:

        - `explained_variance_legacy_mean_ratio` = mean_i (1 - ||r_i||^2 / ||x_i - mean of x_i's batch||^2): SAELens's
          `explained_variance_legacy`; depends on the batch size.
        - `explained_variance_centered_residual` = 1 - sum_i ||r_i - mean(r)||^2 / sum_i ||x_i - mean(x)||^2:
          dictionary_learning; a constant error costs nothing.
        - `r2_scalar_mean` = 1 - sum_i ||r_i||^2 / sum_ij (x_ij - mean over rows and dimensions)^2: overcomplete; rises
          with the spread of the dimensions' means.

        Raises:
            ValueError: no rows, or rows that are all equal, of which no variance can be explained.
        """
        n, total = self.x.n, float(self.x.scatter)
        if n == 0:
            raise ValueError("reconstruction metrics: no activation vectors were given")
        if not math.isfinite(total):
            raise ValueError("explained variance is not defined: activation vectors hold values that are not finite")
        if total <= 1e-28 * n * float(self.x.mean.square().sum()):
            raise ValueError(f"explained variance is not defined: all {n} activation vectors are equal")
        sums = {name: float(value) for name, value in self.sums.items()}
        across = float((self.x.mean - self.x.mean.mean()).square().sum())
        return {
            "explained_variance": 1 - sums["error"] / total,
            "fvu": sums["error"] / total,
            "mse": sums["error"] / n,
            "cosine": sums["cosine"] / n,
            "relative_reconstruction_bias": sums["norm_hat"] / sums["product"] if sums["product"] else 0.0,
            "explained_variance_legacy_mean_ratio": 1 - sums["ratio"] / n,
            "explained_variance_centered_residual": 1 - float(self.residual.scatter) / total,
            "r2_scalar_mean": 1 - sums["error"] / (total + n * across),
        }


@dataclass
class Sparsity:
    """How many latents are active, and how often each is."""

    n: int = 0
    counts: Int[Tensor, " d_sae"] | None = None
    """Rows on which each latent is active."""

    @torch.no_grad()
    def update(self, z: Float[Tensor, "n d_sae"] | Codes) -> None:
        """Take latents of a batch of rows."""
        counts = z.firing_counts() if isinstance(z, Codes) else (z != 0).sum(0)
        self.counts = counts if self.counts is None else self.counts + counts
        self.n += len(z)

    @property
    def frequencies(self) -> Float[Tensor, " d_sae"]:
        """Share of rows on which each latent is active, float64."""
        if self.counts is None or self.n == 0:
            raise ValueError("sparsity metrics: no latents were given")
        return self.counts.double() / self.n

    def metrics(self) -> dict[str, float]:
        """The numbers.

        - `l0`: mean number of active latents per row.
        - `dead_share`: share of latents that are active on no row.
        - `dense_share_10`, `dense_share_1`: share of latents active on more than 10 % and 1 % of rows.

        Raises:
            ValueError: no rows.
        """
        frequencies = self.frequencies
        return {
            "l0": int(self.counts.sum()) / self.n,
            "dead_share": float((frequencies == 0).double().mean()),
            "dense_share_10": float((frequencies > 0.1).double().mean()),
            "dense_share_1": float((frequencies > 0.01).double().mean()),
        }

    def histogram(self, per_decade: int = 4, decades: int = 6) -> tuple[Float[Tensor, " bins"], Int[Tensor, " bins"]]:
        """Latents by log10 of their activation frequency.

        Arguments:
            per_decade: bins per factor of ten.
            decades: how far below frequency 1 the bins reach.
        Returns:
            lower edges in log10, ascending to -1/per_decade, and latents per bin. The first bin is -inf: dead latents;
            the second takes everything else below its upper edge, the last includes frequency 1.
        """
        n_bins = per_decade * decades
        edges = torch.arange(-n_bins, 0, dtype=torch.float64) / per_decade
        log = self.frequencies.cpu().log10()
        alive = log[log > -torch.inf]
        bins = torch.bucketize(alive, edges, right=True).clamp(min=1)
        counts = torch.cat([torch.tensor([len(log) - len(alive)]), bins.bincount(minlength=n_bins + 1)[1:]])
        return torch.cat([torch.tensor([-torch.inf], dtype=torch.float64), edges]), counts


@dataclass
class Splice:
    """What the model answers with x_hat in place of x: logits p without and q with the SAE, in rows."""

    n: int = 0
    n_labelled: int = 0
    sums: dict[str, Tensor] = field(default_factory=dict)

    @torch.no_grad()
    def update(
        self,
        clean: Float[Tensor, "n n_classes"],
        spliced: Float[Tensor, "n n_classes"],
        labels: Int[Tensor, " n"] | None = None,
    ) -> None:
        """Take the logits of a batch of rows, with labels or without."""
        log_p, log_q = clean.double().log_softmax(1), spliced.double().log_softmax(1)
        before, after = clean.argmax(1), spliced.argmax(1)
        batch = {
            # A class that the model rules out (logit -inf) adds nothing.
            "kl": torch.where(log_p > -torch.inf, log_p.exp() * (log_p - log_q), 0).sum(),
            "agreement": (before == after).double().sum(),
        }
        if labels is not None:
            labels = labels.to(before.device)
            batch |= {"clean": (before == labels).double().sum(), "spliced": (after == labels).double().sum()}
            self.n_labelled += len(clean)
        for name, value in batch.items():
            self.sums[name] = self.sums.get(name, 0) + value
        self.n += len(clean)

    def metrics(self) -> dict[str, float]:
        """The numbers.

        - `agreement`: share of rows on which the most likely class is the same with and without the SAE.
        - `splice_kl` = mean_i sum_c p_ic log(p_ic / q_ic), nats.
        - with labels, `accuracy_clean`, `accuracy_spliced` (shares of rows) and `accuracy_change_pp`, their difference
          in percentage points, negative for a loss.

        Raises:
            ValueError: no rows, or labels for some batches only.
        """
        if self.n == 0:
            raise ValueError("splice metrics: no logits were given")
        if self.n_labelled not in (0, self.n):
            raise ValueError(f"splice metrics: {self.n_labelled} of {self.n} rows have labels, expected all or none")
        means = {name: float(value) / self.n for name, value in self.sums.items()}
        metrics = {"agreement": means["agreement"], "splice_kl": means["kl"]}
        if self.n_labelled:
            metrics |= {
                "accuracy_clean": means["clean"],
                "accuracy_spliced": means["spliced"],
                "accuracy_change_pp": 100 * (means["spliced"] - means["clean"]),
            }
        return metrics


def ce_recovered(ce_clean: float, ce_sae: float, ce_ablated: float) -> float:
    """(CE_ablated - CE_sae) / (CE_ablated - CE_clean): 1 when nothing is lost, 0 when as much as by ablation.

    Arguments:
        ce_clean: cross-entropy of the model as it is, nats.
        ce_sae: with x_hat spliced in.
        ce_ablated: with the activations replaced by zero, or by their mean: say which.

    Raises:
        ValueError: ablation costs nothing, so that there is nothing to recover.
    """
    if not ce_ablated > ce_clean:
        raise ValueError(f"ce_recovered: ablated cross-entropy {ce_ablated:g} is not above the clean {ce_clean:g}")
    return (ce_ablated - ce_sae) / (ce_ablated - ce_clean)


@dataclass
class Measurement:
    """All accumulators after one pass over an evaluation set."""

    reconstruction: Reconstruction = field(default_factory=Reconstruction)
    sparsity: Sparsity = field(default_factory=Sparsity)
    splice: Splice | None = None

    def metrics(self) -> dict[str, float]:
        """Every number of the parts, and `n_rows`."""
        parts = (self.reconstruction, self.sparsity, *([self.splice] if self.splice else []))
        return {"n_rows": float(self.reconstruction.x.n)} | {k: v for part in parts for k, v in part.metrics().items()}


@torch.no_grad()
def measure(
    sae: SparseAutoencoder,
    x: Float[Tensor, "n d_in"] | Iterable[Tensor],
    *,
    logits: LogitsFn | None = None,
    labels: Int[Tensor, " n_labels"] | None = None,
    batch_size: int = 8192,
) -> Measurement:
    """Run an SAE over an evaluation set once.

    Arguments:
        sae: on the device where everything is computed.
        x: activations [n, d_in], or a stream of blocks of them (`ActivationStore.batches`), in the store's units.
        logits: the rest of the model, from activations at the SAE's hook point; switches the splice metrics on.
        labels: class of each row, in the order of x: only with a stream that is not shuffled.  Shape [n].
        batch_size: most rows at a time.

    Raises:
        ValueError: labels without `logits`, or not as many labels as rows.
    """
    if labels is not None and logits is None:
        raise ValueError("labels: given without `logits`, which makes the predictions to compare them with")
    result = Measurement(splice=Splice() if logits else None)
    n = 0
    for block in batches_of(x, batch_size):
        batch = block.to(sae.device)
        codes = sae.encode_sparse(batch, batch_size)
        x_hat = sae.decode(codes)
        result.reconstruction.update(batch, x_hat)
        result.sparsity.update(codes)
        if logits:
            known = None if labels is None else labels[n : n + len(batch)]
            if known is not None and len(known) < len(batch):
                raise ValueError(f"labels: {len(labels)} for more than {n + len(known)} activation vectors")
            result.splice.update(logits(batch), logits(x_hat), known)
        n += len(batch)
    if labels is not None and len(labels) != n:
        raise ValueError(f"labels: {len(labels)} for {n} activation vectors")
    return result


def evaluate(
    sae: SparseAutoencoder,
    x: Float[Tensor, "n d_in"] | Iterable[Tensor],
    *,
    logits: LogitsFn | None = None,
    labels: Int[Tensor, " n_labels"] | None = None,
    batch_size: int = 8192,
) -> dict[str, float]:
    """Every metric of an SAE on an evaluation set, as `measure` takes it; the `metrics` methods have the formulas."""
    return measure(sae, x, logits=logits, labels=labels, batch_size=batch_size).metrics()
