//! A queue in use, the property of one thread.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use virtio_queue::{Queue, QueueOwnedT, QueueT};
use vm_memory::{GuestAddress, GuestMemoryMmap};

use super::chain::{Broken, Chain};
use super::common::QueueSetup;
use super::interrupts::Interrupts;

/// A queue that its driver has set up.
pub(super) struct Ring {
    index: u16,
    queue: Queue,
    memory: Arc<GuestMemoryMmap>,
    interrupts: Arc<Interrupts>,
    stop: Arc<AtomicBool>,
}

impl Ring {
    /// A queue as its driver has set it up. Once `stop` is set, it is empty.
    pub(super) fn new(
        index: u16,
        setup: &QueueSetup,
        event_idx: bool,
        memory: Arc<GuestMemoryMmap>,
        interrupts: Arc<Interrupts>,
        stop: Arc<AtomicBool>,
    ) -> Result<Self, Broken> {
        let refused =
            |error| Broken::Driver(format!("set up queue {index} in a way that can't be: {error}"));
        let mut queue = Queue::new(setup.size_max).map_err(refused)?;
        queue.try_set_size(setup.size).map_err(refused)?;
        queue.try_set_desc_table_address(GuestAddress(setup.descriptors)).map_err(refused)?;
        queue.try_set_avail_ring_address(GuestAddress(setup.driver)).map_err(refused)?;
        queue.try_set_used_ring_address(GuestAddress(setup.device)).map_err(refused)?;
        queue.set_event_idx(event_idx);
        queue.set_ready(true);
        if !queue.is_valid(&*memory) {
            return Err(Broken::Driver(format!("put queue {index} where there is no memory")));
        }
        Ok(Self { index, queue, memory, interrupts, stop })
    }

    fn stopped(&self) -> bool {
        self.stop.load(Ordering::SeqCst)
    }

    fn broken(&self, error: &virtio_queue::Error) -> Broken {
        if self.stopped() {
            return Broken::Stopped;
        }
        Broken::Driver(format!("broke queue {}: {error}", self.index))
    }

    /// The next request, if there is one.
    pub(super) fn pop(&mut self) -> Result<Option<Chain>, Broken> {
        if self.stopped() {
            return Ok(None);
        }
        let memory = Arc::clone(&self.memory);
        let chain = match self.queue.iter(&*memory) {
            Ok(mut chains) => chains.next(),
            Err(error) => return Err(self.broken(&error)),
        };
        let chain = chain.map(|chain| Chain::new(chain, &memory, &self.stop)).transpose();
        // Descriptors of memory that is lost are no fault of the driver.
        if self.stopped() { Ok(None) } else { chain }
    }

    /// Leaves the last `count` requests that were popped for later.
    pub(super) fn put_back(&mut self, count: usize) {
        (0..count).for_each(|_| self.queue.go_to_previous_position());
    }

    /// Gives the buffers of a request back, `written` bytes of them written.
    pub(super) fn push(&mut self, head: u16, written: u32) -> Result<(), Broken> {
        let pushed = self.queue.add_used(&*self.memory, head, written);
        pushed.map_err(|error| self.broken(&error))
    }

    /// Tells the driver of the buffers given back, if it wants to know.
    pub(super) fn signal(&mut self) -> Result<(), Broken> {
        match self.queue.needs_notification(&*self.memory) {
            Ok(true) => self.interrupts.used(self.index),
            Ok(false) => {}
            Err(error) => return Err(self.broken(&error)),
        }
        Ok(())
    }

    /// Asks to be kicked from now on; says whether something came before that.
    pub(super) fn rest(&mut self) -> Result<bool, Broken> {
        if self.stopped() {
            return Ok(false);
        }
        self.queue.enable_notification(&*self.memory).map_err(|error| self.broken(&error))
    }

    /// Asks not to be kicked while it is looked at anyway.
    pub(super) fn wake(&mut self) -> Result<(), Broken> {
        if self.stopped() {
            return Ok(());
        }
        self.queue.disable_notification(&*self.memory).map_err(|error| self.broken(&error))
    }

    /// Answers request after request with `answer`, until there is none or `most` have been; says
    /// whether there may be more. The answer is what of a request's buffers was written.
    pub(super) fn each(
        &mut self,
        most: usize,
        mut answer: impl FnMut(&mut Chain) -> Result<u32, Broken>,
    ) -> Result<bool, Broken> {
        let mut count = 0;
        self.wake()?;
        loop {
            while count < most
                && let Some(mut chain) = self.pop()?
            {
                let written = answer(&mut chain)?;
                self.push(chain.head(), written)?;
                count += 1;
            }
            if count > 0 {
                self.signal()?;
            }
            if count >= most {
                return Ok(!self.stopped());
            }
            if !self.rest()? {
                return Ok(false);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use vm_memory::Bytes;

    use super::super::driver::memory;
    use super::*;

    #[test]
    fn what_is_read_after_the_stop_goes_nowhere() {
        let memory = memory();
        // One descriptor of 16 bytes at 0x5000, offered.
        memory.write_obj(0x5000u64, GuestAddress(0x1000)).unwrap();
        memory.write_obj(16u32, GuestAddress(0x1008)).unwrap();
        memory.write_obj(1u16, GuestAddress(0x2002)).unwrap();
        let setup = QueueSetup {
            size_max: 8,
            size: 8,
            enabled: true,
            descriptors: 0x1000,
            driver: 0x2000,
            device: 0x3000,
        };
        let interrupts = Arc::new(Interrupts::new(1, Arc::new(|_: crate::chips::Message| {})));
        let stop = Arc::new(AtomicBool::new(false));
        let ring = || {
            let (memory, interrupts) = (Arc::clone(&memory), Arc::clone(&interrupts));
            Ring::new(0, &setup, false, memory, interrupts, Arc::clone(&stop)).unwrap()
        };
        let mut chain = ring().pop().unwrap().expect("a request");
        let mut bytes = [0; 8];
        assert_eq!(chain.read(&mut bytes), Ok(8));
        stop.store(true, Ordering::SeqCst);
        assert_eq!(chain.read(&mut bytes), Err(Broken::Stopped));
        assert!(ring().pop().unwrap().is_none());
        // A queue in memory that was lost is not the driver's fault.
        memory.write_obj(500u16, GuestAddress(0x2002)).unwrap();
        assert!(ring().pop().unwrap().is_none());
    }
}
