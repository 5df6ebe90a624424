-- The catalog's tables. Every row can be derived from the archive's objects; `pitr reindex` does.
-- Times are µs since 1970 (UTC); offsets and lengths are bytes. One row per segment, block,
-- baseline, landmark, gap, hour and hour's record: never one per transaction.

CREATE TABLE source (
    name    TEXT PRIMARY KEY,
    engine  TEXT NOT NULL
) STRICT, WITHOUT ROWID;

CREATE TABLE timeline (
    source    TEXT NOT NULL,
    timeline  INTEGER NOT NULL,
    PRIMARY KEY (source, timeline)
) STRICT, WITHOUT ROWID;

CREATE TABLE segment (
    id            INTEGER PRIMARY KEY,
    source        TEXT NOT NULL,
    timeline      INTEGER NOT NULL,
    number        INTEGER NOT NULL,
    digest        TEXT NOT NULL,
    bytes_stored  INTEGER NOT NULL,
    start_log     TEXT NOT NULL,
    start_offset  INTEGER NOT NULL,
    -- First commit or mark time in it; last one (the totals' known_until).
    first_known   INTEGER,
    until         INTEGER,
    -- Largest `until` from the timeline's first segment to this one. Commit times may step back;
    -- this never does, so it can be searched.
    reached       INTEGER,
    header        TEXT NOT NULL,
    totals        TEXT NOT NULL,
    UNIQUE (source, timeline, number)
) STRICT;

CREATE INDEX segment_by_place ON segment (source, timeline, start_log, start_offset, number);
CREATE INDEX segment_by_time ON segment (source, timeline, reached, number);

CREATE TABLE block (
    segment      INTEGER NOT NULL REFERENCES segment (id) ON DELETE CASCADE,
    position     INTEGER NOT NULL,
    file_offset  INTEGER NOT NULL,
    stored_len   INTEGER NOT NULL,
    raw_len      INTEGER NOT NULL,
    start        INTEGER NOT NULL,
    whole_until  INTEGER,
    records      INTEGER NOT NULL,
    first_at     INTEGER,
    last_at      INTEGER,
    time         INTEGER NOT NULL,
    known_until  INTEGER,
    PRIMARY KEY (segment, position)
) STRICT, WITHOUT ROWID;

CREATE TABLE baseline (
    source    TEXT NOT NULL,
    timeline  INTEGER NOT NULL,
    name      TEXT NOT NULL,
    at        INTEGER NOT NULL,
    digest    TEXT NOT NULL,
    meta      TEXT NOT NULL,
    PRIMARY KEY (source, timeline, name)
) STRICT;

CREATE INDEX baseline_by_time ON baseline (source, at, timeline, name);

-- A record that somebody may want to go back before.
CREATE TABLE landmark (
    source    TEXT NOT NULL,
    timeline  INTEGER NOT NULL,
    segment   INTEGER NOT NULL,
    position  INTEGER NOT NULL,
    log       TEXT NOT NULL,
    landmark  TEXT NOT NULL,
    PRIMARY KEY (source, timeline, segment, position)
) STRICT, WITHOUT ROWID;

-- A hole directly before a segment.
CREATE TABLE gap (
    source    TEXT NOT NULL,
    timeline  INTEGER NOT NULL,
    segment   INTEGER NOT NULL,
    after     INTEGER,
    before    INTEGER,
    reason    TEXT NOT NULL,
    PRIMARY KEY (source, timeline, segment)
) STRICT, WITHOUT ROWID;

-- Sums over the segments that were opened in an hour.
CREATE TABLE hour (
    source          TEXT NOT NULL,
    hour            INTEGER NOT NULL,
    segments        INTEGER NOT NULL,
    records         INTEGER NOT NULL,
    bytes_raw       INTEGER NOT NULL,
    bytes_stored    INTEGER NOT NULL,
    first_timeline  INTEGER NOT NULL,
    first_number    INTEGER NOT NULL,
    first_position  TEXT NOT NULL,
    last_timeline   INTEGER NOT NULL,
    last_number     INTEGER NOT NULL,
    last_position   TEXT NOT NULL,
    first_at        INTEGER,
    last_at         INTEGER,
    PRIMARY KEY (source, hour)
) STRICT, WITHOUT ROWID;

-- The record of an hour, which is an object of its own.
CREATE TABLE audit (
    source      TEXT NOT NULL,
    hour        INTEGER NOT NULL,
    digest      TEXT NOT NULL,
    continuity  TEXT NOT NULL,
    PRIMARY KEY (source, hour)
) STRICT, WITHOUT ROWID;
