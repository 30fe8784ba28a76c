-- The energy ledger. Energy is whole microjoules (1 J = 1000000), carbon is grams of CO2e, `*_ms` are milliseconds
-- since 1970 in UTC: datetime(ended_ms / 1000.0, 'unixepoch') in sqlite3, pandas.to_datetime(x, unit="ms").
-- docs/ledger.md explains each table with queries.

-- A training run, over all its restarts and ranks.
CREATE TABLE run (
    id          INTEGER PRIMARY KEY,
    uid         TEXT NOT NULL UNIQUE,          -- random; tells two runs of one name apart
    run_id      TEXT NOT NULL,
    name        TEXT NOT NULL,
    config_hash TEXT NOT NULL,
    started_ms  INTEGER NOT NULL,
    ended_ms    INTEGER,
    status      TEXT NOT NULL CHECK (status IN ('running', 'completed', 'interrupted', 'failed', 'crashed'))
);

-- One process lifetime of one rank of a run.
CREATE TABLE segment (
    id                INTEGER PRIMARY KEY,
    uid               TEXT NOT NULL UNIQUE,    -- random; a merged ledger has each segment once
    run               INTEGER NOT NULL REFERENCES run (id),
    rank              INTEGER NOT NULL,
    world_size        INTEGER NOT NULL,
    number            INTEGER NOT NULL,        -- within the run and rank, from 0
    resumed_from_step INTEGER,                 -- NULL: began at the beginning
    started_ms        INTEGER NOT NULL,
    alive_ms          INTEGER,                 -- the last moment it is known to have run
    ended_ms          INTEGER,                 -- NULL while running, and for a segment that was killed
    status            TEXT NOT NULL CHECK (status IN ('running', 'completed', 'interrupted', 'failed', 'crashed')),
    host              TEXT NOT NULL,
    version           TEXT NOT NULL,           -- of the program that wrote it
    pue               REAL NOT NULL,           -- power usage effectiveness of the building
    wue_l_per_kwh     REAL,                    -- water usage effectiveness; NULL: not declared
    embodied_kg       REAL,                    -- embodied carbon of the reserved hardware; NULL: not declared
    embodied_years    REAL,                    -- its expected life
    embodied_share    REAL,                    -- the part of it that this segment reserved, 0 to 1
    embodied_boundary TEXT,                    -- what the figure includes
    sensor_resets     INTEGER,                 -- these four are NULL until the segment ends
    sensor_spikes     INTEGER,
    gap_seconds       REAL,                    -- time for which the energy of a domain is unknown
    overhead_seconds  REAL,                    -- CPU time that counting energy took
    UNIQUE (run, rank, number)
);

-- A carbon intensity as it was known. Rows are never changed: a correction is a later row for the same period.
CREATE TABLE intensity (
    segment       INTEGER NOT NULL REFERENCES segment (id),
    number        INTEGER NOT NULL,            -- within the segment, from 0
    role          TEXT NOT NULL CHECK (role IN ('priced', 'beside')), -- beside: recorded to be shown, never summed
    grams_per_kwh REAL NOT NULL,
    zone          TEXT NOT NULL,
    basis         TEXT NOT NULL,               -- lifecycle_average, direct_average, marginal, user_declared
    accounting    TEXT NOT NULL,               -- location, market
    source        TEXT NOT NULL,
    year          INTEGER,                     -- vintage of a yearly figure
    from_ms       INTEGER,                     -- NULL: a yearly or declared figure, for all times
    until_ms      INTEGER,
    estimated     INTEGER NOT NULL,            -- 1: the provider's own estimate or forecast
    learned_ms    INTEGER NOT NULL,
    PRIMARY KEY (segment, number)
) WITHOUT ROWID;

-- One measurement window: (segment, seq) names it. The window in progress stands here as `open`, no older than a
-- tenth of a second, until its row takes its place; after a kill it stays, and its energy counts.
CREATE TABLE window (
    segment            INTEGER NOT NULL REFERENCES segment (id),
    seq                INTEGER NOT NULL,
    kind               TEXT NOT NULL,          -- setup, step, evaluation, checkpoint, data, idle, open, unattributed
    step               INTEGER,                -- the last finished step at its end
    tokens             INTEGER NOT NULL,       -- trained on in this window
    ended_ms           INTEGER NOT NULL,
    seconds            REAL NOT NULL,
    microjoules        INTEGER,                -- NULL: no sensor was read, which is not the same as 0
    intensity          INTEGER NOT NULL,       -- the figure known at its end
    grams              REAL,                   -- with that figure; includes the building: intensity times PUE
    loss               REAL,
    error_bound_joules REAL,                   -- NULL: every counter was read at the window's edges
    complete           INTEGER NOT NULL,       -- 0: a sensor could not be read; its energy is in a later window
    superseded         INTEGER NOT NULL DEFAULT 0, -- 1: done again after a resume; spent, but not in the model
    PRIMARY KEY (segment, seq)
) WITHOUT ROWID;

-- What was read, and how its joules came about.
CREATE TABLE sensor (
    id      INTEGER PRIMARY KEY,
    segment INTEGER NOT NULL REFERENCES segment (id),
    domain  TEXT NOT NULL,                     -- package-0, dram-0, gpu-0, cpu, ram
    sensor  TEXT NOT NULL,                     -- rapl, nvml, model
    source  TEXT NOT NULL,                     -- measured_counter, interpolated, modelled, ...
    UNIQUE (segment, domain, sensor, source)
);

-- The energy of each domain in a window; a window's microjoules are the sum of its rows here.
CREATE TABLE window_energy (
    segment     INTEGER NOT NULL,
    seq         INTEGER NOT NULL,
    sensor      INTEGER NOT NULL REFERENCES sensor (id),
    microjoules INTEGER NOT NULL,
    PRIMARY KEY (segment, seq, sensor),
    FOREIGN KEY (segment, seq) REFERENCES window (segment, seq)
) WITHOUT ROWID;

-- The energy of a segment's step windows by phase; the phases add up to those windows exactly.
CREATE TABLE phase_energy (
    segment     INTEGER NOT NULL REFERENCES segment (id),
    phase       TEXT NOT NULL,                 -- router, experts, attention, ..., other
    seconds     REAL NOT NULL,
    microjoules INTEGER NOT NULL,
    PRIMARY KEY (segment, phase)
) WITHOUT ROWID;

-- The energy of the phase `experts` by expert; they add up to that phase exactly.
CREATE TABLE expert_energy (
    segment     INTEGER NOT NULL REFERENCES segment (id),
    layer       INTEGER NOT NULL,
    expert      INTEGER NOT NULL,
    tokens      INTEGER NOT NULL,              -- assignments computed
    microjoules INTEGER NOT NULL,
    PRIMARY KEY (segment, layer, expert)
) WITHOUT ROWID;

-- Energy of step windows that taught the model nothing, by reason. A look across the account, no part of its sums.
CREATE TABLE waste (
    segment     INTEGER NOT NULL REFERENCES segment (id),
    reason      TEXT NOT NULL,                 -- padding, dropped, skipped, recompute, straggler_wait
    count       INTEGER NOT NULL,              -- padded tokens, dropped assignments, skipped steps
    microjoules INTEGER NOT NULL,
    PRIMARY KEY (segment, reason)
) WITHOUT ROWID;

-- What happened, for the marks in plots: sensor failures, changes of carbon intensity source, controller decisions.
CREATE TABLE mark (
    segment INTEGER NOT NULL REFERENCES segment (id),
    number  INTEGER NOT NULL,
    at_ms   INTEGER NOT NULL,
    step    INTEGER,
    kind    TEXT NOT NULL,                     -- sensor, carbon, controller
    text    TEXT NOT NULL,
    PRIMARY KEY (segment, number)
) WITHOUT ROWID;

CREATE INDEX window_step ON window (step);

-- Every window with its run, in everyday units.
CREATE VIEW window_readable AS
SELECT run.run_id, segment.rank, segment.number AS segment, seq, kind, step, tokens,
       strftime('%Y-%m-%dT%H:%M:%fZ', window.ended_ms / 1000.0, 'unixepoch') AS ended_at,
       seconds, microjoules / 1e6 AS joules, microjoules / 1e6 / nullif(seconds, 0) AS watts, grams, loss, superseded
FROM window JOIN segment ON segment.id = window.segment JOIN run ON run.id = segment.run;
