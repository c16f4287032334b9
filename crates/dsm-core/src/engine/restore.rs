//! Lost pages get new content, see [`crate::protocol::Protocol::restore`].

use std::collections::VecDeque;
use std::ops::Range;
use std::sync::mpsc;
use std::time::{Duration, Instant};

use super::command::{Command, Reply};
use super::handle::Engine;
use super::shard::{Outgoing, Shard};
use crate::pages::MemoryError;
use crate::protocol::{LEASE_PAGES, Restored, Run};
use crate::types::{PAGE_SIZE, Page, RegionId};

/// Most pages that are restored at once: their frames come at once, so they take a quarter of what a
/// worker has in reserve. Lease blocks are multiples.
const PIECE_PAGES: u64 = 128;

/// Why pages are not restored.
#[derive(Clone, PartialEq, Eq, Debug, thiserror::Error)]
pub enum RestoreError {
    /// The content is not that of some whole pages.
    #[error("{bytes} bytes can't be the content of pages: take a multiple of 4096, not 0")]
    Length {
        /// Its length.
        bytes: usize,
    },
    /// The range is not in the region.
    #[error("pages {start} to {end} are not in the region of {pages} pages")]
    OutOfRange {
        /// First page.
        start: u64,
        /// Page after the last.
        end: u64,
        /// Pages in the region.
        pages: u64,
    },
    /// A page has content, or is being restored by somebody else.
    #[error(
        "page {page} is not lost, or somebody else restores it; {restored} pages before it are restored"
    )]
    NotLost {
        /// The first such page of the range.
        page: u64,
        /// Pages that were restored, from the start of the range on; all others are as before.
        restored: u64,
    },
    /// Memory is full here and at all other nodes.
    #[error("there is no memory for more pages in the cluster; {restored} pages are restored")]
    Full {
        /// Pages that were restored, from the start of the range on; all others are as before.
        restored: u64,
    },
    /// The region has ended, because a node was lost.
    #[error("the region has ended because a node was lost")]
    Ended,
    /// The engine has been stopped, or does not serve the region. Pages that had been restored by
    /// then are lost with this node, unless others have taken them over or have copies.
    #[error("this node does not serve the region any more")]
    Stopped,
}

/// Why a worker has not restored a piece.
pub(super) enum Refusal {
    NotLost(Page),
    Full,
    Ended,
}

/// Pages of one worker's stripe that are to be restored.
pub(super) struct Restore {
    pages: Range<Page>,
    /// Their content; empty where it is only asked whether all of them are lost.
    bytes: Vec<u8>,
    reply: Reply<Result<(), Refusal>>,
    /// Since when there has been no room for them.
    full_since: Option<Instant>,
}

impl Restore {
    /// The content of `page`, if it is one of these.
    pub(super) fn bytes_of(&self, page: Page) -> Option<&[u8; PAGE_SIZE]> {
        let at = page.0.checked_sub(self.pages.start.0)? as usize;
        let bytes = self.bytes.get(at.checked_mul(PAGE_SIZE)?..)?;
        bytes.first_chunk()
    }

    fn run(&self) -> Run {
        // A piece, far below what the number can count.
        let pages = self.pages.end.0.saturating_sub(self.pages.start.0);
        Run { first: self.pages.start, pages: u32::try_from(pages).unwrap_or(u32::MAX) }
    }

    fn answer(self, result: Result<(), Refusal>) {
        let _ = self.reply.try_send(result);
    }
}

/// What a worker is to restore of one region, one piece after the other.
#[derive(Default)]
pub(super) struct Restores {
    waiting: VecDeque<Restore>,
    begun: Option<Restore>,
}

impl Restores {
    pub(super) fn begun(&self) -> Option<&Restore> {
        self.begun.as_ref()
    }

    /// When the first that finds no room is given up.
    pub(super) fn deadline(&self, full_after: Duration) -> Option<Instant> {
        Some(self.waiting.front()?.full_since? + full_after)
    }

    /// The region ends.
    pub(super) fn end(&mut self) {
        let all = self.begun.take().into_iter().chain(self.waiting.drain(..));
        all.for_each(|restore| restore.answer(Err(Refusal::Ended)));
    }
}

impl Engine {
    /// Gives lost pages ([`Engine::lost_pages`]) new content: those from `first` on, as many as `data` has.
    /// When this returns, every access to them, at every node that is left, finds this content or what was
    /// stored later. Until then an access may still end like one to a lost page.
    ///
    /// Waits while a loss is being settled. Where one comes between, it begins again by itself with
    /// the pages that are not restored yet.
    ///
    /// All pages of the range must be lost. That is looked at first: if one is not, nothing changes. Then
    /// they are restored in order, pieces of at most 128 pages each as a whole. So after an error
    /// that comes later, because somebody else restores some of the pages at the same time or because memory is
    /// full, a first part of the range has the new content, and the error says how much; the rest is as it
    /// was. Of several nodes that restore a page at once, one does, and the others learn that it is not lost;
    /// they may learn so before it is through, and if it is lost then, so is the page again.
    ///
    /// A page in whose place a thread of this process found zeros
    /// ([`crate::pages::sigbus::survive_lost_memory`]) does not come back for this process.
    ///
    /// # Errors
    ///
    /// [`RestoreError`].
    pub fn restore(&self, region: RegionId, first: Page, data: &[u8]) -> Result<(), RestoreError> {
        let memory = self.memory(region).ok_or(RestoreError::Stopped)?;
        let pages = range_of(first, data.len(), memory.pages())?;
        for (worker, part) in memory.parts(pages.clone()) {
            self.restore_part(worker, region, part, &[], 0)?;
        }
        let mut rest = data;
        for (worker, part) in memory.parts(pages.clone()) {
            let mut at = part.start;
            while at < part.end {
                let end = piece_end(at).min(part.end);
                let restored = at.0 - pages.start.0;
                let (bytes, left) = rest.split_at((end.0 - at.0) as usize * PAGE_SIZE);
                self.restore_part(worker, region, at..end, bytes, restored)?;
                (at, rest) = (end, left);
            }
        }
        Ok(())
    }

    /// Has the worker of these pages restore them, or look whether all are lost if there is no content.
    fn restore_part(
        &self,
        worker: usize,
        region: RegionId,
        pages: Range<Page>,
        bytes: &[u8],
        restored: u64,
    ) -> Result<(), RestoreError> {
        let (reply, answer) = mpsc::sync_channel(1);
        let restore = Restore { pages, bytes: bytes.to_vec(), reply, full_since: None };
        self.tell(worker, Command::Restore { region, restore })
            .map_err(|_| RestoreError::Stopped)?;
        // A worker that stops, or serves the region no more, drops what it was to answer.
        match answer.recv() {
            Ok(Ok(())) => Ok(()),
            Ok(Err(Refusal::NotLost(page))) => {
                Err(RestoreError::NotLost { page: page.0, restored })
            }
            Ok(Err(Refusal::Full)) => Err(RestoreError::Full { restored }),
            Ok(Err(Refusal::Ended)) => Err(RestoreError::Ended),
            Err(mpsc::RecvError) => Err(RestoreError::Stopped),
        }
    }
}

/// The pages that `bytes` bytes from `first` on fill.
fn range_of(first: Page, bytes: usize, pages: u64) -> Result<Range<Page>, RestoreError> {
    if bytes == 0 || !bytes.is_multiple_of(PAGE_SIZE) {
        return Err(RestoreError::Length { bytes });
    }
    let end = first.0.saturating_add((bytes / PAGE_SIZE) as u64);
    if end > pages || end == u64::MAX {
        return Err(RestoreError::OutOfRange { start: first.0, end, pages });
    }
    Ok(first..Page(end))
}

/// Where a piece that begins at `page` ends at the latest: within its lease block.
fn piece_end(page: Page) -> Page {
    const { assert!(LEASE_PAGES.is_multiple_of(PIECE_PAGES)) };
    Page((page.0 / PIECE_PAGES + 1) * PIECE_PAGES)
}

impl Shard {
    pub(super) fn restore(
        &mut self,
        restore: Restore,
        outgoing: &mut Vec<Outgoing>,
    ) -> Result<(), MemoryError> {
        self.restores.waiting.push_back(restore);
        self.go_on_restoring(outgoing)
    }

    /// Begins with what waits, as soon as that may be.
    pub(super) fn go_on_restoring(
        &mut self,
        outgoing: &mut Vec<Outgoing>,
    ) -> Result<(), MemoryError> {
        if self.protocol.has_ended() {
            self.restores.end();
        }
        while self.protocol.may_restore()
            && let Some(mut restore) = self.restores.waiting.pop_front()
        {
            if restore.bytes.is_empty() {
                let not_lost = self.protocol.first_not_lost(restore.pages.clone());
                restore.answer(not_lost.map_or(Ok(()), |page| Err(Refusal::NotLost(page))));
                continue;
            }
            if self.budget.is_full() {
                let since = *restore.full_since.get_or_insert_with(Instant::now);
                if since.elapsed() < self.budget.full_after() {
                    self.restores.waiting.push_front(restore);
                    return Ok(());
                }
                restore.answer(Err(Refusal::Full));
                continue;
            }
            restore.full_since = None;
            let run = restore.run();
            self.restores.begun = Some(restore);
            self.run(&[], outgoing, |protocol, world| protocol.restore(run, world))?;
        }
        Ok(())
    }

    /// Tells who waits for pages to be restored; what a loss came between begins again when that is settled.
    pub(super) fn report_restored(&mut self) {
        let Some(restored) = self.protocol.take_restored() else { return };
        let Some(restore) = self.restores.begun.take() else { return };
        match restored {
            Restored::Done => restore.answer(Ok(())),
            Restored::NotLost(page) => restore.answer(Err(Refusal::NotLost(page))),
            Restored::Interrupted => self.restores.waiting.push_front(restore),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn content_is_of_whole_pages_of_the_region() {
        let length = |bytes| Err(RestoreError::Length { bytes });
        assert_eq!(range_of(Page(0), 0, 8), length(0));
        assert_eq!(range_of(Page(0), 4095, 8), length(4095));
        assert_eq!(range_of(Page(6), 2 * PAGE_SIZE, 8), Ok(Page(6)..Page(8)));
        for first in [7, 8, u64::MAX - 1, u64::MAX] {
            let found = range_of(Page(first), 2 * PAGE_SIZE, 8);
            assert!(matches!(found, Err(RestoreError::OutOfRange { .. })), "{found:?}");
        }
    }

    #[test]
    fn no_piece_leaves_its_lease_block() {
        assert_eq!(piece_end(Page(0)), Page(128));
        assert_eq!(piece_end(Page(127)), Page(128));
        assert_eq!(piece_end(Page(500)), Page(512));
    }
}
