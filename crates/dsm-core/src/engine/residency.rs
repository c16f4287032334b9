//! Which frames of a stripe exist at this node, and which of them have been used lately.
//!
//! The kernel says nothing about accesses to mapped pages, so use is found out by a clock (Corbató, "A
//! Paging Experiment with the Multics System", 1968) whose reference bit is a fault: the hand takes a
//! page out of the view and leaves its frame; whoever touches it faults, and it is mapped again
//! without a message. A page that is still out when the hand comes round again has not been used.
//! While memory is not short the hand stands still and there are no such faults.

use std::ops::Range;

use crate::types::Page;

/// Pages of a block, allocated when the first of them has a frame: 2 MiB.
const BLOCK_PAGES: u64 = 512;
const WORDS: usize = BLOCK_PAGES as usize / 64;

#[derive(Default)]
struct Block {
    present: [u64; WORDS],
    /// Present, and taken out of the view by the hand.
    idle: [u64; WORDS],
    /// Frames that exist.
    count: u16,
}

/// The frames of a stripe.
pub(super) struct Residency {
    served: Range<Page>,
    blocks: Vec<Option<Box<Block>>>,
    count: u64,
    hand: Page,
}

impl Residency {
    pub(super) fn new(served: Range<Page>) -> Self {
        let blocks = (served.end.0 - served.start.0).div_ceil(BLOCK_PAGES) as usize;
        let hand = served.start;
        Self {
            served,
            blocks: std::iter::repeat_with(|| None).take(blocks).collect(),
            count: 0,
            hand,
        }
    }

    /// Frames that exist.
    pub(super) fn count(&self) -> u64 {
        self.count
    }

    /// Bytes of metadata.
    pub(super) fn allocated_bytes(&self) -> u64 {
        let touched = self.blocks.iter().flatten().count();
        (touched * size_of::<Block>() + self.blocks.len() * size_of::<Option<Box<Block>>>()) as u64
    }

    fn place(&self, page: Page) -> Option<(usize, usize, u64)> {
        let at = self.served.contains(&page).then(|| page.0 - self.served.start.0)?;
        let (block, within) = (at / BLOCK_PAGES, at % BLOCK_PAGES);
        Some((block as usize, within as usize / 64, 1 << (within % 64)))
    }

    /// The page is mapped, so that it may be used. Says whether its frame is new.
    pub(super) fn mapped(&mut self, page: Page) -> bool {
        let new = self.exists(page);
        if let Some((block, word, bit)) = self.place(page)
            && let Some(block) = &mut self.blocks[block]
        {
            block.idle[word] &= !bit;
        }
        new
    }

    /// The frame of `page` exists. Says whether that is new.
    pub(super) fn exists(&mut self, page: Page) -> bool {
        let Some((block, word, bit)) = self.place(page) else { return false };
        let block = self.blocks[block].get_or_insert_default();
        let new = block.present[word] & bit == 0;
        if new {
            block.present[word] |= bit;
            block.count += 1;
            self.count += 1;
        }
        new
    }

    /// Whether `page` has a frame.
    pub(super) fn is_present(&self, page: Page) -> bool {
        self.bits(page).is_some_and(|(present, _)| present)
    }

    /// Whether the hand has taken `page` out of the view, and nobody has touched it since.
    pub(super) fn is_idle(&self, page: Page) -> bool {
        self.bits(page).is_some_and(|(_, idle)| idle)
    }

    fn bits(&self, page: Page) -> Option<(bool, bool)> {
        let (block, word, bit) = self.place(page)?;
        let block = self.blocks[block].as_ref()?;
        Some((block.present[word] & bit != 0, block.idle[word] & bit != 0))
    }

    /// The hand has taken `page` out of the view.
    pub(super) fn set_idle(&mut self, page: Page) {
        let Some((block, word, bit)) = self.place(page) else { return };
        if let Some(block) = &mut self.blocks[block] {
            block.idle[word] |= bit & block.present[word];
        }
    }

    /// The frame of `page` has gone. Says whether there was one.
    pub(super) fn gone(&mut self, page: Page) -> bool {
        let Some((block, word, bit)) = self.place(page) else { return false };
        let Some(block) = &mut self.blocks[block] else { return false };
        let was = block.present[word] & bit != 0;
        block.present[word] &= !bit;
        block.idle[word] &= !bit;
        block.count -= u16::from(was);
        self.count -= u64::from(was);
        was
    }

    /// Moves the hand to the next page that has a frame, round the stripe; `None` if there is none.
    pub(super) fn advance(&mut self) -> Option<Page> {
        if self.count == 0 {
            return None;
        }
        let pages = self.served.end.0 - self.served.start.0;
        let start = self.hand.0 - self.served.start.0;
        let mut at = start;
        loop {
            if let Some(found) = self.next_in_block(at) {
                let page = Page(self.served.start.0 + found);
                self.hand = Page(self.served.start.0 + (found + 1) % pages);
                return Some(page);
            }
            at = (at / BLOCK_PAGES + 1) * BLOCK_PAGES;
            if at >= pages {
                at = 0;
            }
        }
    }

    /// The first page with a frame from `at` on, in the block of `at`.
    fn next_in_block(&self, at: u64) -> Option<u64> {
        let (number, within) = (at / BLOCK_PAGES, at % BLOCK_PAGES);
        let block = self.blocks[number as usize].as_ref().filter(|block| block.count > 0)?;
        let first = within as usize / 64;
        (first..WORDS).find_map(|word| {
            let mask = if word == first { u64::MAX << (within % 64) } else { u64::MAX };
            let bits = block.present[word] & mask;
            let bit = u64::from(bits.trailing_zeros());
            (bits != 0).then(|| number * BLOCK_PAGES + word as u64 * 64 + bit)
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_hand_goes_round_the_frames_that_exist() {
        let mut frames = Residency::new(Page(512)..Page(3000));
        assert_eq!(frames.advance(), None);
        for page in [600, 512, 2999, 575, 576] {
            assert!(frames.mapped(Page(page)));
            assert!(!frames.mapped(Page(page)));
        }
        let round: Vec<u64> = (0..6).map(|_| frames.advance().unwrap().0).collect();
        assert_eq!(round, [512, 575, 576, 600, 2999, 512]);
        assert!(frames.gone(Page(575)) && !frames.gone(Page(575)));
        assert_eq!(frames.advance(), Some(Page(576)));
        assert_eq!(frames.count(), 4);
    }

    #[test]
    fn a_page_is_idle_until_it_is_used_or_gone() {
        let mut frames = Residency::new(Page(0)..Page(100));
        frames.set_idle(Page(7));
        assert!(!frames.is_idle(Page(7)), "it has no frame");
        frames.mapped(Page(7));
        frames.set_idle(Page(7));
        assert!(frames.is_idle(Page(7)));
        frames.mapped(Page(7));
        assert!(!frames.is_idle(Page(7)));
        frames.set_idle(Page(7));
        frames.gone(Page(7));
        assert!(!frames.is_idle(Page(7)));
    }

    #[test]
    fn pages_of_other_stripes_are_left_out() {
        let mut frames = Residency::new(Page(10)..Page(20));
        assert!(!frames.mapped(Page(9)) && !frames.mapped(Page(20)));
        assert_eq!(frames.count(), 0);
    }

    #[test]
    fn bookkeeping_is_a_quarter_of_a_byte_a_page() {
        let mut frames = Residency::new(Page(0)..Page(1 << 16));
        (0..1 << 16).for_each(|page| _ = frames.mapped(Page(page)));
        assert!(frames.allocated_bytes() * 10 <= 3 * (1 << 16), "{}", frames.allocated_bytes());
    }
}
