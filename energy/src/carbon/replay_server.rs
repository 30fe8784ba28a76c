//! A server that answers from a script, for tests: nothing leaves the machine.

use std::collections::VecDeque;
use std::io::{BufRead, BufReader, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::thread::JoinHandle;

/// A server on a free port of this machine; it stops when dropped.
pub(super) struct Server {
    /// Its address.
    pub(super) url: String,
    address: SocketAddr,
    asked: Arc<Mutex<Vec<String>>>,
    script: Arc<Mutex<VecDeque<Reply>>>,
    stop: Arc<AtomicBool>,
    thread: Option<JoinHandle<()>>,
}

/// One line of the script.
#[derive(Clone)]
pub(super) struct Reply {
    status: u16,
    headers: Vec<String>,
    body: String,
    manner: Manner,
}

#[derive(Clone, Copy, PartialEq)]
enum Manner {
    Whole,
    /// Never answers.
    Silent,
    /// Hangs up in the middle.
    Cut,
}

impl Reply {
    pub(super) fn json(body: &str) -> Self {
        Reply::status(200, body)
    }

    pub(super) fn status(status: u16, body: &str) -> Self {
        Reply { status, headers: Vec::new(), body: body.into(), manner: Manner::Whole }
    }

    pub(super) fn silent() -> Self {
        Reply { manner: Manner::Silent, ..Reply::json("") }
    }

    pub(super) fn cut() -> Self {
        Reply { manner: Manner::Cut, ..Reply::json("{}") }
    }

    pub(super) fn header(mut self, line: &str) -> Self {
        self.headers.push(line.into());
        self
    }
}

impl Server {
    /// Answers the requests in the order of the script; beyond its end with status 500.
    pub(super) fn start(script: impl IntoIterator<Item = Reply>) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = listener.local_addr().unwrap();
        let script = Arc::new(Mutex::new(script.into_iter().collect::<VecDeque<_>>()));
        let (asked, stop) = (Arc::new(Mutex::new(Vec::new())), Arc::new(AtomicBool::new(false)));
        let thread = std::thread::spawn({
            let (script, asked, stop) = (Arc::clone(&script), Arc::clone(&asked), Arc::clone(&stop));
            move || {
                let mut silent = Vec::new();
                for stream in listener.incoming() {
                    if stop.load(Ordering::Acquire) {
                        return;
                    }
                    silent.extend(answer(stream.unwrap(), &script, &asked));
                }
            }
        });
        Server { url: format!("http://{address}"), address, asked, script, stop, thread: Some(thread) }
    }

    /// Adds to the script.
    pub(super) fn then(&self, reply: Reply) {
        self.script.lock().unwrap().push_back(reply);
    }

    /// The head of each request so far.
    pub(super) fn asked(&self) -> Vec<String> {
        self.asked.lock().unwrap().clone()
    }

    /// The paths with queries of the requests so far.
    pub(super) fn paths(&self) -> Vec<String> {
        self.asked().iter().map(|head| head.split(' ').nth(1).unwrap_or_default().to_owned()).collect()
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Release);
        let woken = TcpStream::connect(self.address).is_ok();
        if let Some(thread) = self.thread.take().filter(|_| woken) {
            let _ = thread.join();
        }
    }
}

/// Answers one request; gives back the connection when it is to stay open in silence.
fn answer(
    stream: TcpStream,
    script: &Mutex<VecDeque<Reply>>,
    asked: &Mutex<Vec<String>>,
) -> Option<TcpStream> {
    let mut reader = BufReader::new(stream);
    let mut head = String::new();
    while !head.ends_with("\r\n\r\n") {
        if reader.read_line(&mut head).ok()? == 0 {
            return None;
        }
    }
    asked.lock().unwrap().push(head);
    let over = Reply::status(500, r#"{"error":"the script is over"}"#);
    let reply = script.lock().unwrap().pop_front().unwrap_or(over);
    if reply.manner == Manner::Silent {
        return Some(reader.into_inner());
    }
    let length = reply.body.len() + usize::from(reply.manner == Manner::Cut);
    let mut text =
        format!("HTTP/1.1 {} Scripted\r\nContent-Length: {length}\r\nConnection: close\r\n", reply.status);
    for line in &reply.headers {
        text.push_str(line);
        text.push_str("\r\n");
    }
    text.push_str("\r\n");
    text.push_str(&reply.body);
    // The client may have given up already: that is what some tests are about.
    let _ = reader.into_inner().write_all(text.as_bytes());
    None
}
