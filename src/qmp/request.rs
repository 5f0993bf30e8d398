//! A command ready to be sent.
//!
//! The module owns the name and the arguments. It knows no command, and `Debug` must never show the value of an
//! argument, since arguments can be secrets.

use std::borrow::Cow;
use std::fmt;

use serde_json::{Map, Value};

/// A command and its arguments.
#[derive(Clone, PartialEq)]
pub struct QmpRequest {
    name: Cow<'static, str>,
    arguments: Map<String, Value>,
}

/// Reason why a command cannot be written as a QMP request.
#[derive(Debug, thiserror::Error)]
pub enum EncodeError {
    /// The serialisation of the arguments failed.
    #[error("the arguments of {command} cannot be written as JSON")]
    Json {
        /// The command.
        command: Cow<'static, str>,
        /// Error of the serialisation.
        #[source]
        source: serde_json::Error,
    },
    /// The arguments serialise, but not to a JSON object.
    #[error("the arguments of {command} are not a JSON object")]
    NotAnObject {
        /// The command.
        command: Cow<'static, str>,
    },
}

impl QmpRequest {
    /// A command of the `qapi` crate. Options that are `None` are left out.
    ///
    /// # Errors
    /// When the command does not serialise to an object.
    pub fn new<C: qapi::Command>(command: &C) -> Result<Self, EncodeError> {
        let name = Cow::Borrowed(C::NAME);
        match serde_json::to_value(command) {
            Ok(Value::Object(arguments)) => Ok(Self { name, arguments }),
            Ok(Value::Null) => Ok(Self { name, arguments: Map::new() }),
            Ok(_) => Err(EncodeError::NotAnObject { command: name }),
            Err(source) => Err(EncodeError::Json { command: name, source }),
        }
    }

    /// A command newer than the `qapi` crate, without arguments. Only send such a command where QEMU's schema has it.
    pub fn named(name: impl Into<Cow<'static, str>>) -> Self {
        Self { name: name.into(), arguments: Map::new() }
    }

    /// Adds or replaces one argument; for arguments newer than the `qapi` crate. Only add such an argument where QEMU's
    /// schema has it.
    #[must_use]
    pub fn with(mut self, key: impl Into<String>, value: impl Into<Value>) -> Self {
        self.arguments.insert(key.into(), value.into());
        self
    }

    /// The command's name, such as `query-migrate`.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// The command's name, and the message that goes over the wire.
    pub(super) fn into_message(self, id: &str, oob: bool) -> (Cow<'static, str>, Value) {
        let verb = if oob { "exec-oob" } else { "execute" };
        let mut message = Map::new();
        message.insert(verb.into(), self.name.as_ref().into());
        if !self.arguments.is_empty() {
            message.insert("arguments".into(), self.arguments.into());
        }
        message.insert("id".into(), id.into());
        (self.name, message.into())
    }
}

impl fmt::Debug for QmpRequest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let keys: Vec<&String> = self.arguments.keys().collect();
        f.debug_struct("Request").field("name", &self.name).field("arguments", &keys).finish()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use qapi::qmp;
    use serde_json::json;

    #[test]
    fn arguments_newer_than_the_crate_are_added() {
        let request = QmpRequest::new(&qmp::query_status {}).unwrap().with("new-one", 3);
        let (name, message) = request.into_message("query-status#1", false);
        assert_eq!(name, "query-status");
        let expected = json!({"execute": "query-status", "arguments": {"new-one": 3}, "id": "query-status#1"});
        assert_eq!(message, expected);
    }

    #[test]
    fn commands_newer_than_the_crate_can_be_named() {
        let (_, message) = QmpRequest::named("blockdev-set-active").with("active", true).into_message("x#1", true);
        let expected = json!({"exec-oob": "blockdev-set-active", "arguments": {"active": true}, "id": "x#1"});
        assert_eq!(message, expected);
    }

    #[test]
    fn debug_shows_no_value() {
        let request = QmpRequest::named("set_password").with("password", "hunter2");
        let text = format!("{request:?}");
        assert!(text.contains("set_password") && !text.contains("hunter2"), "{text}");
    }
}
