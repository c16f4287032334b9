//! Where a node listens.

use std::fmt;
use std::net::IpAddr;
use std::path::PathBuf;
use std::str::FromStr;

/// Most bytes of a Unix socket's path: what a socket address holds, less its final zero.
const UNIX_PATH_MAX: usize = 107;

/// Where a node listens: a Unix socket, or a TCP host and port.
#[derive(Clone, PartialEq, Eq, Hash, Debug)]
pub enum Address {
    /// The path of a Unix socket.
    Unix(PathBuf),
    /// A TCP port.
    Tcp {
        /// A name or an IP address; IPv6 without brackets.
        host: String,
        /// The port; 0 listens on one that is free.
        port: u16,
    },
}

/// A text that is no address.
#[derive(Clone, PartialEq, Eq, Debug, thiserror::Error)]
#[error("`{text}` is no address: {why}; write unix:/PATH, HOST:PORT or [IPV6]:PORT")]
pub struct AddressError {
    text: String,
    why: &'static str,
}

impl Address {
    /// Whether only processes of this machine can reach it: a Unix socket, a loopback IP address,
    /// or the name `localhost`. Other names could mean anything tomorrow.
    pub fn is_loopback(&self) -> bool {
        match self {
            Address::Unix(_) => true,
            Address::Tcp { host, .. } => {
                host.eq_ignore_ascii_case("localhost")
                    || host.parse().is_ok_and(|ip: IpAddr| ip.to_canonical().is_loopback())
            }
        }
    }
}

impl FromStr for Address {
    type Err = AddressError;

    fn from_str(text: &str) -> Result<Self, AddressError> {
        let error = |why| AddressError { text: text.to_owned(), why };
        if let Some(path) = text.strip_prefix("unix:") {
            return match path.len() {
                0 => Err(error("the path is missing")),
                1..=UNIX_PATH_MAX if !path.contains('\0') => Ok(Address::Unix(path.into())),
                1..=UNIX_PATH_MAX => Err(error("the path contains a zero byte")),
                _ => Err(error("the path of a Unix socket has at most 107 bytes")),
            };
        }
        let rest = text.strip_prefix("tcp:").unwrap_or(text);
        let (host, port) = rest.rsplit_once(':').ok_or_else(|| error("the port is missing"))?;
        let host = match host.strip_prefix('[') {
            Some(inner) => inner
                .strip_suffix(']')
                .filter(|ip| ip.parse::<std::net::Ipv6Addr>().is_ok())
                .ok_or_else(|| error("the brackets hold no IPv6 address"))?,
            None if host.contains(':') => return Err(error("an IPv6 address needs brackets")),
            None => host,
        };
        if host.is_empty() {
            return Err(error("the host is missing"));
        }
        if !host.bytes().all(|b| b.is_ascii_alphanumeric() || b"-._:".contains(&b)) {
            return Err(error("the host has characters that no host has"));
        }
        let digits = port.bytes().all(|b| b.is_ascii_digit());
        let port = port.parse().ok().filter(|_| digits);
        let port = port.ok_or_else(|| error("the port is no number from 0 to 65535"))?;
        Ok(Address::Tcp { host: host.to_owned(), port })
    }
}

impl fmt::Display for Address {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Address::Unix(path) => write!(f, "unix:{}", path.display()),
            Address::Tcp { host, port } if host.contains(':') => write!(f, "tcp:[{host}]:{port}"),
            Address::Tcp { host, port } => write!(f, "tcp:{host}:{port}"),
        }
    }
}
