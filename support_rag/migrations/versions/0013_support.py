"""A person may take a conversation over: hand-offs, notes, ratings, and what was done by whom."""

from alembic import op

revision = "0013"
down_revision = "0012"
branch_labels = None
depends_on = None

REASONS = (
    "'customer_request', 'complaint', 'uncertain', 'partial', 'no_citation',"
    " 'generation_unavailable',"
    " 'retrieval_unavailable', 'agent'"
)

# A conversation needs a person from `handed_off_at` on; `waiting_since` is null while the
# customer has the last word of a person.
CONVERSATIONS = f"""
ALTER TABLE conversations
    DROP CONSTRAINT conversations_status_check,
    ADD CONSTRAINT conversations_status_check
        CHECK (status IN ('open', 'handed_off', 'resolved', 'closed')),
    ADD COLUMN handed_off_at timestamptz,
    ADD COLUMN hand_off_reason text CHECK (hand_off_reason IN ({REASONS})),
    ADD COLUMN waiting_since timestamptz,
    ADD COLUMN assignee_id uuid,
    ADD COLUMN resolved_at timestamptz,
    ADD COLUMN reopened_at timestamptz,
    ADD FOREIGN KEY (tenant_id, assignee_id) REFERENCES users;
ALTER TABLE conversations NO FORCE ROW LEVEL SECURITY;
UPDATE conversations SET handed_off_at = updated_at, hand_off_reason = 'customer_request'
    WHERE status = 'handed_off';
ALTER TABLE conversations FORCE ROW LEVEL SECURITY;
ALTER TABLE conversations
    ADD CHECK ((status = 'handed_off') = (handed_off_at IS NOT NULL)),
    ADD CHECK ((status = 'handed_off') = (hand_off_reason IS NOT NULL)),
    ADD CHECK (status = 'handed_off' OR (assignee_id IS NULL AND waiting_since IS NULL));
CREATE INDEX conversations_queue ON conversations (tenant_id, handed_off_at, id)
    WHERE status = 'handed_off';
"""

# A question that has an addressee is answered by that person and by nobody else.
MESSAGES = """
ALTER TABLE messages
    DROP CONSTRAINT messages_role_check,
    ADD CONSTRAINT messages_role_check CHECK (role IN ('user', 'assistant', 'agent')),
    ADD COLUMN author_id uuid,
    ADD COLUMN addressee_id uuid,
    ADD COLUMN notice text NOT NULL DEFAULT '',
    ADD CHECK ((role = 'agent') = (author_id IS NOT NULL)),
    ADD CHECK (addressee_id IS NULL OR role = 'user'),
    ADD FOREIGN KEY (tenant_id, author_id) REFERENCES users,
    ADD FOREIGN KEY (tenant_id, addressee_id) REFERENCES users;
"""

NOTES = """
CREATE TABLE notes (
    tenant_id uuid NOT NULL,
    id uuid NOT NULL,
    conversation_id uuid NOT NULL,
    user_id uuid NOT NULL,
    content text NOT NULL,
    created_at timestamptz NOT NULL DEFAULT now(),
    PRIMARY KEY (tenant_id, id),
    FOREIGN KEY (tenant_id, conversation_id) REFERENCES conversations ON DELETE CASCADE,
    FOREIGN KEY (tenant_id, user_id) REFERENCES users
);
CREATE INDEX notes_of_conversation ON notes (tenant_id, conversation_id, created_at, id);

CREATE TABLE ratings (
    tenant_id uuid NOT NULL,
    conversation_id uuid NOT NULL,
    score integer NOT NULL CHECK (score BETWEEN 1 AND 5),
    comment text NOT NULL DEFAULT '',
    user_id uuid NOT NULL,
    key_id uuid,
    created_at timestamptz NOT NULL DEFAULT now(),
    updated_at timestamptz NOT NULL DEFAULT now(),
    PRIMARY KEY (tenant_id, conversation_id),
    FOREIGN KEY (tenant_id, conversation_id) REFERENCES conversations ON DELETE CASCADE,
    FOREIGN KEY (tenant_id, user_id) REFERENCES users
);
"""

# Nothing points from here at a conversation: what was done outlives what was said.
AUDIT = """
CREATE TABLE audit (
    tenant_id uuid NOT NULL REFERENCES tenants ON DELETE CASCADE,
    id uuid NOT NULL,
    action text NOT NULL,
    subject_id uuid NOT NULL,
    user_id uuid,
    key_id uuid,
    other_id uuid,
    reason text,
    created_at timestamptz NOT NULL DEFAULT clock_timestamp(),
    PRIMARY KEY (tenant_id, id)
);
CREATE INDEX audit_of_subject ON audit (tenant_id, subject_id, created_at, id);
"""

POLICY = """
ALTER TABLE {table} ENABLE ROW LEVEL SECURITY;
ALTER TABLE {table} FORCE ROW LEVEL SECURITY;
CREATE POLICY one_tenant ON {table}
    USING (tenant_id = nullif(current_setting('app.tenant_id', true), '')::uuid)
    WITH CHECK (tenant_id = nullif(current_setting('app.tenant_id', true), '')::uuid);
"""

BACK = """
ALTER TABLE messages NO FORCE ROW LEVEL SECURITY;
UPDATE messages SET role = 'assistant' WHERE role = 'agent';
ALTER TABLE messages FORCE ROW LEVEL SECURITY;
ALTER TABLE conversations NO FORCE ROW LEVEL SECURITY;
UPDATE conversations SET status = 'closed' WHERE status IN ('resolved', 'handed_off');
ALTER TABLE conversations FORCE ROW LEVEL SECURITY;
"""


def upgrade() -> None:
    for statements in (CONVERSATIONS, MESSAGES, NOTES, AUDIT):
        op.execute(statements)
    for table in ("notes", "ratings", "audit"):
        op.execute(POLICY.format(table=table))


def downgrade() -> None:
    for table in ("audit", "ratings", "notes"):
        op.execute(f"DROP TABLE {table}")
    op.execute("ALTER TABLE messages DROP COLUMN author_id, DROP COLUMN addressee_id")
    op.execute(
        "ALTER TABLE conversations DROP COLUMN handed_off_at, DROP COLUMN hand_off_reason,"
        " DROP COLUMN waiting_since, DROP COLUMN assignee_id, DROP COLUMN resolved_at,"
        " DROP COLUMN reopened_at"
    )
    op.execute(BACK)
    op.execute(
        "ALTER TABLE messages DROP COLUMN notice, DROP CONSTRAINT messages_role_check,"
        " ADD CONSTRAINT messages_role_check CHECK (role IN ('user', 'assistant'))"
    )
    op.execute(
        "ALTER TABLE conversations DROP CONSTRAINT conversations_status_check,"
        " ADD CONSTRAINT conversations_status_check"
        " CHECK (status IN ('open', 'closed', 'handed_off'))"
    )
