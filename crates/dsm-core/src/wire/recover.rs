//! Messages of the recovery from a loss, to bytes and back.

use zerocopy::IntoBytes;

use super::decode::{contradiction, exact_length, items, node, nodes, page, take, version};
use super::header::{Kind, at_most, zero};
use super::layout::{
    ENTERED_ARRIVES, PART_LAST, RawEntered, RawHeld, RawHoldings, RawNotLost, RawPage, RawRun,
    RawUnlost, RawVerdict, RawYours,
};
use super::{Limits, WireError};
use crate::protocol::{Held, Holding, Holdings, RUNS_MAX, Recover, Run, Verdict, Yours};
use crate::types::Page;

const HOLDINGS: &str = "holdings";
const VERDICT: &str = "verdict";
const UNLOST: &str = "unlost";
const NOT_LOST: &str = "not lost";

/// Appends the body of `message` to `out`.
///
/// # Panics
/// When it has more runs than a message may have: the protocol never makes such a message.
pub(super) fn put(message: &Recover, out: &mut Vec<u8>) -> Kind {
    match message {
        Recover::Entered { sent, arrives } => {
            let flags = if *arrives { ENTERED_ARRIVES } else { 0 };
            let raw = RawEntered { sent: (*sent).into(), flags, reserved: [0; 7] };
            out.extend_from_slice(raw.as_bytes());
            Kind::RecoverEntered
        }
        Recover::Holdings(holdings) => {
            put_holdings(holdings, out);
            Kind::RecoverHoldings
        }
        Recover::Verdict(verdict) => {
            put_verdict(verdict, out);
            Kind::RecoverVerdict
        }
        Recover::Settled => Kind::RecoverSettled,
        Recover::Touch { page } => {
            out.extend_from_slice(RawPage { page: page.0.into() }.as_bytes());
            Kind::RecoverTouch
        }
        Recover::Noted { page } => {
            out.extend_from_slice(RawPage { page: page.0.into() }.as_bytes());
            Kind::RecoverNoted
        }
        Recover::Restore { run } => {
            put_run(*run, out);
            Kind::RecoverRestore
        }
        Recover::Unlost { run, owner, version } => {
            let raw = RawUnlost {
                first: run.first.0.into(),
                pages: run.pages.into(),
                owner: owner.index() as u8,
                reserved: [0; 3],
                version: version.get().into(),
            };
            out.extend_from_slice(raw.as_bytes());
            Kind::RecoverUnlost
        }
        Recover::Cleared { run } => {
            put_run(*run, out);
            Kind::RecoverCleared
        }
        Recover::NotLost { run, page } => {
            let (first, pages) = (run.first.0.into(), run.pages.into());
            let raw = RawNotLost { first, pages, reserved: [0; 4], page: page.0.into() };
            out.extend_from_slice(raw.as_bytes());
            Kind::RecoverNotLost
        }
    }
}

fn put_run(run: Run, out: &mut Vec<u8>) {
    let raw = RawRun { first: run.first.0.into(), pages: run.pages.into(), reserved: [0; 4] };
    out.extend_from_slice(raw.as_bytes());
}

fn put_holdings(holdings: &Holdings, out: &mut Vec<u8>) {
    assert!(holdings.runs.len() <= RUNS_MAX, "too many runs");
    let raw = RawHoldings {
        highest: holdings.highest.get().into(),
        part: holdings.part.into(),
        runs: (holdings.runs.len() as u16).into(),
        flags: if holdings.last { PART_LAST } else { 0 },
        reserved: [0; 9],
    };
    out.extend_from_slice(raw.as_bytes());
    for Held { run, holding } in &holdings.runs {
        let raw = RawHeld {
            first: run.first.0.into(),
            pages: run.pages.into(),
            holding: *holding as u8,
            reserved: [0; 3],
        };
        out.extend_from_slice(raw.as_bytes());
    }
}

fn put_verdict(verdict: &Verdict, out: &mut Vec<u8>) {
    let Verdict { yours, lost, untouched, .. } = verdict;
    assert!(yours.len() + lost.len() + untouched.len() <= RUNS_MAX, "too many runs");
    let raw = RawVerdict {
        version: verdict.version.get().into(),
        part: verdict.part.into(),
        yours: (yours.len() as u16).into(),
        lost: (lost.len() as u16).into(),
        flags: if verdict.last { PART_LAST } else { 0 },
        reserved_a: 0,
        untouched: (untouched.len() as u16).into(),
        reserved_b: [0; 4],
    };
    out.extend_from_slice(raw.as_bytes());
    for Yours { run, copyset } in yours {
        let raw = RawYours {
            first: run.first.0.into(),
            pages: run.pages.into(),
            reserved: [0; 4],
            copyset: copyset.bits().into(),
        };
        out.extend_from_slice(raw.as_bytes());
    }
    lost.iter().chain(untouched).for_each(|&run| put_run(run, out));
}

/// Reads the body of a message of this kind.
pub(super) fn recover(kind: Kind, body: &[u8], limits: &Limits) -> Result<Recover, WireError> {
    Ok(match kind {
        Kind::RecoverEntered => {
            exact_length("entered", body, size_of::<RawEntered>())?;
            let (raw, _) = take::<RawEntered>("entered", body)?;
            zero("entered", (raw.flags & !ENTERED_ARRIVES).into())?;
            raw.reserved.iter().try_for_each(|&byte| zero("entered", byte.into()))?;
            let arrives = raw.flags & ENTERED_ARRIVES != 0;
            Recover::Entered { sent: raw.sent.get(), arrives }
        }
        Kind::RecoverHoldings => Recover::Holdings(holdings(body, limits)?),
        Kind::RecoverVerdict => Recover::Verdict(verdict(body, limits)?),
        Kind::RecoverSettled => {
            exact_length("settled", body, 0)?;
            Recover::Settled
        }
        Kind::RecoverTouch => Recover::Touch { page: block("touch.page", body, limits)? },
        Kind::RecoverNoted => Recover::Noted { page: block("noted.page", body, limits)? },
        Kind::RecoverRestore => Recover::Restore { run: one_run("restore", body, limits)? },
        Kind::RecoverUnlost => unlost(body, limits)?,
        Kind::RecoverCleared => Recover::Cleared { run: one_run("cleared", body, limits)? },
        Kind::RecoverNotLost => not_lost(body, limits)?,
        _ => return Err(WireError::NotAPageMessage { kind: kind.code() }),
    })
}

fn block(field: &'static str, body: &[u8], limits: &Limits) -> Result<Page, WireError> {
    exact_length(field, body, size_of::<RawPage>())?;
    let (raw, _) = take::<RawPage>(field, body)?;
    page(field, raw.page.get(), limits)
}

fn one_run(message: &'static str, body: &[u8], limits: &Limits) -> Result<Run, WireError> {
    exact_length(message, body, size_of::<RawRun>())?;
    let (raw, _) = take::<RawRun>(message, body)?;
    raw.reserved.iter().try_for_each(|&byte| zero(message, byte.into()))?;
    Ascending(message, 0).run(raw.first.get(), raw.pages.get(), limits)
}

fn unlost(body: &[u8], limits: &Limits) -> Result<Recover, WireError> {
    exact_length(UNLOST, body, size_of::<RawUnlost>())?;
    let (raw, _) = take::<RawUnlost>(UNLOST, body)?;
    raw.reserved.iter().try_for_each(|&byte| zero(UNLOST, byte.into()))?;
    Ok(Recover::Unlost {
        run: Ascending(UNLOST, 0).run(raw.first.get(), raw.pages.get(), limits)?,
        owner: node("unlost.owner", raw.owner, limits)?,
        version: version("unlost.version", raw.version.get())?,
    })
}

fn not_lost(body: &[u8], limits: &Limits) -> Result<Recover, WireError> {
    exact_length(NOT_LOST, body, size_of::<RawNotLost>())?;
    let (raw, _) = take::<RawNotLost>(NOT_LOST, body)?;
    raw.reserved.iter().try_for_each(|&byte| zero(NOT_LOST, byte.into()))?;
    let run = Ascending(NOT_LOST, 0).run(raw.first.get(), raw.pages.get(), limits)?;
    let page = page("not_lost.page", raw.page.get(), limits)?;
    if !(run.first..run.end()).contains(&page) {
        return Err(contradiction(NOT_LOST, "it names a page that was not asked for"));
    }
    Ok(Recover::NotLost { run, page })
}

fn holdings(body: &[u8], limits: &Limits) -> Result<Holdings, WireError> {
    let (raw, rest) = take::<RawHoldings>(HOLDINGS, body)?;
    raw.reserved.iter().try_for_each(|&byte| zero(HOLDINGS, byte.into()))?;
    let last = is_last(HOLDINGS, raw.flags)?;
    let count = at_most("holdings.runs", raw.runs.get().into(), RUNS_MAX as u64)? as usize;
    exact_length(HOLDINGS, rest, count * size_of::<RawHeld>())?;
    let mut ascending = Ascending(HOLDINGS, 0);
    let mut runs = Vec::with_capacity(count);
    for raw in items::<RawHeld>(HOLDINGS, rest)? {
        raw.reserved.iter().try_for_each(|&byte| zero(HOLDINGS, byte.into()))?;
        let run = ascending.run(raw.first.get(), raw.pages.get(), limits)?;
        runs.push(Held { run, holding: holding(raw.holding)? });
    }
    let highest = version("holdings.highest", raw.highest.get())?;
    Ok(Holdings { part: raw.part.get(), last, highest, runs })
}

fn holding(found: u8) -> Result<Holding, WireError> {
    Ok(match found {
        0 => Holding::Owned,
        1 => Holding::Copy,
        2 => Holding::Given,
        3 => Holding::Lost,
        _ => return Err(WireError::Beyond { field: "holding", found: found.into(), max: 3 }),
    })
}

fn verdict(body: &[u8], limits: &Limits) -> Result<Verdict, WireError> {
    let (raw, rest) = take::<RawVerdict>(VERDICT, body)?;
    let reserved = raw.reserved_b.iter().chain([&raw.reserved_a]);
    reserved.into_iter().try_for_each(|&byte| zero(VERDICT, byte.into()))?;
    let last = is_last(VERDICT, raw.flags)?;
    let (yours, lost) = (usize::from(raw.yours.get()), usize::from(raw.lost.get()));
    let untouched = usize::from(raw.untouched.get());
    at_most("verdict.runs", (yours + lost + untouched) as u64, RUNS_MAX as u64)?;
    let (yours_len, lost_len) = (yours * size_of::<RawYours>(), lost * size_of::<RawRun>());
    exact_length(VERDICT, rest, yours_len + lost_len + untouched * size_of::<RawRun>())?;
    let (yours, rest) = rest.split_at_checked(yours_len).unwrap_or((rest, &[]));
    let (lost, untouched) = rest.split_at_checked(lost_len).unwrap_or((rest, &[]));
    let mut verdict = Verdict {
        part: raw.part.get(),
        last,
        version: version("verdict.version", raw.version.get())?,
        yours: Vec::new(),
        lost: Vec::new(),
        untouched: Vec::new(),
    };
    let mut ascending = Ascending(VERDICT, 0);
    for raw in items::<RawYours>(VERDICT, yours)? {
        raw.reserved.iter().try_for_each(|&byte| zero(VERDICT, byte.into()))?;
        let run = ascending.run(raw.first.get(), raw.pages.get(), limits)?;
        let copyset = nodes("yours.copyset", raw.copyset.get(), limits)?;
        verdict.yours.push(Yours { run, copyset });
    }
    verdict.lost = runs(lost, limits)?;
    verdict.untouched = runs(untouched, limits)?;
    Ok(verdict)
}

/// Runs of pages in a verdict.
fn runs(bytes: &[u8], limits: &Limits) -> Result<Vec<Run>, WireError> {
    let mut ascending = Ascending(VERDICT, 0);
    let runs = items::<RawRun>(VERDICT, bytes)?.iter().map(|raw| {
        raw.reserved.iter().try_for_each(|&byte| zero(VERDICT, byte.into()))?;
        ascending.run(raw.first.get(), raw.pages.get(), limits)
    });
    runs.collect()
}

fn is_last(message: &'static str, flags: u8) -> Result<bool, WireError> {
    zero(message, (flags & !PART_LAST).into())?;
    Ok(flags & PART_LAST != 0)
}

/// Reads runs of pages of a message, of which each begins where the one before has ended, or later.
struct Ascending(&'static str, u64);

impl Ascending {
    fn run(&mut self, first: u64, pages: u32, limits: &Limits) -> Result<Run, WireError> {
        let Self(message, end) = self;
        if pages == 0 {
            return Err(contradiction(message, "a run has no pages"));
        }
        if first < *end {
            return Err(contradiction(message, "runs do not ascend"));
        }
        page("run.first", first, limits)?;
        *end = first.saturating_add(pages.into());
        page("run.last", *end - 1, limits)?;
        Ok(Run { first: Page(first), pages })
    }
}
