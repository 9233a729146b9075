"""Sessions, tickets, keys, remembered answers and usage; roles by their new names."""

from alembic import op

revision = "0006"
down_revision = "0005"
branch_labels = None
depends_on = None

PEOPLE = """
ALTER TABLE tenants
    ADD COLUMN settings jsonb NOT NULL DEFAULT '{}',
    ADD COLUMN updated_at timestamptz NOT NULL DEFAULT now();

ALTER TABLE users
    ADD COLUMN name text NOT NULL DEFAULT '',
    ADD COLUMN updated_at timestamptz NOT NULL DEFAULT now();
ALTER TABLE users NO FORCE ROW LEVEL SECURITY;
ALTER TABLE users DROP CONSTRAINT users_role_check;
UPDATE users SET role = 'member' WHERE role = 'customer';
ALTER TABLE users ADD CONSTRAINT users_role_check
    CHECK (role IN ('owner', 'admin', 'agent', 'member'));
ALTER TABLE users FORCE ROW LEVEL SECURITY;
CREATE INDEX users_newest ON users (tenant_id, created_at DESC, id);
"""

# A refresh token that was used stays until its session goes: using it again is how theft shows.
SESSIONS = """
CREATE TABLE sessions (
    tenant_id uuid NOT NULL,
    id uuid NOT NULL,
    user_id uuid NOT NULL,
    created_at timestamptz NOT NULL DEFAULT now(),
    used_at timestamptz NOT NULL DEFAULT now(),
    expires_at timestamptz NOT NULL,
    revoked_at timestamptz,
    PRIMARY KEY (tenant_id, id),
    FOREIGN KEY (tenant_id, user_id) REFERENCES users ON DELETE CASCADE
);
CREATE INDEX sessions_of_user ON sessions (tenant_id, user_id);

CREATE TABLE refresh_tokens (
    tenant_id uuid NOT NULL,
    session_id uuid NOT NULL,
    digest text NOT NULL,
    created_at timestamptz NOT NULL DEFAULT now(),
    used_at timestamptz,
    PRIMARY KEY (tenant_id, session_id, digest),
    FOREIGN KEY (tenant_id, session_id) REFERENCES sessions ON DELETE CASCADE
);

CREATE TABLE tickets (
    tenant_id uuid NOT NULL REFERENCES tenants ON DELETE CASCADE,
    id uuid NOT NULL,
    kind text NOT NULL CHECK (kind IN ('invitation', 'reset')),
    email text NOT NULL,
    role text CHECK (role IN ('owner', 'admin', 'agent', 'member')),
    user_id uuid,
    digest text NOT NULL,
    created_at timestamptz NOT NULL DEFAULT now(),
    expires_at timestamptz NOT NULL,
    used_at timestamptz,
    revoked_at timestamptz,
    PRIMARY KEY (tenant_id, id),
    FOREIGN KEY (tenant_id, user_id) REFERENCES users ON DELETE CASCADE
);
CREATE INDEX tickets_newest ON tickets (tenant_id, created_at DESC, id);

CREATE TABLE api_keys (
    tenant_id uuid NOT NULL,
    id uuid NOT NULL,
    user_id uuid NOT NULL,
    kind text NOT NULL CHECK (kind IN ('secret', 'publishable')),
    name text NOT NULL,
    prefix text NOT NULL,
    digest text NOT NULL,
    scopes text[] NOT NULL,
    origins text[] NOT NULL DEFAULT '{}',
    created_at timestamptz NOT NULL DEFAULT now(),
    expires_at timestamptz,
    used_at timestamptz,
    revoked_at timestamptz,
    PRIMARY KEY (tenant_id, id),
    FOREIGN KEY (tenant_id, user_id) REFERENCES users ON DELETE CASCADE
);
CREATE INDEX api_keys_newest ON api_keys (tenant_id, created_at DESC, id);

ALTER TABLE conversations ADD COLUMN key_id uuid;
"""

USE = """
CREATE TABLE idempotency (
    tenant_id uuid NOT NULL REFERENCES tenants ON DELETE CASCADE,
    caller_id uuid NOT NULL,
    route text NOT NULL,
    key text NOT NULL,
    fingerprint text NOT NULL,
    status integer,
    headers jsonb NOT NULL DEFAULT '{}',
    body bytea NOT NULL DEFAULT '',
    target_id uuid,
    created_at timestamptz NOT NULL DEFAULT now(),
    PRIMARY KEY (tenant_id, caller_id, route, key)
);
CREATE INDEX idempotency_age ON idempotency (tenant_id, created_at);
CREATE INDEX idempotency_target ON idempotency (tenant_id, target_id);

CREATE TABLE usage (
    tenant_id uuid NOT NULL REFERENCES tenants ON DELETE CASCADE,
    day date NOT NULL,
    messages bigint NOT NULL DEFAULT 0,
    tokens bigint NOT NULL DEFAULT 0,
    documents bigint NOT NULL DEFAULT 0,
    bytes bigint NOT NULL DEFAULT 0,
    PRIMARY KEY (tenant_id, day)
);
"""

TENANT_TABLES = ("sessions", "refresh_tokens", "tickets", "api_keys", "idempotency", "usage")

POLICY = """
ALTER TABLE {table} ENABLE ROW LEVEL SECURITY;
ALTER TABLE {table} FORCE ROW LEVEL SECURITY;
CREATE POLICY one_tenant ON {table}
    USING (tenant_id = nullif(current_setting('app.tenant_id', true), '')::uuid)
    WITH CHECK (tenant_id = nullif(current_setting('app.tenant_id', true), '')::uuid);
"""


def upgrade() -> None:
    for statements in (PEOPLE, SESSIONS, USE):
        op.execute(statements)
    for table in TENANT_TABLES:
        op.execute(POLICY.format(table=table))


def downgrade() -> None:
    op.execute("ALTER TABLE conversations DROP COLUMN key_id")
    for table in ("usage", "idempotency", "api_keys", "tickets", "refresh_tokens", "sessions"):
        op.execute(f"DROP TABLE {table}")
    op.execute("DROP INDEX users_newest")
    op.execute("ALTER TABLE users NO FORCE ROW LEVEL SECURITY")
    op.execute("ALTER TABLE users DROP CONSTRAINT users_role_check")
    op.execute("UPDATE users SET role = 'customer' WHERE role = 'member'")
    op.execute(
        "ALTER TABLE users ADD CONSTRAINT users_role_check"
        " CHECK (role IN ('owner', 'admin', 'agent', 'customer'))"
    )
    op.execute("ALTER TABLE users FORCE ROW LEVEL SECURITY")
    op.execute("ALTER TABLE users DROP COLUMN name, DROP COLUMN updated_at")
    op.execute("ALTER TABLE tenants DROP COLUMN settings, DROP COLUMN updated_at")
