"""The first tables."""

import sqlalchemy as sa
from alembic import op

revision = "0001"
down_revision = None
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.create_table(
        "training_runs",
        sa.Column("id", sa.Integer(), nullable=False),
        sa.Column("name", sa.String(length=512), nullable=False),
        sa.Column("kind", sa.String(length=16), nullable=False),
        sa.Column("study", sa.String(length=64), nullable=False),
        sa.Column("model", sa.String(length=255), nullable=True),
        sa.Column("model_revision", sa.String(length=255), nullable=True),
        sa.Column("hook_point", sa.String(length=255), nullable=True),
        sa.Column("variant", sa.String(length=255), nullable=True),
        sa.Column("seed", sa.BigInteger(), nullable=True),
        sa.Column("digest", sa.String(length=64), nullable=False),
        sa.Column("config", sa.JSON(), nullable=False),
        sa.Column("written_at", sa.DateTime(timezone=True), nullable=True),
        sa.Column("loaded_at", sa.DateTime(timezone=True), nullable=False),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_training_runs")),
        sa.UniqueConstraint("name", name=op.f("uq_training_runs_name")),
    )
    op.create_index(op.f("ix_training_runs_study"), "training_runs", ["study"], unique=False)

    op.create_table(
        "concept_scores",
        sa.Column("run_id", sa.Integer(), nullable=False),
        sa.Column("concept", sa.String(length=64), nullable=False),
        sa.Column("rank", sa.SmallInteger(), autoincrement=False, nullable=False),
        sa.Column("feature", sa.Integer(), nullable=False),
        sa.Column("auroc_train", sa.Double(), nullable=False),
        sa.Column("auroc", sa.Double(), nullable=False),
        sa.Column("selectivity", sa.Double(), nullable=False),
        sa.Column("null_p95", sa.Double(), nullable=False),
        sa.Column("control_auroc", sa.Double(), nullable=True),
        sa.Column("dense_auroc", sa.Double(), nullable=False),
        sa.Column("probe_auroc", sa.Double(), nullable=False),
        sa.Column("passed", sa.Boolean(), nullable=False),
        sa.ForeignKeyConstraint(
            ["run_id"], ["training_runs.id"], name=op.f("fk_concept_scores_run_id_training_runs"), ondelete="CASCADE"
        ),
        sa.PrimaryKeyConstraint("run_id", "concept", "rank", name=op.f("pk_concept_scores")),
    )
    op.create_table(
        "discovered_features",
        sa.Column("run_id", sa.Integer(), nullable=False),
        sa.Column("feature", sa.Integer(), autoincrement=False, nullable=False),
        sa.Column("dead", sa.Boolean(), nullable=False),
        sa.Column("density", sa.Double(), nullable=False),
        sa.Column("mean_activation", sa.Double(), nullable=True),
        sa.Column("max_activation", sa.Double(), nullable=True),
        sa.Column("decoder_norm", sa.Double(), nullable=True),
        sa.Column("interpretability", sa.Double(), nullable=True),
        sa.Column("label", sa.Text(), nullable=False),
        sa.Column("searchable", sa.Text(), nullable=False),
        sa.Column("evidence", sa.JSON(), nullable=False),
        sa.ForeignKeyConstraint(
            ["run_id"],
            ["training_runs.id"],
            name=op.f("fk_discovered_features_run_id_training_runs"),
            ondelete="CASCADE",
        ),
        sa.PrimaryKeyConstraint("run_id", "feature", name=op.f("pk_discovered_features")),
    )
    op.create_index(
        op.f("ix_discovered_features_run_id_interpretability"),
        "discovered_features",
        ["run_id", "interpretability"],
        unique=False,
    )

    op.create_table(
        "epoch_metrics",
        sa.Column("run_id", sa.Integer(), nullable=False),
        sa.Column("step", sa.BigInteger(), autoincrement=False, nullable=False),
        sa.Column("metric", sa.String(length=64), nullable=False),
        sa.Column("value", sa.Double(), nullable=True),
        sa.ForeignKeyConstraint(
            ["run_id"], ["training_runs.id"], name=op.f("fk_epoch_metrics_run_id_training_runs"), ondelete="CASCADE"
        ),
        sa.PrimaryKeyConstraint("run_id", "step", "metric", name=op.f("pk_epoch_metrics")),
    )
    op.create_table(
        "injection_results",
        sa.Column("run_id", sa.Integer(), nullable=False),
        sa.Column("position", sa.Integer(), autoincrement=False, nullable=False),
        sa.Column("method", sa.String(length=64), nullable=False),
        sa.Column("variant", sa.String(length=64), nullable=False),
        sa.Column("tier", sa.String(length=32), nullable=False),
        sa.Column("control", sa.String(length=64), nullable=False),
        sa.Column("source", sa.String(length=64), nullable=False),
        sa.Column("target", sa.String(length=64), nullable=False),
        sa.Column("seed", sa.BigInteger(), nullable=False),
        sa.Column("concept", sa.Integer(), nullable=False),
        sa.Column("transfer", sa.Double(), nullable=True),
        sa.Column("preservation", sa.Double(), nullable=True),
        sa.Column("specificity", sa.Double(), nullable=True),
        sa.Column("measures", sa.JSON(), nullable=False),
        sa.ForeignKeyConstraint(
            ["run_id"], ["training_runs.id"], name=op.f("fk_injection_results_run_id_training_runs"), ondelete="CASCADE"
        ),
        sa.PrimaryKeyConstraint("run_id", "position", name=op.f("pk_injection_results")),
    )
    op.create_table(
        "sae_models",
        sa.Column("run_id", sa.Integer(), nullable=False),
        sa.Column("architecture", sa.String(length=64), nullable=False),
        sa.Column("d_in", sa.Integer(), nullable=False),
        sa.Column("d_sae", sa.Integer(), nullable=False),
        sa.Column("dtype", sa.String(length=16), nullable=False),
        sa.Column("path", sa.Text(), nullable=False),
        sa.Column("features_path", sa.Text(), nullable=False),
        sa.Column("weights_sha256", sa.String(length=64), nullable=False),
        sa.Column("l0", sa.Double(), nullable=True),
        sa.Column("explained_variance", sa.Double(), nullable=True),
        sa.Column("dead_share", sa.Double(), nullable=True),
        sa.Column("ce_recovered_zero", sa.Double(), nullable=True),
        sa.Column("ce_recovered_mean", sa.Double(), nullable=True),
        sa.Column("accuracy_change_pp", sa.Double(), nullable=True),
        sa.Column("n_tokens", sa.BigInteger(), nullable=True),
        sa.Column("metrics", sa.JSON(), nullable=False),
        sa.ForeignKeyConstraint(
            ["run_id"], ["training_runs.id"], name=op.f("fk_sae_models_run_id_training_runs"), ondelete="CASCADE"
        ),
        sa.PrimaryKeyConstraint("run_id", name=op.f("pk_sae_models")),
    )


def downgrade() -> None:
    for table in (
        "sae_models",
        "injection_results",
        "epoch_metrics",
        "discovered_features",
        "concept_scores",
        "training_runs",
    ):
        op.drop_table(table)
