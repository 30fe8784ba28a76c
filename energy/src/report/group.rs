//! From the segments of any number of ledgers to runs: each segment once, the ranks of a run together.
//!
//! A segment is known by its random uid, so a copy of a ledger, or a merged one beside its parts, counts nothing
//! twice. A run is known by its uid too. Ranks that kept ledgers of their own have different ones: they are one run
//! when run id and configuration agree, several processes were declared, and no rank is there twice. Whatever else
//! shares a run id stays apart.

use std::collections::HashMap;
use std::path::Path;

use jiff::Timestamp;

use super::account::{Account, WeekAccount};
use super::load::{RunRow, Segment};
use super::run::RunReport;
use crate::attribution::add_each;
use crate::ledger::RunStatus;
use crate::units::MicroJoules;

/// The runs, in the order their first ledgers were given, and what the reader should know of them.
pub(super) fn runs(rows: Vec<RunRow>) -> (Vec<RunReport>, Vec<String>) {
    let mut notices = Vec::new();
    let rows = each_segment_once(rows, &mut notices);
    let rows = one_row_each(rows);
    let groups = join_ranks(rows);
    tell_apart(&groups, &mut notices);
    let runs = groups.into_iter().filter_map(|group| run(group, &mut notices)).collect();
    (runs, notices)
}

/// Keeps the newest copy of each segment.
fn each_segment_once(mut rows: Vec<RunRow>, notices: &mut Vec<String>) -> Vec<RunRow> {
    type Age = (bool, Option<Timestamp>);
    let age = |segment: &Segment| -> Age { (segment.report.ended_at.is_some(), segment.alive_at) };
    let mut newest: HashMap<String, (Age, usize)> = HashMap::new();
    for (at, row) in rows.iter().enumerate() {
        for segment in &row.segments {
            let entry = newest.entry(segment.report.uid.clone()).or_insert((age(segment), at));
            if age(segment) > entry.0 {
                *entry = (age(segment), at);
            }
        }
    }
    for (at, row) in rows.iter_mut().enumerate() {
        let before = row.segments.len();
        row.segments.retain(|segment| newest.get(&segment.report.uid).is_some_and(|(_, kept)| *kept == at));
        let dropped = before - row.segments.len();
        if dropped > 0 {
            notices.push(format!(
                "{}: {dropped} of {before} segments of run {} are in another given ledger too; each counts once",
                row.ledger.display(),
                row.run_id
            ));
        }
    }
    rows
}

/// Joins rows of one run, as copies of a ledger have them: what stands in the newest holds.
fn one_row_each(rows: Vec<RunRow>) -> Vec<RunRow> {
    let mut joined: Vec<RunRow> = Vec::new();
    for mut row in rows {
        let Some(known) = joined.iter_mut().find(|known| known.uid == row.uid) else {
            joined.push(row);
            continue;
        };
        if last_sign(&row) > last_sign(known) {
            std::mem::swap(known, &mut row);
        }
        known.segments.append(&mut row.segments);
        known.segments.sort_by_key(|segment| (segment.report.rank, segment.report.number));
    }
    joined
}

fn last_sign(row: &RunRow) -> Option<Timestamp> {
    row.segments.iter().filter_map(|segment| segment.alive_at.max(segment.report.ended_at)).max()
}

/// Rows that are the ranks of one run stand in one group, the lowest rank first.
fn join_ranks(rows: Vec<RunRow>) -> Vec<Vec<RunRow>> {
    let mut groups: Vec<Vec<RunRow>> = Vec::new();
    for row in rows {
        match groups.iter_mut().find(|group| group.iter().all(|other| are_ranks_of_one_run(other, &row))) {
            Some(group) => group.push(row),
            None => groups.push(vec![row]),
        }
    }
    for group in &mut groups {
        group.sort_by_key(|row| row.segments.first().map(|segment| segment.report.rank));
    }
    groups
}

fn are_ranks_of_one_run(one: &RunRow, other: &RunRow) -> bool {
    let mut segments = one.segments.iter().chain(&other.segments);
    one.run_id == other.run_id
        && one.config_hash == other.config_hash
        && !one.segments.is_empty()
        && !other.segments.is_empty()
        && segments.all(|segment| segment.report.world_size > 1)
        && !one.segments.iter().any(|segment| has_rank(other, segment.report.rank))
}

fn has_rank(row: &RunRow, rank: u32) -> bool {
    row.segments.iter().any(|segment| segment.report.rank == rank)
}

/// Says where two runs share a name.
fn tell_apart(groups: &[Vec<RunRow>], notices: &mut Vec<String>) {
    for (at, group) in groups.iter().enumerate() {
        let Some(first) = group.first() else { continue };
        let shares = |other: &Vec<RunRow>| other.first().is_some_and(|other| other.run_id == first.run_id);
        if let Some(other) = groups[..at].iter().rfind(|other| shares(other)).and_then(|other| other.first())
        {
            notices.push(format!(
                "two different runs are named {}: {} in {} and {} in {}; they stay apart",
                first.run_id,
                short(&other.uid),
                other.ledger.display(),
                short(&first.uid),
                first.ledger.display()
            ));
        }
    }
}

/// The start of a uid, enough for people.
pub(super) fn short(uid: &str) -> &str {
    uid.get(..8).unwrap_or(uid)
}

/// `None` for a group without rows, which [`join_ranks`] never makes.
fn run(group: Vec<RunRow>, notices: &mut Vec<String>) -> Option<RunReport> {
    let status = worst(group.iter().map(|row| row.status));
    let ended_at = group.iter().map(|row| row.ended_at).collect::<Option<Vec<_>>>();
    let started_at = group.iter().map(|row| row.started_at).min();
    let mut rows = group.into_iter();
    let mut first = rows.next()?;
    for row in rows {
        first.segments.extend(row.segments);
    }
    let mut segments = first.segments;
    segments.sort_by_key(|segment| (segment.report.rank, segment.report.number));
    tell_missing_ranks(&first.run_id, &segments, notices);
    let counting_rank = counting_rank(&segments);
    let mut run = RunReport {
        ledger: first.ledger,
        uid: first.uid,
        run_id: first.run_id,
        name: first.name,
        config_hash: first.config_hash,
        status,
        started_at: started_at.unwrap_or(first.started_at),
        alive_at: segments.iter().filter_map(|segment| segment.alive_at).max(),
        ended_at: ended_at.and_then(|ends| ends.into_iter().max()),
        segments: Vec::new(),
        experts: Vec::new(),
        marks: Vec::new(),
        account: Account::default(),
        weeks: Vec::new(),
        final_loss: None,
    };
    let mut last_loss: Option<(u64, f64)> = None;
    for segment in segments {
        let counts = Some(segment.report.rank) == counting_rank;
        match counts {
            true => run.account.add(&segment.account),
            false => run.account.add_energy(&segment.account),
        }
        if counts && segment.last_loss.map(|(step, _)| step) >= last_loss.map(|(step, _)| step) {
            last_loss = segment.last_loss.or(last_loss);
        }
        add_weeks(&mut run.weeks, &segment.weeks, counts);
        add_each(
            &mut run.experts,
            &segment.experts,
            |own, new| (own.layer, own.expert) == (new.layer, new.expert),
            |own, new| {
                own.tokens += new.tokens;
                own.energy += new.energy;
            },
        );
        run.marks.extend(segment.marks);
        run.segments.push(segment.report);
    }
    run.marks.sort_by_key(|mark| mark.at);
    run.experts.sort_by_key(|expert| (expert.layer, expert.expert));
    run.weeks.sort_by_key(|week| week.monday);
    run.weeks.iter_mut().for_each(|week| week.runs = 1);
    run.final_loss = last_loss.map(|(_, loss)| loss);
    run.account.runs = 1;
    let all = run.account.energy;
    let of = |ended: RunStatus| if status == ended { all } else { MicroJoules(0) };
    run.account.failed = of(RunStatus::Failed);
    run.account.aborted = of(RunStatus::Crashed);
    Some(run)
}

/// The rank whose steps, tokens and time are the run's: each rank enters those of the whole step. It is the one that
/// came furthest, the lowest of equals.
fn counting_rank(segments: &[Segment]) -> Option<u32> {
    let mut steps: Vec<(u32, u64)> = Vec::new();
    for segment in segments {
        let new = [(segment.report.rank, segment.account.steps)];
        add_each(&mut steps, &new, |own, new| own.0 == new.0, |own, new| own.1 += new.1);
    }
    steps.iter().max_by_key(|(rank, steps)| (*steps, std::cmp::Reverse(*rank))).map(|(rank, _)| *rank)
}

fn tell_missing_ranks(run_id: &str, segments: &[Segment], notices: &mut Vec<String>) {
    let Some(newest) = segments.iter().max_by_key(|segment| segment.report.started_at) else { return };
    let mut ranks: Vec<u32> = segments.iter().map(|segment| segment.report.rank).collect();
    ranks.sort_unstable();
    ranks.dedup();
    let world_size = newest.report.world_size;
    if (ranks.len() as u64) < u64::from(world_size) {
        notices.push(format!(
            "run {run_id}: the given ledgers have {} of its {world_size} ranks; what the others drew is not in its sums",
            ranks.len()
        ));
    }
}

/// The status of all ranks together.
fn worst(statuses: impl Iterator<Item = RunStatus>) -> RunStatus {
    let gravity = |status: &RunStatus| match status {
        RunStatus::Failed => 4,
        RunStatus::Crashed => 3,
        RunStatus::Running => 2,
        RunStatus::Interrupted => 1,
        RunStatus::Completed => 0,
    };
    statuses.max_by_key(gravity).unwrap_or(RunStatus::Running)
}

/// Adds weeks of the same run, or of another; steps and tokens only where they count.
pub(super) fn add_weeks(own: &mut Vec<WeekAccount>, new: &[WeekAccount], counts: bool) {
    let new: Vec<WeekAccount> = new
        .iter()
        .map(|week| match counts {
            true => week.clone(),
            false => WeekAccount { steps: 0, tokens: 0, ..week.clone() },
        })
        .collect();
    add_each(
        own,
        &new,
        |own, new| own.monday == new.monday,
        |own, new| {
            own.runs += new.runs;
            own.steps += new.steps;
            own.tokens += new.tokens;
            own.energy = match (own.energy, new.energy) {
                (Some(own), Some(new)) => Some(own + new),
                (own, new) => own.or(new),
            };
            own.grams += new.grams;
        },
    );
}

/// Whether two paths name one file.
pub(super) fn is_same_file(one: &Path, other: &Path) -> bool {
    one == other || matches!((one.canonicalize(), other.canonicalize()), (Ok(one), Ok(other)) if one == other)
}
