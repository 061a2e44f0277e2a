-- Run history: the whole report as JSON, and the columns by which it is searched.
CREATE TABLE runs (
    id         INTEGER PRIMARY KEY,
    tenant     TEXT    NOT NULL,
    job        TEXT    NOT NULL,
    run        TEXT    NOT NULL,
    started_at INTEGER NOT NULL, -- microseconds since the Unix epoch
    ended_at   INTEGER NOT NULL, -- microseconds since the Unix epoch
    outcome    TEXT    NOT NULL,
    report     TEXT    NOT NULL,
    UNIQUE (tenant, job, run)
) STRICT;
CREATE INDEX runs_by_start ON runs (tenant, job, started_at DESC, id DESC);
CREATE INDEX runs_by_outcome ON runs (tenant, job, outcome, started_at DESC, id DESC);

-- What each committed delta sent: the planner's estimate for the next one.
CREATE TABLE deltas (
    run_id     INTEGER NOT NULL REFERENCES runs (id) ON DELETE CASCADE,
    tenant     TEXT    NOT NULL,
    job        TEXT    NOT NULL,
    target     TEXT    NOT NULL,
    disk       TEXT    NOT NULL,
    started_at INTEGER NOT NULL, -- the run's
    bytes_sent INTEGER NOT NULL
) STRICT;
CREATE INDEX deltas_by_disk ON deltas (tenant, job, target, disk, started_at DESC, run_id DESC);
CREATE INDEX deltas_by_run ON deltas (run_id);

-- Small values of plugins. Keys are bytes: their length counts against a quota, and text in SQLite ends at a NUL.
CREATE TABLE plugin_values (
    tenant TEXT NOT NULL,
    plugin TEXT NOT NULL,
    key    BLOB NOT NULL,
    value  BLOB NOT NULL,
    PRIMARY KEY (tenant, plugin, key)
) STRICT, WITHOUT ROWID;
