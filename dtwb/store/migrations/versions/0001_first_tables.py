"""Runs, events (append-only), detections, schedules, KPIs."""

import sqlalchemy as sa
from alembic import op
from sqlalchemy.dialects.postgresql import JSONB

revision = "0001"
down_revision = None

JSON = sa.JSON().with_variant(JSONB(), "postgresql")
Time = sa.DateTime(timezone=True)
Id = sa.BigInteger().with_variant(sa.Integer(), "sqlite")


def run_id(**kwargs):
    return sa.Column("run_id", sa.String(64), sa.ForeignKey("runs.id"), nullable=False, **kwargs)


def upgrade():
    op.create_table(
        "runs",
        sa.Column("id", sa.String(64), primary_key=True),
        sa.Column("what", sa.String, nullable=False),
        sa.Column("name", sa.String, nullable=False),
        sa.Column("parameters", JSON, nullable=False),
        sa.Column("seed", sa.BigInteger),
        sa.Column("versions", JSON, nullable=False),
        sa.Column("started", Time, nullable=False),
        sa.Column("ended", Time),
        sa.Column("status", sa.String(16), nullable=False),
        sa.Column("error", sa.String),
        sa.Column("host", sa.String, nullable=False),
        sa.Column("pid", sa.Integer, nullable=False),
        sa.Column("process", sa.String, nullable=False),
        sa.Column("folder", sa.String),
    )
    op.create_index("ix_runs_started", "runs", ["started"])
    op.create_table(
        "events",
        run_id(primary_key=True),
        sa.Column("number", Id, primary_key=True),
        sa.Column("time", sa.Double, nullable=False),
        sa.Column("kind", sa.String(64), nullable=False),
        sa.Column("subject", sa.String, nullable=False),
        sa.Column("payload", JSON, nullable=False),
        sqlite_with_rowid=False,
    )
    op.create_table(
        "detections",
        sa.Column("id", Id, primary_key=True, autoincrement=True),
        run_id(index=True),
        sa.Column("event", Id),
        sa.Column("time", sa.Double),
        sa.Column("job", sa.String),
        sa.Column("machine", sa.String),
        sa.Column("defect_type", sa.String, nullable=False),
        sa.Column("confidence", sa.Double, nullable=False),
        sa.Column("bbox", JSON),
        sa.Column("inference_ms", sa.Double),
        sa.Column("image", sa.String),
        sa.Column("map", sa.String),
        sa.Column("truth", sa.String),
    )
    op.create_table(
        "schedules",
        run_id(primary_key=True),
        sa.Column("version", sa.Integer, primary_key=True, autoincrement=False),
        sa.Column("time", sa.Double, nullable=False),
        sa.Column("reason", sa.String, nullable=False),
        sa.Column("rows", JSON, nullable=False),
    )
    op.create_table(
        "kpis",
        run_id(primary_key=True),
        sa.Column("name", sa.String, primary_key=True),
        sa.Column("window", sa.String, primary_key=True),
        sa.Column("value", sa.Double),
        sa.Column("unit", sa.String, nullable=False),
    )
    if op.get_bind().dialect.name == "sqlite":
        for verb in "UPDATE", "DELETE":
            op.execute(
                f"CREATE TRIGGER events_no_{verb.lower()} BEFORE {verb} ON events "
                "BEGIN SELECT RAISE(ABORT, 'events are append-only'); END"
            )
    else:
        op.execute(
            "CREATE FUNCTION events_append_only() RETURNS trigger LANGUAGE plpgsql AS "
            "$$BEGIN RAISE EXCEPTION 'events are append-only'; END$$"
        )
        op.execute(
            "CREATE TRIGGER events_append_only BEFORE UPDATE OR DELETE OR TRUNCATE ON events "
            "FOR EACH STATEMENT EXECUTE FUNCTION events_append_only()"
        )
