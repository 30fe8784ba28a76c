//! Numbers for people: thousands separated, energy and carbon in the unit that reads best.

use std::time::Duration;

/// A count with thousands separated by commas.
pub fn count(n: u64) -> String {
    let digits = n.to_string();
    let mut out = String::with_capacity(digits.len() + digits.len() / 3);
    for (i, digit) in digits.chars().enumerate() {
        if i > 0 && (digits.len() - i).is_multiple_of(3) {
            out.push(',');
        }
        out.push(digit);
    }
    out
}

/// Joules as J, kJ, MJ or kWh.
pub fn joules(joules: f64) -> String {
    match joules {
        j if j < 1e3 => format!("{j:.1} J"),
        j if j < 1e6 => format!("{:.2} kJ", j / 1e3),
        j if j < 3.6e6 => format!("{:.2} MJ", j / 1e6),
        j => format!("{:.3} kWh", j / 3.6e6),
    }
}

/// Grams of CO2 equivalent as mg, g, kg or t.
pub fn grams_co2e(grams: f64) -> String {
    match grams {
        g if g < 0.1 => format!("{:.1} mgCO2e", g * 1e3),
        g if g < 1e3 => format!("{g:.2} gCO2e"),
        g if g < 1e6 => format!("{:.3} kgCO2e", g / 1e3),
        g => format!("{:.3} tCO2e", g / 1e6),
    }
}

/// A duration as h:mm:ss or m:ss.
pub fn duration(duration: Duration) -> String {
    let seconds = duration.as_secs_f64().round() as u64;
    let (hours, minutes, seconds) = (seconds / 3600, seconds / 60 % 60, seconds % 60);
    match hours {
        0 => format!("{minutes}:{seconds:02}"),
        _ => format!("{hours}:{minutes:02}:{seconds:02}"),
    }
}

/// Bytes as KiB, MiB or GiB.
pub fn bytes(bytes: usize) -> String {
    match bytes as f64 {
        b if b < 1024.0 * 1024.0 => format!("{:.1} KiB", b / 1024.0),
        b if b < 1024.0 * 1024.0 * 1024.0 => format!("{:.1} MiB", b / 1024.0 / 1024.0),
        b => format!("{:.2} GiB", b / 1024.0 / 1024.0 / 1024.0),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_read_well() {
        assert_eq!(count(0), "0");
        assert_eq!(count(999), "999");
        assert_eq!(count(1_234_567), "1,234,567");
        assert_eq!(joules(12.34), "12.3 J");
        assert_eq!(joules(5_400_000.0), "1.500 kWh");
        assert_eq!(grams_co2e(0.0421), "42.1 mgCO2e");
        assert_eq!(grams_co2e(1500.0), "1.500 kgCO2e");
        assert_eq!(duration(Duration::from_secs(59)), "0:59");
        assert_eq!(duration(Duration::from_secs(3_725)), "1:02:05");
        assert_eq!(bytes(3 << 20), "3.0 MiB");
    }
}
