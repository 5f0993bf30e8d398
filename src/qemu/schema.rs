//! Reads `query-qmp-schema`: which commands, arguments and enum values a build knows.
//!
//! Pure. Types have no names on the wire, only numbers that differ between builds, so they are followed, never kept.

use serde_json::Value;
use std::collections::HashMap;

/// An answer to `query-qmp-schema`, ready to be asked.
#[derive(Debug)]
pub struct Schema<'a> {
    entities: HashMap<&'a str, &'a Value>,
}

impl<'a> Schema<'a> {
    /// Reads the answer. Entities that have no name are passed over.
    pub fn new(answer: &'a Value) -> Self {
        let entities = answer.as_array().into_iter().flatten();
        Self { entities: entities.filter_map(|entity| Some((text(entity, "name")?, entity))).collect() }
    }

    /// Whether there is such a command.
    pub fn has_command(&self, command: &str) -> bool {
        self.command(command).is_some()
    }

    /// Whether the command takes the argument.
    pub fn has_argument(&self, command: &str, argument: &str) -> bool {
        self.argument(command, argument).is_some()
    }

    /// The values of the enum that is the argument's type; empty where it is none.
    pub fn argument_values(&self, command: &str, argument: &str) -> Vec<&'a str> {
        self.argument(command, argument).map_or_else(Vec::new, |member| self.values(member))
    }

    /// The values of the enum that is the type of a member of the elements of the array that a command takes: the
    /// capability names of `migrate-set-capabilities`.
    pub fn element_values(&self, command: &str, argument: &str, member: &str) -> Vec<&'a str> {
        let element = self.argument(command, argument).and_then(|array| {
            let array = self.entities.get(text(array, "type")?)?;
            self.entities.get(text(array, "element-type")?).copied()
        });
        let found = element.and_then(|object| named(object, "members", member));
        found.map_or_else(Vec::new, |member| self.values(member))
    }

    fn command(&self, name: &str) -> Option<&'a Value> {
        self.entities.get(name).copied().filter(|entity| text(entity, "meta-type") == Some("command"))
    }

    fn argument(&self, command: &str, argument: &str) -> Option<&'a Value> {
        let arguments = text(self.command(command)?, "arg-type")?;
        named(self.entities.get(arguments)?, "members", argument)
    }

    fn values(&self, member: &Value) -> Vec<&'a str> {
        let found = text(member, "type").and_then(|name| self.entities.get(name));
        // `members` since 6.2; the older `values` stands beside it on all we support
        let members = found.and_then(|entity| entity.get("members")).and_then(Value::as_array);
        members.into_iter().flatten().filter_map(|value| text(value, "name")).collect()
    }
}

fn text<'a>(value: &'a Value, key: &str) -> Option<&'a str> {
    value.get(key)?.as_str()
}

fn named<'a>(entity: &'a Value, list: &str, name: &str) -> Option<&'a Value> {
    entity.get(list)?.as_array()?.iter().find(|member| text(member, "name") == Some(name))
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn types_are_followed_by_their_numbers() {
        let answer = json!([
            {"name": "job-change", "meta-type": "command", "arg-type": "7"},
            {"name": "7", "meta-type": "object", "members": [{"name": "mode", "type": "9"}, {"name": "list", "type": "[8]"}]},
            {"name": "9", "meta-type": "enum", "members": [{"name": "slow"}, {"name": "fast"}]},
            {"name": "[8]", "meta-type": "array", "element-type": "8"},
            {"name": "8", "meta-type": "object", "members": [{"name": "capability", "type": "9"}]},
            {"name": "STOP", "meta-type": "event", "arg-type": "7"},
            {"nameless": true},
        ]);
        let schema = Schema::new(&answer);
        assert!(schema.has_command("job-change") && !schema.has_command("STOP") && !schema.has_command("7"));
        assert!(schema.has_argument("job-change", "mode") && !schema.has_argument("job-change", "speed"));
        assert_eq!(schema.argument_values("job-change", "mode"), ["slow", "fast"]);
        assert_eq!(schema.element_values("job-change", "list", "capability"), ["slow", "fast"]);
        assert!(schema.argument_values("job-change", "list").is_empty());
    }

    #[test]
    fn anything_else_is_an_empty_schema() {
        for answer in [json!(null), json!({"a": 1}), json!([1, [], {"name": 5}])] {
            assert!(!Schema::new(&answer).has_command("quit"));
        }
    }
}
