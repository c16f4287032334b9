//! Round trips, refusals and golden sizes of the wire format.

use proptest::collection::{btree_set, vec};
use proptest::prelude::*;

use super::*;
use crate::protocol::{
    CHANGES_MAX, Change, Companion, Freeze, Grant, HAND_OVER_MAX, HandOver, Held, Hint, Holding,
    Holdings, Invalidate, InvalidateAck, Join, Link, Message, Offer, PageGrant, RUNS_MAX, Recover,
    Report, Request, Right, Room, RoomUnused, RoomWanted, Run, Verdict, WALK_PAGES_MAX, Walk,
    WalkTable, Yours,
};
use crate::types::{Access, Age, NODES_MAX, NodeId, NodeSet, PAGE_SIZE, Page, RegionId, Version};

const LIMITS: Limits = Limits { nodes: 17, pages: 1 << 20 };
const REGION: RegionId = RegionId(7);

fn node() -> impl Strategy<Value = NodeId> {
    (0..LIMITS.nodes).prop_map(|index| NodeId::new(index).unwrap())
}

fn nodes() -> impl Strategy<Value = NodeSet> {
    (0u64..1 << LIMITS.nodes).prop_map(NodeSet::from_bits)
}

fn page() -> impl Strategy<Value = Page> {
    (0..LIMITS.pages).prop_map(Page)
}

fn version() -> impl Strategy<Value = Version> {
    prop_oneof![0..=Version::MAX.get(), Just(Version::MAX.get()), 0..3u64]
        .prop_map(|number| Version::new(number).unwrap())
}

fn age() -> impl Strategy<Value = Age> {
    (any::<u64>(), node()).prop_map(|(clock, node)| Age { clock, node })
}

fn waiter(page: impl Strategy<Value = Page>) -> impl Strategy<Value = Request> {
    let access = prop_oneof![Just(Access::Read), Just(Access::Write)];
    let seq = (any::<u32>(), 1..=u8::MAX);
    let fields = (page, access, node(), seq, version(), age(), version(), nodes());
    fields.prop_map(|(page, access, requester, (seq, copies), have, age, owner_since, via)| {
        Request {
            page,
            access,
            requester,
            seq,
            have,
            age,
            owner_since,
            via,
            lease: false,
            companions: Vec::new(),
            copies,
        }
    })
}

fn request() -> impl Strategy<Value = Request> {
    let companions = btree_set((0..LIMITS.pages).prop_map(Page), 0..=COMPANIONS_MAX);
    (waiter(page()), any::<bool>(), companions, version()).prop_map(
        |(mut request, lease, companions, have)| {
            request.lease = lease;
            request.companions = companions
                .into_iter()
                .filter(|&page| page != request.page)
                .map(|page| Companion { page, have })
                .collect();
            request
        },
    )
}

fn right() -> impl Strategy<Value = Right> {
    let ownership = (version(), nodes(), 0..=3u8).prop_map(|(same_since, copyset, migratory)| {
        Right::Ownership { same_since, copyset, migratory }
    });
    prop_oneof![Just(Right::Copy), ownership]
}

fn page_grant() -> impl Strategy<Value = PageGrant> {
    (page(), version(), right(), any::<bool>(), any::<Option<u64>>()).prop_map(
        |(page, version, mut right, data, check)| {
            if let Right::Ownership { same_since, .. } = &mut right {
                *same_since = version.min(*same_since);
            }
            PageGrant { page, version, right, data, check }
        },
    )
}

fn grant() -> impl Strategy<Value = Grant> {
    let pages = vec(page_grant(), 1..=PAYLOAD_PAGES_MAX);
    let waiters = vec(waiter(page()), 0..=WAITERS_MAX);
    let number = (any::<u32>(), 1..=u8::MAX);
    (number, pages, proptest::option::weighted(0.2, page()), waiters).prop_map(
        |((seq, copies), mut pages, lease, mut waiters)| {
            let first = pages[0].page;
            waiters.iter_mut().for_each(|waiter| waiter.page = first);
            let mut seen = Vec::new();
            pages.retain(|grant| {
                let new = lease.is_none() && !seen.contains(&grant.page);
                seen.push(grant.page);
                new
            });
            if pages.is_empty() {
                waiters.clear();
            }
            if seq % 11 == 0 {
                pages.clear();
                waiters.clear();
            }
            Grant { seq, pages, lease, waiters, copies }
        },
    )
}

fn hand_over() -> impl Strategy<Value = HandOver> {
    let ownership = (version(), nodes(), 0..=3u8);
    let page = (page(), version(), ownership, any::<Option<u64>>()).prop_map(
        |(page, version, (same_since, copyset, migratory), check)| {
            let same_since = version.min(same_since);
            let right = Right::Ownership { same_since, copyset, migratory };
            PageGrant { page, version, right, data: true, check }
        },
    );
    vec(page, 1..=HAND_OVER_MAX).prop_map(|mut pages| {
        let mut seen = Vec::new();
        pages.retain(|grant| {
            let new = !seen.contains(&grant.page);
            seen.push(grant.page);
            new
        });
        HandOver { pages }
    })
}

fn table() -> impl Strategy<Value = WalkTable> {
    let link = (page(), 0..512u16).prop_map(|(page, index)| Link { page, index });
    (1..=5u8, proptest::option::of(link)).prop_map(|(level, link)| WalkTable { level, link })
}

fn report() -> impl Strategy<Value = Report> {
    let words = proptest::collection::btree_map((page(), 0..512u16), any::<[u64; 2]>(), 0..40);
    let leave = btree_set(page(), 0..10);
    (any::<u64>(), words, leave).prop_map(|(number, words, leave)| {
        let change =
            |((page, index), [old, new]): ((Page, u16), [u64; 2])| Change { page, index, old, new };
        let changes = words.into_iter().map(change).filter(|it| it.old != it.new).collect();
        Report { number, changes, leave: leave.into_iter().collect(), last: true }
    })
}

fn walk() -> impl Strategy<Value = Walk> {
    let waiters = vec(waiter(page()), 0..=WAITERS_MAX);
    let offer = (page(), version(), version(), table(), waiters).prop_map(
        |(page, version, since, table, mut waiters)| {
            waiters.iter_mut().for_each(|waiter| waiter.page = page);
            Offer { page, version, same_since: version.min(since), table, waiters }
        },
    );
    let join = (any::<u32>(), 1..=u8::MAX, page(), version(), table())
        .prop_map(|(seq, copies, page, version, table)| Join { seq, copies, page, version, table });
    prop_oneof![
        offer.prop_map(Walk::Offer),
        join.prop_map(Walk::Join),
        report().prop_map(Walk::Report),
        report().prop_map(|Report { number: order, changes, leave, last }| {
            Walk::Freeze(Freeze { order, changes, leave, last })
        }),
        any::<u64>().prop_map(|number| Walk::Reported { number }),
        any::<u64>().prop_map(|order| Walk::Frozen { order }),
        any::<u64>().prop_map(|order| Walk::Thaw { order }),
        (page(), any::<u64>()).prop_map(|(page, fingerprint)| Walk::Audit { page, fingerprint }),
    ]
}

/// Runs of pages that ascend.
fn runs(most: usize) -> impl Strategy<Value = Vec<Run>> {
    vec((0..50u64, 1..20u32), 0..=most).prop_map(|gaps| {
        let mut at = 0;
        let run = |(gap, pages)| {
            let first = Page(at + gap);
            at = first.0 + u64::from(pages);
            Run { first, pages }
        };
        gaps.into_iter().map(run).collect()
    })
}

fn run() -> impl Strategy<Value = Run> {
    (page(), 1u32..600).prop_map(|(first, pages)| {
        let pages = u64::from(pages).min(LIMITS.pages - first.0) as u32;
        Run { first, pages }
    })
}

fn recover() -> impl Strategy<Value = Recover> {
    let holding = prop_oneof![
        Just(Holding::Owned),
        Just(Holding::Copy),
        Just(Holding::Given),
        Just(Holding::Lost),
    ];
    let part = (any::<u32>(), any::<bool>());
    let holdings = (part, version(), runs(RUNS_MAX), holding).prop_map(
        |((part, last), highest, runs, holding)| {
            let runs = runs.into_iter().map(|run| Held { run, holding }).collect();
            Recover::Holdings(Holdings { part, last, highest, runs })
        },
    );
    let third = || runs(RUNS_MAX / 3);
    let verdict = (part, version(), third(), nodes(), third(), third()).prop_map(
        |((part, last), version, yours, copyset, lost, untouched)| {
            let yours = yours.into_iter().map(|run| Yours { run, copyset }).collect();
            Recover::Verdict(Verdict { part, last, version, yours, lost, untouched })
        },
    );
    prop_oneof![
        any::<(u64, bool)>().prop_map(|(sent, arrives)| Recover::Entered { sent, arrives }),
        holdings,
        verdict,
        Just(Recover::Settled),
        page().prop_map(|page| Recover::Touch { page }),
        page().prop_map(|page| Recover::Noted { page }),
        run().prop_map(|run| Recover::Restore { run }),
        (run(), node(), version()).prop_map(|(run, owner, version)| Recover::Unlost {
            run,
            owner,
            version
        }),
        run().prop_map(|run| Recover::Cleared { run }),
        run().prop_map(|run| Recover::NotLost { run, page: Page(run.end().0 - 1) }),
    ]
}

fn message() -> impl Strategy<Value = Message> {
    prop_oneof![
        3 => request().prop_map(Message::Request),
        4 => grant().prop_map(Message::Grant),
        1 => (page(), version(), age())
            .prop_map(|(page, version, age)| Message::Invalidate(Invalidate { page, version, age })),
        1 => (page(), version())
            .prop_map(|(page, version)| Message::InvalidateAck(InvalidateAck { page, version })),
        1 => (page(), node(), version())
            .prop_map(|(page, owner, owner_since)| Message::Hint(Hint { page, owner, owner_since })),
        1 => (1..=u8::MAX, any::<bool>(), age()).prop_map(|(frames, pressing, age)| {
            Message::RoomWanted(RoomWanted { frames, pressing, age })
        }),
        1 => any::<u8>().prop_map(|frames| Message::Room(Room { frames })),
        1 => any::<u32>().prop_map(|frames| Message::RoomUnused(RoomUnused { frames })),
        2 => hand_over().prop_map(Message::HandOver),
        2 => recover().prop_map(Message::Recover),
        4 => walk().prop_map(Message::Walk),
    ]
}

fn encoded(message: &Message) -> Vec<u8> {
    let mut bytes = Vec::new();
    encode(message, REGION, &mut bytes);
    bytes
}

/// Reads one frame without its payload; the body may be shorter or longer than announced.
fn decoded(bytes: &[u8], limits: &Limits) -> Result<Message, WireError> {
    let header = FrameHeader::parse_prefix(bytes)?.expect("a header");
    decode(&header, &bytes[HEADER_LEN..], limits)
}

/// `message` with byte `at` of its body changed to `value`.
fn patched(message: &Message, at: usize, value: u8) -> Result<Message, WireError> {
    let mut bytes = encoded(message);
    bytes[HEADER_LEN + at] = value;
    decoded(&bytes, &LIMITS)
}

proptest! {
    #[test]
    fn a_message_survives_the_wire(message in message()) {
        let bytes = encoded(&message);
        let header = FrameHeader::parse_prefix(&bytes)?.unwrap();
        prop_assert_eq!(header.region(), REGION);
        prop_assert_eq!(HEADER_LEN + header.body_len(), bytes.len());
        prop_assert_eq!(decoded(&bytes, &LIMITS)?, message);
    }

    #[test]
    fn a_message_cut_anywhere_is_an_error(message in message()) {
        let bytes = encoded(&message);
        let header = FrameHeader::parse_prefix(&bytes)?.unwrap();
        for end in HEADER_LEN..bytes.len() {
            let body = &bytes[HEADER_LEN..end];
            prop_assert!(decode(&header, body, &LIMITS).is_err());
            // Also when the header announces the shorter body.
            let announced = FrameHeader::new(
                header.kind(), header.region(), body.len(), header.payload_pages(),
            )?;
            prop_assert!(decode(&announced, body, &LIMITS).is_err());
        }
        for end in 0..HEADER_LEN {
            prop_assert_eq!(FrameHeader::parse_prefix(&bytes[..end]), Ok(None));
        }
    }

    #[test]
    fn bytes_that_decode_are_the_only_encoding(
        message in message(),
        changes in vec((any::<prop::sample::Index>(), any::<u8>()), 1..4),
    ) {
        let mut bytes = encoded(&message);
        for (at, value) in changes {
            let at = at.index(bytes.len());
            bytes[at] = value;
        }
        if let Ok(Some(header)) = FrameHeader::parse_prefix(&bytes)
            && let Ok(message) = decode(&header, &bytes[HEADER_LEN..], &LIMITS)
        {
            let mut again = Vec::new();
            encode_in(header.epoch(), &message, header.region(), &mut again);
            prop_assert_eq!(again, bytes);
        }
    }

    #[test]
    fn any_bytes_are_a_message_or_an_error(
        code in 1u8..0x1c,
        pages in 0usize..=1,
        body in vec(any::<u8>(), 0..400),
    ) {
        let kind = Kind::from_code(code).unwrap();
        if let Ok(header) = FrameHeader::new(kind, REGION, body.len(), pages) {
            let _ = decode(&header, &body, &LIMITS);
        }
    }

    #[test]
    fn any_header_is_read_back_or_refused(bytes in any::<[u8; HEADER_LEN]>(), ours in any::<bool>()) {
        let mut bytes = bytes;
        if ours {
            let good = FrameHeader::new(Kind::Hint, REGION, 16, 0)?.to_bytes();
            bytes[..4].copy_from_slice(&good[..4]);
            bytes[10..].copy_from_slice(&good[10..]);
        }
        if let Ok(header) = FrameHeader::parse(&bytes) {
            prop_assert_eq!(header.to_bytes(), bytes);
            prop_assert!(header.frame_len() <= FRAME_MAX);
        }
    }

    #[test]
    fn any_handshake_is_read_back_or_refused(
        noise in vec(any::<u8>(), ANSWER_LEN),
        changes in vec((0..ANSWER_LEN, any::<u8>()), 0..3),
    ) {
        let noise: [u8; ANSWER_LEN] = noise.try_into().unwrap();
        prop_assert!(Answer::parse(&noise).is_err());
        prop_assert!(Hello::parse(noise.first_chunk().unwrap()).is_err());
        let refusal = Answer::Refusal(Refusal::new(RefusalCode::Epoch, "epoch 1, not 2"));
        for answer in [Answer::Welcome(hello()), refusal] {
            let mut bytes = answer.to_bytes();
            changes.iter().for_each(|&(at, value)| bytes[at] = value);
            if let Ok(answer) = Answer::parse(&bytes) {
                prop_assert_eq!(answer.to_bytes(), bytes);
            }
        }
    }
}

fn a_request() -> Request {
    Request {
        page: Page(5),
        access: Access::Write,
        requester: NodeId::new(1).unwrap(),
        seq: 9,
        have: Version::ZERO,
        age: Age { clock: 3, node: NodeId::new(1).unwrap() },
        owner_since: Version::ZERO,
        via: NodeSet::EMPTY,
        lease: false,
        companions: Vec::new(),
        copies: 1,
    }
}

fn a_page_grant(page: u64) -> PageGrant {
    PageGrant {
        page: Page(page),
        version: Version::new(4).unwrap(),
        right: Right::Ownership {
            same_since: Version::new(4).unwrap(),
            copyset: NodeSet::EMPTY,
            migratory: 0,
        },
        data: true,
        check: None,
    }
}

fn a_grant() -> Grant {
    let (pages, waiters) = (vec![a_page_grant(5)], vec![a_request()]);
    Grant { seq: 9, pages, lease: None, waiters, copies: 1 }
}

fn a_hint() -> Hint {
    Hint { page: Page(1), owner: NodeId::new(2).unwrap(), owner_since: Version::ZERO }
}

#[test]
fn a_page_message_carries_its_epoch_and_a_control_message_none() {
    let message = Message::Room(Room { frames: 3 });
    let mut bytes = Vec::new();
    encode_in(0xabcd, &message, REGION, &mut bytes);
    assert_eq!(bytes[14..16], [0xcd, 0xab]);
    let header = FrameHeader::parse_prefix(&bytes).unwrap().unwrap();
    assert_eq!(header.epoch(), 0xabcd);
    assert_eq!(decoded(&bytes, &LIMITS), Ok(message));
    let mut control = Vec::new();
    encode_control(ControlKind::new(0x40).unwrap(), REGION, b"", &mut control).unwrap();
    control[14] = 1;
    let found = FrameHeader::parse_prefix(&control);
    assert_eq!(found, Err(WireError::Reserved { field: "epoch", found: 1 }));
}

#[test]
fn runs_of_pages_that_overlap_or_leave_the_region_are_refused() {
    let run = |first, pages| Run { first: Page(first), pages };
    let verdict = |lost, untouched| {
        let (version, yours) = (Version::ZERO, Vec::new());
        let verdict = Verdict { part: 0, last: true, version, yours, lost, untouched };
        decoded(&encoded(&Message::Recover(Recover::Verdict(verdict))), &LIMITS)
    };
    assert!(verdict(vec![run(3, 2), run(5, 1)], vec![run(0, 2), run(2, 1)]).is_ok());
    assert!(verdict(vec![run(LIMITS.pages - 2, 2)], vec![]).is_ok());
    for wrong in [
        vec![run(3, 0)],
        vec![run(3, 3), run(5, 1)],
        vec![run(LIMITS.pages - 2, 3)],
        vec![run(u64::MAX, u32::MAX)],
    ] {
        assert!(verdict(wrong.clone(), vec![]).is_err(), "{wrong:?}");
        assert!(verdict(vec![], wrong.clone()).is_err(), "{wrong:?}");
    }
}

#[test]
fn runs_to_restore_are_checked() {
    let run = |first, pages| Run { first: Page(first), pages };
    let decoded = |message| decoded(&encoded(&Message::Recover(message)), &LIMITS);
    let (owner, version) = (NodeId::new(0).unwrap(), Version::ZERO);
    for run in [run(3, 0), run(LIMITS.pages - 2, 3), run(u64::MAX, u32::MAX)] {
        assert!(decoded(Recover::Restore { run }).is_err(), "{run:?}");
        assert!(decoded(Recover::Cleared { run }).is_err(), "{run:?}");
        assert!(decoded(Recover::Unlost { run, owner, version }).is_err(), "{run:?}");
        assert!(decoded(Recover::NotLost { run, page: run.first }).is_err(), "{run:?}");
    }
    let owner = NodeId::new(NODES_MAX - 1).unwrap();
    assert!(decoded(Recover::Unlost { run: run(3, 2), owner, version }).is_err());
    assert!(decoded(Recover::NotLost { run: run(3, 2), page: Page(4) }).is_ok());
    assert!(decoded(Recover::NotLost { run: run(3, 2), page: Page(5) }).is_err());
}

#[test]
fn the_largest_messages_fit() {
    let limits = Limits { nodes: NODES_MAX, pages: 1 << 52 };
    let pages = (0..PAYLOAD_PAGES_MAX as u64).map(|page| a_page_grant(page + 5)).collect();
    let waiters = vec![a_request(); WAITERS_MAX];
    let grant = Message::Grant(Grant { pages, waiters, ..a_grant() });
    let bytes = encoded(&grant);
    assert_eq!(bytes.len() - HEADER_LEN, 4368);
    assert!(bytes.len() - HEADER_LEN <= BODY_MAX);
    assert_eq!(decoded(&bytes, &limits), Ok(grant));
    let header = FrameHeader::parse_prefix(&bytes).unwrap().unwrap();
    assert_eq!(header.payload_len(), PAYLOAD_PAGES_MAX * PAGE_SIZE);

    let companion = |page| Companion { page: Page(page), have: Version::MAX };
    let companions = (100..100 + COMPANIONS_MAX as u64).map(companion).collect();
    let request = Message::Request(Request { companions, ..a_request() });
    assert_eq!(decoded(&encoded(&request), &limits), Ok(request));
}

#[test]
fn the_largest_reports_fit_and_smaller_parts_are_refused() {
    let change = |at: u64| Change { page: Page(at), index: 511, old: at, new: u64::MAX };
    let changes: Vec<Change> = (0..CHANGES_MAX as u64).map(change).collect();
    let leave = (0..WALK_PAGES_MAX as u64).map(Page).collect();
    let whole = Report { number: 1, changes: changes.clone(), leave, last: true };
    let message = Message::Walk(Walk::Report(whole));
    let bytes = encoded(&message);
    assert!(bytes.len() - HEADER_LEN <= BODY_MAX);
    assert_eq!(decoded(&bytes, &LIMITS), Ok(message));

    let part = Report { number: 1, changes, leave: Vec::new(), last: false };
    let message = Message::Walk(Walk::Report(part.clone()));
    assert_eq!(decoded(&encoded(&message), &LIMITS), Ok(message));
    let short = Report { changes: part.changes[1..].to_vec(), ..part.clone() };
    let leaves = Report { leave: vec![Page(1)], ..part };
    for wrong in [short, leaves] {
        let message = Message::Walk(Walk::Report(wrong));
        let refused = decoded(&encoded(&message), &LIMITS);
        assert!(matches!(refused, Err(WireError::Contradiction { .. })), "{refused:?}");
    }
}

#[test]
fn changes_and_tables_that_cannot_be_are_refused() {
    let change = |page, index, old, new| Change { page: Page(page), index, old, new };
    let report = |changes: Vec<Change>, leave: &[u64]| {
        let leave = leave.iter().copied().map(Page).collect();
        Message::Walk(Walk::Report(Report { number: 1, changes, leave, last: true }))
    };
    let refused = |message: &Message| decoded(&encoded(message), &LIMITS).unwrap_err();
    for (changes, leave) in [
        (vec![change(1, 0, 5, 5)], &[][..]),
        (vec![change(1, 1, 5, 6), change(1, 1, 6, 7)], &[]),
        (vec![change(2, 0, 5, 6), change(1, 1, 6, 7)], &[]),
        (vec![], &[2, 2]),
        (vec![], &[2, 1]),
    ] {
        let error = refused(&report(changes, leave));
        assert!(matches!(error, WireError::Contradiction { .. }), "{error}");
    }
    for (changes, leave) in [
        (vec![change(1, 512, 5, 6)], &[][..]),
        (vec![change(LIMITS.pages, 0, 5, 6)], &[]),
        (vec![], &[LIMITS.pages]),
    ] {
        let error = refused(&report(changes, leave));
        assert!(matches!(error, WireError::Beyond { .. }), "{error}");
    }
    let join = |table| {
        let (page, version) = (Page(1), Version::ZERO);
        Message::Walk(Walk::Join(Join { seq: 1, copies: 1, page, version, table }))
    };
    let error = refused(&join(WalkTable { level: 0, link: None }));
    assert!(matches!(error, WireError::Contradiction { .. }), "{error}");
    let far = Some(Link { page: Page(LIMITS.pages), index: 1 });
    for table in [WalkTable { level: 6, link: None }, WalkTable { level: 1, link: far }] {
        assert!(matches!(refused(&join(table)), WireError::Beyond { .. }));
    }
}

#[test]
fn headers_beyond_a_limit_are_refused() {
    let beyond = |field| move |error: &WireError| matches!(error, WireError::Beyond { field: found, .. } if *found == field);
    let new = |kind, body, pages| FrameHeader::new(kind, REGION, body, pages).unwrap_err();
    assert!(beyond("body_len")(&new(Kind::Hint, BODY_MAX + 1, 0)));
    assert!(beyond("payload_pages")(&new(Kind::Grant, 16, PAYLOAD_PAGES_MAX + 1)));
    assert!(beyond("payload_pages")(&new(Kind::Hint, 16, 1)));
    let control = Kind::Control(ControlKind::new(0x40).unwrap());
    assert!(beyond("payload_pages")(&new(control, 16, 1)));

    let good = FrameHeader::new(Kind::Grant, REGION, 16, 0).unwrap().to_bytes();
    let patched = |at: usize, value: u8| {
        let mut bytes = good;
        bytes[at] = value;
        FrameHeader::parse(&bytes).unwrap_err()
    };
    assert!(matches!(patched(0, 0), WireError::Magic { .. }));
    for kind in [0x00, 0x1c, 0x3f, 0x80, 0xff] {
        assert_eq!(patched(2, kind), WireError::Kind { kind });
    }
    assert!(matches!(patched(3, 1), WireError::Reserved { .. }));
    assert!(beyond("body_len")(&patched(11, 1)));
    assert!(beyond("payload_pages")(&patched(13, 1)));
}

#[test]
fn numbers_beyond_their_limit_are_refused() {
    let request = Message::Request(a_request());
    let grant = Message::Grant(a_grant());
    let invalidate = Message::Invalidate(Invalidate {
        page: Page(1),
        version: Version::ZERO,
        age: a_request().age,
    });
    let ack = Message::InvalidateAck(InvalidateAck { page: Page(1), version: Version::ZERO });
    let hint = Message::Hint(a_hint());
    let wanted = RoomWanted { frames: 3, pressing: true, age: a_request().age };
    let wanted = Message::RoomWanted(wanted);
    let room = Message::Room(Room { frames: 3 });
    let hand_over = Message::HandOver(HandOver { pages: vec![a_page_grant(5)] });
    // Message, offset in the body, value, field.
    let cases: &[(&Message, usize, u8, &str)] = &[
        (&request, 3, 1, "request.page"),
        (&request, 14, 1, "request.have"),
        (&request, 22, 1, "request.owner_since"),
        (&request, 44, 17, "request.age_node"),
        (&request, 45, 17, "request.requester"),
        (&request, 45, 255, "request.requester"),
        (&request, 47, 16, "companions"),
        (&grant, 12, 17, "grant.pages"),
        (&grant, 13, 65, "grant.waiters"),
        (&grant, 16 + 3, 1, "page_grant.page"),
        (&grant, 16 + 14, 1, "page_grant.version"),
        (&grant, 16 + 16, 5, "page_grant.same_since"),
        (&grant, 16 + 41, 4, "page_grant.migratory"),
        (&grant, 64 + 47, 1, "waiter.companions"),
        (&grant, 64 + 45, 17, "request.requester"),
        (&invalidate, 3, 1, "invalidation.page"),
        (&invalidate, 14, 1, "invalidation.version"),
        (&invalidate, 24, 17, "invalidation.age_node"),
        (&ack, 7, 1, "acknowledgement.page"),
        (&ack, 15, 1, "acknowledgement.version"),
        (&hint, 7, 1, "hint.page"),
        (&hint, 15, 1, "hint.owner_since"),
        (&hint, 16, 17, "hint.owner"),
        (&wanted, 8, 17, "room_wanted.age_node"),
        (&room, 1, 1, "room.frames"),
        (&hand_over, 0, 17, "hand_over.pages"),
        (&hand_over, 8 + 3, 1, "page_grant.page"),
    ];
    for &(message, at, value, expected) in cases {
        match patched(message, at, value) {
            Err(WireError::Beyond { field, .. }) => assert_eq!(field, expected),
            other => panic!("{expected}: {other:?}"),
        }
    }
}

#[test]
fn bits_without_a_meaning_are_refused() {
    let request = Message::Request(a_request());
    let grant = Message::Grant(a_grant());
    let copy = PageGrant { right: Right::Copy, data: true, ..a_page_grant(5) };
    let copy = Message::Grant(Grant { pages: vec![copy], ..a_grant() });
    let invalidate = Message::Invalidate(Invalidate {
        page: Page(1),
        version: Version::ZERO,
        age: a_request().age,
    });
    let hint = Message::Hint(a_hint());
    let wanted =
        Message::RoomWanted(RoomWanted { frames: 3, pressing: true, age: a_request().age });
    let room = Message::Room(Room { frames: 3 });
    let unused = Message::RoomUnused(RoomUnused { frames: 3 });
    let hand_over = Message::HandOver(HandOver { pages: vec![a_page_grant(5)] });
    let cases: &[(&Message, usize, u8, &str)] = &[
        (&wanted, 10, 2, "room_wanted.flags"),
        (&wanted, 15, 1, "request for room"),
        (&room, 4, 1, "room"),
        (&unused, 7, 1, "unused room"),
        (&hand_over, 7, 1, "hand-over"),
        (&request, 46, 4, "request.flags"),
        (&request, 32 + 2, 2, "request.via"),
        (&grant, 0, 1, "grant.lease_page"),
        (&grant, 14, 2, "grant.flags"),
        (&request, 49, 1, "request"),
        (&request, 55, 1, "request"),
        (&grant, 16 + 24 + 2, 2, "page_grant.copyset"),
        (&grant, 16 + 32, 1, "page_grant.check"),
        (&grant, 16 + 40, 8, "page_grant.flags"),
        (&grant, 16 + 47, 1, "page_grant"),
        (&copy, 16 + 16, 1, "page_grant.same_since"),
        (&copy, 16 + 24, 1, "page_grant.copyset"),
        (&copy, 16 + 41, 1, "page_grant.migratory"),
        (&invalidate, 25, 1, "invalidation"),
        (&invalidate, 31, 1, "invalidation"),
        (&hint, 17, 1, "hint"),
        (&hint, 23, 1, "hint"),
    ];
    for &(message, at, value, expected) in cases {
        match patched(message, at, value) {
            Err(WireError::Reserved { field, .. }) => assert_eq!(field, expected),
            other => panic!("{expected}: {other:?}"),
        }
    }
}

#[test]
fn messages_that_contradict_themselves_are_refused() {
    let companion = |page| Companion { page: Page(page), have: Version::ZERO };
    let request = |companions| Message::Request(Request { companions, ..a_request() });
    let waiting = |waiter| Message::Grant(Grant { waiters: vec![waiter], ..a_grant() });
    let lease = Some(Page(5));
    let other = Request { page: Page(6), ..a_request() };
    for (message, expected) in [
        (request(vec![companion(5)]), "its own companion"),
        (request(vec![companion(7), companion(7)]), "ascend"),
        (request(vec![companion(8), companion(7)]), "ascend"),
        (Message::Grant(Grant { lease, ..a_grant() }), "both"),
        (Message::Grant(Grant { pages: vec![], ..a_grant() }), "another page"),
        (
            Message::Grant(Grant { pages: vec![a_page_grant(5), a_page_grant(5)], ..a_grant() }),
            "twice",
        ),
        (waiting(other), "another page"),
        (Message::Grant(Grant { pages: vec![], lease, ..a_grant() }), "another page"),
    ] {
        match decoded(&encoded(&message), &LIMITS) {
            Err(WireError::Contradiction { what, .. }) => assert!(what.contains(expected)),
            other => panic!("{expected}: {other:?}"),
        }
    }
    assert!(matches!(
        patched(&Message::Grant(a_grant()), 64 + 46, 3),
        Err(WireError::Contradiction { what: "a waiter asks for a lease", .. })
    ));
    let grant = a_page_grant(5);
    let bare = PageGrant { data: false, ..grant.clone() };
    let copy = PageGrant { right: Right::Copy, ..grant };
    for pages in [vec![], vec![copy], vec![bare]] {
        let found = decoded(&encoded(&Message::HandOver(HandOver { pages })), &LIMITS);
        assert!(matches!(found, Err(WireError::Contradiction { message: "hand-over", .. })));
    }
    let wanted =
        Message::RoomWanted(RoomWanted { frames: 0, pressing: false, age: a_request().age });
    assert!(matches!(
        decoded(&encoded(&wanted), &LIMITS),
        Err(WireError::Contradiction { what: "it wants none", .. })
    ));
    for message in [
        Message::Request(Request { copies: 0, ..a_request() }),
        Message::Grant(Grant { copies: 0, ..a_grant() }),
    ] {
        assert!(matches!(
            decoded(&encoded(&message), &LIMITS),
            Err(WireError::Contradiction { what: "it stands for no copy of the request", .. })
        ));
    }
    let bytes = encoded(&Message::Grant(a_grant()));
    let header = FrameHeader::new(Kind::Grant, REGION, bytes.len() - HEADER_LEN, 2).unwrap();
    assert_eq!(
        decode(&header, &bytes[HEADER_LEN..], &LIMITS),
        Err(WireError::Payload { found: 2, expected: 1 })
    );
}

#[test]
fn a_waiter_travels_without_companions_and_lease() {
    let companions = vec![Companion { page: Page(9), have: Version::ZERO }];
    let waiter = Request { lease: true, companions, ..a_request() };
    let grant = Message::Grant(Grant { waiters: vec![waiter], ..a_grant() });
    assert_eq!(decoded(&encoded(&grant), &LIMITS), Ok(Message::Grant(a_grant())));
}

#[test]
fn control_messages_are_opaque_and_bounded() {
    let kind = ControlKind::new(0x40).unwrap();
    let mut bytes = Vec::new();
    encode_control(kind, REGION, b"anything", &mut bytes).unwrap();
    let header = FrameHeader::parse_prefix(&bytes).unwrap().unwrap();
    assert_eq!((header.kind(), &bytes[HEADER_LEN..]), (Kind::Control(kind), &b"anything"[..]));
    let refused = decode(&header, &bytes[HEADER_LEN..], &LIMITS);
    assert_eq!(refused, Err(WireError::NotAPageMessage { kind: 0x40 }));

    let before = bytes.clone();
    assert!(encode_control(kind, REGION, &[0; BODY_MAX + 1], &mut bytes).is_err());
    assert_eq!(bytes, before);
    assert!(encode_control(kind, REGION, &[0; BODY_MAX], &mut bytes).is_ok());
    assert!(ControlKind::new(0x3f).is_none() && ControlKind::new(0x80).is_none());
}

fn hello() -> Hello {
    Hello {
        from: Identity {
            cluster: ClusterId(*b"0123456789abcdef"),
            epoch: 3,
            node: NodeId::new(1).unwrap(),
            nodes: 3,
            workers: 2,
            incarnation: Incarnation(77),
        },
        to: NodeId::new(2).unwrap(),
        channel: Channel::Worker(1),
    }
}

#[test]
fn a_long_or_rude_reason_is_cut_and_cleaned() {
    let reason = format!("\x1b[31m{}", "ä".repeat(100));
    let answer = Answer::Refusal(Refusal::new(RefusalCode::NotAdmitted, reason));
    let Ok(Answer::Refusal(refusal)) = Answer::parse(&answer.to_bytes()) else {
        panic!("a refusal");
    };
    assert_eq!(refusal.code, RefusalCode::NotAdmitted);
    assert!(refusal.reason.starts_with(" [31mä") && refusal.reason.len() <= REASON_MAX);

    let mut bytes = answer.to_bytes();
    bytes[8] = 0x1b;
    assert_eq!(Answer::parse(&bytes).unwrap_err().code, RefusalCode::Malformed);
}

#[test]
fn reasons_with_both_values_fit() {
    let local = Identity { cluster: ClusterId([0xff; 16]), ..hello().from };
    let refusal = hello().check(&local).unwrap_err();
    assert!(refusal.reason.len() <= REASON_MAX, "{}", refusal.reason);
}
