//! The device between a driver and the network of the test's own host.

use std::net::UdpSocket;
use std::process::Command;
use std::time::Duration;

use super::tap::tests::own_network;
use super::{MacAddress, Tap, net};
use crate::virtio::driver::{Buffer, Driver, EVENT_IDX, PATIENCE, Request, VERSION_1};

const MAC: MacAddress = MacAddress([0x52, 0x54, 0, 0, 0, 2]);
const HERE: &str = "198.18.0.1:4000";
const GUEST: &str = "198.18.0.2:5000";
/// Header of virtio, Ethernet, IPv4 and UDP.
const HEADERS: usize = 12 + 14 + 20 + 8;
const MERGES: u64 = 1 << 15;
const CONTROL: u64 = 1 << 17;
const MANY: u64 = 1 << 22;

/// A driver whose device has a tap, and a socket of the host behind that.
fn network(queues: u16) -> Option<(Driver, UdpSocket)> {
    let made = own_network(&[
        "tuntap add dev tap0 mode tap multi_queue",
        "link set tap0 up",
        "address add 198.18.0.1/24 dev tap0",
        "neighbour add 198.18.0.2 lladdr 52:54:00:00:00:02 dev tap0",
    ]);
    if !made {
        return None;
    }
    let tap = Tap::open("tap0", queues).unwrap();
    // Until the host has noticed that the tap has a carrier, it drops what is sent there.
    let is_up = || {
        let shown = Command::new("ip").args(["link", "show", "tap0"]).output().unwrap();
        String::from_utf8_lossy(&shown.stdout).contains("state UP")
    };
    while !is_up() {
        std::thread::sleep(Duration::from_millis(10));
    }
    let socket = UdpSocket::bind(HERE).unwrap();
    socket.set_read_timeout(Some(PATIENCE)).unwrap();
    Some((Driver::new(net("net0", tap, MAC)), socket))
}

/// Whether a packet, virtio's header first, is the test's: the host sends others as well.
fn is_udp(packet: &[u8]) -> bool {
    packet.len() >= HEADERS && packet[24..26] == [8, 0] && packet[35] == 17
}

/// The next UDP packet in buffers of so many bytes, as many as are given.
fn receive(driver: &mut Driver, waiting: &mut Vec<Request>) -> Vec<u8> {
    loop {
        let mut packet = Vec::new();
        let mut left = 1;
        while left > 0 {
            let (head, len) = driver.wait(0);
            let request = waiting.remove(0);
            assert_eq!(request.head, head);
            let bytes = driver.written(&request, len);
            if packet.is_empty() {
                left = u16::from_le_bytes([bytes[10], bytes[11]]);
            }
            packet.extend(&bytes[..len as usize]);
            left -= 1;
        }
        if is_udp(&packet) {
            return packet;
        }
    }
}

/// The answer of whom a packet is for.
fn answer(packet: &[u8]) -> Vec<u8> {
    let mut answer = vec![0; 12];
    let frame = &packet[12..];
    for range in [6..12, 0..6, 12..26, 30..34, 26..30, 36..38, 34..36, 38..40] {
        answer.extend(&frame[range]);
    }
    // No checksum.
    answer.extend([0, 0]);
    answer.extend(frame[42..].iter().map(|byte| byte ^ 0x20));
    answer
}

fn exchange(driver: &mut Driver, socket: &UdpSocket, waiting: &mut Vec<Request>, message: &[u8]) {
    socket.send_to(message, GUEST).unwrap();
    let packet = receive(driver, waiting);
    assert_eq!(&packet[HEADERS..], message);
    assert_eq!(packet[12..18], MAC.0);
    driver.ask(1, &[Buffer::Read(&answer(&packet))]);
    let mut back = [0; 4096];
    let (len, from) = socket.recv_from(&mut back).unwrap();
    assert_eq!(from.to_string(), GUEST);
    let expected: Vec<u8> = message.iter().map(|byte| byte ^ 0x20).collect();
    assert_eq!(&back[..len], expected);
}

#[test]
fn packets_go_both_ways() {
    let Some((mut driver, socket)) = network(1) else { return };
    assert_eq!((driver.device_config(0, 6).to_le_bytes()[..6]), MAC.0);
    assert_eq!((driver.device_config(6, 2), driver.device_config(8, 2)), (1, 1), "up, one pair");
    assert_eq!(driver.features() & (MANY | CONTROL | MERGES), CONTROL | MERGES);
    for features in [VERSION_1, VERSION_1 | EVENT_IDX | MERGES] {
        driver.start(features);
        let mut waiting: Vec<Request> =
            (0..100).map(|_| driver.send(0, &[Buffer::Write(1526)])).collect();
        for message in ["one", "two", "three"] {
            exchange(&mut driver, &socket, &mut waiting, message.as_bytes());
        }
    }
}

#[test]
fn a_packet_waits_for_buffers_and_is_spread_over_them() {
    let Some((mut driver, socket)) = network(1) else { return };
    driver.start(VERSION_1 | EVENT_IDX | MERGES);
    // A few buffers, too few for the packet.
    let mut waiting: Vec<Request> = (0..3).map(|_| driver.send(0, &[Buffer::Write(128)])).collect();
    let message: Vec<u8> = (0..1400).map(|at: u32| (at % 249) as u8).collect();
    socket.send_to(&message, GUEST).unwrap();
    for _ in 0..50 {
        waiting.push(driver.send(0, &[Buffer::Write(100), Buffer::Write(28)]));
    }
    let packet = receive(&mut driver, &mut waiting);
    assert_eq!(&packet[HEADERS..], message);
    assert_eq!(driver.status(), 15);
}

#[test]
fn a_driver_chooses_how_many_pairs_of_queues_it_uses() {
    let Some((mut driver, socket)) = network(3) else { return };
    assert_eq!((driver.device_config(8, 2), driver.common(0x12, 2)), (3, 7));
    driver.start(VERSION_1 | EVENT_IDX | MERGES | CONTROL | MANY);
    let control = 6;
    assert!(driver.command(control, &[4, 0, 3, 0]));
    assert!(!driver.command(control, &[4, 0, 4, 0]), "more than there are");
    assert!(!driver.command(control, &[4, 0, 0, 0]), "none");
    assert!(!driver.command(control, &[4, 0, 1]), "half a number");
    assert!(!driver.command(control, &[0, 0, 1, 0]), "another command");
    assert!(driver.command(control, &[4, 0, 1, 0]));
    // One pair again: all packets come there.
    let mut waiting: Vec<Request> =
        (0..100).map(|_| driver.send(0, &[Buffer::Write(1526)])).collect();
    for message in ["four", "five"] {
        exchange(&mut driver, &socket, &mut waiting, message.as_bytes());
    }
}

#[test]
fn packets_without_headers_break_the_device() {
    let Some((mut driver, socket)) = network(1) else { return };
    driver.start(VERSION_1);
    driver.send(1, &[Buffer::Read(&[0; 11])]);
    driver.wait_broken();
    driver.start(VERSION_1);
    driver.send(0, &[Buffer::Write(11)]);
    socket.send_to(b"any", GUEST).unwrap();
    driver.wait_broken();
    driver.start(VERSION_1);
    // Longer than any packet: it is lost, and no more.
    let long = vec![0; 70_000];
    driver.ask(1, &[Buffer::Read(&long)]);
    assert_eq!(driver.status(), 15);
}
