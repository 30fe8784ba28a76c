//! What a management controller says, in the forms that are understood.
//!
//! - a number of watts, with `W` or `Watts` or nothing after it;
//! - `ipmitool dcmi power reading`: the line `Instantaneous power reading: 220 Watts`, in the state `activated`;
//! - FreeIPMI `ipmi-dcmi --get-system-power-statistics`: the line `Current Power : 220 Watts`;
//! - Redfish `Chassis/.../Power`: JSON with one `PowerConsumedWatts`, at the top or in `PowerControl`;
//! - Redfish `Chassis/.../EnvironmentMetrics`: JSON with `PowerWatts.Reading`;
//! - a power file of hwmon, known by its name: a whole number of microwatts.
//!
//! Anything else, several numbers where one is expected, and a power of zero are refused: a machine that answers
//! draws something.
//!
//! Sources: IPMI DCMI 1.5, "Get Power Reading"; DMTF Redfish schemas Power and EnvironmentMetrics; Linux
//! `Documentation/ABI/testing/sysfs-class-hwmon`.

use std::path::Path;

use serde_json::Value;

use super::NODE_MAX;
use crate::units::Watts;

/// Power in any of the forms but hwmon's.
pub(super) fn parse(text: &str) -> Result<Watts, String> {
    let text = text.trim();
    if text.starts_with('{') {
        let value: Value = serde_json::from_str(text).map_err(|error| format!("not JSON: {error}"))?;
        return of_redfish(&value);
    }
    if let Some(line) = the_line(text, "Instantaneous power reading")? {
        return match the_line(text, "Power reading state is")? {
            Some("activated") => watts(line, true),
            state => Err(format!(
                "the controller does not measure: power reading state is {}; activate it with \
                 `ipmitool dcmi power activate`",
                state.unwrap_or("missing")
            )),
        };
    }
    match the_line(text, "Current Power")? {
        Some(line) => watts(line, true),
        None => watts(text, false),
    }
}

/// True for the names that hwmon gives to power.
pub(super) fn is_hwmon_power(path: &Path) -> bool {
    let name = path.file_name().and_then(|name| name.to_str()).unwrap_or_default();
    let number = name
        .strip_prefix("power")
        .and_then(|rest| rest.strip_suffix("_input").or_else(|| rest.strip_suffix("_average")));
    number.is_some_and(|number| number.parse::<u32>().is_ok())
}

/// Power in microwatts.
pub(super) fn parse_microwatts(text: &str) -> Result<Watts, String> {
    let number: Result<u64, _> = text.trim().parse();
    let number =
        number.map_err(|_| format!("expected a whole number of microwatts, got {:?}", shorten(text)))?;
    plausible(number as f64 / 1e6)
}

/// What follows the label and a colon, where one line begins with the label.
fn the_line<'a>(text: &'a str, label: &str) -> Result<Option<&'a str>, String> {
    let mut values = text
        .lines()
        .filter_map(|line| line.trim().strip_prefix(label)?.trim_start().strip_prefix(':').map(str::trim));
    match (values.next(), values.next()) {
        (_, Some(_)) => Err(format!("several lines of {label:?}, expected one")),
        (value, None) => Ok(value),
    }
}

fn watts(text: &str, with_unit: bool) -> Result<Watts, String> {
    let number = ["Watts", "W"].iter().find_map(|unit| text.strip_suffix(unit));
    let number = match number {
        Some(number) => Some(number.trim_end()),
        None => (!with_unit).then_some(text),
    };
    // Digits only: Rust would also take "inf", "nan" and "1e3".
    let is_plain = |number: &&str| number.chars().all(|c| c.is_ascii_digit() || c == '.');
    let number = number.filter(is_plain).and_then(|number| number.parse::<f64>().ok());
    plausible(number.ok_or_else(|| format!("expected a number of watts, got {:?}", shorten(text)))?)
}

fn of_redfish(value: &Value) -> Result<Watts, String> {
    let mut found = Vec::new();
    let controls = value.get("PowerControl").and_then(Value::as_array);
    found.extend(value.get("PowerConsumedWatts"));
    found.extend(controls.into_iter().flatten().filter_map(|control| control.get("PowerConsumedWatts")));
    found.extend(value.get("PowerWatts").and_then(|sensor| sensor.get("Reading")));
    match found[..] {
        [number] => match number.as_f64() {
            Some(number) => plausible(number),
            None => Err(format!("the controller does not know the power: it is {number}")),
        },
        [] => Err("expected PowerConsumedWatts or PowerWatts.Reading in the JSON, found neither".into()),
        _ => Err(format!("{} numbers of watts in the JSON, expected one", found.len())),
    }
}

fn plausible(watts: f64) -> Result<Watts, String> {
    if watts > 0.0 && watts <= NODE_MAX.0 {
        return Ok(Watts(watts));
    }
    Err(format!("{watts} W, expected above 0 and at most {} W", NODE_MAX.0))
}

fn shorten(text: &str) -> String {
    text.trim().chars().take(60).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    /// The form that ipmitool 1.8 prints.
    fn ipmitool(power: &str, state: &str) -> String {
        format!(
            "\n    Instantaneous power reading:                   {power}\n\
             \x20   Minimum during sampling period:                 18 Watts\n\
             \x20   Maximum during sampling period:                438 Watts\n\
             \x20   Average power reading over sample period:      212 Watts\n\
             \x20   IPMI timestamp:                           Thu Jun  2 09:12:11 2022\n\
             \x20   Sampling period:                          00000001 Seconds.\n\
             \x20   Power reading state is:                   {state}\n\n"
        )
    }

    #[test]
    fn every_form_is_understood() {
        for (text, expect) in [
            ("310", 310.0),
            (" 310.5 W\n", 310.5),
            ("310 Watts", 310.0),
            (&ipmitool("220 Watts", "activated"), 220.0),
            (
                "Current Power                        : 164 Watts\nMinimum Power over sampling duration : 2 watts\n",
                164.0,
            ),
            (r#"{"PowerConsumedWatts": 344}"#, 344.0),
            (
                r##"{"@odata.type": "#Power.v1_5_0.Power", "PowerControl": [{"PowerConsumedWatts": 344.5, "PowerCapacityWatts": 800}]}"##,
                344.5,
            ),
            (r#"{"PowerWatts": {"Reading": 374, "DataSourceUri": "x"}}"#, 374.0),
        ] {
            assert_eq!(parse(text), Ok(Watts(expect)), "{text}");
        }
    }

    #[test]
    fn what_is_not_one_plausible_power_is_refused() {
        for (text, expect) in [
            ("", "expected a number of watts"),
            ("0", "above 0"),
            ("-5", "expected a number"),
            ("nan", "expected a number"),
            ("inf W", "expected a number"),
            ("1e3", "expected a number"),
            ("310 kW", "expected a number"),
            ("2500000", "at most"),
            ("310\n320", "expected a number"),
            (&ipmitool("220", "activated"), "expected a number"),
            (&ipmitool("0 Watts", "activated"), "above 0"),
            (&ipmitool("220 Watts", "deactivated"), "ipmitool dcmi power activate"),
            (&ipmitool("220 Watts", "activated").repeat(2), "several lines"),
            ("{", "not JSON"),
            ("{}", "found neither"),
            (r#"{"PowerConsumedWatts": null}"#, "does not know"),
            (r#"{"PowerConsumedWatts": "344"}"#, "does not know"),
            (r#"{"PowerControl": [{"PowerConsumedWatts": 3}, {"PowerConsumedWatts": 4}]}"#, "2 numbers"),
        ] {
            let error = parse(text).unwrap_err();
            assert!(error.contains(expect), "{text:?}: {error}");
        }
    }

    #[test]
    fn microwatts_are_known_by_the_name_of_the_file() {
        for (name, expect) in [
            ("/sys/class/hwmon/hwmon3/power1_average", true),
            ("power2_input", true),
            ("power1_average_interval", false),
            ("power_input", false),
            ("power.json", false),
        ] {
            assert_eq!(is_hwmon_power(Path::new(name)), expect, "{name}");
        }
        assert_eq!(parse_microwatts("345000000\n"), Ok(Watts(345.0)));
        assert!(parse_microwatts("345.5").unwrap_err().contains("microwatts"));
    }

    proptest! {
        #[test]
        fn any_text_gives_a_plausible_power_or_an_error(text in "(\\PC|\n){0,200}") {
            if let Ok(watts) = parse(&text) {
                prop_assert!(watts.0 > 0.0 && watts.0 <= NODE_MAX.0);
            }
        }

        #[test]
        fn a_number_comes_back_as_it_was_written(watts in 1u32..100_000) {
            prop_assert_eq!(parse(&format!("{watts} W")), Ok(Watts(f64::from(watts))));
            prop_assert_eq!(parse(&ipmitool(&format!("{watts} Watts"), "activated")), Ok(Watts(f64::from(watts))));
        }
    }
}
