//! Taps: network interfaces of the host whose other end is this process.
//!
//! A packet goes with a header of virtio's (section 5.1.6), so that checksums and segmentation are
//! left to whoever has to do them, if anyone.

#![allow(unsafe_code, reason = "the kernel's interface to taps is ioctl")]

use std::ffi::CString;
use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::sync::Mutex;

use rustix::fs::{Mode, OFlags};
use virtio_bindings::bindings::virtio_net::{
    VIRTIO_NET_F_GUEST_CSUM, VIRTIO_NET_F_GUEST_TSO4, VIRTIO_NET_F_GUEST_TSO6,
};

use crate::devices::lock;

/// Bytes of the header before each packet.
pub(super) const HEADER_BYTES: usize = 12;
/// The longest packet: 64 KiB of IP, an Ethernet header, and virtio's.
pub(super) const PACKET_BYTES_MAX: usize = HEADER_BYTES + 65550;

/// Most pairs of queues: each has a thread.
const QUEUES_MAX: u16 = 64;

const DEVICE: &str = "/dev/net/tun";
const IFF_TAP: libc::c_short = 0x0002;
const IFF_MULTI_QUEUE: libc::c_short = 0x0100;
const IFF_ATTACH_QUEUE: libc::c_short = 0x0200;
const IFF_DETACH_QUEUE: libc::c_short = 0x0400;
const IFF_NO_PI: libc::c_short = 0x1000;
const IFF_VNET_HDR: libc::c_short = 0x4000;
const TUN_F_CSUM: libc::c_uint = 0x01;
const TUN_F_TSO4: libc::c_uint = 0x02;
const TUN_F_TSO6: libc::c_uint = 0x04;
const TUNSETIFF: libc::c_ulong = 0x4004_54ca;
const TUNSETOFFLOAD: libc::c_ulong = 0x4004_54d0;
const TUNSETVNETHDRSZ: libc::c_ulong = 0x4004_54d8;
const TUNSETQUEUE: libc::c_ulong = 0x4004_54d9;

/// Why a tap can't be used.
#[derive(Debug, thiserror::Error)]
pub enum TapError {
    /// No interface can have that name.
    #[error("{name:?} is no name of a network interface: 1 to 15 characters, without / and spaces")]
    Name {
        /// The name.
        name: String,
    },
    /// More than any, or none.
    #[error("{queues} pairs of queues; a network interface has 1 to {QUEUES_MAX}")]
    Queues {
        /// How many were asked for.
        queues: u16,
    },
    /// There is none.
    #[error(
        "there is no tap {name}; make it with: ip tuntap add dev {name} mode tap multi_queue && \
         ip link set {name} up"
    )]
    Missing {
        /// Its name.
        name: String,
    },
    /// An interface, but no tap.
    #[error(
        "{name} is a network interface, but no tap; name one made with: ip tuntap add mode tap"
    )]
    NotTap {
        /// Its name.
        name: String,
    },
    /// It has one queue.
    #[error(
        "tap {name} has one queue, and {queues} are wanted; make it anew with: ip tuntap add dev \
         {name} mode tap multi_queue"
    )]
    OneQueue {
        /// Its name.
        name: String,
        /// How many were asked for.
        queues: u16,
    },
    /// The host can't.
    #[error("{DEVICE} can't be opened; load the kernel's module with: modprobe tun")]
    Device {
        /// What the kernel said.
        #[source]
        source: io::Error,
    },
    /// Not for this user.
    #[error(
        "this user may not use tap {name}; run as root, or make the tap with: ip tuntap add dev \
         {name} mode tap multi_queue user USER"
    )]
    Denied {
        /// Its name.
        name: String,
    },
    /// Someone else has it.
    #[error("tap {name} is in use; end the program that uses it, or name another tap")]
    InUse {
        /// Its name.
        name: String,
    },
    /// Something else.
    #[error("tap {name}: {call} failed")]
    Call {
        /// Its name.
        name: String,
        /// What was tried.
        call: &'static str,
        /// What the kernel said.
        #[source]
        source: io::Error,
    },
}

/// A tap, with one descriptor for each queue.
#[derive(Debug)]
pub struct Tap {
    name: String,
    queues: Vec<OwnedFd>,
    /// How many of them get packets.
    used: Mutex<u16>,
}

impl Tap {
    /// Opens an existing tap with so many queues.
    ///
    /// # Errors
    /// [`TapError`].
    pub fn open(name: &str, queues: u16) -> Result<Self, TapError> {
        let name = name.to_owned();
        let odd = |c: char| c == '/' || c.is_whitespace() || c.is_control();
        if name.is_empty() || name.len() >= libc::IFNAMSIZ || name.contains(odd) {
            return Err(TapError::Name { name });
        }
        if !(1..=QUEUES_MAX).contains(&queues) {
            return Err(TapError::Queues { queues });
        }
        if !exists(&name)? {
            return Err(TapError::Missing { name });
        }
        // The kernel would let a second program in, for a part of the packets.
        if has_carrier(&name) {
            return Err(TapError::InUse { name });
        }
        let (first, flags) = open_first(&name)?;
        if queues > 1 && flags & IFF_MULTI_QUEUE == 0 {
            return Err(TapError::OneQueue { name, queues });
        }
        let mut queues_open = vec![first];
        for _ in 1..queues {
            queues_open.push(open_queue(&name, flags).map_err(|error| error.into_tap(&name))?);
        }
        Ok(Self { name, queues: queues_open, used: Mutex::new(queues) })
    }

    /// Number of queues.
    pub(super) fn queues(&self) -> u16 {
        self.queues.len() as u16
    }

    /// The descriptor of a queue, for who waits for packets.
    pub(super) fn queue(&self, index: u16) -> Option<BorrowedFd<'_>> {
        self.queues.get(usize::from(index)).map(AsFd::as_fd)
    }

    /// The next packet with its header, or 0 if there is none.
    pub(super) fn receive(&self, index: u16, packet: &mut [u8]) -> usize {
        let Some(queue) = self.queue(index) else { return 0 };
        loop {
            match rustix::io::read(queue, &mut *packet) {
                Err(rustix::io::Errno::INTR) => {}
                Ok(len) if len >= HEADER_BYTES => return len,
                // Nothing there, or the interface is down.
                _ => return 0,
            }
        }
    }

    /// Sends a packet with its header. One that the host does not take is lost, as on a wire.
    pub(super) fn send(&self, index: u16, packet: &[u8]) {
        let Some(queue) = self.queue(index) else { return };
        while rustix::io::write(queue, packet) == Err(rustix::io::Errno::INTR) {}
    }

    /// What a driver that agreed on these features expects; the first queue alone gets packets.
    pub(super) fn prepare(&self, features: u64) {
        let has = |feature: u32| features & 1 << feature != 0;
        let mut offload = 0;
        for (feature, flag) in [
            (VIRTIO_NET_F_GUEST_CSUM, TUN_F_CSUM),
            (VIRTIO_NET_F_GUEST_TSO4, TUN_F_TSO4),
            (VIRTIO_NET_F_GUEST_TSO6, TUN_F_TSO6),
        ] {
            // Segmentation needs checksums.
            if has(feature) && has(VIRTIO_NET_F_GUEST_CSUM) {
                offload |= flag;
            }
        }
        let set = self.queues.first().map(|queue| {
            // SAFETY: the descriptor is open, and this request takes a number, not a pointer.
            call(unsafe { libc::ioctl(queue.as_raw_fd(), TUNSETOFFLOAD, offload) })
        });
        if let Some(Err(error)) = set {
            log::warn!("tap {}: TUNSETOFFLOAD failed: {error}", self.name);
        }
        if let Err(error) = self.use_queues(1) {
            log::warn!("tap {}: TUNSETQUEUE failed: {error}", self.name);
        }
    }

    /// Has the first `count` queues get packets.
    pub(super) fn use_queues(&self, count: u16) -> io::Result<()> {
        if !(1..=self.queues()).contains(&count) {
            return Err(io::Error::from_raw_os_error(libc::EINVAL));
        }
        let mut used = lock(&self.used);
        while *used != count {
            let attach = *used < count;
            let index = if attach { *used } else { *used - 1 };
            let mut request = request(&self.name);
            request.ifr_ifru.ifru_flags = if attach { IFF_ATTACH_QUEUE } else { IFF_DETACH_QUEUE };
            let Some(queue) = self.queue(index) else { break };
            // SAFETY: the descriptor is open, and `request` outlives the call.
            call(unsafe { libc::ioctl(queue.as_raw_fd(), TUNSETQUEUE, &raw const request) })?;
            *used = if attach { *used + 1 } else { *used - 1 };
        }
        Ok(())
    }
}

/// Whether there is an interface of that name.
fn exists(name: &str) -> Result<bool, TapError> {
    let c_name = CString::new(name).map_err(|_| TapError::Name { name: name.to_owned() })?;
    // SAFETY: the name ends with a zero and outlives the call.
    Ok(unsafe { libc::if_nametoindex(c_name.as_ptr()) } != 0)
}

/// Whether an interface is up and has a carrier, which a tap has while a program uses it.
fn has_carrier(name: &str) -> bool {
    #[repr(C)]
    struct EthtoolValue {
        command: u32,
        data: u32,
    }
    const ETHTOOL_GLINK: u32 = 0x0a;
    let Ok(socket) = std::net::UdpSocket::bind("0.0.0.0:0") else { return false };
    let mut value = EthtoolValue { command: ETHTOOL_GLINK, data: 0 };
    let mut request = request(name);
    request.ifr_ifru.ifru_data = (&raw mut value).cast();
    // SAFETY: the descriptor is open; `request` and the value that it points to outlive the call, which
    // fills that in.
    let asked = unsafe { libc::ioctl(socket.as_raw_fd(), libc::SIOCETHTOOL, &raw mut request) };
    asked == 0 && value.data != 0
}

/// Opens the first queue, and finds out how the tap was made: with several queues or one.
fn open_first(name: &str) -> Result<(OwnedFd, libc::c_short), TapError> {
    let one = IFF_TAP | IFF_NO_PI | IFF_VNET_HDR;
    let many = one | IFF_MULTI_QUEUE;
    for flags in [many, one] {
        match open_queue(name, flags) {
            Ok(queue) => return Ok((queue, flags)),
            // Made in another way, or no tap.
            Err(QueueError::Attach(error)) if error.raw_os_error() == Some(libc::EINVAL) => {}
            Err(error) => return Err(error.into_tap(name)),
        }
    }
    Err(TapError::NotTap { name: name.to_owned() })
}

fn request(name: &str) -> libc::ifreq {
    // SAFETY: all zeros is a value of this type.
    let mut request: libc::ifreq = unsafe { std::mem::zeroed() };
    for (to, from) in request.ifr_name.iter_mut().zip(name.bytes()) {
        *to = from as libc::c_char;
    }
    request
}

/// Why a queue can't be opened.
enum QueueError {
    Device(io::Error),
    Attach(io::Error),
    Header(io::Error),
}

impl QueueError {
    fn into_tap(self, name: &str) -> TapError {
        let name = name.to_owned();
        match self {
            Self::Device(source) => TapError::Device { source },
            Self::Attach(source) => match source.raw_os_error() {
                Some(libc::EPERM | libc::EACCES) => TapError::Denied { name },
                Some(libc::EBUSY | libc::E2BIG) => TapError::InUse { name },
                _ => TapError::Call { name, call: "TUNSETIFF", source },
            },
            Self::Header(source) => TapError::Call { name, call: "TUNSETVNETHDRSZ", source },
        }
    }
}

fn open_queue(name: &str, flags: libc::c_short) -> Result<OwnedFd, QueueError> {
    let how = OFlags::RDWR | OFlags::NONBLOCK | OFlags::CLOEXEC;
    let opened = rustix::fs::open(DEVICE, how, Mode::empty());
    let queue = opened.map_err(|error| QueueError::Device(error.into()))?;
    let mut request = request(name);
    request.ifr_ifru.ifru_flags = flags;
    // SAFETY: the descriptor is open, and `request` outlives the call.
    call(unsafe { libc::ioctl(queue.as_raw_fd(), TUNSETIFF, &raw mut request) })
        .map_err(QueueError::Attach)?;
    let header = HEADER_BYTES as libc::c_int;
    // SAFETY: the descriptor is open, and `header` outlives the call, which reads it.
    call(unsafe { libc::ioctl(queue.as_raw_fd(), TUNSETVNETHDRSZ, &raw const header) })
        .map_err(QueueError::Header)?;
    Ok(queue)
}

fn call(result: libc::c_int) -> io::Result<()> {
    if result < 0 { Err(io::Error::last_os_error()) } else { Ok(()) }
}

#[cfg(test)]
pub(super) mod tests {
    use super::*;

    /// Gives the thread of a test a network of its own, with what `ip` makes there.
    pub(in crate::virtio) fn own_network(commands: &[&str]) -> bool {
        // SAFETY: takes no pointers, and only this thread's network changes.
        if unsafe { libc::unshare(libc::CLONE_NEWNET) } != 0 {
            println!("SKIPPED: this user can't make a network of its own (CAP_SYS_ADMIN)");
            return false;
        }
        for command in commands {
            let output = std::process::Command::new("ip").args(command.split(' ')).output();
            match output {
                Ok(output) => assert!(output.status.success(), "ip {command}: {output:?}"),
                Err(error) => {
                    println!("SKIPPED: no ip (Debian package iproute2): {error}");
                    return false;
                }
            }
        }
        true
    }

    #[test]
    fn a_name_or_number_that_can_not_be_is_refused() {
        for name in ["", "a/b", "a b", "sixteen-letters-"] {
            assert!(matches!(Tap::open(name, 1), Err(TapError::Name { .. })), "{name}");
        }
        for queues in [0, 65] {
            assert!(matches!(Tap::open("tap", queues), Err(TapError::Queues { .. })));
        }
    }

    #[test]
    fn a_missing_tap_says_how_to_make_one() {
        let error = Tap::open("gvm-missing", 1).unwrap_err();
        assert!(matches!(error, TapError::Missing { .. }));
        assert!(error.to_string().contains("ip tuntap add dev gvm-missing mode tap"), "{error}");
    }

    #[test]
    fn refusals_say_what_to_do() {
        let why = |code| {
            let error = QueueError::Attach(io::Error::from_raw_os_error(code));
            error.into_tap("tap7").to_string()
        };
        assert!(
            why(libc::EPERM).contains("mode tap multi_queue user USER"),
            "{}",
            why(libc::EPERM)
        );
        assert!(why(libc::EBUSY).contains("is in use"), "{}", why(libc::EBUSY));
        assert!(why(libc::EINVAL).contains("TUNSETIFF failed"), "{}", why(libc::EINVAL));
        let error = QueueError::Device(io::Error::from_raw_os_error(libc::ENOENT));
        assert!(error.into_tap("tap7").to_string().contains("modprobe tun"));
    }

    #[test]
    fn a_tap_in_use_or_with_one_queue_is_refused() {
        if !own_network(&["tuntap add dev one mode tap", "link set one up"]) {
            return;
        }
        let error = Tap::open("one", 2).unwrap_err();
        assert!(matches!(error, TapError::OneQueue { queues: 2, .. }), "{error}");
        let first = Tap::open("one", 1).unwrap();
        let error = Tap::open("one", 1).unwrap_err();
        assert!(matches!(error, TapError::InUse { .. }), "{error}");
        drop(first);
        assert!(Tap::open("one", 1).is_ok());
        let error = Tap::open("lo", 1).unwrap_err();
        assert!(matches!(error, TapError::NotTap { .. }), "{error}");
    }

    #[test]
    fn queues_are_attached_and_detached() {
        if !own_network(&["tuntap add dev many mode tap multi_queue", "link set many up"]) {
            return;
        }
        let tap = Tap::open("many", 3).unwrap();
        assert!(
            matches!(Tap::open("many", 1), Err(TapError::InUse { .. })),
            "one program at a time"
        );
        tap.prepare(0);
        assert_eq!(*lock(&tap.used), 1);
        tap.use_queues(3).unwrap();
        tap.use_queues(3).unwrap();
        tap.use_queues(2).unwrap();
        assert_eq!(*lock(&tap.used), 2);
        assert!(tap.use_queues(0).is_err() && tap.use_queues(4).is_err());
    }
}
