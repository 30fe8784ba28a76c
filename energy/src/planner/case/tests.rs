//! Published runs come out as published, and what cannot be used is told at once.

use super::*;

fn parse(text: &str) -> Result<Case> {
    Case::parse(Path::new("case.toml"), text.as_bytes())
}

/// Megawatt-hours and tonnes of CO2e.
fn cost(text: &str) -> (f64, f64) {
    let estimate = parse(text).unwrap().inputs.estimate();
    (estimate.joules.unwrap().mid / 3.6e9, estimate.grams.unwrap().mid / 1e6)
}

fn assert_within(found: f64, published: f64, share: f64) {
    assert!((found / published - 1.0).abs() <= share, "{found}, published {published}");
}

fn problems(text: &str) -> Vec<String> {
    match parse(text) {
        Err(Error::Case { problems, .. }) => {
            problems.into_iter().map(|Problem { key, message }| format!("{key}: {message}")).collect()
        }
        other => panic!("{other:?}"),
    }
}

/// Origin: Patterson et al. 2021, table 4 (T5, GPT-3); Patterson et al. 2022, table 2 (GLaM).
#[test]
fn runs_of_known_time_come_out_as_published() {
    for (text, mwh, tonnes) in [
        ("chips = 512\nchip_watts = 310\nhours = 480\npue = 1.12\ngrams_per_kwh = 545", 85.7, 46.7),
        ("chips = 10000\nchip_watts = 330\nhours = 355.2\npue = 1.10\ngrams_per_kwh = 429", 1287.0, 552.1),
        ("chips = 1024\nchip_watts = 326\nhours = 1230\npue = 1.11\ngrams_per_kwh = 88", 456.0, 40.2),
    ] {
        let (found_mwh, found_tonnes) = cost(text);
        assert_within(found_mwh, mwh, 0.01);
        assert_within(found_tonnes, tonnes, 0.02);
    }
}

/// Origin: the Llama 2 paper, table 2, gives 1,720,320 GPU-hours of 400 W and 291.42 t for the 70B model; the PUE and
/// the intensity that make it so are those of its reckoning.
#[test]
fn gpu_hours_are_as_good_as_hours_and_chips() {
    let rest = "chip_watts = 400\npue = 1.1\ngrams_per_kwh = 385";
    let (_, tonnes) = cost(&format!("chip_hours = 1_720_320\n{rest}"));
    assert_within(tonnes, 291.42, 0.02);
    assert_eq!(
        cost(&format!("chip_hours = \"1.72032M\"\n{rest}")),
        cost(&format!("chips = 1024\nhours = 1680\n{rest}"))
    );
}

/// Origin: the same tables; peak and reached share of the peak from Patterson et al. 2021. PUE and intensity of each
/// run are those of its row above.
#[test]
fn runs_planned_from_first_principles_come_near_what_was_published() {
    for (text, mwh, tonnes, share) in [
        (
            "active_params = \"11B\"\ntokens = \"600B\"\npeak_tflops = 123\nefficiency = 0.37\nchips = 512\n\
             system_watts = 310\npue = 1.12\ngrams_per_kwh = 545",
            85.7,
            46.7,
            0.03,
        ),
        (
            "active_params = 175e9\ntokens = 300e9\npeak_tflops = 125\nefficiency = 0.197\nchips = 10000\n\
             system_watts = 330\npue = 1.10\ngrams_per_kwh = 429",
            1287.0,
            552.1,
            0.01,
        ),
    ] {
        let (found_mwh, found_tonnes) = cost(text);
        assert_within(found_mwh, mwh, share);
        assert_within(found_tonnes, tonnes, share);
    }
}

#[test]
fn all_parameters_of_a_mixture_of_experts_cost_nothing() {
    // GLaM: 96.6e9 of 1.2e12 parameters are active; its chips are TPUv4.
    let glam = "active_params = \"96.6B\"\ntokens = \"600B\"\npeak_tflops = 275\nefficiency = 0.28\nchips = 1024\n\
                system_watts = 326";
    let case = parse(&format!("{glam}\ntotal_params = \"1.2T\"")).unwrap();
    assert_eq!(case.inputs, parse(glam).unwrap().inputs);
    assert_eq!(case.inputs.work.flops(), Some(6.0 * 96.6e9 * 600e9));
}

#[test]
fn the_operations_of_a_run_of_known_time_are_told_when_they_can_be() {
    let text = "chips = 4\nchip_watts = 300\nhours = 10\nactive_params = \"1B\"\ntokens = \"2B\"";
    assert_eq!(parse(text).unwrap().inputs.work.flops(), Some(1.2e19));
}

#[test]
fn a_place_stands_for_its_yearly_intensity_and_the_world_for_none() {
    let rest = "chips = 1\nchip_watts = 1000\nhours = 1";
    let grams = |text: &str| parse(text).unwrap().inputs.estimate().grams.unwrap();
    assert!((grams(&format!("{rest}\nlocation = \"FRA\"")).mid - 41.0).abs() < 1e-9);
    let world = grams(rest);
    assert!((world.mid - 458.0).abs() < 1e-9);
    // A fifth of the power and a tenth of the intensity.
    assert!(
        (world.low / world.mid - 0.8 * 0.9).abs() < 1e-9 && (world.high / world.mid - 1.2 * 1.1).abs() < 1e-9
    );
}

#[test]
fn every_problem_is_told_at_once_with_the_nearest_key() {
    let found = problems("chip = 512\nchip_watts = \"much\"\nhours = -1\npue = 0.9\nlocation = \"FRX\"");
    assert_eq!(found.len(), 6, "{found:#?}");
    for words in [
        "chip: is no known key; the nearest known key is chips",
        "chip_watts: is \"much\", expected the mean power",
        "hours: is -1, expected above 0",
        "pue: is 0.9, expected 1.0 to 10.0",
        "chips: is missing",
        "location: is \"FRX\"",
    ] {
        assert!(found.iter().any(|problem| problem.starts_with(words)), "{words}: {found:#?}");
    }
}

#[test]
fn a_case_of_neither_form_is_shown_both() {
    let found = problems("name = \"x\"\nchips = 1");
    assert!(found[0].contains("chip_watts and hours; or active_params"), "{found:#?}");
    let found = problems("total_params = \"1T\"\ntokens = \"1T\"");
    let missing = ["active_params", "peak_tflops", "efficiency", "chips", "system_watts"];
    assert_eq!(found.len(), missing.len(), "{found:#?}");
    assert!(
        missing.iter().zip(&found).all(|(key, problem)| problem.starts_with(&format!("{key}: is missing")))
    );
    assert!(found[0].contains("never all of a mixture of experts"));
}

#[test]
fn keys_that_contradict_each_other_are_refused() {
    let timed = "chips = 1\nchip_watts = 1\nhours = 1\ngrams_per_kwh = 1";
    for (extra, words) in [
        ("system_watts = 1", "system_watts: contradicts chip_watts"),
        ("efficiency = 0.5", "efficiency: contradicts hours"),
        ("chip_hours = 1", "chip_hours: contradicts hours"),
        ("location = \"FRA\"", "location: contradicts grams_per_kwh"),
        ("active_params = 2\ntotal_params = 1", "active_params: is 2.000e0, expected at most total_params"),
    ] {
        let found = problems(&format!("{timed}\n{extra}"));
        assert!(found.len() == 1 && found[0].starts_with(words), "{found:#?}");
    }
}

#[test]
fn numbers_that_are_none_are_refused() {
    let rest = "chips = 1\nchip_watts = 1";
    for value in ["nan", "inf", "0", "-0.0", "1e16", "true", "[1]", "\"12X\"", "\"\"", "1979-05-27"] {
        let found = problems(&format!("{rest}\nhours = {value}"));
        assert!(found.len() == 1 && found[0].starts_with("hours: is "), "{value}: {found:#?}");
    }
    let found = problems(
        "active_params = 1\ntokens = 1\npeak_tflops = 1\nchips = 1\nsystem_watts = 1\nefficiency = 37",
    );
    assert_eq!(found, ["efficiency: is 37, expected a share above 0 and at most 1"]);
}

#[test]
fn what_is_no_toml_is_told_with_its_line() {
    let found = problems("chips = 1\nhours = = 2\n");
    assert!(found.len() == 1 && found[0].starts_with("line 2: is no TOML"), "{found:#?}");
    let error = Case::parse(Path::new("a.toml"), b"\xff").unwrap_err().to_string();
    assert_eq!(error, "a.toml: 1 problem\n  is not UTF-8 text");
}
