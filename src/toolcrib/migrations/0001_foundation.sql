-- Accounts, principals, workspaces, keys; tool sets, tools, events; the audit of tool calls; the lease queue.
-- Every table that holds a workspace's rows names the workspace; tests/test_schema.py keeps it so.

CREATE TABLE account (
    id          text PRIMARY KEY,
    name        text NOT NULL,
    created_at  timestamptz NOT NULL DEFAULT now()
);

CREATE TABLE workspace (
    id          text PRIMARY KEY,
    account_id  text NOT NULL REFERENCES account (id),
    name        text NOT NULL,
    slug        text NOT NULL,
    created_at  timestamptz NOT NULL DEFAULT now(),
    deleted_at  timestamptz,
    UNIQUE (account_id, slug)
);

-- One row per person, machine or part of the system that can act. `number` is its name where a dialect wants integers.
CREATE TABLE principal (
    id             text PRIMARY KEY,
    number         bigint GENERATED ALWAYS AS IDENTITY UNIQUE,
    account_id     text NOT NULL REFERENCES account (id),
    kind           text NOT NULL CHECK (kind IN ('user', 'api_key', 'system')),
    name           text NOT NULL,
    email          text,
    password_hash  text,
    role           text NOT NULL DEFAULT 'member',
    created_at     timestamptz NOT NULL DEFAULT now(),
    deleted_at     timestamptz,
    CHECK (kind <> 'user' OR email IS NOT NULL)
);
CREATE UNIQUE INDEX principal_email ON principal (account_id, lower(email)) WHERE email IS NOT NULL;

CREATE TABLE workspace_member (
    workspace_id  text NOT NULL REFERENCES workspace (id) ON DELETE CASCADE,
    principal_id  text NOT NULL REFERENCES principal (id) ON DELETE CASCADE,
    role          text NOT NULL CHECK (role IN ('owner', 'admin', 'member', 'viewer')),
    created_at    timestamptz NOT NULL DEFAULT now(),
    PRIMARY KEY (workspace_id, principal_id)
);

CREATE TABLE api_key (
    id            text PRIMARY KEY,
    workspace_id  text NOT NULL REFERENCES workspace (id) ON DELETE CASCADE,
    principal_id  text NOT NULL REFERENCES principal (id),
    created_by    text REFERENCES principal (id),
    name          text NOT NULL,
    description   text,
    scopes        text[] NOT NULL,
    hash          bytea NOT NULL UNIQUE,
    hint          text NOT NULL,
    created_at    timestamptz NOT NULL DEFAULT now(),
    expires_at    timestamptz,
    revoked_at    timestamptz,
    deleted_at    timestamptz,
    last_used_at  timestamptz
);
CREATE INDEX api_key_workspace ON api_key (workspace_id, id);

-- Facts about this installation; one row. `vault_key_id` is the id of the key that seals secrets now.
CREATE TABLE installation (
    only_row      boolean PRIMARY KEY DEFAULT true CHECK (only_row),
    id            text NOT NULL,
    vault_key_id  text NOT NULL,
    created_at    timestamptz NOT NULL DEFAULT now()
);

CREATE TABLE tool_set (
    id            text PRIMARY KEY,
    workspace_id  text NOT NULL REFERENCES workspace (id) ON DELETE CASCADE,
    created_by    text NOT NULL REFERENCES principal (id),
    name          text NOT NULL,
    slug          text NOT NULL,
    external_id   text,
    labels        jsonb NOT NULL DEFAULT '{}',
    description   text,
    kind          text CHECK (kind IN ('http', 'mcp')),
    config        jsonb NOT NULL DEFAULT '{}',   -- what may be shown: url, filters, command
    sealed        bytea,                         -- what may not: header values, environment of a command
    revision      integer NOT NULL DEFAULT 1,    -- rises with each change of the adapter; a sync of an older one is void
    created_at    timestamptz NOT NULL DEFAULT now(),
    updated_at    timestamptz NOT NULL DEFAULT now(),
    last_sync_at  timestamptz,
    UNIQUE (workspace_id, slug),
    UNIQUE (workspace_id, external_id)
);
CREATE INDEX tool_set_page ON tool_set (workspace_id, created_at, id);

CREATE TABLE tool (
    id                 text PRIMARY KEY,
    workspace_id       text NOT NULL REFERENCES workspace (id) ON DELETE CASCADE,
    tool_set_id        text NOT NULL REFERENCES tool_set (id) ON DELETE CASCADE,
    created_by         text NOT NULL REFERENCES principal (id),
    origin             text NOT NULL CHECK (origin IN ('api', 'sync')),
    name               text NOT NULL,
    local_name         text NOT NULL,            -- callable name inside its tool set
    call_name          text NOT NULL,            -- callable name inside the workspace
    external_id        text,
    labels             jsonb NOT NULL DEFAULT '{}',
    title              text,
    description        text NOT NULL DEFAULT '',
    parameters         json NOT NULL DEFAULT '{}',  -- JSON Schema of the arguments; json keeps the order of members
    output_schema      json,
    annotations        json,
    meta               json,
    config             jsonb NOT NULL DEFAULT '{}', -- {http: ...} or {mcp: ...}, in the form of domain/tools.py
    status             text NOT NULL CHECK (status IN ('available', 'filtered', 'archived')),
    pinned_status      text CHECK (pinned_status IN ('available', 'filtered', 'archived')),
    requires_approval  boolean NOT NULL DEFAULT false,
    pinned_approval    boolean,
    created_at         timestamptz NOT NULL DEFAULT now(),
    updated_at         timestamptz NOT NULL DEFAULT now(),
    UNIQUE (tool_set_id, local_name),
    UNIQUE (workspace_id, call_name),
    UNIQUE (tool_set_id, external_id)
);
CREATE INDEX tool_page ON tool (tool_set_id, created_at, id);

CREATE TABLE tool_set_event (
    id            text PRIMARY KEY,
    workspace_id  text NOT NULL REFERENCES workspace (id) ON DELETE CASCADE,
    tool_set_id   text NOT NULL REFERENCES tool_set (id) ON DELETE CASCADE,
    created_by    text NOT NULL REFERENCES principal (id),
    kind          text NOT NULL CHECK (kind IN ('sync_started', 'sync_completed', 'sync_failed')),
    payload       jsonb NOT NULL DEFAULT '{}',
    created_at    timestamptz NOT NULL DEFAULT clock_timestamp()
);
CREATE INDEX tool_set_event_page ON tool_set_event (tool_set_id, created_at, id);

-- One row for every call of a tool, whatever became of it. No foreign keys: the audit outlives what it tells of.
CREATE TABLE tool_call (
    id             bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    workspace_id   text NOT NULL,
    principal_id   text NOT NULL,
    api_key_id     text,
    tool_set_id    text,
    tool_id        text,
    tool_name      text NOT NULL,
    door           text NOT NULL,                -- mcp, rest, cli, run
    outcome        text NOT NULL CHECK (outcome IN ('ok', 'tool_error', 'upstream_error', 'refused', 'cancelled')),
    error_code     text,
    arguments      json,                         -- secrets hidden, cut at a size
    result_bytes   integer NOT NULL DEFAULT 0,
    duration_us    integer NOT NULL DEFAULT 0,
    request_id     text NOT NULL,
    called_at      timestamptz NOT NULL
);
CREATE INDEX tool_call_page ON tool_call (workspace_id, id);
CREATE INDEX tool_call_tool ON tool_call (tool_id, id) WHERE tool_id IS NOT NULL;
CREATE INDEX tool_call_time ON tool_call USING brin (called_at);

-- The lease queue. See queue/queue.py for its rules.
-- No index names a lease column, so that renewing a lease stays a HOT update; job_ready is the ORDER BY of `claim`.
CREATE TABLE job (
    id            bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    workspace_id  text,
    queue         text NOT NULL DEFAULT 'default',
    kind          text NOT NULL,
    payload       json NOT NULL DEFAULT '{}',    -- json, not jsonb: never searched, and may hold \u0000
    priority      smallint NOT NULL DEFAULT 0,   -- higher runs first
    state         text NOT NULL DEFAULT 'ready'
                  CHECK (state IN ('ready', 'scheduled', 'running', 'done', 'failed', 'cancelled')),
    run_at        timestamptz NOT NULL DEFAULT now(),
    attempt       integer NOT NULL DEFAULT 0,
    max_attempts  integer CHECK (max_attempts > 0),  -- null until the first claim, which fills in the kind's own limit
    lease_token   uuid,
    lease_until   timestamptz,
    worker        text,
    dedupe_key    text,                          -- at most one job of its kind that has never started carries it
    result        json,
    error         text,
    created_at    timestamptz NOT NULL DEFAULT now(),
    started_at    timestamptz,                   -- of the latest attempt
    finished_at   timestamptz,
    CHECK ((state = 'running') = (lease_token IS NOT NULL)),
    CHECK ((state = 'running') = (lease_until IS NOT NULL)),
    CHECK ((state IN ('done', 'failed', 'cancelled')) = (finished_at IS NOT NULL)),
    CHECK (state <> 'running' OR max_attempts IS NOT NULL)
) WITH (fillfactor = 70, autovacuum_vacuum_scale_factor = 0.02, autovacuum_analyze_scale_factor = 0.05);
CREATE INDEX job_ready ON job (queue, priority DESC, id) WHERE state = 'ready';
CREATE INDEX job_scheduled ON job (run_at) WHERE state = 'scheduled';
CREATE INDEX job_running ON job (id) WHERE state = 'running';
CREATE INDEX job_finished ON job (finished_at) WHERE finished_at IS NOT NULL;
CREATE UNIQUE INDEX job_dedupe ON job (workspace_id, kind, dedupe_key) NULLS NOT DISTINCT
    WHERE dedupe_key IS NOT NULL AND started_at IS NULL AND finished_at IS NULL;

-- Each firing of a schedule, once: the key is what keeps two keepers from firing it twice.
CREATE TABLE schedule_firing (
    schedule_id  text NOT NULL,
    due_at       timestamptz NOT NULL,
    job_id       bigint,                         -- null where the schedule was first seen: nothing was due yet
    PRIMARY KEY (schedule_id, due_at)
);
