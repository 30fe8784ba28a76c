//! A histogram whose buckets remember the last observation that fell into them.

/// Counts of observations by size.
#[derive(Clone, Debug)]
pub(super) struct Histogram {
    /// Upper bounds of all buckets but the last, which takes the rest; rising.
    pub(super) bounds: &'static [f64],
    /// One more than bounds; not cumulative.
    pub(super) buckets: Vec<Bucket>,
    pub(super) sum: f64,
}

/// One bucket.
#[derive(Clone, Debug, Default)]
pub(super) struct Bucket {
    pub(super) count: u64,
    pub(super) exemplar: Option<Exemplar>,
}

/// An observation to look at more closely.
#[derive(Clone, Copy, Debug)]
pub(super) struct Exemplar {
    pub(super) value: f64,
    pub(super) step: u64,
    /// Since 1970.
    pub(super) unix_seconds: f64,
}

impl Histogram {
    pub(super) fn new(bounds: &'static [f64]) -> Self {
        Histogram { bounds, buckets: vec![Bucket::default(); bounds.len() + 1], sum: 0.0 }
    }

    /// Adds an observation, never negative.
    pub(super) fn observe(&mut self, exemplar: Exemplar) {
        let index = self.bounds.partition_point(|bound| *bound < exemplar.value);
        let bucket = &mut self.buckets[index];
        bucket.count += 1;
        bucket.exemplar = Some(exemplar);
        self.sum += exemplar.value;
    }

    pub(super) fn count(&self) -> u64 {
        self.buckets.iter().map(|bucket| bucket.count).sum()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_bound_belongs_to_the_bucket_below_it_and_the_last_bucket_takes_the_rest() {
        let mut histogram = Histogram::new(&[1.0, 2.0]);
        for (step, value) in [(1, 0.0), (2, 1.0), (3, 1.5), (4, 2.0), (5, 9.0)] {
            histogram.observe(Exemplar { value, step, unix_seconds: 0.0 });
        }
        let counts: Vec<_> = histogram.buckets.iter().map(|bucket| bucket.count).collect();
        assert_eq!(counts, [2, 2, 1]);
        let last: Vec<_> = histogram.buckets.iter().map(|bucket| bucket.exemplar.unwrap().step).collect();
        assert_eq!(last, [2, 4, 5]);
        assert_eq!((histogram.count(), histogram.sum), (5, 13.5));
    }
}
