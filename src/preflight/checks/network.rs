//! Where the destination would listen, and who could read what is sent there.
//!
//! Pure.

use super::{Finding, Severity, Subject, blocker, finding};
use crate::{endpoint::Address, preflight::facts::ports::Port};
use std::net::IpAddr;

pub(super) fn run(subject: &Subject<'_>) -> Vec<Finding> {
    let addresses = subject.addresses.iter();
    let mut findings: Vec<Finding> =
        addresses.filter_map(|(option, address)| listen(option, address.as_ref(), subject.allow_plaintext)).collect();
    findings.extend(subject.ports.iter().filter_map(|(option, address, found)| port(option, address, found)));
    findings
}

fn port(option: &str, address: &Address, found: &Port) -> Option<Finding> {
    let address = address.to_string();
    match found {
        Port::Free => None,
        Port::Taken => {
            let remedy = format!("give another port with {option}");
            Some(blocker("port-taken", &address, "something listens there already", &remedy))
        }
        Port::Unreachable(why) => {
            let message = format!("it cannot be reached from here: {why}");
            let remedy = "see that no firewall is in the way: the other QEMU must reach it";
            Some(finding(Severity::Warning, "port-unreachable", &address, message, remedy))
        }
    }
}

/// What speaks against listening at an address.
pub(crate) fn listen(option: &str, address: Option<&Address>, allow_plaintext: bool) -> Option<Finding> {
    let Some(address) = address else {
        let (message, remedy) = match option {
            "--source-nbd-address" => (
                "the source is not known to be a process of this host, and its backing files are to be read",
                format!(
                    "give {option}, where the source is to listen for that; --verify-backing off goes on with nothing proved"
                ),
            ),
            _ => (
                "no address can be chosen: the two QEMUs are not both known to be local processes, or a socket in XDG_RUNTIME_DIR would have too long a path",
                format!("give {option}, where the destination is to listen"),
            ),
        };
        return Some(blocker("address-missing", option, message, &remedy));
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_port_must_be_free() {
        let address: Address = "tcp:192.0.2.1:4444".parse().expect("an address");
        assert_eq!(port("--nbd-address", &address, &Port::Free), None);
        let taken = port("--nbd-address", &address, &Port::Taken).expect("a finding");
        assert_eq!((taken.code, taken.severity), ("port-taken", Severity::Blocker));
        assert!(taken.to_string().contains("192.0.2.1:4444") && taken.remedy.contains("--nbd-address"), "{taken}");
        let far = port("--nbd-address", &address, &Port::Unreachable("no route".to_owned())).expect("a finding");
        assert_eq!((far.code, far.severity), ("port-unreachable", Severity::Warning));
        assert!(far.message.contains("no route"), "{far}");
    }

    #[test]
    fn plain_text_stays_on_this_host_unless_the_user_says_so() {
        let code = |address: &str, allow: bool| {
            let address = address.parse().expect("an address");
            listen("--nbd-address", Some(&address), allow).map(|finding| (finding.code, finding.severity))
        };
        assert_eq!(code("tcp:127.0.0.1:1", false), None);
        assert_eq!(code("tcp:[::1]:1", false), None);
        assert_eq!(code("unix:/run/nbd", false), None);
        assert_eq!(code("tcp:192.0.2.1:1", false), Some(("plaintext", Severity::Blocker)));
        assert_eq!(code("tcp:192.0.2.1:1", true), Some(("plaintext", Severity::Warning)));
        assert!(listen("--nbd-address", None, true).is_some_and(|finding| finding.code == "address-missing"));
    }
}
