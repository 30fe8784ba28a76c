//! Numbers as people read them, in every format for people.

use jiff::Timestamp;

use super::{Account, WeekAccount};
use crate::units::{Joules, MicroJoules, Seconds};

impl Account {
    /// Grams for each kilowatt-hour of the building, over all its energy.
    pub fn mean_intensity(&self) -> Option<f64> {
        let kilowatt_hours = self.facility.kilowatt_hours();
        self.emissions().filter(|_| kilowatt_hours > 0.0).map(|grams| grams.0 / kilowatt_hours)
    }

    /// A part of its energy, in percent.
    pub(super) fn share_percent(&self, part: MicroJoules) -> f64 {
        if self.energy.0 == 0 { 0.0 } else { 100.0 * part.0 as f64 / self.energy.0 as f64 }
    }
}

impl WeekAccount {
    /// Its name in ISO 8601: `2026-W48`.
    pub fn name(&self) -> String {
        let week = self.monday.iso_week_date();
        format!("{}-W{:02}", week.year(), week.week())
    }
}

/// Kilowatt-hours with three digits, or as a power of ten where they are few.
pub(super) fn kilowatt_hours(energy: Joules) -> String {
    let kilowatt_hours = energy.kilowatt_hours();
    if kilowatt_hours < 0.001 { format!("{kilowatt_hours:.2e}") } else { format!("{kilowatt_hours:.3}") }
}

/// `1 d 02:03:04`, or `12.3 s` below a minute.
pub(super) fn duration(time: Seconds) -> String {
    if time.0 < 60.0 {
        return format!("{:.2} s", time.0);
    }
    let whole = time.0.round() as u64;
    let (days, hours, minutes, seconds) = (whole / 86_400, whole / 3600 % 24, whole / 60 % 60, whole % 60);
    let clock = format!("{hours:02}:{minutes:02}:{seconds:02}");
    if days > 0 { format!("{days} d {clock}") } else { clock }
}

/// Thousands apart: `1 234 567`.
pub(super) fn grouped(number: u64) -> String {
    let digits = number.to_string();
    let mut out = String::new();
    for (at, digit) in digits.chars().enumerate() {
        if at > 0 && (digits.len() - at).is_multiple_of(3) {
            out.push(' ');
        }
        out.push(digit);
    }
    out
}

/// A time in RFC 3339, to the second.
pub(super) fn to_second(time: Timestamp) -> String {
    time.strftime("%Y-%m-%dT%H:%M:%SZ").to_string()
}

/// `1 run`, `2 runs`.
pub(super) fn count_of(count: u64, one: &str) -> String {
    format!("{} {one}{}", grouped(count), if count == 1 { "" } else { "s" })
}

/// Small amounts of grams down to the nanogram, which the type's own display leaves at zero.
pub(super) fn small_grams(grams: f64) -> String {
    match grams.abs() {
        x if x > 0.0 && x < 1e-6 => format!("{:.3} ng", grams * 1e9),
        _ => crate::Grams(grams).to_string(),
    }
}

/// Liters, or milliliters where they are few.
pub(super) fn liters(liters: f64) -> String {
    if liters < 1.0 { format!("{:.3} mL", liters * 1000.0) } else { format!("{liters:.2} L") }
}
