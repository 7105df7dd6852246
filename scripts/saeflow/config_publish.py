"""Sections of what is said and published about the SAEs of language models: concept tests, packages."""

import re
from typing import Annotated, Self

from pydantic import AfterValidator, Field, PositiveInt, model_validator

from saeflow.config_sections import Line, Name, PathToRead, Section, each_once

Slug = Annotated[str, Field(pattern=r"^[a-z0-9]+(-[a-z0-9]+)*$", max_length=64)]
Day = Annotated[str, Field(pattern=r"^\d{4}-\d{2}-\d{2}$")]


class Concepts(Section):
    """Sentences of concepts, which features are tested on."""

    shipped: bool = Field(True, description="The ten concepts of `config/concepts/texts`.")
    files: Annotated[tuple[PathToRead, ...], AfterValidator(each_once)] = Field(
        (), description="Concepts of your own: a text file each, a sentence per line, named as the concept."
    )
    splits: PositiveInt = Field(3, description="Draws of training and held-out halves of the sentences.")
    shuffles: PositiveInt = Field(200, description="Shuffled labellings behind the null.")
    top: PositiveInt = Field(5, description="Features listed per concept.")

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
    url: Annotated[str, Field(pattern=r"^https?://\S+$", max_length=2000)] | None = Field(
        None, description="Page or paper of the release."
    )
    date: Day = Field(
        "2026-01-01", description="Day that published rows carry; one that is stated, or packages would not be equal."
    )
    model_ids: dict[Name, Annotated[str, Field(pattern=r"^[a-z0-9][a-z0-9._-]*$", max_length=64)]] = Field(
        {}, description="What Neuronpedia calls the models of the study, where it has another name for one."
    )
    variants: Annotated[tuple[Name, ...], AfterValidator(each_once)] | None = Field(
        None, min_length=1, description="SAEs that are packaged; all if not given."
    )

    def release_of(self, study: str) -> str:
        """Name of the release."""
        return self.release or re.sub("_+", "-", study).strip("-")
