//! What a thread meets when it touches a page that was lost with its node.
//!
//! Such a page is poisoned ([`RegionMemory::poison`](super::RegionMemory::poison)), so the kernel
//! sends `SIGBUS`. The handler here says on stderr what was lost, in one line, and ends the process
//! with [`EXIT_MEMORY_LOST`]; unless the thread was told of the loss
//! ([`survive_lost_memory`]). Every other `SIGBUS` goes where it went before.
//!
//! The handler may interrupt any code: it takes no lock and allocates nothing. What it reads is
//! published by an atomic pointer and never freed.

use std::cell::Cell;
use std::io;
use std::mem::MaybeUninit;
use std::ops::Range;
use std::ptr;
use std::sync::atomic::{AtomicBool, AtomicI32, AtomicPtr, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

use crate::PAGE_SIZE;

/// Exit status of a process that touched memory lost with another node.
pub const EXIT_MEMORY_LOST: i32 = 86;

/// Most regions that can be registered at a time.
pub const REGISTRATIONS_MAX: usize = 64;

/// Longest name or reason in the line, in bytes; the rest is cut off.
const TEXT_BYTES_MAX: usize = 200;

/// Room for the line: three texts, sixteen digits, and the words between them.
const LINE_BYTES_MAX: usize = 1024;

/// How long a full pipe at stderr may keep a dying process, in milliseconds.
const STDERR_WAIT_MS: libc::c_int = 1000;

thread_local! {
    /// What tells this thread of a loss that it is to go on after; null for none. Never freed.
    static TOLD: Cell<*const AtomicBool> = const { Cell::new(ptr::null()) };
}

/// From now on, once `told` is set, this thread goes on when it touches memory that was lost: it finds zeros
/// there, and what it writes goes nowhere. For a thread that is told before its memory is lost, and looks
/// between what it reads and what it does with it. Before it is told, lost memory ends the process: the
/// region may live on, for others.
///
/// `told` stays in memory as long as the process.
pub fn survive_lost_memory(told: Arc<AtomicBool>) {
    TOLD.set(Arc::into_raw(told));
}

/// Whether this thread goes on. Called by the handler.
fn survives() -> bool {
    // SAFETY: null, or from `Arc::into_raw`, with the count that nobody gives back.
    unsafe { TOLD.get().as_ref() }.is_some_and(|told| told.load(Ordering::SeqCst))
}

/// Why a region can't be registered.
#[derive(Debug, thiserror::Error)]
pub enum SigbusError {
    /// The table is full.
    #[error("this process already has {REGISTRATIONS_MAX} regions: close one first")]
    TooMany,
    /// The handler can't be installed.
    #[error("sigaction failed for the handler of SIGBUS")]
    Install {
        /// What the call said.
        #[source]
        source: io::Error,
    },
}

/// A region whose pages may be lost; ends with this value, which goes before the region's memory
/// does: its addresses may then be used for something else.
#[derive(Debug)]
pub struct Registration {
    name: String,
    addresses: Range<usize>,
    slot: &'static Slot,
}

#[derive(Debug)]
struct Slot {
    taken: AtomicBool,
    /// Null until the region is lost.
    notice: AtomicPtr<Notice>,
}

/// The line about a lost region, but for the offset. Immutable once published, and leaked: a
/// handler may be reading it at any time. One per region and loss, a few hundred bytes.
#[derive(Debug)]
struct Notice {
    addresses: Range<usize>,
    prefix: String,
    suffix: String,
}

static SLOTS: [Slot; REGISTRATIONS_MAX] =
    [const { Slot { taken: AtomicBool::new(false), notice: AtomicPtr::new(ptr::null_mut()) } };
        REGISTRATIONS_MAX];

/// Whether the handler is installed.
static INSTALLED: Mutex<bool> = Mutex::new(false);

/// What SIGBUS did before.
static PREVIOUS_HANDLER: AtomicUsize = AtomicUsize::new(libc::SIG_DFL);
static PREVIOUS_FLAGS: AtomicI32 = AtomicI32::new(0);

/// Set by the first thread that touches lost memory; the others wait for its exit.
static REPORTING: AtomicBool = AtomicBool::new(false);

impl Registration {
    /// Registers the view of the region `name`. The first one installs the handler.
    ///
    /// # Errors
    /// With [`REGISTRATIONS_MAX`] regions registered, or if the handler can't be installed.
    pub fn new(name: &str, addresses: Range<usize>) -> Result<Self, SigbusError> {
        install_once().map_err(|source| SigbusError::Install { source })?;
        let slot = SLOTS
            .iter()
            .find(|slot| !slot.taken.swap(true, Ordering::AcqRel))
            .ok_or(SigbusError::TooMany)?;
        Ok(Self { name: name.into(), addresses, slot })
    }

    /// The region's name.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// From now on a `SIGBUS` in the region ends the process, with a line that names `node` and
    /// `reason`. To be called before pages are poisoned; of several calls the last counts.
    pub fn mark_lost(&self, node: &str, reason: &str) {
        let (name, node, reason) = (clean(&self.name), clean(node), clean(reason));
        let notice = Box::into_raw(Box::new(Notice {
            addresses: self.addresses.clone(),
            prefix: format!("giantvm: region \"{name}\" offset 0x"),
            suffix: format!(": lost with node {node} ({reason}); see docs/operations.md\n"),
        }));
        // The handler may be reading the one before.
        self.slot.notice.store(notice, Ordering::Release);
    }
}

impl Drop for Registration {
    fn drop(&mut self) {
        self.slot.notice.store(ptr::null_mut(), Ordering::Release);
        self.slot.taken.store(false, Ordering::Release);
    }
}

/// `text` without what would break the line, and not too long.
fn clean(text: &str) -> String {
    let mut cleaned = String::new();
    for c in text.chars() {
        if cleaned.len() + c.len_utf8() > TEXT_BYTES_MAX {
            break;
        }
        cleaned.push(if c.is_control() { '?' } else { c });
    }
    cleaned
}

fn install_once() -> io::Result<()> {
    let mut installed = INSTALLED.lock().unwrap_or_else(PoisonError::into_inner);
    if !*installed {
        // Read before the handler is in place, so that it never runs without.
        let previous = current_action()?;
        remember(&previous);
        let mut action = previous;
        action.sa_sigaction = on_sigbus as *const () as usize;
        // A handler before ours keeps the mask and the flags that say how it is entered.
        action.sa_flags = libc::SA_SIGINFO
            | libc::SA_ONSTACK
            | previous.sa_flags & (libc::SA_NODEFER | libc::SA_RESTART);
        set_action(&action)?;
        *installed = true;
    }
    Ok(())
}

fn remember(action: &libc::sigaction) {
    PREVIOUS_FLAGS.store(action.sa_flags, Ordering::Relaxed);
    PREVIOUS_HANDLER.store(action.sa_sigaction, Ordering::Release);
}

fn current_action() -> io::Result<libc::sigaction> {
    let mut action = MaybeUninit::<libc::sigaction>::zeroed();
    // SAFETY: the pointer is to a `sigaction` of this function's own; a null action only reads.
    if unsafe { libc::sigaction(libc::SIGBUS, ptr::null(), action.as_mut_ptr()) } != 0 {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: all zeros is a value of this type, and the call has filled it in.
    Ok(unsafe { action.assume_init() })
}

fn set_action(action: &libc::sigaction) -> io::Result<()> {
    // SAFETY: `action` is initialised, and its handler is `on_sigbus`, which is async-signal-safe,
    // or SIG_DFL.
    if unsafe { libc::sigaction(libc::SIGBUS, action, ptr::null_mut()) } != 0 {
        return Err(io::Error::last_os_error());
    }
    Ok(())
}

extern "C" fn on_sigbus(
    signal: libc::c_int,
    info: *mut libc::siginfo_t,
    context: *mut libc::c_void,
) {
    // SAFETY: the kernel passes a valid `siginfo_t` to a handler with SA_SIGINFO. The address is
    // read only if the code says that there is one.
    let fault = unsafe {
        let code = (*info).si_code;
        (libc::BUS_ADRALN..=libc::BUS_MCEERR_AR).contains(&code).then(|| (*info).si_addr() as usize)
    };
    if let Some(address) = fault {
        for slot in &SLOTS {
            // SAFETY: a pointer that isn't null was published whole, by a release store, and what
            // it points to is never changed or freed.
            let notice = unsafe { slot.notice.load(Ordering::Acquire).as_ref() };
            if let Some(notice) = notice.filter(|notice| notice.addresses.contains(&address)) {
                if survives() && replace_page(address) {
                    return;
                }
                end_process(notice, address);
            }
        }
    }
    pass_on(signal, info, context, fault.is_some());
}

/// Puts memory of this process alone in the place of a lost page; says whether that worked.
fn replace_page(address: usize) -> bool {
    let page = address & !(PAGE_SIZE - 1);
    let rights = libc::PROT_READ | libc::PROT_WRITE;
    let flags = libc::MAP_PRIVATE | libc::MAP_ANONYMOUS | libc::MAP_FIXED;
    // SAFETY: a bare system call, so async-signal-safe. The page is one of a lost region's view, which
    // no Rust reference points into, and whose owner unmaps it whatever maps it by then.
    unsafe { libc::mmap(page as *mut _, PAGE_SIZE, rights, flags, -1, 0) != libc::MAP_FAILED }
}

/// Writes the line and ends the process.
fn end_process(notice: &Notice, address: usize) -> ! {
    if REPORTING.swap(true, Ordering::AcqRel) {
        loop {
            // SAFETY: waits for a signal; the thread that reports ends the process.
            unsafe { libc::pause() };
        }
    }
    let mut line = Line { bytes: [0; LINE_BYTES_MAX], len: 0 };
    line.push(notice.prefix.as_bytes());
    line.push_hex(address - notice.addresses.start);
    line.push(notice.suffix.as_bytes());
    let mut stderr = libc::pollfd { fd: 2, events: libc::POLLOUT, revents: 0 };
    // SAFETY: poll, write and _exit are async-signal-safe; the pointers are to locals, `len` is
    // within `bytes`. A pipe that polls writable takes a line of this length without blocking.
    unsafe {
        if libc::poll(&mut stderr, 1, STDERR_WAIT_MS) > 0 {
            libc::write(2, line.bytes.as_ptr().cast(), line.len);
        }
        libc::_exit(EXIT_MEMORY_LOST)
    }
}

/// A line built without allocation; what doesn't fit is cut off.
struct Line {
    bytes: [u8; LINE_BYTES_MAX],
    len: usize,
}

impl Line {
    fn push(&mut self, text: &[u8]) {
        for (to, from) in self.bytes.iter_mut().skip(self.len).zip(text) {
            *to = *from;
            self.len += 1;
        }
    }

    fn push_hex(&mut self, number: usize) {
        let digits = (usize::BITS - number.leading_zeros()).div_ceil(4).max(1);
        for digit in (0..digits).rev() {
            let value = (number >> (4 * digit) & 0xf) as u8;
            self.push(&[if value < 10 { b'0' + value } else { b'a' + value - 10 }]);
        }
    }
}

/// Does what would have happened without this handler.
fn pass_on(
    signal: libc::c_int,
    info: *mut libc::siginfo_t,
    context: *mut libc::c_void,
    is_fault: bool,
) {
    let previous = PREVIOUS_HANDLER.load(Ordering::Acquire);
    let flags = PREVIOUS_FLAGS.load(Ordering::Relaxed);
    if previous == libc::SIG_DFL || previous == libc::SIG_IGN {
        // The kernel lets nobody ignore a fault.
        if previous == libc::SIG_DFL || is_fault {
            die_by_default(signal, is_fault);
        }
        return;
    }
    if flags & libc::SA_RESETHAND != 0 {
        PREVIOUS_HANDLER.store(libc::SIG_DFL, Ordering::Release);
    }
    // SAFETY: `previous` is the address of a handler that was installed for this signal with
    // these flags, which say its type; it gets what the kernel gave.
    unsafe {
        if flags & libc::SA_SIGINFO != 0 {
            type Handler = extern "C" fn(libc::c_int, *mut libc::siginfo_t, *mut libc::c_void);
            std::mem::transmute::<usize, Handler>(previous)(signal, info, context);
        } else {
            type Handler = extern "C" fn(libc::c_int);
            std::mem::transmute::<usize, Handler>(previous)(signal);
        }
    }
}

fn die_by_default(signal: libc::c_int, is_fault: bool) {
    // SAFETY: all zeros is a `sigaction` with the default action, no flags and an empty mask; both
    // calls are async-signal-safe.
    unsafe {
        let default: libc::sigaction = MaybeUninit::zeroed().assume_init();
        libc::sigaction(signal, &default, ptr::null_mut());
        // A fault repeats itself when the handler returns, with its address for the core dump.
        if !is_fault {
            libc::raise(signal);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn hex(number: usize) -> String {
        let mut line = Line { bytes: [0; LINE_BYTES_MAX], len: 0 };
        line.push_hex(number);
        String::from_utf8(line.bytes[..line.len].to_vec()).unwrap()
    }

    #[test]
    fn offsets_are_written_as_rust_writes_them() {
        for number in [0, 1, 9, 10, 15, 16, 0xabc, 0x1000, 0xdead_beef, usize::MAX] {
            assert_eq!(hex(number), format!("{number:x}"));
        }
    }

    #[test]
    fn the_longest_line_fits() {
        let text = "x".repeat(10 * TEXT_BYTES_MAX);
        let registration = Registration::new(&text, 0..1).unwrap();
        registration.mark_lost(&text, &text);
        // SAFETY: published above, and never freed.
        let notice = unsafe { registration.slot.notice.load(Ordering::Acquire).as_ref() }.unwrap();
        let len = notice.prefix.len() + hex(usize::MAX).len() + notice.suffix.len();
        assert!(len <= LINE_BYTES_MAX, "{len}");
        assert!(notice.suffix.ends_with("docs/operations.md\n"));
    }

    #[test]
    fn names_cant_break_the_line_or_a_character() {
        assert_eq!(clean("a\nb\x1b[c"), "a?b?[c");
        let cut = clean(&"é".repeat(TEXT_BYTES_MAX));
        assert_eq!(cut.len(), TEXT_BYTES_MAX);
        assert!(cut.chars().all(|c| c == 'é'));
    }
}
