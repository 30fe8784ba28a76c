//! What happened in a run, for vertical lines in its plots: restarts, and the marks of its ledger.

use std::collections::BTreeMap;

use super::timeline::Timeline;
use crate::report::RunReport;
use crate::report::figures::duration;
use crate::units::Seconds;

/// As many marks as a plot and its list can carry. Restarts come first, then those of the rarer kinds.
const MAX_MARKS: usize = 120;

/// A vertical line.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct Mark {
    /// Running time.
    pub(super) seconds: f64,
    /// `restart`, or the ledger's: `sensor`, `carbon`, `controller`.
    pub(super) kind: String,
    pub(super) text: String,
}

/// The marks in order of time, and how many more there are.
pub(super) fn of_run(run: &RunReport, timeline: &Timeline) -> (Vec<Mark>, usize) {
    let mut marks = restarts(run, timeline);
    marks.extend(run.marks.iter().map(|mark| {
        let step = mark.step.map_or(String::new(), |step| format!("step {step}: "));
        let text = format!("{step}{}", mark.text);
        Mark { seconds: timeline.seconds_at(mark.at), kind: mark.kind.clone(), text }
    }));
    let mut count_of: BTreeMap<&str, usize> = BTreeMap::new();
    for mark in &marks {
        *count_of.entry(&mark.kind).or_default() += 1;
    }
    let mut by_rarity: Vec<(bool, usize, usize)> = marks
        .iter()
        .enumerate()
        .map(|(index, mark)| (mark.kind != "restart", count_of[mark.kind.as_str()], index))
        .collect();
    by_rarity.sort_unstable();
    let mut kept: Vec<Mark> =
        by_rarity.iter().take(MAX_MARKS).map(|&(.., index)| marks[index].clone()).collect();
    kept.sort_by(|a, b| a.seconds.total_cmp(&b.seconds));
    (kept, marks.len().saturating_sub(MAX_MARKS))
}

/// One for each time the run was taken up again, told from its lowest rank.
fn restarts(run: &RunReport, timeline: &Timeline) -> Vec<Mark> {
    let lowest = run.segments.iter().map(|segment| segment.rank).min();
    let lifetimes: Vec<_> = run
        .segments
        .iter()
        .zip(&timeline.starts)
        .filter(|(segment, _)| Some(segment.rank) == lowest)
        .collect();
    lifetimes
        .windows(2)
        .map(|pair| {
            let ((before, _), (after, &seconds)) = (pair[0], pair[1]);
            let began_ms = after.started_at.as_millisecond() - before.started_at.as_millisecond();
            let pause = Seconds((began_ms as f64 / 1e3 - before.duration.0).max(0.0));
            let from = match after.resumed_from_step {
                Some(step) => format!("from step {step}"),
                None => "from the beginning".into(),
            };
            let how = before.status.as_str();
            let text = format!("{from}, {} after the segment before it ended ({how})", duration(pause));
            Mark { seconds, kind: "restart".into(), text }
        })
        .collect()
}
