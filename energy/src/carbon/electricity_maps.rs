//! Electricity Maps, API v3: hourly life-cycle average of what a zone consumes, in gCO2eq/kWh.
//!
//! Two traps of this API. A zone it does not know is answered with the zone of the caller's address, unless
//! `shouldUseFallbackCallerLookup=false` says otherwise; the answered zone is compared all the same. And a
//! `carbonIntensity` of null is no value, not zero.

use std::time::Duration;

use jiff::Timestamp;
use serde::Deserialize;

use super::http::Client;
use super::provider::{
    Answer, Failure, FailureKind, LOOK_BACK, Moment, Provider, Value, parse_time, period, pieces,
};
use super::{Basis, GridIntensity, Period};

const BASE: &str = "https://api.electricitymaps.com/v3";
const SOURCE: &str = "Electricity Maps";
const HOUR: Duration = Duration::from_secs(3600);

/// The longest range of hourly values in one answer is ten days.
const RANGE: Duration = Duration::from_secs(9 * 24 * 3600);

const ON_REFUSAL: &str =
    "check that ELECTRICITY_MAPS_TOKEN is a valid token whose plan covers the zone in carbon.providers.zone";

/// One zone of Electricity Maps.
pub(super) struct ElectricityMaps {
    client: Client,
    zone: String,
    token: String,
    /// False once the plan has refused the last day's values.
    has_history: bool,
}

impl ElectricityMaps {
    pub(super) fn new(zone: &str, url: Option<&str>, token: String, timeout: Duration) -> Self {
        let whom = format!("Electricity Maps, zone {zone}");
        let mut client = Client::new(whom, url.unwrap_or(BASE), ON_REFUSAL, timeout);
        client.hide(&token);
        ElectricityMaps { client, zone: zone.into(), token, has_history: true }
    }

    fn get(&self, endpoint: &str, range: &[(&str, &str)], now: Timestamp) -> Result<Reply, Failure> {
        let mut query = vec![
            ("zone", self.zone.as_str()),
            ("emissionFactorType", "lifecycle"),
            ("temporalGranularity", "hourly"),
            ("shouldUseFallbackCallerLookup", "false"),
        ];
        query.extend_from_slice(range);
        let header = Some(("auth-token", self.token.as_str()));
        let reply: Reply = self.client.get(&format!("/carbon-intensity/{endpoint}"), &query, header, now)?;
        match reply.zone == self.zone {
            true => Ok(reply),
            false => Err(Failure::new(
                &self.client.whom,
                FailureKind::Unusable,
                format!("answered for the zone {:?}, which was not asked", reply.zone),
                "set carbon.providers.zone to a zone that the provider lists under /zones",
            )),
        }
    }

    /// The hours of an answer that have a value.
    fn values(&self, hours: Vec<Hour>) -> Result<Vec<GridIntensity>, Failure> {
        hours.into_iter().filter_map(|hour| self.value(hour).transpose()).collect()
    }

    fn value(&self, hour: Hour) -> Result<Option<GridIntensity>, Failure> {
        let Some(grams_per_kwh) = hour.carbon_intensity else { return Ok(None) };
        let factors = hour.emission_factor_type.as_deref().unwrap_or("lifecycle");
        if factors != "lifecycle" {
            return Err(self.client.garbled(format!("answered with {factors} factors, asked for lifecycle")));
        }
        let from = parse_time(&hour.datetime);
        let period = from.and_then(|from| period(from, HOUR));
        let period = period.ok_or_else(|| {
            self.client.garbled(format!("answered with the time {:?}, expected RFC 3339", hour.datetime))
        })?;
        let value = Value {
            grams_per_kwh,
            zone: &self.zone,
            basis: Basis::LifecycleAverage,
            source: SOURCE,
            period,
            estimated: hour.is_estimated,
        };
        value.check(&self.client.whom).map(Some)
    }

    fn last_day(&self, now: Timestamp) -> Result<Vec<GridIntensity>, Failure> {
        let reply = self.get("history", &[], now)?;
        let hours = reply.history.ok_or_else(|| self.client.garbled("answered without \"history\""))?;
        self.values(hours)
    }
}

impl Provider for ElectricityMaps {
    fn whom(&self) -> &str {
        &self.client.whom
    }

    fn delay(&self) -> Duration {
        Duration::from_secs(120)
    }

    fn recent(&mut self, now: Moment) -> Result<Answer, Failure> {
        let reply = self.get("latest", &[], now.wall)?;
        let latest = reply
            .latest
            .ok_or_else(|| self.client.garbled("answered without \"carbonIntensity\" and \"datetime\""))?;
        let hour = latest.datetime.clone();
        let mut answer = Answer::default();
        match self.has_history.then(|| self.last_day(now.wall)) {
            Some(Ok(hours)) => answer.values = hours,
            Some(Err(failure)) => match failure.kind {
                FailureKind::Unauthorised | FailureKind::Unusable => {
                    answer.note = Some(format!(
                        "{} for carbon-intensity/history: {}; estimates of this run are not corrected as it goes on",
                        failure.whom, failure.message
                    ));
                }
                FailureKind::Busy(wait) => answer.busy = Some(wait),
                // The next request asks for the same day again.
                FailureKind::Passing => {}
            },
            None => {}
        }
        answer.values.extend(self.value(latest)?);
        if answer.values.is_empty() {
            return Err(Failure::new(
                &self.client.whom,
                FailureKind::Passing,
                format!("has no value for {hour}: carbonIntensity is null"),
                "it is asked again later",
            ));
        }
        self.has_history &= answer.note.is_none();
        Ok(answer)
    }

    fn history(&mut self, span: Period, now: Moment) -> Result<Vec<GridIntensity>, Failure> {
        // Every plan has the last day; ranges are sold apart.
        let day_ago = now.wall.checked_sub(LOOK_BACK - HOUR).unwrap_or(span.until);
        if span.from >= day_ago {
            return self.last_day(now.wall);
        }
        let mut values = Vec::new();
        for piece in pieces(span, RANGE) {
            let (start, end) = (piece.from.to_string(), piece.until.to_string());
            let reply = self.get("past-range", &[("start", &start), ("end", &end)], now.wall)?;
            let hours = reply.data.ok_or_else(|| self.client.garbled("answered without \"data\""))?;
            values.extend(self.values(hours)?);
        }
        Ok(values)
    }
}

/// Any of the answers: the hour itself, `history` or `data`.
#[derive(Deserialize)]
struct Reply {
    zone: String,
    #[serde(flatten)]
    latest: Option<Hour>,
    history: Option<Vec<Hour>>,
    data: Option<Vec<Hour>>,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Hour {
    carbon_intensity: Option<f64>,
    datetime: String,
    emission_factor_type: Option<String>,
    /// What is not said to be measured counts as an estimate.
    #[serde(default = "unless_said")]
    is_estimated: bool,
}

fn unless_said() -> bool {
    true
}

#[cfg(test)]
mod tests {
    use super::super::replay_server::{Reply, Server};
    use super::*;
    use crate::carbon::Accounting;

    fn now() -> Moment {
        Moment { monotonic: Duration::ZERO, wall: "2019-05-21T01:30:00Z".parse().unwrap() }
    }

    fn provider(server: &Server) -> ElectricityMaps {
        ElectricityMaps::new("DE", Some(&server.url), "s3cret".into(), Duration::from_secs(30))
    }

    fn hour(at: &str, value: &str, estimated: bool) -> String {
        format!(
            r#"{{"zone":"DE","carbonIntensity":{value},"datetime":"2019-05-21T{at}:00:00.000Z","updatedAt":"2019-05-21T00:40:00.000Z",
            "createdAt":"2019-05-18T00:35:00.000Z","emissionFactorType":"lifecycle","isEstimated":{estimated},"estimationMethod":null}}"#
        )
    }

    fn history(hours: &[String]) -> Reply {
        Reply::json(&format!(r#"{{"zone":"DE","history":[{}]}}"#, hours.join(",")))
    }

    fn failure(replies: impl IntoIterator<Item = Reply>) -> Failure {
        provider(&Server::start(replies)).recent(now()).unwrap_err()
    }

    #[test]
    fn the_latest_hour_and_the_day_before_are_told() {
        let day = history(&[hour("00", "310", false), hour("01", "null", true)]);
        let server = Server::start([Reply::json(&hour("01", "322", true)), day]);
        let answer = provider(&server).recent(now()).unwrap();
        let told: Vec<(f64, bool)> =
            answer.values.iter().map(|value| (value.grams_per_kwh.0, value.estimated)).collect();
        assert_eq!(told, [(310.0, false), (322.0, true)]);
        let value = &answer.values[1];
        let period = value.period.unwrap();
        assert_eq!(period.from.to_string(), "2019-05-21T01:00:00Z");
        assert_eq!(period.until.to_string(), "2019-05-21T02:00:00Z");
        assert_eq!((value.zone.as_str(), value.basis), ("DE", Basis::LifecycleAverage));
        assert_eq!((value.accounting, value.year), (Accounting::Location, None));
        assert_eq!(answer.note, None);
    }

    #[test]
    fn the_request_carries_the_token_and_forbids_the_callers_own_zone() {
        let server = Server::start([Reply::json(&hour("01", "322", false)), history(&[])]);
        provider(&server).recent(now()).unwrap();
        let asked = server.asked();
        assert!(asked[0].starts_with("GET /carbon-intensity/latest?zone=DE&"), "{}", asked[0]);
        assert!(asked[0].contains("emissionFactorType=lifecycle"));
        for head in asked {
            assert!(head.contains("shouldUseFallbackCallerLookup=false"), "{head}");
            assert!(head.to_lowercase().contains("auth-token: s3cret"), "{head}");
        }
    }

    #[test]
    fn a_zone_that_was_not_asked_is_an_error() {
        let other = hour("01", "40", false).replace(r#""zone":"DE""#, r#""zone":"FR""#);
        let failure = failure([Reply::json(&other)]);
        assert_eq!(failure.kind, FailureKind::Unusable);
        let message = failure.to_string();
        assert!(
            message.starts_with("Electricity Maps, zone DE: ") && message.contains("\"FR\""),
            "{message}"
        );
    }

    #[test]
    fn null_is_no_value_and_never_zero() {
        let null = || Reply::json(&hour("01", "null", true));
        let message = failure([null(), history(&[hour("01", "null", true)])]).to_string();
        assert!(message.contains("2019-05-21T01:00:00.000Z") && message.contains("null"), "{message}");

        let server = Server::start([null(), history(&[hour("00", "300", false)])]);
        let values = provider(&server).recent(now()).unwrap().values;
        assert_eq!(values.iter().map(|value| value.grams_per_kwh.0).collect::<Vec<_>>(), [300.0]);
    }

    #[test]
    fn a_plan_without_history_is_told_once_and_not_asked_again() {
        let latest = || Reply::json(&hour("01", "322", true));
        let server = Server::start([latest(), Reply::status(403, r#"{"error":"no access"}"#), latest()]);
        let mut provider = provider(&server);
        let note = provider.recent(now()).unwrap().note.unwrap();
        assert!(note.contains("no access") && note.contains("not corrected"), "{note}");
        assert_eq!(provider.recent(now()).unwrap().note, None);
        assert_eq!(server.asked().len(), 3);
    }

    #[test]
    fn the_latest_hour_counts_when_the_history_is_busy_or_down() {
        let busy = Reply::status(429, "").header("Retry-After: 900");
        let server = Server::start([Reply::json(&hour("01", "322", true)), busy]);
        let answer = provider(&server).recent(now()).unwrap();
        assert_eq!((answer.values.len(), answer.busy), (1, Some(Duration::from_secs(900))));
        let server = Server::start([Reply::json(&hour("01", "322", true)), Reply::status(500, "")]);
        let mut provider = provider(&server);
        assert_eq!(provider.recent(now()).unwrap().values.len(), 1);
        assert!(provider.has_history);
    }

    #[test]
    fn what_no_grid_has_and_what_was_not_asked_is_refused() {
        for (reply, part) in [
            (hour("01", "-3", false), "-3 g/kWh"),
            (hour("01", "90000", false), "90000 g/kWh"),
            (hour("01", "322", false).replace("lifecycle", "direct"), "direct"),
            (hour("01", "322", false).replace("2019-05-21T01:00:00.000Z", "today"), "\"today\""),
            (r#"{"zone":"DE"}"#.into(), "datetime"),
        ] {
            let message = failure([Reply::json(&reply), history(&[])]).to_string();
            assert!(message.contains(part), "{message}");
        }
    }

    #[test]
    fn a_refused_token_names_its_variable() {
        let failure = failure([Reply::status(401, r#"{"error":"Invalid auth-token"}"#)]);
        assert_eq!(failure.kind, FailureKind::Unauthorised);
        let message = failure.to_string();
        assert!(message.contains("ELECTRICITY_MAPS_TOKEN") && message.contains("Invalid"), "{message}");
    }

    #[test]
    fn the_past_is_asked_in_ranges_and_the_last_day_as_history() {
        let span =
            |from: &str, until: &str| Period { from: from.parse().unwrap(), until: until.parse().unwrap() };
        let data = |at| Reply::json(&format!(r#"{{"zone":"DE","data":[{}]}}"#, hour(at, "300", false)));
        let server = Server::start([data("00"), data("01"), history(&[hour("01", "301", false)])]);
        let mut provider = provider(&server);
        let past = provider.history(span("2019-05-05T00:00:00Z", "2019-05-21T00:00:00Z"), now()).unwrap();
        assert_eq!(past.len(), 2);
        let last = provider.history(span("2019-05-20T23:00:00Z", "2019-05-21T01:00:00Z"), now()).unwrap();
        assert_eq!(last[0].grams_per_kwh.0, 301.0);
        let paths = server.paths();
        assert!(paths[0].contains("/past-range?") && paths[0].contains("start=2019-05-05T00%3A00%3A00Z"));
        assert!(paths[1].contains("start=2019-05-14T00%3A00%3A00Z"), "{}", paths[1]);
        assert!(paths[2].contains("/history?"), "{}", paths[2]);
    }
}
