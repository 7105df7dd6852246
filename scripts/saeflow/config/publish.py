"""Sections of what is said and published about the SAEs of language models: concept tests, packages."""

import re
from typing import Self

from pydantic import Field, model_validator

from saeflow.config.sections import Count, Day, Each, Files, Line, Name, Named, Section, Switch, written

Slug = written("lower-case letters and digits, with single dashes between them", r"^[a-z0-9]+(-[a-z0-9]+)*$", 64)
ModelId = written("lower-case letters, digits, ., _ and -, with a letter or digit first", r"^[a-z0-9][a-z0-9._-]*$", 64)


class Concepts(Section):
    """Sentences of concepts, which features are tested on."""

    shipped: Switch = Field(True, description="The ten concepts of `config/concepts/texts`.")
    files: Files = Field(
        (), description="Concepts of your own: a text file each, a sentence per line, named as the concept."
    )
    splits: Count = Field(3, description="Draws of training and held-out halves of the sentences.")
    shuffles: Count = Field(200, description="Shuffled labellings behind the null.")
    top: Count = Field(5, description="Features listed per concept.")

    @model_validator(mode="after")
    def _is_something_to_tell_apart(self) -> Self:
        if not self.shipped and len(self.files) < 2:
            raise ValueError(f"files: {len(self.files)} given; each concept is tested against the others: give two")
        return self


class Publish(Section):
    """How SAEs are called and whose they are, in packages for Neuronpedia and others."""

    release: Slug | None = Field(
        None, description="Name of the release: lower-case letters, digits, dashes. The study's if not given."
    )
    title: Line = Field("Sparse autoencoders", description="Title of the release.")
    creator: Line = Field("unnamed", description="Who made it: a person, a group.")
    url: written("an address that starts with https:// or http://", r"^https?://\S+$", 2000) | None = Field(
        None, description="Page or paper of the release."
    )
    date: Day = Field(
        "2026-01-01", description="Day that published rows carry; one that is stated, or packages would not be equal."
    )
    model_ids: Named[ModelId] = Field(
        {}, description="What Neuronpedia calls the models of the study, where it has another name for one."
    )
    variants: Each[Name] | None = Field(None, min_length=1, description="SAEs that are packaged; all if not given.")

    def release_of(self, study: str) -> str:
        """Name of the release."""
        return self.release or re.sub("_+", "-", study).strip("-")
