//! The addresses at which a QEMU would listen, and whether others could read the data on its way.
//!
//! Pure.

use super::{finding::Finding, subject::CheckSubject};
use crate::{
    codes::{FindingCode, Setting},
    endpoint::Address,
    preflight::facts::ports::PortState,
};
use std::net::IpAddr;

pub(super) fn run(subject: &CheckSubject<'_>) -> Vec<Finding> {
    let addresses = subject.addresses.iter();
    let mut findings: Vec<Finding> = addresses
        .filter_map(|(setting, address)| listen(*setting, address.as_ref(), subject.allow_plaintext))
        .collect();
    findings.extend(subject.ports.iter().filter_map(|(setting, address, found)| port(*setting, address, found)));
    findings
}

fn port(setting: Setting, address: &Address, found: &PortState) -> Option<Finding> {
    let address = address.to_string();
    match found {
        PortState::Free => None,
        PortState::Taken => {
            let finding = Finding::new(FindingCode::PortTaken, &address, "a process listens there already");
            Some(finding.with_remedy(format!("give another port with {setting}")))
        }
        PortState::Unreachable(why) => {
            let message = format!("this address cannot be reached from here: {why}");
            Some(Finding::new(FindingCode::PortUnreachable, &address, message))
        }
    }
}

/// The reason why no QEMU should listen at an address, if there is one. A missing address is a reason, too.
pub(crate) fn listen(setting: Setting, address: Option<&Address>, allow_plaintext: bool) -> Option<Finding> {
    let Some(address) = address else {
        let (message, remedy) = match setting {
            Setting::SourceNbdAddress => (
                "the source is not known to be a process of this host, and its backing files must be read",
                format!(
                    "give {setting}, at which the source can listen for that; {} migrates without a proof",
                    Setting::VerifyBacking.set_to("off")
                ),
            ),
            _ => (
                "no address can be chosen: the two QEMUs are not both known to be local processes, or a socket in \
                 XDG_RUNTIME_DIR would have too long a path",
                format!("give {setting}, at which the destination can listen"),
            ),
        };
        let subject = setting.to_string();
        return Some(Finding::new(FindingCode::AddressMissing, &subject, message).with_remedy(remedy));
    };
    let Address::Tcp { host, .. } = address else { return None };
    let loopback = host == "localhost" || host.parse::<IpAddr>().is_ok_and(|ip| ip.is_loopback());
    let message = "the guest's data would cross the network in plain text";
    let finding = Finding::new(FindingCode::Plaintext, &address.to_string(), message);
    match (loopback, allow_plaintext) {
        (true, _) => {
            let message = "any process of this host can connect there, whoever its user is";
            Some(Finding::new(FindingCode::OpenPort, &address.to_string(), message))
        }
        (false, true) => Some(finding.into_warning().with_remedy("")),
        (false, false) => Some(finding),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::preflight::checks::Severity;

    #[test]
    fn a_port_must_be_free() {
        let address: Address = "tcp:192.0.2.1:4444".parse().expect("an address");
        assert_eq!(port(Setting::NbdAddress, &address, &PortState::Free), None);
        let taken = port(Setting::NbdAddress, &address, &PortState::Taken).expect("a finding");
        assert_eq!((taken.code.as_str(), taken.severity), ("port-taken", Severity::Blocker));
        assert!(taken.to_string().contains("192.0.2.1:4444") && taken.remedy.contains("`nbd_address`"), "{taken}");
        let far =
            port(Setting::NbdAddress, &address, &PortState::Unreachable("no route".to_owned())).expect("a finding");
        assert_eq!((far.code.as_str(), far.severity), ("port-unreachable", Severity::Warning));
        assert!(far.message.contains("no route"), "{far}");
    }

    #[test]
    fn plain_text_stays_on_this_host_unless_the_user_says_so() {
        let code = |address: &str, allow: bool| {
            let address = address.parse().expect("an address");
            listen(Setting::NbdAddress, Some(&address), allow)
                .map(|finding| (finding.code.as_str().to_owned(), finding.severity))
        };
        let open = Some(("open-port".to_owned(), Severity::Warning));
        assert_eq!(code("tcp:127.0.0.1:1", false), open);
        assert_eq!(code("tcp:[::1]:1", true), open);
        assert_eq!(code("unix:/run/nbd", false), None);
        assert_eq!(code("tcp:192.0.2.1:1", false), Some(("plaintext".to_owned(), Severity::Blocker)));
        assert_eq!(code("tcp:192.0.2.1:1", true), Some(("plaintext".to_owned(), Severity::Warning)));
        assert!(listen(Setting::NbdAddress, None, true).is_some_and(|finding| finding.code == "address-missing"));
    }
}
