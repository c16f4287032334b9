//! Listening, calling, and the handshake.
#![allow(clippy::unwrap_used, reason = "a test ends where something is not as it should be")]

mod common;

use std::fs;
use std::io::{Read, Write};
use std::os::unix::fs::PermissionsExt;
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::PathBuf;
use std::time::{Duration, Instant};

use common::{control, numbers, receive, wait_ready};
use dsm_core::NodeId;
use dsm_core::transport::{
    Address, BindError, Class, Flush, Incoming, Listener, Options, Progress, SetupError, Stream,
    Transport, dial,
};
use dsm_core::wire::{
    ANSWER_LEN, Answer, Channel, ClusterId, HELLO_LEN, Hello, Identity, Incarnation, Refusal,
    RefusalCode,
};

/// A directory of its own, removed at the end.
struct Directory(PathBuf);

impl Directory {
    fn new(name: &str) -> Self {
        let path = std::env::temp_dir().join(format!("gvm-{}-{name}", std::process::id()));
        let _ = fs::remove_dir_all(&path);
        fs::create_dir_all(&path).unwrap();
        Self(path)
    }

    fn socket(&self) -> Address {
        Address::Unix(self.0.join("node.sock"))
    }
}

impl Drop for Directory {
    fn drop(&mut self) {
        let _ = fs::remove_dir_all(&self.0);
    }
}

fn node(index: usize) -> NodeId {
    NodeId::new(index).unwrap()
}

fn identity(index: usize) -> Identity {
    Identity {
        cluster: ClusterId([0x11; 16]),
        epoch: 3,
        node: node(index),
        nodes: 4,
        workers: 2,
        incarnation: Incarnation(40 + index as u64),
    }
}

/// Node 1 calls node 2 for the channel of worker 1.
fn hello() -> Hello {
    Hello { from: identity(1), to: node(2), channel: Channel::Worker(1) }
}

/// Enough for anything that works.
fn generous() -> Instant {
    Instant::now() + Duration::from_secs(30)
}

fn next_call(listener: &Listener, deadline: Instant) -> Incoming {
    wait_ready(listener.fd(), libc::POLLIN);
    listener.accept(deadline).unwrap().expect("a call")
}

type Setup = Result<(Stream, Hello), SetupError>;

/// Node 2 listens, another calls with `hello`; what the caller and the called node get.
fn meet(hello: Hello, admit: &mut dyn FnMut(&Hello) -> Result<(), String>) -> (Setup, Setup) {
    let listener = Listener::bind(&"127.0.0.1:0".parse().unwrap()).unwrap();
    let address = listener.address().clone();
    let caller = std::thread::spawn(move || dial(&address, &hello, generous(), Options::default()));
    let called = next_call(&listener, generous()).complete(&identity(2), Options::default(), admit);
    (caller.join().unwrap(), called)
}

#[test]
fn nodes_that_fit_meet_and_talk_at_once() {
    let directory = Directory::new("meet");
    for address in ["127.0.0.1:0".parse().unwrap(), directory.socket()] {
        let listener = Listener::bind(&address).unwrap();
        let address = listener.address().clone();
        let caller =
            std::thread::spawn(move || dial(&address, &hello(), generous(), Options::default()));
        let called = next_call(&listener, generous());
        let (mut called, peer) =
            called.complete(&identity(2), Options::default(), &mut |_| Ok(())).unwrap();
        assert_eq!(peer, hello());
        assert!(called.peer().starts_with("node 1 (channel of worker 1, "), "{}", called.peer());
        // Frames that follow the answer closely are not lost in the handshake.
        called.send(Class::Ordinary, &control(7, b"at once"), &[]).unwrap();
        assert_eq!(called.flush().unwrap(), Flush::Done);
        let (mut caller, peer) = caller.join().unwrap().unwrap();
        assert_eq!(peer, Hello { from: identity(2), to: node(1), channel: Channel::Worker(1) });
        wait_ready(caller.fd(), libc::POLLIN);
        let mut frames = Vec::new();
        let _ = receive(&mut caller, &mut frames).unwrap();
        assert_eq!(numbers(&frames), [7]);
    }
}

#[test]
fn every_field_that_does_not_fit_is_named_with_both_values_on_both_sides() {
    let with = |change: &dyn Fn(&mut Hello)| {
        let mut hello = hello();
        change(&mut hello);
        hello
    };
    let cases = [
        (
            with(&|it| it.from.cluster = ClusterId([0x22; 16])),
            RefusalCode::Cluster,
            ["22222222222222222222222222222222", "11111111111111111111111111111111"],
        ),
        (with(&|it| it.from.epoch = 5), RefusalCode::Epoch, ["5", "3"]),
        (with(&|it| it.from.nodes = 3), RefusalCode::Nodes, ["3", "4"]),
        (with(&|it| it.from.nodes = 65), RefusalCode::Nodes, ["65", "64"]),
        (with(&|it| it.from.workers = 8), RefusalCode::Workers, ["8", "2"]),
        (with(&|it| it.from.node = node(2)), RefusalCode::Node, ["2", "2"]),
        (with(&|it| it.from.node = node(4)), RefusalCode::Node, ["4", "4"]),
        (with(&|it| it.to = node(3)), RefusalCode::To, ["3", "2"]),
        (with(&|it| it.to = node(63)), RefusalCode::To, ["63", "4"]),
        (with(&|it| it.channel = Channel::Worker(2)), RefusalCode::Channel, ["2", "2"]),
        (with(&|it| it.from.incarnation = Incarnation(0)), RefusalCode::Incarnation, ["0", ""]),
    ];
    for (hello, code, values) in cases {
        let (caller, called) = meet(hello, &mut |_| Ok(()));
        let Err(SetupError::Refused { refusal: theirs, .. }) = caller else {
            panic!("{code:?}: the caller was not refused")
        };
        let Err(SetupError::Mismatch { refusal: ours, .. }) = called else {
            panic!("{code:?}: the call was taken")
        };
        assert_eq!((ours.code, &ours), (code, &theirs));
        for value in values {
            assert!(ours.reason.contains(value), "{code:?}: {}", ours.reason);
        }
    }
}

#[test]
fn a_node_that_joins_needs_no_epoch() {
    for channel in [Channel::Control, Channel::Worker(1)] {
        let mut joining = Hello { channel, ..hello() };
        joining.from.epoch = 0;
        let (caller, called) = meet(joining, &mut |_| Ok(()));
        assert!(caller.is_ok() && called.is_ok());
        joining.from.epoch = 2;
        let (caller, called) = meet(joining, &mut |_| Ok(()));
        assert!(caller.is_err() && called.is_err(), "but an old epoch is refused");
    }
}

#[test]
fn the_node_itself_may_refuse_a_caller() {
    let (caller, called) = meet(hello(), &mut |hello| {
        Err(format!("incarnation {} was put out", hello.from.incarnation.0))
    });
    let caller = caller.map(|_| ()).unwrap_err().to_string();
    assert!(caller.contains("incarnation 41 was put out"), "{caller}");
    assert!(matches!(called, Err(SetupError::Mismatch { refusal, .. })
        if refusal.code == RefusalCode::NotAdmitted));
}

/// What a node answers to these bytes, and what it makes of the caller.
fn answer_to(bytes: &[u8]) -> (Option<Refusal>, SetupError) {
    let directory = Directory::new("raw");
    let listener = Listener::bind(&directory.socket()).unwrap();
    let mut caller = UnixStream::connect(directory.0.join("node.sock")).unwrap();
    caller.write_all(bytes).unwrap();
    let called = next_call(&listener, generous()).complete(
        &identity(2),
        Options::default(),
        &mut |_| Ok(()),
    );
    let mut answer = Vec::new();
    let _ = caller.read_to_end(&mut answer);
    let refusal = <[u8; ANSWER_LEN]>::try_from(answer).ok().map(|answer| {
        match Answer::parse(&answer).unwrap() {
            Answer::Refusal(refusal) => refusal,
            Answer::Welcome(_) => panic!("welcome"),
        }
    });
    (refusal, called.map(|_| ()).unwrap_err())
}

#[test]
fn a_hello_of_another_make_is_refused_with_the_reason() {
    let patched = |at: usize, value: u8| {
        let mut bytes = hello().to_bytes();
        bytes[at] = value;
        answer_to(&bytes).0.unwrap()
    };
    let refusal = patched(8, 9);
    assert_eq!(refusal.code, RefusalCode::Protocol);
    let ours = format!("version {}", dsm_core::wire::PROTOCOL_VERSION);
    assert!(refusal.reason.contains("version 9") && refusal.reason.contains(&ours));
    let refusal = patched(49, 0x40);
    assert_eq!(refusal.code, RefusalCode::PageSize);
    assert!(refusal.reason.contains("16384") && refusal.reason.contains("4096"));
    for reserved in [15, 52, HELLO_LEN - 1] {
        assert_eq!(patched(reserved, 1).code, RefusalCode::Malformed);
    }
    assert_eq!(patched(0, b'G').code, RefusalCode::Malformed);
    // Fewer bytes than a hello has: what is wrong at the start is answered at once.
    let (refusal, error) = answer_to(b"GET / HTTP/1.0\r\n\r\n");
    assert_eq!(refusal.unwrap().code, RefusalCode::Malformed);
    assert!(error.to_string().contains("node.sock"), "{error}");
}

#[test]
fn a_wrong_answer_is_refused_by_the_caller() {
    let mut other_node = Hello { from: identity(3), to: node(1), channel: Channel::Worker(1) };
    let wrong_node = Answer::Welcome(other_node).to_bytes();
    other_node.from.node = node(2);
    other_node.channel = Channel::Worker(0);
    let wrong_channel = Answer::Welcome(other_node).to_bytes();
    for (answer, code) in [
        (wrong_node, RefusalCode::Node),
        (wrong_channel, RefusalCode::Channel),
        ([b'x'; ANSWER_LEN], RefusalCode::Malformed),
    ] {
        let directory = Directory::new("wrong");
        let listener = UnixListener::bind(directory.0.join("node.sock")).unwrap();
        let called = std::thread::spawn(move || {
            let (mut socket, _) = listener.accept().unwrap();
            socket.write_all(&answer).unwrap();
            socket
        });
        let error = dial(&directory.socket(), &hello(), generous(), Options::default());
        let Err(SetupError::Mismatch { refusal, .. }) = error else { panic!("{code:?}") };
        assert_eq!(refusal.code, code);
        drop(called.join().unwrap());
    }
}

#[test]
fn a_silent_or_slow_caller_holds_up_nobody_and_times_out() {
    let directory = Directory::new("silent");
    let listener = Listener::bind(&directory.socket()).unwrap();
    let path = directory.0.join("node.sock");
    let drive = |it: Incoming| it.drive(&identity(2), Options::default(), &mut |_| Ok(()));
    let pending = |it: Incoming| match drive(it).unwrap() {
        Progress::Pending(incoming) => incoming,
        Progress::Done(..) => panic!("done"),
    };

    let _silent = UnixStream::connect(&path).unwrap();
    let silent = pending(next_call(&listener, generous()));
    let mut slow = UnixStream::connect(&path).unwrap();
    let mut called = pending(next_call(&listener, generous()));
    let bytes = hello().to_bytes();
    for byte in &bytes[..HELLO_LEN - 1] {
        slow.write_all(&[*byte]).unwrap();
        called = pending(called);
    }
    slow.write_all(&bytes[HELLO_LEN - 1..]).unwrap();
    assert!(matches!(drive(called).unwrap(), Progress::Done(..)));
    drop(pending(silent));

    let mut half = UnixStream::connect(&path).unwrap();
    half.write_all(&bytes[..50]).unwrap();
    let short = Instant::now() + Duration::from_millis(20);
    let late =
        next_call(&listener, short).complete(&identity(2), Options::default(), &mut |_| Ok(()));
    assert!(matches!(late, Err(SetupError::TimedOut { received: 50, .. })));

    // The other way round: a node that listens but does not answer.
    let short = Instant::now() + Duration::from_millis(20);
    let unanswered = dial(&directory.socket(), &hello(), short, Options::default());
    assert!(matches!(unanswered, Err(SetupError::TimedOut { received: 0, .. })));

    drop(half);
    drop(UnixStream::connect(&path).unwrap());
    wait_ready(listener.fd(), libc::POLLIN);
    let unanswered = listener.accept(generous()).unwrap().unwrap();
    drop(unanswered);
    let gone = next_call(&listener, generous());
    assert!(matches!(drive(gone), Err(SetupError::Closed { received: 0, .. })));
}

#[test]
fn nobody_at_the_address_is_said_so() {
    let directory = Directory::new("nobody");
    let short = Instant::now() + Duration::from_secs(5);
    let closed = {
        let listener = Listener::bind(&"127.0.0.1:0".parse().unwrap()).unwrap();
        listener.address().clone()
    };
    for address in [directory.socket(), closed] {
        let error = dial(&address, &hello(), short, Options::default()).map(|_| ()).unwrap_err();
        assert!(matches!(error, SetupError::Connect { .. }), "{error:?}");
        assert!(error.to_string().contains(&address.to_string()));
    }
}

#[test]
fn a_busy_address_is_refused_and_a_dead_nodes_socket_is_replaced() {
    let directory = Directory::new("busy");
    for address in ["127.0.0.1:0".parse().unwrap(), directory.socket()] {
        let first = Listener::bind(&address).unwrap();
        let error = Listener::bind(first.address()).unwrap_err();
        assert!(matches!(error, BindError::Busy { .. }), "{error:?}");
        assert!(error.to_string().contains(&first.address().to_string()));
    }
    let path = directory.0.join("node.sock");
    assert!(!path.exists(), "a listener takes its file with it");

    // A process that ends without tidying up leaves the file.
    drop(UnixListener::bind(&path).unwrap());
    assert!(path.exists());
    let listener = Listener::bind(&directory.socket()).unwrap();
    assert_eq!(fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o600);
    drop(UnixStream::connect(&path).unwrap());

    // Only its own file: one that took its place stays.
    fs::remove_file(&path).unwrap();
    let second = UnixListener::bind(&path).unwrap();
    drop(listener);
    assert!(path.exists());
    drop(second);

    fs::remove_file(&path).unwrap();
    fs::write(&path, "precious").unwrap();
    let error = Listener::bind(&directory.socket()).unwrap_err();
    assert!(matches!(error, BindError::NotASocket { .. }));
    assert_eq!(fs::read(&path).unwrap(), b"precious");

    let missing = Address::Unix(directory.0.join("no/such/node.sock"));
    let error = Listener::bind(&missing).unwrap_err();
    assert!(matches!(error, BindError::NoDirectory { .. }));
    assert!(error.to_string().contains("no/such") && error.to_string().contains("create"));

    let foreign = Listener::bind(&"192.0.2.1:0".parse().unwrap()).unwrap_err();
    assert!(matches!(foreign, BindError::NotHere { .. }), "{foreign:?}");
}

#[test]
fn addresses_are_read_and_written() {
    for (text, written, loopback) in [
        ("unix:/run/gvm.sock", "unix:/run/gvm.sock", true),
        ("127.0.0.1:7000", "tcp:127.0.0.1:7000", true),
        ("tcp:127.8.0.1:0", "tcp:127.8.0.1:0", true),
        ("localhost:7000", "tcp:localhost:7000", true),
        ("[::1]:7000", "tcp:[::1]:7000", true),
        ("[::ffff:127.0.0.1]:1", "tcp:[::ffff:127.0.0.1]:1", true),
        ("0.0.0.0:7000", "tcp:0.0.0.0:7000", false),
        ("[::]:7000", "tcp:[::]:7000", false),
        ("10.0.0.1:7000", "tcp:10.0.0.1:7000", false),
        ("localhost.example.org:1", "tcp:localhost.example.org:1", false),
    ] {
        let address: Address = text.parse().unwrap();
        assert_eq!(address.to_string(), written);
        assert_eq!(written.parse(), Ok(address.clone()));
        assert_eq!(address.is_loopback(), loopback, "{text}");
    }
    let long = format!("unix:/{}", "x".repeat(107));
    for text in [
        "",
        "unix:",
        &long,
        "host",
        "host:",
        ":7000",
        "host:70000",
        "host:+1",
        "host:-1",
        "::1:7",
        "[::1]",
        "[::1:7",
        "[host]:7",
        "tcp:",
        "ho st:1",
        "a/b:1",
    ] {
        let error = text.parse::<Address>().unwrap_err().to_string();
        assert!(error.contains("HOST:PORT"), "{text}: {error}");
    }
}
