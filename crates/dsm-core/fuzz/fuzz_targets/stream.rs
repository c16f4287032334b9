//! A whole connection from a peer: a handshake or frames, in pieces of any size. However the bytes
//! are cut, the outcome is the same. Input: what it is, the size of the pieces, then the bytes.
#![no_main]

use std::fs::File;
use std::io::{self, IoSlice};
use std::os::fd::{AsFd, BorrowedFd};
use std::sync::OnceLock;
use std::time::{Duration, Instant};

use dsm_core::NodeId;
use dsm_core::transport::{
    Incoming, Options, Progress, Received, Reject, Socket, Stream, Transport,
};
use dsm_core::wire::{
    ANSWER_LEN, Answer, Channel, ClusterId, Hello, Identity, Incarnation, Kind, Limits, decode,
};

/// Delivers bytes in pieces, then ends; takes whatever is sent, a few bytes at a time.
struct Pieces<'a> {
    bytes: &'a [u8],
    piece: usize,
}

impl AsFd for Pieces<'_> {
    fn as_fd(&self) -> BorrowedFd<'_> {
        static FILE: OnceLock<File> = OnceLock::new();
        FILE.get_or_init(|| File::open("/dev/null").expect("/dev/null")).as_fd()
    }
}

impl Socket for Pieces<'_> {
    fn send(&mut self, slices: &[IoSlice<'_>]) -> io::Result<usize> {
        Ok(slices.iter().map(|slice| slice.len()).sum::<usize>().min(self.piece))
    }

    fn receive(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let count = self.piece.min(buffer.len()).min(self.bytes.len());
        let (now, later) = self.bytes.split_at(count);
        buffer[..count].copy_from_slice(now);
        self.bytes = later;
        Ok(count)
    }
}

/// Every frame and the way it ended.
fn frames(bytes: &[u8], piece: usize) -> (Vec<String>, Result<(), String>) {
    let limits = Limits { nodes: 64, pages: 1 << 20 };
    let mut stream = Stream::new(Pieces { bytes, piece }, "fuzzer", Options::default());
    let mut seen = Vec::new();
    loop {
        let received = stream.receive(&mut |header, body, payload| {
            let bytes: u64 = payload.iter().map(|&byte| u64::from(byte)).sum();
            if matches!(header.kind(), Kind::Control(_)) {
                seen.push(format!("{header:?} {body:?} {bytes}"));
                return Ok(());
            }
            let message = decode(&header, body, &limits).map_err(Reject::from)?;
            seen.push(format!("{message:?} {bytes}"));
            Ok(())
        });
        match received {
            Ok(Received::Closed) => return (seen, Ok(())),
            Ok(_) => {}
            // How much of a frame had come depends on the pieces; that it was cut does not.
            Err(error) => return (seen, Err(format!("{:?}", std::mem::discriminant(&error)))),
        }
    }
}

fn identity(node: usize) -> Identity {
    Identity {
        cluster: ClusterId([0x11; 16]),
        epoch: 3,
        node: NodeId::new(node).expect("a node"),
        nodes: 4,
        workers: 2,
        incarnation: Incarnation(7),
    }
}

/// Whether node 2 takes a call that opens with these bytes.
fn called(bytes: &[u8], piece: usize) -> Option<Hello> {
    let deadline = Instant::now() + Duration::from_secs(60);
    let incoming = Incoming::new(Pieces { bytes, piece }, "fuzzer", deadline);
    match incoming.drive(&identity(2), Options::default(), &mut |_| Ok(())) {
        Ok(Progress::Done(_, hello)) => Some(hello),
        Ok(Progress::Pending(_)) => panic!("the bytes have ended"),
        Err(_) => None,
    }
}

libfuzzer_sys::fuzz_target!(|data: &[u8]| {
    let [what, piece, bytes @ ..] = data else { return };
    let piece = usize::from(*piece) + 1;
    match what % 3 {
        0 => assert_eq!(frames(bytes, piece), frames(bytes, usize::MAX)),
        1 => {
            let hello = called(bytes, piece);
            assert_eq!(hello, called(bytes, usize::MAX));
            if let Some(hello) = hello {
                assert_eq!(hello.to_bytes(), bytes[..dsm_core::wire::HELLO_LEN]);
            }
        }
        _ => {
            let Some(bytes) = bytes.first_chunk::<ANSWER_LEN>() else { return };
            let Ok(answer) = Answer::parse(bytes) else { return };
            assert_eq!(answer.to_bytes(), *bytes);
            if let Answer::Welcome(hello) = answer {
                let to = NodeId::new(2).expect("a node");
                let asked = Hello { from: identity(1), to, channel: Channel::Control };
                let _ = hello.check_answer(&asked);
            }
        }
    }
});
