//! What waits for a peer: two queues of whole messages, one of them perhaps partly sent.

use std::collections::VecDeque;
use std::io::IoSlice;

use super::Class;

/// A queue that grew beyond this returns its memory when it is empty.
const KEEP_BYTES_MAX: usize = 1 << 20;

/// Messages of one class, end to end.
#[derive(Default)]
struct Queue {
    bytes: Vec<u8>,
    /// Where the unsent bytes start.
    start: usize,
    /// Unsent bytes of each message, first to last.
    unsent: VecDeque<usize>,
}

impl Queue {
    fn len(&self) -> usize {
        self.bytes.len() - self.start
    }

    /// Unsent bytes of the first message; 0 if there is none.
    fn front(&self) -> usize {
        self.unsent.front().copied().unwrap_or(0)
    }

    fn as_slice(&self) -> &[u8] {
        &self.bytes[self.start..]
    }

    /// Drops `count` bytes of the first message; says whether it is complete.
    fn advance(&mut self, count: usize) -> bool {
        self.start += count;
        let complete = match self.unsent.front_mut() {
            Some(front) if *front > count => {
                *front -= count;
                false
            }
            _ => {
                self.unsent.pop_front();
                true
            }
        };
        self.release();
        complete
    }

    fn release(&mut self) {
        if self.start == self.bytes.len() {
            self.bytes.clear();
            self.bytes.shrink_to(KEEP_BYTES_MAX);
            self.start = 0;
        } else if self.start > KEEP_BYTES_MAX && self.start > self.bytes.len() / 2 {
            self.bytes.drain(..self.start);
            self.start = 0;
        }
    }
}

/// The two queues. Bytes leave in this order: the rest of a message that is partly sent, urgent
/// messages, ordinary messages.
#[derive(Default)]
pub(super) struct Outbox {
    urgent: Queue,
    ordinary: Queue,
    /// The class whose first message is partly sent.
    partial: Option<Class>,
}

impl Outbox {
    /// Unsent bytes.
    pub(super) fn len(&self) -> usize {
        self.urgent.len() + self.ordinary.len()
    }

    /// Adds a message, whose bytes are `parts` less the `sent` ones at its start. Some may be sent
    /// only when nothing goes before this message.
    pub(super) fn push<'a>(
        &mut self,
        class: Class,
        parts: impl Iterator<Item = &'a [u8]>,
        mut sent: usize,
    ) {
        if sent > 0 {
            debug_assert!(self.ahead_of(class).is_empty());
            self.partial = Some(class);
        }
        let queue = self.queue(class);
        let before = queue.bytes.len();
        for part in parts {
            let skip = sent.min(part.len());
            sent -= skip;
            queue.bytes.extend_from_slice(&part[skip..]);
        }
        let added = queue.bytes.len() - before;
        queue.unsent.push_back(added);
    }

    /// What goes before a new message of this class, in order; some slices may be empty.
    pub(super) fn ahead_of(&self, class: Class) -> Ahead<'_> {
        let (partial, ordinary) = match self.partial {
            Some(Class::Ordinary) => self.ordinary.as_slice().split_at(self.ordinary.front()),
            _ => (&[][..], self.ordinary.as_slice()),
        };
        let ordinary = if class == Class::Ordinary { ordinary } else { &[] };
        Ahead([partial, self.urgent.as_slice(), ordinary])
    }

    /// Drops `count` sent bytes in the order in which bytes leave.
    pub(super) fn advance(&mut self, mut count: usize) {
        while count > 0 {
            let class = match self.partial {
                Some(class) => class,
                None if self.urgent.len() > 0 => Class::Urgent,
                None if self.ordinary.len() > 0 => Class::Ordinary,
                None => break,
            };
            let queue = self.queue(class);
            let step = queue.front().min(count);
            count -= step;
            self.partial = if queue.advance(step) { None } else { Some(class) };
        }
        debug_assert_eq!(count, 0, "more was sent than waited");
    }

    fn queue(&mut self, class: Class) -> &mut Queue {
        match class {
            Class::Urgent => &mut self.urgent,
            Class::Ordinary => &mut self.ordinary,
        }
    }
}

/// Slices that go before a message.
pub(super) struct Ahead<'a>([&'a [u8]; 3]);

impl<'a> Ahead<'a> {
    pub(super) fn len(&self) -> usize {
        self.0.iter().map(|slice| slice.len()).sum()
    }

    pub(super) fn is_empty(&self) -> bool {
        self.len() == 0
    }

    pub(super) fn io_slices(&self) -> impl Iterator<Item = IoSlice<'a>> {
        self.0.into_iter().filter(|slice| !slice.is_empty()).map(IoSlice::new)
    }
}
