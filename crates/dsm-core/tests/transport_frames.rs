//! Frames over connected transports: order, coalescing, partial transfers, bounds, bad peers.
#![allow(clippy::unwrap_used, reason = "a test ends where something is not as it should be")]

mod common;

use common::{
    Script, Scripted, control, grant, is_ready, numbers, page, receive, tcp_streams, unix_streams,
    wait_ready,
};
use dsm_core::PAGE_SIZE;
use dsm_core::transport::{
    Class, Flush, Options, Received, Reject, Transport, TransportError, pair,
};
use dsm_core::wire::{BODY_MAX, PAYLOAD_PAGES_MAX};

const PAGES: [u8; 2] = [1, 2];

fn joined(pages: &[&[u8; PAGE_SIZE]]) -> Vec<u8> {
    pages.iter().flat_map(|page| page.iter().copied()).collect()
}

/// Sends urgent and ordinary messages, with and without pages, to a socket that takes `budget`
/// bytes and then blocks; then one more urgent message; then lets all of it through.
fn order_when_blocked_after(budget: usize) -> Vec<u8> {
    let (mut stream, script) = Scripted::stream(Script { budget, ..Script::default() });
    let pages = PAGES.map(page);
    let pages = [&*pages[0], &*pages[1]];
    stream.send(Class::Ordinary, &control(5, b"first"), &[]).unwrap();
    stream.send(Class::Urgent, &control(1, b"second"), &[]).unwrap();
    stream.send(Class::Urgent, &grant(2, 2), &pages).unwrap();
    stream.send(Class::Ordinary, &control(6, b""), &[]).unwrap();
    stream.send(Class::Urgent, &control(3, b"abc"), &[]).unwrap();
    stream.send(Class::Ordinary, &control(7, b"x"), &[]).unwrap();
    stream.send(Class::Urgent, &grant(4, 1), &pages[..1]).unwrap();
    let _ = stream.flush().unwrap();
    stream.send(Class::Urgent, &control(8, b"late"), &[]).unwrap();
    script.lock().unwrap().budget = usize::MAX;
    assert_eq!(stream.flush().unwrap(), Flush::Done);
    assert_eq!(stream.queued_bytes(), 0);
    let output = std::mem::take(&mut script.lock().unwrap().output);
    assert_eq!(stream.counters().bytes_sent, output.len() as u64);
    output
}

fn parse(pieces: &[&[u8]]) -> Vec<common::Frame> {
    let input = pieces.iter().filter(|it| !it.is_empty()).map(|it| it.to_vec()).collect();
    let (mut stream, _) = Scripted::stream(Script { input, ends: true, ..Script::default() });
    let mut frames = Vec::new();
    while receive(&mut stream, &mut frames).unwrap() != Received::Closed {}
    frames
}

#[test]
fn a_write_split_anywhere_keeps_messages_whole_and_urgent_ones_first() {
    let unhindered = order_when_blocked_after(usize::MAX);
    let base = parse(&[&unhindered]);
    assert_eq!(numbers(&base), [1, 2, 3, 4, 5, 6, 7, 8]);
    let ends: Vec<usize> = base
        .iter()
        .scan(0, |end, (header, ..)| {
            *end += header.frame_len();
            Some(*end)
        })
        .collect();
    for budget in 0..=ends[6] {
        // The late message goes behind every urgent one and behind an ordinary one that had begun.
        let begun = 1 + ends.iter().filter(|&&end| end < budget).count();
        let begun = if budget == 0 { 0 } else { begun };
        let mut expected = vec![1, 2, 3, 4, 5, 6, 7];
        expected.insert(begun.max(4), 8);
        let frames = parse(&[&order_when_blocked_after(budget)]);
        assert_eq!(numbers(&frames), expected, "blocked after {budget} bytes");
        for frame in &base {
            assert!(frames.contains(frame), "blocked after {budget} bytes");
        }
    }
}

#[test]
fn an_ordinary_message_with_pages_that_has_begun_is_not_cut_by_an_urgent_one() {
    let whole = grant(1, 1).len() + PAGE_SIZE;
    for budget in 0..=whole {
        let (mut stream, script) = Scripted::stream(Script { budget, ..Script::default() });
        stream.send(Class::Ordinary, &grant(1, 1), &[&page(1)]).unwrap();
        stream.send(Class::Urgent, &control(2, b"urgent"), &[]).unwrap();
        script.lock().unwrap().budget = usize::MAX;
        assert_eq!(stream.flush().unwrap(), Flush::Done);
        let output = std::mem::take(&mut script.lock().unwrap().output);
        let frames = parse(&[&output]);
        assert_eq!(numbers(&frames), if budget == 0 { [2, 1] } else { [1, 2] });
        assert!(frames.iter().any(|frame| frame.2 == page(1)[..]));
    }
}

#[test]
fn a_read_split_anywhere_gives_the_same_frames() {
    let bytes = order_when_blocked_after(usize::MAX);
    let whole = parse(&[&bytes]);
    assert_eq!(whole[1].2, [&page(1)[..], &page(2)[..]].concat());
    for split in 0..=bytes.len() {
        let (start, end) = bytes.split_at(split);
        assert_eq!(parse(&[start, end]), whole, "split after {split} bytes");
    }
    let single: Vec<&[u8]> = bytes.chunks(1).collect();
    assert_eq!(parse(&single), whole);
}

#[test]
fn more_than_the_buffer_holds_comes_through_in_any_pieces() {
    let pages = [7; PAYLOAD_PAGES_MAX].map(page);
    let pages: Vec<_> = pages.iter().map(|page| &**page).collect();
    let (mut stream, script) = Scripted::stream(Script { budget: usize::MAX, ..Script::default() });
    for number in 0..40 {
        stream.send(Class::Urgent, &grant(number, pages.len()), &pages).unwrap();
        stream.send(Class::Urgent, &control(1000, &[3; BODY_MAX]), &[]).unwrap();
    }
    assert_eq!(stream.flush().unwrap(), Flush::Done);
    let bytes = std::mem::take(&mut script.lock().unwrap().output);
    for piece in [70_001, 4096, 999_999] {
        let pieces: Vec<&[u8]> = bytes.chunks(piece).collect();
        let frames = parse(&pieces);
        assert_eq!(frames.len(), 80);
        assert!(frames.iter().step_by(2).all(|frame| frame.2 == joined(&pages)));
        assert!(frames.iter().skip(1).step_by(2).all(|frame| frame.1 == [3; BODY_MAX]));
    }
}

#[test]
fn small_messages_share_one_write_and_pages_leave_at_once_in_one() {
    for (mut writer, mut reader) in
        [unix_streams(Options::default()), tcp_streams(Options::default())]
    {
        for number in 0..100 {
            writer.send(Class::Ordinary, &control(number, b"small"), &[]).unwrap();
        }
        assert_eq!(writer.counters().writes, 0);
        assert_eq!(writer.flush().unwrap(), Flush::Done);
        assert_eq!((writer.counters().writes, writer.counters().messages_sent), (1, 100));
        wait_ready(reader.fd(), libc::POLLIN);
        let mut frames = Vec::new();
        assert_eq!(receive(&mut reader, &mut frames).unwrap(), Received::WouldBlock);
        assert_eq!(numbers(&frames), (0..100).collect::<Vec<_>>());
        assert_eq!((reader.counters().reads, reader.counters().messages_received), (1, 100));

        let pages = [3, 4, 5].map(page);
        let pages: Vec<_> = pages.iter().map(|page| &**page).collect();
        writer.send(Class::Urgent, &control(200, b"goes along"), &[]).unwrap();
        writer.send(Class::Urgent, &grant(201, 3), &pages).unwrap();
        assert_eq!((writer.counters().writes, writer.queued_bytes()), (2, 0));
        frames.clear();
        while frames.len() < 2 {
            wait_ready(reader.fd(), libc::POLLIN);
            let _ = receive(&mut reader, &mut frames).unwrap();
        }
        assert_eq!(numbers(&frames), [200, 201]);
        assert_eq!(frames[1].2, joined(&pages));
        assert_eq!(reader.counters().bytes_received, writer.counters().bytes_sent);
    }
}

#[test]
fn urgent_messages_overtake_what_a_peer_has_not_read_and_memory_is_bounded() {
    let options = Options { queue_bytes_max: 1 << 20 };
    for (mut writer, mut reader) in [unix_streams(options), tcp_streams(options)] {
        let message = control(0, &[0; 1000]);
        let mut sent = 0;
        while writer.flush().unwrap() == Flush::Done || writer.queued_bytes() < 1 << 19 {
            writer.send(Class::Ordinary, &message, &[]).unwrap();
            sent += 1;
        }
        let pages = [page(1)];
        writer.send(Class::Urgent, &control(1, b""), &[]).unwrap();
        writer.send(Class::Urgent, &grant(2, 1), &[&pages[0]]).unwrap();

        let mut frames = Vec::new();
        while frames.len() < sent + 2 {
            wait_ready(reader.fd(), libc::POLLIN);
            let _ = receive(&mut reader, &mut frames).unwrap();
            let _ = writer.flush().unwrap();
        }
        let numbers = numbers(&frames);
        let urgent = numbers.iter().position(|&number| number == 1).unwrap();
        assert_eq!(numbers[urgent + 1], 2);
        // Half a mebibyte of ordinary messages was waiting, and is behind them.
        assert!(sent - urgent > 400, "{urgent} of {sent} ordinary messages went first");

        let error = loop {
            let _ = writer.flush().unwrap();
            assert!(writer.queued_bytes() <= options.queue_bytes_max);
            if let Err(error) = writer.send(Class::Urgent, &message, &[]) {
                break error;
            }
        };
        assert!(matches!(error, TransportError::DoesNotRead { max: 0x10_0000, .. }));
        assert!(error.to_string().contains("reader"));
        // Something is lost: even what would fit must not go out any more.
        assert!(writer.send(Class::Urgent, &control(9, b""), &[]).is_err());
    }
}

/// Feeds bytes to a stream whose peer is "node 9"; the first error.
fn error_of(bytes: &[u8]) -> TransportError {
    let input = [bytes.to_vec()].into();
    let (mut stream, _) = Scripted::stream(Script { input, ends: true, ..Script::default() });
    loop {
        match receive(&mut stream, &mut Vec::new()) {
            Err(error) => return error,
            Ok(Received::Closed) => panic!("no error"),
            Ok(_) => {}
        }
    }
}

#[test]
fn nonsense_is_an_error_that_names_the_peer() {
    let mut unknown_kind = control(1, b"");
    unknown_kind[2] = 0xee;
    let after_good = [control(1, b"good"), b"GET / HTTP/1.1\r\n".to_vec()].concat();
    // A header alone: its lengths are refused before a byte of what they announce has come.
    let mut too_long = control(1, b"");
    too_long[8..12].copy_from_slice(&u32::MAX.to_le_bytes());
    let mut too_many_pages = grant(1, 1);
    too_many_pages[12..14].copy_from_slice(&u16::MAX.to_le_bytes());
    for bytes in [unknown_kind, after_good, too_long, too_many_pages] {
        let error = error_of(&bytes);
        assert!(matches!(error, TransportError::Nonsense { .. }), "{error:?}");
        assert!(error.to_string().contains("node 9"));
    }
}

#[test]
fn a_connection_that_ends_within_a_message_is_an_error() {
    let bytes = [grant(1, 1), page(1).to_vec()].concat();
    for end in [1, 15, 16, 17, bytes.len() - 1] {
        let error = error_of(&bytes[..end]);
        assert!(
            matches!(error, TransportError::Truncated { received, .. } if received == end),
            "{error:?}"
        );
    }
    let (writer, mut reader) = unix_streams(Options::default());
    drop(writer);
    assert_eq!(receive(&mut reader, &mut Vec::new()).unwrap(), Received::Closed);
}

#[test]
fn the_receivers_refusal_ends_the_connection() {
    let (mut writer, mut reader) = unix_streams(Options::default());
    for number in 0..3 {
        writer.send(Class::Ordinary, &control(number, b""), &[]).unwrap();
    }
    assert_eq!(writer.flush().unwrap(), Flush::Done);
    let mut seen = 0;
    let error = reader
        .receive(&mut |header, _, _| {
            seen += 1;
            if header.region().0 == 1 { Err(Reject("no region 1".into())) } else { Ok(()) }
        })
        .unwrap_err();
    assert_eq!(seen, 2);
    let TransportError::Rejected { peer, source } = error else { panic!("{error:?}") };
    assert_eq!((peer.as_str(), source.0.as_str()), ("writer", "no region 1"));
}

#[test]
fn a_peer_that_has_gone_is_an_error_and_no_signal() {
    // SAFETY: sets the default disposition; no handler is involved. Test binaries ignore SIGPIPE,
    // which would hide that a send raises it.
    unsafe { libc::signal(libc::SIGPIPE, libc::SIG_DFL) };
    let (mut writer, reader) = unix_streams(Options::default());
    drop(reader);
    writer.send(Class::Ordinary, &control(0, b""), &[]).unwrap();
    let error = writer.flush().unwrap_err();
    assert!(matches!(error, TransportError::Io { action: "send", .. }), "{error:?}");
    let error = writer.send(Class::Urgent, &grant(1, 1), &[&page(1)]).unwrap_err();
    assert!(error.to_string().contains("reader"));
}

#[test]
fn in_process_ends_behave_like_streams() {
    let options = Options { queue_bytes_max: 64 << 10 };
    let (mut a, mut b) = pair("b", "a", options).unwrap();
    assert!(!is_ready(b.fd(), libc::POLLIN, 0));
    a.send(Class::Ordinary, &control(3, b"x"), &[]).unwrap();
    a.send(Class::Urgent, &control(1, b"y"), &[]).unwrap();
    assert!(!is_ready(b.fd(), libc::POLLIN, 0), "nothing leaves before a flush or a page");
    a.send(Class::Urgent, &grant(2, 1), &[&page(1)]).unwrap();
    assert!(is_ready(b.fd(), libc::POLLIN, 0));
    let mut frames = Vec::new();
    assert_eq!(receive(&mut b, &mut frames).unwrap(), Received::WouldBlock);
    assert_eq!(numbers(&frames), [1, 2, 3]);
    assert_eq!(frames[1].2, page(1).to_vec());
    assert!(!is_ready(b.fd(), libc::POLLIN, 0));
    assert_eq!((a.queued_bytes(), a.counters().writes), (0, 1));

    let mut sent = 0;
    let error = loop {
        match a.send(Class::Urgent, &grant(4, 1), &[&page(1)]) {
            Ok(()) => sent += 1,
            Err(error) => break error,
        }
    };
    assert_eq!(sent, (64 << 10) / (16 + PAGE_SIZE));
    assert!(matches!(error, TransportError::DoesNotRead { .. }));

    drop(a);
    frames.clear();
    assert_eq!(receive(&mut b, &mut frames).unwrap(), Received::More);
    assert_eq!(frames.len(), sent);
    assert_eq!(receive(&mut b, &mut frames).unwrap(), Received::Closed);
    b.send(Class::Ordinary, &control(0, b""), &[]).unwrap();
    assert!(b.flush().is_err());

    let (mut a, mut b) = pair("b", "a", options).unwrap();
    a.send(Class::Ordinary, b"nonsense that is long enough", &[]).unwrap();
    assert_eq!(a.flush().unwrap(), Flush::Done);
    let error = receive(&mut b, &mut Vec::new()).unwrap_err();
    assert!(matches!(error, TransportError::Nonsense { .. }));
}
