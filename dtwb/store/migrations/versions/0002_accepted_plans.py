"""Who has accepted a schedule, when, and what was asked."""

import sqlalchemy as sa
from alembic import op
from sqlalchemy.dialects.postgresql import JSONB

revision = "0002"
down_revision = "0001"


def upgrade():
    op.add_column("schedules", sa.Column("accepted", sa.JSON().with_variant(JSONB(), "postgresql")))
