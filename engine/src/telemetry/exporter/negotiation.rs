//! Which of the two formats a client wants, by its `Accept` header (RFC 9110, section 12.5.1).

use super::exposition::Dialect;

/// The format for a client. Prometheus asks for OpenMetrics first; whoever does not, or says nothing, gets the older
/// text format, which every tool reads.
pub(super) fn dialect(accept: &str) -> Dialect {
    let (mut open_metrics, mut text) = (0.0f64, 0.0f64);
    for range in accept.split(',') {
        let mut parts = range.split(';').map(str::trim);
        let name = parts.next().unwrap_or_default().to_ascii_lowercase();
        let (mut quality, mut version) = (1.0, None);
        for (key, value) in parts.filter_map(|part| part.split_once('=')) {
            match key.trim().to_ascii_lowercase().as_str() {
                "q" => quality = value.trim().parse().unwrap_or(0.0),
                "version" => version = Some(value.trim().trim_matches('"')),
                _ => {}
            }
        }
        match name.as_str() {
            "application/openmetrics-text" if version.is_none_or(|version| version == "1.0.0") => {
                open_metrics = open_metrics.max(quality);
            }
            "text/plain" | "text/*" | "*/*" => text = text.max(quality),
            _ => {}
        }
    }
    match open_metrics > 0.0 && open_metrics >= text {
        true => Dialect::OpenMetrics,
        false => Dialect::Text,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn prometheus_gets_open_metrics_and_everyone_else_the_text_format() {
        let of_prometheus = "application/openmetrics-text;version=1.0.0,application/openmetrics-text;version=0.0.1;\
                             q=0.75,text/plain;version=0.0.4;q=0.5,*/*;q=0.1";
        assert_eq!(dialect(of_prometheus), Dialect::OpenMetrics);
        for (accept, expected) in [
            ("", Dialect::Text),
            ("*/*", Dialect::Text),
            ("text/plain", Dialect::Text),
            ("text/html, application/xhtml+xml", Dialect::Text),
            ("application/openmetrics-text", Dialect::OpenMetrics),
            ("Application/OpenMetrics-Text; Version=\"1.0.0\"; charset=utf-8", Dialect::OpenMetrics),
            ("application/openmetrics-text; version=2.0.0, text/plain", Dialect::Text),
            ("application/openmetrics-text; q=0.4, text/plain; q=0.5", Dialect::Text),
            ("application/openmetrics-text; q=0", Dialect::Text),
            ("application/openmetrics-text; q=x;;=,", Dialect::Text),
        ] {
            assert_eq!(dialect(accept), expected, "{accept:?}");
        }
    }
}
