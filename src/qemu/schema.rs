//! Reads `query-qmp-schema`: which commands, arguments and enum values a build knows.
//!
//! Pure. Types have no names on the wire, only numbers that differ between builds: a lookup follows them from a
//! command's name, and no number is ever kept.

use serde::Deserialize;
use std::collections::HashMap;

/// A reply to `query-qmp-schema`, indexed by name. The reply is the longest of all that QEMU sends, so its text is read
/// once, and nothing of the text is copied.
#[derive(Debug, Default)]
pub struct Schema<'a> {
    entities: HashMap<&'a str, Entity<'a>>,
}

/// The line of the reply.
#[derive(Deserialize)]
struct SchemaLine<'a> {
    #[serde(borrow, rename = "return")]
    entities: Vec<Entity<'a>>,
}

/// A command, an event or a type. QEMU has `members` of enums since 6.2; the older `values` is redundant on every
/// supported version.
#[derive(Debug, Deserialize)]
#[serde(rename_all = "kebab-case")]
struct Entity<'a> {
    name: Option<&'a str>,
    meta_type: Option<&'a str>,
    arg_type: Option<&'a str>,
    element_type: Option<&'a str>,
    #[serde(borrow, default)]
    members: Vec<Member<'a>>,
}

/// A member of an object, or a value of an enum.
#[derive(Debug, Deserialize)]
struct Member<'a> {
    name: Option<&'a str>,
    #[serde(rename = "type")]
    kind: Option<&'a str>,
}

impl<'a> Schema<'a> {
    /// Indexes the reply by its line. Entities without a name, and members that this version does not know, are passed
    /// over.
    ///
    /// # Errors
    /// The line has another form. A schema of which a part cannot be read tells nothing of what a build lacks.
    pub fn read(line: &'a str) -> Result<Self, serde_json::Error> {
        let SchemaLine { entities } = serde_json::from_str(line)?;
        let named = entities.into_iter().filter_map(|entity: Entity<'a>| Some((entity.name?, entity)));
        Ok(Self { entities: named.collect() })
    }

    /// Whether the build has the command.
    pub fn has_command(&self, command: &str) -> bool {
        self.command(command).is_some()
    }

    /// Whether the command takes the argument.
    pub fn has_argument(&self, command: &str, argument: &str) -> bool {
        self.argument(command, argument).is_some()
    }

    /// Whether an object of any command or event has a member of this name. For a name that one type alone can have:
    /// the types of a union, such as the kinds of socket addresses, cannot be reached by arguments.
    pub fn has_member(&self, name: &str) -> bool {
        let mut objects = self.entities.values().filter(|entity| entity.meta_type == Some("object"));
        objects.any(|object| object.member(name).is_some())
    }

    /// The values of the enum that is the argument's type; empty where the type is no enum.
    pub fn argument_values(&self, command: &str, argument: &str) -> Vec<&'a str> {
        self.argument(command, argument).map_or_else(Vec::new, |member| self.values(member))
    }

    /// The values of an enum inside of an array argument: the type of `member` in the array's elements. The names of
    /// the capabilities in `migrate-set-capabilities` are such values.
    pub fn element_values(&self, command: &str, argument: &str, member: &str) -> Vec<&'a str> {
        let element = self.argument(command, argument).and_then(|array| {
            let array = self.entities.get(array.kind?)?;
            self.entities.get(array.element_type?)
        });
        let found = element.and_then(|object| object.member(member));
        found.map_or_else(Vec::new, |member| self.values(member))
    }

    fn command(&self, name: &str) -> Option<&Entity<'a>> {
        self.entities.get(name).filter(|entity| entity.meta_type == Some("command"))
    }

    fn argument(&self, command: &str, argument: &str) -> Option<&Member<'a>> {
        self.entities.get(self.command(command)?.arg_type?)?.member(argument)
    }

    fn values(&self, member: &Member<'a>) -> Vec<&'a str> {
        let found = member.kind.and_then(|kind| self.entities.get(kind)).filter(|kind| kind.meta_type == Some("enum"));
        found.map_or_else(Vec::new, |kind| kind.members.iter().filter_map(|value| value.name).collect())
    }
}

impl<'a> Entity<'a> {
    fn member(&self, name: &str) -> Option<&Member<'a>> {
        self.members.iter().find(|member| member.name == Some(name))
    }
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
            {"name": "of-tomorrow", "meta-type": "of-tomorrow", "features": [{"a": 1}], "more": null},
        ]);
        let line = json!({"return": answer, "id": "query-qmp-schema#2"}).to_string();
        let schema = Schema::read(&line).expect("a schema");
        assert!(schema.has_command("job-change") && !schema.has_command("STOP") && !schema.has_command("7"));
        assert!(schema.has_argument("job-change", "mode") && !schema.has_argument("job-change", "speed"));
        assert_eq!(schema.argument_values("job-change", "mode"), ["slow", "fast"]);
        assert_eq!(schema.element_values("job-change", "list", "capability"), ["slow", "fast"]);
        assert!(schema.argument_values("job-change", "list").is_empty());
        assert!(schema.has_member("capability") && !schema.has_member("slow") && !schema.has_member("STOP"));
    }

    #[test]
    fn anything_else_is_not_taken_for_a_schema() {
        let quit = json!({"name": "quit", "meta-type": "command"});
        for answer in [json!(null), json!({"a": 1}), json!([quit, 1]), json!([quit, {"name": 5}])] {
            let line = json!({"return": answer}).to_string();
            assert!(Schema::read(&line).is_err(), "{line}");
        }
        assert!(Schema::read(r#"{"return": [}, "id": "x#1"}"#).is_err() && Schema::read("").is_err());
    }
}
