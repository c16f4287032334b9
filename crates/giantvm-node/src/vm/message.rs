//! What the nodes of a virtual machine say to each other.
//!
//! A body is one byte for the kind, then the fields in the order in which they are declared here.
//! Everything that happens in the guest carries the generation: a number that rises with every
//! reset, so that what was on its way before means nothing after.

use kvm_vcpu::bus::Space;
use kvm_vcpu::time::Scaler;
use kvm_vcpu::vm::{GsiRoute, Interrupt, TscSetting, VcpuId};

use super::clock::{HostClock, ScalerParts};
use crate::control::codec::{DecodeError, Reader, Writer, clip};

/// Most bytes of one access: a page, the most that KVM hands over of a string.
pub(super) const ACCESS_BYTES_MAX: usize = 4096;
/// Most bytes of a node's CPUID: of [`kvm_vcpu::cpuid::Supported`].
const CPUID_BYTES_MAX: usize = 14 << 10;
/// Most bytes of a text.
const TEXT_MAX: usize = 4000;
/// Most routes of interrupts: pins of the IOAPIC, and some.
const ROUTES_MAX: usize = 256;

/// Largest tolerance of a host's counter that makes sense.
const TOLERANCE_PPM_MAX: u32 = 100_000;

/// How a virtual machine ended.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Outcome {
    /// The guest switched the machine off.
    PowerOff,
    /// The guest wrote a status to the debug-exit device: `value << 1 | 1`, as QEMU's
    /// isa-debug-exit has it.
    DebugExit {
        /// The status.
        status: u32,
    },
    /// The guest can't go on; the text has the reason and the registers.
    GuestFault {
        /// For people.
        reason: String,
    },
    /// A node can't go on.
    Failed {
        /// For people.
        reason: String,
    },
    /// A node was lost.
    Lost {
        /// For people: which one and why.
        reason: String,
    },
    /// Somebody stopped it.
    Stopped,
}

/// What a node tells all others first.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(super) struct Join {
    /// A digest of the description of the machine, the same on all nodes.
    pub(super) digest: u64,
    /// What the node's KVM supports, as [`kvm_vcpu::cpuid::Supported`] encodes it.
    pub(super) cpuid: Vec<u8>,
    /// Its host's time-stamp counter.
    pub(super) clock: HostClock,
    /// What it has to say on walk-shared pages.
    pub(super) walks: Walks,
}

/// What a node knows of the guest's page tables, for all to decide whether they are walk-shared.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub(super) struct Walks {
    /// Its host's processor, when it walks them, asks to write them.
    pub(super) write: bool,
    /// It starts the guest, and that is a Linux.
    pub(super) linux: bool,
    /// Its part of the memory has one worker, which can compare all pages at once.
    pub(super) one_worker: bool,
}

/// What node 0 tells all others to do.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(super) enum Order {
    Run,
    Pause,
    Reset,
    End(Outcome),
}

/// The body of one frame.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(super) enum VmMessage {
    /// To the node where a vCPU runs.
    Interrupt { generation: u32, vcpu: VcpuId, interrupt: Interrupt },
    /// To the home of the IOAPIC.
    EndOfInterrupt { generation: u32, vector: u8 },
    /// To the home of a device: elements of `size` bytes to be read (`len` in all) or written.
    Access {
        generation: u32,
        vcpu: VcpuId,
        /// Told apart from others of this vCPU; 0 if no answer is wanted.
        sequence: u32,
        space: Space,
        address: u64,
        size: u8,
        payload: Payload,
    },
    /// The answer: what was read, or nothing.
    Answer { vcpu: VcpuId, sequence: u32, data: Vec<u8> },
    /// To the home of the IOAPIC: the line of a device of the sender changed.
    Line { generation: u32, number: u64, gsi: u32, high: bool },
    /// The answer: in force.
    LineAck { number: u64 },
    /// From the home of the IOAPIC: all routes, in place of those before.
    Routes { generation: u32, number: u64, routes: Vec<GsiRoute> },
    /// The answer: in force.
    RoutesAck { number: u64 },
    /// What is your host's time-stamp counter? `sent` comes back.
    TimeAsk { sent: u64 },
    /// The answer.
    TimeTell { sent: u64, told: u64 },
    /// To the other nodes of this host: count the guest's time like this.
    TimeSet { setting: TscSetting, error_ns: u64 },
    /// To all, first.
    Join(Join),
    /// To node 0: the machine is made, or why not.
    Ready { generation: u32, failed: Option<String> },
    /// From node 0 to all.
    Order { generation: u32, order: Order },
    /// To node 0: the vCPUs of the sender have stopped.
    Paused { generation: u32 },
    /// To the node that loads the guest: of earlier generations, nothing of the sender touches the
    /// guest's memory any more.
    Cleared { generation: u32 },
    /// To node 0: asks it to give an order.
    Request { generation: u32, order: Order },
}

/// The data of an access.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(super) enum Payload {
    Read { len: u16 },
    Write(Vec<u8>),
}

mod kind {
    pub(super) const INTERRUPT: u8 = 1;
    pub(super) const END_OF_INTERRUPT: u8 = 2;
    pub(super) const ACCESS: u8 = 3;
    pub(super) const ANSWER: u8 = 4;
    pub(super) const LINE: u8 = 5;
    pub(super) const LINE_ACK: u8 = 6;
    pub(super) const ROUTES: u8 = 7;
    pub(super) const ROUTES_ACK: u8 = 8;
    pub(super) const TIME_ASK: u8 = 9;
    pub(super) const TIME_TELL: u8 = 10;
    pub(super) const JOIN: u8 = 11;
    pub(super) const READY: u8 = 12;
    pub(super) const ORDER: u8 = 13;
    pub(super) const PAUSED: u8 = 14;
    pub(super) const REQUEST: u8 = 15;
    pub(super) const TIME_SET: u8 = 16;
    pub(super) const CLEARED: u8 = 17;
}

impl VmMessage {
    /// Whether what the receiver does then may look at memory that the sender's guest has stored to.
    /// Not so for what only measures time, and is wrong if it waits.
    pub(super) fn waits_for_stores(&self) -> bool {
        !matches!(self, Self::TimeAsk { .. } | Self::TimeTell { .. })
    }

    /// Appends the message to `out`.
    pub(super) fn encode(&self) -> Vec<u8> {
        let mut w = Writer::default();
        match self {
            Self::Interrupt { generation, vcpu, interrupt } => {
                w.u8(kind::INTERRUPT);
                w.u32(*generation);
                w.u32(vcpu.0);
                let (mode, vector) = match *interrupt {
                    Interrupt::Fixed { vector, level } => (u8::from(level), vector),
                    Interrupt::Nmi => (2, 0),
                    Interrupt::Init => (3, 0),
                    Interrupt::Startup { vector } => (4, vector),
                };
                w.u8(mode);
                w.u8(vector);
            }
            Self::EndOfInterrupt { generation, vector } => {
                w.u8(kind::END_OF_INTERRUPT);
                w.u32(*generation);
                w.u8(*vector);
            }
            Self::Access { generation, vcpu, sequence, space, address, size, payload } => {
                w.u8(kind::ACCESS);
                w.u32(*generation);
                w.u32(vcpu.0);
                w.u32(*sequence);
                w.bool(*space == Space::Mmio);
                w.u64(*address);
                w.u8(*size);
                match payload {
                    Payload::Read { len } => {
                        w.bool(false);
                        w.u16(*len);
                    }
                    Payload::Write(data) => {
                        w.bool(true);
                        w.blob(data);
                    }
                }
            }
            Self::Answer { vcpu, sequence, data } => {
                w.u8(kind::ANSWER);
                w.u32(vcpu.0);
                w.u32(*sequence);
                w.blob(data);
            }
            Self::Line { generation, number, gsi, high } => {
                w.u8(kind::LINE);
                w.u32(*generation);
                w.u64(*number);
                w.u32(*gsi);
                w.bool(*high);
            }
            Self::LineAck { number } => {
                w.u8(kind::LINE_ACK);
                w.u64(*number);
            }
            Self::Routes { generation, number, routes } => {
                w.u8(kind::ROUTES);
                w.u32(*generation);
                w.u64(*number);
                w.u16(routes.len().min(ROUTES_MAX) as u16);
                for route in routes.iter().take(ROUTES_MAX) {
                    w.u32(route.gsi);
                    w.u64(route.address);
                    w.u32(route.data);
                }
            }
            Self::RoutesAck { number } => {
                w.u8(kind::ROUTES_ACK);
                w.u64(*number);
            }
            Self::TimeAsk { sent } => {
                w.u8(kind::TIME_ASK);
                w.u64(*sent);
            }
            Self::TimeTell { sent, told } => {
                w.u8(kind::TIME_TELL);
                w.u64(*sent);
                w.u64(*told);
            }
            Self::TimeSet { setting, error_ns } => {
                w.u8(kind::TIME_SET);
                w.u32(setting.khz.unwrap_or(0));
                w.u64(setting.offset);
                w.u64(*error_ns);
            }
            Self::Join(join) => {
                w.u8(kind::JOIN);
                w.u64(join.digest);
                encode_clock(&join.clock, &mut w);
                let Walks { write, linux, one_worker } = join.walks;
                [write, linux, one_worker].into_iter().for_each(|it| w.bool(it));
                w.blob(&join.cpuid);
            }
            Self::Ready { generation, failed } => {
                w.u8(kind::READY);
                w.u32(*generation);
                w.bool(failed.is_some());
                if let Some(reason) = failed {
                    w.text(clip(reason, TEXT_MAX));
                }
            }
            Self::Order { generation, order } => {
                w.u8(kind::ORDER);
                w.u32(*generation);
                order.encode(&mut w);
            }
            Self::Cleared { generation } => {
                w.u8(kind::CLEARED);
                w.u32(*generation);
            }
            Self::Paused { generation } => {
                w.u8(kind::PAUSED);
                w.u32(*generation);
            }
            Self::Request { generation, order } => {
                w.u8(kind::REQUEST);
                w.u32(*generation);
                order.encode(&mut w);
            }
        }
        w.into_bytes()
    }

    /// Reads a body.
    ///
    /// # Errors
    /// Everything that [`VmMessage::encode`] would not write.
    pub(super) fn decode(body: &[u8]) -> Result<Self, DecodeError> {
        let mut r = Reader::new(body);
        let message = match r.u8("kind")? {
            kind::INTERRUPT => Self::Interrupt {
                generation: r.u32("generation")?,
                vcpu: VcpuId(r.u32("vcpu")?),
                interrupt: interrupt(&mut r)?,
            },
            kind::END_OF_INTERRUPT => {
                Self::EndOfInterrupt { generation: r.u32("generation")?, vector: r.u8("vector")? }
            }
            kind::ACCESS => access(&mut r)?,
            kind::ANSWER => Self::Answer {
                vcpu: VcpuId(r.u32("vcpu")?),
                sequence: r.u32("sequence")?,
                data: r.blob(ACCESS_BYTES_MAX, "data")?.to_vec(),
            },
            kind::LINE => Self::Line {
                generation: r.u32("generation")?,
                number: r.u64("number")?,
                gsi: r.u32("gsi")?,
                high: r.bool("high")?,
            },
            kind::LINE_ACK => Self::LineAck { number: r.u64("number")? },
            kind::ROUTES => Self::Routes {
                generation: r.u32("generation")?,
                number: r.u64("number")?,
                routes: routes(&mut r)?,
            },
            kind::ROUTES_ACK => Self::RoutesAck { number: r.u64("number")? },
            kind::TIME_ASK => Self::TimeAsk { sent: r.u64("sent")? },
            kind::TIME_TELL => Self::TimeTell { sent: r.u64("sent")?, told: r.u64("told")? },
            kind::TIME_SET => Self::TimeSet {
                setting: TscSetting {
                    khz: Some(r.u32("khz")?).filter(|&khz| khz != 0),
                    offset: r.u64("offset")?,
                },
                error_ns: r.u64("error_ns")?,
            },
            kind::JOIN => Self::Join(Join {
                digest: r.u64("digest")?,
                clock: clock(&mut r)?,
                walks: Walks {
                    write: r.bool("write")?,
                    linux: r.bool("linux")?,
                    one_worker: r.bool("one_worker")?,
                },
                cpuid: r.blob(CPUID_BYTES_MAX, "cpuid")?.to_vec(),
            }),
            kind::READY => Self::Ready {
                generation: r.u32("generation")?,
                failed: match r.bool("failed")? {
                    true => Some(r.text(TEXT_MAX, "reason")?.to_owned()),
                    false => None,
                },
            },
            kind::ORDER => {
                Self::Order { generation: r.u32("generation")?, order: Order::decode(&mut r)? }
            }
            kind::CLEARED => Self::Cleared { generation: r.u32("generation")? },
            kind::PAUSED => Self::Paused { generation: r.u32("generation")? },
            kind::REQUEST => {
                Self::Request { generation: r.u32("generation")?, order: Order::decode(&mut r)? }
            }
            other => return Err(DecodeError::Invalid { field: "kind", value: other.into() }),
        };
        r.end()?;
        Ok(message)
    }
}

fn encode_clock(clock: &HostClock, w: &mut Writer) {
    w.u64(clock.host as u64);
    w.u64((clock.host >> 64) as u64);
    w.u32(clock.tsc_khz);
    w.bool(clock.scaler.is_some());
    if let Some(scaler) = clock.scaler {
        w.u8(scaler.fraction_bits);
        w.u32(scaler.tolerance_ppm);
    }
    w.u64(clock.begin);
}

fn clock(r: &mut Reader<'_>) -> Result<HostClock, DecodeError> {
    let (low, high) = (r.u64("host")?, r.u64("host")?);
    Ok(HostClock {
        host: u128::from(low) | u128::from(high) << 64,
        tsc_khz: r.u32("tsc_khz")?,
        scaler: if r.bool("scaler")? { Some(scaler(r)?) } else { None },
        begin: r.u64("begin")?,
    })
}

fn scaler(r: &mut Reader<'_>) -> Result<ScalerParts, DecodeError> {
    let fraction_bits = r.u8("fraction_bits")?;
    if u32::from(fraction_bits) > Scaler::INTEL_BITS {
        let value = fraction_bits.into();
        return Err(DecodeError::Invalid { field: "fraction_bits", value });
    }
    let tolerance_ppm = r.u32("tolerance_ppm")?;
    if tolerance_ppm > TOLERANCE_PPM_MAX {
        let value = tolerance_ppm.into();
        return Err(DecodeError::Invalid { field: "tolerance_ppm", value });
    }
    Ok(ScalerParts { fraction_bits, tolerance_ppm })
}

fn interrupt(r: &mut Reader<'_>) -> Result<Interrupt, DecodeError> {
    let (mode, vector) = (r.u8("mode")?, r.u8("vector")?);
    Ok(match mode {
        0 | 1 => Interrupt::Fixed { vector, level: mode == 1 },
        2 => Interrupt::Nmi,
        3 => Interrupt::Init,
        4 => Interrupt::Startup { vector },
        other => return Err(DecodeError::Invalid { field: "mode", value: other.into() }),
    })
}

fn access(r: &mut Reader<'_>) -> Result<VmMessage, DecodeError> {
    let (generation, vcpu) = (r.u32("generation")?, VcpuId(r.u32("vcpu")?));
    let sequence = r.u32("sequence")?;
    let space = if r.bool("space")? { Space::Mmio } else { Space::Pio };
    let (address, size) = (r.u64("address")?, r.u8("size")?);
    if !(1..=8).contains(&size) {
        return Err(DecodeError::Invalid { field: "size", value: size.into() });
    }
    let payload = if r.bool("write")? {
        Payload::Write(r.blob(ACCESS_BYTES_MAX, "data")?.to_vec())
    } else {
        let len = r.u16("len")?;
        if usize::from(len) > ACCESS_BYTES_MAX {
            return Err(DecodeError::Length { field: "len", len: len.into() });
        }
        Payload::Read { len }
    };
    Ok(VmMessage::Access { generation, vcpu, sequence, space, address, size, payload })
}

fn routes(r: &mut Reader<'_>) -> Result<Vec<GsiRoute>, DecodeError> {
    let count = usize::from(r.u16("count")?);
    if count > ROUTES_MAX {
        return Err(DecodeError::Length { field: "routes", len: count });
    }
    let mut routes = Vec::with_capacity(count);
    for _ in 0..count {
        let (gsi, address, data) = (r.u32("gsi")?, r.u64("address")?, r.u32("data")?);
        routes.push(GsiRoute { gsi, address, data });
    }
    Ok(routes)
}

impl Order {
    fn encode(&self, w: &mut Writer) {
        match self {
            Self::Run => w.u8(0),
            Self::Pause => w.u8(1),
            Self::Reset => w.u8(2),
            Self::End(Outcome::PowerOff) => w.u8(3),
            Self::End(Outcome::DebugExit { status }) => {
                w.u8(4);
                w.u32(*status);
            }
            Self::End(Outcome::GuestFault { reason }) => {
                w.u8(5);
                w.text(clip(reason, TEXT_MAX));
            }
            Self::End(Outcome::Failed { reason }) => {
                w.u8(6);
                w.text(clip(reason, TEXT_MAX));
            }
            Self::End(Outcome::Lost { reason }) => {
                w.u8(7);
                w.text(clip(reason, TEXT_MAX));
            }
            Self::End(Outcome::Stopped) => w.u8(8),
        }
    }

    fn decode(r: &mut Reader<'_>) -> Result<Self, DecodeError> {
        let text = |r: &mut Reader<'_>| Ok(r.text(TEXT_MAX, "reason")?.to_owned());
        Ok(match r.u8("order")? {
            0 => Self::Run,
            1 => Self::Pause,
            2 => Self::Reset,
            3 => Self::End(Outcome::PowerOff),
            4 => Self::End(Outcome::DebugExit { status: r.u32("status")? }),
            5 => Self::End(Outcome::GuestFault { reason: text(r)? }),
            6 => Self::End(Outcome::Failed { reason: text(r)? }),
            7 => Self::End(Outcome::Lost { reason: text(r)? }),
            8 => Self::End(Outcome::Stopped),
            other => return Err(DecodeError::Invalid { field: "order", value: other.into() }),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn examples() -> Vec<VmMessage> {
        let generation = 7;
        let vcpu = VcpuId(3);
        let clock = HostClock {
            host: u128::MAX - 5,
            tsc_khz: 2_000_000,
            scaler: Some(ScalerParts { fraction_bits: 48, tolerance_ppm: 250 }),
            begin: 1 << 60,
        };
        let interrupts = [
            Interrupt::Fixed { vector: 0x31, level: true },
            Interrupt::Nmi,
            Interrupt::Init,
            Interrupt::Startup { vector: 0x9e },
        ];
        let text = || "why".to_string();
        let orders = [
            Order::Run,
            Order::Pause,
            Order::Reset,
            Order::End(Outcome::PowerOff),
            Order::End(Outcome::DebugExit { status: 3 }),
            Order::End(Outcome::GuestFault { reason: text() }),
            Order::End(Outcome::Failed { reason: text() }),
            Order::End(Outcome::Lost { reason: text() }),
            Order::End(Outcome::Stopped),
        ];
        let access = |payload| VmMessage::Access {
            generation,
            vcpu,
            sequence: 9,
            space: Space::Mmio,
            address: 0xd000_0000,
            size: 4,
            payload,
        };
        let mut all = vec![
            VmMessage::EndOfInterrupt { generation, vector: 0x31 },
            access(Payload::Read { len: 16 }),
            access(Payload::Write(vec![1, 2, 3, 4])),
            VmMessage::Answer { vcpu, sequence: 9, data: vec![5; 100] },
            VmMessage::Line { generation, number: 1 << 40, gsi: 20, high: true },
            VmMessage::LineAck { number: 1 << 40 },
            VmMessage::Routes {
                generation,
                number: 2,
                routes: vec![GsiRoute { gsi: 4, address: 0xfee0_1000, data: 0x8031 }],
            },
            VmMessage::RoutesAck { number: 2 },
            VmMessage::TimeAsk { sent: u64::MAX },
            VmMessage::TimeTell { sent: 1, told: 2 },
            VmMessage::TimeSet {
                setting: TscSetting { khz: Some(1_999_000), offset: 5 },
                error_ns: 77,
            },
            VmMessage::TimeSet { setting: TscSetting { khz: None, offset: 5 }, error_ns: 0 },
            VmMessage::Join(Join {
                digest: 3,
                cpuid: vec![1; 50],
                clock: clock.clone(),
                walks: Walks::default(),
            }),
            VmMessage::Join(Join {
                digest: 3,
                cpuid: Vec::new(),
                clock: HostClock { scaler: None, ..clock },
                walks: Walks { write: true, linux: false, one_worker: true },
            }),
            VmMessage::Ready { generation, failed: None },
            VmMessage::Ready { generation, failed: Some(text()) },
            VmMessage::Paused { generation },
            VmMessage::Cleared { generation },
        ];
        all.extend(interrupts.map(|interrupt| VmMessage::Interrupt {
            generation,
            vcpu,
            interrupt,
        }));
        all.extend(orders.clone().map(|order| VmMessage::Order { generation, order }));
        all.extend(orders.map(|order| VmMessage::Request { generation, order }));
        all
    }

    #[test]
    fn every_message_is_read_as_it_was_written() {
        for message in examples() {
            assert_eq!(VmMessage::decode(&message.encode()), Ok(message));
        }
    }

    #[test]
    fn a_cut_or_longer_message_is_refused() {
        for message in examples() {
            let mut bytes = message.encode();
            for len in 0..bytes.len() {
                assert!(VmMessage::decode(&bytes[..len]).is_err(), "{message:?} cut to {len}");
            }
            bytes.push(0);
            assert!(VmMessage::decode(&bytes).is_err(), "{message:?} and a byte");
        }
    }

    proptest! {
        /// Whatever a peer sends is a message that would be sent, or is refused.
        #[test]
        fn any_bytes_are_a_message_or_an_error(
            kind in 0u8..20, mut bytes in prop::collection::vec(any::<u8>(), 0..80),
        ) {
            if let Some(first) = bytes.first_mut() {
                *first = kind;
            }
            if let Ok(message) = VmMessage::decode(&bytes) {
                prop_assert_eq!(VmMessage::decode(&message.encode()), Ok(message));
            }
        }
    }
}
