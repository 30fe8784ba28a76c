//! The text that Prometheus reads, in its own format 0.0.4 and in OpenMetrics 1.0.
//!
//! An encoder of our own, because the two clients in Rust give one format each: `prometheus-client` OpenMetrics
//! only, `prometheus` and `metrics-exporter-prometheus` 0.0.4 only, without exemplars. The formats differ in five
//! places, which are the five matches on [`Dialect`] below.
//!
//! Source: <https://prometheus.io/docs/instrumenting/exposition_formats> and
//! <https://prometheus.io/docs/specs/om/open_metrics_spec>.

use std::fmt::Write;

use super::catalogue::{Kind, Metric};
use super::histogram::{Exemplar, Histogram};

/// One of the two formats.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Dialect {
    /// Prometheus text, version 0.0.4.
    Text,
    /// OpenMetrics text, version 1.0.0.
    OpenMetrics,
}

/// What a scrape gets.
#[derive(Clone, Debug)]
pub(super) struct Exposition {
    /// For exemplars.
    pub(super) run_id: String,
    pub(super) families: Vec<Family>,
}

/// All series of a metric.
#[derive(Clone, Debug)]
pub(super) struct Family {
    pub(super) metric: &'static Metric,
    pub(super) samples: Samples,
}

/// The values of a metric.
#[derive(Clone, Debug)]
pub(super) enum Samples {
    Values(Vec<Sample>),
    Histogram(Histogram),
}

/// One value.
#[derive(Clone, Debug)]
pub(super) struct Sample {
    pub(super) labels: Vec<(&'static str, String)>,
    pub(super) value: Number,
}

/// A number, written without loss.
#[derive(Clone, Copy, Debug)]
pub(super) enum Number {
    Count(u64),
    /// Written as units, exactly.
    Millionths(u64),
    Real(f64),
}

/// Most characters that the labels of an exemplar may have in all.
const MAX_EXEMPLAR_CHARS: usize = 128;

impl Dialect {
    /// The HTTP header that names the format.
    pub(super) fn content_type(self) -> &'static str {
        match self {
            Dialect::Text => "text/plain; version=0.0.4; charset=utf-8",
            Dialect::OpenMetrics => "application/openmetrics-text; version=1.0.0; charset=utf-8",
        }
    }
}

impl Exposition {
    /// The whole text.
    pub(super) fn encode(&self, dialect: Dialect) -> String {
        let mut text = String::with_capacity(256 * self.families.len());
        for family in &self.families {
            header(&mut text, family.metric, dialect);
            let (name, suffix) = (family.metric.name, family.metric.suffix());
            match &family.samples {
                Samples::Values(samples) => {
                    for sample in samples {
                        line(&mut text, name, suffix, &sample.labels, sample.value);
                        text.push('\n');
                    }
                }
                Samples::Histogram(histogram) => self.histogram(&mut text, name, histogram, dialect),
            }
        }
        if dialect == Dialect::OpenMetrics {
            text.push_str("# EOF\n");
        }
        text
    }

    /// Leaves out whole metrics from the end until there are at most `max` series; gives the names of those.
    pub(super) fn limit(&mut self, max: usize) -> Vec<&'static str> {
        let mut left_out = Vec::new();
        while self.families.iter().map(Family::num_series).sum::<usize>() > max {
            left_out.extend(self.families.pop().map(|family| family.metric.name));
        }
        left_out
    }

    fn histogram(&self, text: &mut String, name: &str, histogram: &Histogram, dialect: Dialect) {
        let mut below = 0;
        let bounds = histogram.bounds.iter().copied().chain([f64::INFINITY]);
        for (bound, bucket) in bounds.zip(&histogram.buckets) {
            below += bucket.count;
            line(text, name, "_bucket", &[("le", real(bound))], Number::Count(below));
            if let (Dialect::OpenMetrics, Some(exemplar)) = (dialect, bucket.exemplar) {
                self.exemplar(text, exemplar);
            }
            text.push('\n');
        }
        line(text, name, "_sum", &[], Number::Real(histogram.sum));
        text.push('\n');
        line(text, name, "_count", &[], Number::Count(below));
        text.push('\n');
    }

    fn exemplar(&self, text: &mut String, exemplar: Exemplar) {
        let step = exemplar.step.to_string();
        let room = MAX_EXEMPLAR_CHARS - "run_id".len() - "step".len() - step.len();
        // The end of a long run id, because that is its start time.
        let skip = self.run_id.chars().count().saturating_sub(room);
        let run_id: String = self.run_id.chars().skip(skip).collect();
        text.push_str(" # ");
        labels(text, &[("run_id", run_id), ("step", step)]);
        // A String takes every write.
        let _ = write!(text, " {} {:.3}", real(exemplar.value), exemplar.unix_seconds);
    }
}

impl Family {
    fn num_series(&self) -> usize {
        match &self.samples {
            Samples::Values(samples) => samples.len(),
            Samples::Histogram(histogram) => histogram.buckets.len() + 2,
        }
    }
}

fn header(text: &mut String, metric: &Metric, dialect: Dialect) {
    let kind = match (metric.kind, dialect) {
        (Kind::Counter, _) => "counter",
        (Kind::Histogram, _) => "histogram",
        (Kind::Info, Dialect::OpenMetrics) => "info",
        (Kind::Gauge, _) | (Kind::Info, Dialect::Text) => "gauge",
    };
    // OpenMetrics describes the family, the older format the sample.
    let suffix = match dialect {
        Dialect::Text => metric.suffix(),
        Dialect::OpenMetrics => "",
    };
    let (name, help) = (metric.name, metric.help);
    let _ = writeln!(text, "# TYPE {name}{suffix} {kind}");
    if let (Dialect::OpenMetrics, Some(unit)) = (dialect, metric.unit) {
        let _ = writeln!(text, "# UNIT {name} {unit}");
    }
    let _ = writeln!(text, "# HELP {name}{suffix} {help}");
}

fn line(text: &mut String, name: &str, suffix: &str, pairs: &[(&str, String)], value: Number) {
    text.push_str(name);
    text.push_str(suffix);
    if !pairs.is_empty() {
        labels(text, pairs);
    }
    let _ = match value {
        Number::Count(count) => write!(text, " {count}"),
        Number::Millionths(n) => write!(text, " {}.{:06}", n / 1_000_000, n % 1_000_000),
        Number::Real(value) => write!(text, " {}", real(value)),
    };
}

fn labels(text: &mut String, pairs: &[(&str, String)]) {
    for (index, (name, value)) in pairs.iter().enumerate() {
        text.push_str(if index == 0 { "{" } else { "," });
        text.push_str(name);
        text.push_str("=\"");
        for c in value.chars() {
            match c {
                '\\' => text.push_str("\\\\"),
                '"' => text.push_str("\\\""),
                '\n' => text.push_str("\\n"),
                c => text.push(c),
            }
        }
        text.push('"');
    }
    text.push('}');
}

/// A number as both formats spell it; it reads back to the same bits.
fn real(value: f64) -> String {
    match value {
        f64::INFINITY => "+Inf".to_owned(),
        f64::NEG_INFINITY => "-Inf".to_owned(),
        value => format!("{value:?}"),
    }
}

#[cfg(test)]
mod tests {
    use super::super::catalogue;
    use super::*;

    fn exposition(run_id: &str) -> Exposition {
        let mut durations = Histogram::new(&[0.1, 1.0]);
        durations.observe(Exemplar { value: 0.5, step: 7, unix_seconds: 1_700_000_000.25 });
        let values = |metric, labels: &[(&'static str, &str)], value| Family {
            metric,
            samples: Samples::Values(vec![Sample {
                labels: labels.iter().map(|(name, value)| (*name, (*value).to_owned())).collect(),
                value,
            }]),
        };
        let families = vec![
            values(&catalogue::BUILD, &[("version", "0.1.0"), ("commit", "a\"b\\c\nd")], Number::Count(1)),
            values(&catalogue::ENERGY, &[("domain", "cpu")], Number::Millionths(9_007_199_254_740_993)),
            values(&catalogue::LOSS, &[], Number::Real(f64::NAN)),
            Family { metric: &catalogue::STEP_DURATION, samples: Samples::Histogram(durations) },
        ];
        Exposition { run_id: run_id.to_owned(), families }
    }

    #[test]
    fn the_text_format_is_as_its_document_says() {
        let expected = r#"# TYPE wattle_build_info gauge
# HELP wattle_build_info The program that trains.
wattle_build_info{version="0.1.0",commit="a\"b\\c\nd"} 1
# TYPE wattle_energy_joules_total counter
# HELP wattle_energy_joules_total Energy by what drew it and how it is known, set-up, evaluation and checkpoints included.
wattle_energy_joules_total{domain="cpu"} 9007199254.740993
# TYPE wattle_loss gauge
# HELP wattle_loss Training loss of the last step in nats per token, balance and z-loss included.
wattle_loss NaN
# TYPE wattle_step_duration_seconds histogram
# HELP wattle_step_duration_seconds Time of a step.
wattle_step_duration_seconds_bucket{le="0.1"} 0
wattle_step_duration_seconds_bucket{le="1.0"} 1
wattle_step_duration_seconds_bucket{le="+Inf"} 1
wattle_step_duration_seconds_sum 0.5
wattle_step_duration_seconds_count 1
"#;
        assert_eq!(exposition("run").encode(Dialect::Text), expected);
    }

    #[test]
    fn open_metrics_names_families_units_and_exemplars_and_ends_with_eof() {
        let expected = r#"# TYPE wattle_build info
# HELP wattle_build The program that trains.
wattle_build_info{version="0.1.0",commit="a\"b\\c\nd"} 1
# TYPE wattle_energy_joules counter
# UNIT wattle_energy_joules joules
# HELP wattle_energy_joules Energy by what drew it and how it is known, set-up, evaluation and checkpoints included.
wattle_energy_joules_total{domain="cpu"} 9007199254.740993
# TYPE wattle_loss gauge
# HELP wattle_loss Training loss of the last step in nats per token, balance and z-loss included.
wattle_loss NaN
# TYPE wattle_step_duration_seconds histogram
# UNIT wattle_step_duration_seconds seconds
# HELP wattle_step_duration_seconds Time of a step.
wattle_step_duration_seconds_bucket{le="0.1"} 0
wattle_step_duration_seconds_bucket{le="1.0"} 1 # {run_id="run",step="7"} 0.5 1700000000.250
wattle_step_duration_seconds_bucket{le="+Inf"} 1
wattle_step_duration_seconds_sum 0.5
wattle_step_duration_seconds_count 1
# EOF
"#;
        assert_eq!(exposition("run").encode(Dialect::OpenMetrics), expected);
    }

    #[test]
    fn an_exemplar_never_has_more_characters_than_allowed_and_keeps_the_end_of_its_run() {
        let text = exposition(&"é-20260101".repeat(40)).encode(Dialect::OpenMetrics);
        let set = text.split_once(" # {").unwrap().1.split_once('}').unwrap().0;
        let chars = set.chars().filter(|c| !"=\",".contains(*c)).count();
        assert_eq!(chars, MAX_EXEMPLAR_CHARS);
        assert!(set.contains("-20260101\",step=\"7\""), "{set}");
    }

    #[test]
    fn numbers_read_back_to_the_same_bits() {
        for value in [0.1, 1.0 / 3.0, 1e-300, 1.7e308, 5e-324, -0.0, 123_456_789.123] {
            assert_eq!(real(value).parse::<f64>().unwrap().to_bits(), value.to_bits());
        }
        assert_eq!((real(f64::INFINITY), real(f64::NEG_INFINITY)), ("+Inf".to_owned(), "-Inf".to_owned()));
    }

    #[test]
    fn beyond_the_limit_whole_metrics_are_left_out_from_the_end() {
        let mut exposition = exposition("run");
        assert!(exposition.limit(8).is_empty());
        assert_eq!(exposition.limit(7), ["wattle_step_duration_seconds"]);
        assert_eq!(exposition.families.len(), 3);
    }
}
