//! Devices that a thread of the program serves when it gets to it, such as models in Python.
//!
//! A vCPU's thread, and the one that hears the other nodes, only leave their accesses here: neither
//! ever waits for a lock that the serving thread holds while it runs the program's code.

use std::collections::VecDeque;
use std::sync::mpsc::Sender;
use std::sync::{Arc, Condvar, Mutex, OnceLock, PoisonError};
use std::time::{Duration, Instant};

use kvm_vcpu::bus::{Access, Device, Reply};

use super::core::Event;
use crate::node::lock;

/// How long devices may take to return from a reset, accesses before it included.
const RESET: Duration = Duration::from_secs(10);

/// What a device is asked for.
#[derive(Debug)]
pub struct DeviceRequest {
    /// The number that it was given to [`DeviceQueue::device`] with.
    pub device: usize,
    /// The access; none is the state after power-on.
    pub access: Option<Access>,
    /// Where the answer goes; to drop it answers as nobody would.
    pub reply: Reply,
}

/// The accesses to the devices of one thread, in the order in which they came.
#[derive(Default)]
pub struct DeviceQueue {
    state: Mutex<State>,
    changed: Condvar,
    /// Hears of devices that fail.
    events: OnceLock<Sender<Event>>,
}

#[derive(Default)]
struct State {
    waiting: VecDeque<DeviceRequest>,
    closed: bool,
}

impl DeviceQueue {
    /// A queue without devices.
    pub fn new() -> Arc<Self> {
        Arc::default()
    }

    /// A device whose accesses come to this queue, with `number` to tell it by.
    pub fn device(self: &Arc<Self>, number: usize, name: &str) -> Arc<dyn Device> {
        Arc::new(Queued { queue: Arc::clone(self), number, name: name.into() })
    }

    /// Waits for the next request; `None` once the queue is closed.
    pub fn next(&self) -> Option<DeviceRequest> {
        let mut state = lock(&self.state);
        while !state.closed {
            if let Some(request) = state.waiting.pop_front() {
                return Some(request);
            }
            state = self.changed.wait(state).unwrap_or_else(PoisonError::into_inner);
        }
        None
    }

    /// Nobody serves the devices any more: what waits, and what comes, is answered as nobody would.
    pub fn close(&self) {
        let waiting = {
            let mut state = lock(&self.state);
            state.closed = true;
            std::mem::take(&mut state.waiting)
        };
        self.changed.notify_all();
        drop(waiting);
    }

    /// Whom to tell when a device fails.
    pub(super) fn connect(&self, events: Sender<Event>) {
        let _ = self.events.set(events);
    }

    fn push(&self, request: DeviceRequest) {
        {
            let mut state = lock(&self.state);
            if !state.closed {
                state.waiting.push_back(request);
                drop(state);
                return self.changed.notify_one();
            }
        }
        drop(request);
    }

    fn failed(&self, reason: String) {
        if let Some(events) = self.events.get() {
            let _ = events.send(Event::Failed(reason));
        }
    }
}

/// One device of a queue.
struct Queued {
    queue: Arc<DeviceQueue>,
    number: usize,
    name: String,
}

impl Device for Queued {
    fn name(&self) -> &str {
        &self.name
    }

    fn access(&self, access: Access, reply: Reply) {
        self.queue.push(DeviceRequest { device: self.number, access: Some(access), reply });
    }

    /// Waits: when the guest starts again, nothing is under way from before.
    fn reset(&self) {
        let done = Arc::new((Mutex::new(false), Condvar::new()));
        let signal = Arc::clone(&done);
        let reply = Reply::new(move |_| {
            *lock(&signal.0) = true;
            signal.1.notify_all();
        });
        self.queue.push(DeviceRequest { device: self.number, access: None, reply });
        let deadline = Instant::now() + RESET;
        let mut is_done = lock(&done.0);
        while !*is_done {
            let left = deadline.saturating_duration_since(Instant::now());
            if left.is_zero() {
                return self.queue.failed(format!(
                    "device {:?} has not returned from its reset after {} s",
                    self.name,
                    RESET.as_secs()
                ));
            }
            is_done = done.1.wait_timeout(is_done, left).unwrap_or_else(PoisonError::into_inner).0;
        }
    }
}

#[cfg(test)]
mod tests {
    use kvm_vcpu::bus::Data;

    use super::*;

    #[test]
    fn accesses_come_in_order_and_go_where_they_came_from() {
        let queue = DeviceQueue::new();
        let devices = [queue.device(0, "a"), queue.device(1, "b")];
        let (answers, received) = std::sync::mpsc::channel();
        for (number, device) in devices.iter().enumerate() {
            let answers = answers.clone();
            let reply = Reply::new(move |data| answers.send((number, data)).unwrap());
            device.access(Access::Read { offset: number as u64, len: 4 }, reply);
        }
        for number in 0..2 {
            let request = queue.next().unwrap();
            assert_eq!(request.device, number);
            let access = Access::Read { offset: number as u64, len: 4 };
            assert_eq!(request.access, Some(access));
            let data = Data::from_u64(7, 4);
            request.reply.read(data);
            assert_eq!(received.recv().unwrap(), (number, Some(data)));
        }
    }

    #[test]
    fn a_closed_queue_answers_as_nobody_would() {
        let queue = DeviceQueue::new();
        let device = queue.device(0, "a");
        let (answers, received) = std::sync::mpsc::channel();
        let ask = || {
            let answers = answers.clone();
            let reply = Reply::new(move |data| answers.send(data).unwrap());
            device.access(Access::Read { offset: 0, len: 1 }, reply);
        };
        ask();
        queue.close();
        ask();
        assert_eq!([received.recv().unwrap(), received.recv().unwrap()], [None, None]);
        assert!(queue.next().is_none());
        // Nor does a reset wait.
        device.reset();
    }

    #[test]
    fn a_reset_returns_when_the_device_has() {
        let queue = DeviceQueue::new();
        let device = queue.device(0, "a");
        let resets = std::thread::spawn(move || device.reset());
        let request = queue.next().unwrap();
        assert_eq!(request.access, None);
        assert!(!resets.is_finished());
        request.reply.written();
        resets.join().unwrap();
    }
}
