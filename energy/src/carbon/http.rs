//! One GET request, with a limit on everything and no secret in any message.

use std::time::Duration;

use jiff::Timestamp;
use jiff::fmt::rfc2822;
use serde::Deserialize;
use serde::de::DeserializeOwned;

use super::provider::{Failure, FailureKind};

/// The largest answer that is read: a month of five-minute values is under one megabyte.
const ANSWER_LIMIT_BYTES: u64 = 8 << 20;

/// How long to stay away after an answer "too many requests" that does not say how long.
const BUSY: Duration = Duration::from_secs(300);

/// Most of a server's own words that is repeated.
const WORDS_LIMIT: usize = 200;

/// Asks one provider about one place.
pub(super) struct Client {
    agent: ureq::Agent,
    /// The provider and the place, for messages.
    pub(super) whom: String,
    base: String,
    /// What to do when the credentials or the place are refused.
    on_refusal: &'static str,
    /// What must not be repeated even when a server does.
    secrets: Vec<String>,
    /// Such a secret that changes with time.
    session: Option<String>,
}

impl Client {
    /// A client for the address `base`, which has no path of a request yet.
    pub(super) fn new(whom: String, base: &str, on_refusal: &'static str, timeout: Duration) -> Self {
        let config = ureq::Agent::config_builder()
            .timeout_global(Some(timeout))
            .http_status_as_error(false)
            // A redirect would carry the token to another host.
            .max_redirects(0)
            .max_redirects_will_error(false)
            .user_agent(concat!("wattle-energy/", env!("CARGO_PKG_VERSION")));
        // What runs on this machine is not reached through a proxy.
        let config = if is_local(base) { config.proxy(None) } else { config };
        let base = base.trim_end_matches('/').to_owned();
        Client { agent: config.build().into(), whom, base, on_refusal, secrets: Vec::new(), session: None }
    }

    /// Keeps a secret out of all messages.
    pub(super) fn hide(&mut self, secret: &str) {
        self.secrets.push(secret.into());
    }

    /// Keeps the token of a session out of all messages, in place of the one before.
    pub(super) fn hide_session(&mut self, token: &str) {
        self.session = Some(token.into());
    }

    /// Asks for `path` and reads the answer as JSON.
    pub(super) fn get<T: DeserializeOwned>(
        &self,
        path: &str,
        query: &[(&str, &str)],
        header: Option<(&str, &str)>,
        now: Timestamp,
    ) -> Result<T, Failure> {
        let mut request = self.agent.get(format!("{}{path}", self.base));
        for (name, value) in query {
            request = request.query(name, value);
        }
        if let Some((name, value)) = header {
            request = request.header(name, value);
        }
        let mut response = request.call().map_err(|error| self.unreached(&error))?;
        let status = response.status().as_u16();
        let text = |name| response.headers().get(name).and_then(|value| value.to_str().ok());
        let retry_after = text("retry-after").and_then(|value| retry_after(value, now));
        let body = response.body_mut().with_config().limit(ANSWER_LIMIT_BYTES).read_to_string();
        match (status, body) {
            (200, Ok(body)) => self.decode(path, &body),
            (200, Err(error)) => Err(self.unreached(&error)),
            (_, body) => Err(self.refused(status, retry_after, &body.unwrap_or_default())),
        }
    }

    fn decode<T: DeserializeOwned>(&self, path: &str, body: &str) -> Result<T, Failure> {
        if body.trim().is_empty() {
            return Err(self.garbled(format!("answered {path} with nothing")));
        }
        serde_json::from_str(body)
            .map_err(|error| self.garbled(format!("answered {path} with what cannot be understood: {error}")))
    }

    /// An answer that is not as documented.
    pub(super) fn garbled(&self, message: impl Into<String>) -> Failure {
        Failure::garbled(&self.whom, self.without_secrets(&message.into()))
    }

    /// No answer, or not all of one.
    fn unreached(&self, error: &ureq::Error) -> Failure {
        let message = match error {
            ureq::Error::Timeout(_) => "did not answer in time".to_owned(),
            ureq::Error::HostNotFound => "its host name is not known here".to_owned(),
            ureq::Error::BodyExceedsLimit(_) => {
                format!("answered with more than {ANSWER_LIMIT_BYTES} bytes")
            }
            other => format!("could not be reached: {other}"),
        };
        let remedy =
            "it is asked again later; check the network, the proxy variables and carbon.providers.url";
        Failure::new(&self.whom, FailureKind::Passing, self.without_secrets(&message), remedy)
    }

    /// An answer that is an error.
    fn refused(&self, status: u16, retry_after: Option<Duration>, body: &str) -> Failure {
        let words = self.without_secrets(&words(body));
        let words = if words.is_empty() { words } else { format!(" ({words})") };
        let busy = FailureKind::Busy(retry_after.unwrap_or(BUSY));
        let later = "it is asked again later";
        let (kind, said, remedy) = match status {
            401 => (FailureKind::Unauthorised, "refused the credentials", self.on_refusal),
            403 => (FailureKind::Unusable, "does not permit this", self.on_refusal),
            404 => (FailureKind::Unusable, "does not know the place", self.on_refusal),
            429 => (busy, "was asked too often", "it is asked again when it permits"),
            503 if retry_after.is_some() => (busy, "is out of service", later),
            300..=399 => (
                FailureKind::Unusable,
                "points to another address, which is not followed",
                "set carbon.providers.url to the address itself",
            ),
            400..=499 => (FailureKind::Unusable, "refused the request", self.on_refusal),
            _ => (FailureKind::Passing, "failed", later),
        };
        Failure::new(&self.whom, kind, format!("{said} with status {status}{words}"), remedy)
    }

    fn without_secrets(&self, text: &str) -> String {
        let secrets = self.secrets.iter().chain(&self.session);
        secrets.fold(text.to_owned(), |text, secret| text.replace(secret.as_str(), "***"))
    }
}

/// The error in a server's own words, if it has any that a person can read.
fn words(body: &str) -> String {
    #[derive(Deserialize)]
    struct Body {
        error: Option<Words>,
        message: Option<String>,
    }
    #[derive(Deserialize)]
    #[serde(untagged)]
    enum Words {
        Plain(String),
        Coded { message: String },
    }
    let said = serde_json::from_str(body).ok().and_then(|body: Body| match body.error {
        Some(Words::Plain(text) | Words::Coded { message: text }) => Some(text),
        None => body.message,
    });
    let printable = |text: String| text.chars().filter(|c| !c.is_control()).take(WORDS_LIMIT).collect();
    said.map_or(String::new(), printable)
}

/// The header Retry-After: seconds, or a date.
fn retry_after(value: &str, now: Timestamp) -> Option<Duration> {
    let value = value.trim();
    if let Ok(seconds) = value.parse() {
        return Some(Duration::from_secs(seconds));
    }
    let date = rfc2822::DateTimeParser::new().parse_timestamp(value).ok()?;
    Some(Duration::try_from(date.duration_since(now)).unwrap_or_default())
}

/// Whether an address is of this machine.
fn is_local(base: &str) -> bool {
    let host = base.split_once("://").map_or(base, |(_, rest)| rest);
    ["127.", "localhost", "[::1]"].iter().any(|local| host.starts_with(local))
}

#[cfg(test)]
mod tests {
    use super::super::replay_server::{Reply, Server};
    use super::*;

    const PATIENT: Duration = Duration::from_secs(60);

    fn ask(reply: Reply, timeout: Duration) -> Result<serde_json::Value, Failure> {
        let server = Server::start([reply]);
        let mut client = Client::new("Grid, zone X".into(), &server.url, "look at the token", timeout);
        client.hide("s3cret");
        client.get("/path", &[("zone", "X Y&Z")], Some(("auth-token", "s3cret")), Timestamp::UNIX_EPOCH)
    }

    fn check(reply: Reply, kind: FailureKind, parts: &[&str]) {
        check_within(PATIENT, reply, kind, parts);
    }

    fn check_within(timeout: Duration, reply: Reply, kind: FailureKind, parts: &[&str]) {
        let failure = ask(reply, timeout).unwrap_err();
        assert_eq!(failure.kind, kind, "{failure}");
        let message = failure.to_string();
        assert!(message.starts_with("Grid, zone X: ") && !message.contains("s3cret"), "{message}");
        for part in parts {
            assert!(message.contains(part), "{part} is not in: {message}");
        }
    }

    #[test]
    fn an_answer_is_read_and_the_query_is_escaped() {
        let server = Server::start([Reply::json(r#"{"a":1}"#)]);
        let client = Client::new("Grid".into(), &format!("{}/", server.url), "", PATIENT);
        let query = [("zone", "X Y&Z")];
        let answer: serde_json::Value =
            client.get("/path", &query, Some(("auth-token", "t")), Timestamp::UNIX_EPOCH).unwrap();
        assert_eq!(answer["a"], 1);
        let asked = server.asked();
        assert!(asked[0].starts_with("GET /path?zone=X%20Y%26Z HTTP/1.1\r\n"), "{}", asked[0]);
        assert!(asked[0].to_lowercase().contains("\r\nauth-token: t\r\n"), "{}", asked[0]);
    }

    #[test]
    fn each_status_says_what_to_do() {
        use FailureKind::*;
        let echo = r#"{"error":"token s3cret is bad"}"#;
        check(Reply::status(401, echo), Unauthorised, &["401", "token *** is bad", "look at the token"]);
        check(Reply::status(403, r#"{"message":"plan"}"#), Unusable, &["403", "(plan)", "look at the token"]);
        check(Reply::status(404, ""), Unusable, &["404", "does not know the place"]);
        let coded = r#"{"error":{"code":"400 Bad Request","message":"wrong path"}}"#;
        check(Reply::status(400, coded), Unusable, &["400", "wrong path"]);
        check(Reply::status(500, "<html>"), Passing, &["500", "asked again later"]);
        check(Reply::status(302, ""), Unusable, &["302", "not followed"]);
    }

    #[test]
    fn too_many_requests_wait_as_long_as_the_server_says() {
        let after = |seconds| FailureKind::Busy(Duration::from_secs(seconds));
        check(Reply::status(429, ""), FailureKind::Busy(BUSY), &["429"]);
        check(Reply::status(429, "").header("Retry-After: 77"), after(77), &["429"]);
        let date = "Retry-After: Thu, 01 Jan 1970 00:10:00 GMT";
        check(Reply::status(429, "").header(date), after(600), &["429"]);
        check(Reply::status(503, "").header("Retry-After: 30"), after(30), &["503"]);
        let past = "Retry-After: Wed, 31 Dec 1969 23:00:00 GMT";
        check(Reply::status(429, "").header(past), after(0), &["429"]);
    }

    #[test]
    fn what_is_no_answer_is_a_passing_failure() {
        check(Reply::json("<html>s3cret"), FailureKind::Passing, &["cannot be understood", "line 1"]);
        check(Reply::json(" "), FailureKind::Passing, &["with nothing"]);
        let soon = Duration::from_millis(100);
        check_within(soon, Reply::silent(), FailureKind::Passing, &["in time"]);
        check(Reply::cut(), FailureKind::Passing, &["could not be reached"]);
        check(
            Reply::json(&" ".repeat(ANSWER_LIMIT_BYTES as usize + 1)),
            FailureKind::Passing,
            &["more than"],
        );
    }

    #[test]
    fn a_server_that_does_not_speak_tls_is_a_passing_failure() {
        let server = Server::start([Reply::json("{}")]);
        let url = server.url.replace("http://", "https://");
        let client = Client::new("Grid, zone X".into(), &url, "", Duration::from_millis(500));
        let failure = client.get::<serde_json::Value>("/", &[], None, Timestamp::UNIX_EPOCH).unwrap_err();
        assert_eq!(failure.kind, FailureKind::Passing, "{failure}");
    }

    #[test]
    fn a_server_that_is_not_there_is_a_passing_failure() {
        let url = Server::start([]).url.clone();
        let client = Client::new("Grid, zone X".into(), &url, "", PATIENT);
        let failure = client.get::<serde_json::Value>("/", &[], None, Timestamp::UNIX_EPOCH).unwrap_err();
        assert_eq!(failure.kind, FailureKind::Passing);
    }
}
