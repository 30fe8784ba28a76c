//! Ten thousand random histories of two sensors, played through the monitor.
//!
//! The generator knows the true energy at every moment. Whatever the counters do, windows and remainder are the
//! total to the microjoule and the total never exceeds the truth; where they only wrapped, it is the truth.

use super::*;
use proptest::prelude::*;

/// Small enough to wrap often.
const RANGE: u64 = 60_000_000;
/// The most a tick of 20 ms brings; 500 W over it and the slack of 100 ms are 60 J, so every rise is believable.
const LARGEST_RISE: u64 = 5_000_000;

/// Plain ticks between two oddities: as many as may pass between two readings, so that each is seen alone. Two
/// wrong values in a row cannot be told from a counter that was reset.
const QUIET_TICKS: usize = 7;

/// What a counter does in a tick of 20 ms.
#[derive(Clone, Copy, Debug)]
enum Tick {
    Rise(u64),
    /// Starts anew, and draws on.
    Reset(u64),
    /// Shows, this once, a value far above.
    Spike(u64),
    /// Shows, this once, half its value.
    Drop,
    /// Shows, this once, the value of two ticks ago.
    Older,
    Unreadable,
}

impl Tick {
    fn is_harmless(self) -> bool {
        matches!(self, Tick::Rise(_) | Tick::Unreadable)
    }
}

fn tick(odd: u32) -> impl Strategy<Value = Tick> {
    prop_oneof![
        16 => (0..LARGEST_RISE).prop_map(Tick::Rise),
        2 => Just(Tick::Unreadable),
        odd => (0..LARGEST_RISE).prop_map(Tick::Reset),
        odd => (1_000_000_000_000..u64::MAX / 4).prop_map(Tick::Spike),
        odd => Just(Tick::Drop),
        odd => Just(Tick::Older),
    ]
}

/// The counter's record and the true energy at each of its points.
fn play(ticks: &[Tick], range: Option<u64>) -> (Vec<(Duration, Option<u64>)>, Vec<u64>) {
    let wrap = |raw: u64| range.map_or(raw, |range| raw % (range + 1));
    let mut raw = 0;
    let mut points = vec![(Duration::ZERO, Some(0))];
    let mut truth = vec![0];
    let mut quiet = QUIET_TICKS;
    for (index, tick) in ticks.iter().enumerate() {
        let spent = truth[index];
        quiet = match tick {
            Tick::Rise(_) => quiet + 1,
            Tick::Unreadable => quiet,
            _ if quiet >= QUIET_TICKS => 0,
            _ => {
                points.push((MS * 20 * (index as u32 + 1), Some(raw)));
                truth.push(spent);
                continue;
            }
        };
        let (drawn, shown) = match *tick {
            Tick::Rise(rise) => {
                raw = wrap(raw + rise);
                (rise, Some(raw))
            }
            Tick::Reset(rise) => {
                raw = rise;
                (rise, Some(raw))
            }
            Tick::Spike(value) => (0, Some(value)),
            Tick::Drop => (0, Some(raw / 2)),
            Tick::Older => (0, points[index.saturating_sub(1)].1),
            Tick::Unreadable => (0, None),
        };
        points.push((MS * 20 * (index as u32 + 1), shown));
        truth.push(spent + drawn);
    }
    (points, truth)
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(10_000))]
    #[test]
    fn windows_and_remainder_equal_the_total_which_never_exceeds_the_truth(
        wrapping in prop::collection::vec(tick(0), 1..40),
        odd in prop::collection::vec(tick(1), 1..40),
        edges_ms in prop::collection::vec(1u32..60, 1..40),
        slow in prop::bool::ANY,
    ) {
        let (first, first_truth) = play(&wrapping, Some(RANGE));
        let (second, second_truth) = play(&odd, None);
        let period = if slow { MS * 60 } else { Duration::ZERO };
        let traces = vec![
            Trace { domain: "wrapping".into(), ..package(Some(RANGE), first.clone()) },
            Trace { domain: "odd".into(), ..package(None, second) },
        ];
        let (monitor, hand) = monitor(ReplayMeter::new(traces, period));
        let mut given = [0; 2];
        let mut spanned = 0;
        for ms in &edges_ms {
            let span = monitor.begin("edge");
            hand.advance(MS * *ms);
            monitor.sample();
            let window = monitor.close_window(WindowKind::Step);
            spanned += span.end().microjoules().0;
            for part in &window.domains {
                given[usize::from(part.domain.as_ref() == "odd")] += part.microjoules.0;
            }
        }
        let totals = monitor.finish();
        for (domain, given) in totals.domains.iter().zip(given) {
            prop_assert_eq!(domain.attributed.0, given);
            prop_assert_eq!(domain.attributed + domain.unattributed, domain.total);
        }
        prop_assert!(spanned <= totals.domains.iter().map(|domain| domain.total.0).sum::<u64>());

        let end = MS * edges_ms.iter().sum::<u32>();
        let reached = |truth: &[u64]| truth[((end.as_millis() / 20) as usize).min(truth.len() - 1)];
        let (wrapping_total, odd_total) = (totals.domains[0].total.0, totals.domains[1].total.0);
        prop_assert!(odd_total <= reached(&second_truth), "{} of {:?}", odd_total, second_truth);
        prop_assert!(wrapping_total <= reached(&first_truth), "{} of {:?}", wrapping_total, first_truth);
        // What could be read at the end is all there, through every wrap and every gap that was no longer than one.
        let readable = first[((end.as_millis() / 20) as usize).min(first.len() - 1)].1.is_some();
        if readable && totals.gap.0 == 0.0 {
            prop_assert_eq!(wrapping_total, reached(&first_truth));
        }
        if wrapping.iter().chain(&odd).all(|tick| tick.is_harmless()) {
            prop_assert_eq!(totals.resets + totals.spikes + totals.out_of_order, 0);
        }
    }
}
