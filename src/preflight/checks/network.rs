//! The addresses at which a QEMU would listen, and whether others could read the data on its way.
//!
//! Pure.

use super::{
    finding::Finding,
    subject::{CheckSubject, ListeningAddress},
};
use crate::{
    codes::{FindingCode, Setting},
    endpoint::Address,
    preflight::facts::{SideFacts, ports::PortState},
};
use std::{collections::BTreeMap, net::IpAddr};

pub(super) fn run(subject: &CheckSubject<'_>) -> Vec<Finding> {
    let CheckSubject { source, destination, .. } = *subject;
    let mut findings = missing(subject.addresses);
    let known = subject.addresses.iter().filter_map(|(setting, address)| Some((*setting, address.address()?)));
    findings.extend(known.filter_map(|(_, address)| listen(address, subject.allow_plaintext)));
    if subject.addresses.iter().any(|(_, address)| matches!(address, ListeningAddress::Private(_))) {
        findings.extend([source, destination].into_iter().filter_map(private));
    }
    findings.extend(subject.ports.iter().filter_map(|(setting, address, found)| {
        // the comparison of images is the engine's own, and says by itself what it could not reach
        let connects = *setting != Setting::SourceNbdAddress && source.process.shares_network;
        port(*setting, address, found, connects)
    }));
    findings
}

/// The addresses that could not be chosen, together where one reason is that of several.
fn missing(addresses: &[(Setting, ListeningAddress)]) -> Vec<Finding> {
    let mut by_reason: BTreeMap<&str, Vec<Setting>> = BTreeMap::new();
    for (setting, address) in addresses {
        if let ListeningAddress::Missing(why) = address {
            by_reason.entry(why).or_default().push(*setting);
        }
    }
    by_reason.into_iter().map(|(why, settings)| address_missing(&settings, why)).collect()
}

/// The finding that these addresses must be given.
fn address_missing(settings: &[Setting], why: &str) -> Finding {
    let named = |settings: &[Setting]| settings.iter().map(Setting::to_string).collect::<Vec<_>>().join(" and ");
    let (reading, moving): (Vec<Setting>, Vec<Setting>) =
        settings.iter().partition(|setting| **setting == Setting::SourceNbdAddress);
    let mut remedies = Vec::new();
    if !moving.is_empty() {
        remedies.push(format!("give {}, at which the destination can listen", named(&moving)));
    }
    if !reading.is_empty() {
        let off = Setting::VerifyBacking.set_to("off");
        let given = named(&reading);
        remedies.push(format!(
            "give {given}, at which the source can listen while its backing files are read; {off} migrates without a proof"
        ));
    }
    Finding::new(FindingCode::AddressMissing, &named(settings), why).with_remedy(remedies.join("; "))
}

/// A QEMU that cannot use the sockets of the run.
fn private(side: &SideFacts) -> Option<Finding> {
    let message = "this QEMU runs as another user than qferry, and the sockets of a run are in a folder that only \
                   qferry's user may enter";
    let finding = Finding::new(FindingCode::SocketForbidden, &side.name, message);
    (side.process.uses_private_files == Some(false)).then_some(finding)
}

fn port(setting: Setting, address: &Address, found: &PortState, connects: bool) -> Option<Finding> {
    let address = address.to_string();
    let unreachable = |message: String| {
        let finding = Finding::new(FindingCode::PortUnreachable, &address, message);
        Some(if connects { finding } else { finding.into_warning() })
    };
    match found {
        PortState::Free => None,
        PortState::Taken => {
            let finding = Finding::new(FindingCode::PortTaken, &address, "a process listens there already");
            Some(finding.with_remedy(format!("give another port with {setting}")))
        }
        PortState::Silent(waited) => unreachable(format!(
            "no answer from {address} within {waited:?}: its host is down, or a firewall drops what is sent there"
        )),
        PortState::Unreachable(why) => unreachable(format!("this address cannot be reached from here: {why}")),
        PortState::Closed(why) => {
            let finding = Finding::new(FindingCode::SocketForbidden, &address, why);
            Some(finding.with_remedy("run both QEMUs as one user, or start the one that listens with umask 0 or 2 and a group that both have; a port has no owner"))
        }
        PortState::Forbidden(why) => {
            let finding = Finding::new(FindingCode::SocketForbidden, &address, why);
            Some(finding.with_remedy(format!("give {setting} in a folder that this QEMU's user may write to")))
        }
    }
}

/// The reason why no QEMU should listen at an address, if there is one.
pub(crate) fn listen(address: &Address, allow_plaintext: bool) -> Option<Finding> {
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
    use std::time::Duration;

    #[test]
    fn a_port_must_be_free() {
        let address: Address = "tcp:192.0.2.1:4444".parse().expect("an address");
        let port = |found: &PortState, connects| port(Setting::NbdAddress, &address, found, connects);
        assert_eq!(port(&PortState::Free, true), None);
        let taken = port(&PortState::Taken, true).expect("a finding");
        assert_eq!((taken.code.as_str(), taken.severity), ("port-taken", Severity::Blocker));
        assert!(taken.to_string().contains("192.0.2.1:4444") && taken.remedy.contains("`nbd_address`"), "{taken}");
        for (found, words) in [
            (PortState::Unreachable("no route".to_owned()), "no route"),
            (PortState::Silent(Duration::from_secs(1)), "no answer from tcp:192.0.2.1:4444 within 1s"),
        ] {
            for (connects, severity) in [(true, Severity::Blocker), (false, Severity::Warning)] {
                let far = port(&found, connects).expect("a finding");
                assert_eq!((far.code.as_str(), far.severity), ("port-unreachable", severity));
                assert!(far.message.contains(words), "{far}");
            }
        }
        let closed = port(&PortState::Forbidden("no folder".to_owned()), true).expect("a finding");
        assert_eq!((closed.code.as_str(), closed.severity), ("socket-forbidden", Severity::Blocker));
    }

    #[test]
    fn plain_text_stays_on_this_host_unless_the_user_says_so() {
        let code = |address: &str, allow: bool| {
            let address = address.parse().expect("an address");
            listen(&address, allow).map(|finding| (finding.code.as_str().to_owned(), finding.severity))
        };
        let open = Some(("open-port".to_owned(), Severity::Warning));
        assert_eq!(code("tcp:127.0.0.1:1", false), open);
        assert_eq!(code("tcp:[::1]:1", true), open);
        assert_eq!(code("unix:/run/nbd", false), None);
        assert_eq!(code("tcp:192.0.2.1:1", false), Some(("plaintext".to_owned(), Severity::Blocker)));
        assert_eq!(code("tcp:192.0.2.1:1", true), Some(("plaintext".to_owned(), Severity::Warning)));
    }

    #[test]
    fn addresses_that_are_missing_for_one_reason_are_named_once() {
        use Setting::{MigrateAddress, NbdAddress, SourceNbdAddress};
        let missing_for = |why: &[(Setting, &str)]| {
            let addresses: Vec<_> =
                why.iter().map(|(setting, why)| (*setting, ListeningAddress::Missing((*why).to_owned()))).collect();
            missing(&addresses)
        };
        let found = missing_for(&[(NbdAddress, "far"), (MigrateAddress, "far"), (SourceNbdAddress, "far")]);
        let [one] = &found[..] else { panic!("{found:#?}") };
        assert_eq!((one.code.as_str(), one.message.as_str()), ("address-missing", "far"));
        assert_eq!(one.subject, "`nbd_address` and `migrate_address` and `source_nbd_address`");
        for words in ["at which the destination can listen", "at which the source can listen", "`verify_backing: off`"]
        {
            assert!(one.remedy.contains(words), "{one}");
        }
        let found = missing_for(&[(NbdAddress, "far"), (MigrateAddress, "far"), (SourceNbdAddress, "hidden")]);
        assert_eq!(found.len(), 2, "{found:#?}");
    }
}
