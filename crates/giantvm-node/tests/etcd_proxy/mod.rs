//! Stands between nodes and etcd, and lets transactions through only once two renewals of leases
//! came after them: as on a slow disk, which transactions wait for and renewals do not.

use std::io::{BufRead, BufReader, Read, Write};
use std::net::{Shutdown, TcpListener, TcpStream};
use std::sync::{Arc, Condvar, Mutex};

/// Where it listens, and what it has seen. Its threads end with the process.
pub(crate) struct Proxy {
    pub(crate) address: String,
    seen: Arc<Seen>,
}

#[derive(Default)]
struct Seen {
    counts: Mutex<Counts>,
    changed: Condvar,
}

#[derive(Default)]
struct Counts {
    renewals: u64,
    transactions: u64,
}

impl Proxy {
    /// In front of the etcd at `server`, such as `http://127.0.0.1:2379`.
    pub(crate) fn start(server: &str) -> Self {
        let server = server.trim_start_matches("http://").to_owned();
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = format!("http://{}", listener.local_addr().unwrap());
        let seen = Arc::new(Seen::default());
        let proxy = Self { address, seen: Arc::clone(&seen) };
        std::thread::spawn(move || {
            for caller in listener.incoming().map_while(Result::ok) {
                // A caller that finds no server is told so by the end of its connection.
                let Ok(server) = TcpStream::connect(&server) else { continue };
                let seen = Arc::clone(&seen);
                std::thread::spawn(move || relay(caller, server, &seen));
            }
        });
        proxy
    }

    /// How many it has seen.
    pub(crate) fn transactions(&self) -> u64 {
        self.seen.counts.lock().unwrap().transactions
    }
}

/// Passes requests on one by one, and answers as they come, until either side ends.
fn relay(caller: TcpStream, mut server: TcpStream, seen: &Seen) {
    let (mut answers, mut back) = (server.try_clone().unwrap(), caller.try_clone().unwrap());
    std::thread::spawn(move || {
        let _ = std::io::copy(&mut answers, &mut back);
        let _ = back.shutdown(Shutdown::Both);
    });
    let mut requests = BufReader::new(caller);
    while let Some(request) = read_request(&mut requests) {
        seen.let_through(&request);
        if has_gone(requests.get_ref()) {
            break; // it timed out, and its transaction must not be carried out later
        }
        if server.write_all(&request).is_err() {
            break;
        }
    }
    let _ = server.shutdown(Shutdown::Both);
}

fn has_gone(caller: &TcpStream) -> bool {
    caller.set_nonblocking(true).unwrap();
    let gone = matches!(caller.peek(&mut [0]), Ok(0));
    caller.set_nonblocking(false).unwrap();
    gone
}

/// The bytes of the next request; `None` at the end.
fn read_request(from: &mut impl BufRead) -> Option<Vec<u8>> {
    let (mut request, mut length) = (Vec::new(), 0);
    loop {
        let mut line = String::new();
        if from.read_line(&mut line).ok()? == 0 {
            return None;
        }
        request.extend_from_slice(line.as_bytes());
        let line = line.trim_end().to_ascii_lowercase();
        if let Some(value) = line.strip_prefix("content-length:") {
            length = value.trim().parse().ok()?;
        }
        if line.is_empty() {
            break;
        }
    }
    from.take(length).read_to_end(&mut request).ok()?;
    Some(request)
}

impl Seen {
    fn let_through(&self, request: &[u8]) {
        let goes_to = |path: &str| request.starts_with(format!("POST /v3/{path} ").as_bytes());
        let mut counts = self.counts.lock().unwrap();
        counts.renewals += u64::from(goes_to("lease/keepalive"));
        counts.transactions += u64::from(goes_to("kv/txn"));
        self.changed.notify_all();
        if goes_to("kv/txn") {
            let enough = counts.renewals + 2;
            let _counts = self.changed.wait_while(counts, |it| it.renewals < enough).unwrap();
        }
    }
}
