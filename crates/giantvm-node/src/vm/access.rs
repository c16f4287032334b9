//! Accesses of the guest to devices, here and on other nodes.

use std::collections::HashMap;
use std::sync::{Arc, Condvar, Mutex, PoisonError};

use dsm_core::types::NodeId;
use kvm_vcpu::bus::{Access, Bus, Data, Device, Hit, Reply, Space};
use kvm_vcpu::vm::{Io, IoData, VcpuId};

use super::message::{Payload, VmMessage};
use super::post::Post;
use crate::node::lock;

/// Where the thread of a vCPU waits for an answer.
#[derive(Default)]
struct Slot {
    state: Mutex<Waiting>,
    changed: Condvar,
}

#[derive(Default)]
struct Waiting {
    /// What is waited for; 0 is nothing.
    sequence: u32,
    answer: Option<Vec<u8>>,
    /// No answer will come any more.
    over: bool,
}

/// The waiting threads of this node's vCPUs.
#[derive(Default)]
pub(super) struct Slots {
    by_vcpu: HashMap<VcpuId, Slot>,
}

impl Slots {
    pub(super) fn new(vcpus: impl Iterator<Item = VcpuId>) -> Self {
        Self { by_vcpu: vcpus.map(|vcpu| (vcpu, Slot::default())).collect() }
    }

    /// A number for the next access of this vCPU.
    fn open(&self, vcpu: VcpuId) -> u32 {
        let Some(slot) = self.by_vcpu.get(&vcpu) else { return 0 };
        let mut state = lock(&slot.state);
        state.answer = None;
        state.sequence = state.sequence.wrapping_add(1).max(1);
        state.sequence
    }

    /// Waits for the answer; `None` if the machine ends first.
    fn wait(&self, vcpu: VcpuId) -> Option<Vec<u8>> {
        let slot = self.by_vcpu.get(&vcpu)?;
        let mut state = lock(&slot.state);
        loop {
            if let Some(answer) = state.answer.take() {
                return Some(answer);
            }
            if state.over {
                return None;
            }
            state = slot.changed.wait(state).unwrap_or_else(PoisonError::into_inner);
        }
    }

    /// Has `start` begin something that calls what it is given when it is done, and waits for that.
    pub(super) fn wait_until(
        self: &Arc<Self>,
        vcpu: VcpuId,
        start: impl FnOnce(Box<dyn FnOnce() + Send>),
    ) {
        let (slots, sequence) = (Arc::clone(self), self.open(vcpu));
        start(Box::new(move || slots.answer(vcpu, sequence, Vec::new())));
        self.wait(vcpu);
    }

    /// An answer has come; one that nobody waits for is dropped.
    pub(super) fn answer(&self, vcpu: VcpuId, sequence: u32, data: Vec<u8>) {
        let Some(slot) = self.by_vcpu.get(&vcpu) else { return };
        let mut state = lock(&slot.state);
        if state.sequence == sequence {
            state.answer = Some(data);
            slot.changed.notify_one();
        }
    }

    /// Whoever waits waits no longer, until [`Slots::reopen`].
    pub(super) fn end(&self) {
        for slot in self.by_vcpu.values() {
            lock(&slot.state).over = true;
            slot.changed.notify_all();
        }
    }

    /// Waiting makes sense again.
    pub(super) fn reopen(&self) {
        self.by_vcpu.values().for_each(|slot| lock(&slot.state).over = false);
    }
}

/// What carries out the accesses of this node's vCPUs.
pub(super) struct Accesses<'a> {
    pub(super) bus: &'a Bus,
    pub(super) post: &'a Arc<Post>,
    pub(super) slots: &'a Arc<Slots>,
    pub(super) generation: u32,
}

impl Accesses<'_> {
    /// Answers an access of a vCPU of this node; waits for that long.
    pub(super) fn answer(&self, vcpu: VcpuId, mut io: Io<'_>) {
        match self.bus.find(io.space, io.address, io.size) {
            None => {
                let (bus, space, address) = (self.bus, io.space, io.address);
                io.each(
                    |len| {
                        bus.nobody(space, &Access::Read { offset: address, len });
                        Data::all_ones(len)
                    },
                    |data| bus.nobody(space, &Access::Write { offset: address, data }),
                );
            }
            Some(Hit::Local { device, offset }) => self.here(vcpu, device, offset, io),
            Some(Hit::Remote { node, doorbell, .. }) => {
                if let Some(node) = NodeId::new(node) {
                    self.there(vcpu, node, doorbell, io);
                }
            }
            Some(Hit::Bytes) => self.bytes(vcpu, io),
        }
    }

    /// One access a byte, lowest port first.
    fn bytes(&self, vcpu: VcpuId, io: Io<'_>) {
        let (space, address) = (io.space, io.address);
        let each = |at: usize, data: IoData<'_>| {
            let address = address + (at % io.size.max(1)) as u64;
            self.answer(vcpu, Io { space, address, size: 1, data });
        };
        match io.data {
            IoData::Read(data) => {
                for (at, byte) in data.chunks_mut(1).enumerate() {
                    each(at, IoData::Read(byte));
                }
            }
            IoData::Write(data) => {
                for (at, byte) in data.chunks(1).enumerate() {
                    each(at, IoData::Write(byte));
                }
            }
        }
    }

    fn here(&self, vcpu: VcpuId, device: &Arc<dyn Device>, offset: u64, mut io: Io<'_>) {
        if let Some(direct) = device.direct() {
            io.each(|len| direct.read(offset, len), |data| direct.write(offset, data));
            return;
        }
        let sequence = self.slots.open(vcpu);
        let slots = Arc::clone(self.slots);
        let payload = payload(&io);
        serve_string(Arc::clone(device), offset, io.size, payload, move |data| {
            slots.answer(vcpu, sequence, data);
        });
        self.take(vcpu, io);
    }

    fn there(&self, vcpu: VcpuId, node: NodeId, doorbell: bool, io: Io<'_>) {
        let posted = doorbell && matches!(io.data, IoData::Write(_));
        let sequence = if posted { 0 } else { self.slots.open(vcpu) };
        let message = VmMessage::Access {
            generation: self.generation,
            vcpu,
            sequence,
            space: io.space,
            address: io.address,
            size: io.size as u8,
            payload: payload(&io),
        };
        self.post.send(node, &message);
        if !posted {
            self.take(vcpu, io);
        }
    }

    /// Waits for the answer and hands it to the guest.
    fn take(&self, vcpu: VcpuId, mut io: Io<'_>) {
        let answer = self.slots.wait(vcpu);
        if let IoData::Read(data) = &mut io.data {
            match answer {
                Some(answer) if answer.len() == data.len() => data.copy_from_slice(&answer),
                _ => data.fill(0xff),
            }
        }
    }
}

fn payload(io: &Io<'_>) -> Payload {
    match &io.data {
        IoData::Read(data) => Payload::Read { len: data.len() as u16 },
        IoData::Write(data) => Payload::Write(data.to_vec()),
    }
}

/// Serves an access of another node.
pub(super) fn serve(
    bus: &Bus,
    (space, address, size): (Space, u64, usize),
    payload: Payload,
    answer: impl FnOnce(Vec<u8>) + Send + 'static,
) {
    match bus.find(space, address, size) {
        Some(Hit::Local { device, offset }) => {
            if let Some(direct) = device.direct() {
                return answer(serve_direct(direct, offset, size, payload));
            }
            serve_string(Arc::clone(device), offset, size, payload, answer);
        }
        // The nodes' maps differ, or the other one is faulty.
        _ => {
            let (access, nothing) = match payload {
                Payload::Read { len } => {
                    (Access::Read { offset: address, len: size }, vec![0xff; len.into()])
                }
                Payload::Write(data) => {
                    (Access::Write { offset: address, data: Data::new(&data) }, Vec::new())
                }
            };
            bus.nobody(space, &access);
            answer(nothing);
        }
    }
}

fn serve_direct(
    direct: &dyn kvm_vcpu::bus::Direct,
    offset: u64,
    size: usize,
    payload: Payload,
) -> Vec<u8> {
    match payload {
        Payload::Read { len } => {
            let mut data = vec![0xff; len.into()];
            let mut io = Io { space: Space::Pio, address: 0, size, data: IoData::Read(&mut data) };
            io.each(|len| direct.read(offset, len), |_| {});
            data
        }
        Payload::Write(data) => {
            data.chunks(size.max(1)).for_each(|it| direct.write(offset, Data::new(it)));
            Vec::new()
        }
    }
}

/// Serves element after element by a device that answers when it likes.
fn serve_string(
    device: Arc<dyn Device>,
    offset: u64,
    size: usize,
    payload: Payload,
    answer: impl FnOnce(Vec<u8>) + Send + 'static,
) {
    let (rest, write, len) = match payload {
        Payload::Read { len } => (Vec::new(), false, usize::from(len)),
        Payload::Write(data) => {
            let len = data.len();
            (data, true, len)
        }
    };
    let answer = Box::new(answer);
    let read = Vec::new();
    drive(ServeString { device, offset, size: size.max(1), write, rest, at: 0, len, read, answer });
}

/// A string of accesses under way.
struct ServeString {
    device: Arc<dyn Device>,
    offset: u64,
    size: usize,
    write: bool,
    rest: Vec<u8>,
    at: usize,
    len: usize,
    read: Vec<u8>,
    answer: Box<dyn FnOnce(Vec<u8>) + Send>,
}

/// Where a string is while the device has one of its elements.
enum Element {
    /// The device has yet to return from the call.
    Asked,
    /// It has answered before it returned: the caller goes on, or a long string would fill the stack.
    Answered(ServeString),
    /// It has returned, and answers later.
    Left,
}

fn drive(mut string: ServeString) {
    while string.at < string.len {
        let end = (string.at + string.size).min(string.len);
        let (offset, len) = (string.offset, end - string.at);
        let access = match string.rest.get(string.at..end) {
            Some(element) if string.write => Access::Write { offset, data: Data::new(element) },
            _ => Access::Read { offset, len },
        };
        string.at = end;
        let device = Arc::clone(&string.device);
        let element = Arc::new(Mutex::new(Element::Asked));
        let shared = Arc::clone(&element);
        let reply = Reply::new(move |data| {
            string.took(data, end, len);
            let mut element = lock(&shared);
            if matches!(*element, Element::Left) {
                drop(element);
                return drive(string);
            }
            *element = Element::Answered(string);
        });
        device.access(access, reply);
        match std::mem::replace(&mut *lock(&element), Element::Left) {
            Element::Answered(back) => string = back,
            _ => return,
        }
    }
    (string.answer)(string.read);
}

impl ServeString {
    /// The device has answered the element that ends at `end`.
    fn took(&mut self, data: Option<Data>, end: usize, len: usize) {
        if self.write {
            return;
        }
        let data = data.unwrap_or(Data::all_ones(len));
        let bytes = data.bytes();
        self.read.extend_from_slice(&bytes[..bytes.len().min(len)]);
        self.read.resize(end, 0xff);
    }
}
