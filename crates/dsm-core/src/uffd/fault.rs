//! Page faults as the kernel reports them.

use super::abi;
use crate::types::{Access, PAGE_SIZE, ThreadId};

/// A thread waits for a page.
///
/// The kernel may report the same fault again, after a signal for example.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Fault {
    /// Address of the first byte of the page.
    pub address: usize,
    /// What the thread is about to do.
    pub access: Access,
    /// What stood in its way.
    pub kind: FaultKind,
    /// The kernel's id of the thread, in this process's pid namespace.
    pub thread: ThreadId,
}

/// What stood in the way of an access.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum FaultKind {
    /// The page has no frame yet.
    Missing,
    /// There is a frame, which isn't mapped here.
    Minor,
    /// The page is mapped read-only.
    WriteProtect,
}

impl Fault {
    /// `None` for events other than page faults.
    fn from_message(message: &abi::Message) -> Option<Self> {
        if message.event != abi::EVENT_PAGEFAULT {
            return None;
        }
        let has = |flag| message.flags & flag != 0;
        let kind = if has(abi::PAGEFAULT_FLAG_WP) {
            FaultKind::WriteProtect
        } else if has(abi::PAGEFAULT_FLAG_MINOR) {
            FaultKind::Minor
        } else {
            FaultKind::Missing
        };
        let write = kind == FaultKind::WriteProtect || has(abi::PAGEFAULT_FLAG_WRITE);
        Some(Self {
            address: message.address as usize & !(PAGE_SIZE - 1),
            access: if write { Access::Write } else { Access::Read },
            kind,
            thread: ThreadId(message.thread),
        })
    }
}

/// Room for the faults of one [`Userfaultfd::read_faults`](super::Userfaultfd::read_faults), kept
/// by a worker so that reading allocates nothing.
pub struct FaultBuffer {
    pub(super) messages: Box<[abi::Message]>,
    faults: Vec<Fault>,
}

impl FaultBuffer {
    /// A buffer for up to `faults` faults at a time; at least one.
    pub fn new(faults: usize) -> Self {
        let faults = faults.max(1);
        Self {
            messages: vec![abi::Message::EMPTY; faults].into_boxed_slice(),
            faults: Vec::with_capacity(faults),
        }
    }

    /// The faults among the first `count` messages.
    pub(super) fn decode(&mut self, count: usize) -> &[Fault] {
        self.faults.clear();
        self.faults.extend(self.messages.iter().take(count).filter_map(Fault::from_message));
        &self.faults
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn message(event: u8, flags: u64) -> abi::Message {
        abi::Message { event, flags, address: 0x7000_1fff, thread: 42, ..abi::Message::EMPTY }
    }

    #[test]
    fn flags_give_access_and_kind() {
        use abi::{PAGEFAULT_FLAG_MINOR as MINOR, PAGEFAULT_FLAG_WP as WP};
        const WRITE: u64 = abi::PAGEFAULT_FLAG_WRITE;
        let cases = [
            (0, Access::Read, FaultKind::Missing),
            (WRITE, Access::Write, FaultKind::Missing),
            (MINOR, Access::Read, FaultKind::Minor),
            (MINOR | WRITE, Access::Write, FaultKind::Minor),
            (WP, Access::Write, FaultKind::WriteProtect),
            (WP | WRITE, Access::Write, FaultKind::WriteProtect),
        ];
        for (flags, access, kind) in cases {
            let expected = Fault { address: 0x7000_1000, access, kind, thread: ThreadId(42) };
            assert_eq!(Fault::from_message(&message(abi::EVENT_PAGEFAULT, flags)), Some(expected));
        }
    }

    #[test]
    fn other_events_and_old_messages_are_left_out() {
        let mut buffer = FaultBuffer::new(3);
        buffer.messages[0] = message(0x15, 0);
        buffer.messages[1] = message(abi::EVENT_PAGEFAULT, 0);
        buffer.messages[2] = message(abi::EVENT_PAGEFAULT, abi::PAGEFAULT_FLAG_WRITE);
        let faults = buffer.decode(2);
        assert_eq!(faults.len(), 1);
        assert_eq!(faults[0].access, Access::Read);
        assert!(buffer.decode(0).is_empty());
    }
}
