"""What the rules build for a study: which networks are captured where, which SAEs they get, what their jobs are told.

Torch is not imported, because the Snakefile asks at every start. Paths are patterns: `{network}` and `{hook}` stand for
the wildcards of the rules; a network that is a stack has files for each of its members.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import product
from typing import Any

from saeflow.config.saes import SAEs
from saeflow.config.sections import Section
from saeflow.config.study import Study
from saeflow.reproduce import digest_of
from saeflow.sae.sharing import Key, jobs

# What each kind of network reads, the splits of that, the environment of its jobs; what is written for features.
READS = {"classifiers": "images", "transformers": "texts"}
SPLITS = {"images": ("train", "test"), "texts": ("train", "held_out")}
ENVIRONMENTS = {"classifiers": "torch", "transformers": "language"}
SAE_FILES = ("cfg.json", "sae_weights.safetensors", ".curves.parquet")
"""What is written for an SAE: in its folder, and, with a dot, beside it under the folder's name."""
FEATURE_FILES = {
    "images": ("features.parquet", "feature_report.json", "features.npz"),
    "texts": ("features.parquet", "contexts.parquet", "summary.json"),
}


@dataclass(frozen=True)
class Captured:
    """Networks of one kind that have the same members and hook points: one rule captures each of them.

    Arguments:
        suffix: behind the names of its rules.
        kind: of network.
        networks: their names.
        members: what stands behind a network's name for each of its members; "" for one that is alone.
        hooks: names of hook points.
        root: folder that its files are below.
        activations: section.
        settings: what the network's own module is told.
    """

    suffix: str
    kind: str
    networks: tuple[str, ...]
    members: tuple[str, ...]
    hooks: tuple[str, ...]
    root: str
    activations: Mapping[str, Any]
    settings: Mapping[str, Any] = field(default_factory=dict)

    @property
    def reads(self) -> str:
        """Kind of input."""
        return READS[self.kind]

    @property
    def splits(self) -> tuple[str, str]:
        """What is trained on, and what is held out."""
        return SPLITS[self.reads]

    @property
    def environment(self) -> str:
        """Name of the conda environment of its jobs."""
        return ENVIRONMENTS[self.kind]

    @property
    def shards(self) -> range:
        """Numbers of its jobs for one network, and of the parts of a store."""
        return range(self.activations["shards"])

    @property
    def stores(self) -> list[str]:
        """Folders of one network's stores, in the order members x hook points x splits."""
        return [
            f"{self.root}/activations/{{network}}{member}/{hook}/{split}"
            for member, hook, split in product(self.members, self.hooks, self.splits)
        ]

    def everywhere(self, patterns: Sequence[str]) -> list[str]:
        """Files of all its networks."""
        return [pattern.replace("{network}", network) for network in self.networks for pattern in patterns]


@dataclass(frozen=True)
class Fitted:
    """SAEs of the same variants and seeds on hook points of networks of one kind.

    Arguments:
        suffix: behind the names of its rules.
        at: the networks.
        saes: section.
        device: kind of device, on which the stacks depend.
        feature_seeds: SAE seeds whose features are analyzed.
        identity: columns that say which store a row is of, from the names of a network, a member and a hook point.
        origin: what SAELens is to know of the network of a store, from the same.
        analysis: what the analysis of its features is told.
    """

    suffix: str
    at: tuple[Captured, ...]
    saes: SAEs
    device: str
    feature_seeds: tuple[int, ...]
    identity: Callable[[str, str, str], dict[str, Any]]
    origin: Callable[[str, str, str], dict[str, Any]]
    analysis: Mapping[str, Any]

    @property
    def stacked(self) -> dict[str, Any]:
        """What says which members of a stack there are; a network that is alone has none."""
        settings = self.at[0].settings
        return {"seeds": settings["seeds"]} if "seeds" in settings else {}

    @property
    def kind(self) -> str:
        """Kind of network."""
        return self.at[0].kind

    @property
    def reads(self) -> str:
        """Kind of input."""
        return self.at[0].reads

    @property
    def splits(self) -> tuple[str, str]:
        """What is trained on, and what is held out."""
        return self.at[0].splits

    @property
    def environment(self) -> str:
        """Name of the conda environment of jobs that run the network."""
        return self.at[0].environment

    @property
    def root(self) -> str:
        """Folder that its files are below."""
        return self.at[0].root

    @property
    def members(self) -> tuple[str, ...]:
        """What stands behind a network's name for each of its members."""
        return self.at[0].members

    @property
    def variants(self) -> list[str]:
        """Names of variants."""
        return list(self.saes.variants)

    @property
    def jobs(self) -> list[list[Key]]:
        """SAEs of each training job of one hook point of a network."""
        return jobs(self.saes, len(self.members), self.device)

    @property
    def networks(self) -> tuple[str, ...]:
        """Names of all networks."""
        return tuple(network for captured in self.at for network in captured.networks)

    def manifests(self, split: str) -> list[str]:
        """Of each member's store."""
        return [
            f"{self.root}/activations/{{network}}{member}/{{hook}}/{split}/manifest.json" for member in self.members
        ]

    def parts(self, split: str) -> list[str]:
        """Folders that the manifests speak of."""
        return [
            manifest.replace("manifest.json", f"part-{shard}")
            for manifest in self.manifests(split)
            for shard in self.at[0].shards
        ]

    def of(self, member: str, variant: str, seed: int) -> str:
        """Folder of an SAE."""
        return f"{self.root}/saes/{{network}}{member}/{{hook}}/{variant}-s{seed}"

    def each(self, file: str, seeds: Sequence[int] | None = None, variants: Sequence[str] | None = None) -> list[str]:
        """A file of each SAE, in the order members x variants x seeds; `file` is one of SAE_FILES."""
        keys = product(self.members, variants or self.variants, self.saes.seeds if seeds is None else seeds)
        return [_named(self.of(*key), file) for key in keys]

    def of_job(self, keys: Sequence[Key], file: str) -> list[str]:
        """A file of each SAE of one job."""
        return [_named(self.of(self.members[key.store], key.variant, key.seed), file) for key in keys]

    @property
    def metrics(self) -> str:
        """Table of the SAEs of one hook point."""
        return f"{self.root}/saes/{{network}}/{{hook}}.metrics.parquet"

    def features(self, file: str, variants: Sequence[str] | None = None) -> list[str]:
        """A file of each SAE whose features are analyzed."""
        keys = product(self.members, variants or self.variants, self.feature_seeds)
        return [
            f"{self.root}/features/{{network}}{member}/{{hook}}/{variant}{self.seed_of_features(seed)}/{file}"
            for member, variant, seed in keys
        ]

    def seed_of_features(self, seed: int) -> str:
        """What stands behind a variant in the name of its features' folder; nothing, where one seed is analyzed."""
        return "" if self.reads == "texts" else f"-s{seed}"

    def everywhere(self, patterns: Sequence[str]) -> list[str]:
        """Files of all its networks and hook points."""
        return [
            pattern.replace("{network}", network).replace("{hook}", hook)
            for captured in self.at
            for network, hook in product(captured.networks, captured.hooks)
            for pattern in patterns
        ]

    def members_of(self, network: str, hook: str) -> list[dict[str, Any]]:
        """Columns that say which store, for each member."""
        return [self.identity(network, member, hook) for member in self.members]

    def origins_of(self, network: str, hook: str) -> list[dict[str, Any]]:
        """What SAELens is to know of each member."""
        return [self.origin(network, member, hook) for member in self.members]


def captured(study: Study) -> Iterator[Captured]:
    """What is captured: the classifiers of the study, then each language model."""
    networks, roles = study.classifiers, study.captured_roles
    if networks.architectures and roles:
        yield Captured(
            "",
            "classifiers",
            tuple(f"{architecture}-{role}" for architecture, role in product(networks.architectures, roles)),
            tuple(f"-s{seed}" for seed in networks.seeds),
            study.activations.hook_points,
            "<results>",
            study.activations.model_dump(mode="json", exclude={"roles", "hook_points"}),
            {"seeds": list(networks.seeds), "hook_points": list(study.activations.hook_points)},
        )
    for name, model in (study.language.models if study.language else {}).items():
        yield Captured(
            f"_{name}",
            "transformers",
            (name,),
            ("",),
            tuple(model.hooks),
            "<results>/language",
            study.language.activations.model_dump(mode="json"),
            {"name": name, "section": without_paths(model)},
        )


def fitted(study: Study, of: Sequence[Captured]) -> Iterator[Fitted]:
    """SAEs on classifiers, then those on language models."""

    def kind(name: str) -> tuple[Captured, ...]:
        return tuple(one for one in of if one.kind == name)

    def of_classifier(network: str, member: str, hook: str) -> dict[str, Any]:
        architecture, _, role = network.partition("-")
        seed = int(member.removeprefix("-s"))
        return {"architecture": architecture, "role": role, "hook_point": hook, "seed": seed}

    def classifier(network: str, member: str, hook: str) -> dict[str, Any]:
        return {"model_name": f"{network}{member}", "dataset_path": study.dataset.name}

    def language_model(network: str, member: str, hook: str) -> dict[str, Any]:
        model, text = study.language.models[network], study.language.text
        loaded = {"model_name": model.id or network, "model_class_name": "AutoModelForCausalLM"}
        return loaded | {"model_revision": model.revision, "dataset_path": text.dataset or "text"}

    device = study.compute.device
    if at := kind("classifiers"):
        yield Fitted(
            "",
            at,
            study.saes,
            device,
            study.saes.seeds,
            of_classifier,
            classifier,
            {"features": study.features.model_dump(mode="json")},
        )
    if (at := kind("transformers")) and study.language.saes.variants:
        saes = study.language.saes
        yield Fitted(
            "_language",
            at,
            saes,
            device,
            saes.seeds[:1],
            lambda network, member, hook: {"model": network, "hook_point": hook},
            language_model,
            {
                "study": study.study,
                "features": study.language.features.model_dump(mode="json"),
                "config_digest": _digest(study),
            },
        )


def _named(folder: str, file: str) -> str:
    return f"{folder}{file}" if file.startswith(".") else f"{folder}/{file}"


def without_paths(section: Section) -> dict[str, Any]:
    """A section as jobs get it: that there is a folder, not where it is, which their inputs tell."""
    paths = {name: "given" for name in ("folder", "hierarchy") if getattr(section, name, None)}
    return section.model_dump(mode="json") | paths


def _digest(study: Study) -> str:
    """What the features of language models are made by, wherever the files lie and however many jobs there are."""
    language = study.language
    sections = {name: without_paths(getattr(language, name)) for name in ("text", "activations", "saes", "features")}
    sections = {name: {k: v for k, v in content.items() if k != "shards"} for name, content in sections.items()}
    models = {name: without_paths(model) for name, model in language.models.items()}
    return digest_of(sections | {"models": models, "seed": study.seed})
