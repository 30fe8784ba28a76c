//! The time series of a run, read from its ledger in one pass and summed into bins.
//!
//! Nothing is sampled: the energy of a window is spread in whole microjoules over the bins it touches, in proportion
//! to time, so that the bins add up to the account. Memory is that of the bins, however many windows there are.

use std::collections::HashMap;
use std::path::Path;

use rusqlite::{Connection, Row};

use super::timeline::Timeline;
use crate::error::Result;
use crate::ledger::{open_for_reading, read_failure};
use crate::meter::Provenance;
use crate::report::load::named;
use crate::report::pricing::Prices;
use crate::report::{RunReport, SegmentReport};
use crate::units::MicroJoules;
use crate::window::WindowKind;

/// Bins over the logarithm of running time, for what is drawn over a logarithmic axis.
const LOSS_BINS: usize = 400;

/// The share of the running time before which all losses fall into the first of those.
const FIRST_LOSS_BIN: f64 = 1e-5;

/// The series of one run.
pub(super) struct RunSeries {
    /// Where the bins lie.
    pub(super) timeline: Timeline,
    /// Bins of equal running time.
    pub(super) num_bins: usize,
    /// The energy of each domain, the largest first.
    pub(super) domains: Vec<DomainSeries>,
    /// Emissions by bin, priced as the account prices them.
    pub(super) grams: Vec<f64>,
    /// Tokens in the model, by bin; those done again count once.
    pub(super) tokens: Vec<u64>,
    /// Seconds of windows in each bin, and those of them in which a sensor was read; ranks side by side add up.
    pub(super) covered_seconds: Vec<f64>,
    pub(super) read_seconds: Vec<f64>,
    /// Training loss of the steps that count.
    pub(super) training_loss: Vec<LossPoint>,
    /// Held-out loss.
    pub(super) evaluation_loss: Vec<LossPoint>,
}

/// The energy of one domain by bin, of what was measured or of what was modelled.
pub(super) struct DomainSeries {
    pub(super) domain: String,
    pub(super) measured: bool,
    pub(super) microjoules: Vec<u64>,
}

/// Losses that fell into one bin.
#[derive(Clone, Copy, Debug)]
pub(super) struct LossPoint {
    /// Running time at the end of the last of them.
    pub(super) seconds: f64,
    pub(super) last: f64,
    pub(super) min: f64,
    pub(super) max: f64,
    sum: f64,
    count: u64,
}

impl RunSeries {
    /// Reads the windows of all segments of `run` into at most `num_bins` bins.
    pub(super) fn read(run: &RunReport, num_bins: usize) -> Result<Self> {
        let timeline = Timeline::new(&run.segments);
        let mut sums = Sums::new(timeline, num_bins.max(1));
        let mut ledgers: Vec<&Path> = run.segments.iter().map(|segment| segment.ledger.as_path()).collect();
        ledgers.sort();
        ledgers.dedup();
        for ledger in ledgers {
            let (path, mut connection) = open_for_reading(ledger)?;
            let read = |connection: &mut Connection, sums: &mut Sums| -> rusqlite::Result<()> {
                // One transaction: windows and the energies of their domains agree while a run goes on writing.
                let snapshot = connection.transaction()?;
                let mut segments = run.segments.iter().enumerate().filter(|(_, own)| own.ledger == ledger);
                segments.try_for_each(|(index, segment)| sums.add_segment(&snapshot, index, segment))
            };
            read(&mut connection, &mut sums).map_err(|error| read_failure(&path, &error))?;
        }
        Ok(sums.finish())
    }

    /// All energy of all bins.
    pub(super) fn energy(&self) -> MicroJoules {
        MicroJoules(self.domains.iter().flat_map(|domain| &domain.microjoules).sum())
    }

    /// Seconds of running time of a bin.
    pub(super) fn bin_seconds(&self) -> f64 {
        self.timeline.seconds / self.num_bins as f64
    }

    /// The joules spent until a running time: exact at the edges of bins, between them in proportion.
    pub(super) fn joules_at(&self, cumulative: &[f64], seconds: f64) -> f64 {
        if self.timeline.seconds <= 0.0 {
            return cumulative.last().copied().unwrap_or(0.0);
        }
        let at = (seconds / self.bin_seconds()).clamp(0.0, self.num_bins as f64);
        let bin = (at as usize).min(self.num_bins - 1);
        let before = if bin == 0 { 0.0 } else { cumulative[bin - 1] };
        before + (cumulative[bin] - before) * (at - bin as f64)
    }

    /// The joules spent until the end of each bin.
    pub(super) fn cumulative_joules(&self) -> Vec<f64> {
        let mut spent = 0u64;
        let sum_of = |bin: usize| self.domains.iter().map(|domain| domain.microjoules[bin]).sum::<u64>();
        (0..self.num_bins)
            .map(|bin| {
                spent += sum_of(bin);
                MicroJoules(spent).joules().0
            })
            .collect()
    }
}

impl LossPoint {
    pub(super) fn mean(&self) -> f64 {
        self.sum / self.count as f64
    }
}

/// A series in the making.
struct Sums {
    series: RunSeries,
    /// By name, sensor and whether it was measured.
    index_of: HashMap<(String, String, bool), usize>,
    training: Vec<Option<LossPoint>>,
    evaluation: Vec<Option<LossPoint>>,
}

/// The columns of a window that a series needs.
struct Window {
    seq: i64,
    kind: Kind,
    tokens: u64,
    middle_ms: i64,
    seconds: f64,
    is_read: bool,
    intensity: i64,
    loss: Option<f64>,
    superseded: bool,
}

/// Which of the losses a window's loss is.
enum Kind {
    Step,
    Evaluation,
    Other,
}

impl Window {
    const COLUMNS: &str = "seq, kind, tokens, ended_ms - CAST(seconds * 500 AS INTEGER), seconds, \
                           microjoules NOT NULL, intensity, loss, superseded";

    fn from_row(row: &Row<'_>) -> rusqlite::Result<Self> {
        Ok(Window {
            seq: row.get(0)?,
            kind: match row.get_ref(1)?.as_str()? {
                kind if kind == WindowKind::Step.as_str() => Kind::Step,
                kind if kind == WindowKind::Evaluation.as_str() => Kind::Evaluation,
                _ => Kind::Other,
            },
            tokens: row.get(2)?,
            middle_ms: row.get(3)?,
            seconds: row.get(4)?,
            is_read: row.get(5)?,
            intensity: row.get(6)?,
            loss: row.get(7)?,
            superseded: row.get(8)?,
        })
    }
}

impl Sums {
    fn new(timeline: Timeline, num_bins: usize) -> Self {
        Sums {
            series: RunSeries {
                timeline,
                num_bins,
                domains: Vec::new(),
                grams: vec![0.0; num_bins],
                tokens: vec![0; num_bins],
                covered_seconds: vec![0.0; num_bins],
                read_seconds: vec![0.0; num_bins],
                training_loss: Vec::new(),
                evaluation_loss: Vec::new(),
            },
            index_of: HashMap::new(),
            training: vec![None; LOSS_BINS],
            evaluation: vec![None; LOSS_BINS],
        }
    }

    fn add_segment(
        &mut self,
        ledger: &Connection,
        index: usize,
        segment: &SegmentReport,
    ) -> rusqlite::Result<()> {
        let missing = || rusqlite::Error::QueryReturnedNoRows;
        let id: i64 =
            ledger.query_row("SELECT id FROM segment WHERE uid = ?1", [&segment.uid], |row| row.get(0))?;
        let domain_of = self.domains_of(ledger, id)?;
        let prices = prices(segment);
        // Both tables lie in the order of their windows: read side by side, neither is searched.
        let select = format!("SELECT {} FROM window WHERE segment = ?1 ORDER BY seq", Window::COLUMNS);
        let mut windows = ledger.prepare(&select)?;
        let mut windows = windows.query([id])?;
        let mut parts = ledger
            .prepare("SELECT seq, sensor, microjoules FROM window_energy WHERE segment = ?1 ORDER BY seq")?;
        let mut parts = parts
            .query_map([id], |row| Ok((row.get::<_, i64>(0)?, row.get::<_, i64>(1)?, row.get(2)?)))?
            .peekable();
        let mut from = self.series.timeline.starts[index];
        while let Some(row) = windows.next()? {
            let window = Window::from_row(row)?;
            let bins = BinRange::new(&self.series, from, window.seconds);
            from += window.seconds;
            self.add_window(&window, bins, from);
            let price = prices.at(window.middle_ms, window.intensity).ok_or_else(missing)?.grams_per_kwh;
            while let Some(part) =
                parts.next_if(|part| part.as_ref().map_or(true, |&(seq, ..)| seq <= window.seq))
            {
                let (_, sensor, microjoules) = part?;
                let domain = *domain_of.get(&sensor).ok_or_else(missing)?;
                let RunSeries { domains, grams, .. } = &mut self.series;
                bins.spread(microjoules, |bin, part| {
                    domains[domain].microjoules[bin] += part;
                    grams[bin] += price.grams(MicroJoules(part).joules(), segment.pue).0;
                });
            }
        }
        Ok(())
    }

    /// Which series each sensor of a segment belongs to.
    fn domains_of(&mut self, ledger: &Connection, segment: i64) -> rusqlite::Result<HashMap<i64, usize>> {
        let mut statement =
            ledger.prepare("SELECT id, domain, sensor, source FROM sensor WHERE segment = ?1")?;
        let mut rows = statement.query([segment])?;
        let mut found = HashMap::new();
        while let Some(row) = rows.next()? {
            let measured = named(row, 3, Provenance::from_name)?.is_measured();
            let domain: String = row.get(1)?;
            let RunSeries { domains, num_bins, .. } = &mut self.series;
            let index = *self.index_of.entry((domain.clone(), row.get(2)?, measured)).or_insert_with(|| {
                domains.push(DomainSeries { domain, measured, microjoules: vec![0; *num_bins] });
                domains.len() - 1
            });
            found.insert(row.get(0)?, index);
        }
        Ok(found)
    }

    /// Everything of a window but its energy. `until` is the running time at its end.
    fn add_window(&mut self, window: &Window, bins: BinRange, until: f64) {
        let series = &mut self.series;
        bins.each(|bin, seconds| {
            series.covered_seconds[bin] += seconds;
            series.read_seconds[bin] += if window.is_read { seconds } else { 0.0 };
        });
        if window.superseded {
            return;
        }
        bins.spread(window.tokens, |bin, part| series.tokens[bin] += part);
        let Some(loss) = window.loss.filter(|loss| loss.is_finite()) else { return };
        let points = match window.kind {
            Kind::Step => &mut self.training,
            Kind::Evaluation => &mut self.evaluation,
            Kind::Other => return,
        };
        let share = (until / series.timeline.seconds).clamp(FIRST_LOSS_BIN, 1.0);
        let bin = (1.0 - share.ln() / FIRST_LOSS_BIN.ln()) * (LOSS_BINS - 1) as f64;
        match &mut points[bin as usize] {
            Some(point) => {
                point.sum += loss;
                point.count += 1;
                point.min = point.min.min(loss);
                point.max = point.max.max(loss);
                if until >= point.seconds {
                    (point.seconds, point.last) = (until, loss);
                }
            }
            empty => {
                *empty =
                    Some(LossPoint { seconds: until, last: loss, min: loss, max: loss, sum: loss, count: 1 });
            }
        }
    }

    fn finish(mut self) -> RunSeries {
        let energy_of = |domain: &DomainSeries| domain.microjoules.iter().sum::<u64>();
        self.series.domains.sort_by_key(|domain| std::cmp::Reverse(energy_of(domain)));
        self.series.training_loss = self.training.into_iter().flatten().collect();
        self.series.evaluation_loss = self.evaluation.into_iter().flatten().collect();
        self.series
    }
}

/// The figures that the account priced a segment with: another place asked for has one for all times.
fn prices(segment: &SegmentReport) -> Prices<'_> {
    let flat = segment.intensity.grams_per_kwh.grams(segment.energy.joules(), segment.pue);
    let is_flat = (flat.0 - segment.grams.0).abs() <= 1e-9 * segment.grams.0.abs();
    Prices::new(&segment.intensities, is_flat.then_some(&segment.intensity))
}

/// The bins that a window touches.
#[derive(Clone, Copy)]
struct BinRange {
    /// The window, in bins from the start of the run.
    from: f64,
    until: f64,
    last: usize,
    bin_seconds: f64,
}

impl BinRange {
    fn new(series: &RunSeries, from_seconds: f64, seconds: f64) -> Self {
        let bin_seconds = series.bin_seconds();
        let last = series.num_bins - 1;
        let in_bins = |seconds: f64| match bin_seconds > 0.0 {
            true => (seconds / bin_seconds).clamp(0.0, series.num_bins as f64),
            false => 0.0,
        };
        BinRange { from: in_bins(from_seconds), until: in_bins(from_seconds + seconds), last, bin_seconds }
    }

    /// Each bin with the seconds of the window in it.
    fn each(self, mut visit: impl FnMut(usize, f64)) {
        let first = (self.from as usize).min(self.last);
        for bin in first..=self.end_bin() {
            let overlap = self.until.min(bin as f64 + 1.0) - self.from.max(bin as f64);
            visit(bin, overlap.max(0.0) * self.bin_seconds);
        }
    }

    /// Each bin with its part of `amount` in proportion to time; the parts add up to it exactly.
    fn spread(self, amount: u64, mut visit: impl FnMut(usize, u64)) {
        let first = (self.from as usize).min(self.last);
        let (end, length) = (self.end_bin(), self.until - self.from);
        let mut given = 0;
        for bin in first..end {
            let share = (bin as f64 + 1.0 - self.from) / length;
            let until_here = ((amount as f64 * share) as u64).clamp(given, amount);
            visit(bin, until_here - given);
            given = until_here;
        }
        visit(end, amount - given);
    }

    fn end_bin(self) -> usize {
        // A window that ends on an edge does not touch the bin behind it.
        (self.until.ceil() as usize).saturating_sub(1).clamp((self.from as usize).min(self.last), self.last)
    }
}
