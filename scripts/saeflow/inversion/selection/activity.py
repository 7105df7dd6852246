"""How the latents of an SAE fire over the prompts of a store: one pass, sparse codes only."""

import logging
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any, Self

import numpy as np
import torch
from jaxtyping import Float, Int
from scipy.sparse import csr_array

from saeflow.reproduce import digest_of, sha256_file, write_arrays
from saeflow.sae.architectures import SparseAutoencoder
from saeflow.sae.codes import Codes

log = logging.getLogger(__name__)

_ROWS = 16384


@dataclass(frozen=True)
class Activity:
    """What one pass finds.

    Arguments:
        counts: tokens on which each latent fires.  Shape [d_sae].
        sums, highest: of its activations.  Shape [d_sae].
        prompts_active: prompts in which it fires.  Shape [d_sae].
        entropy: of the distribution of its highest activation in each prompt over the prompts, by log N, N their
            number: 0 for a latent of one prompt, 1 for one that is equally strong in all.  Shape [d_sae].
        n_tokens, n_prompts: of the store.
        maxima: highest activation in each prompt kept, in compressed sparse rows: values, latents, offsets.
    """

    counts: Int[np.ndarray, " d_sae"]
    sums: Float[np.ndarray, " d_sae"]
    highest: Float[np.ndarray, " d_sae"]
    prompts_active: Int[np.ndarray, " d_sae"]
    entropy: Float[np.ndarray, " d_sae"]
    n_tokens: Int[np.ndarray, ""]
    n_prompts: Int[np.ndarray, ""]
    values: Float[np.ndarray, " n_active"]
    latents: Int[np.ndarray, " n_active"]
    offsets: Int[np.ndarray, " n_plus_1"]

    @property
    def density(self) -> Float[np.ndarray, " d_sae"]:
        """Share of the tokens on which each latent fires."""
        return self.counts / max(1, int(self.n_tokens))

    @property
    def maxima(self) -> csr_array:
        """Highest activation of each latent in each prompt kept [n_kept, d_sae]."""
        return csr_array((self.values, self.latents, self.offsets), shape=(len(self.offsets) - 1, len(self.counts)))

    def write(self, path: Path) -> None:
        """Write an .npz; equal activity, equal bytes."""
        write_arrays(path, {field.name: getattr(self, field.name) for field in fields(self)})

    @classmethod
    def read(cls, path: Path) -> Self:
        """Read what `write` wrote."""
        with np.load(path, allow_pickle=False) as arrays:
            return cls(**{field.name: arrays[field.name] for field in fields(cls)})


def collect(sae: SparseAutoencoder, store: Any, prompt_tokens: int, most_prompts: int) -> Activity:
    """Pass over a store once.

    A prompt is a piece of a document inside one context. Sums run over all prompts; the prompts whose maxima are kept
    are the first of each stride, so that they come from all of the text.

    Arguments:
        sae: on the device where it encodes.
        store: activations with the source columns document, position and context, in the order of the text.
        prompt_tokens: tokens of a prompt, at most.
        most_prompts: whose maxima are kept, about.
    """
    stride = max(1, round(len(store) / prompt_tokens / most_prompts))
    numbering = _Prompts(store, prompt_tokens)
    d_sae, first = sae.d_sae, 0
    counts, sums, highest = np.zeros(d_sae, np.int64), np.zeros(d_sae), np.zeros(d_sae, np.float32)
    mass, mass_log, active = np.zeros(d_sae), np.zeros(d_sae), np.zeros(d_sae, np.int64)
    waiting, kept = _Maxima.empty(), []

    def finish(done: "_Maxima") -> None:
        value = done.values.astype(np.float64)
        mass[:] += np.bincount(done.latents, value, d_sae)
        mass_log[:] += np.bincount(done.latents, value * np.log(value), d_sae)
        active[:] += np.bincount(done.latents, minlength=d_sae)
        kept.append(done.of(done.prompts % stride == 0))

    for x in store.batches(_ROWS, shuffle=None, epochs=1, device=sae.device):
        codes = sae.encode_sparse(x, _ROWS // 4).to("cpu")
        prompts = numbering.of(slice(first, first + len(x)))
        counts += codes.firing_counts().numpy()
        sums += np.bincount(codes.indices.numpy(), codes.values.double().numpy(), d_sae)
        np.maximum.at(highest, codes.indices.numpy(), codes.values.float().numpy())
        found = _Maxima.joined(waiting, _Maxima.of_codes(codes, prompts))
        # The last prompt may go on in the next rows.
        ended = found.prompts < prompts[-1]
        finish(found.of(ended))
        waiting, first = found.of(~ended), first + len(x)
    finish(waiting)
    maxima = _Maxima.joined(*kept)
    n_prompts = numbering.n
    offsets = np.searchsorted(maxima.prompts, np.append(np.arange(0, n_prompts, stride), n_prompts))
    with np.errstate(divide="ignore", invalid="ignore"):
        entropy = np.where(mass > 0, np.log(mass) - mass_log / mass, 0) / max(np.log(n_prompts), 1e-12)
    log.info("%d tokens of %d prompts; %d latents fire", first, n_prompts, (counts > 0).sum())
    return Activity(
        counts,
        sums,
        highest,
        active,
        np.clip(entropy, 0, 1),
        np.array(first),
        np.array(n_prompts),
        maxima.values,
        maxima.latents.astype(np.int32),
        offsets,
    )


def collect_cached(
    sae_folder: Path,
    sae: SparseAutoencoder,
    store_manifest: Path,
    store: Any,
    prompt_tokens: int,
    most_prompts: int,
    cache: Path,
) -> Activity:
    """As `collect`, but only once for one SAE, store and settings: what is found is kept under their digest.

    Arguments:
        sae_folder: of the SAE's files.
        store_manifest: manifest.json of the store, which has the digests of its chunks.
        cache: folder, made if it is not there.
    """
    content = {
        "sae": {path.name: sha256_file(path) for path in sorted(sae_folder.iterdir()) if path.is_file()},
        "store": sha256_file(store_manifest),
        "prompts": [prompt_tokens, most_prompts],
    }
    path = cache / f"{digest_of(content)}.npz"
    if not path.exists():
        cache.mkdir(parents=True, exist_ok=True)
        part = path.with_suffix(".part")
        collect(sae, store, prompt_tokens, most_prompts).write(part)
        part.replace(path)
    return Activity.read(path)


class _Prompts:
    """Numbers of the prompts of a store's rows, asked for in their order."""

    def __init__(self, store: Any, tokens: int) -> None:
        self._store, self._tokens, self.n = store, tokens, 0
        self._columns = [store.source_columns.index(name) for name in ("document", "position", "context")]
        self._last = np.full((1, 3), -1)

    def of(self, rows: slice) -> Int[np.ndarray, " n"]:
        source = self._store.source(rows)[:, self._columns].numpy().copy()
        source[:, 1] //= self._tokens
        begins = (np.diff(source, axis=0, prepend=self._last) != 0).any(1)
        numbers = self.n - 1 + np.cumsum(begins)
        self.n, self._last = int(numbers[-1]) + 1, source[-1:]
        return numbers


@dataclass(frozen=True)
class _Maxima:
    """Highest activation per prompt and latent, sorted by both."""

    prompts: np.ndarray
    latents: np.ndarray
    values: np.ndarray

    @classmethod
    def empty(cls) -> Self:
        return cls(np.empty(0, np.int64), np.empty(0, np.int64), np.empty(0, np.float32))

    @classmethod
    def of_codes(cls, codes: Codes, prompts: np.ndarray) -> Self:
        return cls(
            prompts[codes.rows.numpy()],
            codes.indices.numpy().astype(np.int64),
            codes.values.to(torch.float32).numpy(),
        )

    @classmethod
    def joined(cls, *parts: "_Maxima") -> Self:
        prompts, latents, values = (np.concatenate([getattr(p, f.name) for p in parts]) for f in fields(cls))
        order = np.lexsort((-values, latents, prompts))
        prompts, latents, values = prompts[order], latents[order], values[order]
        first = np.ones(len(order), bool)
        first[1:] = (np.diff(prompts) != 0) | (np.diff(latents) != 0)
        return cls(prompts[first], latents[first], values[first])

    def of(self, chosen: np.ndarray) -> "_Maxima":
        return _Maxima(self.prompts[chosen], self.latents[chosen], self.values[chosen])
