//! The Carbon Intensity API of Great Britain's system operator: half hours, g/kWh, CC BY 4.0, no account.
//!
//! It counts the emissions at the stacks of the plants. The whole country has a forecast and, later, an actual value;
//! its regions have a forecast only. Times have no seconds (`2018-01-20T12:00Z`), and the answers come in four
//! shapes: a list of half hours; a list of regions with half hours; one such region alone; a list of half hours with
//! regions.

use std::fmt;
use std::time::Duration;

use jiff::Timestamp;
use serde::Deserialize;

use super::http::Client;
use super::provider::{Answer, Failure, LOOK_BACK, Moment, Provider, Value, parse_time, pieces};
use super::{Basis, GridIntensity, Period};

const BASE: &str = "https://api.carbonintensity.org.uk";
const SOURCE: &str = "Carbon Intensity API, NESO, CC BY 4.0";

/// One answer holds 14 days at most.
const RANGE: Duration = Duration::from_secs(13 * 24 * 3600);

const ON_REFUSAL: &str = "check carbon.providers.zone: nothing for the whole country, a region from 1 to 17, or the \
     first half of a postcode such as RG10";

/// Great Britain, or a part of it.
pub(super) struct UkCarbonIntensity {
    client: Client,
    area: Area,
    zone: String,
}

/// What a zone stands for.
#[derive(Clone, Debug, PartialEq)]
pub(crate) enum Area {
    /// All of Great Britain.
    Country,
    /// A region of a network operator, or England (15), Scotland (16), Wales (17).
    Region(u8),
    /// The first half of a postcode.
    Postcode(String),
}

impl Area {
    /// Reads a zone of the configuration.
    pub(crate) fn parse(zone: Option<&str>) -> Result<Self, String> {
        let Some(zone) = zone.map(str::trim) else { return Ok(Area::Country) };
        if zone.eq_ignore_ascii_case("GB") {
            return Ok(Area::Country);
        }
        if let Some(region) = zone.parse().ok().filter(|region| (1..=17).contains(region)) {
            return Ok(Area::Region(region));
        }
        let starts_with_letter = zone.starts_with(|first: char| first.is_ascii_alphabetic());
        let has_digit = zone.bytes().any(|byte| byte.is_ascii_digit());
        let fits = (2..=4).contains(&zone.len()) && zone.bytes().all(|byte| byte.is_ascii_alphanumeric());
        match fits && starts_with_letter && has_digit {
            true => Ok(Area::Postcode(zone.to_ascii_uppercase())),
            false => Err(format!(
                "is {zone:?}, expected nothing or \"GB\", a region from 1 to 17, or the first half of a postcode such as \"RG10\""
            )),
        }
    }
}

impl fmt::Display for Area {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Area::Country => f.write_str("GB"),
            Area::Region(region) => write!(f, "GB-{region}"),
            Area::Postcode(code) => write!(f, "GB-{code}"),
        }
    }
}

impl UkCarbonIntensity {
    pub(super) fn new(area: Area, url: Option<&str>, timeout: Duration) -> Self {
        let zone = area.to_string();
        let whom = format!("UK Carbon Intensity, zone {zone}");
        let client = Client::new(whom, url.unwrap_or(BASE), ON_REFUSAL, timeout);
        UkCarbonIntensity { client, area, zone }
    }

    fn ask(&self, span: Period, now: Timestamp) -> Result<Vec<GridIntensity>, Failure> {
        let time = |time: Timestamp| time.strftime("%Y-%m-%dT%H:%MZ").to_string();
        let range = format!("intensity/{}/{}", time(span.from), time(span.until));
        let path = match &self.area {
            Area::Country => format!("/{range}"),
            Area::Region(region) => format!("/regional/{range}/regionid/{region}"),
            Area::Postcode(code) => format!("/regional/{range}/postcode/{code}"),
        };
        let reply: Reply = self.client.get(&path, &[], None, now)?;
        let halves = self.half_hours(reply)?;
        halves.into_iter().filter_map(|half| self.value(half).transpose()).collect()
    }

    /// The half hours of this place out of any of the four shapes.
    fn half_hours(&self, reply: Reply) -> Result<Vec<HalfHour>, Failure> {
        let items = match reply.data {
            Data::Many(items) => items,
            Data::One(item) => vec![*item],
        };
        let mut halves = Vec::new();
        for item in items {
            match item {
                Item::Half(half) if self.area == Area::Country => halves.push(half),
                Item::Half(_) => return Err(self.elsewhere("the whole country")),
                Item::Region(region) if region.place.is(&self.area) => halves.extend(region.data),
                Item::Region(region) => return Err(self.elsewhere(&region.place.name())),
                Item::Regions(Regions { from, to, regions }) => {
                    let own = regions.into_iter().find(|region| region.place.is(&self.area));
                    let intensity = own.ok_or_else(|| self.elsewhere("other regions"))?.intensity;
                    halves.push(HalfHour { from, to, intensity });
                }
            }
        }
        Ok(halves)
    }

    fn elsewhere(&self, place: &str) -> Failure {
        self.client.garbled(format!("answered for {place}, which was not asked"))
    }

    /// The actual value, else the forecast; nothing where there is neither.
    fn value(&self, half: HalfHour) -> Result<Option<GridIntensity>, Failure> {
        let (actual, forecast) = (half.intensity.actual, half.intensity.forecast);
        let Some(grams_per_kwh) = actual.or(forecast) else { return Ok(None) };
        let (from, until) = (parse_time(&half.from), parse_time(&half.to));
        let period = from.zip(until).filter(|(from, until)| from < until);
        let period = period.map(|(from, until)| Period { from, until }).ok_or_else(|| {
            self.client.garbled(format!("answered with the times {:?} to {:?}", half.from, half.to))
        })?;
        let estimated = actual.is_none();
        let (zone, source, basis) = (self.zone.as_str(), SOURCE, Basis::DirectAverage);
        let value = Value { grams_per_kwh, zone, basis, source, period, estimated };
        value.check(&self.client.whom).map(Some)
    }
}

impl Provider for UkCarbonIntensity {
    fn whom(&self) -> &str {
        &self.client.whom
    }

    fn delay(&self) -> Duration {
        Duration::from_secs(60)
    }

    fn recent(&mut self, now: Moment) -> Result<Answer, Failure> {
        let from = now.wall.checked_sub(LOOK_BACK).unwrap_or(now.wall);
        // A little into the future, so that the half hour of the present is surely among them.
        let until = now.wall.checked_add(Duration::from_secs(1800)).unwrap_or(now.wall);
        let mut values = self.ask(Period { from, until }, now.wall)?;
        values.retain(|value| value.period.is_some_and(|period| period.from <= now.wall));
        match values.is_empty() {
            false => Ok(Answer { values, ..Answer::default() }),
            true => Err(self.client.garbled("answered without any value of the last day")),
        }
    }

    fn history(&mut self, span: Period, now: Moment) -> Result<Vec<GridIntensity>, Failure> {
        let mut values = Vec::new();
        for piece in pieces(span, RANGE) {
            values.extend(self.ask(piece, now.wall)?);
        }
        Ok(values)
    }
}

#[derive(Deserialize)]
struct Reply {
    data: Data,
}

#[derive(Deserialize)]
#[serde(untagged)]
enum Data {
    Many(Vec<Item>),
    One(Box<Item>),
}

/// An entry of `data`, told apart by what it must have.
#[derive(Deserialize)]
#[serde(untagged)]
enum Item {
    Regions(Regions),
    Region(Region),
    Half(HalfHour),
}

#[derive(Deserialize)]
struct HalfHour {
    from: String,
    to: String,
    intensity: Intensity,
}

#[derive(Deserialize)]
struct Intensity {
    forecast: Option<f64>,
    actual: Option<f64>,
}

#[derive(Deserialize)]
struct Region {
    #[serde(flatten)]
    place: Place,
    data: Vec<HalfHour>,
}

#[derive(Deserialize)]
struct Regions {
    from: String,
    to: String,
    regions: Vec<RegionNow>,
}

#[derive(Deserialize)]
struct RegionNow {
    #[serde(flatten)]
    place: Place,
    intensity: Intensity,
}

#[derive(Deserialize)]
struct Place {
    regionid: Option<u8>,
    postcode: Option<String>,
}

impl Place {
    fn is(&self, area: &Area) -> bool {
        match area {
            Area::Country => false,
            Area::Region(asked) => self.regionid == Some(*asked),
            Area::Postcode(asked) => {
                self.postcode.as_ref().is_some_and(|code| code.eq_ignore_ascii_case(asked))
            }
        }
    }

    fn name(&self) -> String {
        match (&self.postcode, self.regionid) {
            (Some(code), _) => format!("the postcode {code:?}"),
            (None, Some(region)) => format!("the region {region}"),
            (None, None) => "a region without a number".into(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::super::replay_server::{Reply, Server};
    use super::*;

    fn moment(wall: &str) -> Moment {
        Moment { monotonic: Duration::ZERO, wall: wall.parse().unwrap() }
    }

    fn now() -> Moment {
        moment("2018-01-20T12:40:00Z")
    }

    fn provider(zone: Option<&str>, server: &Server) -> UkCarbonIntensity {
        UkCarbonIntensity::new(Area::parse(zone).unwrap(), Some(&server.url), Duration::from_secs(30))
    }

    fn recent(zone: Option<&str>, body: &str) -> Result<Vec<(String, f64, bool)>, Failure> {
        let server = Server::start([Reply::json(body)]);
        let values = provider(zone, &server).recent(now())?.values;
        Ok(values
            .into_iter()
            .map(|value| (value.period.unwrap().from.to_string(), value.grams_per_kwh.0, value.estimated))
            .collect())
    }

    const NATIONAL: &str = r#"{"data":[
        {"from":"2018-01-20T12:00Z","to":"2018-01-20T12:30Z","intensity":{"forecast":266,"actual":263,"index":"moderate"}},
        {"from":"2018-01-20T12:30Z","to":"2018-01-20T13:00Z","intensity":{"forecast":270,"actual":null,"index":"moderate"}},
        {"from":"2018-01-20T13:00Z","to":"2018-01-20T13:30Z","intensity":{"forecast":280,"index":"moderate"}}]}"#;
    const REGION: &str = r#"{"regionid":13,"dnoregion":"UKPN London","shortname":"London","postcode":"SW1","data":[
        {"from":"2018-01-20T12:30Z","to":"2018-01-20T13:00Z","intensity":{"forecast":435,"index":"very high"},
         "generationmix":[{"fuel":"gas","perc":41.5},{"fuel":"wind","perc":2}]}]}"#;

    #[test]
    fn the_actual_value_goes_before_the_forecast_and_the_future_is_left_out() {
        let values = recent(None, NATIONAL).unwrap();
        let actual = ("2018-01-20T12:00:00Z".to_owned(), 263.0, false);
        assert_eq!(values, [actual, ("2018-01-20T12:30:00Z".to_owned(), 270.0, true)]);
    }

    #[test]
    fn a_region_is_read_from_each_of_its_three_shapes() {
        let listed = r#"{"data":[{"from":"2018-01-20T12:30Z","to":"2018-01-20T13:00Z","regions":[
            {"regionid":12,"dnoregion":"SSE South","shortname":"South England","intensity":{"forecast":300,"index":"high"},"generationmix":[]},
            {"regionid":13,"dnoregion":"UKPN London","shortname":"London","intensity":{"forecast":435,"index":"very high"},"generationmix":[]}]}]}"#;
        let expect = [("2018-01-20T12:30:00Z".to_owned(), 435.0, true)];
        let (list, alone) = (format!(r#"{{"data":[{REGION}]}}"#), format!(r#"{{"data":{REGION}}}"#));
        for body in [&list, &alone, listed] {
            assert_eq!(recent(Some("13"), body).unwrap(), expect, "{body}");
        }
        assert_eq!(recent(Some("sw1"), &alone).unwrap(), expect);
    }

    #[test]
    fn another_place_than_asked_is_an_error() {
        let (list, alone) = (format!(r#"{{"data":[{REGION}]}}"#), format!(r#"{{"data":{REGION}}}"#));
        for (zone, body) in
            [(Some("12"), alone.as_str()), (Some("RG10"), &list), (None, &list), (Some("13"), NATIONAL)]
        {
            let message = recent(zone, body).unwrap_err().to_string();
            assert!(message.contains("not asked"), "{message}");
        }
    }

    #[test]
    fn what_has_no_value_or_no_time_is_no_answer() {
        let one = |half: &str| recent(None, &format!(r#"{{"data":[{half}]}}"#)).unwrap_err().to_string();
        let empty = r#"{"from":"2018-01-20T12:00Z","to":"2018-01-20T12:30Z","intensity":{"forecast":null}}"#;
        assert!(one(empty).contains("without any value"), "{}", one(empty));
        let backwards = r#"{"from":"2018-01-20T12:30Z","to":"2018-01-20T12:00Z","intensity":{"forecast":9}}"#;
        assert!(one(backwards).contains("the times"), "{}", one(backwards));
        assert!(one(r#"{"something":"else"}"#).contains("cannot be understood"));
        assert!(recent(None, r#"{"data":[]}"#).unwrap_err().to_string().contains("without any value"));
    }

    #[test]
    fn each_place_has_its_path_in_times_without_seconds() {
        for (zone, start, end) in [
            (None, "/intensity/2018-01-19T12:40Z/2018-01-20T13:10Z", ""),
            (Some("13"), "/regional/intensity/2018-01-19T12:40Z/", "/regionid/13"),
            (Some("rg10"), "/regional/intensity/2018-01-19T12:40Z/", "/postcode/RG10"),
        ] {
            let server = Server::start([]);
            assert!(provider(zone, &server).recent(now()).is_err());
            let path = server.paths().remove(0);
            assert!(path.starts_with(start) && path.ends_with(end), "{path}");
        }
    }

    /// British clocks went forward on 2018-03-25 and back on 2018-10-28, at 01:00 UTC; the API speaks UTC.
    #[test]
    fn a_change_of_the_clocks_neither_doubles_nor_drops_a_half_hour() {
        for day in ["2018-03-25", "2018-10-28"] {
            let times = ["00:00", "00:30", "01:00", "01:30", "02:00", "02:30", "03:00"];
            let half = |pair: &[&str]| {
                let [from, to] = [0, 1].map(|index| format!("{day}T{}Z", pair[index]));
                format!(r#"{{"from":"{from}","to":"{to}","intensity":{{"forecast":200,"actual":201}}}}"#)
            };
            let halves: Vec<String> = times.windows(2).map(half).collect();
            let server = Server::start([Reply::json(&format!(r#"{{"data":[{}]}}"#, halves.join(",")))]);
            let answer = provider(None, &server).recent(moment(&format!("{day}T02:45:00Z"))).unwrap();
            let periods: Vec<Period> = answer.values.iter().map(|value| value.period.unwrap()).collect();
            assert_eq!(periods.len(), 6);
            for pair in periods.windows(2) {
                assert_eq!(pair[0].until, pair[1].from, "{day}");
            }
            assert!(periods.iter().all(|period| period.until.duration_since(period.from).as_secs() == 1800));
        }
    }

    #[test]
    fn zones_are_the_country_a_region_or_half_a_postcode() {
        assert_eq!(Area::parse(None), Ok(Area::Country));
        assert_eq!(Area::parse(Some("gb")), Ok(Area::Country));
        assert_eq!(Area::parse(Some("17")), Ok(Area::Region(17)));
        assert_eq!(Area::parse(Some("rg10")), Ok(Area::Postcode("RG10".into())));
        for wrong in ["18", "0", "RG10 9AB", "London", "../x", ""] {
            assert!(Area::parse(Some(wrong)).unwrap_err().contains("1 to 17"), "{wrong}");
        }
    }

    #[test]
    fn the_past_is_asked_in_fortnights() {
        let server = Server::start([Reply::json(NATIONAL), Reply::json(NATIONAL)]);
        let from = "2018-01-01T00:00:00Z".parse().unwrap();
        let values = provider(None, &server).history(Period { from, until: now().wall }, now()).unwrap();
        assert_eq!(values.len(), 6);
        assert!(server.paths()[1].starts_with("/intensity/2018-01-14T00:00Z/"));
    }
}
