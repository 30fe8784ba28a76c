//! WattTime, API v3: the marginal emission rate of a region (`co2_moer`) in five-minute steps.
//!
//! Marginal figures tell what one more kilowatt-hour does; they must never be mixed with averages. The API speaks of
//! pounds for each megawatt-hour.

use std::time::Duration;

use base64::Engine;
use base64::engine::general_purpose::STANDARD as BASE64;
use jiff::Timestamp;
use serde::Deserialize;

use super::http::Client;
use super::provider::{
    Answer, Failure, FailureKind, LOOK_BACK, Moment, Provider, Value, parse_time, period, pieces,
};
use super::{Basis, GridIntensity, Period};

const BASE: &str = "https://api.watttime.org";
const SIGNAL: &str = "co2_moer";
const UNITS: &str = "lbs_co2_per_mwh";

/// Kilograms in a pound, exactly; pounds for each MWh times this are grams for each kWh.
const KILOGRAMS_PER_POUND: f64 = 0.45359237;

/// A token lasts 30 minutes; it is renewed with some to spare.
const TOKEN_AGE: Duration = Duration::from_secs(25 * 60);

/// One answer holds 32 days at most.
const RANGE: Duration = Duration::from_secs(31 * 24 * 3600);

const ON_REFUSAL: &str = "check WATTTIME_USER and WATTTIME_PASSWORD, and that their plan covers the region in \
     carbon.providers.zone (a free account has CAISO_NORTH only)";

/// One region of WattTime.
pub(super) struct WattTime {
    client: Client,
    region: String,
    login: String,
    token: Option<Token>,
}

struct Token {
    text: String,
    since: Duration,
}

impl WattTime {
    pub(super) fn new(
        region: &str,
        url: Option<&str>,
        user: &str,
        password: &str,
        timeout: Duration,
    ) -> Self {
        let whom = format!("WattTime, region {region}");
        let mut client = Client::new(whom, url.unwrap_or(BASE), ON_REFUSAL, timeout);
        let login = BASE64.encode(format!("{user}:{password}"));
        client.hide(password);
        client.hide(&login);
        WattTime { client, region: region.into(), login: format!("Basic {login}"), token: None }
    }

    /// Asks with a token that is still young, and once more with a new one when the old one was refused.
    fn get(&mut self, endpoint: &str, more: &[(&str, &str)], now: Moment) -> Result<Reply, Failure> {
        let kept = self.token.take().filter(|token| now.monotonic.saturating_sub(token.since) < TOKEN_AGE);
        if let Some(token) = kept {
            let reply = self.get_with(&token, endpoint, more, now.wall);
            if !matches!(&reply, Err(failure) if failure.kind == FailureKind::Unauthorised) {
                self.token = Some(token);
                return reply;
            }
        }
        let token = self.log_in(now)?;
        let reply = self.get_with(&token, endpoint, more, now.wall);
        self.token = Some(token);
        reply
    }

    fn log_in(&mut self, now: Moment) -> Result<Token, Failure> {
        #[derive(Deserialize)]
        struct Login {
            token: String,
        }
        let header = Some(("authorization", self.login.as_str()));
        let Login { token: text } = self.client.get("/login", &[], header, now.wall)?;
        if text.is_empty() || !text.bytes().all(|byte| byte.is_ascii_graphic()) {
            return Err(self.client.garbled("answered /login with a token that no header can carry"));
        }
        self.client.hide_session(&text);
        Ok(Token { text, since: now.monotonic })
    }

    fn get_with(
        &self,
        token: &Token,
        endpoint: &str,
        more: &[(&str, &str)],
        now: Timestamp,
    ) -> Result<Reply, Failure> {
        let mut query = vec![("region", self.region.as_str()), ("signal_type", SIGNAL)];
        query.extend_from_slice(more);
        let bearer = format!("Bearer {}", token.text);
        let header = Some(("authorization", bearer.as_str()));
        let reply: Reply = self.client.get(&format!("/v3/{endpoint}"), &query, header, now)?;
        let meta = &reply.meta;
        for (name, got, expected) in [
            ("region", &meta.region, self.region.as_str()),
            ("signal_type", &meta.signal_type, SIGNAL),
            ("units", &meta.units, UNITS),
        ] {
            if got != expected {
                let message = format!("answered with {name} {got:?}, expected {expected:?}");
                return Err(self.client.garbled(message));
            }
        }
        Ok(reply)
    }

    fn values(&self, reply: Reply, estimated: bool) -> Result<Vec<GridIntensity>, Failure> {
        let meta = reply.meta;
        let source = match meta.model {
            Some(model) => format!("WattTime {SIGNAL}, model {}", model.date),
            None => format!("WattTime {SIGNAL}"),
        };
        let seconds = meta.data_point_period_seconds;
        if !(1..=86_400).contains(&seconds) {
            let message = format!("answered with data_point_period_seconds {seconds}, expected 1 to 86400");
            return Err(self.client.garbled(message));
        }
        let value = |point: Point| {
            let grams_per_kwh = point.value? * KILOGRAMS_PER_POUND;
            let from = parse_time(&point.point_time);
            let period = from.and_then(|from| period(from, Duration::from_secs(seconds))).ok_or_else(|| {
                let message = format!("answered with the time {:?}, expected RFC 3339", point.point_time);
                self.client.garbled(message)
            });
            let (zone, source, basis) = (self.region.as_str(), source.as_str(), Basis::Marginal);
            let value = |period| Value { grams_per_kwh, zone, basis, source, period, estimated };
            Some(period.and_then(|period| value(period).check(&self.client.whom)))
        };
        reply.data.into_iter().filter_map(value).collect()
    }

    fn historical(&mut self, span: Period, now: Moment) -> Result<Vec<GridIntensity>, Failure> {
        let (start, end) = (span.from.to_string(), span.until.to_string());
        let reply = self.get("historical", &[("start", &start), ("end", &end)], now)?;
        self.values(reply, false)
    }
}

impl Provider for WattTime {
    fn whom(&self) -> &str {
        &self.client.whom
    }

    fn delay(&self) -> Duration {
        Duration::from_secs(30)
    }

    fn recent(&mut self, now: Moment) -> Result<Answer, Failure> {
        let from = now.wall.checked_sub(LOOK_BACK).unwrap_or(now.wall);
        let mut values = self.historical(Period { from, until: now.wall }, now)?;
        let present = |value: &GridIntensity| value.period.is_some_and(|period| period.contains(now.wall));
        if !values.iter().any(present) {
            // The measured rate lags some minutes behind; the forecast knows the present.
            let reply = self.get("forecast", &[("horizon_hours", "1")], now)?;
            values.extend(self.values(reply, true)?.into_iter().find(present));
        }
        match values.is_empty() {
            false => Ok(Answer { values, ..Answer::default() }),
            true => Err(self.client.garbled("answered without any value of the last day or the present")),
        }
    }

    fn history(&mut self, span: Period, now: Moment) -> Result<Vec<GridIntensity>, Failure> {
        let mut values = Vec::new();
        for piece in pieces(span, RANGE) {
            values.extend(self.historical(piece, now)?);
        }
        Ok(values)
    }
}

#[derive(Deserialize)]
struct Reply {
    data: Vec<Point>,
    meta: Meta,
}

#[derive(Deserialize)]
struct Point {
    point_time: String,
    value: Option<f64>,
}

#[derive(Deserialize)]
struct Meta {
    data_point_period_seconds: u64,
    region: String,
    signal_type: String,
    units: String,
    model: Option<Model>,
}

/// The version of the model behind the values: their vintage.
#[derive(Deserialize)]
struct Model {
    date: String,
}

#[cfg(test)]
mod tests {
    use super::super::replay_server::{Reply, Server};
    use super::*;

    const NOON: &str = "2022-07-15T12:00:00Z";

    fn at(minutes: u64) -> Moment {
        let passed = Duration::from_secs(minutes * 60);
        Moment { monotonic: passed, wall: NOON.parse::<Timestamp>().unwrap() + passed }
    }

    fn provider(server: &Server) -> WattTime {
        WattTime::new("CAISO_NORTH", Some(&server.url), "ada", "pa55word", Duration::from_secs(30))
    }

    fn login(token: &str) -> Reply {
        Reply::json(&format!(r#"{{"token":"{token}"}}"#))
    }

    fn body(points: &[(&str, &str)]) -> String {
        let points: Vec<String> = points
            .iter()
            .map(|(time, value)| format!(r#"{{"point_time":"2022-07-15T{time}:00+00:00","value":{value}}}"#))
            .collect();
        format!(
            r#"{{"data":[{}],"meta":{{"data_point_period_seconds":300,"region":"CAISO_NORTH","warnings":[{{"type":"t","message":"m"}}],
            "signal_type":"co2_moer","model":{{"date":"2023-03-01"}},"units":"lbs_co2_per_mwh","generated_at_period_seconds":300,
            "generated_at":"2022-07-15T12:00:00+00:00"}}}}"#,
            points.join(",")
        )
    }

    fn data(points: &[(&str, &str)]) -> Reply {
        Reply::json(&body(points))
    }

    /// Origin of the numbers: 1048.4131919701972 lb/MWh x 0.45359237 kg/lb.
    #[test]
    fn pounds_per_megawatt_hour_become_grams_per_kilowatt_hour() {
        let measured = data(&[("11:50", "1048.4131919701972"), ("11:55", "null")]);
        let forecast = data(&[("12:00", "1000"), ("12:05", "990")]);
        let server = Server::start([login("t1"), measured, forecast]);
        let values = provider(&server).recent(at(2)).unwrap().values;
        assert_eq!(values.len(), 2, "null and what is beyond the present are left out");
        assert!((values[0].grams_per_kwh.0 - 475.55).abs() < 0.01, "{}", values[0].grams_per_kwh);
        assert_eq!((values[0].basis, values[0].estimated), (Basis::Marginal, false));
        assert!((values[1].grams_per_kwh.0 - 453.592).abs() < 0.001);
        assert!(values[1].estimated);
        let period = values[1].period.unwrap();
        assert_eq!((period.from, period.until), (at(0).wall, at(5).wall));
        assert_eq!(values[0].source, "WattTime co2_moer, model 2023-03-01");
    }

    #[test]
    fn the_login_is_basic_and_the_token_a_bearer() {
        let server = Server::start([login("t1"), data(&[("11:00", "1")]), data(&[])]);
        provider(&server).recent(at(2)).unwrap();
        let asked: Vec<String> = server.asked().iter().map(|head| head.to_lowercase()).collect();
        // base64 of "ada:pa55word"
        let login = "authorization: basic ywrhonbhntv3b3jk\r\n";
        assert!(asked[0].starts_with("get /login ") && asked[0].contains(login), "{}", asked[0]);
        assert!(asked[1].starts_with("get /v3/historical?region=caiso_north&signal_type=co2_moer&"));
        assert!(asked[1].contains("authorization: bearer t1\r\n"), "{}", asked[1]);
        assert!(asked[2].starts_with("get /v3/forecast?") && asked[2].contains("horizon_hours=1"));
    }

    #[test]
    fn a_token_serves_until_it_is_nearly_thirty_minutes_old() {
        let now = || data(&[("12:00", "1"), ("12:20", "1"), ("12:25", "1")]);
        let server = Server::start([login("t1"), now(), now(), login("t2"), now()]);
        let mut provider = provider(&server);
        for minutes in [0, 24, 29] {
            provider.recent(at(minutes)).unwrap();
        }
        let logins: Vec<bool> = server.paths().iter().map(|path| path == "/login").collect();
        assert_eq!(logins, [true, false, false, true, false]);
        assert!(server.asked()[4].to_lowercase().contains("bearer t2"));
    }

    #[test]
    fn a_refused_token_is_renewed_once_and_no_more() {
        let refused = || Reply::status(401, r#"{"error":"jwt t3 expired"}"#);
        let now = || data(&[("12:00", "1"), ("12:05", "2")]);
        let server = Server::start([login("t1"), now(), refused(), login("t2"), now()]);
        let mut provider = provider(&server);
        provider.recent(at(0)).unwrap();
        assert_eq!(provider.recent(at(5)).unwrap().values.len(), 2);
        assert_eq!(server.asked().len(), 5);

        for reply in [refused(), login("t3"), refused()] {
            server.then(reply);
        }
        let failure = provider.recent(at(10)).unwrap_err();
        assert_eq!(failure.kind, FailureKind::Unauthorised);
        assert_eq!(server.asked().len(), 8, "a second refusal does not log in again");
        let message = failure.to_string();
        assert!(message.contains("WATTTIME_USER") && message.contains("jwt *** expired"), "{message}");
    }

    #[test]
    fn a_refused_login_never_shows_the_password() {
        let server = Server::start([Reply::status(401, r#"{"error":"ada:pa55word is wrong"}"#)]);
        let message = provider(&server).recent(at(0)).unwrap_err().to_string();
        assert!(message.starts_with("WattTime, region CAISO_NORTH: "), "{message}");
        assert!(message.contains("WATTTIME_PASSWORD") && !message.contains("pa55word"), "{message}");
        assert_eq!(server.asked().len(), 1);
    }

    #[test]
    fn another_region_signal_or_unit_is_refused() {
        let good = body(&[("12:00", "1")]);
        for (from, to, part) in [
            ("CAISO_NORTH", "PJM", "PJM"),
            ("lbs_co2_per_mwh", "kg_co2_per_mwh", "kg_co2_per_mwh"),
            ("\"co2_moer\"", "\"health_damage\"", "health_damage"),
            (":300,\"region", ":0,\"region", "data_point_period_seconds 0"),
            ("2022-07-15T12:00:00+00:00", "noon", "\"noon\""),
            ("\"value\":1", "\"value\":99999", "g/kWh"),
        ] {
            let server = Server::start([login("tok-1"), Reply::json(&good.replacen(from, to, 1))]);
            let message = provider(&server).recent(at(0)).unwrap_err().to_string();
            assert!(message.contains(part), "{message}");
        }
    }

    #[test]
    fn months_are_asked_one_after_the_other() {
        let server = Server::start([login("tok-1"), data(&[("12:00", "1")]), data(&[("12:05", "1")])]);
        let from = "2022-06-01T00:00:00Z".parse().unwrap();
        let values = provider(&server).history(Period { from, until: at(0).wall }, at(0)).unwrap();
        assert_eq!(values.len(), 2);
        assert!(values.iter().all(|value| !value.estimated));
        assert!(server.paths()[2].contains("start=2022-07-02T00%3A00%3A00Z"), "{}", server.paths()[2]);
    }
}
