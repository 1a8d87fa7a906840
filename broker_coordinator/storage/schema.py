"""The tables of ``coordinator.db``, and how an older file becomes a newer one.

``user_version`` counts the migrations a file has had. A migration that was released is never changed.
"""

__all__ = ["MIGRATIONS"]

_FIRST = """
CREATE TABLE office (
    id INTEGER PRIMARY KEY CHECK (id = 1),
    epoch INTEGER NOT NULL,
    term INTEGER NOT NULL,
    counter INTEGER NOT NULL,
    command_sequence INTEGER NOT NULL,
    horizon_epoch INTEGER NOT NULL,
    horizon_number INTEGER NOT NULL,
    witnessed INTEGER NOT NULL,
    anchor INTEGER NOT NULL,
    forgotten INTEGER NOT NULL,
    uptime_s REAL NOT NULL,
    life INTEGER NOT NULL
);
INSERT INTO office VALUES (1, 1, 0, 0, 0, 0, 0, 0, 0, 0, 0.0, 0);

CREATE TABLE updates (
    accept_seq INTEGER PRIMARY KEY AUTOINCREMENT,
    update_id BLOB NOT NULL UNIQUE,
    device TEXT NOT NULL,
    hash BLOB NOT NULL,
    header BLOB NOT NULL,
    base_epoch INTEGER NOT NULL,
    base_number INTEGER NOT NULL,
    stored TEXT NOT NULL CHECK (stored IN ('row', 'file', 'dropped')),
    size INTEGER NOT NULL,
    weight BLOB NOT NULL CHECK (length(weight) = 4),
    scale BLOB NOT NULL CHECK (length(scale) = 4),
    norm BLOB NOT NULL CHECK (length(norm) = 4),
    staleness INTEGER NOT NULL,
    state TEXT NOT NULL CHECK (state IN ('waiting', 'folded', 'quarantined')),
    version INTEGER,
    reason TEXT NOT NULL DEFAULT '',
    payload BLOB
);
CREATE UNIQUE INDEX updates_once ON updates (device, base_epoch, base_number);
CREATE INDEX updates_state ON updates (state);
CREATE INDEX updates_version ON updates (version, accept_seq);
CREATE INDEX updates_base ON updates (base_number);
CREATE INDEX updates_kept ON updates (version, size) WHERE stored <> 'dropped';

CREATE TABLE refusals (
    sequence INTEGER PRIMARY KEY AUTOINCREMENT,
    update_id BLOB NOT NULL UNIQUE,
    hash BLOB NOT NULL,
    device TEXT NOT NULL,
    base_epoch INTEGER NOT NULL,
    base_number INTEGER NOT NULL,
    reason TEXT NOT NULL
);

CREATE TABLE uploads (
    update_id BLOB PRIMARY KEY,
    device TEXT NOT NULL,
    header BLOB NOT NULL,
    hash BLOB NOT NULL,
    ranges TEXT NOT NULL
) WITHOUT ROWID;

CREATE TABLE versions (
    number INTEGER PRIMARY KEY,
    epoch INTEGER NOT NULL,
    digest BLOB NOT NULL,
    published_sha256 BLOB NOT NULL,
    rules TEXT NOT NULL,
    through_seq INTEGER NOT NULL,
    updates INTEGER NOT NULL,
    closed_by TEXT NOT NULL,
    term INTEGER NOT NULL,
    metrics TEXT NOT NULL,
    published INTEGER NOT NULL,
    closed_at REAL NOT NULL,
    uptime_s REAL NOT NULL
);

CREATE TABLE rules (name TEXT PRIMARY KEY, text TEXT NOT NULL) WITHOUT ROWID;

CREATE TABLE devices (
    device TEXT PRIMARY KEY,
    incarnation BLOB,
    online INTEGER NOT NULL DEFAULT 0,
    session BLOB NOT NULL DEFAULT x'',
    agent TEXT NOT NULL DEFAULT '',
    runtimes TEXT NOT NULL DEFAULT '',
    samples INTEGER NOT NULL DEFAULT 0,
    idle_reason TEXT NOT NULL DEFAULT '',
    accepted INTEGER NOT NULL DEFAULT 0,
    refused INTEGER NOT NULL DEFAULT 0,
    forgotten INTEGER NOT NULL DEFAULT 0,
    bytes_up INTEGER NOT NULL DEFAULT 0,
    last_base INTEGER,
    last_seen INTEGER NOT NULL DEFAULT 0
) WITHOUT ROWID;

CREATE TABLE leases (
    lease_id BLOB PRIMARY KEY,
    device TEXT NOT NULL,
    epoch INTEGER NOT NULL,
    number INTEGER NOT NULL,
    digest BLOB NOT NULL,
    deadline REAL NOT NULL
) WITHOUT ROWID;

CREATE TABLE inventory (
    topic TEXT PRIMARY KEY,
    sha256 BLOB NOT NULL,
    first_version INTEGER NOT NULL
) WITHOUT ROWID;
"""

_RUNTIMES = """
ALTER TABLE updates ADD COLUMN runtime TEXT NOT NULL DEFAULT '';
ALTER TABLE devices ADD COLUMN runtime TEXT NOT NULL DEFAULT '';
CREATE TABLE runtimes (
    runtime TEXT PRIMARY KEY,
    accepted INTEGER NOT NULL DEFAULT 0,
    folded INTEGER NOT NULL DEFAULT 0
) WITHOUT ROWID;
INSERT INTO runtimes
    SELECT '', forgotten + (SELECT COUNT(*) FROM updates),
        forgotten + (SELECT COUNT(*) FROM updates WHERE state = 'folded')
    FROM office WHERE forgotten + (SELECT COUNT(*) FROM updates) > 0;
"""

_DOUBLES = """
CREATE TABLE doubles (
    device TEXT PRIMARY KEY,
    count INTEGER NOT NULL,
    how TEXT NOT NULL,
    seen_at REAL NOT NULL
) WITHOUT ROWID;
"""

_READY = """
ALTER TABLE devices ADD COLUMN draw INTEGER NOT NULL DEFAULT 0;
ALTER TABLE devices ADD COLUMN turns INTEGER NOT NULL DEFAULT 0;
UPDATE devices SET turns = accepted;
CREATE INDEX devices_ready ON devices (draw) WHERE online = 1 AND samples > 0;
CREATE INDEX devices_fair ON devices (turns, draw) WHERE online = 1 AND samples > 0;
CREATE INDEX leases_device ON leases (device);
"""

MIGRATIONS: tuple[str, ...] = (_FIRST, _RUNTIMES, _DOUBLES, _READY)
"""Script ``i`` makes a file of ``user_version`` i into one of i + 1."""
