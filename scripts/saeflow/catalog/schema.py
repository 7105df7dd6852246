"""Tables of the catalog.

Every row belongs to a training run and goes with it. Numbers are double precision and null where a file has NaN; times
carry their zone.
"""

from datetime import UTC, datetime
from typing import Any

from sqlalchemy import (
    JSON,
    BigInteger,
    DateTime,
    Dialect,
    Double,
    ForeignKey,
    Index,
    MetaData,
    SmallInteger,
    String,
    Text,
    TypeDecorator,
)
from sqlalchemy.orm import DeclarativeBase, Mapped, mapped_column

_NAMES = {
    "ix": "ix_%(table_name)s_%(column_0_N_name)s",
    "uq": "uq_%(table_name)s_%(column_0_N_name)s",
    "fk": "fk_%(table_name)s_%(column_0_N_name)s_%(referred_table_name)s",
    "pk": "pk_%(table_name)s",
}


class Instant(TypeDecorator[datetime]):
    """A time with its zone, kept in UTC; SQLite, which knows no zones, gives it back in UTC as well."""

    impl = DateTime(timezone=True)
    cache_ok = True

    def process_bind_param(self, value: datetime | None, dialect: Dialect) -> datetime | None:
        """
        Raises:
            ValueError: a time without a zone.
        """
        if value is None:
            return None
        if value.tzinfo is None:
            raise ValueError(f"{value.isoformat()} has no time zone; give datetime.now(UTC) or the like")
        return value.astimezone(UTC)

    def process_result_value(self, value: datetime | None, dialect: Dialect) -> datetime | None:
        if value is None:
            return None
        return value.replace(tzinfo=UTC) if value.tzinfo is None else value.astimezone(UTC)


class Base(DeclarativeBase):
    """Base of all tables; constraints have names, so that a migration can speak of them."""

    metadata = MetaData(naming_convention=_NAMES)
    type_annotation_map = {  # noqa: RUF012
        float: Double,
        datetime: Instant,
        dict[str, Any]: JSON,
    }


def _of_run() -> Mapped[int]:
    return mapped_column(ForeignKey("training_runs.id", ondelete="CASCADE"), primary_key=True)


class TrainingRun(Base):
    """One SAE's training with all that was found out about it, or the injection part of a study."""

    __tablename__ = "training_runs"

    id: Mapped[int] = mapped_column(primary_key=True)
    name: Mapped[str] = mapped_column(String(512), unique=True)
    """`<study>/<model>/<hook point>/<variant>`, or `<study>/injection`."""
    kind: Mapped[str] = mapped_column(String(16))
    """`language`, `vision` or `injection`."""
    study: Mapped[str] = mapped_column(String(64), index=True)
    model: Mapped[str | None] = mapped_column(String(255))
    model_revision: Mapped[str | None] = mapped_column(String(255))
    hook_point: Mapped[str | None] = mapped_column(String(255))
    variant: Mapped[str | None] = mapped_column(String(255))
    seed: Mapped[int | None] = mapped_column(BigInteger)
    """Of the SAE."""
    digest: Mapped[str] = mapped_column(String(64))
    """sha256 over the names and bytes of the files that the run was read from."""
    config: Mapped[dict[str, Any]]
    """What the SAE was trained with."""
    written_at: Mapped[datetime | None]
    """When the SAE's weights were written."""
    loaded_at: Mapped[datetime]
    """When the run was loaded into this catalog."""


class SAEModel(Base):
    """The SAE of a run and its metrics."""

    __tablename__ = "sae_models"

    run_id: Mapped[int] = _of_run()
    architecture: Mapped[str] = mapped_column(String(64))
    d_in: Mapped[int]
    d_sae: Mapped[int]
    dtype: Mapped[str] = mapped_column(String(16))
    path: Mapped[str] = mapped_column(Text)
    """SAE directory, below the study's folder."""
    features_path: Mapped[str] = mapped_column(Text)
    """Folder of the feature tables, below the study's folder."""
    weights_sha256: Mapped[str] = mapped_column(String(64))
    l0: Mapped[float | None]
    explained_variance: Mapped[float | None]
    dead_share: Mapped[float | None]
    ce_recovered_zero: Mapped[float | None]
    """Cross-entropy recovered against zero ablation (language)."""
    ce_recovered_mean: Mapped[float | None]
    """The same against mean ablation (language)."""
    accuracy_change_pp: Mapped[float | None]
    """Change of the classifier's accuracy with the reconstruction spliced in, percentage points (vision)."""
    n_tokens: Mapped[int | None] = mapped_column(BigInteger)
    metrics: Mapped[dict[str, Any]]
    """All metrics by name, those above among them."""


class DiscoveredFeature(Base):
    """One latent of an SAE."""

    __tablename__ = "discovered_features"
    __table_args__ = (Index(None, "run_id", "interpretability"),)

    run_id: Mapped[int] = _of_run()
    feature: Mapped[int] = mapped_column(primary_key=True, autoincrement=False)
    dead: Mapped[bool]
    density: Mapped[float]
    """Share of tokens or images on which it fires."""
    mean_activation: Mapped[float | None]
    """Over the tokens or images on which it fires."""
    max_activation: Mapped[float | None]
    decoder_norm: Mapped[float | None]
    interpretability: Mapped[float | None]
    """In [0, 1]. Language: probability that two of its top contexts share the token at the peak, or the one before.
    Vision: AUROC of its hypothesis on unseen images."""
    label: Mapped[str] = mapped_column(Text)
    """What it stands for, in words."""
    searchable: Mapped[str] = mapped_column(Text)
    """Label, tokens and contexts in lower case."""
    evidence: Mapped[dict[str, Any]]
    """Language: `top_tokens`, `top_logits`, `bottom_tokens`, `bottom_logits`, `neighbours`, `neighbour_coactivation`,
    `histogram`, `bin_edges`, `examples`. Vision: the row of the feature table."""


class EpochMetric(Base):
    """One number of the training curve."""

    __tablename__ = "epoch_metrics"

    run_id: Mapped[int] = _of_run()
    step: Mapped[int] = mapped_column(BigInteger, primary_key=True, autoincrement=False)
    metric: Mapped[str] = mapped_column(String(64), primary_key=True)
    value: Mapped[float | None]


class ConceptScore(Base):
    """One of the best features for a concept, as chosen on training sentences, beside what it is compared with."""

    __tablename__ = "concept_scores"

    run_id: Mapped[int] = _of_run()
    concept: Mapped[str] = mapped_column(String(64), primary_key=True)
    rank: Mapped[int] = mapped_column(SmallInteger, primary_key=True, autoincrement=False)
    """1 for the feature with the highest AUROC on training sentences."""
    feature: Mapped[int]
    auroc_train: Mapped[float]
    auroc: Mapped[float]
    """On held-out sentences."""
    selectivity: Mapped[float]
    """AUROC less the highest AUROC of the feature for another concept, on held-out sentences."""
    null_p95: Mapped[float]
    """95th percentile of the best feature's held-out AUROC when labels are shuffled."""
    control_auroc: Mapped[float | None]
    """Best feature of an SAE with random weights."""
    dense_auroc: Mapped[float]
    """The same choice among coordinates of the dense activations."""
    probe_auroc: Mapped[float]
    """Linear probe on the dense activations."""
    passed: Mapped[bool]


class InjectionResult(Base):
    """One measurement of an injection method."""

    __tablename__ = "injection_results"

    run_id: Mapped[int] = _of_run()
    position: Mapped[int] = mapped_column(primary_key=True, autoincrement=False)
    """Row of the study's table of measures."""
    method: Mapped[str] = mapped_column(String(64))
    variant: Mapped[str] = mapped_column(String(64))
    tier: Mapped[str] = mapped_column(String(32))
    control: Mapped[str] = mapped_column(String(64))
    """Empty for the method itself."""
    source: Mapped[str] = mapped_column(String(64))
    target: Mapped[str] = mapped_column(String(64))
    seed: Mapped[int] = mapped_column(BigInteger)
    concept: Mapped[int]
    transfer: Mapped[float | None]
    preservation: Mapped[float | None]
    specificity: Mapped[float | None]
    measures: Mapped[dict[str, Any]]
    """The whole row by name."""


OF_A_RUN = (SAEModel, DiscoveredFeature, EpochMetric, ConceptScore, InjectionResult)
"""Tables whose rows belong to a run."""
