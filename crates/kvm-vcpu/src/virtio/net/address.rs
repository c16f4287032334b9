//! Addresses of network interfaces.

use std::fmt;
use std::str::FromStr;

/// An Ethernet address.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub struct MacAddress(
    /// Its bytes, as they are sent.
    pub [u8; 6],
);

/// A text that is no address of one interface.
#[derive(Clone, PartialEq, Eq, Debug, thiserror::Error)]
#[error(
    "{0:?} is no address of a network interface; one looks like 52:54:00:12:34:56, its first byte even"
)]
pub struct MacError(
    /// The text.
    pub String,
);

impl MacAddress {
    /// A locally administered address made of a number; two that differ in their low 40 bits differ.
    pub fn local(number: u64) -> Self {
        let [a, b, c, d, e, ..] = number.to_le_bytes();
        Self([0x52, e, d, c, b, a])
    }
}

impl FromStr for MacAddress {
    type Err = MacError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let failed = || MacError(text.to_owned());
        let byte = |part: &str| match part.len() {
            2 if part.bytes().all(|c| c.is_ascii_hexdigit()) => u8::from_str_radix(part, 16).ok(),
            _ => None,
        };
        let bytes: Option<Vec<u8>> = text.split(':').map(byte).collect();
        let bytes: [u8; 6] = bytes.and_then(|bytes| bytes.try_into().ok()).ok_or_else(failed)?;
        // Addresses of groups, and the one that stands for none.
        if bytes[0] & 1 != 0 || bytes == [0; 6] {
            return Err(failed());
        }
        Ok(Self(bytes))
    }
}

impl fmt::Display for MacAddress {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let [first, rest @ ..] = self.0;
        write!(f, "{first:02x}")?;
        rest.iter().try_for_each(|byte| write!(f, ":{byte:02x}"))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn texts_and_addresses_convert() {
        let address: MacAddress = "52:54:00:ab:CD:ef".parse().unwrap();
        assert_eq!(address.to_string(), "52:54:00:ab:cd:ef");
        for text in
            ["", "52:54:00:ab:cd", "52:54:00:ab:cd:ef:00", "53:54:00:ab:cd:ef", "1:2:3:4:5:6"]
        {
            let error = text.parse::<MacAddress>().unwrap_err();
            assert!(error.to_string().contains("looks like 52:54:00"), "{error}");
        }
        assert!("00:00:00:00:00:00".parse::<MacAddress>().is_err());
        assert!("+2:54:00:ab:cd:ef".parse::<MacAddress>().is_err());
        assert_eq!(MacAddress::local(0x12_3456_789a).to_string(), "52:12:34:56:78:9a");
    }
}
