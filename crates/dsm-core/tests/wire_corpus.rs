//! The fuzzers' seeds are also what the format must never silently stop to be: one valid message of
//! each sort, as bytes in the repository. After an intended change of the format (and of
//! `PROTOCOL_VERSION`), run this test once with `GIANTVM_WRITE_CORPUS=1`.
#![allow(clippy::unwrap_used, reason = "a test ends where something is not as it should be")]

use std::collections::BTreeMap;
use std::fs;
use std::path::Path;

use dsm_core::protocol::{
    Change, Companion, Freeze, Grant, HandOver, Held, Hint, Holding, Holdings, Invalidate,
    InvalidateAck, Join, Link, Message, Offer, PageGrant, Recover, Report, Request, Right, Room,
    RoomUnused, RoomWanted, Run, Verdict, Walk, WalkTable, Yours,
};
use dsm_core::wire::{
    Answer, Channel, ClusterId, ControlKind, Hello, Identity, Incarnation, Refusal, RefusalCode,
    encode_control, encode_in,
};
use dsm_core::{Access, Age, NodeId, NodeSet, PAGE_SIZE, Page, RegionId, Version};

fn node(index: usize) -> NodeId {
    NodeId::new(index).unwrap()
}

fn version(number: u64) -> Version {
    Version::new(number).unwrap()
}

fn request() -> Request {
    Request {
        page: Page(0x1234),
        access: Access::Write,
        requester: node(3),
        seq: 0x0102_0304,
        have: version(41),
        age: Age { clock: 0x1122_3344_5566_7788, node: node(5) },
        owner_since: version(40),
        via: NodeSet::from_bits(0b1010),
        lease: false,
        companions: Vec::new(),
        copies: 3,
    }
}

fn page_grant(page: u64, right: Right, data: bool, check: Option<u64>) -> PageGrant {
    PageGrant { page: Page(page), version: version(42), right, data, check }
}

fn ownership() -> Right {
    Right::Ownership {
        same_since: version(41),
        copyset: NodeSet::from_bits(0xf000_0000_0000_0001),
        migratory: 2,
    }
}

fn messages() -> Vec<(&'static str, Message)> {
    let companion = |page, have| Companion { page: Page(page), have: version(have) };
    let companions = vec![companion(7, 0), companion(0xf_ffff, 99)];
    let read = Request { access: Access::Read, lease: true, companions, ..request() };
    let pages = vec![
        page_grant(0x1234, ownership(), true, None),
        page_grant(8, Right::Copy, true, None),
        page_grant(9, ownership(), false, Some(0xabcd)),
    ];
    let waiters = vec![request(), Request { access: Access::Read, ..request() }];
    let lease = Grant { seq: 5, pages: vec![], lease: Some(Page(512)), waiters: vec![], copies: 1 };
    let nothing = Grant { seq: 6, pages: vec![], lease: None, waiters: vec![], copies: 2 };
    let page = Page(0x1234);
    let mut messages = vec![
        ("request", Message::Request(request())),
        ("request-companions", Message::Request(read)),
        (
            "grant",
            Message::Grant(Grant { seq: 0x0102_0304, pages, lease: None, waiters, copies: 3 }),
        ),
        ("grant-lease", Message::Grant(lease)),
        (
            "invalidate",
            Message::Invalidate(Invalidate { page, version: version(43), age: request().age }),
        ),
        ("ack", Message::InvalidateAck(InvalidateAck { page, version: version(43) })),
        ("hint", Message::Hint(Hint { page, owner: node(6), owner_since: version(43) })),
        ("grant-nothing", Message::Grant(nothing)),
        (
            "room-wanted",
            Message::RoomWanted(RoomWanted { frames: 32, pressing: true, age: request().age }),
        ),
        ("room", Message::Room(Room { frames: 16 })),
        ("room-unused", Message::RoomUnused(RoomUnused { frames: 4 })),
        (
            "hand-over",
            Message::HandOver(HandOver { pages: vec![page_grant(7, ownership(), true, None)] }),
        ),
    ];
    messages.extend(recoveries().into_iter().map(|(name, it)| (name, Message::Recover(it))));
    messages.extend(walks().into_iter().map(|(name, walk)| (name, Message::Walk(walk))));
    messages
}

fn recoveries() -> Vec<(&'static str, Recover)> {
    let run = |first, pages| Run { first: Page(first), pages };
    let held = |first, pages, holding| Held { run: run(first, pages), holding };
    let runs = vec![
        held(0x200, 512, Holding::Given),
        held(0x1234, 1, Holding::Owned),
        held(0x1235, 3, Holding::Copy),
    ];
    let yours = vec![Yours { run: run(0x1235, 3), copyset: NodeSet::from_bits(0b1010) }];
    let lost = vec![run(0x400, 512), run(0x2000, 1)];
    let untouched = vec![run(0x600, 1024)];
    let (part, last, version) = (2, true, version(99));
    let verdict = Verdict { part, last, version, yours, lost, untouched };
    vec![
        ("recover-entered", Recover::Entered { sent: 0x0102_0304_0506_0708, arrives: true }),
        ("recover-holdings", Recover::Holdings(Holdings { part, last, highest: version, runs })),
        ("recover-verdict", Recover::Verdict(verdict)),
        ("recover-settled", Recover::Settled),
        ("recover-touch", Recover::Touch { page: Page(0x400) }),
        ("recover-noted", Recover::Noted { page: Page(0x400) }),
        ("recover-restore", Recover::Restore { run: run(0x400, 128) }),
        ("recover-unlost", Recover::Unlost { run: run(0x400, 128), owner: node(2), version }),
        ("recover-cleared", Recover::Cleared { run: run(0x400, 128) }),
        ("recover-not-lost", Recover::NotLost { run: run(0x400, 128), page: Page(0x47f) }),
    ]
}

fn walks() -> Vec<(&'static str, Walk)> {
    let page = Page(0x1234);
    let table = WalkTable { level: 2, link: Some(Link { page: Page(0x77), index: 511 }) };
    let waiters = vec![request(), Request { access: Access::Read, ..request() }];
    let offer = Offer { page, version: version(42), same_since: version(41), table, waiters };
    let root = WalkTable { level: 4, link: None };
    let join = Join { seq: 7, copies: 2, page, version: version(43), table: root };
    let change = |index, new| Change { page, index, old: 0x8000_0000_1234_5063, new };
    let (changes, leave) = (vec![change(3, 0), change(511, 0x9063)], vec![page, Page(0x1235)]);
    let report = Report { number: 9, changes: changes.clone(), leave: leave.clone(), last: true };
    vec![
        ("walk-offer", Walk::Offer(offer)),
        ("walk-join", Walk::Join(join)),
        ("walk-report", Walk::Report(report)),
        ("walk-reported", Walk::Reported { number: 9 }),
        ("walk-freeze", Walk::Freeze(Freeze { order: 12, changes, leave, last: true })),
        ("walk-frozen", Walk::Frozen { order: 12 }),
        ("walk-thaw", Walk::Thaw { order: 12 }),
        ("walk-audit", Walk::Audit { page, fingerprint: 0x0102_0304_0506_0708 }),
    ]
}

fn hello() -> Hello {
    Hello {
        from: Identity {
            cluster: ClusterId([0x11; 16]),
            epoch: 3,
            node: node(1),
            nodes: 4,
            workers: 2,
            incarnation: Incarnation(0x0123_4567_89ab_cdef),
        },
        to: node(2),
        channel: Channel::Worker(1),
    }
}

/// Every seed by its path below the corpus.
fn seeds() -> BTreeMap<String, Vec<u8>> {
    let mut seeds = BTreeMap::new();
    let mut stream = vec![0, 99];
    for (name, message) in messages() {
        // The fuzzer's first byte is the number of nodes, less one.
        let mut bytes = vec![63];
        let epoch = if matches!(message, Message::Recover(_)) { 0x0102 } else { 0 };
        encode_in(epoch, &message, RegionId(0x0a0b_0c0d), &mut bytes);
        stream.extend_from_slice(&bytes[1..]);
        let pages = match &message {
            Message::Grant(grant) => &grant.pages[..],
            Message::HandOver(hand_over) => &hand_over.pages,
            _ => &[],
        };
        let walk = matches!(message, Message::Walk(Walk::Offer(_) | Walk::Join(_)));
        let with_data = pages.iter().filter(|page| page.data).count() + usize::from(walk);
        stream.resize(stream.len() + with_data * PAGE_SIZE, 0x5a);
        seeds.insert(format!("decode/seed-{name}"), bytes);
    }
    let kind = ControlKind::new(0x40).unwrap();
    encode_control(kind, RegionId(0), b"control", &mut stream).unwrap();
    seeds.insert("stream/seed-frames".into(), stream);

    let control = Hello { channel: Channel::Control, ..hello() };
    let refusal = Refusal::new(RefusalCode::Epoch, "membership epoch 4 does not match epoch 3");
    let mut add = |name: &str, start: &[u8], bytes: &[u8]| {
        seeds.insert(format!("stream/seed-{name}"), [start, bytes].concat());
    };
    add("hello", &[1, 50], &hello().to_bytes());
    add("hello-control", &[1, 255], &control.to_bytes());
    add("welcome", &[2, 0], &Answer::Welcome(hello()).to_bytes());
    add("refusal", &[2, 0], &Answer::Refusal(refusal).to_bytes());
    seeds
}

#[test]
fn the_format_is_the_one_in_the_corpus() {
    let corpus = Path::new(env!("CARGO_MANIFEST_DIR")).join("fuzz/corpus");
    let write = std::env::var_os("GIANTVM_WRITE_CORPUS").is_some();
    for (name, bytes) in seeds() {
        let path = corpus.join(name);
        if write {
            fs::create_dir_all(path.parent().unwrap()).unwrap();
            fs::write(&path, &bytes).unwrap();
        }
        let found = fs::read(&path).unwrap_or_default();
        assert!(found == bytes, "{}: the wire format has changed", path.display());
    }
}
