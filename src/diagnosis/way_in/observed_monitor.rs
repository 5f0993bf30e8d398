//! The addresses that a diagnosis takes: those of monitors, domains of libvirt's, and guests of Proxmox VE.

use super::{domain_process, virsh_bridge::VirshConnector, virsh_domain::VirshDomain};
use crate::endpoint::{Address, AddressError, Endpoint, ProcessHandle};
use std::{fmt, str::FromStr, sync::Arc};

/// The folder of the monitors of Proxmox VE.
const PROXMOX: &str = "/var/run/qemu-server";

/// A monitor that is looked at. `Display` writes the address that it came from.
#[derive(Debug, Clone)]
#[non_exhaustive]
pub enum ObservedMonitor {
    /// A monitor that is connected to.
    Endpoint(Endpoint),
    /// The monitor of a domain of libvirt's, through the command `virsh`.
    Libvirt(VirshDomain),
}

/// Why a text is no address of a monitor that can be looked at.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum ObservedMonitorError {
    /// No address of a monitor.
    #[error(transparent)]
    Address(#[from] AddressError),
    /// `virsh:` without a domain.
    #[error(
        "`{0}` names no domain of libvirt's: write virsh:DOMAIN or virsh:URI/DOMAIN, as in virsh:qemu:///system/vm1, \
         and a query of the URI at the end"
    )]
    Domain(String),
    /// `pve:` without the number of a guest.
    #[error("`{0}` names no guest of Proxmox VE: write its number, as in pve:100")]
    Proxmox(String),
}

impl ObservedMonitor {
    /// The way to connect.
    pub(crate) fn endpoint(&self) -> Endpoint {
        match self {
            Self::Endpoint(endpoint) => endpoint.clone(),
            Self::Libvirt(domain) => {
                let connect = Arc::new(VirshConnector::new(domain.clone()));
                let process = self.pid().and_then(|pid| ProcessHandle::from_pid(pid).ok());
                Endpoint::Connector { name: self.to_string(), connect, process }
            }
        }
    }

    /// The process of the QEMU, where it is known without a connection.
    pub(crate) fn pid(&self) -> Option<u32> {
        match self {
            Self::Endpoint(Endpoint::Connector { process, .. }) => process.as_ref().map(ProcessHandle::pid),
            Self::Endpoint(Endpoint::Address(_)) => None,
            Self::Libvirt(domain) => domain_process::find(domain),
        }
    }

    /// Whether both are one monitor, by whatever names.
    pub(crate) fn is_same(&self, other: &Self) -> bool {
        match (self, other) {
            (Self::Endpoint(one), Self::Endpoint(other)) => one.is_same_socket(other),
            _ => self.to_string() == other.to_string(),
        }
    }

    /// The domain, where the monitor is libvirt's.
    pub(crate) fn domain(&self) -> Option<&VirshDomain> {
        match self {
            Self::Endpoint(_) => None,
            Self::Libvirt(domain) => Some(domain),
        }
    }
}

impl FromStr for ObservedMonitor {
    type Err = ObservedMonitorError;

    fn from_str(text: &str) -> Result<Self, ObservedMonitorError> {
        if let Some(domain) = text.strip_prefix("virsh:") {
            let domain = VirshDomain::parse(domain);
            return domain.map(Self::Libvirt).ok_or_else(|| ObservedMonitorError::Domain(text.to_owned()));
        }
        if let Some(id) = text.strip_prefix("pve:").or_else(|| text.strip_prefix("proxmox:")) {
            let is_number = (1..=9).contains(&id.len()) && id.bytes().all(|byte| byte.is_ascii_digit());
            return match is_number {
                true => Ok(Address::unix(format!("{PROXMOX}/{id}.qmp"))?.into()),
                false => Err(ObservedMonitorError::Proxmox(text.to_owned())),
            };
        }
        Ok(text.parse::<Address>()?.into())
    }
}

impl From<Endpoint> for ObservedMonitor {
    fn from(endpoint: Endpoint) -> Self {
        Self::Endpoint(endpoint)
    }
}

impl From<Address> for ObservedMonitor {
    fn from(address: Address) -> Self {
        Self::Endpoint(address.into())
    }
}

impl fmt::Display for ObservedMonitor {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Endpoint(endpoint) => endpoint.fmt(f),
            Self::Libvirt(domain) => domain.fmt(f),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_way_in_has_an_address() {
        for (text, shown) in [
            ("/run/a.qmp", "unix:/run/a.qmp"),
            ("tcp:[::1]:4444", "tcp:[::1]:4444"),
            ("pve:100", "unix:/var/run/qemu-server/100.qmp"),
            ("proxmox:100", "unix:/var/run/qemu-server/100.qmp"),
            ("virsh:qemu:///system/vm1", "virsh:qemu:///system/vm1"),
        ] {
            assert_eq!(text.parse::<ObservedMonitor>().map(|monitor| monitor.to_string()), Ok(shown.to_owned()));
        }
        for (text, part) in [
            ("virsh:", "virsh:DOMAIN"),
            ("virsh:qemu:///system", "virsh:URI/DOMAIN"),
            ("pve:", "pve:100"),
            ("pve:../x", "pve:100"),
            ("vm1", "no address"),
        ] {
            let error = text.parse::<ObservedMonitor>().map(|monitor| monitor.to_string()).unwrap_err();
            assert!(error.to_string().contains(part), "{error}");
        }
    }
}
