//! Compares a command's arguments with the types that `query-qmp-schema` gives them.

use serde_json::{Map, Value, json};
use std::collections::HashMap;

/// The differences between a command's arguments and their types, in words: unknown or missing members, wrong types,
/// values that no enum has. Empty where the build takes the arguments; `Null` stands for no arguments.
pub(crate) fn misfits(schema: &Value, command: &str, arguments: &Value) -> Vec<String> {
    let types = Types::read(schema);
    let Some(entity) = types.0.get(command).filter(|entity| text(entity, "meta-type") == Some("command")) else {
        return vec![format!("there is no command {command}")];
    };
    let nothing = Value::Object(Map::new());
    let arguments = if arguments.is_null() { &nothing } else { arguments };
    let mut found = Vec::new();
    types.compare(text(entity, "arg-type").unwrap_or_default(), arguments, command, &mut found);
    found
}

/// The schema's entities by their names.
struct Types<'a>(HashMap<&'a str, &'a Value>);

impl<'a> Types<'a> {
    fn read(schema: &'a Value) -> Self {
        let entities = schema.as_array().into_iter().flatten();
        Self(entities.filter_map(|entity| Some((text(entity, "name")?, entity))).collect())
    }

    /// Descends as deep as the value is, so a type that contains itself comes to an end.
    fn compare(&self, name: &str, value: &Value, path: &str, found: &mut Vec<String>) {
        let Some(entity) = self.0.get(name) else {
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
            (Some("enum"), Value::String(value))
                if list(entity, "members").any(|member| text(member, "name") == Some(value)) => {}
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
        // No type of QEMU's is nested deeper, and a schema that goes in circles must come to an end, too.
        for _ in 0..8 {
            let Some(entity) = next else { break };
            members.extend(list(entity, "members"));
            let chosen = text(entity, "tag").and_then(|tag| text(value, tag));
            let variant = list(entity, "variants").find(|variant| chosen.is_some() && text(variant, "case") == chosen);
            next = variant.and_then(|variant| self.0.get(of_type(variant)).copied());
        }
        members
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

#[test]
fn arguments_are_compared_with_their_types() {
    let schema = json!([
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
    for (command, arguments, expected) in [
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
        assert_eq!(misfits(&schema, command, &arguments), expected, "{command} {arguments}");
    }
}
