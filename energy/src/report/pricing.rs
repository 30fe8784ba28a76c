//! The grams of a segment, recomputed from its joules with the best figure now known for each moment.
//!
//! Energy is priced with the carbon intensity of its own time. A figure that came later, or corrects an earlier one,
//! prices the windows of its period too; a measured one goes before an estimate, a later one before an earlier.

use rusqlite::{Connection, params};

use super::account::IntensityRecord;
use super::load::{named, optional_time, time};
use crate::carbon::{Accounting, Basis, GridIntensity, Period};
use crate::ledger::Role;
use crate::units::{Grams, GramsPerKilowattHour, MicroJoules};

/// Every intensity of a segment, in the order it was learned.
pub(super) fn intensities(ledger: &Connection, segment: i64) -> rusqlite::Result<Vec<IntensityRecord>> {
    let mut statement = ledger.prepare(
        "SELECT number, role, grams_per_kwh, zone, basis, accounting, source, year, from_ms, until_ms, estimated,
                learned_ms
         FROM intensity WHERE segment = ?1 ORDER BY number",
    )?;
    let rows = statement.query_map([segment], |row| {
        let period = match (optional_time(row, 8)?, optional_time(row, 9)?) {
            (Some(from), Some(until)) => Some(Period { from, until }),
            _ => None,
        };
        Ok(IntensityRecord {
            number: row.get(0)?,
            role: named(row, 1, Role::from_name)?,
            intensity: GridIntensity {
                grams_per_kwh: GramsPerKilowattHour(row.get(2)?),
                zone: row.get(3)?,
                year: row.get(7)?,
                basis: named(row, 4, Basis::from_name)?,
                accounting: named(row, 5, Accounting::from_name)?,
                source: row.get::<_, String>(6)?.into(),
                period,
                estimated: row.get(10)?,
            },
            learned_at: time(row, 11)?,
        })
    })?;
    rows.collect()
}

/// The grams of a segment's energy at the computer, without its building.
pub(super) fn grams(
    ledger: &Connection,
    segment: i64,
    intensities: &[IntensityRecord],
) -> rusqlite::Result<Grams> {
    let prices = Prices::new(intensities, None);
    // One group for each figure in use where none has a time of its own; a window is a point in time, its middle.
    let mut statement = ledger.prepare(match prices.timed.0.is_empty() {
        true => {
            "SELECT intensity, 0, sum(microjoules) FROM window WHERE segment = ?1 AND microjoules NOT NULL
             GROUP BY intensity"
        }
        false => {
            "SELECT intensity, ended_ms - CAST(seconds * 500 AS INTEGER), microjoules FROM window
             WHERE segment = ?1 AND microjoules NOT NULL"
        }
    })?;
    let mut rows = statement.query(params![segment])?;
    let mut grams = Grams::default();
    while let Some(row) = rows.next()? {
        let (number, at_ms, energy): (i64, i64, u64) = (row.get(0)?, row.get(1)?, row.get(2)?);
        let figure = prices.at(at_ms, number).ok_or(rusqlite::Error::QueryReturnedNoRows)?;
        grams += figure.grams_per_kwh.grams(MicroJoules(energy).joules(), 1.0);
    }
    Ok(grams)
}

/// The figures of a segment, to be asked for those of a moment.
pub(super) struct Prices<'a> {
    intensities: &'a [IntensityRecord],
    timed: Timed,
    /// Prices everything, where another place is asked for.
    other_place: Option<Figure>,
}

/// A price.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) struct Figure {
    pub(super) grams_per_kwh: GramsPerKilowattHour,
    /// The provider's estimate or forecast.
    pub(super) estimated: bool,
}

impl From<&GridIntensity> for Figure {
    fn from(intensity: &GridIntensity) -> Self {
        Figure { grams_per_kwh: intensity.grams_per_kwh, estimated: intensity.estimated }
    }
}

impl<'a> Prices<'a> {
    pub(super) fn new(intensities: &'a [IntensityRecord], other_place: Option<&GridIntensity>) -> Self {
        Prices { intensities, timed: Timed::new(intensities), other_place: other_place.map(Figure::from) }
    }

    /// The best figure for energy of that time, which was priced with the intensity `number` when it was entered;
    /// `None` when the segment has no such intensity.
    pub(super) fn at(&self, at_ms: i64, number: i64) -> Option<Figure> {
        if self.other_place.is_some() {
            return self.other_place;
        }
        let known_then = || self.intensities.iter().find(|record| record.number == number);
        self.timed.best_at(at_ms).or_else(|| Some(Figure::from(&known_then()?.intensity)))
    }
}

/// The figures that hold for a time, without overlap, in order of time.
struct Timed(Vec<(i64, i64, Figure)>);

impl Timed {
    fn new(intensities: &[IntensityRecord]) -> Self {
        let mut candidates: Vec<(i64, i64, (bool, i64), Figure)> = intensities
            .iter()
            .filter(|record| record.role == Role::Priced)
            .filter_map(|record| {
                let period = record.intensity.period?;
                Some((
                    period.from.as_millisecond(),
                    period.until.as_millisecond(),
                    (!record.intensity.estimated, record.number),
                    Figure::from(&record.intensity),
                ))
            })
            .filter(|(from, until, ..)| from < until)
            .collect();
        candidates.sort_by_key(|&(from, until, rank, _)| (from, until, rank));
        let mut edges: Vec<i64> = candidates.iter().flat_map(|&(from, until, ..)| [from, until]).collect();
        edges.sort_unstable();
        edges.dedup();
        let mut spans: Vec<(i64, i64, Figure)> = Vec::new();
        for edge in edges.windows(2) {
            let (from, until) = (edge[0], edge[1]);
            let covering = candidates.iter().filter(|candidate| candidate.0 <= from && candidate.1 >= until);
            if let Some(best) = covering.max_by_key(|candidate| candidate.2) {
                spans.push((from, until, best.3));
            }
        }
        Timed(spans)
    }

    fn best_at(&self, at_ms: i64) -> Option<Figure> {
        let after = self.0.partition_point(|&(from, ..)| from <= at_ms);
        let &(_, until, figure) = self.0.get(after.checked_sub(1)?)?;
        (at_ms < until).then_some(figure)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use jiff::Timestamp;

    fn record(number: i64, hours: Option<(i64, i64)>, grams: f64, estimated: bool) -> IntensityRecord {
        let at = |hour: i64| Timestamp::from_second(hour * 3600).unwrap();
        IntensityRecord {
            number,
            role: Role::Priced,
            intensity: GridIntensity {
                grams_per_kwh: GramsPerKilowattHour(grams),
                period: hours.map(|(from, until)| Period { from: at(from), until: at(until) }),
                estimated,
                ..crate::carbon::lookup("FRA").unwrap()
            },
            learned_at: at(0),
        }
    }

    fn at(records: &[IntensityRecord], hour: f64) -> Option<f64> {
        Timed::new(records).best_at((hour * 3_600_000.0) as i64).map(|figure| figure.grams_per_kwh.0)
    }

    #[test]
    fn each_hour_has_its_figure_and_outside_there_is_none() {
        let records = [
            record(0, None, 41.0, false),
            record(1, Some((1, 2)), 10.0, false),
            record(2, Some((2, 3)), 20.0, false),
        ];
        assert_eq!(
            [0.5, 1.0, 1.99, 2.0, 3.0].map(|hour| at(&records, hour)),
            [None, Some(10.0), Some(10.0), Some(20.0), None]
        );
    }

    #[test]
    fn the_later_goes_before_the_earlier_and_the_measured_before_the_estimate() {
        let records = [
            record(0, Some((0, 4)), 10.0, true),
            record(1, Some((1, 3)), 30.0, false),
            record(2, Some((2, 4)), 50.0, true),
        ];
        assert_eq!([0.5, 1.5, 2.5, 3.5].map(|hour| at(&records, hour)), [10.0, 30.0, 30.0, 50.0].map(Some));
    }

    #[test]
    fn figures_beside_never_price() {
        let beside = IntensityRecord { role: Role::Beside, ..record(0, Some((0, 9)), 500.0, false) };
        assert_eq!(at(&[beside], 1.0), None);
    }
}
