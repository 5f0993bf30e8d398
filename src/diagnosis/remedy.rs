//! The commands of a remedy, as data and carried out.

use super::way_in::{ObservedMonitor, abort_job};
use crate::{
    progress::{Side, describe},
    qmp::{QmpClient, QmpOptions, QmpRequest},
};
use serde::{Serialize, Serializer, ser::SerializeMap};
use serde_json::{Map, Value, json};
use std::{fmt, time::Duration};

/// The time for a remedy to be answered.
const ANSWER: Duration = Duration::from_secs(10);

/// A QMP command for one side.
#[derive(Debug, Clone, PartialEq)]
#[non_exhaustive]
pub struct RemedyCommand {
    /// The side.
    pub side: Side,
    /// Whether the command is executed out of band, because QEMU's main loop hangs.
    pub oob: bool,
    /// The command's name.
    pub name: String,
    arguments: Map<String, Value>,
}

impl RemedyCommand {
    pub(super) fn new(side: Side, name: &str, arguments: Value) -> Self {
        let arguments = match arguments {
            Value::Object(arguments) => arguments,
            _ => Map::new(),
        };
        Self { side, oob: false, name: name.to_owned(), arguments }
    }

    /// A command whose arguments are texts, for screens made by hand.
    #[cfg(test)]
    pub(crate) fn qmp(side: Side, name: &str, arguments: &[(&str, &str)]) -> Self {
        Self::new(side, name, arguments.iter().map(|&(name, value)| (name.to_owned(), Value::from(value))).collect())
    }

    /// Ends the source's migration, with the guest on the source.
    pub(super) fn cancel() -> Self {
        Self::new(Side::Source, "migrate_cancel", json!({}))
    }

    /// Cuts connections out of band.
    pub(super) fn yank(side: Side, instances: &[Value]) -> Self {
        Self { oob: true, ..Self::new(side, "yank", json!({ "instances": instances })) }
    }

    /// An argument.
    pub(super) fn argument(&self, name: &str) -> Option<&Value> {
        self.arguments.get(name)
    }

    fn line(&self) -> Value {
        let verb = if self.oob { "exec-oob" } else { "execute" };
        let mut line = Map::new();
        line.insert(verb.to_owned(), self.name.clone().into());
        if !self.arguments.is_empty() {
            line.insert("arguments".to_owned(), self.arguments.clone().into());
        }
        line.into()
    }
}

impl Serialize for RemedyCommand {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let mut map = serializer.serialize_map(Some(2))?;
        map.serialize_entry("side", self.side.as_str())?;
        map.serialize_entry("qmp", &self.line())?;
        map.end()
    }
}

impl fmt::Display for RemedyCommand {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let verb = if self.oob { "exec-oob" } else { "execute" };
        write!(f, "{}: {{\"{verb}\": \"{}\"", self.side.as_str(), self.name)?;
        if !self.arguments.is_empty() {
            let arguments = Value::from(self.arguments.clone()).to_string();
            write!(f, ", \"arguments\": {}", escaped(&arguments))?;
        }
        f.write_str("}")
    }
}

/// JSON in which a character that does not show, or turns the direction of writing, is written by its number: what is
/// read is what is sent.
fn escaped(json: &str) -> String {
    let mut shown = String::with_capacity(json.len());
    for c in json.chars() {
        if c.is_ascii() || c.is_alphanumeric() {
            shown.push(c);
        } else {
            let mut units = [0; 2];
            c.encode_utf16(&mut units).iter().for_each(|unit| shown.push_str(&format!("\\u{unit:04x}")));
        }
    }
    shown
}

/// What is done about a domain whose jobs libvirt counts.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum LibvirtRemedy {
    /// The command goes to QEMU: libvirt keeps no count of what it changes.
    Send,
    /// libvirt's own way, after which it knows that its migration is over.
    AbortJob,
    /// Nothing, for this reason.
    Refuse(&'static str),
}

impl RemedyCommand {
    /// How a remedy is carried out where libvirt runs the QEMU.
    fn through_libvirt(&self) -> LibvirtRemedy {
        match &*self.name {
            "migrate_cancel" => LibvirtRemedy::AbortJob,
            "block-job-resume" | "block-job-set-speed" | "migrate-set-parameters" | "announce-self" => {
                LibvirtRemedy::Send
            }
            _ if self.oob => LibvirtRemedy::Refuse("libvirt passes no command on out of band"),
            _ => LibvirtRemedy::Refuse(
                "libvirt counts this domain's jobs and exports itself: virsh domjobabort ends its migration with all of them",
            ),
        }
    }

    /// What is done at a monitor to carry the command out, for people.
    ///
    /// # Errors
    /// The command is not carried out there, and why.
    pub fn wording(&self, at: &ObservedMonitor) -> Result<String, String> {
        match at.domain().map(|domain| (domain, self.through_libvirt())) {
            None => Ok(self.to_string()),
            Some((domain, LibvirtRemedy::Send)) => {
                Ok(format!("{} '{}'", domain.typed_about("qemu-monitor-command"), self.line()))
            }
            Some((domain, LibvirtRemedy::AbortJob)) => Ok(domain.typed_about("domjobabort")),
            Some((_, LibvirtRemedy::Refuse(why))) => Err(why.to_owned()),
        }
    }
}

/// Sends a command of a remedy to its side, and gives QEMU's refusal or the reason why there was no answer. A migration
/// of libvirt's is cancelled by libvirt (`domjobabort`), and what libvirt keeps count of is refused. Others may have
/// acted since the diagnosis: look again right before, and ask
/// [`Diagnosis::changed_since`](super::Diagnosis::changed_since).
///
/// # Errors
/// The side cannot be reached, or QEMU or libvirt has refused the command or left it unanswered.
pub async fn carry_out(at: &ObservedMonitor, command: &RemedyCommand) -> Result<(), String> {
    if let Some(domain) = at.domain() {
        match command.through_libvirt() {
            LibvirtRemedy::Send => {}
            LibvirtRemedy::AbortJob => return abort_job(domain).await,
            LibvirtRemedy::Refuse(why) => return Err(why.to_owned()),
        }
    }
    let told = |error: &(dyn std::error::Error + 'static)| describe(error);
    let dialed = at.endpoint().dial(ANSWER).await.map_err(|error| told(&error))?;
    let client = QmpClient::connect(dialed.stream, QmpOptions::labelled(command.side.as_str()));
    let client = client.await.map_err(|error| told(&error))?;
    let answer = match command.oob {
        true => {
            let instances: Vec<qapi::qmp::YankInstance> =
                serde_json::from_value(command.arguments.get("instances").cloned().unwrap_or_default())
                    .map_err(|error| told(&error))?;
            client.execute_oob(&qapi::qmp::yank { instances }, ANSWER).await
        }
        false => {
            let named = QmpRequest::named(command.name.clone());
            let request =
                command.arguments.iter().fold(named, |request, (key, value)| request.with(key, value.clone()));
            client.start(request, ANSWER).await
        }
    };
    answer.map(drop).map_err(|error| told(&error))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn libvirt_is_asked_to_do_what_it_keeps_count_of() {
        let libvirts: ObservedMonitor = "virsh:qemu:///system/vm 1".parse().expect("an address");
        let own: ObservedMonitor = "/run/vm.qmp".parse().expect("an address");
        let resume = RemedyCommand::new(Side::Source, "block-job-resume", json!({ "device": "m" }));
        let said = resume.wording(&libvirts).expect("sent");
        assert!(said.starts_with("virsh -c qemu:///system qemu-monitor-command --domain 'vm 1' '{"), "{said}");
        let said = RemedyCommand::cancel().wording(&libvirts);
        assert_eq!(said.as_deref(), Ok("virsh -c qemu:///system domjobabort --domain 'vm 1'"));
        for command in [
            RemedyCommand::yank(Side::Source, &[json!({ "type": "migration" })]),
            RemedyCommand::new(Side::Destination, "nbd-server-stop", json!({})),
            RemedyCommand::new(Side::Source, "job-dismiss", json!({ "id": "m" })),
            RemedyCommand::new(Side::Source, "block-job-cancel", json!({ "device": "m" })),
        ] {
            assert!(
                command.wording(&libvirts).is_err() && command.wording(&own) == Ok(command.to_string()),
                "{command}"
            );
        }
    }

    #[test]
    fn a_command_reads_as_it_would_be_typed() {
        let resume = RemedyCommand::new(Side::Source, "block-job-resume", json!({ "device": "m" }));
        assert_eq!(resume.to_string(), r#"source: {"execute": "block-job-resume", "arguments": {"device":"m"}}"#);
        let yank = RemedyCommand::yank(Side::Source, &[json!({"type": "migration"})]);
        assert!(yank.to_string().contains("exec-oob"));
        let plain = serde_json::to_value(RemedyCommand::new(Side::Destination, "nbd-server-stop", json!({})));
        assert_eq!(plain.unwrap(), json!({ "side": "destination", "qmp": { "execute": "nbd-server-stop" } }));
    }
}
