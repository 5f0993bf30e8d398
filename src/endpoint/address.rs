//! Addresses of QMP monitors. Pure.
//!
//! Owns the text form of an address. This module must never look at the file system or resolve a name.

use std::fmt;
use std::path::{Path, PathBuf};
use std::str::FromStr;

use serde::de::Error;
use serde::{Deserialize, Deserializer, Serialize, Serializer};

/// Longest path of a unix socket in bytes, without the final NUL that the kernel wants.
const UNIX_PATH_LIMIT: usize = 107;

/// The address of a QMP monitor. `Display` writes a form that parses back.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum Address {
    /// A unix socket: `/path` or `unix:/path`.
    Unix(PathBuf),
    /// A TCP port: `tcp:HOST:PORT`, with an IPv6 address in brackets.
    Tcp {
        /// A name or an address, without brackets.
        host: String,
        /// The port, never 0.
        port: u16,
    },
}

/// Why a text is no address.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum AddressError {
    /// The text has none of the forms.
    #[error("`{0}` is no address: write /path/to/qmp.sock, unix:/path/to/qmp.sock or tcp:HOST:PORT")]
    Unrecognised(String),
    /// A path that does not start at the root directory.
    #[error("`{0}` is not an absolute path: a journal is read again from other directories, so write it in full")]
    Relative(String),
    /// A path longer than the kernel takes.
    #[error("`{path}` has {length} bytes, but the path of a unix socket has at most 107: use a shorter directory")]
    TooLong {
        /// The path.
        path: String,
        /// Its length in bytes.
        length: usize,
    },
    /// A path with a NUL in it.
    #[error("`{}` has a NUL byte in its path", .0.escape_default())]
    Nul(String),
    /// A `tcp:` address without a usable host and port.
    #[error("`{0}` is no TCP address: write tcp:HOST:PORT, and an IPv6 address in brackets as in tcp:[::1]:4444")]
    Tcp(String),
    /// An `ssh://` address.
    #[error(
        "`{0}`: ssh addresses are not supported yet; forward the socket with ssh -L meanwhile, and give the addresses for NBD and for RAM"
    )]
    Ssh(String),
}

impl Address {
    /// The address of a unix socket.
    ///
    /// # Errors
    /// The path is relative, too long for a socket, or has a NUL.
    pub fn unix(path: impl AsRef<Path>) -> Result<Self, AddressError> {
        let path = path.as_ref();
        let text = || path.to_string_lossy().into_owned();
        let length = path.as_os_str().len();
        if !path.is_absolute() {
            return Err(AddressError::Relative(text()));
        }
        if path.as_os_str().as_encoded_bytes().contains(&0) {
            return Err(AddressError::Nul(text()));
        }
        if length > UNIX_PATH_LIMIT {
            return Err(AddressError::TooLong { path: text(), length });
        }
        Ok(Self::Unix(path.into()))
    }

    fn tcp(text: &str, rest: &str) -> Result<Self, AddressError> {
        let wrong = || AddressError::Tcp(text.to_owned());
        let (host, port) = rest.rsplit_once(':').ok_or_else(wrong)?;
        let port: u16 = Some(port)
            .filter(|port| port.bytes().all(|b| b.is_ascii_digit()))
            .ok_or_else(wrong)?
            .parse()
            .map_err(|_| wrong())?;
        let host = match host.strip_prefix('[') {
            Some(inner) => inner.strip_suffix(']').filter(|inner| inner.contains(':')).ok_or_else(wrong)?,
            None => Some(host).filter(|host| !host.contains(':')).ok_or_else(wrong)?,
        };
        let odd = |c: char| c.is_whitespace() || c.is_control() || "[]/@,".contains(c);
        if port == 0 || host.is_empty() || host.contains(odd) {
            return Err(wrong());
        }
        Ok(Self::Tcp { host: host.into(), port })
    }
}

impl FromStr for Address {
    type Err = AddressError;

    fn from_str(text: &str) -> Result<Self, AddressError> {
        if text.starts_with("ssh:") {
            return Err(AddressError::Ssh(text.into()));
        }
        if let Some(rest) = text.strip_prefix("tcp:") {
            return Self::tcp(text, rest);
        }
        match text.strip_prefix("unix:") {
            Some(path) => Self::unix(path),
            None if text.starts_with('/') => Self::unix(text),
            None if text.starts_with('.') => Err(AddressError::Relative(text.into())),
            None => Err(AddressError::Unrecognised(text.into())),
        }
    }
}

impl Serialize for Address {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl<'de> Deserialize<'de> for Address {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        String::deserialize(deserializer)?.parse().map_err(D::Error::custom)
    }
}

impl fmt::Display for Address {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Unix(path) => write!(f, "unix:{}", path.display()),
            Self::Tcp { host, port } if host.contains(':') => write!(f, "tcp:[{host}]:{port}"),
            Self::Tcp { host, port } => write!(f, "tcp:{host}:{port}"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn the_forms_of_the_contract() {
        let cases = [
            ("/run/a.sock", "unix:/run/a.sock"),
            ("unix:/run/a.sock", "unix:/run/a.sock"),
            ("tcp:host.example:4444", "tcp:host.example:4444"),
            ("tcp:127.0.0.1:4444", "tcp:127.0.0.1:4444"),
            ("tcp:[::1]:4444", "tcp:[::1]:4444"),
            ("tcp:[fe80::1%eth0]:1", "tcp:[fe80::1%eth0]:1"),
        ];
        for (text, shown) in cases {
            assert_eq!(text.parse::<Address>().unwrap().to_string(), shown);
        }
    }

    #[test]
    fn everything_else_is_refused_with_its_reason() {
        use AddressError as E;
        type IsExpected = fn(&E) -> bool;
        let kinds: [(&str, IsExpected); 20] = [
            ("", |e| matches!(e, E::Unrecognised(_))),
            ("qmp.sock", |e| matches!(e, E::Unrecognised(_))),
            ("./qmp.sock", |e| matches!(e, E::Relative(_))),
            ("unix:qmp.sock", |e| matches!(e, E::Relative(_))),
            ("unix:", |e| matches!(e, E::Relative(_))),
            ("/a\0b", |e| matches!(e, E::Nul(_))),
            ("ssh://root@host/run/a.sock", |e| matches!(e, E::Ssh(_))),
            ("tcp:", |e| matches!(e, E::Tcp(_))),
            ("tcp:host", |e| matches!(e, E::Tcp(_))),
            ("tcp:host:", |e| matches!(e, E::Tcp(_))),
            ("tcp::1", |e| matches!(e, E::Tcp(_))),
            ("tcp:host:0", |e| matches!(e, E::Tcp(_))),
            ("tcp:host:65536", |e| matches!(e, E::Tcp(_))),
            ("tcp:host:+1", |e| matches!(e, E::Tcp(_))),
            ("tcp:::1:4444", |e| matches!(e, E::Tcp(_))),
            ("tcp:[::1:4444", |e| matches!(e, E::Tcp(_))),
            ("tcp:[host]:4444", |e| matches!(e, E::Tcp(_))),
            ("tcp:[]:4444", |e| matches!(e, E::Tcp(_))),
            ("tcp:ho st:4444", |e| matches!(e, E::Tcp(_))),
            ("tcp:host:4444,server=on", |e| matches!(e, E::Tcp(_))),
        ];
        for (text, is_expected) in kinds {
            let error = text.parse::<Address>().unwrap_err();
            assert!(is_expected(&error), "{text}: {error:?}");
        }
    }

    #[test]
    fn the_kernel_takes_107_bytes() {
        let path = |length: usize| format!("/{}", "x".repeat(length - 1));
        assert!(path(107).parse::<Address>().is_ok());
        let error = path(108).parse::<Address>().unwrap_err();
        assert!(matches!(error, AddressError::TooLong { length: 108, .. }));
    }

    proptest! {
        #[test]
        fn what_parses_is_shown_and_parses_again(text in "(unix:/|/|tcp:|tcp:\\[)?[a-z0-9:\\[\\].%/]{0,20}(:[0-9]{1,5})?") {
            if let Ok(address) = text.parse::<Address>() {
                prop_assert_eq!(address.to_string().parse::<Address>(), Ok(address));
            }
        }
    }
}
