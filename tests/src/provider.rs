//! A stand-in for the UK Carbon Intensity API on this machine, which tells one figure for whatever time it is asked for.

use std::io::{BufRead, BufReader, Write};
use std::net::{TcpListener, TcpStream};
use std::sync::{Arc, Mutex};

/// A server that answers as long as the test runs.
pub struct CarbonProvider {
    /// Its address.
    pub url: String,
    state: Arc<Mutex<State>>,
}

#[derive(Default)]
struct State {
    /// Grams per kilowatt-hour; none: it is out of order.
    actual: Option<u32>,
    asked: Vec<String>,
}

impl Default for CarbonProvider {
    fn default() -> Self {
        Self::new()
    }
}

impl CarbonProvider {
    /// A provider that is out of order at first.
    pub fn new() -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").expect("some port is free");
        let address = listener.local_addr().expect("a listener has an address");
        let state = Arc::<Mutex<State>>::default();
        let shared = Arc::clone(&state);
        std::thread::spawn(move || {
            for stream in listener.incoming().flatten() {
                answer(stream, &mut shared.lock().expect("no other holder panicked"));
            }
        });
        CarbonProvider { url: format!("http://{address}"), state }
    }

    /// Lets it answer with this figure from now on.
    pub fn tell(&self, grams_per_kwh: u32) {
        self.state.lock().expect("no other holder panicked").actual = Some(grams_per_kwh);
    }

    /// The paths that it was asked for.
    pub fn asked(&self) -> Vec<String> {
        self.state.lock().expect("no other holder panicked").asked.clone()
    }
}

/// Answers one request of the form `GET /intensity/{from}/{to}`. A client that hangs up is no concern of ours.
fn answer(stream: TcpStream, state: &mut State) {
    let mut lines = BufReader::new(&stream).lines().map_while(Result::ok);
    let path = lines.next().and_then(|line| Some(line.split(' ').nth(1)?.to_owned())).unwrap_or_default();
    // What comes before the empty line is the request; closing with some of it unread would reset the connection.
    let _ = lines.find(String::is_empty);
    let (status, body) = match (state.actual, path.split('/').collect::<Vec<_>>().as_slice()) {
        (Some(actual), &["", "intensity", from, to]) => {
            let intensity = format!(r#"{{"forecast":1,"actual":{actual},"index":"moderate"}}"#);
            (200, format!(r#"{{"data":[{{"from":"{from}","to":"{to}","intensity":{intensity}}}]}}"#))
        }
        _ => (503, String::new()),
    };
    let length = body.len();
    let head = format!("HTTP/1.1 {status} Scripted\r\nContent-Length: {length}\r\nConnection: close\r\n\r\n");
    let _ = (&stream).write_all((head + &body).as_bytes());
    state.asked.push(path);
}
