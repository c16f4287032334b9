//! Every bound of this crate, with its reason.
//!
//! A bound on what a peer sends is checked by the decoder, so that no message can make a node
//! allocate more than the message's own length.

/// Longest name of a synchronisation object or region, in bytes: room for a path-like name, while a
/// request still fits one packet of 1,400 bytes many times over.
pub const NAME_BYTES_MAX: usize = 200;

/// Longest name of a node, in bytes: a DNS label is at most 63.
pub const NODE_NAME_BYTES_MAX: usize = 63;

/// Longest address of a node in etcd, in bytes: a host name has at most 253, a path 107.
pub const NODE_ADDRESS_BYTES_MAX: usize = 300;

/// Longest reason in a control message, in bytes: one or two lines of text. Longer ones are cut.
pub const REASON_BYTES_MAX: usize = 512;

/// Longest body of a control message, in bytes: [`SyncReport`]s come in parts of about this size,
/// no other is longer than 800 bytes. A reader refuses a longer frame before it allocates.
///
/// [`SyncReport`]: crate::control::ControlMessage::SyncReport
pub const CONTROL_BODY_BYTES_MAX: usize = 4096;

/// Most synchronisation objects in use at one home: far more than a program names on purpose, so
/// that reaching it means that names are generated and never released. Idle objects don't count.
pub const SYNC_OBJECTS_MAX: usize = 65_536;

/// Most waiters at one synchronisation object: 64 nodes with 256 waiting threads each.
pub const SYNC_QUEUE_MAX: usize = 16_384;

/// Most tickets that one node may have waiting or holding, at all homes together: the most threads
/// one process usually has, and at each home a bound on memory (64 nodes: about 4 million entries)
/// that no node can use up at the expense of another. It also bounds the requests of a node that
/// wait until a home has been told of a change, and the locks that a node reports after one.
pub const SYNC_TICKETS_PER_NODE_MAX: usize = 65_536;

/// Most parties of a barrier: all of them must be able to wait at once.
pub const BARRIER_PARTIES_MAX: u32 = SYNC_QUEUE_MAX as u32;

/// Shortest interval between heartbeats, in milliseconds: below it they would cost more wake-ups
/// than a fault-heavy program.
pub const HEARTBEAT_MS_MIN: u64 = 5;

/// Default interval between heartbeats, in milliseconds: 10 small messages a second to each peer.
pub const HEARTBEAT_MS_DEFAULT: u64 = 100;

/// Default silence after which a node is out, in milliseconds: above the pauses of a loaded host
/// or a live-migrated virtual machine, below what a user calls a hang.
pub const TIMEOUT_MS_DEFAULT: u64 = 2_000;

/// Default wait beyond the timeout before the others go on, in milliseconds; the inequality that it
/// must satisfy is in [`membership`](crate::membership).
pub const MARGIN_MS_DEFAULT: u64 = 500;

/// Most time between the end of a node's right to run and the end of its regions, in milliseconds: its
/// program may be told first ([`CALLBACK_MS`]), and then pages are taken from its threads.
pub const STOP_MS: u64 = CALLBACK_MS + 50;

/// How long the program's callback may keep a node's regions from ending, in milliseconds. The thread
/// that the callback needs may be the one that waits for a page.
pub const CALLBACK_MS: u64 = 200;

/// Longest configurable timeout or margin, in milliseconds: one hour. It keeps sums of times far
/// from overflow.
pub const TIMEOUT_MS_MAX: u64 = 3_600_000;

/// Least number of heartbeats in a timeout. The right to run travels out and back, and each end
/// looks only once an interval: up to four intervals, as exploring all orders has shown. One is for
/// a late wake-up, one to spare.
pub const HEARTBEATS_PER_TIMEOUT_MIN: u64 = 6;

/// Largest drift between the clocks of two nodes, as one part in this many: 1000 ppm together,
/// ten times what ordinary crystals show.
pub const CLOCK_DRIFT_ONE_IN: u64 = 1_000;

/// The last epoch in which a node may join. An epoch's number has 16 bits in the header of a page message;
/// a member that goes needs one more, so that there must always be some left.
pub const JOIN_EPOCH_MAX: u16 = 65_000;

/// Default wait of the deciding node for the others to leave before it ends the cluster, in
/// milliseconds: long enough for programs that end together.
pub const LEAVE_WAIT_MS_DEFAULT: u64 = 5_000;
