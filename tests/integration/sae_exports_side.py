"""Run by the interpreter that has one of the libraries: load what saeflow wrote for it, and reconstruct.

    python sae_exports_side.py LIBRARY FOLDER

FOLDER/x.safetensors are activations, FOLDER/<LIBRARY>/<name>/ the SAEs. Written: FOLDER/<LIBRARY>.safetensors.
"""

import sys
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file


def sparsify(folder: Path, x: torch.Tensor) -> torch.Tensor:
    from sparsify import SparseCoder

    sae = SparseCoder.load_from_disk(folder, device="cpu")
    encoded = sae.encode(x)
    return sae.decode(encoded.top_acts, encoded.top_indices)


def dictionary_learning(folder: Path, x: torch.Tensor) -> torch.Tensor:
    from dictionary_learning.utils import load_dictionary

    return load_dictionary(str(folder), "cpu")[0](x)


@torch.no_grad()
def main(library: str, folder: Path) -> None:
    x = load_file(folder / "x.safetensors")["x"]
    load = {"sparsify": sparsify, "dictionary_learning": dictionary_learning}[library]
    found = {place.name: load(place, x).contiguous() for place in sorted((folder / library).iterdir())}
    save_file(found, folder / f"{library}.safetensors")


if __name__ == "__main__":
    torch.set_num_threads(1)
    main(sys.argv[1], Path(sys.argv[2]))
