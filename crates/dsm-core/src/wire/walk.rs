//! Messages about walk-shared pages, to bytes and back.

use zerocopy::IntoBytes;

use super::decode::{contradiction, copies, exact_length, items, page, take, version, waiters_of};
use super::encode::put_request_head;
use super::header::{Kind, at_most, zero};
use super::layout::{
    RawAudit, RawChange, RawChanges, RawJoin, RawOffer, RawOrder, RawPage, RawRequest, RawTable,
    TABLE_LINKED, WALK_LAST,
};
use super::{Limits, WAITERS_MAX, WireError};
use crate::protocol::{
    CHANGES_MAX, Change, Freeze, Join, Link, Offer, Report, WALK_PAGES_MAX, Walk, WalkTable,
};
use crate::types::{PAGE_WORDS, Page};

/// Levels of page tables that a processor can have.
const LEVELS: u64 = 5;

/// Pages that follow the message as payload.
pub(super) fn payload_pages(walk: &Walk) -> usize {
    usize::from(matches!(walk, Walk::Offer(_) | Walk::Join(_)))
}

/// Appends the body of `walk` to `out`.
///
/// # Panics
/// When it has more changes, pages or waiters than a message may have: the protocol never makes such
/// a message.
pub(super) fn put(walk: &Walk, out: &mut Vec<u8>) -> Kind {
    let order = |number: u64, out: &mut Vec<u8>| {
        out.extend_from_slice(RawOrder { number: number.into() }.as_bytes());
    };
    match walk {
        Walk::Offer(offer) => {
            put_offer(offer, out);
            Kind::WalkOffer
        }
        Walk::Join(join) => {
            let raw = RawJoin {
                page: join.page.0.into(),
                version: join.version.get().into(),
                table: raw_table(join.table),
                seq: join.seq.into(),
                copies: join.copies,
                reserved: [0; 3],
            };
            out.extend_from_slice(raw.as_bytes());
            Kind::WalkJoin
        }
        Walk::Report(Report { number, changes, leave, last }) => {
            put_changes(*number, changes, leave, *last, out);
            Kind::WalkReport
        }
        Walk::Freeze(Freeze { order, changes, leave, last }) => {
            put_changes(*order, changes, leave, *last, out);
            Kind::WalkFreeze
        }
        Walk::Reported { number } => {
            order(*number, out);
            Kind::WalkReported
        }
        Walk::Frozen { order: number } => {
            order(*number, out);
            Kind::WalkFrozen
        }
        Walk::Thaw { order: number } => {
            order(*number, out);
            Kind::WalkThaw
        }
        Walk::Audit { page, fingerprint } => {
            let raw = RawAudit { page: page.0.into(), fingerprint: (*fingerprint).into() };
            out.extend_from_slice(raw.as_bytes());
            Kind::WalkAudit
        }
    }
}

fn put_offer(offer: &Offer, out: &mut Vec<u8>) {
    assert!(offer.waiters.len() <= WAITERS_MAX, "an offer with too many waiters");
    let raw = RawOffer {
        page: offer.page.0.into(),
        version: offer.version.get().into(),
        same_since: offer.same_since.get().into(),
        table: raw_table(offer.table),
        waiters: offer.waiters.len() as u8,
        reserved: [0; 7],
    };
    out.extend_from_slice(raw.as_bytes());
    offer.waiters.iter().for_each(|waiter| put_request_head(waiter, false, 0, out));
}

fn put_changes(number: u64, changes: &[Change], leave: &[Page], last: bool, out: &mut Vec<u8>) {
    assert!(changes.len() <= CHANGES_MAX, "too many changes");
    assert!(leave.len() <= WALK_PAGES_MAX, "too many pages leave");
    let raw = RawChanges {
        number: number.into(),
        changes: (changes.len() as u16).into(),
        leave: (leave.len() as u16).into(),
        flags: if last { WALK_LAST } else { 0 },
        reserved: [0; 3],
    };
    out.extend_from_slice(raw.as_bytes());
    for change in changes {
        let raw = RawChange {
            page: change.page.0.into(),
            old: change.old.into(),
            new: change.new.into(),
            index: change.index.into(),
            reserved: [0; 6],
        };
        out.extend_from_slice(raw.as_bytes());
    }
    for page in leave {
        out.extend_from_slice(RawPage { page: page.0.into() }.as_bytes());
    }
}

fn raw_table(table: WalkTable) -> RawTable {
    let link = table.link.unwrap_or(Link { page: Page(0), index: 0 });
    RawTable {
        link_page: link.page.0.into(),
        link_index: link.index.into(),
        level: table.level,
        flags: if table.link.is_some() { TABLE_LINKED } else { 0 },
        reserved: [0; 4],
    }
}

/// Reads the body of a message of this kind.
pub(super) fn walk(kind: Kind, body: &[u8], limits: &Limits) -> Result<Walk, WireError> {
    Ok(match kind {
        Kind::WalkOffer => Walk::Offer(offer(body, limits)?),
        Kind::WalkJoin => Walk::Join(join(body, limits)?),
        Kind::WalkReport => {
            let (number, changes, leave, last) = changes("report", body, limits)?;
            Walk::Report(Report { number, changes, leave, last })
        }
        Kind::WalkFreeze => {
            let (order, changes, leave, last) = changes("freeze", body, limits)?;
            Walk::Freeze(Freeze { order, changes, leave, last })
        }
        Kind::WalkReported => Walk::Reported { number: order(body)? },
        Kind::WalkFrozen => Walk::Frozen { order: order(body)? },
        Kind::WalkThaw => Walk::Thaw { order: order(body)? },
        Kind::WalkAudit => audit(body, limits)?,
        _ => return Err(WireError::NotAPageMessage { kind: kind.code() }),
    })
}

fn offer(body: &[u8], limits: &Limits) -> Result<Offer, WireError> {
    const MESSAGE: &str = "offer";
    let (raw, rest) = take::<RawOffer>(MESSAGE, body)?;
    raw.reserved.iter().try_for_each(|&byte| zero(MESSAGE, byte.into()))?;
    let waiters = at_most("offer.waiters", raw.waiters.into(), WAITERS_MAX as u64)? as usize;
    exact_length(MESSAGE, rest, waiters * size_of::<RawRequest>())?;
    let version = version("offer.version", raw.version.get())?;
    let since = at_most("offer.same_since", raw.same_since.get(), version.get())?;
    let page = page("offer.page", raw.page.get(), limits)?;
    Ok(Offer {
        page,
        version,
        same_since: self::version("offer.same_since", since)?,
        table: table(&raw.table, limits)?,
        waiters: waiters_of(MESSAGE, Some(page), rest, limits)?,
    })
}

fn join(body: &[u8], limits: &Limits) -> Result<Join, WireError> {
    const MESSAGE: &str = "join";
    exact_length(MESSAGE, body, size_of::<RawJoin>())?;
    let (raw, _) = take::<RawJoin>(MESSAGE, body)?;
    raw.reserved.iter().try_for_each(|&byte| zero(MESSAGE, byte.into()))?;
    Ok(Join {
        seq: raw.seq.get(),
        copies: copies(MESSAGE, raw.copies)?,
        page: page("join.page", raw.page.get(), limits)?,
        version: version("join.version", raw.version.get())?,
        table: table(&raw.table, limits)?,
    })
}

fn table(raw: &RawTable, limits: &Limits) -> Result<WalkTable, WireError> {
    zero("table.flags", (raw.flags & !TABLE_LINKED).into())?;
    raw.reserved.iter().try_for_each(|&byte| zero("table", byte.into()))?;
    at_most("table.level", raw.level.into(), LEVELS)?;
    if raw.level == 0 {
        return Err(contradiction("table", "it has no level"));
    }
    let link = if raw.flags & TABLE_LINKED != 0 {
        let page = page("table.link_page", raw.link_page.get(), limits)?;
        Some(Link { page, index: word("table.link_index", raw.link_index.get())? })
    } else {
        zero("table.link_page", raw.link_page.get())?;
        zero("table.link_index", raw.link_index.get().into())?;
        None
    };
    Ok(WalkTable { level: raw.level, link })
}

fn word(field: &'static str, found: u16) -> Result<u16, WireError> {
    Ok(at_most(field, found.into(), PAGE_WORDS as u64 - 1)? as u16)
}

/// Number, changes, pages that leave, and whether it is the last part.
type Changes = (u64, Vec<Change>, Vec<Page>, bool);

fn changes(message: &'static str, body: &[u8], limits: &Limits) -> Result<Changes, WireError> {
    let (raw, rest) = take::<RawChanges>(message, body)?;
    zero("changes.flags", (raw.flags & !WALK_LAST).into())?;
    raw.reserved.iter().try_for_each(|&byte| zero(message, byte.into()))?;
    let last = raw.flags & WALK_LAST != 0;
    let words = at_most("changes", raw.changes.get().into(), CHANGES_MAX as u64)? as usize;
    let leave = at_most("leave", raw.leave.get().into(), WALK_PAGES_MAX as u64)? as usize;
    if !last && (words < CHANGES_MAX || leave > 0) {
        return Err(contradiction(message, "more follows, but there was room for it"));
    }
    let words_len = words * size_of::<RawChange>();
    exact_length(message, rest, words_len + leave * size_of::<RawPage>())?;
    let (words, leave) = rest.split_at_checked(words_len).unwrap_or((rest, &[]));
    let mut found: Vec<Change> = Vec::new();
    for raw in items::<RawChange>(message, words)? {
        raw.reserved.iter().try_for_each(|&byte| zero("change", byte.into()))?;
        let page = page("change.page", raw.page.get(), limits)?;
        let index = word("change.index", raw.index.get())?;
        let change = Change { page, index, old: raw.old.get(), new: raw.new.get() };
        if change.old == change.new {
            return Err(contradiction(message, "a change changes nothing"));
        }
        if found.last().is_some_and(|last| (last.page, last.index) >= (page, index)) {
            return Err(contradiction(message, "changes do not ascend"));
        }
        found.push(change);
    }
    let mut pages: Vec<Page> = Vec::new();
    for raw in items::<RawPage>(message, leave)? {
        let page = page("leave.page", raw.page.get(), limits)?;
        if pages.last().is_some_and(|&last| last >= page) {
            return Err(contradiction(message, "pages that leave do not ascend"));
        }
        pages.push(page);
    }
    Ok((raw.number.get(), found, pages, last))
}

fn order(body: &[u8]) -> Result<u64, WireError> {
    exact_length("walk-shared pages", body, size_of::<RawOrder>())?;
    let (raw, _) = take::<RawOrder>("walk-shared pages", body)?;
    Ok(raw.number.get())
}

fn audit(body: &[u8], limits: &Limits) -> Result<Walk, WireError> {
    exact_length("audit", body, size_of::<RawAudit>())?;
    let (raw, _) = take::<RawAudit>("audit", body)?;
    let page = page("audit.page", raw.page.get(), limits)?;
    Ok(Walk::Audit { page, fingerprint: raw.fingerprint.get() })
}
