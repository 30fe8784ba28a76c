//! Thermal design power of common processors, from which modelled energy is computed.
//!
//! Source: the makers' specification pages (ark.intel.com, amd.com): nominal TDP or processor base power, and
//! hardware threads, of one socket.

use crate::units::Watts;

/// Share of the TDP drawn at a utilisation, between measured points of server processors (Teads 2021, as used by
/// CodeCarbon): (0, 0.12) (0.10, 0.32) (0.50, 0.75) (1, 1.02), straight lines between.
pub fn power_fraction(utilisation: f64) -> f64 {
    const CURVE: [(f64, f64); 4] = [(0.0, 0.12), (0.10, 0.32), (0.50, 0.75), (1.0, 1.02)];
    let u = utilisation.clamp(0.0, 1.0);
    for pair in CURVE.windows(2) {
        let ((u0, f0), (u1, f1)) = (pair[0], pair[1]);
        if u <= u1 {
            return f0 + (f1 - f0) * (u - u0) / (u1 - u0);
        }
    }
    CURVE[3].1
}

/// The draw of one hardware thread at full TDP when the processor is unknown (many clouds hide its name): the
/// median of the server entries of the table.
pub const DEFAULT_WATTS_PER_THREAD: Watts = Watts(3.5);

/// TDP of one hardware thread of the processor called `model_name` (`/proc/cpuinfo`); `None` when it is not in the
/// table.
pub fn watts_per_thread(model_name: &str) -> Option<Watts> {
    TABLE
        .iter()
        .find(|(name, _, _)| contains_word(model_name, name))
        .map(|&(_, tdp_watts, threads)| Watts(tdp_watts / threads))
}

/// True when `name` stands in `text` and does not go on: "Gold 6248" is not in "Gold 6248R".
fn contains_word(text: &str, name: &str) -> bool {
    text.match_indices(name)
        .any(|(start, _)| !text[start + name.len()..].starts_with(|next: char| next.is_ascii_alphanumeric()))
}

/// (part of the model name, TDP in watts, hardware threads), servers first.
#[rustfmt::skip]
const TABLE: &[(&str, f64, f64)] = &[
    ("Platinum 8592", 350.0, 128.0), ("Platinum 8490H", 350.0, 120.0), ("Platinum 8480", 350.0, 112.0),
    ("Platinum 8468", 350.0, 96.0), ("Platinum 8380", 270.0, 80.0), ("Platinum 8358", 250.0, 64.0),
    ("Platinum 8280", 205.0, 56.0), ("Platinum 8180", 205.0, 56.0), ("Gold 6448Y", 225.0, 64.0),
    ("Gold 6348", 235.0, 56.0), ("Gold 6338", 205.0, 64.0), ("Gold 6248R", 205.0, 48.0),
    ("Gold 6248", 150.0, 40.0), ("Gold 6230", 125.0, 40.0), ("Gold 6148", 150.0, 40.0),
    ("Gold 6130", 125.0, 32.0), ("Silver 4310", 120.0, 24.0), ("Silver 4210", 85.0, 20.0),
    ("E5-2699 v4", 145.0, 44.0), ("E5-2690 v4", 135.0, 28.0), ("E5-2680 v4", 120.0, 28.0),
    ("E5-2680 v3", 120.0, 24.0), ("E5-2670 v3", 120.0, 24.0),
    ("EPYC 9965", 500.0, 384.0), ("EPYC 9755", 500.0, 256.0), ("EPYC 9754", 360.0, 256.0),
    ("EPYC 9654", 360.0, 192.0), ("EPYC 9554", 360.0, 128.0), ("EPYC 9454", 290.0, 96.0),
    ("EPYC 9354", 280.0, 64.0), ("EPYC 7763", 280.0, 128.0), ("EPYC 7742", 225.0, 128.0),
    ("EPYC 7713", 225.0, 128.0), ("EPYC 7543", 225.0, 64.0), ("EPYC 7502", 180.0, 64.0),
    ("EPYC 7402", 180.0, 48.0), ("EPYC 7302", 155.0, 32.0), ("EPYC 7551", 180.0, 64.0),
    ("Threadripper 7980X", 350.0, 128.0), ("Threadripper PRO 5995WX", 280.0, 128.0),
    ("Threadripper 3990X", 280.0, 128.0), ("Threadripper 3970X", 280.0, 64.0),
    ("Ryzen 9 9950X", 170.0, 32.0), ("Ryzen 9 7950X", 170.0, 32.0), ("Ryzen 7 7700X", 105.0, 16.0),
    ("Ryzen 5 7600X", 105.0, 12.0), ("Ryzen 9 5950X", 105.0, 32.0), ("Ryzen 9 5900X", 105.0, 24.0),
    ("Ryzen 7 5800X", 105.0, 16.0), ("Ryzen 5 5600X", 65.0, 12.0), ("Ryzen 7 5800H", 45.0, 16.0),
    ("i9-14900K", 125.0, 32.0), ("i9-13900K", 125.0, 32.0), ("i7-13700K", 125.0, 24.0),
    ("i5-13600K", 125.0, 20.0), ("i9-12900K", 125.0, 24.0), ("i7-12700K", 125.0, 20.0),
    ("i5-12600K", 125.0, 16.0), ("i7-12700H", 45.0, 20.0), ("i7-1260P", 28.0, 16.0),
    ("i7-11800H", 45.0, 16.0), ("i7-1185G7", 28.0, 8.0), ("i7-1165G7", 28.0, 8.0),
    ("i5-1135G7", 28.0, 8.0), ("i9-10900K", 125.0, 20.0), ("i7-10700K", 125.0, 16.0),
    ("i7-10750H", 45.0, 12.0), ("i9-9900K", 95.0, 16.0), ("i7-8700K", 95.0, 12.0),
    ("i7-8550U", 15.0, 8.0), ("i5-8250U", 15.0, 8.0), ("i7-7700K", 91.0, 8.0), ("i7-6700K", 91.0, 8.0),
];

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_power_curve_passes_through_its_points_and_is_straight_between() {
        for (u, expect) in
            [(0.0, 0.12), (0.05, 0.22), (0.10, 0.32), (0.30, 0.535), (0.50, 0.75), (0.75, 0.885), (1.0, 1.02)]
        {
            assert!((power_fraction(u) - expect).abs() < 1e-12, "f({u}) = {}", power_fraction(u));
        }
    }

    #[test]
    fn a_processor_is_found_by_its_whole_number() {
        let found = |name: &str| watts_per_thread(name).map(|watts| watts.0);
        assert_eq!(found("Intel(R) Xeon(R) Platinum 8480+"), Some(350.0 / 112.0));
        assert_eq!(found("Intel(R) Xeon(R) Gold 6248R CPU @ 3.00GHz"), Some(205.0 / 48.0));
        assert_eq!(found("Intel(R) Xeon(R) Gold 6248 CPU @ 2.50GHz"), Some(150.0 / 40.0));
        assert_eq!(found("AMD EPYC 7763 64-Core Processor"), Some(280.0 / 128.0));
        assert_eq!(found("Intel(R) Xeon(R) Processor"), None);
    }

    #[test]
    fn the_default_is_the_median_of_the_servers() {
        let mut servers: Vec<f64> = TABLE
            .iter()
            .filter(|(name, _, _)| {
                !["Ryzen", "i5-", "i7-", "i9-", "Threadripper"].iter().any(|c| name.starts_with(c))
            })
            .map(|(_, tdp_watts, threads)| tdp_watts / threads)
            .collect();
        servers.sort_by(f64::total_cmp);
        let median = servers[servers.len() / 2];
        assert!((median - DEFAULT_WATTS_PER_THREAD.0).abs() < 0.1, "median {median}");
    }
}
