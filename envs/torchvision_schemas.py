"""torchvision beside a build of torch that its compiled part was not made for.

The index's torchvision is compiled for the CUDA build of torch. Beside a CPU build its compiled part does not load, and
the import fails at two operators whose shape functions are registered all the same. Once their schemas are defined,
data sets, transforms and models work; a call of a compiled operator still fails, and says why.

install.sh puts this file into the environment beside a `.pth` file that has Python import it at its start: transformers
imports torchvision on its own where it is installed, in a notebook before any module of saeflow.
"""

import sys

OPERATORS = ("nms", "qnms")
SCHEMA = "(Tensor dets, Tensor scores, float iou_threshold) -> Tensor"


class SchemasFirst:
    """Finds no module, but defines the schemas when torchvision is about to register their shape functions."""

    @staticmethod
    def find_spec(name: str, path: object = None, target: object = None) -> None:
        # By now torchvision has tried to load its compiled part, which would have brought them.
        if name == "torchvision._meta_registrations" and not sys.modules["torchvision.extension"]._has_ops():
            import torch

            for operator in OPERATORS:
                torch.library.define(f"torchvision::{operator}", SCHEMA)


sys.meta_path.insert(0, SchemasFirst)
