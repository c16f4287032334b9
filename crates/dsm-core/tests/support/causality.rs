//! What a thread may see of stores to walk-shared pages: none that it could not have seen, and none
//! after a later one.
//!
//! Each node knows of each word how far it has seen its stores. Whoever sees a store, or uses an
//! ordinary page after another node, knows what that node knew then. A page that was read and then
//! written by another counts, too: that is what forbids the outcome of "store buffering" between a
//! walk-shared word and an ordinary one. Between two walk-shared words it is allowed.

use dsm_core::Page;

/// Words of a page in the model; the halves of its value.
pub const WORDS: u16 = 2;

/// The value of a word of a page's value.
pub fn word(value: u64, index: u16) -> u64 {
    value >> (32 * index) & 0xffff_ffff
}

/// A page's value with another word.
pub fn with_word(value: u64, index: u16, word: u64) -> u64 {
    let shift = 32 * index;
    value & !(0xffff_ffff << shift) | word << shift
}

/// How many stores of each word are known.
#[derive(Clone, PartialEq, Eq, Hash, Debug)]
struct Clock(Vec<u8>);

impl Clock {
    fn join(&mut self, other: &Self) {
        for (mine, theirs) in self.0.iter_mut().zip(&other.0) {
            *mine = (*mine).max(*theirs);
        }
    }
}

#[derive(Clone, PartialEq, Eq, Hash, Debug)]
struct Store {
    value: u64,
    known: Clock,
}

/// What is known where.
#[derive(Clone, PartialEq, Eq, Hash, Debug)]
pub struct Causality {
    /// By word: its stores, in order.
    stores: Vec<Vec<Store>>,
    nodes: Vec<Clock>,
    /// By ordinary page: what its writers knew, and what all knew who used it.
    written: Vec<Clock>,
    used: Vec<Clock>,
}

impl Causality {
    pub fn new(nodes: usize, pages: u64) -> Self {
        let words = pages as usize * usize::from(WORDS);
        let none = Clock(vec![0; words]);
        let first = Store { value: 0, known: none.clone() };
        Self {
            stores: vec![vec![first]; words],
            nodes: vec![none.clone(); nodes],
            written: vec![none.clone(); pages as usize],
            used: vec![none; pages as usize],
        }
    }

    fn at(page: Page, index: u16) -> usize {
        page.0 as usize * usize::from(WORDS) + usize::from(index)
    }

    /// The node uses an ordinary page.
    pub fn ordinary(&mut self, node: usize, page: Page, write: bool) {
        let (written, used) = (&mut self.written[page.0 as usize], &mut self.used[page.0 as usize]);
        let node = &mut self.nodes[node];
        node.join(if write { used } else { written });
        used.join(node);
        if write {
            written.join(node);
        }
    }

    /// The node sees this value of a page of tables.
    pub fn sees(&mut self, node: usize, page: Page, value: u64) -> Result<(), String> {
        let mut found = Vec::new();
        for index in 0..WORDS {
            let (at, seen) = (Self::at(page, index), word(value, index));
            let place = self.stores[at].iter().position(|store| store.value == seen);
            let place = place.ok_or_else(|| {
                format!("stores: node {node} sees {seen:#x}, which nobody stored, in {page:?}")
            })?;
            let known = self.stores[at][place].known.clone();
            self.nodes[node].join(&known);
            found.push((at, place as u8));
        }
        for (at, place) in found {
            let known = &mut self.nodes[node].0[at];
            if place < *known {
                return Err(format!(
                    "order of stores: node {node} sees store {place} of a word of {page:?}, but \
                     something later than store {known}"
                ));
            }
            *known = place;
        }
        Ok(())
    }

    /// The node stores a word of a page of tables.
    pub fn stores(&mut self, node: usize, page: Page, index: u16, value: u64) {
        let at = Self::at(page, index);
        let clock = &mut self.nodes[node];
        clock.0[at] = self.stores[at].len() as u8;
        self.stores[at].push(Store { value, known: clock.clone() });
    }
}
