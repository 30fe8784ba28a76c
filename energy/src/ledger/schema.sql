-- The energy ledger. Times are RFC 3339 in UTC; energy is whole microjoules (1 J = 1000000); carbon is grams of CO2e.

-- A training run, over all its restarts.
CREATE TABLE run (
    id          INTEGER PRIMARY KEY,
    run_id      TEXT NOT NULL UNIQUE,
    name        TEXT NOT NULL,
    config_hash TEXT NOT NULL,
    started_at  TEXT NOT NULL,
    ended_at    TEXT,
    status      TEXT NOT NULL CHECK (status IN ('running', 'completed', 'interrupted', 'failed', 'crashed'))
);

-- One process lifetime of a run, with the carbon intensity it counts with, frozen.
CREATE TABLE segment (
    id                INTEGER PRIMARY KEY,
    run               INTEGER NOT NULL REFERENCES run (id),
    number            INTEGER NOT NULL,          -- within the run, from 0
    resumed_from_step INTEGER,                   -- NULL: began at the beginning
    started_at        TEXT NOT NULL,
    ended_at          TEXT,                      -- NULL while running, and for a segment that was killed
    status            TEXT NOT NULL CHECK (status IN ('running', 'completed', 'interrupted', 'failed', 'crashed')),
    host              TEXT NOT NULL,
    location          TEXT NOT NULL,
    grams_per_kwh     REAL NOT NULL,
    intensity_year    INTEGER,                   -- NULL: the user's own figure
    intensity_basis   TEXT NOT NULL,
    intensity_source  TEXT NOT NULL,
    pue               REAL NOT NULL,
    UNIQUE (run, number)
);

-- One measurement window. A window is written once: (segment, seq) names it.
CREATE TABLE window (
    segment            INTEGER NOT NULL REFERENCES segment (id),
    seq                INTEGER NOT NULL,
    kind               TEXT NOT NULL,            -- setup, step, evaluation, checkpoint, data, idle, unattributed
    step               INTEGER,                  -- the last finished step at its end
    tokens             INTEGER NOT NULL,         -- trained on in this window
    ended_at           TEXT NOT NULL,
    seconds            REAL NOT NULL,
    microjoules        INTEGER,                  -- NULL: no sensor was read, which is not the same as 0
    grams              REAL,                     -- includes the building: intensity times PUE
    loss               REAL,
    error_bound_joules REAL,                     -- NULL: every counter was read at the window's edges
    complete           INTEGER NOT NULL,         -- 0: a sensor could not be read; its energy is in a later window
    superseded         INTEGER NOT NULL DEFAULT 0, -- 1: done again after a resume; spent, but not in the model
    PRIMARY KEY (segment, seq)
) WITHOUT ROWID;

-- The energy of each domain in a window; a window's microjoules are the sum of its rows here.
CREATE TABLE window_energy (
    segment     INTEGER NOT NULL,
    seq         INTEGER NOT NULL,
    domain      TEXT NOT NULL,                   -- package-0, dram-0, gpu-0, cpu, ram
    sensor      TEXT NOT NULL,                   -- rapl, nvml, model
    source      TEXT NOT NULL,                   -- measured_counter, interpolated, modelled, ...
    microjoules INTEGER NOT NULL,
    PRIMARY KEY (segment, seq, domain),
    FOREIGN KEY (segment, seq) REFERENCES window (segment, seq)
) WITHOUT ROWID;

CREATE INDEX window_step ON window (step);
