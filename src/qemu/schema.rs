//! Reads `query-qmp-schema`: which commands, arguments and enum values a build knows.
//!
//! Pure. Types have no names on the wire, only numbers that differ between builds: a lookup follows them from a
//! command's name, and no number is ever kept.

use serde_json::Value;
use std::collections::HashMap;

/// A reply to `query-qmp-schema`, indexed by name.
#[derive(Debug)]
pub struct Schema<'a> {
    entities: HashMap<&'a str, &'a Value>,
}

impl<'a> Schema<'a> {
    /// Indexes the reply. Entities without a name are passed over.
    pub fn new(answer: &'a Value) -> Self {
        let entities = answer.as_array().into_iter().flatten();
        Self { entities: entities.filter_map(|entity| Some((text(entity, "name")?, entity))).collect() }
    }

    /// Whether the build has the command.
    pub fn has_command(&self, command: &str) -> bool {
        self.command(command).is_some()
    }

    /// Whether the command takes the argument.
    pub fn has_argument(&self, command: &str, argument: &str) -> bool {
        self.argument(command, argument).is_some()
    }

    /// The values of the enum that is the argument's type; empty where the type is no enum.
    pub fn argument_values(&self, command: &str, argument: &str) -> Vec<&'a str> {
        self.argument(command, argument).map_or_else(Vec::new, |member| self.values(member))
    }

    /// The values of an enum inside of an array argument: the type of `member` in the array's elements. The names of
    /// the capabilities in `migrate-set-capabilities` are such values.
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
        self.entities.get(of_type(member)).map_or_else(Vec::new, |entity| self.enum_values(entity))
    }

    fn enum_values(&self, entity: &'a Value) -> Vec<&'a str> {
        // QEMU has `members` since 6.2; the older `values` is redundant on every supported version.
        list(entity, "members").filter_map(|value| text(value, "name")).collect()
    }
}

fn text<'a>(value: &'a Value, key: &str) -> Option<&'a str> {
    value.get(key)?.as_str()
}

fn of_type(member: &Value) -> &str {
    text(member, "type").unwrap_or_default()
}

fn list<'a>(entity: &'a Value, name: &str) -> impl Iterator<Item = &'a Value> + use<'a> {
    entity.get(name).and_then(Value::as_array).into_iter().flatten()
}

fn named<'a>(entity: &'a Value, list: &str, name: &str) -> Option<&'a Value> {
    self::list(entity, list).find(|member| text(member, "name") == Some(name))
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
