//! `wattle bench --profile`: each operation's time and how near it comes to what the machine can do.

use serde_json::{Value, json};
use wattle_kernels::limits::Limits;
use wattle_kernels::profile::Entry;

/// The recorded operations of some steps against the limits, the slowest first.
#[derive(Debug)]
pub(super) struct Profile {
    rows: Vec<Row>,
    step_seconds: f64,
}

/// One operation, for a mean step.
#[derive(Debug)]
struct Row {
    entry: Entry,
    calls: f64,
    seconds: f64,
    is_compute_bound: bool,
    /// Least seconds by the limits over the seconds it took.
    share: f64,
}

impl Profile {
    /// `entries` were recorded while steps of `step_seconds` each ran.
    pub(super) fn new(entries: Vec<Entry>, step_seconds: &[f64], limits: &Limits) -> Self {
        let num_steps = step_seconds.len() as f64;
        let mut rows: Vec<Row> = entries
            .into_iter()
            .map(|entry| {
                let (flops, bytes) = (entry.total.flops, entry.total.bytes);
                let seconds = entry.total.time.as_secs_f64();
                Row {
                    calls: entry.total.num_calls as f64 / num_steps,
                    seconds: seconds / num_steps,
                    is_compute_bound: limits.is_compute_bound(entry.dtype, flops, bytes),
                    share: limits.least_seconds(entry.dtype, flops, bytes) / seconds,
                    entry,
                }
            })
            .collect();
        rows.sort_by(|a, b| b.seconds.total_cmp(&a.seconds));
        Profile { rows, step_seconds: step_seconds.iter().sum::<f64>() / num_steps }
    }

    /// A table; its last line is what no operation accounts for.
    pub(super) fn text(&self) -> String {
        let mut text = format!(
            "  {:<30} {:<4} {:<22} {:>6} {:>9} {:>6} {:>15} {:>8}\n",
            "operation", "type", "shape", "calls", "ms/step", "time", "rate", "of limit"
        );
        let of_step = |seconds: f64| 100.0 * seconds / self.step_seconds;
        for row in &self.rows {
            let (total, seconds) = (&row.entry.total, row.entry.total.time.as_secs_f64());
            let rate = match row.is_compute_bound {
                true => format!("{:.1} GFLOP/s", total.flops / seconds / 1e9),
                false => format!("{:.1} GB/s", total.bytes / seconds / 1e9),
            };
            let shape: Vec<String> = row.entry.shape.iter().map(usize::to_string).collect();
            text.push_str(&format!(
                "  {:<30} {:<4} {:<22} {:>6.0} {:>9.3} {:>4.1} % {rate:>15} {:>6.1} %\n",
                row.entry.op,
                row.entry.dtype,
                shape.join("x"),
                row.calls,
                row.seconds * 1e3,
                of_step(row.seconds),
                100.0 * row.share,
            ));
        }
        let rest = self.unattributed_seconds();
        text.push_str(&format!("  {:<65} {:>9.3} {:>4.1} %\n", "not attributed", rest * 1e3, of_step(rest)));
        text
    }

    /// The rows as objects.
    pub(super) fn json(&self) -> Value {
        let rate = |amount: f64, row: &Row| amount / row.entry.total.time.as_secs_f64() / 1e9;
        self.rows
            .iter()
            .map(|row| {
                let total = &row.entry.total;
                json!({
                    "op": row.entry.op,
                    "dtype": row.entry.dtype,
                    "shape": row.entry.shape,
                    "calls_per_step": row.calls,
                    "ms_per_step": row.seconds * 1e3,
                    "flops_per_step": total.flops * row.calls / total.num_calls as f64,
                    "bytes_per_step": total.bytes * row.calls / total.num_calls as f64,
                    "gflops": rate(total.flops, row),
                    "gb_per_s": rate(total.bytes, row),
                    "bound": if row.is_compute_bound { "compute" } else { "memory" },
                    "share_of_limit": row.share,
                })
            })
            .collect()
    }

    /// A mean step's time less that of its operations.
    pub(super) fn unattributed_seconds(&self) -> f64 {
        self.step_seconds - self.rows.iter().map(|row| row.seconds).sum::<f64>()
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use wattle_kernels::limits::Rate;
    use wattle_kernels::profile::Total;

    use super::*;

    fn entry(op: &'static str, millis: u64, flops: f64, bytes: f64) -> Entry {
        let total = Total { num_calls: 4, time: Duration::from_millis(millis), flops, bytes };
        Entry { op, dtype: "f32", shape: vec![2, 3], total }
    }

    #[test]
    fn rows_stand_by_time_with_their_share_of_the_nearer_limit_and_the_rest_last() {
        let rate = |all_threads| Rate { all_threads, one_thread: all_threads };
        let limits = Limits {
            num_threads: 1,
            f32_flops: rate(100e9),
            bf16_flops: rate(100e9),
            memory_read: rate(10e9),
            memory_copy: rate(10e9),
            l2_read: None,
            array_bytes: 0,
            last_level_cache_bytes: None,
        };
        let entries = vec![entry("pass", 10, 0.0, 0.05e9), entry("product", 20, 1e9, 0.01e9)];
        let profile = Profile::new(entries, &[0.018, 0.022], &limits);
        let [product, pass] = &profile.rows[..] else { panic!("{profile:?}") };
        assert_eq!((product.entry.op, product.is_compute_bound, product.calls), ("product", true, 2.0));
        // 10^9 FLOPs at 10^11 a second are 10 of its 20 ms; 5·10^7 bytes at 10^10 a second 5 of 10.
        assert!((product.share - 0.5).abs() < 1e-9 && (pass.share - 0.5).abs() < 1e-9);
        assert!(!pass.is_compute_bound);
        assert!((profile.unattributed_seconds() - 0.005).abs() < 1e-9);
        let text = profile.text();
        let lines: Vec<&str> = text.lines().collect();
        assert!(lines[1].contains("50.0 GFLOP/s") && lines[1].contains("2x3"), "{text}");
        assert!(lines[2].contains("5.0 GB/s"), "{text}");
        assert!(lines[3].contains("not attributed") && lines[3].contains("25.0 %"), "{text}");
    }
}
