//! The sums of one segment, in one pass over its windows and one over the energies of their domains.
//!
//! A run has millions of windows: each is read once, in the order it lies in the file, and nothing is sorted.

use jiff::Timestamp;
use jiff::civil::Date;
use jiff::tz::Offset;
use rusqlite::types::Type;
use rusqlite::{Connection, Row};

use super::account::{
    Account, DomainAccount, ExpertAccount, KindAccount, PhaseAccount, WasteAccount, WeekAccount,
};
use super::load::named;
use super::pricing::{Figure, Prices};
use crate::meter::Provenance;
use crate::units::{Grams, Joules, MicroJoules, Seconds};
use crate::window::WindowKind;

/// What a segment's rows add up to. Nothing yet is known of its building but the PUE.
pub(super) struct Sums {
    pub(super) account: Account,
    pub(super) weeks: Vec<WeekAccount>,
    pub(super) experts: Vec<ExpertAccount>,
    /// Step and loss of the last step that counts.
    pub(super) last_loss: Option<(u64, f64)>,
}

/// Sums the segment `id`.
pub(super) fn of_segment(
    ledger: &Connection,
    id: i64,
    prices: &Prices<'_>,
    pue: f64,
) -> rusqlite::Result<Sums> {
    let mut sums = Windows::default();
    let mut statement = ledger.prepare(
        "SELECT kind, ended_ms, seconds, microjoules, intensity, tokens, superseded, complete, error_bound_joules,
                step, loss
         FROM window WHERE segment = ?1",
    )?;
    let mut rows = statement.query([id])?;
    while let Some(row) = rows.next()? {
        sums.add(row, prices)?;
    }
    let Windows { mut account, kinds, weeks, last_loss } = sums;
    account.kinds = kinds;
    account.phases = phases(ledger, id)?;
    account.waste = waste(ledger, id)?;
    account.domains = domains(ledger, id)?;
    account.facility = Joules(account.energy.joules().0 * pue);
    let weeks: Vec<_> = weeks.into_iter().map(|week| week.priced(pue)).collect::<rusqlite::Result<_>>()?;
    for week in &weeks {
        account.grams += week.grams;
    }
    account.sort();
    Ok(Sums { account, weeks, experts: experts(ledger, id)?, last_loss })
}

/// The windows read so far.
#[derive(Default)]
struct Windows {
    account: Account,
    kinds: Vec<KindAccount>,
    weeks: Vec<Week>,
    last_loss: Option<(u64, f64)>,
}

/// One week of them.
struct Week {
    /// Since that of 1 January 1970.
    number: i64,
    steps: u64,
    tokens: u64,
    has_energy: bool,
    /// Energy by its price.
    priced: Vec<(Figure, MicroJoules)>,
}

impl Windows {
    fn add(&mut self, row: &Row<'_>, prices: &Prices<'_>) -> rusqlite::Result<()> {
        let kind = row.get_ref(0)?.as_str()?;
        let (ended_ms, seconds): (i64, f64) = (row.get(1)?, row.get(2)?);
        let energy: Option<u64> = row.get(3)?;
        let superseded: bool = row.get(6)?;
        let tokens = if superseded { 0 } else { row.get(5)? };
        let is_step = kind == WindowKind::Step.as_str() && !superseded;
        let account = &mut self.account;
        account.duration += Seconds(seconds);
        // Each step that is not superseded is there once.
        account.steps += u64::from(is_step);
        account.tokens += tokens;
        account.incomplete_windows += u64::from(!row.get::<_, bool>(7)?);
        if let Some(bound) = row.get::<_, Option<f64>>(8)? {
            let largest = account.window_error_bound.map_or(bound, |largest| largest.0.max(bound));
            account.window_error_bound = Some(Joules(largest));
        }
        if is_step && let Some(loss) = row.get(10)? {
            self.last_loss = Some((row.get::<_, Option<u64>>(9)?.unwrap_or(0), loss));
        }
        let microjoules = MicroJoules(energy.unwrap_or(0));
        // All other sums are parts of this one, or of the domains'.
        account.energy = checked_add(account.energy, microjoules)?;
        account.superseded += if superseded { microjoules } else { MicroJoules(0) };
        add_kind(&mut self.kinds, kind, Seconds(seconds), microjoules);
        let week = week_of(&mut self.weeks, ended_ms);
        week.steps += u64::from(is_step);
        week.tokens += tokens;
        if energy.is_some() {
            // A window is a point in time: its middle.
            let middle_ms = ended_ms.saturating_sub((seconds * 500.0) as i64);
            let figure = prices.at(middle_ms, row.get(4)?).ok_or(rusqlite::Error::QueryReturnedNoRows)?;
            account.priced_by_estimates += if figure.estimated { microjoules } else { MicroJoules(0) };
            week.add(figure, microjoules);
        }
        Ok(())
    }
}

impl Week {
    fn add(&mut self, figure: Figure, energy: MicroJoules) {
        self.has_energy = true;
        // The newest price is the likeliest.
        match self.priced.iter_mut().rev().find(|(known, _)| *known == figure) {
            Some((_, sum)) => *sum += energy,
            None => self.priced.push((figure, energy)),
        }
    }

    fn priced(self, pue: f64) -> rusqlite::Result<WeekAccount> {
        let mut grams = Grams::default();
        for (figure, energy) in &self.priced {
            grams += Grams(figure.grams_per_kwh.grams(energy.joules(), 1.0).0 * pue);
        }
        Ok(WeekAccount {
            monday: monday(self.number)?,
            runs: 1,
            steps: self.steps,
            tokens: self.tokens,
            energy: self.has_energy.then(|| self.priced.iter().map(|(_, energy)| *energy).sum()),
            grams,
        })
    }
}

fn week_of(weeks: &mut Vec<Week>, ended_ms: i64) -> &mut Week {
    const WEEK_MS: i64 = 7 * DAY_MS;
    let number = ended_ms.saturating_add(3 * DAY_MS).div_euclid(WEEK_MS);
    let at = weeks.iter().rposition(|week| week.number == number).unwrap_or_else(|| {
        weeks.push(Week { number, steps: 0, tokens: 0, has_energy: false, priced: Vec::new() });
        weeks.len() - 1
    });
    &mut weeks[at]
}

const DAY_MS: i64 = 86_400_000;

/// The Monday of a week: 1 January 1970, in week 0, was a Thursday.
fn monday(week: i64) -> rusqlite::Result<Date> {
    let monday = Timestamp::from_second((week * 7 - 3) * (DAY_MS / 1000))
        .map_err(|error| rusqlite::Error::FromSqlConversionFailure(1, Type::Integer, error.into()))?;
    Ok(Offset::UTC.to_datetime(monday).date())
}

fn add_kind(kinds: &mut Vec<KindAccount>, kind: &str, duration: Seconds, energy: MicroJoules) {
    let at = kinds.iter().position(|known| known.kind == kind).unwrap_or_else(|| {
        let new =
            KindAccount { kind: kind.into(), windows: 0, duration: Seconds(0.0), energy: MicroJoules(0) };
        kinds.push(new);
        kinds.len() - 1
    });
    kinds[at].windows += 1;
    kinds[at].duration += duration;
    kinds[at].energy += energy;
}

fn checked_add(sum: MicroJoules, part: MicroJoules) -> rusqlite::Result<MicroJoules> {
    let too_much = || {
        let reason = "the energies add up to more than can be".into();
        rusqlite::Error::FromSqlConversionFailure(0, Type::Integer, reason)
    };
    sum.0.checked_add(part.0).map(MicroJoules).ok_or_else(too_much)
}

/// Sums the energies of the domains. They are added up here, as they come: grouping would sort them all.
fn domains(ledger: &Connection, segment: i64) -> rusqlite::Result<Vec<DomainAccount>> {
    let mut statement =
        ledger.prepare("SELECT id, domain, sensor, source FROM sensor WHERE segment = ?1 ORDER BY id")?;
    let rows = statement.query_map([segment], |row| {
        let account = DomainAccount {
            domain: row.get(1)?,
            sensor: row.get(2)?,
            source: named(row, 3, Provenance::from_name)?,
            energy: MicroJoules(0),
        };
        Ok((row.get(0)?, account, false))
    })?;
    let mut sensors = rows.collect::<rusqlite::Result<Vec<(i64, DomainAccount, bool)>>>()?;
    let mut statement = ledger.prepare("SELECT sensor, microjoules FROM window_energy WHERE segment = ?1")?;
    let mut rows = statement.query([segment])?;
    while let Some(row) = rows.next()? {
        let (id, energy): (i64, u64) = (row.get(0)?, row.get(1)?);
        let known = sensors.iter_mut().find(|(known, ..)| *known == id);
        let (_, account, read) = known.ok_or(rusqlite::Error::QueryReturnedNoRows)?;
        account.energy = checked_add(account.energy, MicroJoules(energy))?;
        *read = true;
    }
    // One that was never read has no energy, which is not the same as having none.
    Ok(sensors.into_iter().filter(|(.., read)| *read).map(|(_, account, _)| account).collect())
}

fn phases(ledger: &Connection, segment: i64) -> rusqlite::Result<Vec<PhaseAccount>> {
    let mut statement =
        ledger.prepare("SELECT phase, seconds, microjoules FROM phase_energy WHERE segment = ?1")?;
    let rows = statement.query_map([segment], |row| {
        Ok(PhaseAccount {
            phase: row.get(0)?,
            duration: Seconds(row.get(1)?),
            energy: MicroJoules(row.get(2)?),
        })
    })?;
    rows.collect()
}

fn waste(ledger: &Connection, segment: i64) -> rusqlite::Result<Vec<WasteAccount>> {
    let mut statement = ledger.prepare("SELECT reason, count, microjoules FROM waste WHERE segment = ?1")?;
    let rows = statement.query_map([segment], |row| {
        Ok(WasteAccount { reason: row.get(0)?, count: row.get(1)?, energy: MicroJoules(row.get(2)?) })
    })?;
    rows.collect()
}

fn experts(ledger: &Connection, segment: i64) -> rusqlite::Result<Vec<ExpertAccount>> {
    let mut statement = ledger.prepare(
        "SELECT layer, expert, tokens, microjoules FROM expert_energy WHERE segment = ?1 ORDER BY layer, expert",
    )?;
    let rows = statement.query_map([segment], |row| {
        Ok(ExpertAccount {
            layer: row.get(0)?,
            expert: row.get(1)?,
            tokens: row.get(2)?,
            energy: MicroJoules(row.get(3)?),
        })
    })?;
    rows.collect()
}
