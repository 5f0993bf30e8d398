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

    /// What does not fit between a command and arguments for it, in words: unknown or missing members, wrong types,
    /// values that no enum has. Empty where the build takes them. `Null` stands for no arguments.
    pub fn misfits(&self, command: &str, arguments: &Value) -> Vec<String> {
        let Some(entity) = self.command(command) else {
            return vec![format!("there is no command {command}")];
        };
        let nothing = Value::Object(serde_json::Map::new());
        let arguments = if arguments.is_null() { &nothing } else { arguments };
        let mut found = Vec::new();
        self.compare(text(entity, "arg-type").unwrap_or_default(), arguments, command, &mut found);
        found
    }

    /// As deep as the value is: a type that contains itself ends with it.
    fn compare(&self, name: &str, value: &Value, path: &str, found: &mut Vec<String>) {
        let Some(entity) = self.entities.get(name) else {
            return found.push(format!("{path}: its type {name} is not in the schema"));
        };
        match (text(entity, "meta-type"), value) {
            (Some("object"), Value::Object(given)) => {
                let members = self.members(entity, value);
                for (key, value) in given {
                    match members.iter().find(|member| text(member, "name") == Some(key)) {
                        Some(member) => self.compare(of_type(member), value, &format!("{path}.{key}"), found),
                        None => found.push(format!("{path}: there is no {key}")),
                    }
                }
                let required = members.iter().filter(|member| member.get("default").is_none());
                let missing =
                    required.filter_map(|member| text(member, "name")).filter(|name| !given.contains_key(*name));
                found.extend(missing.map(|name| format!("{path}: {name} is missing")));
            }
            (Some("array"), Value::Array(elements)) => {
                let element = text(entity, "element-type").unwrap_or_default();
                elements.iter().for_each(|value| self.compare(element, value, &format!("{path}[]"), found));
            }
            (Some("enum"), Value::String(value)) if self.enum_values(entity).contains(&value.as_str()) => {}
            (Some("builtin"), _) if is_json(text(entity, "json-type"), value) => {}
            (Some("alternate"), _) => {
                let fits = |member: &Value| {
                    let mut misfits = Vec::new();
                    self.compare(of_type(member), value, path, &mut misfits);
                    misfits.is_empty()
                };
                if !list(entity, "members").any(fits) {
                    found.push(format!("{path}: {value} is none of its alternatives"));
                }
            }
            (meta, _) => found.push(format!("{path}: {value} is no {}", meta.unwrap_or("known type"))),
        }
    }

    /// An object's members, with those of the variants that its tags choose.
    fn members(&self, object: &'a Value, value: &Value) -> Vec<&'a Value> {
        let mut members = Vec::new();
        let mut next = Some(object);
        // no type of QEMU's is nested deeper; a schema that goes in circles must end too
        for _ in 0..8 {
            let Some(entity) = next else { break };
            members.extend(list(entity, "members"));
            let chosen = text(entity, "tag").and_then(|tag| text(value, tag));
            let variant = list(entity, "variants").find(|variant| chosen.is_some() && text(variant, "case") == chosen);
            next = variant.and_then(|variant| self.entities.get(of_type(variant)).copied());
        }
        members
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
        // `members` since 6.2; the older `values` stands beside it on all we support
        list(entity, "members").filter_map(|value| text(value, "name")).collect()
    }
}

fn is_json(kind: Option<&str>, value: &Value) -> bool {
    match kind {
        Some("string") => value.is_string(),
        Some("int") => value.is_i64() || value.is_u64(),
        Some("number") => value.is_number(),
        Some("boolean") => value.is_boolean(),
        Some("null") => value.is_null(),
        Some("object") => value.is_object(),
        Some("array") => value.is_array(),
        Some("value") => true,
        _ => false,
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
    fn arguments_are_compared_with_their_types() {
        let answer = json!([
            {"name": "add", "meta-type": "command", "arg-type": "1"},
            {"name": "stop", "meta-type": "command", "arg-type": "0"},
            {"name": "0", "meta-type": "object", "members": []},
            {"name": "1", "meta-type": "object", "tag": "kind", "members": [
                {"name": "kind", "type": "2"}, {"name": "on", "type": "bool", "default": null},
                {"name": "size", "type": "3", "default": null}, {"name": "names", "type": "[str]", "default": null},
            ], "variants": [{"case": "a", "type": "4"}, {"case": "b", "type": "0"}, {"case": "c", "type": "1"}]},
            {"name": "2", "meta-type": "enum", "members": [{"name": "a"}, {"name": "b"}, {"name": "c"}]},
            {"name": "3", "meta-type": "alternate", "members": [{"type": "int"}, {"type": "str"}]},
            {"name": "4", "meta-type": "object", "members": [{"name": "path", "type": "str"}]},
            {"name": "[str]", "meta-type": "array", "element-type": "str"},
            {"name": "str", "meta-type": "builtin", "json-type": "string"},
            {"name": "int", "meta-type": "builtin", "json-type": "int"},
            {"name": "bool", "meta-type": "builtin", "json-type": "boolean"},
        ]);
        let schema = Schema::new(&answer);
        for (command, arguments, misfits) in [
            ("stop", Value::Null, vec![]),
            ("stop", json!({"now": true}), vec!["stop: there is no now"]),
            ("halt", Value::Null, vec!["there is no command halt"]),
            ("add", json!({"kind": "a", "path": "p", "on": true, "size": 1, "names": ["x"]}), vec![]),
            ("add", json!({"kind": "b", "size": "1k"}), vec![]),
            ("add", json!({"kind": "a"}), vec!["add: path is missing"]),
            ("add", json!({"kind": "b", "path": "p"}), vec!["add: there is no path"]),
            ("add", json!({"kind": "z"}), vec!["add.kind: \"z\" is no enum"]),
            ("add", json!({"on": 1}), vec!["add.on: 1 is no builtin", "add: kind is missing"]),
            ("add", json!({"kind": "b", "size": []}), vec!["add.size: [] is none of its alternatives"]),
            ("add", json!({"kind": "b", "names": [1]}), vec!["add.names[]: 1 is no builtin"]),
            ("add", json!({"kind": "c"}), vec![]),
        ] {
            assert_eq!(schema.misfits(command, &arguments), misfits, "{command} {arguments}");
        }
    }

    #[test]
    fn anything_else_is_an_empty_schema() {
        for answer in [json!(null), json!({"a": 1}), json!([1, [], {"name": 5}])] {
            assert!(!Schema::new(&answer).has_command("quit"));
        }
    }
}
