//! The threads of a device.

use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::mpsc::{self, Receiver, Sender};
use std::sync::{Arc, Condvar, Mutex, PoisonError};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use rustix::event::{EventfdFlags, Timespec, epoll, eventfd};

use super::chain::Broken;
use super::interrupts::Interrupts;
use super::ring::Ring;
use crate::devices::lock;

/// The queues of a thread, by their position among them; those that the driver has not enabled are none.
pub(super) type Rings = Vec<Option<Ring>>;

/// What one thread of a device does. Only it touches the guest's memory.
pub(super) trait Worker: Send {
    /// What else to wait for, beside the driver: input from there.
    fn source(&self) -> Option<BorrowedFd<'_>> {
        None
    }

    /// The driver is ready; these features were agreed on.
    fn start(&mut self, features: u64) {
        let _ = features;
    }

    /// Does what there is to do; says whether there may be more. Called after a start, a kick, or
    /// when new input has come, and until there is nothing more.
    fn serve(&mut self, rings: &mut Rings) -> Result<bool, Broken>;
}

/// Called first by every thread that will touch the guest's memory.
pub type Begin = Arc<dyn Fn() + Send + Sync>;

/// A thread to be, and the indices of its queues.
pub(super) type Job = (Box<dyn Worker>, Vec<u16>);

/// Wakes a thread, any number of times.
#[derive(Clone)]
pub(super) struct Kick(Arc<OwnedFd>);

impl Kick {
    pub(super) fn new() -> std::io::Result<Self> {
        let fd = eventfd(0, EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK)?;
        Ok(Self(Arc::new(fd)))
    }

    pub(super) fn kick(&self) {
        // Fails only when it is full, and then its thread has been woken.
        let _ = rustix::io::write(&self.0, &1u64.to_ne_bytes());
    }
}

impl AsFd for Kick {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.0.as_fd()
    }
}

enum Command {
    Start { features: u64, rings: Rings },
    Stop,
    Quit,
}

/// How many threads have queues.
#[derive(Default)]
struct Busy {
    count: Mutex<usize>,
    changed: Condvar,
}

impl Busy {
    fn add(&self, count: usize) {
        *lock(&self.count) += count;
    }

    fn done(&self) {
        let mut count = lock(&self.count);
        *count = count.saturating_sub(1);
        self.changed.notify_all();
    }
}

struct Hand {
    commands: Sender<Command>,
    wake: Kick,
    queues: Vec<u16>,
    thread: Mutex<Option<JoinHandle<()>>>,
}

/// All threads of a device, which wait until the driver is ready.
pub(super) struct Crew {
    hands: Vec<Hand>,
    busy: Arc<Busy>,
}

impl Crew {
    /// Starts the threads; `kicks` are those of all queues.
    pub(super) fn new(
        name: &str,
        jobs: Vec<Job>,
        kicks: &[Kick],
        interrupts: &Arc<Interrupts>,
        begin: &Begin,
    ) -> std::io::Result<Self> {
        let busy = Arc::<Busy>::default();
        let mut crew = Self { hands: Vec::new(), busy: Arc::clone(&busy) };
        for (index, (worker, queues)) in jobs.into_iter().enumerate() {
            let epoll = epoll::create(epoll::CreateFlags::CLOEXEC)?;
            let wake = Kick::new()?;
            let watch = |fd: BorrowedFd<'_>| {
                // Edges: an event descriptor is never read, and one read of input takes all.
                let flags = epoll::EventFlags::IN | epoll::EventFlags::ET;
                epoll::add(&epoll, fd, epoll::EventData::new_u64(0), flags)
            };
            watch(wake.as_fd())?;
            for kick in queues.iter().filter_map(|&queue| kicks.get(usize::from(queue))) {
                watch(kick.as_fd())?;
            }
            if let Some(source) = worker.source() {
                watch(source)?;
            }
            let (commands, received) = mpsc::channel();
            let thread = Thread {
                name: name.to_owned(),
                worker,
                epoll,
                commands: received,
                busy: Arc::clone(&busy),
                interrupts: Arc::clone(interrupts),
                running: None,
            };
            let named = std::thread::Builder::new().name(format!("gvm-{name}-{index}"));
            let begin = Arc::clone(begin);
            let run = move || {
                begin();
                thread.run();
            };
            let thread = Mutex::new(Some(named.spawn(run)?));
            crew.hands.push(Hand { commands, wake, queues, thread });
        }
        Ok(crew)
    }

    fn tell(hand: &Hand, command: Command) {
        // A thread that is gone has nothing to do any more.
        let _ = hand.commands.send(command);
        hand.wake.kick();
    }

    /// Has the threads work on the queues, given by index.
    pub(super) fn start(&self, features: u64, mut rings: Vec<Option<Ring>>) {
        self.busy.add(self.hands.len());
        for hand in &self.hands {
            let ring = |&queue: &u16| rings.get_mut(usize::from(queue)).and_then(Option::take);
            let rings = hand.queues.iter().map(ring).collect();
            Self::tell(hand, Command::Start { features, rings });
        }
    }

    /// Has the threads let go of the queues; [`Crew::is_quiet`] says when they have.
    pub(super) fn stop(&self) {
        self.hands.iter().for_each(|hand| Self::tell(hand, Command::Stop));
    }

    /// Whether no thread touches the guest's memory.
    pub(super) fn is_quiet(&self) -> bool {
        *lock(&self.busy.count) == 0
    }

    /// Waits for that; says whether it came in time. A thread that waits for a page lets go only when
    /// it has got it.
    pub(super) fn wait_quiet(&self, timeout: Duration) -> bool {
        let until = Instant::now() + timeout;
        let mut count = lock(&self.busy.count);
        while *count > 0 {
            let left = until.saturating_duration_since(Instant::now());
            if left.is_zero() {
                return false;
            }
            let waited = self.busy.changed.wait_timeout(count, left);
            count = waited.unwrap_or_else(PoisonError::into_inner).0;
        }
        true
    }

    /// Ends the threads, and what they have open. One that waits for memory that does not come is left
    /// behind.
    pub(super) fn close(&self) {
        /// As for the threads of vCPUs.
        const END: Duration = Duration::from_secs(1);
        self.hands.iter().for_each(|hand| Self::tell(hand, Command::Quit));
        if self.wait_quiet(END) {
            for thread in self.hands.iter().filter_map(|hand| lock(&hand.thread).take()) {
                let _ = thread.join();
            }
        }
    }
}

impl Drop for Crew {
    fn drop(&mut self) {
        self.close();
    }
}

struct Thread {
    name: String,
    worker: Box<dyn Worker>,
    epoll: OwnedFd,
    commands: Receiver<Command>,
    busy: Arc<Busy>,
    interrupts: Arc<Interrupts>,
    running: Option<Rings>,
}

impl Thread {
    fn run(mut self) {
        let mut more = false;
        loop {
            self.wait(more);
            loop {
                match self.commands.try_recv() {
                    Ok(Command::Start { features, rings }) => {
                        self.worker.start(features);
                        self.running = Some(rings);
                    }
                    Ok(Command::Stop) => self.let_go(),
                    Ok(Command::Quit) | Err(mpsc::TryRecvError::Disconnected) => {
                        return self.let_go();
                    }
                    Err(mpsc::TryRecvError::Empty) => break,
                }
            }
            more = self.serve();
        }
    }

    fn wait(&self, more: bool) {
        let mut events = [epoll::Event {
            flags: epoll::EventFlags::empty(),
            data: epoll::EventData::new_u64(0),
        }; 4];
        let at_once = more.then(Timespec::default);
        // Interrupted or not, what follows finds out what there is.
        let _ = epoll::wait(&self.epoll, &mut events[..], at_once.as_ref());
    }

    fn serve(&mut self) -> bool {
        let Some(rings) = &mut self.running else { return false };
        match self.worker.serve(rings) {
            Ok(more) => more,
            Err(Broken::Stopped) => {
                self.let_go();
                false
            }
            Err(broken) => {
                log::warn!("{}: {broken}; the device waits for its reset", self.name);
                self.interrupts.break_device(true);
                self.let_go();
                false
            }
        }
    }

    fn let_go(&mut self) {
        if self.running.take().is_some() {
            self.busy.done();
        }
    }
}
