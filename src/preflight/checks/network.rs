//! Where the destination would listen, and who could read what is sent there.
//!
//! Pure.

use super::{Finding, Severity, Subject, blocker, finding};
use crate::endpoint::Address;
use std::net::IpAddr;

pub(super) fn run(subject: &Subject<'_>) -> Vec<Finding> {
    let addresses = subject.addresses.iter();
    addresses.filter_map(|(option, address)| listen(option, address.as_ref(), subject.allow_plaintext)).collect()
}

/// What speaks against listening at an address.
pub(crate) fn listen(option: &str, address: Option<&Address>, allow_plaintext: bool) -> Option<Finding> {
    let Some(address) = address else {
        return Some(blocker(
            "address-missing",
            option,
            "no address can be chosen: the two QEMUs are not both known to be local processes, or a socket in XDG_RUNTIME_DIR would have too long a path",
            &format!("give {option}, where the destination is to listen"),
        ));
    };
    let Address::Tcp { host, .. } = address else { return None };
    let loopback = host == "localhost" || host.parse::<IpAddr>().is_ok_and(|ip| ip.is_loopback());
    let message = "the guest's data would cross the network in plain text";
    match (loopback, allow_plaintext) {
        (true, _) => None,
        (false, true) => Some(finding(Severity::Warning, "plaintext", &address.to_string(), message, "")),
        (false, false) => Some(blocker(
            "plaintext",
            &address.to_string(),
            message,
            "say --allow-plaintext if the network is trusted, or tunnel it",
        )),
    }
}
