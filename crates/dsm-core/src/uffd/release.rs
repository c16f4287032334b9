//! Which kernel is running.

use std::ffi::CStr;
use std::io;

/// The oldest Linux with `UFFDIO_CONTINUE_MODE_WP` and `UFFDIO_POISON`.
pub(super) const RELEASE_MIN: (u32, u32) = (6, 6);

/// The release of the running kernel, such as `6.12.3-amd64`.
pub(super) fn release() -> io::Result<String> {
    // SAFETY: `utsname` is plain arrays of bytes, for which all zeros is a value.
    let mut names: libc::utsname = unsafe { std::mem::zeroed() };
    // SAFETY: `names` is a `utsname` that this function owns.
    if unsafe { libc::uname(&mut names) } != 0 {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: the kernel ended the string inside the array.
    let release = unsafe { CStr::from_ptr(names.release.as_ptr()) };
    Ok(release.to_string_lossy().into_owned())
}

/// Major and minor version of a release. `None` if it doesn't begin with two numbers; then only
/// the features that the kernel grants can tell whether it will do.
pub(super) fn version(release: &str) -> Option<(u32, u32)> {
    let (major, rest) = release.trim_start().split_once('.')?;
    let digits = rest.find(|c: char| !c.is_ascii_digit()).unwrap_or(rest.len());
    Some((number(major)?, number(rest.get(..digits)?)?))
}

/// A number of digits only: `str::parse` alone would take a sign as well.
fn number(text: &str) -> Option<u32> {
    text.bytes().all(|b| b.is_ascii_digit()).then(|| text.parse().ok())?
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reads_releases_of_all_shapes() {
        let cases = [
            ("6.18.44-fc-v769", Some((6, 18))),
            ("6.6", Some((6, 6))),
            ("6.6.0", Some((6, 6))),
            ("6.12.63+deb13-amd64", Some((6, 12))),
            ("6.7-rc1", Some((6, 7))),
            ("7.0+", Some((7, 0))),
            ("5.15.167.4-microsoft-standard-WSL2", Some((5, 15))),
            (" 6.10.1\n", Some((6, 10))),
            ("10.100", Some((10, 100))),
            ("", None),
            ("6", None),
            ("6.", None),
            (".6", None),
            ("6.x", None),
            ("+6.6", None),
            ("6.-6", None),
            ("v6.6", None),
            ("linux", None),
            ("99999999999.1", None),
            ("6.99999999999", None),
        ];
        for (text, expected) in cases {
            assert_eq!(version(text), expected, "{text:?}");
        }
    }

    #[test]
    fn orders_minor_versions_as_numbers() {
        assert!(version("6.10.0").unwrap() >= RELEASE_MIN);
        assert!(version("6.5.13").unwrap() < RELEASE_MIN);
        assert!(version("5.99").unwrap() < RELEASE_MIN);
    }

    #[test]
    fn the_running_kernel_has_a_version() {
        let release = release().unwrap();
        assert!(version(&release).is_some(), "{release:?}");
    }
}
